"""Builds: the images to flash, their chip, and the ELF file for decoding crashes."""

from __future__ import annotations

import functools
import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path

from pytest_esp.errors import FirmwareError
from pytest_esp.formats.builds import Build, builds_in
from pytest_esp.formats.file_kinds import look
from pytest_esp.formats.files import resolve
from pytest_esp.formats.flash_settings import KEEP, FlashSettings
from pytest_esp.formats.images import APP_HEAD_SIZE, App, app_of
from pytest_esp.formats.partition_table import Partition
from pytest_esp.formats.regions import Pairs, Region, Source, make_regions
from pytest_esp.formats.sdkconfig import console_baudrate

_APP_ALIGNMENT = 0x10000  # of app partitions


@dataclass(frozen=True)
class Firmware:
    """Firmware to flash. It is loaded and checked before any board is accessed.

    Attributes:
        regions: the regions, ordered by address.
        chip: esptool's name of its chip; None if unknown.
        path: the build folder or file; None for bytes and pairs.
        elf: the app's ELF file; None if there is none, or only that of another build.
        elf_problem: why the ELF file next to the images is not used.
        app: the app's descriptor; None for data, and for apps without a descriptor.
        console_baud: the baud rate of its console, if the build's configuration says it.
        settings: the flash settings of the build's listing, which are written into the bootloader's header.
        needs_slot: whether it is only an app, at the usual address; the board's partition table has the right one.
    """

    regions: tuple[Region, ...]
    chip: str | None = None
    path: Path | None = None
    elf: Path | None = None
    elf_problem: str | None = None
    app: App | None = None
    settings: FlashSettings = KEEP
    needs_slot: bool = False
    console_baud: int | None = None

    @classmethod
    def open(cls, path: str | os.PathLike[str], chip: str | None = None) -> Firmware:
        """Load the build at *path*.

        This is a build folder of ESP-IDF (``flasher_args.json`` or ``flash_args``), Arduino (``sketch.ino.bin`` and its
        other files) or PlatformIO (``.pio/build/ENV``); a folder with such folders in it, or in its ``build`` or
        ``.pio/build``; a merged image; an Intel HEX or UF2 file; or the image of an app. Every image is checked
        against the size of its partition in the build's table.

        Args:
            path: the folder or file.
            chip: esptool's name of the chip, to select one of several builds.

        Raises:
            FirmwareError: if there is no such build, several match, or one of its files is missing or damaged.
        """
        place = Path(path)
        found = builds_in(place)
        fitting = [build for build in found if chip is None or build.chip in (None, chip)]
        if not fitting:
            chips = ", ".join(sorted({build.chip or "?" for build in found}))
            raise FirmwareError(f"{place} has no build for {chip}, only for {chips}")
        if len(fitting) > 1:
            names = ", ".join(f"{build.path.name} ({build.chip or 'any chip'})" for build in fitting)
            raise FirmwareError(f"{place} has {len(fitting)} matching builds: {names}", hint="use one of these folders")
        return _load_build(fitting[0])

    @property
    def identity(self) -> str:
        """The build's ID, 64 hex digits: the SHA-256 of the app's ELF, else of all data to flash."""
        if self.app is not None and int(self.app.elf_sha256, 16):
            return self.app.elf_sha256
        digest = hashlib.sha256()
        for region in self.regions:
            digest.update(region.address.to_bytes(4, "little") + hashlib.sha256(region.data).digest())
        return digest.hexdigest()

    @property
    def name(self) -> str:
        """The name for messages: project and version, else the path, else the sources."""
        if self.app is not None:
            return f"{self.app.project} {self.app.version}"
        return str(self.path) if self.path is not None else ", ".join(region.source for region in self.regions)

    def in_slot(self, slot: Partition) -> Firmware:
        """Return an app that `needs_slot`, moved to *slot*.

        Raises:
            FirmwareError: if it is too large for the slot.
        """
        (region,) = self.regions
        if region.size > slot.size:
            raise too_large(region.source, region.size, slot)
        return replace(self, regions=(replace(region, address=slot.offset),), needs_slot=False)


Contents = Firmware | Source | Pairs
"""What can be written: an opened build; a build's path; bytes or a file for one address; or pairs of both."""


def load(contents: Contents, address: int | str | None = None) -> Firmware:
    """Return *contents* as firmware.

    Raises:
        FirmwareError: if a file is missing, unreadable or empty, an address is missing or invalid, or regions overlap.
    """
    if isinstance(contents, (bytes, str, os.PathLike)):
        if address is not None:
            return Firmware(make_regions([(address, contents)]))
        if isinstance(contents, bytes):
            raise FirmwareError("the address is missing", hint="specify the flash address, e.g. 0x10000")
        return Firmware.open(contents)
    if address is not None:
        raise FirmwareError("builds and pairs already have addresses", hint=f"omit the address {address}")
    return contents if isinstance(contents, Firmware) else Firmware(make_regions(contents))


def _load_build(build: Build) -> Firmware:
    """Read the files of a build."""
    regions = make_regions(build.files)
    _check_slots(regions)
    app = _app_in(regions, build.app_offset)
    elf_problem = _why_not_its_elf(build.elf, app) if build.elf is not None else None
    return Firmware(
        regions=regions,
        chip=build.chip,
        path=build.path,
        elf=None if elf_problem else build.elf,
        elf_problem=elf_problem,
        app=app,
        settings=build.settings,
        needs_slot=build.lone_app,
        console_baud=console_baudrate(build.path),
    )


def _check_slots(regions: tuple[Region, ...]) -> None:
    """Refuse a build with a file or an image that is larger than its partition in the build's own table."""
    found = [(region, look(region.data)) for region in regions]
    slots = {part.offset: part for _, what in found for part in what.partitions}
    for region, what in found:
        sizes = {region.address + image.offset: image.end - image.offset for image in what.images}
        if what.kind != "merged":
            sizes[region.address] = region.size
        for address, size in sizes.items():
            if (slot := slots.get(address)) is not None and size > slot.size:
                raise too_large(region.source, size, slot)


def too_large(source: str, size: int, slot: Partition) -> FirmwareError:
    """Return the error for a file that exceeds its partition."""
    return FirmwareError(
        f"{source} has {size:#x} bytes, but partition {slot.name} has only {slot.size:#x}",
        hint="make the partition larger, or use the partition table of this build; nothing was written",
    )


def _app_in(regions: tuple[Region, ...], offset: int | None) -> App | None:
    """Return the descriptor of the app at *offset*, or of the first app at a valid address of an app partition."""
    for region in regions:
        first = -(-region.address // _APP_ALIGNMENT) * _APP_ALIGNMENT
        for address in range(first, region.end, _APP_ALIGNMENT):
            start = address - region.address
            if offset in (None, address) and (app := app_of(region.data[start : start + APP_HEAD_SIZE])) is not None:
                return app
    return None


def _why_not_its_elf(elf: Path, app: App | None) -> str | None:
    if app is None or not int(app.elf_sha256, 16):
        return None
    try:
        stat = elf.stat()
        found = _sha256(elf, stat.st_mtime_ns, stat.st_size)
    except OSError as error:
        return f"{elf} cannot be read: {error.strerror}"
    if found == app.elf_sha256:
        return None
    return (
        f"{elf} is not the ELF file of this app: its SHA-256 begins with {found[:9]}, "
        f"but the app's descriptor has {app.elf_sha256[:9]}; build the project again"
    )


@functools.lru_cache(maxsize=64)
def _sha256(path: Path, _changed: int, _size: int) -> str:
    with resolve(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
