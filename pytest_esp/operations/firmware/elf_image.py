"""Converts ELF files to images like ``esptool elf2image``, after checking the ELF file."""

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
from pytest_esp.names import ChipName
from pytest_esp.operations.registry import file_operation

FlashMode = Literal["qio", "qout", "dio", "dout"]
FLASH_MODES = get_args(FlashMode)
NO_LIMIT = 0xFFFF
"""The maximum revision of an image without an upper limit."""

_DESCRIPTOR_HASH = 0xB0  # offset of the ELF file's SHA-256 in an app that begins with its descriptor


@dataclass(frozen=True)
class FlashSettings:
    """The flash settings in an image header.

    Attributes:
        mode: read mode of the flash.
        frequency: e.g. "40m"; None is the chip's default.
        size: e.g. "4MB".
    """

    mode: FlashMode = "qio"
    frequency: str | None = None
    size: str = "1MB"


@dataclass(frozen=True)
class ElfImage:
    """An image that was created.

    Attributes:
        size: in bytes.
        sha256: of the whole file, 64 hex digits.
        warnings: anything unusual about it.
    """

    output_file: Path
    chip_type: str
    size: int
    sha256: str
    warnings: tuple[str, ...]


@file_operation(group="firmware")
def elf_to_image(
    elf_file: ReadPath,
    chip_type: ChipName,
    output_file: WritePath | None = None,
    *,
    flash_mode: FlashMode = "qio",
    flash_freq: str | None = None,
    flash_size: str = "1MB",
    min_revision: int = 0,
    max_revision: int = NO_LIMIT,
    overwrite: bool = False,
) -> ElfImage:
    """Convert an ELF file to an image for flash, like esptool's elf2image; a damaged ELF file is rejected.

    Args:
        elf_file: ELF file as written by the linker.
        chip_type: chip name as in esptool, e.g. esp32c3.
        output_file: file for the image; by default the name of the ELF file with the suffix .bin.
        flash_mode: flash mode in the header.
        flash_freq: flash frequency in the header, e.g. 40m; by default that of the chip.
        flash_size: flash size in the header, e.g. 4MB.
        min_revision: minimum chip revision, major * 100 + minor.
        max_revision: maximum chip revision, major * 100 + minor; 65535 is no limit.
        overwrite: replace *output_file* if it exists.

    Raises:
        FirmwareError: if the ELF file is damaged, truncated, or not for this chip.
        OperationError: if the chip is unknown, a setting is invalid, or the file exists or cannot be written.
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
    """Return the image of an ELF file, and esptool's warnings.

    *hash_in_descriptor* puts the ELF file's SHA-256 into a descriptor in RAM, too; esptool alone does so only for
    a descriptor in ``.flash.appdesc``.

    Raises:
        FirmwareError: if the ELF file is not for this chip, or cannot be converted.
        OperationError: if a setting is invalid.
    """
    from esptool import cmds

    _check_for(elf, chip)
    _check_settings(chip, settings)
    for revision in (min_revision, max_revision):
        if not 0 <= revision <= NO_LIMIT:
            raise OperationError(f"invalid revision {revision}", hint="use major * 100 + minor, e.g. 3 for v0.3")
    if min_revision > max_revision:
        raise OperationError(
            f"no chip has a revision from {min_revision} to {max_revision}", hint="give the lower revision first"
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
    except Exception as error:  # esptool also raises errors of struct, and AssertionError
        words = str(error) or type(error).__name__
        raise FirmwareError(f"{elf.source} cannot be converted to an image for the {chip}: {words}") from error
    if not isinstance(image, bytes):
        raise FirmwareError(
            f"{elf.source} converts to two images, like every ELF file for the {chip}",
            hint=f"use esptool --chip {chip} elf2image, which writes both",
        )
    return image, tuple(transcript.warnings)


def warnings_of(elf: Elf, chip: str) -> tuple[str, ...]:
    """Return anything unusual about an ELF file for *chip* that does not prevent conversion."""
    homeless = elf.homeless(chip)
    return (f"not in any memory of the {chip} known to esptool: {', '.join(homeless)}",) if homeless else ()


def _check_for(elf: Elf, chip: str) -> None:
    reason = elf.why_not_for(chip)
    others = elf.fitting_chips()
    if reason is None and elf.homeless(chip) and others:
        reason = f"{', '.join(elf.homeless(chip))} not in any memory of the {chip}"
    if reason is not None:
        raise FirmwareError(
            f"{elf.source} is not for the {chip}: {reason}",
            hint=f"use it for {', '.join(others)}" if others else "build it for this chip",
        )


def _check_settings(chip: str, settings: FlashSettings) -> None:
    rom = CHIP_DEFS[chip]
    check_setting("mode", settings.mode, FLASH_MODES, chip)
    check_setting("size", settings.size, rom.FLASH_SIZES, chip)
    if settings.frequency is not None:
        check_setting("frequency", settings.frequency, rom.FLASH_FREQUENCY, chip)


def check_setting(what: str, value: str, known: Collection[str], chip: str) -> None:
    """Check that a flash setting is valid.

    Raises:
        OperationError: if it is not; lists the valid ones.
    """
    if value not in known:
        raise OperationError(f"the {chip} has no flash {what} {value!r}", hint=f"use one of {', '.join(known)}")
