"""The log file of a console: every byte, and the time of every line."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import BinaryIO

from pytest_esp.errors import OperationError
from pytest_esp.secrets import Stream

_MOST_TEMPORARY = 16 * 1024 * 1024  # bytes


class Journal:
    """Writes console output, with the time before each line: ``[   1.234] I (29) boot: ...``.

    ANSI sequences are kept. Writes are not buffered, so the log survives a crash of the process. Secrets that are
    known when they arrive are masked (`pytest_esp.secrets`); bytes that may begin a secret are held back until more
    arrive.

    Args:
        path: the file, which is overwritten; None for a temporary one, which is deleted with the journal. It keeps the
            last 8 MB at least, and 16 MB at most: nobody has asked for the rest.

    Attributes:
        dropped: the number of bytes at its beginning that a temporary file no longer has.
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
        self.dropped = 0
        self._older: BinaryIO | None = None
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
            if self.path is None and self._file.tell() > _MOST_TEMPORARY // 2:
                self._rotate()
            self._file.write(self._stamped(data))
        except OSError as error:
            self.problem = error.strerror or str(error)
        self._begins_line = data.endswith(b"\n")

    def _rotate(self) -> None:
        if self._older is not None:
            self.dropped += self._older.seek(0, os.SEEK_END)
            self._older.close()
        self._older, self._file = self._file, _open(None)

    def _stamped(self, data: bytes) -> bytes:
        stamp = b"[%9.3f] " % self._last
        begins_next = data.endswith(b"\n")
        body = (data[:-1] if begins_next else data).replace(b"\n", b"\n" + stamp)
        return b"".join((stamp if self._begins_line else b"", body, b"\n" if begins_next else b""))

    def read(self) -> bytes:
        """Return the complete log; of a temporary file what it still has, after the number of bytes dropped."""
        if self._file.closed:
            return self.path.read_bytes() if self.path else b""
        parts = [b"[... %d bytes dropped ...]\n" % self.dropped] if self.dropped else []
        for file in (self._older, self._file):
            if file is not None:
                file.seek(0)
                parts.append(file.read())
        rest = self._shown.rest
        return b"".join([*parts, self._stamped(rest) if rest else b""])

    def close(self) -> None:
        """Close the file. Closing twice has no effect."""
        if rest := self._shown.end():
            self._add(rest)
        self._file.close()
        if self._older is not None:
            self._older.close()


def _open(path: Path | None) -> BinaryIO:
    if path is None:
        return tempfile.TemporaryFile(buffering=0)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("w+b", buffering=0)
