"""The log of a console on disk: every byte, and the time of every line."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import BinaryIO

from pytest_esp.errors import OperationError


class Journal:
    """Writes what comes, each line behind its time: ``[   1.234] I (29) boot: ...``.

    ANSI sequences stay. Nothing is buffered: what was written survives the process.

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
        try:
            self._file: BinaryIO = _open(path)
        except OSError as error:
            raise OperationError(f"the log {path} cannot be written: {error.strerror or error}") from error

    def write(self, data: bytes, now: float) -> None:
        """Add *data*, which came *now* (seconds since the console began)."""
        if self.problem is not None or self._file.closed:
            return
        stamp = b"[%9.3f] " % now
        begins_next = data.endswith(b"\n")
        body = (data[:-1] if begins_next else data).replace(b"\n", b"\n" + stamp)
        try:
            self._file.write(b"".join((stamp if self._begins_line else b"", body, b"\n" if begins_next else b"")))
        except OSError as error:
            self.problem = error.strerror or str(error)
        self._begins_line = begins_next

    def read(self) -> bytes:
        """Return all of it."""
        if self._file.closed:
            return self.path.read_bytes() if self.path else b""
        self._file.seek(0)
        return self._file.read()

    def close(self) -> None:
        """Close the file. Closing twice is harmless."""
        self._file.close()


def _open(path: Path | None) -> BinaryIO:
    if path is None:
        return tempfile.TemporaryFile(buffering=0)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("w+b", buffering=0)
