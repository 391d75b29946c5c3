"""Values that nobody may read: passwords, keys, tokens. What was given to an operation is masked wherever text leaves.

There is one register for the process (`remember`), for a secret leaves by many ways: the app prints it on its console,
pytest shows the test's variables, a tool answers with what it has read. Whatever goes to people, to files or to clients
passes `hide`. A test itself sees what is there: it may expect it.
"""

from __future__ import annotations

import base64
import contextlib
import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast
from urllib.parse import quote, quote_plus

MASK = "***"
_MASK = MASK.encode()

_SHORTEST = 4  # characters; to mask shorter ones would spoil every message, and none is a password
_SHORTEST_LINE = 8  # of a text of several lines, which a console prints one by one
_SHORTEST_NUMBER = 6  # digits: of a passkey; shorter ones are in every log
_LONG = 12  # characters: three quarters of one are no common word
_LEAST_SEEN = 3  # characters of one that is cut, where text is known to be cut
_MOST_VALUES = 2000  # a server that programs boards for weeks forgets the oldest
_MOST_BYTES = 1024  # of a value that is looked for in dumps
_ROW = 16  # bytes in a line of ESP_LOG_BUFFER_HEX
_BASE64_CORE = 8
_ELLIPSIS = b"..."
_LONGEST_LINE = 4096
_ENDS = frozenset({b"\n", b"\r", b"'", b'"', b"\\"})
_ANSI = re.compile(rb"\x1b\[[0-9;?]*[ -/]*[@-~]")

_HEX_TYPES = ("blob", "hex", "hex2bin")  # of NVS values
_VALUE_KEYS = {"type", "value"}
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_SECRET = re.compile(
    "auth|authorization|bearer|cookie|creds?|credentials?|csrk|irk|jwt|keys?|ltk|otp|pin|pincode|pmk|priv|private|puk"
    "|pw|secrets|tok|tokens|.*(?:pass|passcode|passkey|passphrase|passwd|password|pswd|pwd|key|psk|secret|token)"
)
_NOT_SECRET = re.compile("count|expiry|id|len|length|mode|name|pub|public|size|ttl|type|ur[il]|user|username")
_PLACE = re.compile("address|broker|endpoint|file|filename|host|hostname|path|port|server|ssid|topic")


def is_secret_name(name: str) -> bool:
    """Tell whether a value of this name is a secret: ``password``, ``mqtt_pass``, ``apiKey``; not ``public_key``."""
    words = _words(name)
    if _is_place(name) or any(_NOT_SECRET.fullmatch(word) for word in words):
        return False
    return any(_SECRET.fullmatch(word) for word in words)


def _is_place(name: str) -> bool:
    return any(_PLACE.fullmatch(word) for word in _words(name))


def _words(name: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(name)]


# -- the forms of a value


def forms_of(value: str | bytes) -> set[str]:
    """Return the texts in which a value may be met: as it is, escaped, in hex and base64, as rows of a dump."""
    raw = _encoded(value) if isinstance(value, str) else value
    found = {*_as_text(value), *_as_hex(raw), *_as_base64(raw)}
    return {form for form in found if len(form) >= _SHORTEST}


def _as_text(value: str | bytes) -> Iterator[str]:
    if isinstance(value, bytes):
        shown = repr(value)[2:-1]
        yield shown
        yield repr(shown)[1:-1]
        value = value.decode("utf-8", "replace").strip("\ufffd")  # as a console's text has it
        if len(value.replace("\ufffd", "")) < _SHORTEST:
            return
    plain = value.strip("\0")  # a blob of fixed size
    yield value
    yield plain
    yield from _lines_of(plain)
    escaped = {
        *(json.dumps(plain)[1:-1], json.dumps(plain, ensure_ascii=False)[1:-1]),
        *(repr(plain)[1:-1], ascii(plain)[1:-1], repr(_encoded(plain))[2:-1]),
        plain.replace("'", "\\'"),
    }
    yield from escaped
    for form in escaped - {plain}:  # what has a value in it is shown in its turn
        yield from (repr(form)[1:-1], json.dumps(form)[1:-1])
    with contextlib.suppress(UnicodeEncodeError):  # half a character
        yield from (quote(plain, safe=""), quote_plus(plain))


def _lines_of(text: str) -> Iterator[str]:
    lines = text.splitlines()
    if len(lines) > 1:  # those of PEM that say what it is, are in every other one
        yield from (line for line in lines if len(line) >= _SHORTEST_LINE and not line.startswith("-----"))


def _as_hex(raw: bytes) -> Iterator[str]:
    digits = raw.hex()
    yield from (digits, digits.upper())
    if not 4 <= len(raw) <= _MOST_BYTES:
        return
    rows = [raw[at : at + _ROW] for at in range(0, len(raw), _ROW)] if len(raw) > _ROW else []
    # A row of a dump that is padding is no secret: it is in every other dump, too.
    for row in (raw, *(row for row in rows if len(row) >= _ROW // 2 and len(set(row)) >= _SHORTEST)):
        for separator in (" ", ":", ", 0x", "\\x"):
            lower = separator.join(f"{byte:02x}" for byte in row)
            yield from (lower, separator.join(f"{byte:02X}" for byte in row))


def _as_base64(raw: bytes) -> Iterator[str]:
    yield base64.b64encode(raw).decode()
    for before in range(3):  # something may stand in front of it: "user:password"
        encoded = base64.b64encode(bytes(before) + raw).decode()
        core = encoded[-(-before * 8 // 6) : (before + len(raw)) * 8 // 6]
        if len(core) >= _BASE64_CORE:
            yield from (core, core.replace("+", "-").replace("/", "_"))


def _encoded_forms(value: str | bytes) -> set[bytes]:
    forms = {_encoded(form) for form in forms_of(value)}
    return {*forms, value} if isinstance(value, bytes) and len(value) >= _SHORTEST else forms


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _decoded(data: bytes) -> str:
    try:
        return data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:  # a value of bytes was found in the middle of characters
        return data.decode("utf-8", "replace")


# -- finding them


class _Index:
    """Finds any of many forms in bytes, in a time that hardly depends on their number."""

    def __init__(self, forms: Iterable[bytes]) -> None:
        self._by_head: dict[bytes, list[bytes]] = {}
        for form in sorted(forms, key=len, reverse=True):
            self._by_head.setdefault(form[:_SHORTEST], []).append(form)
        self._heads = re.compile(_alternatives(self._by_head), re.DOTALL)
        self._shorter = {head[:size] for head in self._by_head for size in range(1, _SHORTEST)}
        self._longest = max((forms[0] for forms in self._by_head.values()), key=len, default=b"")

    def __bool__(self) -> bool:
        return bool(self._by_head)

    def masked(self, data: bytes, *, is_whole: bool = True) -> bytes:
        """Return *data* with a mask in the place of each form, and of those that overlap.

        Of one that the app cuts, or is cut in by a reset, nearly all counts, and more than half where a line ends.

        Args:
            data: to be shown.
            is_whole: nothing comes after it.
        """
        parts: list[bytes] = []
        begin = end = shown = 0  # of the place that is masked; up to where all is in *parts*
        for at, forms in self._places(data, 0):
            size = max(_size_at(form, data, at, is_whole) for form in forms)
            if not size:
                continue
            if at >= end:
                parts += (data[shown:begin], _MASK) if end else ()
                shown, begin = end, at
            end = max(end, at + size)
        return b"".join((*parts, data[shown:begin], _MASK, data[end:])) if end else data

    def begun(self, data: bytes, least: int) -> int:
        """Return where the longest end of *data* begins that is the beginning of a form; its length if there is none.

        Args:
            data: may go on.
            least: so many bytes of a form count.
        """
        for at, forms in self._places(data, max(0, len(data) - len(self._longest) + 1)):
            if any(form.startswith(data[at:]) for form in forms):
                return at
        for size in range(min(_SHORTEST - 1, len(data)), least - 1, -1):
            if data[-size:] in self._shorter:
                return len(data) - size
        return len(data)

    def _places(self, data: bytes, start: int) -> Iterator[tuple[int, list[bytes]]]:
        """Yield where the head of a form is, and the forms that it may be, the longest first."""
        if not self._by_head:
            return
        while match := self._heads.search(data, start):
            yield match.start(), self._by_head[match[0]]
            start = match.start() + 1


def _size_at(form: bytes, data: bytes, at: int, is_whole: bool) -> int:
    """Return how many bytes of a form are there to be masked; 0 if it is something else that begins like it."""
    if data.startswith(form, at):
        return len(form)
    there = data[at : at + len(form)]
    size = next((index for index, pair in enumerate(zip(form, there, strict=False)) if pair[0] != pair[1]), len(there))
    if size == len(there):
        is_cut = is_whole
    else:
        is_cut = data[at + size : at + size + 1] in _ENDS or (len(form) >= _LONG and 4 * size > 3 * len(form))
    return size if is_cut and size > len(form) // 2 else 0


def _alternatives(words: Iterable[bytes]) -> bytes:
    """Return a pattern for any of the *words*, all of one length, that shares their beginnings."""
    tails: dict[bytes, list[bytes]] = {}
    for word in words:
        if word:
            tails.setdefault(word[:1], []).append(word[1:])
    branches = [re.escape(first) + _alternatives(rest) for first, rest in sorted(tails.items())]
    return branches[0] if len(branches) == 1 else b"(?:" + b"|".join(branches) + b")" if branches else b""


class Forms:
    """Values in all their forms, to be found in text and in bytes."""

    def __init__(self, values: Iterable[str | bytes] = ()) -> None:
        self.values: dict[str | bytes, set[bytes] | None] = dict.fromkeys(values)
        """With their forms, once these were needed."""
        self._indices: tuple[_Index, _Index] | None = None

    def __repr__(self) -> str:
        return f"Forms({MASK})"

    def add(self, values: Iterable[str | bytes]) -> None:
        """Take more values; the oldest go when there are thousands."""
        new = [value for value in values if value not in self.values]
        if new:
            kept = [*self.values.items(), *((value, None) for value in new)]
            self.values = dict(kept[-_MOST_VALUES:])
            self._indices = None

    def _made(self) -> tuple[_Index, _Index]:
        """Return what finds the forms, and what finds them read backwards."""
        indices = self._indices
        if indices is None:  # made when they are looked for, which most values of a production line never are
            forms_of = self.values
            for value, forms in forms_of.items():
                if forms is None:
                    forms_of[value] = _encoded_forms(value)
            found = {form for forms in forms_of.values() if forms for form in forms}
            indices = _Index(found), _Index(form[::-1] for form in found)
            if forms_of is self.values:  # nobody has added one meanwhile
                self._indices = indices
        return indices

    def hide(self, text: str, *, is_cut: bool = False) -> str:
        """Return *text* without any of the values; of one that is cut off at its end no more than half is left.

        Args:
            text: to be shown.
            is_cut: it was cut somewhere (at its begin, its end, or where it has ``...``): then nearly nothing is left.
        """
        if not self.values:
            return text
        index, backwards = self._made()
        data = index.masked(before := _encoded(text))
        if is_cut:
            pieces = [_without_end(piece, index, _LEAST_SEEN) for piece in data.split(_ELLIPSIS)]
            turned = [_without_end(piece[::-1], backwards, _LEAST_SEEN) for piece in pieces]
            data = _ELLIPSIS.join(piece[::-1] for piece in turned)
        return text if data == before else _decoded(data)

    def hide_bytes(self, data: bytes, *, is_whole: bool = True) -> bytes:
        """Return *data* without any of the values; with *is_whole* nothing comes after it."""
        return self._made()[0].masked(data, is_whole=is_whole) if self.values else data

    def begun(self, data: bytes, least: int) -> int:
        """Return where an end of *data* begins that may become one of the values; its length if there is none."""
        return self._made()[0].begun(data, least) if self.values else len(data)

    def hide_in(self, value: Any) -> Any:
        """Return plain data (text, lists, tables) without any of the values."""
        return self._hidden_in(value) if self.values else value

    def _hidden_in(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.hide(value)
        if isinstance(value, Mapping):
            table = cast("Mapping[Any, Any]", value)
            return {self._hidden_in(key): self._hidden_in(item) for key, item in table.items()}
        if isinstance(value, (list, tuple)):
            return [self._hidden_in(item) for item in cast("Sequence[Any]", value)]
        return value


def _without_end(data: bytes, index: _Index, least: int) -> bytes:
    at = index.begun(data, least)
    return data[:at] + _MASK if at < len(data) else data


# -- the register of this process

_known = Forms()
_lock = threading.Lock()
_listeners: list[Callable[[list[str | bytes]], None]] = []


def remember(*values: str | bytes) -> None:
    """Mask these values from now on, in all that leaves this process as text: logs, reports, errors, answers."""
    new = learn(values)
    for listener in _listeners if new else ():
        listener(new)


def learn(values: Iterable[str | bytes]) -> list[str | bytes]:
    """Mask values that another process has told of; no listener hears of them. Return those that are new."""
    given = [value for value in values if value and not (isinstance(value, bytes) and len(set(value)) < _SHORTEST)]
    with _lock:
        new = [value for value in given if value not in _known.values]
        _known.add(new)
    return new


def known() -> list[str | bytes]:
    """Return what is masked: for other processes that are to mask it, too."""
    return list(_known.values)


def tell_of_new(listener: Callable[[list[str | bytes]], None]) -> None:
    """Call *listener* with values that were not known before, in the thread that brings them."""
    _listeners.append(listener)


def remember_key(data: bytes) -> bytes:
    """Mask a key from now on, in PEM (unless it is a public one) or as raw bytes, and return it."""
    if b"-----BEGIN" in data:
        remember(*((data,) if b"PRIVATE" in data else ()))
    elif len(data) <= _MOST_BYTES:
        half = len(data) // 2  # some kinds of keys are two, each in a block of its own
        remember(data, data[::-1], data[:half], data[half:], data[half - 1 :: -1], data[: half - 1 : -1])
    return data


def remember_in(table: object) -> None:
    """Mask what is secret in *table* (settings, NVS values by namespace and key) by its name, see `is_secret_name`.

    All that lies under such a name is secret, as in ``credentials``, but for hosts, ports, SSIDs and names of files.
    """
    remember(*_secrets_in(table, False))


def _secrets_in(value: object, is_secret: bool) -> Iterator[str | bytes]:
    if isinstance(value, Mapping):
        table = cast("Mapping[Any, Any]", value)
        if "value" in table and table.keys() <= _VALUE_KEYS:
            yield from _typed(table.get("type"), table["value"], is_secret)
        elif "file" not in table:
            for key, item in table.items():
                named = is_secret_name(str(key)) or (is_secret and not _is_place(str(key)))
                yield from _secrets_in(item, named)
    elif isinstance(value, (list, tuple)):
        for item in cast("Sequence[Any]", value):
            yield from _secrets_in(item, is_secret)
    elif is_secret:
        if isinstance(value, (str, bytes)):
            yield value
        elif isinstance(value, int) and not isinstance(value, bool) and len(str(value)) >= _SHORTEST_NUMBER:
            yield str(value)


def _typed(kind: object, value: object, is_secret: bool) -> Iterator[str | bytes]:
    yield from _secrets_in(value, is_secret)
    if is_secret and isinstance(value, str):
        with contextlib.suppress(ValueError):
            if kind in _HEX_TYPES:
                yield bytes.fromhex(value)
            elif kind == "base64":
                yield base64.b64decode(value, validate=True)


def forget() -> None:
    """Mask nothing any more."""
    global _known
    with _lock:
        _known = Forms()


def is_any_known() -> bool:
    """Tell whether there is anything to mask."""
    return bool(_known.values)


def hide(text: str, *, is_cut: bool = False) -> str:
    """Return *text* without any secret that is known, see `Forms.hide`."""
    return _known.hide(text, is_cut=is_cut)


def hide_bytes(data: bytes) -> bytes:
    """Return *data* without any secret that is known."""
    return _known.hide_bytes(data)


def hide_in(value: Any) -> Any:
    """Return plain data (text, lists, tables) without any secret that is known."""
    return _known.hide_in(value)


class Stream:
    """Hides secrets in what comes in pieces: what may be the beginning of one waits until more has come."""

    def __init__(self) -> None:
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """Return what may be shown by now."""
        known = _known
        if not known.values and not self._held:
            return data
        data = _hidden(self._held + data, known)
        at = known.begun(data, 1)
        line = data.rfind(b"\n") + 1
        if len(data) - line < _LONGEST_LINE and b"\x1b" in data[line:]:  # in a coloured line a value may have colours
            at = min(at, line)
        data, self._held = data[:at], data[at:]
        return data

    @property
    def rest(self) -> bytes:
        """What waits, as it may be shown if nothing more comes."""
        at = _known.begun(self._held, _LEAST_SEEN)
        return self._held[:at] + _MASK if at < len(self._held) else self._held

    def end(self) -> bytes:
        """Return the `rest`, and begin anew."""
        rest, self._held = self.rest, b""
        return rest


def _hidden(data: bytes, forms: Forms) -> bytes:
    data = forms.hide_bytes(data, is_whole=False)
    if b"\x1b" not in data:
        return data
    plain = _ANSI.sub(b"", data)
    if forms.hide_bytes(plain) == plain:
        return data
    lines = data.split(b"\n")  # those with a value between the colours lose the colours
    plains = [_ANSI.sub(b"", line) for line in lines]
    hidden = [forms.hide_bytes(line) for line in plains]
    return b"\n".join(line if one == two else two for line, one, two in zip(lines, plains, hidden, strict=True))
