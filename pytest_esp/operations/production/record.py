"""Records how each board was programmed: one line per board and result, synced to disk before work continues.

There are two append-only files: JSON lines for programs, CSV for people. Each line is a single write and is synced, so
that a killed process leaves whole lines. A board whose last line says ``begun`` was being programmed, and its state is
unknown.
"""

from __future__ import annotations

import csv
import io
import json
import os
import threading
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, Self

from pytest_esp.errors import OperationError
from pytest_esp.formats.files import open_descriptor, resolve
from pytest_esp.secrets import hide

JSON_LINES, CSV = "boards.jsonl", "boards.csv"
Outcome = Literal["begun", "passed", "failed"]


@dataclass(frozen=True, kw_only=True)
class BoardRecord:
    """One line. It contains no NVS values except the serial number.

    Attributes:
        time: UTC, ISO 8601.
        batch: name of the batch.
        outcome: *begun* is written just before the first byte is erased.
        stage: the stage that failed, else "done".
        state: state of the board after a failure, in words.
        quality: "passed", "failed", or "" if it was not inspected.
    """

    time: str
    batch: str
    board: str
    mac_address: str = ""
    chip_type: str = ""
    serial_number: str = ""
    outcome: Outcome
    stage: str
    state: str = ""
    error: str = ""
    firmware: str = ""
    elf_sha256: str = ""
    nvs_keys: str = ""
    quality: str = ""
    bytes_written: int = 0
    elapsed_seconds: float = 0.0


_COLUMNS = [field.name for field in fields(BoardRecord)]


class RecordBook:
    """The two files in *folder*, which is created; several processes may write to them at once.

    Raises:
        OperationError: if they cannot be written, or the JSON lines file has other contents.
    """

    def __init__(self, folder: Path) -> None:
        folder = resolve(folder, "write")
        self.json_lines, self.csv = resolve(folder / JSON_LINES, "write"), resolve(folder / CSV, "write")
        self._lock = threading.Lock()
        self._descriptors: list[int] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._descriptors = [_open(self.json_lines), _open(self.csv)]
            if not os.fstat(self._descriptors[1]).st_size:
                _append(self._descriptors[1], _csv_line(_COLUMNS))
        except OSError as error:
            self.close()
            raise OperationError(f"the records in {folder} cannot be written: {error.strerror}") from error

    def write(self, record: BoardRecord) -> None:
        """Append a line to both files; it is on disk when this returns.

        Raises:
            OperationError: if it cannot be written.
        """
        table = asdict(record) | {"error": hide(record.error)}
        try:
            with self._lock:
                _append(self._descriptors[0], (json.dumps(table) + "\n").encode())
                _append(self._descriptors[1], _csv_line([_for_a_cell(table[name]) for name in _COLUMNS]))
        except OSError as error:
            raise OperationError(f"{self.json_lines} cannot be written: {error.strerror}") from error

    def close(self) -> None:
        """Close the files."""
        while self._descriptors:
            os.close(self._descriptors.pop())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_records(folder: Path) -> list[BoardRecord]:
    """Return all lines in *folder*, oldest first; empty if there is no record yet.

    A last line that was cut off by a power failure is left out.

    Raises:
        OperationError: if it cannot be read.
    """
    try:
        lines = resolve(folder / JSON_LINES).read_text("utf-8").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise OperationError(f"{folder / JSON_LINES} cannot be read: {error}") from error
    return [record for line in lines if (record := _parsed(line)) is not None]


def serial_numbers(folder: Path) -> dict[str, str]:
    """Return the MAC address of the board with each serial number, according to the record in *folder*."""
    passed = (one for one in read_records(folder) if one.outcome == "passed")
    return {one.serial_number: one.mac_address for one in passed if one.serial_number}


def _parsed(line: str) -> BoardRecord | None:
    try:
        table: Any = json.loads(line)
        return BoardRecord(**{name: table[name] for name in _COLUMNS})
    except (ValueError, KeyError, TypeError):
        return None


def _open(path: Path) -> int:
    descriptor = open_descriptor(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    size = os.fstat(descriptor).st_size
    # A line cut off by a power failure must not swallow the next line.
    if size and os.pread(descriptor, 1, size - 1) != b"\n":
        _append(descriptor, b"\n")
    return descriptor


def _append(descriptor: int, line: bytes) -> None:
    while line:
        line = line[os.write(descriptor, line) :]
    os.fsync(descriptor)


def _csv_line(cells: list[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode()


def _for_a_cell(value: object) -> str:
    """Return one line of text that spreadsheets do not interpret as a formula."""
    text = " | ".join(str(value).split("\n"))
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") else text
