"""Print an operation's result for people: lines and tables, with formatted sizes and addresses."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, is_dataclass
from typing import TYPE_CHECKING, Any, cast

from pytest_esp.controls import without_controls
from pytest_esp.operations.results import fields_of
from pytest_esp.secrets import hide
from pytest_esp.units import format_size

if TYPE_CHECKING:
    from rich.console import RenderableType

_SIZE = re.compile(r"(?:^|_)(?:size|sizes|bytes|flash|psram|sram|rom)$|^bytes_")
_ADDRESS = re.compile(r"(?:^|_)(?:address|offset)$")
_SECONDS = re.compile(r"(?:_|^)(?:seconds|s)$")
_PICTURE = "<"  # the first character of SVG and HTML
_MOST_COLUMNS = 8  # of a table with one row
_ROW = 16  # bytes in a line of a dump
_WIDE = 10_000  # columns, so that lines are not wrapped in files and pipes


@dataclass(frozen=True)
class Table:
    """Records as a table with a column for each field that any of them has."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    indent: str


class Report:
    """A result as lines and tables.

    Args:
        result: the result of an operation, a dataclass.
        dump: whether to show bytes as a hex dump.
        can_save: whether the operation can save its bytes to an output_file.
    """

    def __init__(self, result: object, *, dump: bool = False, can_save: bool = False) -> None:
        self._result = result
        self._dump = dump
        self._saves = "output_file=FILE saves them, " if can_save else ""

    def write(self) -> None:
        """Print the result: with styles on a terminal, otherwise as plain text."""
        from rich.console import Console
        from rich.text import Text

        console = Console(file=sys.stdout)
        if not console.is_terminal:
            console.width = _WIDE
        with console.capture() as capture:
            for part in self.parts(self._result):
                if isinstance(part, Table):
                    console.print(Text(f"{part.indent}{part.title}:"), _drawn(part, console.is_terminal), sep="\n")
                else:
                    console.print(Text(part))
        text = "\n".join(line.rstrip() for line in capture.get().splitlines())
        print(hide(without_controls(text, colours=console.is_terminal)))

    def parts(self, record: object, indent: str = "") -> Iterator[str | Table]:
        """Yield the lines and tables of a record."""
        for name, is_hex in fields_of(type(record)):
            value = getattr(record, name)
            yield from self._field(_label(name), name, value, is_hex, indent)

    def _field(self, label: str, name: str, value: Any, is_hex: bool, indent: str) -> Iterator[str | Table]:
        if isinstance(value, bytes):
            yield from self._bytes(label, value, indent)
        elif isinstance(value, str) and ("\n" in value or "\r" in value):
            yield from _block(label, value, indent)
        elif _is_record(value):
            yield f"{indent}{label}:"
            yield from self.parts(value, indent + "  ")
        elif isinstance(value, Mapping) and value:
            yield from self._mapping(label, cast("Mapping[Any, Any]", value), indent)
        elif _is_list(value) and value and all(map(_is_record, value)):
            yield from self._records(label, list(value), indent)
        elif _is_list(value) and value and any(_is_list(item) or len(str(item)) > 40 for item in value):
            yield f"{indent}{label}:"
            yield from (f"{indent}  {_row(item, name)}" for item in value)
        else:
            yield f"{indent}{label}: {_word(value, name, is_hex)}"

    def _mapping(self, label: str, table: Mapping[Any, Any], indent: str) -> Iterator[str | Table]:
        lengths = {len(item) if _is_list(item) else None for item in table.values()}
        if len(table) > 1 and len(lengths) == 1 and (length := lengths.pop()):
            rows = [(_label(str(key)), *(_word(item, str(key)) for item in items)) for key, items in table.items()]
            yield Table(label, ("",) * (length + 1), tuple(rows), indent)
            return
        yield f"{indent}{label}:"
        for key, item in table.items():
            yield from self._field(str(key), str(key), item, False, indent + "  ")

    def _records(self, label: str, records: Sequence[object], indent: str) -> Iterator[str | Table]:
        table = _table(label, records, indent)
        if len(records) > 1 or len(table.headings) <= _MOST_COLUMNS:
            yield table
            return
        yield f"{indent}{label}:"
        yield from self.parts(records[0], indent + "  ")

    def _bytes(self, label: str, value: bytes, indent: str) -> Iterator[str]:
        if not self._dump:
            yield f"{indent}{label}: {_size(len(value))} ({self._saves}--hex prints them)"
            return
        yield f"{indent}{label}:"
        start = getattr(self._result, "address", 0)
        for offset in range(0, len(value), _ROW):
            row = value[offset : offset + _ROW]
            text = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in row)
            yield f"{indent}  {start + offset:08x}  {row.hex(' '):{3 * _ROW - 1}}  {text}"


def _block(label: str, value: str, indent: str) -> Iterator[str]:
    if value.lstrip().startswith(_PICTURE):
        yield f"{indent}{label}: a picture or page of {len(value)} characters (--json prints it)"
        return
    yield f"{indent}{label}:"
    yield from (f"{indent}  {_clean(line)}" for line in value.splitlines())


def _table(title: str, records: Sequence[object], indent: str) -> Table:
    columns: list[tuple[str, list[str]]] = []
    for name, is_hex in dict.fromkeys(field for record in records for field in fields_of(type(record))):
        values = [getattr(record, name, None) for record in records]
        if any(value not in (None, (), "", []) for value in values):
            columns.append((_label(name), ["" if value is None else _word(value, name, is_hex) for value in values]))
    headings = tuple(name for name, _ in columns)
    return Table(title, headings, tuple(zip(*(cells for _, cells in columns), strict=True)), indent)


def _drawn(table: Table, is_terminal: bool) -> RenderableType:
    from rich import box
    from rich.padding import Padding
    from rich.table import Table as Drawn
    from rich.text import Text

    style: dict[str, Any] = {"box": box.SIMPLE_HEAD if is_terminal else None, "header_style": "bold"}
    drawn = Drawn(show_header=any(table.headings), pad_edge=False, show_edge=False, **style)
    for heading in table.headings:
        drawn.add_column(Text(heading), overflow="fold")
    for row in table.rows:
        drawn.add_row(*map(Text, row))
    return Padding(drawn, (0, 0, 0, len(table.indent) + 2), expand=False)


def _word(value: Any, name: str, is_hex: bool = False) -> str:  # noqa: PLR0911 - one return for each type
    """Return a value on one line."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:#x}" if is_hex or _ADDRESS.search(name) else _size(value) if _SIZE.search(name) else str(value)
    if isinstance(value, float):
        return f"{value:.3g} s" if _SECONDS.search(name) else f"{value:g}"
    if isinstance(value, bytes):
        return _size(len(value))
    if isinstance(value, Mapping):
        table = cast("Mapping[Any, Any]", value)
        return ", ".join(f"{key}: {_word(item, str(key))}" for key, item in table.items()) or "none"
    if _is_record(value):
        words = ((field, getattr(value, field), is_hex) for field, is_hex in fields_of(type(value)))
        return ", ".join(f"{_label(field)} {_word(item, field, is_hex)}" for field, item, is_hex in words if item)
    if _is_list(value):
        return ", ".join(_first(item, name) for item in value) or "none"
    return _clean(str(value)).replace("\n", " | ")


def _first(item: Any, name: str) -> str:
    """Return an item of a list; for a record, its first field, which names it."""
    if not _is_record(item):
        return _word(item, name)
    field, is_hex = fields_of(type(item))[0]
    return _word(getattr(item, field), field, is_hex)


def _row(item: Any, name: str) -> str:
    if not _is_list(item):
        return _word(item, name)
    return "  ".join(f"{part:8.3f}" if isinstance(part, float) else _word(part, name) for part in item)


def _size(size: int) -> str:
    return format_size(size) if size % 1024 == 0 and size else f"{size} bytes"


def _label(name: str) -> str:
    return _SECONDS.sub("", name).replace("_", " ") or name


def _clean(text: str) -> str:
    return hide(without_controls(text))


def _is_record(value: object) -> bool:
    return is_dataclass(value) and not isinstance(value, type)


def _is_list(value: object) -> bool:
    return isinstance(value, (list, tuple, Set))
