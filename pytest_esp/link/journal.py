"""The log of a console on disk: every byte, and the time of every line."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import BinaryIO

from pytest_esp.errors import OperationError
from pytest_esp.secrets import Stream


class Journal:
    """Writes what comes, each line behind its time: ``[   1.234] I (29) boot: ...``.

    ANSI sequences stay. Nothing is buffered: what was written survives the process. Secrets that were known when they
    came are masked (`pytest_esp.secrets`); what may be the beginning of one waits for what comes next.

    Args:
        path: the file, made anew; a temporary one, gone with the journal, if None.

    Attributes:
        problem: why nothing more is written (a full disk); None as long as all is well.

    Raises:
        OperationError: if it cannot be made.
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
            raise OperationError(f"the log {path} cannot be written: {error.strerror or error}") from error

    def write(self, data: bytes, now: float) -> None:
        """Add *data*, which came *now* (seconds since the console began)."""
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
        """Return all of it."""
        if self._file.closed:
            return self.path.read_bytes() if self.path else b""
        self._file.seek(0)
        rest = self._shown.rest
        return self._file.read() + (self._stamped(rest) if rest else b"")

    def close(self) -> None:
        """Close the file. Closing twice is harmless."""
        if rest := self._shown.end():
            self._add(rest)
        self._file.close()


def _open(path: Path | None) -> BinaryIO:
    if path is None:
        return tempfile.TemporaryFile(buffering=0)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("w+b", buffering=0)
