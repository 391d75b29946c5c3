"""Pattern searches in a growing buffer: each search continues where the last one ended."""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

Pattern = str | bytes | re.Pattern[str] | re.Pattern[bytes]
"""A string or bytes to find literally, or a compiled regular expression of either type."""

_WINDOW = 4096  # bytes of an incomplete line that are searched again
_FIRST_FULL = 1024
_CONTEXT = 64  # bytes before the searched ones that `^` and assertions see
_MAY_CROSS_LINES = re.compile(rb"\\[nrsWDSZ0uUN]|\[\^|\(\?[aiLmux]*s|\\x0|\\[abt]-|[\0-\x09]-")


class Match:
    """The match of a pattern. Groups are strings for string patterns, and bytes for bytes patterns.

    Attributes:
        index: the index of the pattern in a list.
        time: when its last byte arrived, in seconds since the console began.
    """

    def __init__(self, found: re.Match[Any], *, is_text: bool, index: int, time: float) -> None:
        self._found = found
        self._is_text = is_text
        self.index = index
        self.time = time

    def group(self, key: int | str = 0) -> str | bytes | None:
        """Return a group; None if it did not take part in the match."""
        return self._value(self._found.group(key))

    def __getitem__(self, key: int | str) -> str | bytes | None:
        return self.group(key)

    def groups(self) -> tuple[str | bytes | None, ...]:
        """Return all groups."""
        return tuple(self._value(value) for value in self._found.groups())

    def groupdict(self) -> Mapping[str, str | bytes | None]:
        """Return the named groups."""
        return {name: self._value(value) for name, value in self._found.groupdict().items()}

    @property
    def text(self) -> str:
        """The matched text. Invalid UTF-8 is replaced."""
        found: str | bytes = self._found.group()
        return found if isinstance(found, str) else found.decode("utf-8", "replace")

    def __repr__(self) -> str:
        return f"<Match {self.text!r} at {self.time:.3f} s>"

    def _value(self, value: str | bytes | None) -> str | bytes | None:
        return value.decode("utf-8", "replace") if self._is_text and isinstance(value, bytes) else value


class Hit(NamedTuple):
    """A match in a buffer, and where it begins and ends there, in bytes."""

    match: re.Match[Any]
    start: int
    end: int


class Search:
    """The search for one pattern in a buffer that grows at its end.

    Text is searched for regular expressions of type str as `re` searches text: the buffer is decoded piece by piece,
    and the beginning of a character at its end waits for the rest. All other patterns are searched in the bytes.

    A pattern that can only match within a line is searched in the new bytes and the incomplete line before them. A
    regular expression that may cross lines also searches the whole buffer at times: whenever its size has doubled, and
    when no output arrives (`look` with *thorough*). All searches together read the buffer only a few times.

    Args:
        pattern: see `Pattern`.
        start: the position in the buffer where the search starts.
    """

    def __init__(self, pattern: Pattern, start: int) -> None:
        self.is_text = isinstance(pattern.pattern if isinstance(pattern, re.Pattern) else pattern, str)
        self._wanted = _compiled(pattern)
        self._decodes = isinstance(self._wanted.pattern, str)
        self._crosses_lines = isinstance(pattern, re.Pattern) and _may_cross_lines(pattern)
        self._literal = None if isinstance(pattern, re.Pattern) else pattern
        self._start = start
        self._searched = start
        self._fully_searched = start

    @property
    def description(self) -> str:
        """The pattern, for messages."""
        text = self._wanted.pattern if self._literal is None else self._literal
        return repr(text.decode("utf-8", "replace") if isinstance(text, bytes) else text)

    @property
    def is_behind(self) -> bool:
        """Whether a thorough search could find a match that the quick ones missed."""
        return self._crosses_lines and self._fully_searched < self._searched

    def look(self, buffer: bytearray, *, thorough: bool = False) -> Hit | None:
        """Return the first match in the part that has not been searched yet."""
        end = len(buffer)
        if end == self._searched and not (thorough and self.is_behind) and end != self._start:
            return None
        grown = end - self._start >= 2 * (self._fully_searched - self._start) + _FIRST_FULL
        if self._crosses_lines and (thorough or grown or self._searched == self._start):
            begin = self._start
            self._fully_searched = end
        else:
            begin = self._resume(buffer)
        if self._decodes:
            return self._search_text(buffer, begin, is_last=thorough)
        self._searched = end
        match = self._wanted.search(buffer, begin)
        return Hit(match, match.start(), match.end()) if match else None

    def _search_text(self, buffer: bytearray, begin: int, *, is_last: bool) -> Hit | None:
        # What `^`, `\\b` and assertions see before *begin* is decoded, too, but for the whole buffer's beginning.
        before = _character_start(buffer, max(0, begin - _CONTEXT))
        context, _ = codecs.utf_8_decode(memoryview(buffer)[before:begin], "replace", True)
        text, size = codecs.utf_8_decode(memoryview(buffer)[before:], "replace", is_last)
        self._searched = before + size
        match = self._wanted.search(text, len(context))
        if match is None:
            return None
        if text.isascii():
            return Hit(match, before + match.start(), before + match.end())
        encoded = bytes(buffer[before : before + size])
        return Hit(match, *(before + _size_in_bytes(encoded, count) for count in match.span()))

    def _resume(self, buffer: bytearray) -> int:
        if self._literal is not None:
            return max(self._start, self._searched - len(_bytes(self._literal)) + 1)
        earliest = max(self._start, self._searched - _WINDOW)
        newline = buffer.rfind(b"\n", earliest, self._searched) + 1
        return newline or max(_character_start(buffer, earliest), self._start)

    def shift(self, count: int) -> None:
        """Adjust the positions after the first *count* bytes of the buffer were removed."""
        self._start = max(self._start - count, 0)
        self._searched = max(self._searched - count, 0)
        self._fully_searched = max(self._fully_searched - count, 0)


def _character_start(buffer: bytearray, position: int) -> int:
    """Return where the UTF-8 character at *position* begins; *position* if it is not in a valid character."""
    for start in range(position, max(position - 4, -1), -1):
        if start == len(buffer) or buffer[start] & 0xC0 != 0x80:
            return start
    return position


def _size_in_bytes(encoded: bytes, count: int) -> int:
    """Return the number of bytes that became the first *count* characters when *encoded* was decoded."""
    characters = encoded.decode("utf-8", _MARKED)[:count]
    missing = sum(characters.count(mark) * (3 - size) for size, mark in enumerate(_MARKS, 1))
    return len(characters.encode("utf-8", "surrogatepass")) - missing


_MARKS = "\udc01\udc02\udc03"
"""Stand for one, two and three invalid bytes: surrogates, which UTF-8 never contains, of three bytes each."""
_MARKED = "pytest_esp.marked"


def _mark(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return _MARKS[error.end - error.start - 1], error.end


codecs.register_error(_MARKED, _mark)


def _bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text


def _compiled(pattern: Pattern) -> re.Pattern[Any]:
    if isinstance(pattern, re.Pattern):
        return pattern
    if not pattern:
        raise ValueError("the pattern is empty and would match anywhere")
    # UTF-8 can be searched for a string without decoding it, except for the character that replaces invalid bytes.
    if isinstance(pattern, str) and "\ufffd" in pattern:
        return re.compile(re.escape(pattern))
    return re.compile(re.escape(_bytes(pattern)))


def _may_cross_lines(pattern: re.Pattern[str] | re.Pattern[bytes]) -> bool:
    text = pattern.pattern
    source = text.encode("utf-8", "replace") if isinstance(text, str) else text
    crosses = bool(pattern.flags & re.DOTALL) and b"." in source
    return crosses or b"\n" in source or bool(_MAY_CROSS_LINES.search(source))
