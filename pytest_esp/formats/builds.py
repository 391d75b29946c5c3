"""Finds the builds of ESP-IDF, Arduino and PlatformIO, and single images.

Only file names, listings and headers are read; `firmware` loads the builds.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from esp_idf_defs.app_description import AppDescription
from esptool.targets import CHIP_DEFS

from pytest_esp.errors import FirmwareError, OperationError
from pytest_esp.formats.files import allows, resolve
from pytest_esp.formats.hex_and_uf2 import is_container, parts_of
from pytest_esp.formats.images import APP_HEAD_SIZE, app_of, chip_of, is_of_8266
from pytest_esp.formats.partition_table import MAGIC as TABLE_MAGIC
from pytest_esp.formats.partition_table import Partition, default_app, otadata_of, parse
from pytest_esp.formats.regions import Source, check_regular, contents_of, joined, unreadable

USUAL_APP_OFFSET = 0x10000
"""The app's address in the default partition tables of ESP-IDF, Arduino and PlatformIO."""

_TABLE_OFFSET = 0x8000
_TABLE_SEARCH = range(0x1000, 0x20000, 0x1000)
_BOOTLOADER_OFFSETS = tuple(sorted({rom.BOOTLOADER_FLASH_OFFSET for rom in CHIP_DEFS.values()}))
_BOOTLOADER_DESCRIPTOR_MAGIC = 0x50  # esp_bootloader_desc_t of ESP-IDF
_ELF_MAGIC = b"\x7fELF"


@dataclass(frozen=True)
class Build:
    """A build that was found, but not loaded yet.

    Attributes:
        chip: the chip; None if neither a listing nor an image gives it.
        files: the files by address.
        app_offset: the app's address, if known.
        lone_app: see `Firmware.needs_slot`.
    """

    path: Path
    chip: str | None
    files: tuple[tuple[int | str, Source], ...]
    elf: Path | None = None
    app_offset: int | None = None
    lone_app: bool = False


def builds_in(path: Path) -> list[Build]:
    """Return the builds at *path* (see `Firmware.open`), reading only headers and listings.

    Raises:
        FirmwareError: if there is none.
    """
    try:
        return _builds_in(resolve(path))
    except OSError as error:
        raise FirmwareError(f"{error.filename or path} cannot be read: {error.strerror}") from error


def _builds_in(path: Path) -> list[Build]:
    # Unlike Path.is_file, os.path.isfile and isdir do not raise for invalid names.
    if os.path.isfile(path):
        return [_image_file(path)]
    if not os.path.isdir(path):
        raise FirmwareError(f"the firmware {path} does not exist", hint="build the project, or use another path")
    if (build := _build_folder(path)) is not None:
        return [build]
    folders = sorted(
        folder for parent in (path, path / "build", path / ".pio" / "build") for folder in _folders_in(resolve(parent))
    )
    found = [build for folder in folders if (build := _build_folder(folder)) is not None]
    if not found:
        raise _no_build(path)
    return found


def _folders_in(parent: Path) -> list[Path]:
    """Return the folders in a folder, without links to places that may not be opened."""
    entries = parent.iterdir() if os.path.isdir(parent) else ()
    return [entry for entry in entries if os.path.isdir(entry) and allows(entry)]


def _if_file(path: Path) -> Path | None:
    """Return *path* if the file exists, else None."""
    place = resolve(path)
    return place if place.is_file() else None


def _no_build(path: Path) -> FirmwareError:
    elf = next(iter(sorted(path.glob("*.elf"))), None)
    if elf is not None:
        return _only_an_elf(elf)
    return FirmwareError(
        f"{path} does not contain a build: no flasher_args.json, and no Arduino or PlatformIO build was found",
        hint="use the folder `build`, or an address and a file",
    )


def _only_an_elf(elf: Path) -> FirmwareError:
    return FirmwareError(
        f"{elf} is an ELF file, which cannot be flashed, and there is no image next to it",
        hint="use the build folder, or make an image: esptool --chip CHIP elf2image FILE",
    )


def _build_folder(folder: Path) -> Build | None:
    return _platformio(folder) or _esp_idf(folder) or _arduino(folder) or _single_image(folder)


def _esp_idf(folder: Path) -> Build | None:
    """Return the build that ESP-IDF's ``flasher_args.json`` lists."""
    listing = folder / "flasher_args.json"
    if _if_file(listing) is None:
        return None
    content = _json(listing)
    try:
        files = cast(dict[int | str, str], content["flash_files"])
        pairs = tuple((address, resolve(name, named_by=listing)) for address, name in files.items())
        chip = content.get("extra_esptool_args", {}).get("chip")
        if not isinstance(chip, str | None):
            raise TypeError(f"chip is {chip!r}")
        app_offset = content.get("app", {}).get("offset")
        offset = None if app_offset is None else int(app_offset, 0)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FirmwareError(f"{listing} is damaged: {error!r}", hint="build the project again") from error
    chip = chip or next((found for _, file in pairs if (found := chip_of(_head(file)))), None)
    return Build(folder, chip, pairs, elf=_idf_elf(folder), app_offset=offset)


def _idf_elf(folder: Path) -> Path | None:
    description = folder / "project_description.json"
    name = _json(description).get("app_elf") if _if_file(description) is not None else None
    if isinstance(name, str) and (elf := resolve(name, named_by=description)).is_file():
        return elf
    return _only(folder.glob("*.elf"))


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(contents_of(path))
    except (ValueError, RecursionError) as error:
        raise FirmwareError(f"{path} is damaged: {error}", hint="build the project again") from error
    if not isinstance(content, dict):
        raise FirmwareError(f"{path} is damaged: expected a JSON object", hint="build the project again")
    return cast(dict[str, Any], content)


def _only(paths: Iterator[Path]) -> Path | None:
    found = sorted(path for path in paths if path.is_file())
    return resolve(found[0]) if len(found) == 1 else None


def _platformio(folder: Path) -> Build | None:
    """Return a PlatformIO build: the program, as ELF and image, with its bootloader and partition table.

    PlatformIO's builds for ESP-IDF also have a ``flasher_args.json``, but it lists images that do not exist.
    """
    elf = _only(folder.glob("*.elf"))
    names = (folder / "bootloader.bin", folder / "partitions.bin", elf and elf.with_suffix(".bin"))
    bootloader, table, app = (name and _if_file(name) for name in names)
    if bootloader is None or table is None or app is None:
        return None
    return _assemble(folder, bootloader, table, app, elf)


def _arduino(folder: Path) -> Build | None:
    """Return an Arduino build: ``NAME.ino.bin`` and, except on the ESP8266, its bootloader and partition table."""
    app = _only(folder.glob("*.ino.bin"))
    if app is None:
        return None
    bootloader, table = _if_file(app.with_suffix(".bootloader.bin")), _if_file(app.with_suffix(".partitions.bin"))
    if bootloader is not None and table is not None:
        return _assemble(folder, bootloader, table, app, _if_file(app.with_suffix(".elf")))
    return replace(_image_file(app), path=folder)


def _single_image(folder: Path) -> Build | None:
    """Return a build with one image: Arduino's merged image, or PlatformIO's program for the ESP8266."""
    image = _only(folder.glob("*.merged.bin"))
    if image is None and (elf := _only(folder.glob("*.elf"))) is not None:
        image = elf.with_suffix(".bin")
    return replace(_image_file(image), path=folder) if image is not None and image.is_file() else None


def _assemble(folder: Path, bootloader: Path, table: Path, app: Path, elf: Path | None) -> Build:
    """Return a build without a listing: the offsets follow from the chip and the partition table."""
    chip = chip_of(_head(bootloader)) or chip_of(_head(app))
    if chip is None:
        raise FirmwareError(
            f"{app} does not contain a chip ID", hint="check that it is an image; build the project again"
        )
    partitions = _partitions(table)
    slot = default_app(partitions)
    if slot is None:
        raise FirmwareError(f"{table} has no app partition")
    files: list[tuple[int | str, Source]] = [
        (CHIP_DEFS[chip].BOOTLOADER_FLASH_OFFSET, bootloader),
        (_TABLE_OFFSET, table),
        (slot.offset, app),
    ]
    otadata = otadata_of(partitions)
    if otadata is not None:
        # With blank otadata the bootloader starts the first slot, whatever an earlier update has selected.
        selection = _if_file(folder / "boot_app0.bin")
        files.append((otadata.offset, b"\xff" * otadata.size if selection is None else selection))
    return Build(folder, chip, tuple(files), elf=elf, app_offset=slot.offset)


def _partitions(table: Path) -> tuple[Partition, ...]:
    try:
        return parse(contents_of(table))
    except OperationError as error:
        raise FirmwareError(f"{table}: {error.message}", hint="build the project again") from error


# -- single images


def _image_file(path: Path) -> Build:
    """Return the build in an image file: a whole flash from address 0, or only an app."""
    data = _head(path, _TABLE_SEARCH.stop)
    if data.startswith(_ELF_MAGIC):
        raise _only_an_elf(path)
    if is_container(data):
        return _container(path)
    elf_or_none = _if_file(path.with_suffix(".elf"))
    if app_of(data) is not None:
        return Build(path, chip_of(data), ((USUAL_APP_OFFSET, path),), elf_or_none, lone_app=True)
    if is_of_8266(data):
        return Build(path, "esp8266", ((0, path),), elf_or_none)
    if (merged_for := _chip_of_merged(data)) is not None:
        return Build(path, merged_for, ((0, path),), _elf_of_merged(path))
    if (made_for := chip_of(data)) is None:
        raise FirmwareError(
            f"{path} needs an address: it is neither an app image nor a whole flash",
            hint="specify its flash address, e.g. 0x10000",
        )
    if data[AppDescription.FIRMWARE_BINARY_OFFSET] == _BOOTLOADER_DESCRIPTOR_MAGIC:
        raise FirmwareError(
            f"{path} is a bootloader",
            hint=f"write it to {CHIP_DEFS[made_for].BOOTLOADER_FLASH_OFFSET:#x}, or use an app image",
        )
    return Build(path, made_for, ((USUAL_APP_OFFSET, path),), elf_or_none, lone_app=True)


def _container(path: Path) -> Build:
    """Return the build in an Intel HEX or UF2 file, with the address of each part."""
    files = joined(parts_of(contents_of(path), str(path)), str(path))
    chips = {chip for _, data in files if (chip := chip_of(data[:APP_HEAD_SIZE])) is not None}
    if len(chips) > 1:
        raise FirmwareError(f"{path} has images for different chips: {', '.join(sorted(chips))}", hint="build it again")
    return Build(path, next(iter(chips), None), tuple(files), _if_file(path.with_suffix(".elf")))


def _chip_of_merged(data: bytes) -> str | None:
    """Return the chip of a whole-flash image, from a bootloader at its address and a partition table."""
    for offset in _BOOTLOADER_OFFSETS:
        chip = chip_of(data[offset : offset + APP_HEAD_SIZE])
        if chip is not None and offset == CHIP_DEFS[chip].BOOTLOADER_FLASH_OFFSET:
            has_table = any(data.startswith(TABLE_MAGIC, sector) for sector in _TABLE_SEARCH)
            return chip if has_table else None
    return None


def _elf_of_merged(path: Path) -> Path | None:
    return _if_file(path.with_name(path.name.removesuffix(".bin").removesuffix(".merged") + ".elf"))


def _head(path: Path, size: int = APP_HEAD_SIZE) -> bytes:
    path = resolve(path)
    check_regular(path)
    try:
        with path.open("rb") as file:
            return file.read(size)
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
