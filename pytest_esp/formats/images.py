"""Reads chip, revisions and app descriptor of images."""

from __future__ import annotations

from dataclasses import dataclass

from esp_idf_defs.app_description import AppDescription
from esptool.targets import CHIP_DEFS

from pytest_esp.errors import FirmwareError
from pytest_esp.formats.boot_image import MAGIC
from pytest_esp.formats.regions import Region
from pytest_esp.units import parse_size

_HEADER_SIZE = 24
_DESCRIPTOR = AppDescription.FIRMWARE_BINARY_OFFSET
_BOOTLOADER_MAGIC = 0x50
_MOST_SEGMENTS = 16
_HIGHEST_SPI_MODE = 5
_NO_LIMIT = 0xFFFF
_MEMORY_OF_8266 = (range(0x3FFE8000, 0x3FFFC000), range(0x40100000, 0x40110000), range(0x40200000, 0x40300000))
# The addresses of images in a merged image: the bootloaders of all chips, and the usual app.
_MERGED_ADDRESSES = (*sorted({rom.BOOTLOADER_FLASH_OFFSET for rom in CHIP_DEFS.values()}), 0x10000)

APP_HEAD_SIZE = AppDescription.FIRMWARE_BINARY_OFFSET + AppDescription.SIZE
"""The size, in bytes, of an app image up to the end of its descriptor."""


@dataclass(frozen=True)
class App:
    """An app's descriptor (``esp_app_desc_t`` of ESP-IDF; apps of Arduino and PlatformIO have it, too).

    Attributes:
        compiled: date and time; None in reproducible builds.
        elf_sha256: the SHA-256 of its ELF file, 64 hex digits; zeros if the build tool did not set it.
    """

    project: str
    version: str
    idf_version: str
    compiled: str | None
    elf_sha256: str


def app_of(image: bytes) -> App | None:
    """Return the descriptor of an app image; None if it has none. The first `APP_HEAD_SIZE` bytes are enough."""
    if not image.startswith(bytes([MAGIC])):
        return None
    found = AppDescription.from_bytes_or_none(image[AppDescription.FIRMWARE_BINARY_OFFSET : APP_HEAD_SIZE])
    if found is None:
        return None
    return App(found.project_name, found.version, found.idf_version, found.compiled, found.elf_sha256.hex())


def has_bootloader_descriptor(image: bytes) -> bool:
    """Return whether an image begins with the descriptor of a bootloader (``esp_bootloader_desc_t`` of ESP-IDF)."""
    return image[_DESCRIPTOR : _DESCRIPTOR + 1] == bytes([_BOOTLOADER_MAGIC])


def check_image(region: Region, chip: str, revision: int | None) -> None:
    """Check that the images in a region are for *chip* with that *revision* (major * 100 + minor; None: any).

    Other data is ignored. Images for the ESP8266 do not contain their chip. Layout of the header:
    ``esp_image_header_t`` of ESP-IDF (``esp_app_format.h``).

    Raises:
        FirmwareError: if one is for another chip, or for other revisions of it.
    """
    if chip == "esp8266":
        return
    for offset in {0, *(place - region.address for place in _MERGED_ADDRESSES if place > region.address)}:
        header = region.data[offset : offset + _HEADER_SIZE]
        made_for = chip_of(header)
        if made_for is None:
            continue
        if made_for != chip:
            raise FirmwareError(
                f"{region.source} is an image for the {CHIP_DEFS[made_for].CHIP_NAME} ({made_for}), "
                f"not for the {CHIP_DEFS[chip].CHIP_NAME}",
                hint=f"build it with `idf.py set-target {chip}`; nothing was written",
            )
        _check_revision(header, revision, region.source)


def chip_of(image: bytes) -> str | None:
    """Return the chip in an image's header; None if it is not an image header.

    Every byte with few valid values is checked, so that arbitrary data is not taken for an image.
    """
    if len(image) < _HEADER_SIZE or image[0] != MAGIC or not 0 < image[1] <= _MOST_SEGMENTS:
        return None
    if image[2] > _HIGHEST_SPI_MODE or image[23] > 1:  # SPI mode, and whether a hash is appended
        return None
    number = int.from_bytes(image[12:14], "little")
    return next((name for name, rom in CHIP_DEFS.items() if number == rom.IMAGE_CHIP_ID), None)


def flash_size_of(image: bytes, chip: str) -> int | None:
    """Return the flash size in an image's header, in bytes; None if it is not an image for *chip*, or has none."""
    if chip_of(image) != chip:
        return None
    names = [name for name, code in CHIP_DEFS[chip].FLASH_SIZES.items() if code == image[3] & 0xF0]
    return parse_size(names[0]) if names else None


def is_of_8266(image: bytes) -> bool:
    """Return whether this is an image for the ESP8266: its first segment is loaded into that chip's memory."""
    if len(image) < 16 or image[0] != MAGIC or not 0 < image[1] <= _MOST_SEGMENTS:
        return False
    return any(int.from_bytes(image[8:12], "little") in memory for memory in _MEMORY_OF_8266)


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
