"""Images of ELF files: what ``esptool elf2image`` makes, after the ELF file was looked through."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from esptool.targets import CHIP_DEFS

from pytest_esp.errors import FirmwareError, OperationError
from pytest_esp.formats.elf import Elf, read_elf
from pytest_esp.formats.files import ReadPath, WritePath, known_chip, new_file, save
from pytest_esp.link.logs import Transcript, capture
from pytest_esp.operations.registry import file_operation

FlashMode = Literal["qio", "qout", "dio", "dout"]
FLASH_MODES = get_args(FlashMode)
NO_LIMIT = 0xFFFF
"""The highest revision of an image that is for all."""

_DESCRIPTOR_HASH = 0xB0  # where the ELF file's SHA-256 lies in an app that begins with its descriptor


@dataclass(frozen=True)
class FlashSettings:
    """What an image's header says of the flash.

    Attributes:
        mode: how it is read.
        frequency: e.g. "40m"; None is the chip's usual one.
        size: e.g. "4MB".
    """

    mode: FlashMode = "qio"
    frequency: str | None = None
    size: str = "1MB"


@dataclass(frozen=True)
class ElfImage:
    """An image that was made.

    Attributes:
        size: bytes.
        sha256: of the whole file, 64 hex digits.
        warnings: what is odd about it.
    """

    output_file: Path
    chip_type: str
    size: int
    sha256: str
    warnings: tuple[str, ...]


@file_operation(group="firmware")
def elf_to_image(
    elf_file: ReadPath,
    chip_type: str,
    output_file: WritePath | None = None,
    *,
    flash_mode: FlashMode = "qio",
    flash_freq: str | None = None,
    flash_size: str = "1MB",
    min_revision: int = 0,
    max_revision: int = NO_LIMIT,
    overwrite: bool = False,
) -> ElfImage:
    """Make an image for flash of an ELF file, as esptool's elf2image does; an ELF file that is damaged is refused.

    Args:
        elf_file: as the linker made it.
        chip_type: the chip as esptool names it, e.g. esp32c3.
        output_file: the image; by default beside the ELF file, with the ending .bin.
        flash_mode: that the header asks for.
        flash_freq: that the header asks for, e.g. 40m; by default the chip's usual one.
        flash_size: that the header states, e.g. 4MB.
        min_revision: of the chip, major * 100 + minor.
        max_revision: of the chip, the same; 65535 is no limit.
        overwrite: whether *output_file* may exist already.

    Raises:
        FirmwareError: if the ELF file is damaged, cut, or not for this chip.
        OperationError: if the chip or a setting does not exist, or the file exists or cannot be written.
    """
    chip = known_chip(chip_type)
    elf = read_elf(elf_file)
    path = new_file(output_file or Path(elf_file).with_suffix(".bin"), overwrite)
    settings = FlashSettings(flash_mode, flash_freq, flash_size)
    image, said = image_of(elf, chip, settings, min_revision=min_revision, max_revision=max_revision)
    save(path, image)
    return ElfImage(path, chip, len(image), hashlib.sha256(image).hexdigest(), (*warnings_of(elf, chip), *said))


def image_of(
    elf: Elf,
    chip: str,
    settings: FlashSettings,
    *,
    min_revision: int = 0,
    max_revision: int = NO_LIMIT,
    hash_in_descriptor: bool = False,
) -> tuple[bytes, tuple[str, ...]]:
    """Return the image of an ELF file, and what esptool warned of.

    *hash_in_descriptor* puts the ELF file's SHA-256 into a descriptor that lies in RAM, too; esptool does so of itself
    only where ``.flash.appdesc`` lies in flash.

    Raises:
        FirmwareError: if the ELF file is not for this chip, or no image can be made of it.
        OperationError: if a setting does not exist.
    """
    from esptool import cmds

    _check_for(elf, chip)
    _check_settings(chip, settings)
    for revision in (min_revision, max_revision):
        if not 0 <= revision <= NO_LIMIT:
            raise OperationError(f"{revision} is no revision", hint="major * 100 + minor, e.g. 3 for v0.3")
    if min_revision > max_revision:
        raise OperationError(
            f"no chip has a revision from {min_revision} to {max_revision}", hint="the lowest comes first"
        )
    transcript = Transcript()
    try:
        with capture(transcript):
            image = cmds.elf2image(
                elf.data,
                chip,
                flash_freq=settings.frequency,
                flash_mode=settings.mode,
                flash_size=settings.size,
                min_rev_full=min_revision,
                max_rev_full=max_revision,
                elf_sha256_offset=_DESCRIPTOR_HASH if hash_in_descriptor else None,
            )
    except Exception as error:  # esptool lets errors of struct, assertions and its own out
        words = str(error) or type(error).__name__
        raise FirmwareError(f"{elf.source} cannot be made an image for the {chip}: {words}") from error
    if not isinstance(image, bytes):
        raise FirmwareError(
            f"{elf.source} makes two images, as every ELF file for the {chip}",
            hint=f"esptool --chip {chip} elf2image writes both",
        )
    return image, tuple(transcript.warnings)


def warnings_of(elf: Elf, chip: str) -> tuple[str, ...]:
    """Return what is odd about an ELF file for *chip*, though an image can be made of it."""
    homeless = elf.homeless(chip)
    return (f"in no memory of the {chip} that esptool knows: {', '.join(homeless)}",) if homeless else ()


def _check_for(elf: Elf, chip: str) -> None:
    reason = elf.why_not_for(chip)
    others = elf.fitting_chips()
    if reason is None and elf.homeless(chip) and others:
        reason = f"{', '.join(elf.homeless(chip))} lie in no memory of the {chip}"
    if reason is not None:
        raise FirmwareError(
            f"{elf.source} is not for the {chip}: {reason}",
            hint=f"it fits {', '.join(others)}" if others else "build it for this chip",
        )


def _check_settings(chip: str, settings: FlashSettings) -> None:
    rom = CHIP_DEFS[chip]
    check_setting("mode", settings.mode, FLASH_MODES, chip)
    check_setting("size", settings.size, rom.FLASH_SIZES, chip)
    if settings.frequency is not None:
        check_setting("frequency", settings.frequency, rom.FLASH_FREQUENCY, chip)


def check_setting(what: str, value: str, known: Collection[str], chip: str) -> None:
    """Check that a flash setting exists.

    Raises:
        OperationError: if not; lists those that do.
    """
    if value not in known:
        raise OperationError(f"the {chip} has no flash {what} {value!r}", hint=f"one of {', '.join(known)}")
