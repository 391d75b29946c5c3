"""Images of programs that run in RAM, without any part in flash."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from esptool.util import FatalError

from pytest_esp.errors import FirmwareError
from pytest_esp.formats.elf import Elf, read_elf
from pytest_esp.formats.files import ReadPath, WritePath, known_chip, new_file, save
from pytest_esp.formats.images import chip_of
from pytest_esp.names import ChipName
from pytest_esp.operations.firmware.elf_image import FlashSettings, image_of
from pytest_esp.operations.registry import file_operation
from pytest_esp.operations.results import Address

_IN_FLASH = {"IROM", "DROM"}  # memory names of esptool's chips for flash mapped by the cache


@dataclass(frozen=True)
class RamSegment:
    """One part of a program: its address in RAM, and its size in bytes."""

    address: Address
    size: int


@dataclass(frozen=True)
class RamImage:
    """A program for RAM.

    Attributes:
        entry: the address of its entry point.
        path: its file; None if it was given as bytes.
    """

    chip_type: str
    entry: Address
    segments: tuple[RamSegment, ...]
    path: Path | None

    @classmethod
    def of(cls, image: Any, chip: str, path: Path | None) -> Self:
        """Return a summary of what `loadable` returned."""
        segments = tuple(RamSegment(part.addr, len(part.data)) for part in image.segments)
        return cls(chip_type=chip, entry=image.entrypoint, segments=segments, path=path)


@file_operation(group="chip")
def elf_to_ram_image(
    elf_file: ReadPath, chip_type: ChipName, output_file: WritePath | None = None, *, overwrite: bool = False
) -> RamImage:
    """Convert an ELF file with all segments in RAM to an image for loading into RAM (``esptool elf2image``).

    Args:
        elf_file: ELF file as written by the linker.
        chip_type: chip name as in esptool, e.g. esp32c3.
        output_file: file for the image; by default NAME.ram.bin beside the ELF file.
        overwrite: replace *output_file* if it exists.

    Raises:
        FirmwareError: if it is not an ELF file, is damaged, or not for this chip's RAM.
        OperationError: if the file exists or cannot be written, or the chip is unknown.
    """
    chip = known_chip(chip_type)
    target = new_file(output_file or Path(elf_file).with_suffix(".ram.bin"), overwrite)
    image = ram_image_of(read_elf(elf_file), chip)
    parsed = loadable(image, chip, str(elf_file))
    save(target, image)
    return RamImage.of(parsed, chip, target)


def ram_image_of(elf: Elf, chip: str) -> bytes:
    """Return the image of an ELF file of a program for RAM.

    Raises:
        FirmwareError: if the ELF file is not for this chip, or cannot be converted to a single image.
    """
    image, _ = image_of(elf, chip, FlashSettings())
    return image


def loadable(data: bytes, chip: str, source: str) -> Any:
    """Return an image as parsed by esptool (``BaseFirmwareImage``); *source* is its name in messages.

    Raises:
        FirmwareError: if it is not an image, is damaged, is for another chip, or has parts in flash.
    """
    from esptool.bin_image import LoadFirmwareImage

    made_for = chip_of(data)
    if made_for is not None and chip not in (made_for, "esp8266"):
        raise FirmwareError(f"{source} is an image for the {made_for}, not for the {chip}; nothing was loaded")
    try:
        image: Any = LoadFirmwareImage(chip, data)
    except (FatalError, struct.error, IndexError, TypeError) as error:
        raise FirmwareError(f"{source} is not an image for the {chip}: {error}") from error
    if image.checksum != image.calculate_checksum():
        raise FirmwareError(f"{source} is damaged: its checksum is wrong")
    for segment in image.segments:
        kinds = set(segment.get_memory_type(image))
        if not kinds or (kinds & _IN_FLASH and "IRAM" not in kinds):
            raise FirmwareError(
                f"{source} is not a program for RAM: {len(segment.data)} bytes are for {segment.addr:#010x}",
                hint="flash an app, or link it for RAM only",
            )
    return image
