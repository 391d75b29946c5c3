"""Builds partition tables from CSV, from plain data, or from the name of a common layout.

Source: chapter "Partition Tables" of ESP-IDF's guide. esp-idf-defs writes the binary, with its MD5.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast, get_args

from esp_idf_defs.partitions import PARTITION_TABLE_OFFSET, PARTITION_TABLE_SIZE

from pytest_esp.errors import OperationError
from pytest_esp.formats.files import resolve
from pytest_esp.formats.partition_table import Partition, default_app, ota_slots, otadata_of, parse, table_of, text_of
from pytest_esp.formats.regions import size_argument
from pytest_esp.names import nearest
from pytest_esp.units import Address, Contents, format_size

Layout = str | os.PathLike[str] | Mapping[str, Any] | Sequence[Mapping[str, Any]]
"""The name of a common layout, a CSV file or its text, or rows (a list, or a mapping with the list ``partitions``).

Such a mapping may also have its own ``flash_size`` and ``table_offset``.
"""
Storage = Literal["littlefs", "spiffs", "fat"]

APP_ALIGNMENT = 0x10000
_LONGEST_NAME = 16
_OTADATA_SIZE = 0x2000
_PHY_SIZE = 0x1000
_KEYS = ("name", "type", "subtype", "offset", "size", "flags")
_TABLE_KEYS = ("partitions", "flash_size", "table_offset")


@dataclass(frozen=True)
class BuiltTable:
    """A new partition table. Sizes are in bytes.

    Attributes:
        data: the binary, with its MD5, for *table_offset*.
        csv: the same as text, with all offsets.
        flash_size: the flash size that it was checked against; *free* is the space after the last partition.
        warnings: what is allowed, but probably not intended.
        output_file: where it was saved, if it was.
    """

    partitions: tuple[Partition, ...]
    csv: str
    data: Contents = field(repr=False)
    md5: str
    table_offset: Address
    flash_size: int
    free: int
    warnings: tuple[str, ...]
    output_file: Path | None = None


def build(
    layout: Layout,
    flash_size: int | str,
    *,
    table_offset: int | str = PARTITION_TABLE_OFFSET,
    chip: str | None = None,
) -> BuiltTable:
    """Build a table and check its alignment (64 KB for apps), overlaps, names, and the flash size.

    Args:
        layout: see `Layout` and `LAYOUTS`; a row has name, type, subtype, size, and optionally offset and flags.
        flash_size: the board's flash size, unless *layout* has its own.
        table_offset: the address of the table, unless *layout* has its own.
        chip: gives the address of the bootloader, for a row of that type.

    Raises:
        OperationError: if one of these checks fails; the message gives the line or partition.
    """
    own = layout if isinstance(layout, Mapping) else {}
    size = size_argument(own.get("flash_size", flash_size), "flash size")
    offset = size_argument(own.get("table_offset", table_offset), "offset of the table")
    text = _csv_of(layout, size)
    table = table_of(text, offset, chip, size)
    for entry in table:
        _check_name(entry.name)
    data: bytes = table.to_binary()
    partitions = parse(data)
    if not partitions:
        raise OperationError("the partition table is empty", hint=f"layouts: {', '.join(LAYOUTS)}")
    return BuiltTable(
        partitions=partitions,
        csv=str(table.to_csv()),
        data=data,
        md5=hashlib.md5(data, usedforsecurity=False).hexdigest(),
        table_offset=offset,
        flash_size=size,
        free=size - max(part.offset + part.size for part in partitions),
        warnings=tuple(_warnings(partitions)),
    )


def build_ota(
    flash_size: int | str,
    app_size: int | str | None = None,
    *,
    slots: int = 2,
    factory: bool = False,
    nvs_size: int | str = 0x4000,
    storage: Storage | None = None,
) -> BuiltTable:
    """Return a table for updates over the air.

    Args:
        flash_size: the board's flash size.
        app_size: the size of each app partition; by default the largest possible.
        slots: the number of OTA partitions, 2 to 16.
        factory: whether to add a factory app.
        nvs_size: the size of the NVS partition.
        storage: ``"littlefs"``, ``"spiffs"`` or ``"fat"`` for a file system in the remaining space.

    Raises:
        OperationError: if it does not fit, or an argument is invalid.
    """
    if not 2 <= slots <= 16:
        raise OperationError(
            f"invalid number of OTA partitions: {slots}", hint="use 2 to 16: one runs while another is written"
        )
    if storage not in (None, *get_args(Storage)):
        raise OperationError(f"unknown file system {storage!r}", hint="use littlefs, spiffs or fat")
    size = size_argument(flash_size, "flash size")
    names = [*(["factory"] if factory else []), *(f"ota_{number}" for number in range(slots))]
    nvs = size_argument(nvs_size, "size of the NVS")
    head = PARTITION_TABLE_OFFSET + PARTITION_TABLE_SIZE + nvs + _OTADATA_SIZE + _PHY_SIZE
    room = size - -(-head // APP_ALIGNMENT) * APP_ALIGNMENT
    largest = max(room, 0) // len(names) // APP_ALIGNMENT * APP_ALIGNMENT
    app = largest if app_size is None else size_argument(app_size, "size of the app")
    if not 0 < app <= largest:
        raise OperationError(
            f"{len(names)} apps of {format_size(app)} do not fit into {format_size(size)} of flash",
            hint=f"the largest possible size is {format_size(largest)}",
        )
    rows = [_row("nvs", "data", "nvs", nvs), _row("otadata", "data", "ota", _OTADATA_SIZE)]
    rows += [_row("phy_init", "data", "phy", _PHY_SIZE), *(_row(name, "app", name, app) for name in names)]
    rest = room - len(names) * -(-app // APP_ALIGNMENT) * APP_ALIGNMENT
    if storage is not None and rest > 0:
        rows.append(_row("storage", "data", storage, rest))
    return build(rows, size)


def _row(name: str, kind: str, subtype: str, size: int) -> dict[str, Any]:
    return {"name": name, "type": kind, "subtype": subtype, "size": size}


def _head() -> list[dict[str, Any]]:
    return [_row("nvs", "data", "nvs", 0x6000), _row("phy_init", "data", "phy", _PHY_SIZE)]


def _single(flash_size: int, app: int) -> list[dict[str, Any]]:
    return [*_head(), _row("factory", "app", "factory", min(app, flash_size - APP_ALIGNMENT))]


LAYOUTS: dict[str, Callable[[int], str | list[dict[str, Any]]]] = {
    "single_factory": lambda size: _single(size, 0x100000),
    "single_factory_large": lambda size: _single(size, 0x177000),
    "single_factory_all": lambda size: _single(size, size),
    "two_ota": lambda size: build_ota(size).csv,
    "two_ota_littlefs": lambda size: (
        build_ota(size, size // 4 // APP_ALIGNMENT * APP_ALIGNMENT, storage="littlefs").csv
    ),
    "factory_two_ota": lambda size: build_ota(size, factory=True).csv,
}
"""Common layouts, as functions of the flash size: those of ESP-IDF, and tables for updates over the air."""


def _csv_of(layout: Layout, flash_size: int) -> str:
    if isinstance(layout, os.PathLike):
        return _file(Path(layout))
    if isinstance(layout, Mapping):
        rows: Any = layout.get("partitions")
        if not isinstance(rows, Sequence) or isinstance(rows, str):
            raise OperationError("the layout has no list 'partitions'", hint=f"its rows have {', '.join(_KEYS)}")
        unknown = [key for key in layout if key not in _TABLE_KEYS]
        if unknown:
            raise OperationError(f"a layout has no {unknown[0]!r}", hint=f"it has {', '.join(_TABLE_KEYS)}")
        return _csv_of(rows, flash_size)
    if not isinstance(layout, str):
        return "\n".join(_line(row) for row in layout)
    if layout in LAYOUTS:
        made = LAYOUTS[layout](flash_size)
        return made if isinstance(made, str) else _csv_of(made, flash_size)
    if "," in layout or "\n" in layout:
        return layout
    if layout.endswith(".csv"):
        return _file(Path(layout))
    raise OperationError(
        f"there is no layout {layout!r}",
        hint=f"nearest: {nearest(layout, LAYOUTS)}; or use a CSV file, its text, or rows",
    )


def _file(path: Path) -> str:
    try:
        return text_of(resolve(path).read_bytes())
    except (OSError, OperationError) as error:
        reason = error.strerror if isinstance(error, OSError) else error.message
        raise OperationError(f"{path} cannot be read: {reason}") from error


def _line(row: Any) -> str:
    if not isinstance(row, Mapping):
        raise OperationError(f"{row!r} is not a row of a table", hint=f"a row has {', '.join(_KEYS)}")
    row = cast(Mapping[str, Any], row)
    unknown = [key for key in row if key not in _KEYS]
    if unknown:
        raise OperationError(f"unknown key {unknown[0]!r} in a row", hint=f"use {', '.join(_KEYS)}")
    missing = [key for key in ("name", "type", "size") if row.get(key) in (None, "")]
    if missing:
        raise OperationError(f"the row {dict(row)} has no {missing[0]}")
    flags = row.get("flags") or ""
    cells = [row["name"], row["type"], row.get("subtype", ""), "", size_argument(row["size"], "size"), ""]
    if row.get("offset") not in (None, ""):
        cells[3] = f"{size_argument(row['offset'], 'offset'):#x}"
    cells[5] = flags if isinstance(flags, str) else ":".join(flags)
    if any(mark in str(cell) for cell in cells for mark in ",\n#"):
        raise OperationError(f"a cell of the row {dict(row)} contains a comma, a '#' or a line break")
    return ",".join(map(str, cells))


# -- checks that esp-idf-defs does not make


def _check_name(name: str) -> None:
    length = len(name.encode())
    if not 0 < length <= _LONGEST_NAME:
        raise OperationError(f"the partition name {name!r} has {length} bytes", hint=f"use 1 to {_LONGEST_NAME} bytes")


def _warnings(partitions: Sequence[Partition]) -> list[str]:
    slots = ota_slots(partitions)
    sizes = {part.size for part in slots}
    types = {(part.type, part.subtype) for part in partitions}
    apps = Counter(part.subtype for part in partitions if part.type == "app")
    twice = ", ".join(subtype for subtype, count in apps.items() if count > 1)
    numbers = ", ".join(part.subtype for part in slots)
    found = {
        f"more than one app partition {twice}: the bootloader uses one of them": bool(twice),
        "OTA partitions, but no otadata partition, which selects one of them": bool(slots)
        and otadata_of(partitions) is None,
        f"the OTA partitions are {numbers}, not numbered from ota_0 without gaps": not twice
        and [part.subtype for part in slots] != [f"ota_{number}" for number in range(len(slots))],
        "no app partition: the board has nothing to start": default_app(partitions) is None,
        "only one OTA partition: an update cannot be written while it runs": len(slots) == 1
        and ("app", "factory") not in types,
        "OTA partitions of different sizes: an update must fit into the smallest": len(sizes) > 1,
        "otadata without OTA partitions": otadata_of(partitions) is not None and not slots,
        "no NVS partition: Wi-Fi and many libraries need one": ("data", "nvs") not in types,
    }
    return [words for words, holds in found.items() if holds]
