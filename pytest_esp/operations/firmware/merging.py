"""Merges files into one, raw, Intel HEX or UF2, with the same bytes as ``esptool merge-bin``."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from esptool.targets import CHIP_DEFS

from pytest_esp.errors import FirmwareError, OperationError
from pytest_esp.formats.files import ReadPath, WritePath, known_chip, new_file, save
from pytest_esp.formats.firmware import Firmware
from pytest_esp.formats.images import chip_of
from pytest_esp.formats.regions import Placed, Region, make_regions, md5_of, size_argument
from pytest_esp.link.logs import Transcript, capture
from pytest_esp.names import ChipName
from pytest_esp.operations.firmware.elf_image import FLASH_MODES, FlashMode, check_setting
from pytest_esp.operations.registry import file_operation
from pytest_esp.operations.results import Address

Format = Literal["raw", "hex", "uf2"]
Parts = ReadPath | Sequence[Placed] | Mapping[int | str, ReadPath]
"""A build folder, or files by address."""

_FORMATS: dict[str, Format] = {".hex": "hex", ".uf2": "uf2"}
_LARGEST_FLASH = 128 * 1024 * 1024
_OTHER_FORMATS = {re.compile(rb":[0-9A-Fa-f]{10,}\r?\n"): "Intel HEX", re.compile(rb"UF2\n"): "UF2"}


@dataclass(frozen=True)
class MergedPart:
    """A part of a merged file. Address in flash, size in bytes, and MD5 of the file as given."""

    address: Address
    size: int
    source: str
    md5: str


@dataclass(frozen=True)
class Merged:
    """A merged file.

    Attributes:
        size: of the file in bytes.
        address: address in flash of a raw file; the other formats contain addresses.
        padding: bytes of a raw file between and after the parts.
        notes: esptool's messages about the bootloader's flash settings, if they were to be changed.
    """

    output_file: Path
    format: Format
    chip_type: str
    size: int
    sha256: str
    address: Address
    parts: tuple[MergedPart, ...]
    padding: int
    notes: tuple[str, ...]


@file_operation(group="firmware")
def merge(
    files: Parts,
    output_file: WritePath,
    *,
    chip_type: ChipName | None = None,
    format: Format | None = None,
    flash_mode: FlashMode | Literal["keep"] = "keep",
    flash_freq: str = "keep",
    flash_size: str = "keep",
    target_offset: int | str = 0,
    pad_to_size: str | None = None,
    overwrite: bool = False,
) -> Merged:
    """Merge the images of a build into one file, raw, Intel HEX or UF2.

    Args:
        files: a build folder, or files and their addresses in flash, e.g. [{"address": "0x10000", "path": "app.bin"}]
            or {"0x10000": "app.bin"}.
        output_file: file for the result.
        chip_type: chip name as in esptool, e.g. esp32c3; by default the chip in the images.
        format: file format; by default by the suffix of *output_file*: .hex, .uf2, anything else is raw.
        flash_mode: flash mode to write into the bootloader's header; its hash is updated.
        flash_freq: flash frequency to write into the bootloader's header, e.g. 80m.
        flash_size: flash size to write into the bootloader's header, e.g. 4MB.
        target_offset: address in flash that a raw file will be written to.
        pad_to_size: pad a raw file to this size, e.g. 4MB.
        overwrite: replace *output_file* if it exists.

    Raises:
        FirmwareError: if a file is missing, damaged or in another format, or parts overlap or are for different chips.
        OperationError: if an argument is invalid, or the file exists or cannot be written.
    """
    path = new_file(output_file, overwrite)
    regions, build_chip = regions_of(files)
    _check_apart(regions)
    made_for = known_chip(chip_type) if chip_type is not None else _chip_for(regions, build_chip)
    kind = format or _FORMATS.get(path.suffix.lower(), "raw")
    start = size_argument(target_offset, "target offset") if kind == "raw" else 0
    _check_arguments(regions, made_for, kind, start, pad_to_size)
    _check_settings(made_for, flash_mode, flash_freq, flash_size)
    transcript = Transcript()
    data = _merged(
        regions, transcript, made_for, kind,
        {"flash_mode": flash_mode, "flash_freq": flash_freq, "flash_size": flash_size},
        {"target_offset": start, "pad_to_size": pad_to_size if kind == "raw" else None},
    )  # fmt: skip
    save(path, data)
    return Merged(
        output_file=path,
        format=kind,
        chip_type=made_for,
        size=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        address=start,
        parts=tuple(MergedPart(one.address, one.size, one.source, md5_of(one.data)) for one in regions),
        padding=len(data) - sum(one.size for one in regions) if kind == "raw" else 0,
        notes=tuple(line for line in transcript.text.splitlines() if "lash param" in line or "SHA digest" in line)
        + tuple(transcript.warnings if flash_mode != "keep" or flash_freq != "keep" or flash_size != "keep" else ()),
    )


def regions_of(files: Parts) -> tuple[list[Region], str | None]:
    """Return the contents of a build folder, or of files by address, and the chip of the build if it names one.

    Raises:
        FirmwareError: if there are none, one is missing, empty or in an unsupported format, or an address is invalid.
    """
    if isinstance(files, (str, os.PathLike)):
        build = Firmware.open(files)
        return list(build.regions), build.chip
    pairs = files.items() if isinstance(files, Mapping) else [(one.address, one.path) for one in files]
    # One by one: parts of one file may share a sector, unlike regions that are flashed separately.
    regions = [region for pair in pairs for region in make_regions([pair])]
    if not regions:
        raise FirmwareError("there is nothing to merge", hint="give files and their addresses, or a build folder")
    for region in regions:
        _check_raw(region)
    return sorted(regions, key=lambda region: region.address), None


def _check_raw(region: Region) -> None:
    for pattern, name in _OTHER_FORMATS.items():
        if pattern.match(region.data):
            raise FirmwareError(
                f"{region.source} is {name}, which contains addresses", hint="give the images it was made of"
            )


def _check_apart(regions: Sequence[Region]) -> None:
    for region, following in itertools.pairwise(regions):
        if region.end > following.address:
            raise FirmwareError(
                f"{region.source} ({region.address:#x} to {region.end:#x}) overlaps {following.source} "
                f"(from {following.address:#x})"
            )


def _chip_for(regions: Iterable[Region], build_chip: str | None) -> str:
    named = {region.source: found for region in regions if (found := chip_of(region.data)) is not None}
    chips = sorted({build_chip, *named.values()} - {None}, key=str)
    if len(chips) > 1:
        words = ", ".join(f"{source} is for the {chip}" for source, chip in named.items())
        raise FirmwareError(f"the files are for different chips: {words}")
    if not chips or chips[0] is None:
        raise FirmwareError("no file names its chip", hint="give the chip, e.g. esp32c3")
    return chips[0]


def _check_arguments(regions: Sequence[Region], chip: str, kind: Format, start: int, pad_to_size: str | None) -> None:
    first, last = regions[0], regions[-1]
    if last.end > _LARGEST_FLASH:
        raise FirmwareError(f"{last.source} ends at {last.end:#x}, beyond the largest flash")
    if first.address < start:
        raise OperationError(f"{first.source} at {first.address:#x} is before the target offset {start:#x}")
    if pad_to_size is None:
        return
    if kind != "raw":
        raise OperationError(f"only raw files can be padded, not {kind}", hint="omit pad_to_size")
    check_setting("size", pad_to_size, CHIP_DEFS[chip].FLASH_SIZES, chip)
    if last.end > size_argument(pad_to_size.partition("-")[0], "size to pad to"):
        raise FirmwareError(f"{last.source} ends at {last.end:#x}, beyond {pad_to_size}")


def _check_settings(chip: str, mode: str, frequency: str, size: str) -> None:
    rom = CHIP_DEFS[chip]
    check_setting("mode", mode, (*FLASH_MODES, "keep"), chip)
    if frequency != "keep":
        check_setting("frequency", frequency, rom.FLASH_FREQUENCY, chip)
    if size != "keep":
        check_setting("size", size, rom.FLASH_SIZES, chip)


def _merged(
    regions: Sequence[Region],
    transcript: Transcript,
    chip: str,
    kind: Format,
    settings: Mapping[str, str],
    more: Mapping[str, int | str | None],
) -> bytes:
    from esptool import cmds

    pairs = [(region.address, region.data) for region in regions]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "merged")
        try:
            with capture(transcript):
                cmds.merge_bin(pairs, chip, str(place), format=kind, **settings, **more)  # pyright: ignore[reportArgumentType]
        except Exception as error:  # esptool and intelhex raise their own errors
            raise FirmwareError(f"the files cannot be merged: {error or type(error).__name__}") from error
        return place.read_bytes()
