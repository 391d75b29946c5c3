"""Analyzes firmware files: images (header, segments, checks, descriptor), partition tables, and whether they fit.

Source: ``esp_app_format.h`` and ``esp_bootloader_desc.h`` of ESP-IDF; images are parsed by esptool.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esp_idf_defs.app_description import AppDescription
from esptool.targets import CHIP_DEFS

from pytest_esp.errors import FirmwareError, OperationError
from pytest_esp.formats import partition_table
from pytest_esp.formats.boot_image import MAGIC, ImageError, read_image
from pytest_esp.formats.file_kinds import FileContents, FileKind, ImageKind, chip_in, image_kind, look, why_misplaced
from pytest_esp.formats.files import FileName, ReadPath, known_chip, read_file
from pytest_esp.formats.hex_and_uf2 import contents_of, is_container
from pytest_esp.formats.images import App, app_of, has_bootloader_descriptor
from pytest_esp.formats.partition_table import Partition
from pytest_esp.formats.regions import is_blank
from pytest_esp.link.logs import Transcript, capture
from pytest_esp.names import ChipName
from pytest_esp.operations.firmware.signatures import Signature, signature_of
from pytest_esp.operations.registry import file_operation
from pytest_esp.operations.results import Address

_SMALLEST = 8  # bytes of the shortest image header
_MAGIC_V2 = 0xEA  # second-stage images of an ESP8266
_DESCRIPTOR = AppDescription.FIRMWARE_BINARY_OFFSET
_BOOTLOADER_DESCRIPTOR = struct.Struct("<B3xI32s24s16x")
_MODES = {0: "qio", 1: "qout", 2: "dio", 3: "dout"}
_NO_LIMIT = (0, 0xFFFF)
_TABLE_FILE = Path("partition_table", "partition-table.bin")  # in a build folder of ESP-IDF
_USUAL_TABLE_OFFSET = 0x8000
_PINS = ("clk", "q", "d", "cs", "hd", "wp")


@dataclass(frozen=True)
class ImageSegment:
    """One segment; offset (of its header, as reported by esptool) and size in bytes.

    Attributes:
        memory: esptool's name of the memory at *address*.
    """

    address: Address
    size: int
    offset: Address
    memory: tuple[str, ...]


@dataclass(frozen=True)
class AppDetails:
    """Fields that only some apps' descriptors have. Revisions (of the eFuse block) in the form "v0.3".

    Attributes:
        secure_version: for anti-rollback.
        mmu_page_size: in bytes; None if the descriptor does not have it.
    """

    secure_version: int
    min_efuse_revision: str
    max_efuse_revision: str
    mmu_page_size: int | None


@dataclass(frozen=True)
class BootloaderDetails:
    """A bootloader's descriptor (``esp_bootloader_desc_t``); *compiled* is None in reproducible builds."""

    version: int
    idf_version: str
    compiled: str | None


@dataclass(frozen=True)
class ImageReport:
    """One image.

    Attributes:
        offset: in the file; for Intel HEX and UF2, the address.
        kind: app and bootloader by descriptor or by segments in flash; "image" is anything else that runs in RAM.
        size: in bytes, including its hash.
        flash_mode, flash_freq, flash_size: from the header; None for values without a meaning.
        chip_id, write_protect_pin, pin_drives: from the header; None for an ESP8266, whose header lacks them.
        min_revision, max_revision: of the chip, e.g. "v0.3"; None if not limited.
        checksum_valid: whether the checksum byte at the end is right.
        hash: appended SHA-256, 64 hex digits; None if there is none.
        problem: why the bootloader would reject it, in the bootloader's words; None if it would not.
    """

    offset: Address
    kind: ImageKind
    chip_type: str
    size: int
    entry: Address
    flash_mode: str | None
    flash_freq: str | None
    flash_size: str | None
    chip_id: int | None
    write_protect_pin: int | None
    pin_drives: dict[str, int] | None
    min_revision: str | None
    max_revision: str | None
    segments: tuple[ImageSegment, ...]
    checksum: Address
    checksum_valid: bool
    hash: str | None
    hash_valid: bool | None
    app: App | None
    app_details: AppDetails | None
    bootloader: BootloaderDetails | None
    signature: Signature | None
    problem: str | None

    @property
    def end(self) -> int:
        """The offset in the file of its end, including its signature."""
        return self.offset + (self.signature.size(self.size) if self.signature else self.size)


@dataclass(frozen=True)
class Fit:
    """Whether an image fits into a place in flash. Sizes in bytes; *free* is negative if it does not fit."""

    place: str
    room: int
    needed: int
    free: int
    fits: bool


@dataclass(frozen=True)
class FirmwareAnalysis:
    """The contents of a file.

    Attributes:
        kind: "merged" means several parts, each at its place.
        address: the flash address of its first byte; None if the partition table decides (an app, a file system).
        size: in bytes; *sha256* and *md5* are of the whole file.
        partitions: from the table in the file, beside it, or given.
        fits: every place of *partitions* that an image of the file could go to.
        problems: everything that is wrong, in words; empty if nothing is.
    """

    binary_file: Path
    kind: FileKind
    address: Address | None
    size: int
    sha256: str
    md5: str
    images: tuple[ImageReport, ...]
    partitions: tuple[Partition, ...]
    fits: tuple[Fit, ...]
    problems: tuple[str, ...]


@file_operation(group="firmware")
def analyze(
    binary_file: ReadPath,
    chip_type: ChipName | None = None,
    *,
    partition_table: ReadPath | None = None,
    key_file: ReadPath | None = None,
) -> FirmwareAnalysis:
    """Analyze a firmware file: header, segments, descriptor, checksum, hash, signature, chip, and whether it fits.

    Everything that is wrong is listed in `problems`.

    Args:
        binary_file: an app, a bootloader, a partition table, or a merged image (raw, Intel HEX or UF2).
        chip_type: chip that it should be for, e.g. esp32c3; by default the one named in its header.
        partition_table: .bin or .csv, to check whether it fits; by default that of its build folder.
        key_file: key in PEM, public or private, that it should be signed with.

    Raises:
        FirmwareError: if it is none of these, or truncated.
        OperationError: if chip, table or key are invalid.
    """
    return analysis_of(read_file(binary_file, "firmware"), binary_file, chip_type, partition_table, key_file)


def analysis_of(
    file: bytes,
    binary_file: FileName,
    chip: str | None = None,
    partition_table: FileName | None = None,
    key_file: FileName | None = None,
) -> FirmwareAnalysis:
    """Return what `analyze` reports for *file*, the contents of *binary_file*, which may not be written yet.

    Raises:
        FirmwareError, OperationError: see `analyze`.
    """
    if chip is not None:
        chip = known_chip(chip)
    data = contents_of(file, str(binary_file))
    what = look(data, chip)
    images, partitions, problems = _details(data, what, str(binary_file), chip, key_file)
    kind, address = what.kind, what.first_address
    if kind == "merged" and (problem := why_misplaced(what, 0 if is_container(file) else address)) is not None:
        problems.append(problem)
    if partition_table is not None:
        partitions = _table_of(Path(partition_table), what.chip)
    elif not partitions:
        beside = Path(binary_file).parent / _TABLE_FILE
        partitions = _table_of(beside, what.chip) if beside.is_file() else ()
    fits = tuple(_fits(images, partitions, merged=kind == "merged"))
    return FirmwareAnalysis(
        binary_file=Path(binary_file),
        kind=kind,
        address=address,
        size=len(file),
        sha256=hashlib.sha256(file).hexdigest(),
        md5=hashlib.md5(file, usedforsecurity=False).hexdigest(),
        images=images,
        partitions=partitions,
        fits=fits,
        problems=(
            *problems,
            *_problems(images, fits, chip),
            *(_unsigned(images) if key_file is not None else ()),
            *(() if kind == "merged" else _surplus(images, data)),
        ),
    )


def report(
    data: bytes, source: str, offset: int = 0, chip: str | None = None, key_file: FileName | None = None
) -> ImageReport:
    """Return a report on the image at *offset* of *data*.

    Raises:
        FirmwareError: if there is none, or it is truncated.
    """
    image = data[offset:]
    made_for = chip_in(image) or chip
    if made_for is None or image[0] not in (MAGIC, _MAGIC_V2):
        raise FirmwareError(
            f"{source} is not an image: it begins with {image[:4].hex(' ') or 'nothing'}",
            hint="decrypt an encrypted image first; convert an ELF file to an image first",
        )
    size, problem = _verdict(image, made_for)
    parsed = _parsed(image, made_for, source, problem)
    if size is None:
        size = _size(image, parsed)
    rom, has_hash = CHIP_DEFS[made_for], bool(getattr(parsed, "append_digest", False))
    app = app_of(image)
    bootloader = None if app else _bootloader_details(image)
    segments = tuple(
        ImageSegment(one.addr, len(one.data), offset + one.file_offs, tuple(one.get_memory_type(parsed)))
        for one in parsed.segments
    )
    extended = made_for != "esp8266"
    low, high = getattr(parsed, "min_rev_full", 0), getattr(parsed, "max_rev_full", 0)
    return ImageReport(
        offset=offset,
        kind=image_kind(image, made_for),
        chip_type=made_for,
        size=size,
        entry=parsed.entrypoint,
        flash_mode=_MODES.get(parsed.flash_mode),
        flash_freq=_name(rom.FLASH_FREQUENCY, parsed.flash_size_freq & 0x0F),
        flash_size=_name(rom.FLASH_SIZES, parsed.flash_size_freq & 0xF0),
        chip_id=parsed.chip_id if extended else None,
        write_protect_pin=parsed.wp_pin if extended else None,
        pin_drives={pin: getattr(parsed, f"{pin}_drv") for pin in _PINS} if extended else None,
        min_revision=_revision(low) if low else None,
        max_revision=_revision(high) if high not in _NO_LIMIT else None,
        segments=segments,
        checksum=parsed.checksum,
        checksum_valid=parsed.checksum == parsed.calculate_checksum(),
        hash=parsed.stored_digest.hex() if has_hash else None,
        hash_valid=parsed.stored_digest == parsed.calc_digest if has_hash else None,
        app=app,
        app_details=_app_details(image) if app else None,
        bootloader=bootloader,
        signature=signature_of(image, size, key_file),
        problem=problem,
    )


# -- one image


def _verdict(image: bytes, chip: str) -> tuple[int | None, str | None]:
    """Return the size of the image, and what the bootloader would reject about it, if anything."""
    if image[:1] == bytes([_MAGIC_V2]):
        return None, None

    def read(place: int, size: int) -> bytes:
        if place + size > len(image):
            raise ImageError(f"image is truncated: {size} bytes needed at {place:#x}, but it has only {len(image):#x}")
        return image[place : place + size]

    try:
        return read_image(read, 0, len(image), extended=chip != "esp8266").size, None
    except ImageError as error:
        return None, str(error)


def _parsed(image: bytes, chip: str, source: str, problem: str | None) -> Any:
    from esptool.bin_image import LoadFirmwareImage

    try:
        with capture(Transcript()):
            return LoadFirmwareImage(chip, image)
    except Exception as error:  # for truncated images esptool also raises errors of struct, and TypeError
        words = problem or str(error) or type(error).__name__
        raise FirmwareError(f"{source} is damaged: {words}", hint="build it again, or copy it again") from error


def _size(image: bytes, parsed: Any) -> int:
    """Return the size of an image that the bootloader would reject."""
    if getattr(parsed, "append_digest", False):
        return min(parsed.data_length + 32, len(image))
    last = parsed.segments[-1] if parsed.segments else None
    end = last.file_offs + 8 + len(last.data) if last is not None else 8
    return min((end + 16) // 16 * 16, len(image))


def _name(known: dict[str, int], number: int) -> str | None:
    return next((name for name, value in known.items() if value == number), None)


def _revision(number: int) -> str:
    return f"v{number // 100}.{number % 100}"


def _app_details(image: bytes) -> AppDetails:
    (secure_version,) = struct.unpack_from("<I", image, _DESCRIPTOR + 4)
    low, high, page = struct.unpack_from("<HHB", image, _DESCRIPTOR + 176)
    return AppDetails(secure_version, _revision(low), _revision(high), 1 << page if 0 < page < 32 else None)


def _bootloader_details(image: bytes) -> BootloaderDetails | None:
    if len(image) < _DESCRIPTOR + _BOOTLOADER_DESCRIPTOR.size or not has_bootloader_descriptor(image):
        return None
    _, version, idf, compiled = _BOOTLOADER_DESCRIPTOR.unpack_from(image, _DESCRIPTOR)
    return BootloaderDetails(version, _text(idf), _text(compiled) or None)


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "replace")


# -- a file


def _details(
    data: bytes, what: FileContents, source: str, chip: str | None, key_file: FileName | None
) -> tuple[tuple[ImageReport, ...], tuple[Partition, ...], list[str]]:
    """Return the images and the table in a file, and what is wrong with unreadable ones."""
    if what.kind == "data":
        if not is_blank(data[:_SMALLEST]):
            report(data, source, 0, chip, key_file)  # raises, with the reason
        raise FirmwareError(f"{source} is not firmware: it contains neither an image nor a partition table", hint=_HINT)
    if what.kind == "partition-table":
        return (), partition_table.parse(data), []
    images: list[ImageReport] = []
    partitions: tuple[Partition, ...] = ()
    problems: list[str] = []
    for found in what.images:
        try:
            images.append(report(data, source, found.offset, None if found.offset else chip, key_file))
        except FirmwareError as error:
            if not found.offset:
                raise
            problems.append(f"at {found.offset:#x}: {error.message}")
    if what.table is not None:
        try:
            partitions = partition_table.parse(data[what.table : what.table + partition_table.TABLE_SIZE])
        except OperationError as error:
            problems.append(f"at {what.table:#x}: {error.message}")
    return tuple(images), partitions, problems


_HINT = "give an app, a bootloader, a partition table or a merged image; decrypt an encrypted image first"


def _table_of(path: Path, chip: str | None) -> tuple[Partition, ...]:
    data = read_file(path, "partition table")
    if path.suffix == ".csv":
        data = partition_table.from_csv(partition_table.text_of(data), chip=chip)
    return partition_table.parse(data)


def _fits(images: Sequence[ImageReport], partitions: Sequence[Partition], *, merged: bool) -> Iterator[Fit]:
    """Yield how images fit: in a merged file the place is known; a single app could go to every app partition."""
    for image in images:
        needed = image.end - image.offset
        if image.kind == "bootloader" or (
            merged and image.offset == CHIP_DEFS[image.chip_type].BOOTLOADER_FLASH_OFFSET
        ):
            yield fit_of_bootloader(image)
            continue
        for part in partitions:
            if part.type == "app" and (not merged or part.offset == image.offset):
                yield _fit(part.name, part.size, needed)


def fit_of_bootloader(image: ImageReport) -> Fit:
    """Return how a bootloader fits between its address in flash and the usual one of the partition table."""
    offset = CHIP_DEFS[image.chip_type].BOOTLOADER_FLASH_OFFSET
    return _fit(f"bootloader at {offset:#x}", _USUAL_TABLE_OFFSET - offset, image.end - image.offset)


def _fit(place: str, room: int, needed: int) -> Fit:
    return Fit(place, room, needed, room - needed, needed <= room)


def _problems(images: Sequence[ImageReport], fits: Sequence[Fit], chip: str | None) -> Iterator[str]:
    for image in images:
        where = f"image at {image.offset:#x}: " if len(images) > 1 else ""
        if chip not in (None, image.chip_type):
            yield f"{where}it is for the {image.chip_type}, not for the {chip}"
        if image.problem is not None:
            yield where + image.problem
        if image.signature is not None and image.signature.problem is not None:
            yield f"{where}its signature is wrong: {image.signature.problem}"
        if image.signature is not None and image.signature.by_given_key is False:
            yield f"{where}it is not signed with the given key"
    yield from (f"it does not fit into {fit.place}: {-fit.free} bytes too large" for fit in fits if not fit.fits)


def _unsigned(images: Sequence[ImageReport]) -> Iterator[str]:
    """Report images that should be signed but are not; secure boot v1 signs apps only."""
    first_version = any(image.signature is not None and image.signature.version == 1 for image in images)
    for image in images:
        if image.signature is None and (image.kind == "app" or not first_version):
            yield f"{f'image at {image.offset:#x}: ' if len(images) > 1 else ''}it is not signed"


def _surplus(images: Sequence[ImageReport], data: bytes) -> Iterator[str]:
    """Report bytes after an image that are neither its signature nor padding."""
    for image in images:
        rest = data[image.end :]
        if image.chip_type != "esp8266" and not is_blank(rest) and any(rest):
            yield f"{len(rest)} unexpected bytes at {image.end:#x}, after the image"
