"""What ROM and bootloader check of an image in flash.

esptool and esp-idf-defs parse images too, but count the checksum byte by byte (100 ms per MB), stop at the first
error, and do not know every chip; a boot looks at an image in one or two milliseconds and words its own errors.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass

from esp_idf_defs.app_description import AppDescription

from pytest_esp.wire.framing import checksum

Read = Callable[[int, int], bytes]
"""Reads *size* bytes at an address of the flash."""

MAGIC = 0xE9
HEADER_SIZE = 24  # 8 bytes that all chips share and 16 that the ESP8266 lacks
_MAX_SEGMENTS = 16
_LONGEST_SEGMENT = 16 * 1024 * 1024


class ImageError(Exception):
    """An image cannot be started; the text is what the bootloader says."""


@dataclass(frozen=True)
class Segment:
    """One segment: where it lies in flash, where it goes, and its length in bytes."""

    offset: int
    address: int
    size: int


@dataclass(frozen=True)
class Image:
    """An image that passed all checks.

    Attributes:
        size: bytes from the header to the end of the hash.
        min_revision, max_revision: major * 100 + minor; a max of 0 or 0xFFFF is no limit.
        app: the app descriptor, if its first segment begins with one.
    """

    entry: int
    chip_id: int
    min_revision: int
    max_revision: int
    segments: tuple[Segment, ...]
    size: int
    app: AppDescription | None
    flash_mode: int
    flash_size_code: int


def read_image(read: Read, offset: int, limit: int, *, extended: bool = True) -> Image:
    """Read and check the image at *offset*, which may be *limit* bytes long.

    *extended* is False for the ESP8266, whose header has 8 bytes and no hash.

    Raises:
        ImageError: if it is no image, is cut, or its checksum or hash is wrong.
    """
    header = read(offset, HEADER_SIZE)
    magic, count, mode, size_code, entry = struct.unpack_from("<BBBBI", header)
    if magic != MAGIC:
        raise ImageError(f"image at 0x{offset:x} has invalid magic byte (nothing flashed here?)")
    if not 0 < count <= _MAX_SEGMENTS:
        raise ImageError(f"image at 0x{offset:x} segment count {count} exceeds max {_MAX_SEGMENTS}")
    segments, contents, end = _read_segments(read, offset, count, HEADER_SIZE if extended else 8, limit)
    end = (end - offset + 16) // 16 * 16 + offset  # one byte of checksum at the end of a 16-byte line
    stored = read(end - 1, 1)[0]
    calculated = checksum(b"".join(contents))
    if stored != calculated:
        raise ImageError(f"Checksum failed. Calculated 0x{calculated:x} read 0x{stored:x}")
    if extended and header[23] == 1:
        if hashlib.sha256(read(offset, end - offset)).digest() != read(end, 32):
            raise ImageError("Image hash failed - image is corrupt")
        end += 32
    if end - offset > limit:
        raise ImageError(f"Image length {end - offset} doesn't fit in partition length {limit}")
    chip_id, min_revision, max_revision = struct.unpack_from("<HxHH", header, 12)
    return Image(
        entry=entry,
        chip_id=chip_id,
        min_revision=min_revision,
        max_revision=max_revision,
        segments=segments,
        size=end - offset,
        app=_descriptor(contents[0]),
        flash_mode=mode,
        flash_size_code=size_code >> 4,
    )


def _read_segments(
    read: Read, offset: int, count: int, header_size: int, limit: int
) -> tuple[tuple[Segment, ...], list[bytes], int]:
    segments: list[Segment] = []
    contents: list[bytes] = []
    position = offset + header_size
    for _ in range(count):
        address, size = struct.unpack("<II", read(position, 8))
        if size % 4 or size > _LONGEST_SEGMENT or position + 8 + size > offset + limit:
            raise ImageError(f"invalid segment length 0x{size:x}")
        segments.append(Segment(position + 8, address, size))
        contents.append(read(position + 8, size))
        position += 8 + size
    return tuple(segments), contents, position


def _descriptor(first_segment: bytes) -> AppDescription | None:
    # `from_bytes_or_none` raises struct.error for a segment that is shorter than a descriptor.
    return AppDescription.from_bytes_or_none(first_segment) if len(first_segment) >= 256 else None
