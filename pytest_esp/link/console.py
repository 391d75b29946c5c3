"""What the app prints: a log with times, and `expect` over it."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path

import serial

from pytest_esp.boards.port import Port
from pytest_esp.errors import LinkError, PortError

_ANSI = re.compile(rb"\x1b\[[0-9;?]*[ -/]*[@-~]")
_TAIL_LINES = 20
_OVERLAP = 4096  # bytes before the new ones that a pattern may begin in

Pattern = str | bytes | re.Pattern[bytes]


class ConsoleError(LinkError):
    """What was expected did not come."""


@dataclass(frozen=True)
class Line:
    """One line of the log: seconds since the console began, and its text without ANSI sequences."""

    time: float
    text: str


class Console:
    """Reads a board's console while somebody waits for something on it.

    Nothing is read, and nothing lost, while nobody waits: the bytes lie in the port until then. All bytes are kept in
    `log`; matching looks at them without their ANSI sequences, each byte once.

    Args:
        port: the open port.
        board: the board's name, for messages.
    """

    def __init__(self, port: Port, *, board: str) -> None:
        self._port = port
        self._board = board
        self._begun = time.monotonic()
        self._raw = bytearray()
        self._plain = bytearray()
        self._held = b""  # the beginning of an ANSI sequence that is not whole
        self._line_times: list[float] = []
        self._position = 0

    @property
    def log(self) -> bytes:
        """Everything that was read, as it came."""
        return bytes(self._raw)

    @property
    def text(self) -> str:
        """Everything that was read, without ANSI sequences; what is not UTF-8 is replaced."""
        return self._plain.decode("utf-8", "replace")

    def lines(self) -> list[Line]:
        """Return the lines so far; the last one may be unfinished."""
        texts = self.text.split("\n")
        times = [*self._line_times, self._now()]
        return [Line(at, text.rstrip("\r")) for at, text in zip(times, texts, strict=False) if text]

    def save(self, path: Path) -> None:
        """Write the log to a file, as it came."""
        path.write_bytes(self._raw)

    def write(self, data: str | bytes) -> None:
        """Send *data* to the app (text as UTF-8)."""
        self._port.write(data.encode() if isinstance(data, str) else data)

    def feed(self, data: bytes) -> None:
        """Add bytes that somebody else read from the port."""
        if not data:
            return
        self._raw += data
        now = self._now()
        data = self._held + data
        cut = data.rfind(b"\x1b")
        if cut >= 0 and not _ANSI.match(data, cut) and len(data) - cut < 32:
            data, self._held = data[:cut], data[cut:]
        else:
            self._held = b""
        plain = _ANSI.sub(b"", data)
        self._line_times += [now] * plain.count(b"\n")
        self._plain += plain

    def poll(self) -> bytes:
        """Take what has arrived, without waiting, and return it."""
        data = self._read(0)
        self.feed(data)
        return data

    def skip(self) -> None:
        """Take what has arrived, and let `expect` look at what comes after it only."""
        self.poll()
        self._position = len(self._plain)

    def expect(self, pattern: Pattern, timeout: float = 10.0) -> re.Match[bytes]:
        """Wait for *pattern* in what comes after the last match, and return the match.

        Text and bytes are searched as they are; a compiled pattern (of bytes) is searched as a regular expression.

        Raises:
            ConsoleError: if it did not come within *timeout* seconds; says what came instead.
            PortError: if the port is gone.
        """
        wanted = _compile(pattern)
        deadline = time.monotonic() + timeout
        searched = self._position
        while True:
            begin = max(self._position, searched - _OVERLAP)
            match = wanted.search(bytes(self._plain[begin:]))
            if match is not None:
                self._position = begin + match.end()
                return match
            searched = len(self._plain)
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise self._missed(wanted, timeout)
            self.feed(self._read(remaining))

    def expect_silence(self, duration: float) -> None:
        """Wait until nothing has come for *duration* seconds (10 of that at the most)."""
        deadline = time.monotonic() + 10 * duration
        while time.monotonic() < deadline:
            data = self._read(duration)
            if not data:
                return
            self.feed(data)

    def _read(self, timeout: float) -> bytes:
        port = self._port
        try:
            waiting = port.in_waiting
            if waiting:
                return port.read(waiting)
            if timeout <= 0:
                return b""
            port.timeout = timeout
            return port.read(1) + (port.read(port.in_waiting) if port.in_waiting else b"")
        except serial.SerialException as error:
            raise PortError(f"its port failed: {error}", board=self._board, attempted="reading the console") from error

    def _missed(self, wanted: re.Pattern[bytes], timeout: float) -> ConsoleError:
        tail = "\n".join(f"    {line.text}" for line in self.lines()[-_TAIL_LINES:]) or "    (nothing)"
        return ConsoleError(
            f"{wanted.pattern.decode('utf-8', 'replace')!r} did not come in {timeout:g} s; the console said:\n{tail}",
            board=self._board,
            attempted="expect",
        )

    def _now(self) -> float:
        return time.monotonic() - self._begun


def _compile(pattern: Pattern) -> re.Pattern[bytes]:
    if isinstance(pattern, re.Pattern):
        return pattern
    return re.compile(re.escape(pattern.encode() if isinstance(pattern, str) else pattern))
