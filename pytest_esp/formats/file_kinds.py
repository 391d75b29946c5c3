"""What a firmware file is, and where in flash it belongs: for reports and for flashing alike."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from esptool.targets import CHIP_DEFS

from pytest_esp.errors import FirmwareError, OperationError
from pytest_esp.formats.boot_image import MAGIC
from pytest_esp.formats.images import APP_HEAD_SIZE, app_of, chip_of, has_bootloader_descriptor, is_of_8266
from pytest_esp.formats.partition_table import MAGIC as TABLE_MAGIC
from pytest_esp.formats.partition_table import TABLE_SIZE, Partition, parse
from pytest_esp.formats.regions import SECTOR

ImageKind = Literal["app", "bootloader", "image"]
FileKind = Literal["app", "bootloader", "image", "partition-table", "merged", "file-system", "data"]

APP_ALIGNMENT = 0x10000
"""What the address of an app partition is a multiple of."""

_KIND_NAMES: dict[FileKind, str] = {
    "app": "an app",
    "bootloader": "a bootloader",
    "image": "an image that runs in RAM, as a bootloader does",
    "partition-table": "a partition table",
    "merged": "a merged image, but its parts are not where its bootloader and its partition table look for them",
    "data": "neither an app image nor a whole flash",
}
_MAGIC_V2 = 0xEA  # second-stage images of an ESP8266
_IN_FLASH = {"IROM", "DROM"}
_SMALLEST_HEADER = 8
_LARGEST_APP = 16 << 20
_USUAL_TABLE_OFFSET = 0x8000
_SEGMENT = struct.Struct("<II")
_SPIFFS_PAGE, _SPIFFS_BLOCK, _SPIFFS_MAGIC = 256, 4096, 0x0529  # as ESP-IDF, Arduino and PlatformIO set them


@dataclass(frozen=True)
class FoundImage:
    """An image in a file.

    Attributes:
        kind: app and bootloader by descriptor or by segments in flash; "image" is anything else that runs in RAM, as
            bootloaders of old ESP-IDF versions do.
        end: the offset after its checksum and hash, also if the file ends before.
    """

    offset: int
    kind: ImageKind
    chip: str
    end: int


@dataclass(frozen=True)
class FileContents:
    """What a file is.

    Attributes:
        kind: "merged" means several parts, each at its place.
        size: in bytes.
        images: in the order of the file.
        table: the offset of the partition table, and *partitions* its entries, none if it is damaged.
        file_system: its name, if the file is one.
    """

    kind: FileKind
    size: int
    images: tuple[FoundImage, ...] = ()
    table: int | None = None
    partitions: tuple[Partition, ...] = ()
    file_system: str | None = None

    @property
    def chip(self) -> str | None:
        """The chip of its first image."""
        return self.images[0].chip if self.images else None

    @property
    def description(self) -> str:
        """What it is, in words."""
        return f"a {self.file_system} file system" if self.file_system else _KIND_NAMES[self.kind]

    @property
    def first_address(self) -> int | None:
        """The flash address of the file's first byte; None if the file does not give it (an app, data)."""
        if not self.images:
            return None
        first = self.images[0]
        if first.chip == "esp8266":
            return 0
        if first.kind != "app":
            starts = [CHIP_DEFS[first.chip].BOOTLOADER_FLASH_OFFSET - first.offset]
        else:
            starts = [part.offset - first.offset for part in self.partitions if part.type == "app"]
        fitting = [start for start in starts if start >= 0 and self._matches(start)]
        return fitting[0] if len(fitting) == 1 and (self.kind != "app") else None

    def _matches(self, start: int) -> bool:
        """Return whether the table precedes its partitions, and an app lies in one of them, if the file has both."""
        if self.table is None or not self.partitions:
            return True
        places = [part.offset for part in self.partitions if part.type not in ("bootloader", "partition_table")]
        apps = {image.offset + start for image in self.images if image.kind == "app"}
        slots = {part.offset for part in self.partitions if part.type == "app"}
        before = start + self.table + SECTOR <= min(places, default=start + self.table + SECTOR)
        return before and (not apps or not slots or bool(apps & slots))


def look(data: bytes, chip: str | None = None) -> FileContents:
    """Return what a raw file is (see `hex_and_uf2` for the others).

    Args:
        data: the whole file.
        chip: the chip of an image whose header does not name one.
    """
    if (file_system := _file_system_of(data)) is not None:
        return FileContents("file-system", len(data), file_system=file_system)
    images: list[FoundImage] = []
    table: int | None = None
    for offset in _starts(data):
        if images and offset < images[-1].end <= len(data):
            continue
        if table is None and data.startswith(TABLE_MAGIC, offset):
            table = offset
        elif (found := _image_at(data, offset, chip if not offset else None)) is not None:
            images.append(found)
    kind: FileKind = "merged"
    if not images:
        kind = "data" if table is None else "partition-table" if not table else "merged"
    elif len(images) == 1 and table is None and not images[0].offset:
        kind = images[0].kind
    return FileContents(kind, len(data), tuple(images), table, _partitions(data, table))


def check_whole(what: FileContents, source: str) -> None:
    """Refuse a file that ends inside its first or its last image.

    Raises:
        FirmwareError: if it does.
    """
    for image in (*what.images[:1], *what.images[-1:]):
        # A header that was left over in a copy of a whole flash may give any size.
        if what.size < image.end < what.size + _LARGEST_APP:
            raise FirmwareError(
                f"{source} is truncated: its image at {image.offset:#x} ends at {image.end:#x}, "
                f"but the file has {what.size:#x} bytes",
                hint="build it again, or copy it again; nothing was written",
            )


def _starts(data: bytes) -> Iterator[int]:
    return (offset for offset in range(0, len(data), SECTOR) if data[offset] != 0xFF)


def _partitions(data: bytes, table: int | None) -> tuple[Partition, ...]:
    try:
        return parse(data[table : table + TABLE_SIZE]) if table is not None else ()
    except OperationError:
        return ()


def _image_at(data: bytes, offset: int, chip: str | None) -> FoundImage | None:
    head = data[offset : offset + APP_HEAD_SIZE]
    made_for = chip_of(head) if offset else chip_in(head) or (chip if head[0] in (MAGIC, _MAGIC_V2) else None)
    if made_for is None or len(head) < _SMALLEST_HEADER:
        return None
    return FoundImage(offset, image_kind(data, made_for, offset), made_for, _segments(data, offset, made_for)[1])


def image_kind(data: bytes, chip: str, offset: int = 0) -> ImageKind:
    """Return the kind of the image at *offset* (see `FoundImage`)."""
    head = data[offset : offset + APP_HEAD_SIZE]
    segments, _ = _segments(data, offset, chip)
    if app_of(head) is not None or any(_is_in_flash(chip, address) for address, size in segments if size):
        return "app"
    return "bootloader" if has_bootloader_descriptor(head) else "image"


def why_misplaced(what: FileContents, address: int | None) -> str | None:
    """Return why a file with images does not start anything if it begins at *address*; None if it may."""
    if not what.images or what.chip == "esp8266":
        return None
    if address is None:
        return "its parts are not where its bootloader and its partition table look for them"
    first = what.images[0]
    place, wanted = address + first.offset, CHIP_DEFS[first.chip].BOOTLOADER_FLASH_OFFSET
    if first.kind == "app" and (not place or place % APP_ALIGNMENT):
        return f"it has an app at {place:#x}, where no app partition can begin"
    if first.kind != "app" and place != wanted and place < _USUAL_TABLE_OFFSET:
        return f"its bootloader is at {place:#x}, but the {CHIP_DEFS[first.chip].CHIP_NAME} starts it from {wanted:#x}"
    return None


def chip_in(image: bytes) -> str | None:
    """Return the chip that an image is for, from its header or, on an ESP8266, from where it is loaded."""
    if is_of_8266(image) or image[:1] == bytes([_MAGIC_V2]):
        return "esp8266"
    return chip_of(image)


def _segments(data: bytes, offset: int, chip: str) -> tuple[list[tuple[int, int]], int]:
    """Return load address and size of each segment that the file has, and the offset after the image."""
    extended = chip != "esp8266"
    position = offset + (24 if extended else 8)
    found: list[tuple[int, int]] = []
    for _ in range(data[offset + 1] if data[offset] == MAGIC else 0):
        if position + _SEGMENT.size > len(data):
            return found, position + _SEGMENT.size
        found.append(_SEGMENT.unpack_from(data, position))
        position += _SEGMENT.size + found[-1][1]
    end = offset + (position - offset + 16) // 16 * 16  # one byte of checksum at the end of a 16-byte line
    return found, end + (32 if extended and data[offset + 23] == 1 else 0)


def _is_in_flash(chip: str, address: int) -> bool:
    memories: list[Any] = CHIP_DEFS[chip].MEMORY_MAP
    return any(low <= address < high and name in _IN_FLASH for low, high, name in memories)


def _file_system_of(data: bytes) -> str | None:
    if data[8:16] == b"littlefs":
        return "LittleFS"
    if data[510:512] == b"\x55\xaa" and data[0] in (0xE9, 0xEB) and data[11:13] in (b"\0\2", b"\0\x10"):
        return "FAT"
    magic = (_SPIFFS_MAGIC ^ _SPIFFS_PAGE ^ (len(data) // _SPIFFS_BLOCK)) & 0xFFFF
    is_whole = len(data) >= _SPIFFS_BLOCK and len(data) % _SPIFFS_BLOCK == 0
    return "SPIFFS" if is_whole and int.from_bytes(data[252:254], "little") == magic else None
