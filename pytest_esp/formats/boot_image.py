"""The checks that ROM and bootloader make on an image in flash.

esptool and esp-idf-defs parse images too, but they compute the checksum byte by byte (100 ms per MB), stop at the
first error, and do not support every chip. This module takes one or two milliseconds, and gives the bootloader's error
messages.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass

from esp_idf_defs.app_description import AppDescription

from pytest_esp.formats.checksum import checksum

Read = Callable[[int, int], bytes]
"""Reads *size* bytes at a flash address."""

MAGIC = 0xE9
HEADER_SIZE = 24  # 8 bytes on all chips, and 16 more except on the ESP8266
_BOOTLOADER_MAGIC = 0x50
_BOOTLOADER = struct.Struct("<8x32s24s16x")  # esp_bootloader_desc_t: magic, reserved, version, then these
MAX_SEGMENTS = 16
_LONGEST_SEGMENT = 16 * 1024 * 1024


@dataclass(frozen=True)
class Segment:
    """A segment: its offset in flash, its load address, and its length in bytes."""

    offset: int
    address: int
    size: int


class ImageError(Exception):
    """An image cannot be started; the message is the bootloader's.

    Attributes:
        segments: those before the damage, if a header of a segment is damaged.
    """

    def __init__(self, message: str, segments: tuple[Segment, ...] = ()) -> None:
        super().__init__(message)
        self.segments = segments


@dataclass(frozen=True)
class BootloaderDescription:
    """A bootloader's descriptor (``esp_bootloader_desc_t``); *compiled* is empty in reproducible builds."""

    idf_version: str
    compiled: str


@dataclass(frozen=True)
class Image:
    """An image that passed all checks.

    Attributes:
        size: bytes from the header to the end of the hash.
        min_revision, max_revision: major * 100 + minor; a max of 0 or 0xFFFF is no limit.
        app: the app descriptor, if its first segment begins with one.
        bootloader: the bootloader descriptor, likewise.
        flash_mode, flash_frequency, flash_size: the codes in the header.
    """

    entry: int
    chip_id: int
    min_revision: int
    max_revision: int
    segments: tuple[Segment, ...]
    size: int
    app: AppDescription | None
    bootloader: BootloaderDescription | None
    flash_mode: int
    flash_frequency: int
    flash_size: int


@dataclass(frozen=True)
class Sums:
    """The checksum and the SHA-256 of an image, as calculated and as stored; *digests* is None without an SHA-256."""

    calculated: int
    stored: int
    digests: tuple[bytes, bytes] | None


def read_image(read: Read, offset: int, limit: int, *, extended: bool = True) -> Image:
    """Read and check the image at *offset*, of at most *limit* bytes.

    *extended* is False for the ESP8266, whose header has 8 bytes and no hash.

    Raises:
        ImageError: if it is not an image, is truncated, or its checksum or hash is wrong.
    """
    image, sums = parse_image(read, offset, limit, extended=extended)
    check_image(image, sums, limit)
    return image


def check_image(image: Image, sums: Sums, room: int) -> None:
    """Check an image in a partition of *room* bytes.

    Raises:
        ImageError: if a sum is wrong, or the image does not fit.
    """
    if sums.stored != sums.calculated:
        raise ImageError(f"Checksum failed. Calculated 0x{sums.calculated:x} read 0x{sums.stored:x}")
    if image.size > room:
        raise ImageError(f"Image length {image.size} doesn't fit in partition length {room}")
    if sums.digests is not None and sums.digests[0] != sums.digests[1]:
        raise ImageError("Image hash failed - image is corrupt")


def parse_image(read: Read, offset: int, limit: int, *, extended: bool = True) -> tuple[Image, Sums]:
    """Read the image at *offset*, of which at most *limit* bytes can be read, and return it with its sums.

    Raises:
        ImageError: if it is not an image, or is truncated. Wrong sums are no error here.
    """
    header = read(offset, HEADER_SIZE)
    magic, count, mode, size_and_frequency, entry = struct.unpack_from("<BBBBI", header)
    if magic != MAGIC:
        raise ImageError(f"image at 0x{offset:x} has invalid magic byte (nothing flashed here?)")
    if count > MAX_SEGMENTS:
        raise ImageError(f"image at 0x{offset:x} segment count {count} exceeds max {MAX_SEGMENTS}")
    segments, contents, end = _read_segments(read, offset, count, HEADER_SIZE if extended else 8, limit)
    end = (end - offset + 16) // 16 * 16 + offset  # one byte of checksum at the end of a 16-byte line
    stored = read(end - 1, 1)[0]
    digests: tuple[bytes, bytes] | None = None
    if extended and header[23] == 1:
        digests = hashlib.sha256(read(offset, end - offset)).digest(), read(end, 32)
        end += 32
    chip_id, min_revision, max_revision = struct.unpack_from("<HxHH", header, 12)
    image = Image(
        entry=entry,
        chip_id=chip_id,
        min_revision=min_revision,
        max_revision=max_revision,
        segments=segments,
        size=end - offset,
        app=_app(contents[0] if contents else b""),
        bootloader=_bootloader(contents[0] if contents else b""),
        flash_mode=mode,
        flash_frequency=size_and_frequency & 0xF,
        flash_size=size_and_frequency >> 4,
    )
    return image, Sums(calculated=checksum(b"".join(contents)), stored=stored, digests=digests)


def _read_segments(
    read: Read, offset: int, count: int, header_size: int, limit: int
) -> tuple[tuple[Segment, ...], list[bytes], int]:
    segments: list[Segment] = []
    contents: list[bytes] = []
    position = offset + header_size
    for _ in range(count):
        address, size = struct.unpack("<II", read(position, 8))
        if size % 4 or size > _LONGEST_SEGMENT or position + 8 + size > offset + limit:
            raise ImageError(f"invalid segment length 0x{size:x}", tuple(segments))
        segments.append(Segment(position + 8, address, size))
        contents.append(read(position + 8, size))
        position += 8 + size
    return tuple(segments), contents, position


def _app(first_segment: bytes) -> AppDescription | None:
    # `from_bytes_or_none` raises struct.error for a segment that is shorter than a descriptor.
    return AppDescription.from_bytes_or_none(first_segment) if len(first_segment) >= 256 else None


def _bootloader(first_segment: bytes) -> BootloaderDescription | None:
    if len(first_segment) < _BOOTLOADER.size or first_segment[0] != _BOOTLOADER_MAGIC:
        return None
    idf_version, compiled = _BOOTLOADER.unpack_from(first_segment)
    return BootloaderDescription(
        *(text.partition(b"\0")[0].decode("utf-8", "replace") for text in (idf_version, compiled))
    )
