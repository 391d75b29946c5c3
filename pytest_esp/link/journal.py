"""The log file of a console: every byte, and the time of every line."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import BinaryIO

from pytest_esp.errors import OperationError
from pytest_esp.secrets import Stream


class Journal:
    """Writes console output, with the time before each line: ``[   1.234] I (29) boot: ...``.

    ANSI sequences are kept. Writes are not buffered, so the log survives a crash of the process. Secrets that are
    known when they arrive are masked (`pytest_esp.secrets`); bytes that may begin a secret are held back until more
    arrive.

    Args:
        path: the file, which is overwritten; None for a temporary one, which is deleted with the journal.

    Attributes:
        problem: why writing stopped (such as a full disk); None if there is no problem.

    Raises:
        OperationError: if the file cannot be created.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.problem: str | None = None
        self._begins_line = True
        self._shown = Stream()
        self._last = 0.0
        try:
            self._file: BinaryIO = _open(path)
        except OSError as error:
            raise OperationError(f"cannot write the log {path}: {error.strerror or error}") from error

    def write(self, data: bytes, now: float) -> None:
        """Add *data*, which arrived at *now* (seconds since the console began)."""
        self._last = now
        if data := self._shown.feed(data):
            self._add(data)

    def _add(self, data: bytes) -> None:
        if self.problem is not None or self._file.closed:
            return
        try:
            self._file.write(self._stamped(data))
        except OSError as error:
            self.problem = error.strerror or str(error)
        self._begins_line = data.endswith(b"\n")

    def _stamped(self, data: bytes) -> bytes:
        stamp = b"[%9.3f] " % self._last
        begins_next = data.endswith(b"\n")
        body = (data[:-1] if begins_next else data).replace(b"\n", b"\n" + stamp)
        return b"".join((stamp if self._begins_line else b"", body, b"\n" if begins_next else b""))

    def read(self) -> bytes:
        """Return the complete log."""
        if self._file.closed:
            return self.path.read_bytes() if self.path else b""
        self._file.seek(0)
        rest = self._shown.rest
        return self._file.read() + (self._stamped(rest) if rest else b"")

    def close(self) -> None:
        """Close the file. Closing twice has no effect."""
        if rest := self._shown.end():
            self._add(rest)
        self._file.close()


def _open(path: Path | None) -> BinaryIO:
    if path is None:
        return tempfile.TemporaryFile(buffering=0)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("w+b", buffering=0)
