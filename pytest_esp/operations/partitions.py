"""Operations on the partition table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from esp_idf_defs.partitions import SUBTYPES, PartitionTable

from pytest_esp.errors import OperationError
from pytest_esp.link.link import Link
from pytest_esp.operations import flash
from pytest_esp.operations.registry import Effect, operation

TABLE_SIZE = 0xC00
_DEFAULT_OFFSET = 0x8000
_SEARCH_END = 0x20000
_MAGIC = b"\xaa\x50"
_TYPES = {0: "app", 1: "data", 2: "bootloader", 3: "partition_table"}


@dataclass(frozen=True)
class Partition:
    """One partition; offset and size in bytes. Types and subtypes are names where ESP-IDF has one, else ``0x40``."""

    name: str
    type: str
    subtype: str
    offset: int
    size: int
    encrypted: bool


@dataclass(frozen=True)
class Partitions:
    """A partition table, and where in flash it was found."""

    offset: int
    partitions: tuple[Partition, ...]


@operation(Effect.READ)
def read(link: Link) -> Partitions:
    """Return the partition table, wherever it is: at 0x8000, or at the first sector up to 0x20000 that has one.

    Its MD5 is checked. Source: ESP-IDF's partition table format, as esp-idf-defs reads it.

    Raises:
        OperationError: if there is none, or it is damaged.
    """
    # The tables of nearly all boards: one short read, and the search only where it finds none.
    head = flash.read(link, _DEFAULT_OFFSET, TABLE_SIZE).data
    if head.startswith(_MAGIC):
        return Partitions(_DEFAULT_OFFSET, parse(head))
    area = flash.read(link, 0x1000, _SEARCH_END - 0x1000).data
    for offset in range(0, len(area), 0x1000):
        if area[offset : offset + 2] == _MAGIC:
            return Partitions(0x1000 + offset, parse(area[offset : offset + TABLE_SIZE]))
    raise OperationError(
        "there is no partition table in flash",
        board=link.board.name,
        attempted="reading the partition table",
        hint="flash one: an ESP-IDF build folder has it as partition_table/partition-table.bin",
    )


def parse(data: bytes) -> tuple[Partition, ...]:
    """Return the partitions of a binary table.

    Raises:
        OperationError: if it is damaged.
    """
    try:
        table = PartitionTable.from_binary(data)
    except Exception as error:  # esp-idf-defs raises several kinds, some of them bare
        raise OperationError(f"the partition table is damaged: {error}", hint="flash it again") from error
    return tuple(_partition(entry) for entry in table)


def from_csv(text: str) -> bytes:
    """Return the binary table, with its MD5, of a CSV as ESP-IDF writes it.

    Raises:
        OperationError: if the CSV is wrong; with esp-idf-defs's own words and line.
    """
    try:
        table = PartitionTable.from_csv(text)
        table.verify()
        return table.to_binary()
    except Exception as error:
        raise OperationError(f"the partition CSV is wrong: {error}") from error


@operation(Effect.READ)
def find(link: Link, name: str) -> Partition:
    """Return the partition of that name.

    Raises:
        OperationError: if there is none; lists those there are.
    """
    table = read(link)
    for partition in table.partitions:
        if partition.name == name:
            return partition
    names = ", ".join(partition.name for partition in table.partitions)
    raise OperationError(f"there is no partition {name!r}", board=link.board.name, hint=f"the table has: {names}")


def _partition(entry: Any) -> Partition:  # a PartitionDefinition, whose class declares its fields as None
    type_name = _TYPES.get(entry.type, f"{entry.type:#04x}")
    return Partition(
        entry.name,
        type_name,
        _subtype(entry.type, entry.subtype),
        entry.offset,
        entry.size,
        bool(entry.encrypted),
    )


def _subtype(type_number: int, number: int) -> str:
    for name, value in SUBTYPES.get(type_number, {}).items():
        if value == number:
            return str(name)
    return f"{number:#04x}"
