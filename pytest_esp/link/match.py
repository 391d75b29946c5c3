"""Pattern searches in a growing buffer: each search continues where the last one ended."""

from __future__ import annotations

import re
from collections.abc import Mapping

Pattern = str | bytes | re.Pattern[str] | re.Pattern[bytes]
"""A string or bytes to find literally, or a compiled regular expression of either type."""

_WINDOW = 4096  # bytes of an incomplete line that are searched again
_FIRST_FULL = 1024
_MAY_CROSS_LINES = re.compile(rb"\\[nrsWDSZ]|\[\^|\(\?[aiLmux]*s|\\x0|\\0")


class Match:
    """The match of a pattern. Groups are strings for string patterns, and bytes for bytes patterns.

    Attributes:
        index: the index of the pattern in a list.
        time: when its last byte arrived, in seconds since the console began.
    """

    def __init__(self, found: re.Match[bytes], *, is_text: bool, index: int, time: float) -> None:
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
        return bytes(self._found.group()).decode("utf-8", "replace")

    def __repr__(self) -> str:
        return f"<Match {self.text!r} at {self.time:.3f} s>"

    def _value(self, value: bytes | None) -> str | bytes | None:
        if value is None:
            return None
        return value.decode("utf-8", "replace") if self._is_text else bytes(value)


class Search:
    """The search for one pattern in a buffer that grows at its end.

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
        self._crosses_lines = isinstance(pattern, re.Pattern) and _may_cross_lines(self._wanted)
        self._literal_size = 0 if isinstance(pattern, re.Pattern) else len(_bytes(pattern))
        self._start = start
        self._searched = start
        self._fully_searched = start

    @property
    def description(self) -> str:
        """The pattern, for messages."""
        text = self._wanted.pattern.decode("utf-8", "replace")
        return repr(re.sub(r"\\(.)", r"\1", text) if self._literal_size else text)

    @property
    def is_behind(self) -> bool:
        """Whether a thorough search could find a match that the quick ones missed."""
        return self._crosses_lines and self._fully_searched < self._searched

    def look(self, buffer: bytearray, *, thorough: bool = False) -> re.Match[bytes] | None:
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
        self._searched = end
        return self._wanted.search(buffer, begin)

    def _resume(self, buffer: bytearray) -> int:
        if self._literal_size:
            return max(self._start, self._searched - self._literal_size + 1)
        earliest = max(self._start, self._searched - _WINDOW)
        return max(buffer.rfind(b"\n", earliest, self._searched) + 1, earliest)

    def shift(self, count: int) -> None:
        """Adjust the positions after the first *count* bytes of the buffer were removed."""
        self._start = max(self._start - count, 0)
        self._searched = max(self._searched - count, 0)
        self._fully_searched = max(self._fully_searched - count, 0)


def _bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text


def _compiled(pattern: Pattern) -> re.Pattern[bytes]:
    if not isinstance(pattern, re.Pattern):
        if not pattern:
            raise ValueError("the pattern is empty and would match anywhere")
        return re.compile(re.escape(_bytes(pattern)))
    if isinstance(pattern.pattern, bytes):
        return re.compile(pattern.pattern, pattern.flags)
    return re.compile(pattern.pattern.encode(), pattern.flags & ~re.UNICODE)


def _may_cross_lines(pattern: re.Pattern[bytes]) -> bool:
    return bool(pattern.flags & re.DOTALL) or b"\n" in pattern.pattern or bool(_MAY_CROSS_LINES.search(pattern.pattern))
