"""Decides which argument values are secret: keys, and settings with names of secrets."""

from __future__ import annotations

import base64
import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from pytest_esp.secrets import remember

_LONGEST_KEY = 1024  # bytes
_SHORTEST_NUMBER = 6  # digits: of a passkey; shorter numbers occur in every log
_HEX_TYPES = ("blob", "hex", "hex2bin")  # of NVS values
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_SECRET = re.compile(
    "auth|authorization|bearer|cookie|creds?|credentials?|csrk|irk|jwt|keys?|ltk|otp|pin|pincode|pmk|priv|private|puk"
    "|pw|secrets|tok|tokens|.*(?:pass|passcode|passkey|passphrase|passwd|password|pswd|pwd|key|psk|secret|token)"
)
_NOT_SECRET = re.compile("count|expiry|id|len|length|mode|name|pub|public|size|ttl|type|ur[il]|user|username")
_PLACE = re.compile("address|broker|endpoint|file|filename|host|hostname|path|port|server|ssid|topic")


def remember_key(data: bytes) -> bytes:
    """Mask a key from now on (PEM, unless it is public, or raw bytes), and return it."""
    if b"-----BEGIN" in data:
        remember(*((data,) if b"PRIVATE" in data else ()))
    elif len(data) <= _LONGEST_KEY:
        half = len(data) // 2  # some keys consist of two halves, each in its own block with bytes reversed
        parts = (data, data[:half], data[half:])
        remember(*parts, *(part[::-1] for part in parts))
    return data


def remember_in(table: object) -> None:
    """Mask the secrets in *table* (settings, or NVS values by namespace and key), judged by name; see `is_secret_name`.

    Everything under such a name is secret, as in ``credentials``, except hosts, ports, SSIDs and file names.
    """
    remember(*_secrets_in(table, False))


def is_secret_name(name: str) -> bool:
    """Return whether a value of this name is secret: ``password``, ``mqtt_pass``, ``apiKey``; not ``public_key``."""
    return _has_word(_SECRET, name) and not _has_word(_PLACE, name) and not _has_word(_NOT_SECRET, name)


def _has_word(words: re.Pattern[str], name: str) -> bool:
    return any(words.fullmatch(word.lower()) for word in _WORD.findall(name))


def _secrets_in(value: object, is_secret: bool) -> Iterator[str | bytes]:
    if isinstance(value, Mapping):
        table = cast("Mapping[Any, Any]", value)
        if "value" in table and table.keys() <= {"type", "value"}:
            yield from _typed(table.get("type"), table["value"], is_secret)
        elif "file" not in table:
            for key, item in ((str(key), item) for key, item in table.items()):
                yield from _secrets_in(item, is_secret_name(key) or (is_secret and not _has_word(_PLACE, key)))
    elif isinstance(value, (list, tuple)):
        for item in cast("Sequence[Any]", value):
            yield from _secrets_in(item, is_secret)
    elif is_secret and isinstance(value, (str, bytes)):
        yield value
    elif is_secret and isinstance(value, int) and len(str(value)) >= _SHORTEST_NUMBER:
        yield str(value)


def _typed(kind: object, value: object, is_secret: bool) -> Iterator[str | bytes]:
    yield from _secrets_in(value, is_secret)
    if is_secret and isinstance(value, str):
        with contextlib.suppress(ValueError):
            if kind in _HEX_TYPES:
                yield bytes.fromhex(value)
            elif kind == "base64":
                yield base64.b64decode(value, validate=True)
