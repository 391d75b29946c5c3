"""Operations on the partition table and on otadata."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from esp_idf_defs.otadata import OtaDataSelectEntry, OtaImageState
from esp_idf_defs.partitions import (
    MD5_PARTITION_BEGIN,
    SUBTYPES,
    TYPES,
    PartitionDefinition,
    PartitionTable,
)

from pytest_esp.errors import OperationError
from pytest_esp.link.link import Link
from pytest_esp.names import nearest
from pytest_esp.operations import flash
from pytest_esp.operations.regions import SECTOR
from pytest_esp.operations.registry import Effect, operation

TABLE_SIZE = 0xC00
_DEFAULT_OFFSET = 0x8000
_SEARCH_START, _SEARCH_END = 0x1000, 0x20000
_ENTRY_SIZE = 32
_MAGIC = PartitionDefinition.MAGIC_BYTES
# The bootloader passes over these (bootloader_common_ota_select_invalid in ESP-IDF).
_GIVEN_UP = (OtaImageState.INVALID, OtaImageState.ABORTED)


@dataclass(frozen=True)
class Partition:
    """One partition; offset and size in bytes. Types and subtypes are names where ESP-IDF has one, else ``0x40``."""

    name: str
    type: str
    subtype: str
    offset: int
    size: int
    encrypted: bool
    readonly: bool


@dataclass(frozen=True)
class Partitions:
    """A partition table: where in flash it was found, and whether an MD5 in it was checked (a table may have none)."""

    offset: int
    checked: bool
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
        return _table(_DEFAULT_OFFSET, head)
    area = flash.read(link, _SEARCH_START, _SEARCH_END - _SEARCH_START).data
    for offset in range(0, len(area), SECTOR):
        if area.startswith(_MAGIC, offset):
            return _table(_SEARCH_START + offset, area[offset : offset + TABLE_SIZE])
    raise OperationError(
        "there is no partition table in flash",
        attempted="reading the partition table",
        hint="flash one: an ESP-IDF build folder has it as partition_table/partition-table.bin; "
        "where flash is encrypted it cannot be read from outside",
    )


def _table(offset: int, data: bytes) -> Partitions:
    checked = any(data.startswith(MD5_PARTITION_BEGIN[:2], entry) for entry in range(0, len(data), _ENTRY_SIZE))
    return Partitions(offset, checked, parse(data))


@operation(Effect.READ)
def find(link: Link, name: str) -> Partition:
    """Return the partition of that name.

    Raises:
        OperationError: if there is none; lists those there are.
    """
    partitions = read(link).partitions
    for partition in partitions:
        if partition.name == name:
            return partition
    names = [partition.name for partition in partitions]
    raise OperationError(
        f"there is no partition {name!r}", hint=f"nearest: {nearest(name, names)}; the table has: {', '.join(names)}"
    )


# -- otadata


@dataclass(frozen=True)
class OtaEntry:
    """One of the two entries of otadata.

    Attributes:
        address: where it lies in flash.
        valid: whether its checksum is right; the rest is None if not.
        sequence: its number; the higher one is the newer.
        slot: name of the partition that it stands for.
        state: of the image, as ESP-IDF calls it: ``"NEW"``, ``"PENDING_VERIFY"``, ``"VALID"``, ``"INVALID"``,
            ``"ABORTED"`` or ``"UNDEFINED"``.
    """

    address: int
    valid: bool
    sequence: int | None
    slot: str | None
    state: str | None


@dataclass(frozen=True)
class OtaData:
    """What otadata says.

    Attributes:
        partition: its partition.
        entries: both.
        active: name of the partition that the bootloader tries first; None if there is no app to start.
        slots: names of the OTA partitions, in order.
    """

    partition: Partition
    entries: tuple[OtaEntry, OtaEntry]
    active: str | None
    slots: tuple[str, ...]


@operation(Effect.READ)
def otadata(link: Link) -> OtaData:
    """Return what otadata says: both entries, and which partition the bootloader tries first.

    Source: ``esp_ota_select_entry_t`` of ESP-IDF, as esp-idf-defs reads it.

    Raises:
        OperationError: if the table has no otadata or no OTA partition, or there is no table.
    """
    partitions = read(link).partitions
    place = next((part for part in partitions if (part.type, part.subtype) == ("data", "ota")), None)
    slots = tuple(part.name for part in _ota_slots(partitions))
    if place is None or not slots:
        raise OperationError(
            "there is no otadata" if place is None else "there is otadata, but no OTA partition",
            attempted="reading otadata",
            hint="updates over the air need a table with otadata and at least two OTA partitions",
        )
    addresses = (place.offset, place.offset + SECTOR)
    raw = [_decoded(flash.read(link, at, OtaDataSelectEntry.SIZE).data) for at in addresses]
    first, second = (_ota_entry(at, entry, slots) for at, entry in zip(addresses, raw, strict=True))
    usable = [entry if entry and entry.ota_state not in _GIVEN_UP else None for entry in raw]
    chosen, _ = OtaDataSelectEntry.select(*usable)
    active = slots[chosen.ota_slot(len(slots))] if chosen else _default_app(partitions)
    return OtaData(place, (first, second), active, slots)


def _decoded(data: bytes) -> OtaDataSelectEntry | None:
    entry = OtaDataSelectEntry.from_bytes(data)
    # esp-idf-defs 0.1.7 computes the checksum, and compares it with itself.
    return entry if entry is not None and entry.to_bytes()[-4:] == data[-4:] else None


def _ota_slots(partitions: Iterable[Partition]) -> list[Partition]:
    slots = [part for part in partitions if part.type == "app" and part.subtype.startswith("ota_")]
    return sorted(slots, key=lambda part: int(part.subtype.removeprefix("ota_")))


def _ota_entry(address: int, entry: OtaDataSelectEntry | None, slots: tuple[str, ...]) -> OtaEntry:
    if entry is None:
        return OtaEntry(address, False, None, None, None)
    slot = slots[entry.ota_slot(len(slots))]
    return OtaEntry(address, True, entry.seq, slot, OtaImageState(entry.ota_state).name)


def _default_app(partitions: Iterable[Partition]) -> str | None:
    """Return what the bootloader starts where otadata names nothing: the factory app, else the first slot."""
    apps = [part for part in partitions if (part.type, part.subtype) == ("app", "factory")]
    return next((part.name for part in (*apps, *_ota_slots(partitions))), None)


# -- the binary table


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
