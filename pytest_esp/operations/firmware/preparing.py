"""Prepares an app for flashing: its image, descriptor and size analysis."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pytest_esp.errors import FirmwareError
from pytest_esp.formats.elf import read_elf
from pytest_esp.formats.files import ReadPath, WritePath, known_chip, new_file, save
from pytest_esp.formats.images import app_of
from pytest_esp.formats.listings import read_json
from pytest_esp.names import ChipName
from pytest_esp.operations.firmware import image_report, size_analysis
from pytest_esp.operations.firmware.elf_image import (
    NO_LIMIT,
    FlashMode,
    FlashSettings,
    image_of,
    warnings_of,
)
from pytest_esp.operations.firmware.image_report import FirmwareAnalysis
from pytest_esp.operations.firmware.size_analysis import SizeAnalysis
from pytest_esp.operations.registry import file_operation

_NO_DESCRIPTOR = "no app descriptor: the bootloader and updates cannot read its project and version"


@dataclass(frozen=True)
class PreparedApp:
    """An app image that was created and analyzed.

    Attributes:
        image: report with descriptor, hash, and whether it fits.
        sizes: size analysis.
        warnings: anything unusual about it; empty if nothing is.
    """

    output_file: Path
    chip_type: str
    image: FirmwareAnalysis
    sizes: SizeAnalysis
    warnings: tuple[str, ...]


@file_operation(group="firmware")
def prepare(
    elf_file: ReadPath,
    chip_type: ChipName,
    output_file: WritePath | None = None,
    *,
    flash_mode: FlashMode | None = None,
    flash_freq: str | None = None,
    flash_size: str | None = None,
    min_revision: int = 0,
    max_revision: int = NO_LIMIT,
    partition_table: ReadPath | None = None,
    top: int = 10,
    overwrite: bool = False,
) -> PreparedApp:
    """Convert an app's ELF file to an image, and report its descriptor, hash, sizes, and whether it fits.

    The SHA-256 of the ELF file is put into the descriptor wherever it is, so that panics can be decoded.

    Args:
        elf_file: ELF file as written by the linker.
        chip_type: chip name as in esptool, e.g. esp32c3.
        output_file: file for the image; by default the name of the ELF file with the suffix .bin.
        flash_mode: flash mode in the header; by default that of the build's flasher_args.json.
        flash_freq: flash frequency in the header, e.g. 40m; by default that of the build's flasher_args.json.
        flash_size: flash size in the header, e.g. 4MB; by default that of the build's flasher_args.json.
        min_revision: minimum chip revision, major * 100 + minor.
        max_revision: maximum chip revision, major * 100 + minor; 65535 is no limit.
        partition_table: .bin or .csv, to check whether it fits; by default that of the build folder.
        top: number of largest symbols and archives to list.
        overwrite: replace *output_file* if it exists.

    Raises:
        FirmwareError: if the ELF file is damaged, truncated, or not for this chip.
        OperationError: if the chip is unknown, a setting is invalid, or the file exists or cannot be written.
    """
    chip = known_chip(chip_type)
    elf = read_elf(elf_file)
    path = new_file(output_file or Path(elf_file).with_suffix(".bin"), overwrite)
    settings = _settings(Path(elf_file).parent, flash_mode, flash_freq, flash_size)
    image, said = image_of(elf, chip, settings, min_revision=min_revision, max_revision=max_revision)
    app = app_of(image)
    if app is not None and not int(app.elf_sha256, 16):
        image, said = image_of(
            elf, chip, settings, min_revision=min_revision, max_revision=max_revision, hash_in_descriptor=True
        )
    found = image_report.analysis_of(image, path, chip, partition_table)
    sizes = size_analysis.size(elf_file, chip, top=top)
    save(path, image)  # last, so that nothing is written if anything fails
    return PreparedApp(
        output_file=path,
        chip_type=chip,
        image=found,
        sizes=sizes,
        warnings=(*warnings_of(elf, chip), *said, *found.problems, *((_NO_DESCRIPTOR,) if app is None else ())),
    )


def _settings(folder: Path, mode: FlashMode | None, frequency: str | None, size: str | None) -> FlashSettings:
    try:
        listing = read_json(folder / "flasher_args.json")
        listed = {str(key): str(value) for key, value in listing["flash_settings"].items()}
    except (FirmwareError, KeyError, AttributeError):
        listed = {}
    listed = {key: value for key, value in listed.items() if value not in ("keep", "detect")}
    usual = FlashSettings()
    return FlashSettings(
        mode or _mode(listed.get("flash_mode")) or usual.mode,
        frequency or listed.get("flash_freq"),
        size or listed.get("flash_size", usual.size),
    )


def _mode(name: str | None) -> FlashMode | None:
    modes: dict[str, FlashMode] = {"qio": "qio", "qout": "qout", "dio": "dio", "dout": "dout"}
    return modes.get(name or "")
