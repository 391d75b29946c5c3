"""Partition tables in ESP-IDF's binary and CSV formats, read and written with esp-idf-defs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from esp_idf_defs.partitions import (
    MD5_PARTITION_BEGIN,
    PARTITION_TABLE_OFFSET,
    SUBTYPES,
    TYPES,
    PartitionDefinition,
    PartitionTable,
    get_encoding,
)
from esptool.targets import CHIP_DEFS

from pytest_esp.errors import OperationError
from pytest_esp.units import Address

TABLE_SIZE = 0xC00
MAGIC: bytes = PartitionDefinition.MAGIC_BYTES
_ENTRY_SIZE = 32
_COLUMNS = 6


@dataclass(frozen=True)
class Partition:
    """A partition; offset and size are in bytes. Types and subtypes are ESP-IDF's names, or numbers like ``0x40``."""

    name: str
    type: str
    subtype: str
    offset: Address
    size: int
    encrypted: bool
    readonly: bool


def parse(data: bytes) -> tuple[Partition, ...]:
    """Return the partitions of a binary table.

    Raises:
        OperationError: if it is damaged.
    """
    try:
        table = PartitionTable.from_binary(data)
    except Exception as error:  # esp-idf-defs raises several kinds, including Exception
        raise OperationError(f"the partition table is damaged: {error}", hint="flash it again") from error
    return tuple(_partition(entry) for entry in table)


def from_csv(text: str, table_offset: int = PARTITION_TABLE_OFFSET, chip: str | None = None) -> bytes:
    """Return the binary table, with its MD5, for a CSV in ESP-IDF's format.

    Args:
        text: the CSV.
        table_offset: the address of the table.
        chip: gives the address of the bootloader, for a row of that type.

    Raises:
        OperationError: if the CSV is invalid; with the message and line from esp-idf-defs.
    """
    return table_of(text, table_offset, chip).to_binary()


def table_of(text: str, table_offset: int, chip: str | None, flash_size: int | None = None) -> PartitionTable:
    """Return the checked table of a CSV; see `from_csv`. *flash_size* is checked, too, if it is given.

    Raises:
        OperationError: if the CSV is invalid.
    """
    lines = [_without_comments(number, line) for number, line in enumerate(text.splitlines(), 1)]
    start = None if chip is None else CHIP_DEFS[chip].BOOTLOADER_FLASH_OFFSET
    try:
        table = PartitionTable.from_csv("\n".join(lines), table_offset, start)
        table.verify(table_offset)
        if flash_size is not None:
            table.verify_size_fits(flash_size)
        table.to_binary()
        return table
    except Exception as error:  # esp-idf-defs raises several kinds
        hint = "specify the chip: it decides where the bootloader is" if "ootloader offset" in str(error) else None
        raise OperationError(f"invalid partition CSV: {error}", hint=hint) from error


def _without_comments(number: int, line: str) -> str:
    """Return a line without comments and surplus cells, in which esp-idf-defs would expand environment variables."""
    cells = "" if line.lstrip().startswith("#") else ",".join(line.split(",")[:_COLUMNS])
    if "$" in cells:
        raise OperationError(
            f"line {number} of the partition CSV contains a '$'", hint="replace the variable by its value"
        )
    return cells


def text_of(data: bytes) -> str:
    """Return the text of a CSV file, in UTF-8, or in UTF-16 or UTF-32 with a byte order mark.

    Raises:
        OperationError: if it is not text.
    """
    try:
        return data.decode(get_encoding(data))
    except UnicodeDecodeError as error:
        raise OperationError(f"it is not a text file: {error}") from error


def has_md5(data: bytes) -> bool:
    """Return whether a binary table has an MD5."""
    return any(data.startswith(MD5_PARTITION_BEGIN[:2], entry) for entry in range(0, len(data), _ENTRY_SIZE))


def otadata_of(partitions: Iterable[Partition]) -> Partition | None:
    """Return the otadata partition, which selects the slot to start, if there is one."""
    return next((part for part in partitions if (part.type, part.subtype) == ("data", "ota")), None)


def ota_slots(partitions: Iterable[Partition]) -> list[Partition]:
    """Return the slots for updates over the air, in order."""
    slots = [part for part in partitions if part.type == "app" and part.subtype.startswith("ota_")]
    return sorted(slots, key=lambda part: int(part.subtype.removeprefix("ota_")))


def default_app(partitions: Iterable[Partition]) -> Partition | None:
    """Return the partition that the bootloader starts if otadata is blank: the factory app, else the first slot."""
    table = list(partitions)
    factory = [part for part in table if (part.type, part.subtype) == ("app", "factory")]
    return next(iter((*factory, *ota_slots(table))), None)


def _partition(entry: Any) -> Partition:
    return Partition(
        name=entry.name,
        type=_name(entry.type, TYPES),
        subtype=_name(entry.subtype, SUBTYPES.get(entry.type, {})),
        offset=entry.offset,
        size=entry.size,
        encrypted=bool(entry.encrypted),
        readonly=bool(entry.readonly),
    )


def _name(number: int, names: dict[str, Any]) -> str:
    return next((name for name, value in names.items() if value == number), f"{number:#04x}")
