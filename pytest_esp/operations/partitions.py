"""Operations on the partition table, on what is in the partitions, and on otadata."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from esp_idf_defs.otadata import OtaDataSelectEntry, OtaImageState
from esptool.targets import CHIP_DEFS

from pytest_esp.errors import OperationError
from pytest_esp.files import new_file, resolve
from pytest_esp.link.link import Link
from pytest_esp.names import nearest
from pytest_esp.operations import flash
from pytest_esp.operations.access import ADDRESS_SPACE, reach
from pytest_esp.operations.images import APP_HEAD_SIZE, App, app_of, chip_of
from pytest_esp.operations.regions import SECTOR
from pytest_esp.operations.registry import Effect, operation, size_argument
from pytest_esp.operations.table import MAGIC, TABLE_SIZE, Partition, default_app, has_md5, ota_slots, otadata_of, parse
from pytest_esp.operations.table_build import BuiltTable, Layout, build, build_ota

_DEFAULT_OFFSET = 0x8000
_SEARCH_START, _SEARCH_END = 0x1000, 0x20000
# The bootloader passes over these (bootloader_common_ota_select_invalid in ESP-IDF).
_GIVEN_UP = (OtaImageState.INVALID, OtaImageState.ABORTED)


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
    if head.startswith(MAGIC):
        return _table(_DEFAULT_OFFSET, head)
    area = flash.read(link, _SEARCH_START, _SEARCH_END - _SEARCH_START).data
    for offset in range(0, len(area), SECTOR):
        if area.startswith(MAGIC, offset):
            return _table(_SEARCH_START + offset, area[offset : offset + TABLE_SIZE])
    raise OperationError(
        "there is no partition table in flash",
        attempted="reading the partition table",
        hint="flash one: an ESP-IDF build folder has it as partition_table/partition-table.bin; "
        "where flash is encrypted it cannot be read from outside",
    )


def _table(offset: int, data: bytes) -> Partitions:
    return Partitions(offset, has_md5(data), parse(data))


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
    place = otadata_of(partitions)
    slots = tuple(part.name for part in ota_slots(partitions))
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


# -- the app


@dataclass(frozen=True)
class InstalledApp:
    """The app that the bootloader tries first: its partition, and what it says of itself (None if there is none)."""

    slot: Partition
    app: App | None


@operation(Effect.READ)
def app(link: Link) -> InstalledApp:
    """Return the app that the bootloader tries first, by what is in flash now.

    Raises:
        OperationError: if there is no partition table, or none of its partitions is for an app.
    """
    slot = app_slot(link)
    return InstalledApp(slot, app_of(flash.read(link, slot.offset, APP_HEAD_SIZE).data))


def app_slot(link: Link) -> Partition:
    """Return the partition that the bootloader tries first.

    Raises:
        OperationError: see `app`.
    """
    partitions = read(link).partitions
    by_name = {part.name: part for part in partitions}
    active = otadata(link).active if otadata_of(partitions) and ota_slots(partitions) else None
    slot = by_name[active] if active else default_app(partitions)
    if slot is None:
        raise OperationError("the partition table has no partition for an app", hint="flash another table")
    return slot


# -- new tables


@operation(Effect.READ)
def create(
    link: Link,
    layout: Layout,
    output_file: str | os.PathLike[str] | None = None,
    *,
    flash_size: int | str | None = None,
    overwrite: bool = False,
) -> BuiltTable:
    """Make a partition table for this board, and flash nothing (see `write`).

    Args:
        layout: a usual layout by its name (``"two_ota"``, ...), a CSV file or its text, or rows.
        output_file: saves it, too: text if its name ends in ``.csv``, else binary.
        flash_size: in bytes; by default that of the board.
        overwrite: whether *output_file* may exist already.

    Raises:
        OperationError: if the table is wrong (see `table_build.build`), or the file exists or cannot be written.
    """
    return saved(build(layout, _flash_size(link, flash_size)), output_file, overwrite)


@operation(Effect.READ)
def create_ota(
    link: Link,
    app_size: int | str | None = None,
    output_file: str | os.PathLike[str] | None = None,
    *,
    slots: int = 2,
    factory: bool = False,
    storage: str | None = None,
    flash_size: int | str | None = None,
    overwrite: bool = False,
) -> BuiltTable:
    """Make a partition table for updates over the air, and flash nothing.

    Args:
        app_size: of every app; by default as much as there is room for.
        output_file: see `create`.
        slots: how many OTA partitions there are.
        factory: whether there is a factory app, too.
        storage: littlefs, spiffs or fat: a file system in what is left.
        flash_size: in bytes; by default that of the board.
        overwrite: whether *output_file* may exist already.

    Raises:
        OperationError: if there is no room, or the file exists or cannot be written.
    """
    size = _flash_size(link, flash_size)
    return saved(build_ota(size, app_size, slots=slots, factory=factory, storage=storage), output_file, overwrite)


def saved(table: BuiltTable, output_file: str | os.PathLike[str] | None, overwrite: bool) -> BuiltTable:
    """Save a table as text or binary, by the ending of the file's name, and return it."""
    if output_file is not None:
        path = new_file(output_file, overwrite)
        flash.save(path, table.csv.encode() if path.suffix == ".csv" else table.data)
    return table


def _flash_size(link: Link, given: int | str | None) -> int:
    if given is not None:
        return size_argument(given, "flash size")
    chip, size = _chip_and_size(link)
    if size >= ADDRESS_SPACE:
        raise OperationError(f"the size of the flash of this {chip} is unknown", hint="give flash_size")
    return size


def _chip_and_size(link: Link) -> tuple[str, int]:
    with reach(link, "auto", "looking at the flash") as access:
        return access.chip, access.size


@dataclass(frozen=True)
class TableWrite:
    """What flashing a table did.

    Attributes:
        table_offset: where it lies now.
        state: ``"written"`` or, if it was there already, ``"unchanged"``.
        orphaned: names of old partitions with contents that no partition of the new table has at the same place.
        partitions: of the new table.
    """

    table_offset: int
    state: Literal["written", "unchanged"]
    orphaned: tuple[str, ...]
    partitions: tuple[Partition, ...]


@operation(Effect.ERASE)
def write(
    link: Link, table: Layout | bytes, *, table_offset: int | str | None = None, discard_data: bool = False
) -> TableWrite:
    """Write a partition table. The partitions' contents stay as they are.

    Args:
        table: the binary or its file; or whatever `create` takes.
        table_offset: of the table; by default where the old one lies, else 0x8000.
        discard_data: flash it even if data of the old table would belong to no partition any more.

    Raises:
        OperationError: if the table is wrong, does not fit into the flash, or would orphan data; or flash is encrypted.
    """
    _refuse_encrypted(link)
    old = _old_table(link)
    place = old.offset if old else _DEFAULT_OFFSET
    offset = place if table_offset is None else size_argument(table_offset, "offset of the table")
    size = _flash_size(link, None)
    data = _binary(table)
    if data is None:
        assert not isinstance(table, bytes)
        data = build(table, size, table_offset=offset).data
    partitions = parse(data)
    _check_places(partitions, offset, size)
    orphaned = tuple(part.name for part in _orphans(link, old.partitions if old else (), partitions))
    if orphaned and not discard_data:
        raise OperationError(
            f"the new table has no place for what is in {', '.join(orphaned)}",
            hint="keep these partitions (name, type, offset, and at least their size), or flash it with discard_data",
            details={"orphaned": list(orphaned)},
        )
    result = flash.write(link, data.ljust(SECTOR, b"\xff"), offset)
    return TableWrite(offset, "written" if result.bytes_written else "unchanged", orphaned, partitions)


def _old_table(link: Link) -> Partitions | None:
    try:
        return read(link)
    except OperationError:
        return None  # none, or a damaged one: nothing can be said about what is where


def _binary(table: Layout | bytes) -> bytes | None:
    """Return a table that is given as binary; None if it is to be built."""
    if isinstance(table, bytes):
        return table
    if isinstance(table, (str, os.PathLike)) and Path(table).suffix == ".bin":
        try:
            return resolve(table).read_bytes()
        except OSError as error:
            raise OperationError(f"{table} cannot be read: {error.strerror}") from error
    return None


def _check_places(partitions: Sequence[Partition], offset: int, flash_size: int) -> None:
    if not partitions:
        raise OperationError("the partition table is empty")
    if offset % SECTOR:
        raise OperationError(f"a partition table cannot lie at {offset:#x}", hint="a multiple of 0x1000")
    last = max(partitions, key=lambda part: part.offset + part.size)
    if last.offset + last.size > flash_size:
        raise OperationError(
            f"{last.name} ends at {last.offset + last.size:#x}, beyond the flash of {flash_size:#x} bytes",
            hint="make a table for this flash size",
        )
    for part in partitions:
        if part.offset < offset + SECTOR and offset < part.offset + part.size and part.type != "partition_table":
            raise OperationError(f"{part.name} at {part.offset:#x} overlaps the table itself at {offset:#x}")


def _refuse_encrypted(link: Link) -> None:
    from pytest_esp.operations.security import posture

    if link.board.direct_flash() is not None or _chip_and_size(link)[0] == "esp8266":
        return  # the flash file of a machine is not reached past eFuses that guard it; and who has none needs no look
    if posture(link).flash_encryption:
        raise OperationError(
            "flash is encrypted: a plain table would not be understood",
            hint="encrypt the table for its offset (espsecure encrypt-flash-data), and flash that",
        )


def _orphans(link: Link, old: Sequence[Partition], new: Sequence[Partition]) -> list[Partition]:
    def kept(part: Partition) -> bool:
        return any(
            (other.offset, other.type) == (part.offset, part.type)
            and other.size >= part.size
            and (part.type == "app" or (other.name, other.subtype) == (part.name, part.subtype))
            for other in new
        )

    # What can be made anew belongs to no user: otadata (which slot starts), and the calibration of the radio.
    made_anew = {("data", "ota"), ("data", "phy")}
    lost = [part for part in old if not kept(part) and (part.type, part.subtype) not in made_anew]
    return [part for part in lost if not _is_blank(link, part.offset, part.size)]


def _is_blank(link: Link, offset: int, size: int) -> bool:
    """Ask the chip itself: an MD5 costs no transfer."""
    blank = hashlib.md5(b"\xff" * size, usedforsecurity=False).hexdigest()
    return flash.md5(link, offset, size).md5 == blank


@dataclass(frozen=True)
class OtaSetup:
    """A board that is ready for updates over the air.

    Attributes:
        table: what flashing the table did.
        app_size: the room for each app, in bytes.
        otadata_erased: whether otadata had to be erased; the bootloader then begins with the factory app or ota_0.
        bootloader: the chip that the bootloader in flash is for; None if there is none.
        app: in the partition that is started first; None if it has to be flashed still.
        warnings: what is missing until it starts.
    """

    table: TableWrite
    app_size: int
    otadata_erased: bool
    bootloader: str | None
    app: App | None
    warnings: tuple[str, ...]


@operation(Effect.ERASE)
def setup_ota(
    link: Link,
    app_size: int | str | None = None,
    *,
    slots: int = 2,
    factory: bool = False,
    storage: str | None = None,
    discard_data: bool = False,
) -> OtaSetup:
    """Make a board ready for updates over the air: table, blank otadata, and a look at bootloader and app.

    Args:
        app_size: of every app; by default as much as there is room for.
        slots: how many OTA partitions there are.
        factory: whether there is a factory app, too.
        storage: littlefs, spiffs or fat: a file system in what is left.
        discard_data: see `write`.

    Raises:
        OperationError: see `write` and `create_ota`.
    """
    table = build_ota(_flash_size(link, None), app_size, slots=slots, factory=factory, storage=storage)
    place = otadata_of(table.partitions)
    first = default_app(table.partitions)
    assert place is not None
    assert first is not None
    written = write(link, table.data, table_offset=table.table_offset, discard_data=discard_data)
    erased = not _is_blank(link, place.offset, place.size)
    if erased:
        flash.erase(link, place.offset, place.size)
    chip, _ = _chip_and_size(link)
    bootloader = chip_of(flash.read(link, CHIP_DEFS[chip].BOOTLOADER_FLASH_OFFSET, APP_HEAD_SIZE).data)
    found = app_of(flash.read(link, first.offset, APP_HEAD_SIZE).data)
    missing = {
        "there is no bootloader in flash": bootloader is None,
        f"the bootloader is for {bootloader}": bootloader not in (None, chip),
        f"there is no app in {first.name} at {first.offset:#x}": found is None,
    }
    warnings = tuple(words for words, holds in missing.items() if holds)
    return OtaSetup(written, ota_slots(table.partitions)[0].size, erased, bootloader, found, warnings)


# -- what is in them


@dataclass(frozen=True)
class PartitionContents:
    """What is in a partition.

    Attributes:
        kind: ``"blank"``; ``"app"`` (an image that says what it is); ``"image"`` (one that does not); ``"data"``.
        used: bytes up to the last one that is not 0xFF; *fill* is that part of its size, 0 to 1.
        app: what an app says of itself.
        active: whether the bootloader tries it first.
    """

    partition: Partition
    kind: Literal["blank", "app", "image", "data"]
    used: int
    fill: float
    app: App | None
    active: bool


@dataclass(frozen=True)
class PartitionAnalysis:
    """The table, what is in its partitions, and the gaps of the flash (address, size) that belong to none."""

    table_offset: int
    checked: bool
    flash_size: int
    partitions: tuple[PartitionContents, ...]
    gaps: tuple[tuple[int, int], ...]


@operation(Effect.READ)
def analyze(link: Link) -> PartitionAnalysis:
    """Return what is in every partition: blank or how full, which app, which one starts; and what belongs to none.

    A blank partition is known by the chip's MD5; others are read, which takes a while for large ones on a real board.

    Raises:
        OperationError: if there is no table, or it is damaged.
    """
    table = read(link)
    size = _flash_size(link, None)
    slot = app_slot(link).name if default_app(table.partitions) else None
    contents = tuple(_contents(link, part, part.name == slot) for part in table.partitions)
    return PartitionAnalysis(table.offset, table.checked, size, contents, _gaps(table, size))


def _contents(link: Link, part: Partition, active: bool) -> PartitionContents:
    if _is_blank(link, part.offset, part.size):
        return PartitionContents(part, "blank", 0, 0.0, None, active)
    data = flash.read(link, part.offset, part.size).data
    used = len(data.rstrip(b"\xff"))
    found = app_of(data)
    kind = "app" if found else "image" if chip_of(data) else "data"
    return PartitionContents(part, kind, used, round(used / part.size, 4), found, active)


def _gaps(table: Partitions, flash_size: int) -> tuple[tuple[int, int], ...]:
    """Return what lies behind the table and in no partition; before it is the bootloader."""
    gaps: list[tuple[int, int]] = []
    end = table.offset + SECTOR
    for part in sorted(table.partitions, key=lambda item: item.offset):
        if part.offset > end:
            gaps.append((end, part.offset - end))
        end = max(end, part.offset + part.size)
    if end < flash_size:
        gaps.append((end, flash_size - end))
    return tuple(gaps)
