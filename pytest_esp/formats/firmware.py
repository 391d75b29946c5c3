"""A build of an app: the images to flash, the chip they are for, and the ELF file that decodes its crashes."""

from __future__ import annotations

import functools
import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path

from pytest_esp.errors import FirmwareError
from pytest_esp.formats.builds import Build, builds_in
from pytest_esp.formats.files import resolve
from pytest_esp.formats.images import APP_HEAD_SIZE, App, app_of
from pytest_esp.formats.partition_table import Partition
from pytest_esp.formats.regions import Pairs, Region, Source, make_regions

_APP_ALIGNMENT = 0x10000  # of app partitions


@dataclass(frozen=True)
class Firmware:
    """What is to be flashed, loaded and checked before any board is touched.

    Attributes:
        regions: ordered by address.
        chip: that it is for, as esptool names it; None if nothing tells.
        path: the build folder or file; None for what came as bytes or pairs.
        elf: the ELF file of the app; None if there is none, or only one of another build.
        elf_problem: why an ELF file that lies beside the images is not `elf`.
        app: what the app says of itself; None for data, and for apps without a descriptor.
        needs_slot: it is an app alone; its address is the usual one, and the board's partition table knows better.
    """

    regions: tuple[Region, ...]
    chip: str | None = None
    path: Path | None = None
    elf: Path | None = None
    elf_problem: str | None = None
    app: App | None = None
    needs_slot: bool = False

    @classmethod
    def open(cls, path: str | os.PathLike[str], chip: str | None = None) -> Firmware:
        """Load the build at *path*.

        That is a build folder of ESP-IDF (``flasher_args.json``), of Arduino (``sketch.ino.bin`` and what belongs to
        it) or of PlatformIO (``.pio/build/ENV``); a folder that has such folders in it, or in its ``build`` or
        ``.pio/build``; a merged image for address 0; Intel HEX or UF2; or the image of an app alone.

        Args:
            path: of the folder or file.
            chip: as esptool names it: takes the build for this chip, where there are several.

        Raises:
            FirmwareError: if there is no such build, several would do, or a file of it is missing or damaged.
        """
        place = Path(path)
        found = builds_in(place)
        fitting = [build for build in found if chip is None or build.chip in (None, chip)]
        if not fitting:
            chips = ", ".join(sorted({build.chip or "?" for build in found}))
            raise FirmwareError(f"{place} has no build for {chip}, only for {chips}")
        if len(fitting) > 1:
            names = ", ".join(f"{build.path.name} ({build.chip or 'any chip'})" for build in fitting)
            raise FirmwareError(
                f"{place} has {len(fitting)} builds that would do: {names}", hint="name one of these folders"
            )
        return _load_build(fitting[0])

    @property
    def identity(self) -> str:
        """64 hex digits that tell builds apart: the SHA-256 of the app's ELF, else of all there is to flash."""
        if self.app is not None and int(self.app.elf_sha256, 16):
            return self.app.elf_sha256
        digest = hashlib.sha256()
        for region in self.regions:
            digest.update(region.address.to_bytes(4, "little") + hashlib.sha256(region.data).digest())
        return digest.hexdigest()

    @property
    def name(self) -> str:
        """For messages: the project and its version, else the path, else what is to be flashed."""
        if self.app is not None:
            return f"{self.app.project} {self.app.version}"
        return str(self.path) if self.path is not None else ", ".join(region.source for region in self.regions)

    def in_slot(self, slot: Partition) -> Firmware:
        """Return an app that `needs_slot` for *slot*.

        Raises:
            FirmwareError: if it is too large for it.
        """
        (region,) = self.regions
        if region.size > slot.size:
            raise FirmwareError(
                f"{region.source} has {region.size:#x} bytes, but the partition {slot.name} only {slot.size:#x}",
                hint="is the partition table in flash another than that of its build? Nothing was written",
            )
        return replace(self, regions=(replace(region, address=slot.offset),), needs_slot=False)


Contents = Firmware | Source | Pairs
"""What can be written: an opened build; the path of one; contents or a file for one address; or pairs of both."""


def load(contents: Contents, address: int | str | None = None) -> Firmware:
    """Return what *contents* names.

    Raises:
        FirmwareError: if a file is missing, unreadable or empty, an address is missing or wrong, or regions overlap.
    """
    if isinstance(contents, (bytes, str, os.PathLike)):
        if address is not None:
            return Firmware(make_regions([(address, contents)]))
        if isinstance(contents, bytes):
            raise FirmwareError("the address is missing", hint="say where in flash it belongs, e.g. 0x10000")
        return Firmware.open(contents)
    if address is not None:
        raise FirmwareError("a build and pairs have addresses of their own", hint=f"leave out the address {address}")
    return contents if isinstance(contents, Firmware) else Firmware(make_regions(contents))


def _load_build(build: Build) -> Firmware:
    """Read the files of a build."""
    regions = make_regions(build.files)
    app = _app_in(regions, build.app_offset)
    elf_problem = _why_not_its_elf(build.elf, app) if build.elf is not None else None
    return Firmware(
        regions=regions,
        chip=build.chip,
        path=build.path,
        elf=None if elf_problem else build.elf,
        elf_problem=elf_problem,
        app=app,
        needs_slot=build.lone_app,
    )


def _app_in(regions: tuple[Region, ...], offset: int | None) -> App | None:
    """Return the descriptor of the app at *offset*, or of the first one that begins where an app partition can."""
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
        f"the app's descriptor says {app.elf_sha256[:9]}; build the project again"
    )


@functools.lru_cache(maxsize=64)
def _sha256(path: Path, _changed: int, _size: int) -> str:
    with resolve(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
