"""Finds the builds of ESP-IDF, Arduino and PlatformIO, and single images.

Only file names, listings and headers are read; `firmware` loads the builds.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath

from esp_idf_defs.otadata import OtaDataSelectEntry, OtaImageState
from esptool.targets import CHIP_DEFS

from pytest_esp.errors import FirmwareError, OperationError
from pytest_esp.formats.file_kinds import FileContents, check_whole, look, why_misplaced
from pytest_esp.formats.files import allows, resolve
from pytest_esp.formats.flash_settings import DETECT, KEEP, FlashSettings
from pytest_esp.formats.hex_and_uf2 import is_container, parts_of
from pytest_esp.formats.images import APP_HEAD_SIZE, chip_of
from pytest_esp.formats.listings import Listing, read_idedata, read_json, read_listing, table_offset_of
from pytest_esp.formats.partition_table import Partition, default_app, ota_slots, otadata_of, parse
from pytest_esp.formats.regions import Source, check_regular, contents_of, joined, unreadable

USUAL_APP_OFFSET = 0x10000
"""The app's address in the default partition tables of ESP-IDF, Arduino and PlatformIO."""

_TABLE_OFFSET = 0x8000
_ELF_MAGIC = b"\x7fELF"
# What Arduino's boot_app0.bin has: the first slot is selected.
_BOOT_APP0 = OtaDataSelectEntry(1, OtaImageState.UNDEFINED).to_bytes().ljust(0x2000, b"\xff")


@dataclass(frozen=True)
class Build:
    """A build that was found, but not loaded yet.

    Attributes:
        chip: the chip; None if neither a listing nor an image gives it.
        files: the files by address.
        app_offset: the app's address, if known.
        lone_app: see `Firmware.needs_slot`.
        settings: see `Firmware.settings`.
    """

    path: Path
    chip: str | None
    files: tuple[tuple[int | str, Source], ...]
    elf: Path | None = None
    app_offset: int | None = None
    lone_app: bool = False
    settings: FlashSettings = KEEP


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
        f"{path} does not contain a build: no flasher_args.json or flash_args, no build of Arduino or PlatformIO",
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
    """Return the build that a listing names: ESP-IDF's, or that of Arduino's core from version 3 on."""
    listing = read_listing(folder)
    if listing is None:
        return None
    files = tuple((address, _listed_file(listing.path, name)) for address, name in listing.files)
    return _listed(folder, listing, files, _only(folder.glob("*.ino.elf")) or _idf_elf(folder))


def _listed(folder: Path, listing: Listing, files: tuple[tuple[int | str, Source], ...], elf: Path | None) -> Build:
    heads = (_head(file) for _, file in files if isinstance(file, Path))
    chip = listing.chip or next((found for head in heads if (found := chip_of(head))), None)
    return Build(folder, chip, files, elf, listing.app_offset, settings=listing.settings)


def _listed_file(listing: Path, name: str) -> Source:
    place = resolve(name, named_by=listing)
    return _BOOT_APP0 if place.name == "boot_app0.bin" and not place.is_file() else place


def _idf_elf(folder: Path) -> Path | None:
    description = folder / "project_description.json"
    name = read_json(description).get("app_elf") if _if_file(description) is not None else None
    if isinstance(name, str) and (elf := resolve(name, named_by=description)).is_file():
        return elf
    return _only(folder.glob("*.elf"))


def _only(paths: Iterator[Path]) -> Path | None:
    found = sorted(path for path in paths if path.is_file())
    return resolve(found[0]) if len(found) == 1 else None


def _platformio(folder: Path) -> Build | None:
    """Return a PlatformIO build: the program, as ELF and image, with its bootloader and partition table.

    The addresses are those of ``idedata.json`` if there is one, or of the listing of the ESP-IDF project in it. That
    names images that do not exist: PlatformIO makes its own.
    """
    elves = [elf for elf in folder.glob("*.elf") if elf.stem != "bootloader" and elf.with_suffix(".bin").is_file()]
    if len(elves) != 1:
        return None
    elf = resolve(elves[0])
    bootloader, table = _if_file(folder / "bootloader.bin"), _if_file(folder / "partitions.bin")
    app = _if_file(elf.with_suffix(".bin"))
    if bootloader is None or table is None or app is None:
        return None
    listing = read_idedata(folder, app.name) or read_listing(folder)
    if listing is None:
        return _assemble(folder, bootloader, table, app, elf)
    own = {"bootloader.bin": bootloader, "partition-table.bin": table, "partitions.bin": table, app.name: app}
    files: list[tuple[int | str, Source]] = []
    for address, name in listing.files:
        own_name = app.name if address == listing.app_offset else PureWindowsPath(name).name
        files.append((address, own.get(own_name) or _listed_file(listing.path, name)))
    return _listed(folder, listing, tuple(files), elf)


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
    otadata, slots = otadata_of(partitions), ota_slots(partitions)
    # Arduino and PlatformIO write the app to ota_0 and select it, also if there is a factory app (of TinyUF2).
    slot = slots[0] if otadata is not None and slots else default_app(partitions)
    if slot is None:
        raise FirmwareError(f"{table} has no app partition")
    files: list[tuple[int | str, Source]] = [
        (CHIP_DEFS[chip].BOOTLOADER_FLASH_OFFSET, bootloader),
        (table_offset_of(folder) or _TABLE_OFFSET, table),
        (slot.offset, app),
    ]
    if otadata is not None:
        # It is always written, so that no earlier update decides which slot starts.
        blank = b"\xff" * otadata.size
        selection = _BOOT_APP0.ljust(otadata.size, b"\xff")[: otadata.size] if slots else blank
        files.append((otadata.offset, _if_file(folder / "boot_app0.bin") or selection))
    # As Arduino and PlatformIO upload: their bootloaders have the size of another board in the header.
    return Build(folder, chip, tuple(files), elf=elf, app_offset=slot.offset, settings=DETECT)


def _partitions(table: Path) -> tuple[Partition, ...]:
    try:
        return parse(contents_of(table))
    except OperationError as error:
        raise FirmwareError(f"{table}: {error.message}", hint="build the project again") from error


# -- single images


def _image_file(path: Path) -> Build:
    """Return the build in an image file: a whole flash, or only an app."""
    data = contents_of(path)
    if data.startswith(_ELF_MAGIC):
        raise _only_an_elf(path)
    if is_container(data):
        return _container(path, data)
    what = look(data)
    check_whole(what, str(path))
    if what.kind == "app" and what.chip != "esp8266":
        return Build(path, what.chip, ((USUAL_APP_OFFSET, path),), _if_file(path.with_suffix(".elf")), lone_app=True)
    if what.first_address is None or what.kind not in ("app", "image", "merged") or _is_of_rom(what):
        raise _unplaced(path, what)
    elf = _if_file(path.with_suffix(".elf")) or _elf_of_merged(path)
    return Build(path, what.chip, ((what.first_address, path),), elf)


def _is_of_rom(what: FileContents) -> bool:
    """Return whether a file is only what the ROM starts; an image for the ESP8266 may be all of a program."""
    return what.kind == "image" and what.chip != "esp8266"


def _unplaced(path: Path, what: FileContents) -> FirmwareError:
    address = what.first_address
    hints = {
        "partition-table": f"specify its flash address, usually {_TABLE_OFFSET:#x}",
        "file-system": "specify the address of its partition",
        "merged": "merge the parts again, each at its address",
    }
    hint = f"write it to {address:#x}, or use an app image" if address is not None else hints.get(what.kind)
    return FirmwareError(
        f"{path} needs an address: it is {what.description}", hint=hint or "specify its flash address, e.g. 0x10000"
    )


def _container(path: Path, data: bytes) -> Build:
    """Return the build in an Intel HEX or UF2 file, with the address of each part."""
    files = joined(parts_of(data, str(path)), str(path))
    found = [(address, look(part)) for address, part in files]
    for _, what in found:
        check_whole(what, str(path))
    chips = {what.chip for _, what in found} - {None}
    if len(chips) > 1:
        raise FirmwareError(
            f"{path} has images for different chips: {', '.join(sorted(map(str, chips)))}", hint="build it again"
        )
    chip, elf = next(iter(chips), None), _if_file(path.with_suffix(".elf"))
    if len(files) == 1 and not files[0][0] and found[0][1].kind == "app" and chip != "esp8266":
        # Made without a base address, as TinyUF2 wants it: the address is relative to the app's slot.
        return Build(path, chip, ((USUAL_APP_OFFSET, files[0][1]),), elf, lone_app=True)
    for address, what in found:
        if (problem := why_misplaced(what, address)) is not None:
            raise FirmwareError(
                f"{path} is not written: {problem}", hint="create it again, with the right base address"
            )
    return Build(path, chip, tuple(files), elf)


def _elf_of_merged(path: Path) -> Path | None:
    return _if_file(path.with_name(path.name.removesuffix(".bin").removesuffix(".merged") + ".elf"))


def _head(path: Path) -> bytes:
    path = resolve(path)
    check_regular(path)
    try:
        with path.open("rb") as file:
            return file.read(APP_HEAD_SIZE)
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
