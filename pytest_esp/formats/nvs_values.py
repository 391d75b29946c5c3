"""Values for an NVS partition, from plain data or from a CSV file for Espressif's generator."""

from __future__ import annotations

import csv
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, cast

from pytest_esp.errors import OperationError
from pytest_esp.formats.files import resolve

NvsData = Mapping[str, Mapping[str, Any]]
"""Values by namespace and key: text, a number, bytes, or ``{"type": "u8", "value": 1}``."""

_NUMBERS = {f"{sign}{bits}" for bits in (8, 16, 32, 64) for sign in "ui"}
_COLUMNS = {"key", "type", "encoding", "value"}
_KINDS = {"namespace", "data", "file"}
_LONGEST_KEY = 15
_LONGEST_STRING = 3967  # bytes; a page has 124 entries of 32 bytes for it, and one byte is its end


@dataclass(frozen=True)
class NvsRow:
    """A value, or the begin of a namespace, as the generator takes it.

    Attributes:
        encoding: the generator's word; ``"namespace"`` begins the namespace *key*.
        place: where it comes from, for messages: ``"values.csv, line 3: "``, or nothing.
    """

    key: str
    encoding: str
    value: Any = ""
    place: str = ""

    def error(self, reason: str, hint: str | None = None) -> OperationError:
        """Return the error for this row, which names its place and key."""
        what = "namespace" if self.encoding == "namespace" else "value of"
        return OperationError(f"{self.place}the {what} {self.key!r} {reason}", hint=hint)


def rows_of(values: NvsData | str | Path) -> Iterator[NvsRow]:
    """Yield the rows of *values*, plain data or a CSV file, each checked against the generator's limits.

    In a CSV file, lines that begin with ``#`` are comments, also inside quotes, as for the generator. Files that it
    names are relative to it.

    Raises:
        OperationError: if the CSV or a file that it names cannot be read, a key is too long, or a value does not match
            its type.
    """
    found = _rows_of_csv(Path(values)) if isinstance(values, (str, Path)) else _rows_of_data(values)
    for row in found:
        if not 0 < len(row.key.encode("utf-8", "surrogatepass")) <= _LONGEST_KEY:
            raise OperationError(
                f"{row.place}invalid key or namespace {row.key!r}", hint=f"use 1 to {_LONGEST_KEY} bytes"
            )
        yield _checked(row)


def _checked(row: NvsRow) -> NvsRow:
    if row.encoding in _NUMBERS:
        return _number(row)
    if row.encoding == "string":
        try:
            data = row.value if isinstance(row.value, bytes) else row.value.encode()
            data.decode()
        except UnicodeError as error:
            raise row.error("is not UTF-8", hint="store it as binary") from error
        if len(data) > _LONGEST_STRING:
            raise row.error(
                f"has {len(data)} bytes", hint=f"a string has {_LONGEST_STRING} at most; store it as a blob"
            )
    return row


def _number(row: NvsRow) -> NvsRow:
    try:
        number = int(row.value)
    except (TypeError, ValueError):
        try:
            number = int(row.value, 0)
        except (TypeError, ValueError) as error:
            raise row.error("is not a number", hint=f"its type is {row.encoding}") from error
    bits, signed = int(row.encoding[1:]), row.encoding[0] == "i"
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    if not low <= number <= high:
        raise row.error(f"is invalid: it does not fit {row.encoding}", hint=f"use {low} to {high}")
    return NvsRow(row.key, row.encoding, number, row.place)


# -- plain data


def _rows_of_data(values: NvsData) -> Iterator[NvsRow]:
    for namespace, keys in values.items():
        if not isinstance(keys, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance] - it may come from JSON
            raise OperationError(f"the namespace {namespace!r} has no keys", hint='{"namespace": {"key": value}}')
        yield NvsRow(namespace, "namespace")
        for name, value in keys.items():
            yield NvsRow(name, *_encoded(name, value))


def _encoded(name: str, value: Any) -> tuple[str, Any]:
    if isinstance(value, Mapping):
        given = cast(Mapping[str, Any], value)
        return _typed(name, str(given.get("type")), given.get("value"))
    if isinstance(value, bool):
        return "u8", int(value)
    if isinstance(value, int):
        fitting = ("u32", "u64") if value >= 0 else ("i32", "i64")
        return fitting[not -(1 << 31) <= value < 1 << 32], value
    if isinstance(value, str):
        return "string", value
    if isinstance(value, bytes):
        return "binary", value
    raise OperationError(
        f"the value of {name!r} has an unsupported type", hint="use text, a number, bytes, or type and value"
    )


def _typed(name: str, kind: str, value: Any) -> tuple[str, Any]:
    if kind in _NUMBERS:
        return kind, value
    if kind == "string" and isinstance(value, str):
        return kind, value
    if kind in ("blob", "hex", "hex2bin", "base64") and isinstance(value, (str, bytes)):
        if isinstance(value, bytes):
            return "binary", value
        return ("base64" if kind == "base64" else "hex2bin"), value
    known = ", ".join([*sorted(_NUMBERS), "string", "blob (hex digits)", "base64"])
    raise OperationError(f"the value of {name!r} does not match its type {kind}", hint=f"types: {known}")


# -- CSV


def _rows_of_csv(path: Path) -> Iterator[NvsRow]:
    try:
        with resolve(path).open(encoding="utf-8-sig") as file:
            yield from _rows_of_lines(path, file)
    except (OSError, ValueError, csv.Error) as error:  # UnicodeDecodeError is a ValueError
        raise OperationError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _rows_of_lines(path: Path, file: TextIO) -> Iterator[NvsRow]:
    line = 0

    def lines() -> Iterator[str]:
        nonlocal line
        for text in file:
            line += 1
            if not text.startswith("#"):
                yield text

    table = csv.DictReader(lines())
    if not set(table.fieldnames or ()) >= _COLUMNS:
        raise OperationError(f"{path} is not an NVS CSV file", hint="its first line must be key,type,encoding,value")
    for row in table:
        key, kind, encoding, value = (row[column] or "" for column in ("key", "type", "encoding", "value"))
        place = f"{path}, line {line}: "
        if kind not in _KINDS:
            raise OperationError(f"{place}{key!r} has the unknown type {kind!r}", hint="use namespace, data or file")
        if kind == "namespace":
            yield NvsRow(key, kind, place=place)
        elif kind == "file":
            yield NvsRow(key, encoding, _contents(path, value, place, key), place)
        else:
            # The generator would count the characters of text, not its bytes.
            yield NvsRow(key, encoding, value.encode() if encoding == "binary" else value, place)


def _contents(path: Path, name: str, place: str, key: str) -> bytes:
    file = resolve(name, named_by=path)
    try:
        return file.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OperationError(f"{place}the file of {key!r}, {file}, cannot be read: {reason}") from error


ENCODING_ERRORS = (RuntimeError, ValueError, TypeError, AttributeError, AssertionError, IndexError, struct.error)
"""What the generator raises for a value that it cannot store."""
