"""Creates partition tables, and writes them to a board."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from esptool.targets import CHIP_DEFS

from pytest_esp.errors import OperationError
from pytest_esp.formats.file_kinds import look
from pytest_esp.formats.files import FileName, WritePath, known_chip, new_file, resolve, save
from pytest_esp.formats.flash_settings import FlashSettings
from pytest_esp.formats.images import APP_HEAD_SIZE, App, app_of, chip_of
from pytest_esp.formats.partition_layouts import LAYOUTS, BuiltTable, Layout, Storage, build, build_ota
from pytest_esp.formats.partition_table import Partition, default_app, ota_slots, otadata_of, parse
from pytest_esp.formats.regions import SECTOR, size_argument
from pytest_esp.link.link import Link
from pytest_esp.names import ChipName
from pytest_esp.operations.flash import reading, tables, writing
from pytest_esp.operations.flash.header import beyond_header, size_name, with_settings
from pytest_esp.operations.registry import Effect, file_operation, operation
from pytest_esp.operations.results import Address
from pytest_esp.operations.security.posture import posture

_SIGNATURE = b"\xe7"  # of secure boot v2, in the sector after the image


@file_operation(group="partitions")
def create(
    layout: Layout,
    output_file: WritePath | None = None,
    *,
    flash_size: int | str = "4MB",
    table_offset: int | str = tables.DEFAULT_OFFSET,
    chip_type: ChipName | None = None,
    overwrite: bool = False,
) -> BuiltTable:
    """Create a partition table, checked for overlaps, alignment, names and the size of the flash.

    Args:
        layout: a predefined layout by name (single_factory, single_factory_large, single_factory_all, two_ota,
            two_ota_littlefs, factory_two_ota), a CSV file or its text, or rows with name, type, subtype, size and,
            optionally, offset and flags (encrypted, readonly). Rows may also be given together with a flash_size and a
            table_offset, e.g. {"flash_size": "8MB", "partitions": [...]}.
        output_file: save the table to this file: as text if its name ends in .csv, else binary.
        flash_size: in bytes, or e.g. 8MB.
        table_offset: address in flash of the table itself.
        chip_type: chip that it is for, e.g. esp32c3; only needed for rows of type bootloader, whose address it gives.
        overwrite: replace *output_file* if it exists.

    Raises:
        OperationError: if the table is invalid (see `partition_layouts.build`), or the file cannot be written.
    """
    chip = known_chip(chip_type) if chip_type is not None else None
    return _saved(build(layout, flash_size, table_offset=table_offset, chip=chip), output_file, overwrite)


@file_operation(group="partitions")
def create_ota(
    flash_size: int | str = "4MB",
    app_size: int | str | None = None,
    output_file: WritePath | None = None,
    *,
    slots: int = 2,
    factory: bool = False,
    storage: Storage | None = None,
    overwrite: bool = False,
) -> BuiltTable:
    """Create a partition table for updates over the air.

    Args:
        flash_size: in bytes, or e.g. 8MB.
        app_size: size of each app partition, in bytes or e.g. 1MB; by default as large as possible.
        output_file: save the table to this file: as text if its name ends in .csv, else binary.
        slots: number of OTA partitions, 2 to 16.
        factory: add a factory app partition.
        storage: file system for the remaining space.
        overwrite: replace *output_file* if it exists.

    Raises:
        OperationError: if there is not enough space, or the file exists or cannot be written.
    """
    return _saved(
        build_ota(flash_size, app_size, slots=slots, factory=factory, storage=storage), output_file, overwrite
    )


def _saved(table: BuiltTable, output_file: FileName | None, overwrite: bool) -> BuiltTable:
    if output_file is None:
        return table
    path = new_file(output_file, overwrite)
    save(path, table.csv.encode() if path.suffix == ".csv" else table.data)
    return replace(table, output_file=path)


@dataclass(frozen=True)
class TableWrite:
    """The result of flashing a table.

    Attributes:
        table_offset: its address in flash.
        state: ``"written"``, or ``"unchanged"`` if it was in flash already.
        orphaned: names of old partitions with contents that have no matching partition in the new table.
        partitions: of the new table.
        warnings: why the bootloader in flash will not accept the table.
    """

    table_offset: Address
    state: Literal["written", "unchanged"]
    orphaned: tuple[str, ...]
    partitions: tuple[Partition, ...]
    warnings: tuple[str, ...]


@operation(Effect.ERASE, group="partitions")
def write(
    link: Link, table: Layout | bytes, *, table_offset: int | str | None = None, discard_data: bool = False
) -> TableWrite:
    """Write a partition table to flash. The contents of the partitions are not changed.

    Args:
        table: a file (.bin or .csv), a layout by name, the text of a CSV file, or rows.
        table_offset: address of the table; by default that of the old table, else 0x8000.
        discard_data: write the table even if partitions with contents have no matching partition in it.

    Raises:
        OperationError: if the table is invalid, exceeds the flash, or would orphan data; or if flash is encrypted.
    """
    _refuse_encrypted(link)
    old = _old_table(link)
    place = old.offset if old else tables.DEFAULT_OFFSET
    offset = place if table_offset is None else size_argument(table_offset, "offset of the table")
    size = reading.flash_size(link)
    data = _contents(table, size, offset, reading.chip_of_flash(link))
    partitions = parse(data)
    _check_places(partitions, offset, size)
    orphaned = tuple(part.name for part in _orphans(link, old.partitions if old else (), partitions))
    if orphaned and not discard_data:
        raise OperationError(
            f"the new table has no matching partition for the contents of {', '.join(orphaned)}",
            hint="keep these partitions (name, type, offset, and at least their size), or set discard_data",
            details={"orphaned": list(orphaned)},
        )
    result = writing.write(link, data.ljust(SECTOR, b"\xff"), offset)
    state = "written" if result.bytes_written else "unchanged"
    return TableWrite(offset, state, orphaned, partitions, beyond_header(link, partitions))


def _old_table(link: Link) -> tables.Partitions | None:
    try:
        return tables.read(link)
    except OperationError:
        return None  # without a valid table, the location of data is unknown


def _contents(table: Layout | bytes, flash_size: int, table_offset: int, chip: str) -> bytes:
    """Return a table as bytes: as given, from a binary file, or created."""
    if isinstance(table, bytes):
        return table
    is_text = isinstance(table, str) and (table in LAYOUTS or "," in table or "\n" in table)
    if is_text or not isinstance(table, (str, os.PathLike)) or Path(table).suffix == ".csv":
        return build(table, flash_size, table_offset=table_offset, chip=chip).data
    try:
        return resolve(table).read_bytes()
    except OSError as error:
        hint = f"give a .bin or .csv file, or a layout: {', '.join(LAYOUTS)}"
        raise OperationError(f"{table} cannot be read: {error.strerror}", hint=hint) from error


def _check_places(partitions: Sequence[Partition], offset: int, flash_size: int) -> None:
    if not partitions:
        raise OperationError("the partition table is empty")
    if offset % SECTOR:
        raise OperationError(f"invalid partition table offset {offset:#x}", hint="use a multiple of 0x1000")
    last = max(partitions, key=lambda part: part.offset + part.size)
    if last.offset + last.size > flash_size:
        raise OperationError(
            f"{last.name} ends at {last.offset + last.size:#x}, beyond the flash of {flash_size:#x} bytes",
            hint="use a table for this flash size",
        )
    for part in partitions:
        if part.offset < offset + SECTOR and offset < part.offset + part.size and part.type != "partition_table":
            raise OperationError(f"{part.name} at {part.offset:#x} overlaps the partition table at {offset:#x}")


def _refuse_encrypted(link: Link) -> None:
    if link.board.direct_flash() is not None or reading.chip_of_flash(link) == "esp8266":
        return  # a flash file is used only if no eFuses guard the flash; an ESP8266 has no flash encryption
    if posture(link).flash_encryption:
        raise OperationError(
            "flash is encrypted: the chip cannot read a plaintext table",
            hint="encrypt the table for its offset (espsecure encrypt-flash-data), and flash the result",
        )


def _orphans(link: Link, old: Sequence[Partition], new: Sequence[Partition]) -> list[Partition]:
    def kept(part: Partition) -> bool:
        return any(
            (other.offset, other.type) == (part.offset, part.type)
            and other.size >= part.size
            and (part.type == "app" or (other.name, other.subtype) == (part.name, part.subtype))
            for other in new
        )

    # These hold no user data: otadata (which slot starts), the calibration of the radio, and what stays where it is.
    made_anew = {("data", "ota"), ("data", "phy"), ("bootloader", "primary"), ("partition_table", "primary")}
    lost = [part for part in old if not kept(part) and (part.type, part.subtype) not in made_anew]
    return [part for part in lost if not reading.is_blank(link, part.offset, part.size)]


@dataclass(frozen=True)
class OtaSetup:
    """A board prepared for updates over the air.

    Attributes:
        table: the result of flashing the table.
        app_size: size of each app partition, in bytes.
        otadata_erased: whether otadata had to be erased; the bootloader then starts the factory app or ota_0.
        bootloader: the chip that the bootloader in flash is for; None if there is no bootloader.
        header_changed: whether the flash size in the bootloader's header was smaller than the table needs, and is now
            the size of this flash; a bootloader that is signed, or locked by secure boot, is not changed.
        app: in the partition that is started first; None if it must still be flashed.
        warnings: what is missing before it can start.
    """

    table: TableWrite
    app_size: int
    otadata_erased: bool
    bootloader: str | None
    header_changed: bool
    app: App | None
    warnings: tuple[str, ...]


@operation(Effect.ERASE, group="partitions")
def setup_ota(
    link: Link,
    app_size: int | str | None = None,
    *,
    slots: int = 2,
    factory: bool = False,
    storage: Storage | None = None,
    discard_data: bool = False,
) -> OtaSetup:
    """Prepare a board for updates over the air: flash a table, clear otadata, and check bootloader and app.

    If the table needs more than the flash size in the bootloader's header, that is changed to the size of this flash.

    Args:
        app_size: size of each app partition, in bytes or e.g. 1MB; by default as large as possible.
        slots: number of OTA partitions, 2 to 16.
        factory: add a factory app partition.
        storage: file system for the remaining space.
        discard_data: write the table even if partitions with contents have no matching partition in it.

    Raises:
        OperationError: see `write` and `create_ota`.
    """
    table = build_ota(reading.flash_size(link), app_size, slots=slots, factory=factory, storage=storage)
    place = otadata_of(table.partitions)
    first = default_app(table.partitions)
    assert place is not None
    assert first is not None
    written = write(link, table.data, table_offset=table.table_offset, discard_data=discard_data)
    changed = bool(written.warnings) and _set_flash_size(link, table.table_offset)
    erased = not reading.is_blank(link, place.offset, place.size)
    if erased:
        writing.erase(link, place.offset, place.size)
    chip = reading.chip_of_flash(link)
    bootloader = chip_of(reading.read(link, CHIP_DEFS[chip].BOOTLOADER_FLASH_OFFSET, APP_HEAD_SIZE).data)
    found = app_of(reading.read(link, first.offset, APP_HEAD_SIZE).data)
    missing = {
        "there is no bootloader in flash": bootloader is None,
        f"the bootloader is for {bootloader}": bootloader not in (None, chip),
        f"there is no app in {first.name} at {first.offset:#x}": found is None,
    }
    left = () if changed else written.warnings
    warnings = (*(words for words, holds in missing.items() if holds), *left)
    return OtaSetup(written, ota_slots(table.partitions)[0].size, erased, bootloader, changed, found, warnings)


def _set_flash_size(link: Link, table_offset: int) -> bool:
    """Set the flash size in the bootloader's header as ``esptool write-flash --flash-size detect`` does.

    Return whether it was set: not if the bootloader is signed, or the flash size has no code in the header.
    """
    chip, size = reading.chip_of_flash(link), reading.flash_size(link)
    start, name = CHIP_DEFS[chip].BOOTLOADER_FLASH_OFFSET, size_name(chip, size)
    area = reading.read(link, start, table_offset - start).data
    images = look(area).images[:1]
    end = images[0].end if images and not images[0].offset else 0
    is_signed = area.startswith(_SIGNATURE, -(-end // SECTOR) * SECTOR)
    if name is None or not end or is_signed or (link.board.direct_flash() is None and posture(link).secure_boot):
        return False
    image = area[:end]
    writing.write(link, with_settings(image, "the bootloader in flash", chip, FlashSettings(size=name)), start)
    return True
