"""Reduces what is flashed: images without padding and blank sectors, and digests to verify the same content."""

from __future__ import annotations

import json
import math
import re
import shutil
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pytest_esp.errors import FirmwareError, OperationError
from pytest_esp.formats.files import ReadPath, WritePath, resolve, save
from pytest_esp.formats.firmware import Firmware, load
from pytest_esp.formats.regions import SECTOR, Region, is_blank, md5_of, size_argument
from pytest_esp.operations.registry import file_operation
from pytest_esp.operations.results import Address

# Typical times of a flash chip (Winbond W25Q32JV, data sheet, "AC Electrical Characteristics"), in seconds.
_PAGE, _PAGE_TIME = 256, 0.0004
_BLOCK, _BLOCK_ERASE_TIME = 0x10000, 0.15
_SECTOR_ERASE_TIME = 0.045
_PART_TIME = 0.02  # overhead of esptool and the stub for each part
_BITS_PER_BYTE = 10  # on a UART
_WORD = 4

Prefer = Literal["bytes", "time"]

_LISTING = "flasher_args.json"
_PART_NAME = re.compile(r"0x[0-9a-f]+\.bin")


@dataclass(frozen=True)
class Part:
    """Data to flash at an address. Sizes in bytes; *compressed_size* is what is sent over the wire."""

    address: Address
    size: int
    compressed_size: int
    md5: str
    file: Path


@dataclass(frozen=True)
class Content:
    """The final content of a region: the MD5 that the chip must compute for it (`flash.md5`)."""

    address: Address
    size: int
    md5: str
    source: str


@dataclass(frozen=True)
class Blank:
    """A blank region that is not flashed; it must be erased if the flash is not erased yet. In bytes."""

    address: Address
    size: int


@dataclass(frozen=True)
class Optimized:
    """A smaller build. Sizes in bytes; times in seconds, calculated for *baud* and a typical flash chip.

    Attributes:
        output_dir: build folder with the parts, ready to flash.
        parts: the parts to flash, by address.
        blank: the omitted regions, by address.
        contents: digests to verify that the flash has the content of the whole images.
        size, compressed_size: of all parts; ``..._before`` are for the whole images.
        erase_seconds: time to erase *blank*, if needed.
        notes: points to consider.
    """

    output_dir: Path
    parts: tuple[Part, ...]
    blank: tuple[Blank, ...]
    contents: tuple[Content, ...]
    size_before: int
    size: int
    compressed_size_before: int
    compressed_size: int
    baud: int
    seconds_before: float
    seconds: float
    seconds_saved: float
    erase_seconds: float
    notes: tuple[str, ...]


@file_operation(group="firmware")
def optimize(
    binary_file: ReadPath,
    output_dir: WritePath | None = None,
    *,
    address: int | str | None = None,
    prefer: Prefer = "bytes",
    min_gap: int | str = "4KB",
    baud: int = 460800,
    overwrite: bool = False,
) -> Optimized:
    """Create a build that is faster to flash: padding is dropped, and images are split at blank sectors.

    On erased flash the resulting content is identical, which the MD5s in `contents` verify. Otherwise the regions in
    `blank` must be erased first.

    Args:
        binary_file: an image or a build folder.
        output_dir: build folder to create, with the parts and their flasher_args.json; by default NAME-parts beside
            *binary_file*.
        address: address in flash of an image that is neither an app nor merged.
        prefer: "bytes" omits every gap; "time" omits only gaps that save time: flash erases a block of 64 KB faster
            than the single sectors that remain of it.
        min_gap: minimum number of consecutive blank bytes to omit, in bytes or e.g. 64KB.
        baud: baud rate to calculate times for.
        overwrite: replace the folder, if it was made by this operation.

    Raises:
        FirmwareError: if the firmware is missing or damaged, entirely blank, or has no address.
        OperationError: if an argument is invalid, or the folder exists or cannot be written.
    """
    gap = max(size_argument(min_gap, "gap"), SECTOR)
    if baud <= 0:
        raise OperationError(f"invalid baud rate {baud}")
    build = load(binary_file, address)
    beside = Path(binary_file).with_name(f"{Path(binary_file).stem}-parts")
    folder = resolve(beside if output_dir is None else output_dir, "write")
    _check_folder(folder, overwrite)
    pieces = [
        piece
        for region in build.regions
        for piece in (_pieces(region, gap) if prefer == "bytes" else _quickest(region, gap, baud))
    ]
    if not pieces:
        raise FirmwareError(f"{binary_file} is blank: nothing to flash", hint="erase the flash instead")
    packed, packed_before = [_compressed(one.data) for one in pieces], sum(_compressed(r.data) for r in build.regions)
    parts = tuple(
        Part(one.address, one.size, size, md5_of(one.data), folder / f"{one.address:#x}.bin")
        for one, size in zip(pieces, packed, strict=True)
    )
    _write(folder, build, pieces, parts)
    blank = tuple(_blank(build.regions, pieces))
    before = sum(_time(one, baud) for one in build.regions)
    after = sum(_seconds(one.address, one.size, one.compressed_size, baud) for one in parts)
    return Optimized(
        output_dir=folder,
        parts=parts,
        blank=blank,
        contents=tuple(Content(one.address, one.size, md5_of(one.data), one.source) for one in build.regions),
        size_before=sum(one.size for one in build.regions),
        size=sum(one.size for one in parts),
        compressed_size_before=packed_before,
        compressed_size=sum(packed),
        baud=baud,
        seconds_before=round(before, 3),
        seconds=round(after, 3),
        seconds_saved=round(before - after, 3),
        erase_seconds=round(sum(_erase_seconds(one.address, one.size) for one in blank), 3),
        notes=tuple(_notes(blank, before - after)),
    )


def _notes(blank: Sequence[Blank], saved: float) -> Iterator[str]:
    if blank:
        yield "if the flash is not erased, erase `blank` first: the parts do not change it"
    if saved < 0:
        yield "this takes longer, because single sectors are erased instead of whole blocks: prefer time"


def _quickest(region: Region, gap: int, baudrate: int) -> list[Region]:
    """Return the parts of a region; pieces stay together if the flash erases large blocks faster than sectors."""
    chosen: list[Region] = []
    for piece in _pieces(region, gap):
        joined = _between(region, chosen[-1].address, piece.end) if chosen else piece
        if chosen and _time(joined, baudrate) <= _time(chosen[-1], baudrate) + _time(piece, baudrate):
            chosen[-1] = joined
        else:
            chosen.append(piece)
    if len(chosen) > 1:
        trimmed = _between(region, chosen[0].address, chosen[-1].end)
        if _time(trimmed, baudrate) <= sum(_time(piece, baudrate) for piece in chosen):
            return [trimmed]
    return chosen


def _time(region: Region, baudrate: int) -> float:
    return _seconds(region.address, region.size, _compressed(region.data), baudrate)


def _pieces(region: Region, gap: int) -> Iterator[Region]:
    """Yield the parts of a region separated by *gap* or more blank bytes, in whole sectors of the flash."""
    begin: int | None = None
    blank_from = region.address
    for start, end in _sectors(region.address, region.end):
        if is_blank(region.data[start - region.address : end - region.address]):
            continue
        if begin is None or start - blank_from >= gap:
            if begin is not None:
                yield _between(region, begin, blank_from)
            begin = start
        blank_from = end
    if begin is not None:
        yield _between(region, begin, blank_from)


def _sectors(address: int, end: int) -> Iterator[tuple[int, int]]:
    while address < end:
        following = min((address // SECTOR + 1) * SECTOR, end)
        yield address, following
        address = following


def _between(region: Region, begin: int, end: int) -> Region:
    """Return a part of a region without trailing blank bytes; flash is written in whole words."""
    data = region.data[begin - region.address : end - region.address]
    used = len(data.rstrip(b"\xff"))
    return Region(begin, data[: -(-used // _WORD) * _WORD], region.source)


def _blank(regions: Sequence[Region], pieces: Sequence[Region]) -> Iterator[Blank]:
    """Yield the whole sectors of *regions* that no piece touches; writing a piece erases every sector it touches."""
    touched = {sector for one in pieces for sector in range(one.address // SECTOR, (one.end - 1) // SECTOR + 1)}
    run: list[int] = []
    for region in regions:
        for sector in range(region.address // SECTOR, (region.end - 1) // SECTOR + 1):
            if sector in touched:
                continue
            if run and sector != run[-1] + 1:
                yield Blank(run[0] * SECTOR, len(run) * SECTOR)
                run = []
            run.append(sector)
    if run:
        yield Blank(run[0] * SECTOR, len(run) * SECTOR)


def _compressed(data: bytes) -> int:
    return len(zlib.compress(data, 9))  # the compression of esptool


def _seconds(address: int, size: int, compressed_size: int, baudrate: int) -> float:
    wire = compressed_size * _BITS_PER_BYTE / baudrate
    programming = math.ceil(size / _PAGE) * _PAGE_TIME
    return max(wire, programming) + _erase_seconds(address, size) + _PART_TIME  # programming and receiving overlap


def _erase_seconds(address: int, size: int) -> float:
    first, last = address // SECTOR, (address + size - 1) // SECTOR + 1
    blocks = max(last * SECTOR // _BLOCK - -(-first * SECTOR // _BLOCK), 0)
    sectors = last - first - blocks * (_BLOCK // SECTOR)
    return blocks * _BLOCK_ERASE_TIME + sectors * _SECTOR_ERASE_TIME


def _check_folder(folder: Path, overwrite: bool) -> None:
    if not folder.exists():
        return
    names = {one.name for one in folder.iterdir()} if folder.is_dir() else set[str]()
    ours = _LISTING in names and all(_PART_NAME.fullmatch(name) for name in names - {_LISTING})
    if not (overwrite and ours):
        raise OperationError(
            f"{folder} exists already",
            hint="use another folder, or set overwrite" if ours else "use another folder: it contains other files",
        )


def _write(folder: Path, build: Firmware, pieces: Sequence[Region], parts: Sequence[Part]) -> None:
    listing = {
        "write_flash_args": [],
        "flash_files": {f"{part.address:#x}": part.file.name for part in parts},
        "extra_esptool_args": {"chip": build.chip} if build.chip else {},
    }
    try:
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
    except OSError as error:
        raise OperationError(f"{folder} cannot be written: {error.strerror or error}") from error
    for piece, part in zip(pieces, parts, strict=True):
        save(part.file, piece.data)
    save(folder / _LISTING, json.dumps(listing, indent=2).encode() + b"\n")
