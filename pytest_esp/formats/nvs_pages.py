"""Reads the pages of an NVS partition, and makes them with Espressif's generator.

Source: "Non-Volatile Storage Library", section Internals, of ESP-IDF's guide.
"""

from __future__ import annotations

import base64
import binascii
import csv
import io
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from pytest_esp.errors import OperationError
from pytest_esp.formats.files import resolve

PAGE = 4096
KEY_SIZE = 64
_ENTRY, _FIRST_ENTRY, _ENTRIES = 32, 64, 126
_LEAST_PAGES = 3
_NEWEST_VERSION = 2
_LONGEST_KEY = 15
_STATES = {0xFFFFFFFF: "empty", 0xFFFFFFFE: "active", 0xFFFFFFFC: "full", 0xFFFFFFF8: "freeing", 0xFFFFFFF0: "corrupt"}
_NUMBERS = {0x01: "u8", 0x11: "i8", 0x02: "u16", 0x12: "i16", 0x04: "u32", 0x14: "i32", 0x08: "u64", 0x18: "i64"}
_STRING, _OLD_BLOB, _BLOB_DATA, _BLOB_INDEX = 0x21, 0x41, 0x42, 0x48
_EMPTY, _WRITTEN, _ERASED = 3, 2, 0

NvsData = Mapping[str, Mapping[str, Any]]
"""Values by namespace and key: text, a number, bytes, or ``{"type": "u8", "value": 1}``."""


# -- reading


@dataclass(frozen=True)
class NvsEntry:
    """A value; *type* is ``"u8"`` to ``"i64"``, ``"string"`` or ``"blob"`` (the value is hex digits)."""

    namespace: str
    key: str
    type: str
    value: int | str


@dataclass(frozen=True)
class NvsPage:
    """One page of 4 KB.

    Attributes:
        state: ``"empty"``, ``"active"``, ``"full"``, ``"freeing"``, ``"corrupt"`` (marked as such, or not blank where
            it should be), or ``"damaged"`` if its header's checksum is wrong.
        sequence, version: None unless the page is in use.
        written, erased, free: the number of its 126 entries in each state.
        encrypted: whether none of its entries can be read, as with NVS encryption and without the right key.
    """

    number: int
    state: Literal["empty", "active", "full", "freeing", "corrupt", "damaged"]
    sequence: int | None
    version: int | None
    written: int
    erased: int
    free: int
    encrypted: bool


@dataclass(frozen=True)
class NvsContents:
    """The contents of an NVS partition.

    Attributes:
        entries: all values that an app can read, by namespace and key.
        encrypted: whether some pages cannot be read without the right key.
        problems: damaged entries and pages, and values that an app cannot read.
    """

    namespaces: tuple[str, ...]
    entries: tuple[NvsEntry, ...]
    pages: tuple[NvsPage, ...]
    encrypted: bool
    problems: tuple[str, ...]


@dataclass(frozen=True)
class _Item:
    """An entry of a page, with the data that follows it."""

    namespace: int
    type: int
    chunk: int
    key: str
    inline: bytes
    data: bytes


def read_pages(data: bytes, key: bytes | None = None) -> NvsContents:
    """Return the contents of an NVS partition.

    Args:
        data: the whole partition.
        key: the NVS encryption key: the first 64 bytes of the generator's key file or the nvs_keys partition.

    Raises:
        OperationError: if the size is not a multiple of the page size, or the key is not 64 bytes long.
    """
    if not data or len(data) % PAGE:
        raise OperationError(
            f"invalid size of an NVS partition: {len(data)} bytes", hint="expected a multiple of 4096 bytes"
        )
    if key is not None and len(key) != KEY_SIZE:
        raise OperationError(f"an NVS key has {KEY_SIZE} bytes, not {len(key)}")
    problems: list[str] = []
    pages: list[NvsPage] = []
    items: list[tuple[int, list[_Item]]] = []
    for number in range(len(data) // PAGE):
        page, found = _page(data[number * PAGE : (number + 1) * PAGE], number, key, problems)
        pages.append(page)
        items.append((page.sequence or 0, found))
    in_order = [item for _, found in sorted(items, key=lambda pair: pair[0]) for item in found]
    names = {item.inline[0]: item.key for item in in_order if item.namespace == 0}
    entries = _entries([item for item in in_order if item.namespace], names, problems)
    return NvsContents(
        namespaces=tuple(sorted(names.values())),
        entries=tuple(sorted(entries, key=lambda entry: (entry.namespace, entry.key))),
        pages=tuple(pages),
        encrypted=any(page.encrypted for page in pages),
        problems=tuple(problems),
    )


def _page(raw: bytes, number: int, key: bytes | None, problems: list[str]) -> tuple[NvsPage, list[_Item]]:
    state_word, sequence = struct.unpack_from("<II", raw)
    state = cast(Any, _STATES.get(state_word, "damaged"))
    if state == "empty" and raw == b"\xff" * PAGE:
        return NvsPage(number, "empty", None, None, 0, 0, _ENTRIES, False), []
    if state in ("empty", "corrupt"):  # ESP-IDF's library ignores the page
        problems.append(f"page {number}: it is {'not blank' if state == 'empty' else 'marked as corrupt'}")
        return NvsPage(number, "corrupt", None, None, 0, 0, 0, False), []
    if state == "damaged" or zlib.crc32(raw[4:28], 0xFFFFFFFF) != struct.unpack_from("<I", raw, 28)[0]:
        problems.append(f"page {number}: its header is damaged")
        return NvsPage(number, "damaged", None, None, 0, 0, 0, False), []
    bits = int.from_bytes(raw[32:64], "little")
    states = [bits >> 2 * index & 3 for index in range(_ENTRIES)]
    version = 0x100 - raw[8]  # version 1 is written as 0xff, version 2 as 0xfe
    # The library continues an active page at its first empty entry, and ignores everything after it.
    end = states.index(_EMPTY) if state == "active" and _EMPTY in states else _ENTRIES
    good, bad = _items(raw, number, states, end, key) if version <= _NEWEST_VERSION else ([], [])
    encrypted = bool(bad) and not good
    if version > _NEWEST_VERSION:
        problems.append(f"page {number}: unknown version {version}")
    elif not encrypted:
        problems += [f"page {number}, entry {index}: wrong checksum, or truncated" for index in bad]
    written, erased, free = (states.count(kind) for kind in (_WRITTEN, _ERASED, _EMPTY))
    return NvsPage(number, state, sequence, version, written, erased, free, encrypted), good


def _items(raw: bytes, number: int, states: list[int], end: int, key: bytes | None) -> tuple[list[_Item], list[int]]:
    """Return the valid entries before *end*, and the indices of the invalid ones."""
    good: list[_Item] = []
    bad: list[int] = []
    index = 0
    while index < _ENTRIES:
        if states[index] != _WRITTEN:
            index += 1
            continue
        if index > end:
            bad.append(index)
            break
        head = _plain(raw, number, index, 1, key)
        span = head[2]
        if zlib.crc32(head[:4] + head[8:], 0xFFFFFFFF) != struct.unpack_from("<I", head, 4)[0] or not span:
            bad.append(index)
            index += 1
            continue
        item = _item(head, _plain(raw, number, index + 1, min(span, _ENTRIES - index) - 1, key))
        if item is None or any(state != _WRITTEN for state in states[index : index + span]):
            bad.append(index)
        else:
            good.append(item)
        index += span
    return good, bad


def _item(head: bytes, following: bytes) -> _Item | None:
    data = b""
    if head[1] in (_STRING, _OLD_BLOB, _BLOB_DATA):
        size, check = struct.unpack_from("<H2xI", head, 24)
        data = following[:size]
        if len(data) != size or zlib.crc32(data, 0xFFFFFFFF) != check:
            return None
    name = head[8:24].split(b"\0")[0].decode("utf-8", "backslashreplace")
    return _Item(head[0], head[1], head[3], name, head[24:32], data)


def _plain(raw: bytes, number: int, index: int, count: int, key: bytes | None) -> bytes:
    start = _FIRST_ENTRY + index * _ENTRY
    data = raw[start : start + count * _ENTRY]
    if key is None:
        return data
    parts: list[bytes] = []
    for offset in range(0, len(data), _ENTRY):
        # The tweak is the entry's address in the partition.
        tweak = (number * PAGE + start + offset).to_bytes(16, "little")
        cipher = Cipher(algorithms.AES(key), modes.XTS(tweak)).decryptor()
        parts.append(cipher.update(data[offset : offset + _ENTRY]))
    return b"".join(parts)


def _entries(items: list[_Item], names: dict[int, str], problems: list[str]) -> Iterator[NvsEntry]:
    chunks = {(item.namespace, item.key, item.chunk): item.data for item in items if item.type == _BLOB_DATA}
    newest = {(item.namespace, item.key): item for item in items if item.type != _BLOB_DATA}
    for item in newest.values():
        value = _value(item, chunks)
        if item.namespace not in names:
            problems.append(f"{item.key}: its namespace {item.namespace} does not have a name")
        elif value is None:
            what = f"{names[item.namespace]}.{item.key}"
            problems.append(f"{what}: incomplete, or of unknown type {item.type:#04x}")
        else:
            yield NvsEntry(names[item.namespace], item.key, *value)


def _value(item: _Item, chunks: dict[tuple[int, str, int], bytes]) -> tuple[str, int | str] | None:
    if item.type in _NUMBERS:
        kind = _NUMBERS[item.type]
        size = int(kind[1:]) // 8
        return kind, int.from_bytes(item.inline[:size], "little", signed=kind[0] == "i")
    if item.type == _STRING:
        return "string", item.data.split(b"\0")[0].decode("utf-8", "backslashreplace")
    if item.type == _OLD_BLOB:
        return "blob", item.data.hex()
    if item.type == _BLOB_INDEX:
        size, count, start = struct.unpack_from("<IBB", item.inline)
        data = b"".join(chunks.get((item.namespace, item.key, start + number), b"") for number in range(count))
        return ("blob", data.hex()) if len(data) == size else None
    return None


# -- making


def make_pages(values: NvsData | str | Path, size: int, key: bytes | None = None) -> bytes:
    """Return an NVS partition of *size* bytes, made by Espressif's generator.

    Args:
        values: see `NvsData`; or a CSV file for that generator (files in it are relative to it).
        size: the size of the partition, at least 0x3000.
        key: the NVS encryption key, 64 bytes.

    Raises:
        OperationError: if a value does not fit its type, a name is too long, or the partition is too small.
    """
    from esp_idf_nvs_partition_gen import nvs_partition_gen as generator

    if size % PAGE or size < _LEAST_PAGES * PAGE:
        raise OperationError(
            f"invalid size of an NVS partition: {size:#x} bytes", hint="use a multiple of 0x1000, at least 0x3000"
        )
    if key is not None and len(key) != KEY_SIZE:
        raise OperationError(f"an NVS key has {KEY_SIZE} bytes, not {len(key)}")
    rows = _rows_of_csv(Path(values)) if isinstance(values, (str, Path)) else _rows(values)
    out = io.BytesIO()
    # One page stays free: the library moves entries into it.
    partition = generator.nvs_open(out, size - PAGE, generator.Page.VERSION2, key is not None, key)
    for name, encoding, value in rows:
        _check_name(name)
        try:
            if encoding == "namespace":
                partition.write_namespace(name)
            else:
                partition.write_entry(name, value, encoding)
        except (RuntimeError, ValueError, struct.error, AssertionError, binascii.Error) as error:
            room = isinstance(error, generator.InsufficientSizeError)
            raise OperationError(
                f"there is no room for {name!r} in {size:#x} bytes"
                if room
                else f"the value of {name!r} is invalid: {error}",
                hint="make the partition larger" if room else f"it does not fit {encoding}",
            ) from error
    generator.nvs_close(partition)
    return out.getvalue()


def _check_name(name: str) -> None:
    if not 0 < len(name.encode()) <= _LONGEST_KEY:
        raise OperationError(f"invalid key or namespace {name!r}", hint=f"use 1 to {_LONGEST_KEY} bytes")


_Row = tuple[str, str, Any]


def _rows(values: NvsData) -> Iterator[_Row]:
    for namespace, keys in values.items():
        if not isinstance(keys, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance] - it may come from JSON
            raise OperationError(f"the namespace {namespace!r} has no keys", hint='{"namespace": {"key": value}}')
        yield namespace, "namespace", ""
        for name, value in keys.items():
            yield (name, *_encoded(name, value))


def _encoded(name: str, value: Any) -> tuple[str, Any]:
    if isinstance(value, Mapping):
        given = cast(Mapping[str, Any], value)
        return _typed(name, str(given.get("type")), given.get("value"))
    if isinstance(value, bool):
        return "u8", int(value)
    if isinstance(value, int):
        fitting = ("u32", "u64") if value >= 0 else ("i32", "i64")
        return fitting[not -(1 << 31) <= value < 1 << 32], value
    if isinstance(value, str):
        return "string", value
    if isinstance(value, bytes):
        return "hex2bin", value.hex()
    raise OperationError(
        f"the value of {name!r} has an unsupported type", hint="use text, a number, bytes, or type and value"
    )


def _typed(name: str, kind: str, value: Any) -> tuple[str, Any]:
    if kind in _NUMBERS.values():
        try:
            return kind, int(value, 0) if isinstance(value, str) else int(value)
        except (TypeError, ValueError) as error:
            raise OperationError(f"the value of {name!r} is not a number") from error
    if kind == "string" and isinstance(value, str):
        return kind, value
    if kind in ("blob", "hex", "hex2bin", "base64") and isinstance(value, (str, bytes)):
        if isinstance(value, bytes):
            return "hex2bin", value.hex()
        return ("base64" if kind == "base64" else "hex2bin"), value
    known = ", ".join([*_NUMBERS.values(), "string", "blob (hex digits)", "base64"])
    raise OperationError(f"the value of {name!r} does not match its type {kind}", hint=f"types: {known}")


def _rows_of_csv(path: Path) -> Iterator[_Row]:
    try:
        lines = [
            line for line in resolve(path).read_text("utf-8-sig").splitlines() if line and not line.startswith("#")
        ]
    except (OSError, UnicodeDecodeError) as error:
        raise OperationError(f"{path} cannot be read: {error}") from error
    table = csv.DictReader(lines)
    if not {"key", "type", "encoding", "value"} <= set(table.fieldnames or ()):
        raise OperationError(f"{path} is not an NVS CSV file", hint="its first line must be key,type,encoding,value")
    for row in table:
        name, kind, encoding, value = (str(row[column] or "") for column in ("key", "type", "encoding", "value"))
        if kind == "namespace":
            yield name, kind, ""
        elif kind == "data" and encoding in _NUMBERS.values():
            yield (name, *_typed(name, encoding, value))
        elif kind == "data":
            yield name, encoding, value
        elif kind == "file":
            yield (name, *_file_value(path, encoding, value))
        else:
            raise OperationError(f"{path}: {name!r} has the unknown type {kind!r}", hint="use namespace, data or file")


def _file_value(path: Path, encoding: str, name: str) -> tuple[str, Any]:
    file = resolve(name, named_by=path)
    try:
        data = file.read_bytes()
    except OSError as error:
        raise OperationError(f"{file} cannot be read: {error.strerror}") from error
    if encoding in ("hex2bin", "base64", "string"):
        text = data.decode("utf-8", "strict")
        return ("hex2bin", base64.b64decode(text).hex()) if encoding == "base64" else (encoding, text)
    return "hex2bin", data.hex()
