"""Passwords, keys and tokens that operations were given. They are masked wherever text leaves the process.

Code that receives a secret registers it (`remember`). Text for people, files or clients is passed through `hide`. The
test itself sees the secret, so that it can expect it.
"""

from __future__ import annotations

import base64
import functools
import json
import re
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from typing import Any, cast

MASK = "***"

_SHORTEST = 4  # characters; masking shorter values would spoil every message
_SHORTEST_LINE = 8  # of a text of several lines, which a console prints separately
_SHORTEST_BASE64 = 8
_LONG = 12  # characters; three quarters of such a value are not a common word
_LEAST_SEEN = 3  # characters of a value that are masked where text is known to be cut
_MOST_VALUES = 2000  # a server that programs boards for weeks forgets the oldest
_MOST_BYTES = 1024  # of a value that are searched for in dumps
_ROW = 16  # bytes in a line of ESP_LOG_BUFFER_HEX
_LONGEST_LINE = 4096
_ENDS = b"\n\r'\"\\"
_ANSI = re.compile(rb"\x1b\[[0-9;?]*[ -/]*[@-~]")


@functools.lru_cache(_MOST_VALUES)
def _forms_of(value: str | bytes) -> set[bytes]:
    """Return the forms in which a value may be printed: plain, escaped, in hex, as rows of a dump, in base64."""
    raw = _encoded(value)
    text = raw.decode("utf-8", "replace").strip("\0\ufffd")  # a blob of fixed size, or bytes on a console
    texts = {repr(raw)[2:-1]}
    if len(text.replace("\ufffd", "")) >= _SHORTEST:
        lines = [line for line in text.splitlines() if len(line) >= _SHORTEST_LINE and not line.startswith("-----")]
        texts.update([text], lines)
    for _ in range(2):  # an escaped value may be escaped again
        texts |= {shown for one in texts for shown in _escaped(one)}
    found = {raw, *map(_encoded, texts), *_as_hex(raw), *_as_base64(raw)}
    return {form for form in found if len(form) >= _SHORTEST}


def _escaped(text: str) -> Iterator[str]:
    for quoted in (repr(text), ascii(text), json.dumps(text), json.dumps(text, ensure_ascii=False)):
        yield quoted[1:-1]
    yield text.replace("'", "\\'")


def _as_hex(raw: bytes) -> Iterator[bytes]:
    rows = [raw[at : at + _ROW] for at in range(0, min(len(raw), _MOST_BYTES), _ROW)]
    # Rows of padding occur in every dump and are not masked.
    for row in (raw, *(row for row in rows if len(row) >= _ROW // 2 and len(set(row)) >= _SHORTEST)):
        for separator in ("", " ", ", 0x"):
            digits = [f"{byte:02x}" for byte in row]
            yield from (separator.join(digits).encode(), separator.join(map(str.upper, digits)).encode())


def _as_base64(raw: bytes) -> Iterator[bytes]:
    yield base64.b64encode(raw)
    for before in range(
        3
    ):  # bytes before the value, as in "user:password"; use only characters that they do not affect
        core = base64.b64encode(bytes(before) + raw)[-(-before * 8 // 6) : (before + len(raw)) * 8 // 6]
        if len(core) >= _SHORTEST_BASE64:
            yield from (core, core.translate(bytes.maketrans(b"+/", b"-_")))


def _encoded(value: str | bytes) -> bytes:
    return value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value


class _Beginnings:
    """Finds beginnings of forms in bytes, in a time that depends little on the number of forms."""

    def __init__(self, forms: Iterable[bytes]) -> None:
        self._forms = sorted(forms)
        self._longest = max(map(len, self._forms))
        self._head = re.compile(_any_of({form[:_SHORTEST] for form in self._forms}))

    def places(self, data: bytes, start: int = 0) -> Iterator[int]:
        """Yield the offsets at which a form may begin: where its head is, or part of the head at the end of *data*."""
        while match := self._head.search(data, start):
            yield match.start()
            start = match.start() + 1

    def last(self, data: bytes, least: int = 1) -> int:
        """Return the offset of the longest end of *data* that is the beginning of a form; ``len(data)`` if none is.

        Args:
            data: bytes that may continue.
            least: shortest beginning to consider, in bytes.
        """
        for at in self.places(data, max(0, len(data) - self._longest)):
            piece = data[at:]
            place = bisect_left(self._forms, piece)
            if len(piece) >= least and any(form.startswith(piece) for form in self._forms[place : place + 1]):
                return at
        return len(data)

    def without_last(self, data: bytes) -> bytes:
        """Return *data*, which was cut at its end, with a mask for the beginning of a form there."""
        at = self.last(data, _LEAST_SEEN)
        return data[:at] + MASK.encode() if at < len(data) else data


class _Index(_Beginnings):
    """Finds forms in bytes, whole or cut off."""

    def __init__(self, forms: set[bytes]) -> None:
        super().__init__(forms)
        self._ends = _Beginnings(form[::-1] for form in forms)
        self._by_head: dict[bytes, list[bytes]] = {}
        for form in forms:
            self._by_head.setdefault(form[:_SHORTEST], []).append(form)

    def masked(self, data: bytes, *, is_whole: bool = True) -> bytes:
        """Return *data* with a mask for each form, or for several that overlap.

        A form that is cut by the end of a line is masked if more than half of it is there; a long form is masked
        anywhere if three quarters of it are there.

        Args:
            data: the bytes to show.
            is_whole: whether nothing follows, so that the end is also the end of a line.
        """
        parts: list[bytes] = []
        end = 0
        for at in self.places(data):
            forms = self._by_head.get(data[at : at + _SHORTEST], ())
            size = max((_size_at(form, data[at : at + len(form) + 1], is_whole) for form in forms), default=0)
            if size and at >= end:
                parts += (data[end:at], MASK.encode())
            end = max(end, at + size) if size else end
        return b"".join(parts) + data[end:]

    def masked_lines(self, data: bytes) -> bytes:
        """Return *data* masked, also forms with colour codes inside; lines with such a form lose their colours."""
        data = self.masked(data, is_whole=False)
        lines = data.split(b"\n") if b"\x1b" in data else []
        for number, line in enumerate(lines):
            if (hidden := self.masked(plain := _ANSI.sub(b"", line))) != plain != line:
                lines[number] = hidden
        return b"\n".join(lines) if lines else data

    def masked_piece(self, data: bytes) -> bytes:
        """Return *data*, which was cut at its beginning or end, with parts of forms there masked."""
        return self._ends.without_last(self.without_last(data)[::-1])[::-1]


def _any_of(heads: Set[bytes]) -> bytes:
    """Return a pattern for any of *heads*, or for the beginning of one at the end. Common prefixes occur once."""
    tails: dict[bytes, set[bytes]] = {}
    for head in heads:
        tails.setdefault(head[:1], set()).add(head[1:])
    rests = {first: rb"(?:\Z|" + _any_of(rest) + b")" if any(rest) else b"" for first, rest in tails.items()}
    return b"(?:" + b"|".join(re.escape(first) + rest for first, rest in rests.items()) + b")"


def _size_at(form: bytes, there: bytes, is_whole: bool) -> int:
    """Return how many bytes of *there*, which begins like *form*, must be masked; 0 if it is something else."""
    size = next((at for at in range(len(there)) if form[at : at + 1] != there[at : at + 1]), len(there))
    behind = there[size : size + 1]
    is_cut = behind in _ENDS or (len(form) >= _LONG and 4 * size > 3 * len(form)) if behind else is_whole
    return size if size == len(form) or (is_cut and size > len(form) // 2) else 0


class Forms:
    """Values to mask, in all forms in which they may be printed."""

    def __init__(self, values: Iterable[str | bytes] = ()) -> None:
        self._values: dict[str | bytes, None] = {}
        self._index: _Index | None = None
        self._lock = threading.Lock()
        self.add(values)

    def __repr__(self) -> str:
        return f"Forms({MASK})"

    def add(self, values: Iterable[str | bytes]) -> list[str | bytes]:
        """Add values, except short ones and padding, and return the new ones."""
        sizes = {value: len(set(value) if isinstance(value, bytes) else value) for value in values}
        with self._lock:
            new = [value for value, size in sizes.items() if size >= _SHORTEST and value not in self._values]
            if new:
                self._values = dict.fromkeys([*self._values, *new][-_MOST_VALUES:])
                self._index = None
        return new

    def clear(self) -> None:
        """Forget all values."""
        with self._lock:
            self._values, self._index = {}, None

    def values(self) -> list[str | bytes]:
        """Return the values as they were added."""
        return list(self._values)

    def index(self) -> _Index | None:
        """Return the index that finds the values; None if there are no values."""
        if not self._values:
            return None
        with self._lock:  # made on demand: on a production line, most values are never searched for
            if self._values and self._index is None:
                self._index = _Index({form for value in self._values for form in _forms_of(value)})
            return self._index

    def hide(self, text: str, *, is_cut: bool = False) -> str:
        """Return *text* with the values masked. At most half of a value that is cut off at the end stays visible.

        Args:
            text: the text to show.
            is_cut: whether the text was cut (at its beginning, its end, or at ``...``); then shorter parts of values
                are masked there, too.
        """
        if (index := self.index()) is None:
            return text
        data = index.masked(before := _encoded(text))
        if is_cut:
            data = b"...".join(map(index.masked_piece, data.split(b"...")))
        return text if data == before else data.decode("utf-8", "replace")

    def hide_bytes(self, data: bytes) -> bytes:
        """Return *data* with the values masked, as `hide` does."""
        return index.masked(data) if (index := self.index()) else data

    def hide_in(self, value: Any) -> Any:
        """Return plain data (strings, lists, mappings) with the values masked."""
        if not self._values:
            return value
        if isinstance(value, str):
            return self.hide(value)
        if isinstance(value, Mapping):
            table = cast("Mapping[Any, Any]", value)
            return {self.hide_in(key): self.hide_in(item) for key, item in table.items()}
        if isinstance(value, (list, tuple)):
            return [self.hide_in(item) for item in cast("Sequence[Any]", value)]
        return value


# -- the register of this process

_known = Forms()
hide, hide_bytes, hide_in = _known.hide, _known.hide_bytes, _known.hide_in
learn, known, forget = _known.add, _known.values, _known.clear
listeners: list[Callable[[list[str | bytes]], None]] = []
"""Called with the new values of a call of `remember`, in the calling thread."""


def remember(*values: str | bytes) -> None:
    """Mask these values from now on in all text that leaves this process: logs, reports, errors, answers."""
    new = learn(values)
    for listener in listeners if new else ():
        listener(new)


class Stream:
    """Masks secrets in a stream of pieces. What may be the beginning of a secret is held back until more arrives."""

    def __init__(self) -> None:
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """Add *data*, and return what can be shown so far."""
        index = _known.index()
        data = self._held + data
        if index is None:
            self._held = b""
            return data
        line = data.rfind(b"\n") + 1
        if b"\x1b" not in data[line:] or len(data) - line > _LONGEST_LINE:
            line = len(data)  # otherwise wait for the end of a line with colours: a value may have colours inside
        shown = index.masked_lines(data[:line])
        at = index.last(shown)
        self._held = shown[at:] + data[line:]
        return shown[:at]

    @property
    def rest(self) -> bytes:
        """What is held back, as it can be shown if nothing follows."""
        index = _known.index()
        return index.without_last(index.masked_lines(self._held)) if index else self._held

    def end(self) -> bytes:
        """Return the `rest`, and clear it."""
        rest, self._held = self.rest, b""
        return rest
