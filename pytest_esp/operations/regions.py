"""What is to be written to flash, or compared with it: loaded and checked before any board is touched."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from esptool.targets import CHIP_DEFS

from pytest_esp.errors import FirmwareError
from pytest_esp.units import format_size, parse_size

SECTOR = 0x1000

Source = bytes | str | os.PathLike[str]
"""Contents, or the file that has them."""
Pairs = Sequence[tuple[int | str, Source]] | Mapping[int | str, Source]
Firmware = Source | Pairs
"""Contents or a file for one address; or pairs of address and source; or an ESP-IDF build folder."""

_IMAGE_MAGIC = 0xE9
_HEADER_SIZE = 24
_MOST_SEGMENTS = 16
_HIGHEST_SPI_MODE = 5
_NO_LIMIT = 0xFFFF
# Where a merged image, which begins at 0, has images of its own: the bootloaders of all chips, and the usual app.
_MERGED_OFFSETS = (*sorted({rom.BOOTLOADER_FLASH_OFFSET for rom in CHIP_DEFS.values()}), 0x10000)


@dataclass(frozen=True)
class Region:
    """Contents for a place in flash, and what a message calls them."""

    address: int
    data: bytes = field(repr=False)
    source: str

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.data)

    @property
    def end(self) -> int:
        """The address after the last byte."""
        return self.address + len(self.data)


@dataclass(frozen=True)
class Load:
    """Regions ordered by address, and the chip that an ESP-IDF build folder says they are for."""

    regions: tuple[Region, ...]
    chip: str | None = None


def load(firmware: Firmware, address: int | str | None = None) -> Load:
    """Return what *firmware* names.

    Raises:
        FirmwareError: if a file is missing, unreadable or empty, an address is missing or wrong, or regions overlap.
    """
    pairs, chip = _pairs(firmware, address)
    regions = sorted((_region(*pair) for pair in pairs), key=lambda region: region.address)
    if not regions:
        raise FirmwareError("there is nothing to write", hint="give pairs of address and file or bytes")
    for region, following in itertools.pairwise(regions):
        _check_apart(region, following)
    return Load(tuple(regions), chip)


def _pairs(firmware: Firmware, address: int | str | None) -> tuple[Iterable[tuple[int | str, Source]], str | None]:
    # os.path.isfile, unlike Path.is_file, answers for names that no file can have, too.
    if address is None and isinstance(firmware, (str, os.PathLike)) and not os.path.isfile(firmware):
        return _build_folder(Path(firmware))
    if isinstance(firmware, (bytes, str, os.PathLike)):
        if address is None:
            raise FirmwareError("the address is missing", hint="say where in flash it belongs, e.g. 0x10000")
        return [(address, firmware)], None
    if address is not None:
        raise FirmwareError("pairs have addresses of their own", hint=f"leave out the address {address}")
    return (firmware.items() if isinstance(firmware, Mapping) else firmware), None


def _build_folder(folder: Path) -> tuple[list[tuple[int | str, Source]], str | None]:
    """Return the files of an ESP-IDF build, as its flasher_args.json lists them, and its chip."""
    listing = folder / "flasher_args.json"
    try:
        content: dict[str, Any] = json.loads(listing.read_text(encoding="utf-8"))
        files = cast(dict[int | str, str], content["flash_files"])
        chip = content.get("extra_esptool_args", {}).get("chip")
        return [(address, folder / name) for address, name in files.items()], chip
    except OSError as error:
        raise FirmwareError(
            f"{folder} is no ESP-IDF build folder: {listing.name} cannot be read ({error.strerror})",
            hint="give the folder `build`, or an address and a file",
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FirmwareError(f"{listing} is damaged: {error!r}", hint="build the project again") from error


def _region(address: int | str, source: Source) -> Region:
    try:
        start = parse_size(address)
    except ValueError as error:
        raise FirmwareError(f"the address is wrong: {error}") from error
    if isinstance(source, bytes):
        data, name = source, f"{len(source)} bytes"
    else:
        data, name = _contents(Path(source)), os.fspath(source)
    if not data:
        raise FirmwareError(f"{name} for {start:#x} is empty", hint="an empty image is a build that went wrong")
    return Region(start, data, name)


def _contents(path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise FirmwareError(f"{path} is no regular file", hint="a device or a pipe has no end to flash")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise FirmwareError(f"{path} cannot be read: {reason or error}") from error


def _check_apart(region: Region, following: Region) -> None:
    """Refuse regions that share a byte, or a sector: the erase for the one would take the other's bytes."""
    if region.end > following.address:
        raise FirmwareError(
            f"{region.source} ({region.address:#x} to {region.end:#x}) overlaps {following.source} "
            f"(from {following.address:#x})"
        )
    if (region.end - 1) // SECTOR == following.address // SECTOR:
        raise FirmwareError(
            f"{region.source} (to {region.end:#x}) and {following.source} (from {following.address:#x}) share "
            "a sector: one cannot be written without erasing the other",
            hint="put them together into one region",
        )


# -- is it for this board?


def check_fits(region: Region, flash_size: int) -> None:
    """Check that a region lies inside a flash of *flash_size* bytes.

    Raises:
        FirmwareError: if it does not.
    """
    if region.end > flash_size:
        raise FirmwareError(
            f"{region.source} at {region.address:#x} needs flash up to {region.end:#x}, "
            f"but there are {format_size(flash_size)}",
            hint="is it built for a board with a larger flash? Nothing was written",
        )


def check_image(region: Region, chip: str, revision: int | None) -> None:
    """Check that the images in a region are for *chip* of that *revision* (major * 100 + minor; None: any).

    What is no image is not looked at; images for the ESP8266 do not tell their chip. Layout of the header:
    ``esp_image_header_t`` of ESP-IDF (``esp_app_format.h``).

    Raises:
        FirmwareError: if one is for another chip, or for other revisions of it.
    """
    if chip == "esp8266":
        return
    for offset in _MERGED_OFFSETS if region.address == 0 else (0,):
        header = region.data[offset : offset + _HEADER_SIZE]
        made_for = _chip_of(header)
        if made_for is None:
            continue
        if made_for != chip:
            raise FirmwareError(
                f"{region.source} is an image for the {CHIP_DEFS[made_for].CHIP_NAME} ({made_for}), "
                f"not for the {CHIP_DEFS[chip].CHIP_NAME}",
                hint=f"build it with `idf.py set-target {chip}`; nothing was written",
            )
        _check_revision(header, revision, region.source)


def _chip_of(header: bytes) -> str | None:
    """Return the chip that an image's header names; None if it is no header.

    Every byte that can only have few values is looked at: arbitrary data must not pass for an image.
    """
    if len(header) < _HEADER_SIZE or header[0] != _IMAGE_MAGIC or not 0 < header[1] <= _MOST_SEGMENTS:
        return None
    if header[2] > _HIGHEST_SPI_MODE or header[23] > 1:  # SPI mode, and whether a hash is appended
        return None
    number = int.from_bytes(header[12:14], "little")
    return next((name for name, rom in CHIP_DEFS.items() if number == rom.IMAGE_CHIP_ID), None)


def _check_revision(header: bytes, revision: int | None, source: str) -> None:
    least = int.from_bytes(header[15:17], "little")
    most = int.from_bytes(header[17:19], "little") or _NO_LIMIT
    if revision is None or least <= revision <= most:
        return
    wanted = f"v{least // 100}.{least % 100} or later" if revision < least else f"v{most // 100}.{most % 100} at most"
    raise FirmwareError(
        f"{source} needs chip revision {wanted}, but this chip is v{revision // 100}.{revision % 100}",
        hint="build it for this revision (CONFIG_..._REV_MIN); nothing was written",
    )
