"""The partition table in flash, otadata, and the app that starts."""

from __future__ import annotations

from dataclasses import dataclass

from esp_idf_defs.otadata import OtaDataSelectEntry, OtaImageState

from pytest_esp.errors import OperationError
from pytest_esp.formats.images import APP_HEAD_SIZE, App, app_of
from pytest_esp.formats.partition_table import (
    MAGIC,
    TABLE_SIZE,
    Partition,
    default_app,
    has_md5,
    ota_slots,
    otadata_of,
    parse,
)
from pytest_esp.formats.regions import SECTOR
from pytest_esp.link.link import Link
from pytest_esp.names import nearest
from pytest_esp.operations.flash import reading
from pytest_esp.operations.registry import Effect, operation
from pytest_esp.operations.results import Address

DEFAULT_OFFSET = 0x8000
_SEARCH_START, _SEARCH_END = 0x1000, 0x20000


# The bootloader skips these (bootloader_common_ota_select_invalid in ESP-IDF).
_GIVEN_UP = (OtaImageState.INVALID, OtaImageState.ABORTED)


@dataclass(frozen=True)
class Partitions:
    """A partition table, its address in flash, and whether its MD5 was checked (a table may have none)."""

    offset: Address
    checked: bool
    partitions: tuple[Partition, ...]


@operation(Effect.READ, group="partitions")
def read(link: Link) -> Partitions:
    """Read the partition table from flash, at 0x8000 or the first sector up to 0x20000 that has one; check its MD5.

    Source: ESP-IDF's partition table format, as esp-idf-defs reads it.

    Raises:
        OperationError: if there is no table, or it is damaged.
    """
    # Nearly all boards have it there: one short read; search only if there is none.
    head = reading.read(link, DEFAULT_OFFSET, TABLE_SIZE).data
    if head.startswith(MAGIC):
        return _table(DEFAULT_OFFSET, head)
    area = reading.read(link, _SEARCH_START, _SEARCH_END - _SEARCH_START).data
    for offset in range(0, len(area), SECTOR):
        if area.startswith(MAGIC, offset):
            return _table(_SEARCH_START + offset, area[offset : offset + TABLE_SIZE])
    if any(set(area) - {0xFF}) and _is_encrypted(link):
        raise OperationError(
            "the flash is encrypted: its partition table cannot be read from outside",
            attempted="reading the partition table",
            hint="give the addresses from the build's partition table (gen_esp32part.py, or the build folder)",
        )
    raise OperationError(
        "there is no partition table in flash",
        attempted="reading the partition table",
        hint="flash one (partition_table/partition-table.bin of an ESP-IDF build folder)",
    )


def _is_encrypted(link: Link) -> bool:
    """Return whether eFuses enable flash encryption; a flash file is only used directly if none guards the flash."""
    if link.board.direct_flash() is not None or reading.chip_of_flash(link) == "esp8266":
        return False
    with link.session.use("flash encryption") as esp:
        return not esp.secure_download_mode and bool(esp.get_flash_encryption_enabled())


def _table(offset: int, data: bytes) -> Partitions:
    return Partitions(offset, has_md5(data), parse(data))


@operation(Effect.READ, group="partitions")
def find(link: Link, name: str) -> Partition:
    """Return the partition with this name.

    Args:
        name: name of the partition in the table in flash, e.g. nvs.

    Raises:
        OperationError: if there is no such partition; the hint lists those that exist.
    """
    partitions = read(link).partitions
    for partition in partitions:
        if partition.name == name:
            return partition
    names = [partition.name for partition in partitions]
    raise OperationError(
        f"there is no partition {name!r}", hint=f"nearest: {nearest(name, names)}; the table has: {', '.join(names)}"
    )


@dataclass(frozen=True)
class OtaEntry:
    """One of the two entries of otadata.

    Attributes:
        address: its address in flash.
        valid: whether its checksum is right; if not, the other fields are None.
        sequence: its number; the higher one is newer.
        slot: name of the partition that it selects.
        state: of the image, as ESP-IDF calls it: ``"NEW"``, ``"PENDING_VERIFY"``, ``"VALID"``, ``"INVALID"``,
            ``"ABORTED"`` or ``"UNDEFINED"``.
    """

    address: Address
    valid: bool
    sequence: int | None
    slot: str | None
    state: str | None


@dataclass(frozen=True)
class OtaData:
    """The contents of otadata.

    Attributes:
        partition: the otadata partition.
        entries: both.
        active: name of the partition that the bootloader tries first; None if there is no app to start.
        slots: names of the OTA partitions, in order.
    """

    partition: Partition
    entries: tuple[OtaEntry, OtaEntry]
    active: str | None
    slots: tuple[str, ...]


@operation(Effect.READ, group="partitions")
def otadata(link: Link) -> OtaData:
    """Read otadata: both entries, and the app partition that the bootloader tries first.

    Source: ``esp_ota_select_entry_t`` of ESP-IDF, as esp-idf-defs reads it.

    Raises:
        OperationError: if there is no table, or it has no otadata or no OTA partition.
    """
    return _otadata(link, read(link).partitions)


def _otadata(link: Link, partitions: tuple[Partition, ...]) -> OtaData:
    place = otadata_of(partitions)
    slots = tuple(part.name for part in ota_slots(partitions))
    if place is None or not slots:
        raise OperationError(
            "there is no otadata" if place is None else "there is otadata, but no OTA partition",
            attempted="reading otadata",
            hint="use a table with otadata and at least two OTA partitions for updates over the air",
        )
    addresses = (place.offset, place.offset + SECTOR)
    raw = [_decoded(reading.read(link, at, OtaDataSelectEntry.SIZE).data) for at in addresses]
    first, second = (_ota_entry(at, entry, slots) for at, entry in zip(addresses, raw, strict=True))
    usable = [entry if entry and entry.ota_state not in _GIVEN_UP else None for entry in raw]
    chosen, _ = OtaDataSelectEntry.select(*usable)
    default = default_app(partitions)
    active = slots[chosen.ota_slot(len(slots))] if chosen else default and default.name
    return OtaData(place, (first, second), active, slots)


def _decoded(data: bytes) -> OtaDataSelectEntry | None:
    entry = OtaDataSelectEntry.from_bytes(data)
    # esp-idf-defs 0.1.7 computes the checksum, and compares it with itself.
    return entry if entry is not None and entry.to_bytes()[-4:] == data[-4:] else None


def _ota_entry(address: int, entry: OtaDataSelectEntry | None, slots: tuple[str, ...]) -> OtaEntry:
    if entry is None:
        return OtaEntry(address, False, None, None, None)
    slot = slots[entry.ota_slot(len(slots))]
    return OtaEntry(address, True, entry.seq, slot, OtaImageState(entry.ota_state).name)


@dataclass(frozen=True)
class InstalledApp:
    """The app that the bootloader tries first: its partition and its descriptor (None if there is none)."""

    slot: Partition
    app: App | None


@operation(Effect.READ, group="partitions")
def app(link: Link) -> InstalledApp:
    """Return the app that the bootloader tries first, according to the flash contents.

    Raises:
        OperationError: if there is no partition table, or it has no app partition.
    """
    slot = app_slot(link)
    return InstalledApp(slot, app_of(reading.read(link, slot.offset, APP_HEAD_SIZE).data))


def app_slot(link: Link, table: Partitions | None = None) -> Partition:
    """Return the partition that the bootloader tries first, by *table* or, if None, the table in flash.

    Raises:
        OperationError: see `app`.
    """
    partitions = (table or read(link)).partitions
    by_name = {part.name: part for part in partitions}
    active = _otadata(link, partitions).active if otadata_of(partitions) and ota_slots(partitions) else None
    slot = by_name[active] if active else default_app(partitions)
    if slot is None:
        raise OperationError("the partition table has no app partition", hint="flash another table")
    return slot
