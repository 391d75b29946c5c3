"""Partition tables in ESP-IDF's binary and CSV formats, read and written with esp-idf-defs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from esp_idf_defs.partitions import MD5_PARTITION_BEGIN, SUBTYPES, TYPES, PartitionDefinition, PartitionTable

from pytest_esp.errors import OperationError
from pytest_esp.units import Address

TABLE_SIZE = 0xC00
MAGIC: bytes = PartitionDefinition.MAGIC_BYTES
_ENTRY_SIZE = 32


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


def from_csv(text: str) -> bytes:
    """Return the binary table, with its MD5, for a CSV in ESP-IDF's format.

    Raises:
        OperationError: if the CSV is invalid; with the message and line from esp-idf-defs.
    """
    try:
        table = PartitionTable.from_csv(text)
        table.verify()
        return table.to_binary()
    except Exception as error:
        raise OperationError(f"invalid partition CSV: {error}") from error


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
