"""Operations on flash."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from esptool import cmds
from esptool.targets import CHIP_DEFS

from pytest_esp.errors import EspError, FirmwareError, OperationError
from pytest_esp.link.link import Link
from pytest_esp.link.logs import Progress
from pytest_esp.operations.chip import flash_size_of
from pytest_esp.operations.registry import Effect, operation
from pytest_esp.units import format_size, parse_size

SECTOR = 0x1000
_IMAGE_MAGIC = 0xE9
_HEADER_SIZE = 24
_MOST_SEGMENTS = 16

Source = bytes | str | os.PathLike[str]
"""Contents, or the file that has them."""
Regions = Sequence[tuple[int | str, Source]] | str | os.PathLike[str]
"""Pairs of address and source, or an ESP-IDF build folder (with its flasher_args.json)."""


@dataclass(frozen=True)
class FlashInfo:
    """The flash chip: its id as RDID gives it, maker and device, and its size in bytes (None if the id is unknown)."""

    flash_id: int
    manufacturer: int
    device: int
    size: int | None


@operation(Effect.READ)
def info(link: Link) -> FlashInfo:
    """Return which flash chip answers (``ESPLoader.flash_id``)."""
    with link.session.use("reading the flash id", flash=True) as esp:
        number = int(esp.flash_id(cache=False))
    device = (number >> 8 & 0xFF) << 8 | number >> 16
    return FlashInfo(number, number & 0xFF, device, flash_size_of(number))


@dataclass(frozen=True)
class FlashRead:
    """What was read: *size* bytes from *address*, and where they were saved, if they were."""

    address: int
    size: int
    data: bytes
    output_file: Path | None = None


@operation(Effect.READ)
def read(
    link: Link,
    address: int | str,
    size: int | str,
    output_file: str | os.PathLike[str] | None = None,
    *,
    progress: Progress | None = None,
) -> FlashRead:
    """Return *size* bytes of flash from *address*; the stub proves them by an MD5.

    With *output_file* they are saved, too: beside their place and renamed, so that no half file has the right name.

    Raises:
        OperationError: if the region is not in the flash, or the file cannot be written.
        LinkError: if bytes were lost.
    """
    start, length = _range(link, address, size)
    attempted = f"reading {length:#x} bytes of flash at {start:#x}"
    with link.session.use(attempted, flash=True, progress=progress) as esp:
        _check_inside(esp, start, length)
        data = bytes(esp.read_flash(start, length, _without_offset(progress))) if length else b""
    path = _save(Path(output_file), data, attempted) if output_file is not None else None
    return FlashRead(start, length, data, path)


@operation(Effect.READ)
def md5(link: Link, address: int | str, size: int | str) -> str:
    """Return the MD5 (32 hex digits) of a region, computed by the chip (``ESPLoader.flash_md5sum``).

    Raises:
        OperationError: if the region is not in the flash, or the loader has no such command.
    """
    start, length = _range(link, address, size)
    with link.session.use(f"MD5 of {length:#x} bytes at {start:#x}", flash=True) as esp:
        _check_inside(esp, start, length)
        return str(esp.flash_md5sum(start, length))


@dataclass(frozen=True)
class WrittenRegion:
    """One region after a write: *state* is ``"written"`` or ``"unchanged"`` (it was there already)."""

    address: int
    size: int
    source: str
    state: str


@dataclass(frozen=True)
class FlashWrite:
    """What a write did. Sizes are bytes of content, not of what was compressed for the wire."""

    regions: tuple[WrittenRegion, ...]
    bytes_written: int
    bytes_skipped: int
    verified: bool
    elapsed_seconds: float


@operation(Effect.WRITE)
def write(
    link: Link,
    regions: Regions,
    *,
    skip_unchanged: bool = True,
    force: bool = False,
    progress: Progress | None = None,
) -> FlashWrite:
    """Write regions to flash and verify each by the chip's MD5.

    A region that is there already is not written again, on the evidence of the chip's MD5. Everything is checked
    before anything is erased: files, overlaps, the flash's size, and whether an image is for this chip.

    Args:
        regions: pairs of address and source, or an ESP-IDF build folder.
        skip_unchanged: False writes in any case.
        force: write an image even if it is for another chip.
        progress: called with done and total of the region at work.

    Raises:
        FirmwareError: if a file or image is not fit; nothing was touched.
        OperationError, LinkError, PortError: if a write failed; the hint says what state each region is in.
    """
    begun = time.monotonic()
    loaded = load_regions(regions)
    attempted = f"writing {len(loaded)} region(s), {sum(len(data) for _, data, _ in loaded)} bytes"
    with link.session.use(attempted, flash=True) as esp:
        for address, data, source in loaded:
            _check_fits(esp, address, data, source)
            if not force:
                _check_image(link.session.chip, data, source)
    done: list[WrittenRegion] = []
    for address, data, source in loaded:
        try:
            state = _write_one(link, address, data, skip_unchanged, force, progress)
        except EspError as error:
            _tell_states(error, done, loaded)
            raise
        done.append(WrittenRegion(address, len(data), source, state))
    written = sum(region.size for region in done if region.state == "written")
    skipped = sum(region.size for region in done if region.state == "unchanged")
    link.written_bytes += written
    link.skipped_bytes += skipped
    secure = link.session.is_connected and not link.session.is_stub
    return FlashWrite(tuple(done), written, skipped, not secure or written == 0, time.monotonic() - begun)


@dataclass(frozen=True)
class ErasedRegion:
    """What was erased, in bytes."""

    address: int
    size: int


@operation(Effect.ERASE)
def erase(link: Link, region: int | str, size: int | str | None = None) -> ErasedRegion:
    """Erase ``"all"`` of the flash, a partition by its name, or *size* bytes from an address (whole sectors of 4 KB).

    Raises:
        OperationError: if a start has no size, the range is not made of whole sectors, or it is not in the flash.
    """
    if region == "all":
        if size is not None:
            raise OperationError("'all' has no size", board=link.board.name, attempted="erasing flash")
        return _erase_all(link)
    start, length = _erase_range(link, region, size)
    with link.session.use(f"erasing {length:#x} bytes at {start:#x}", flash=True) as esp:
        _check_inside(esp, start, length)
        if start % SECTOR or length % SECTOR:
            raise OperationError(
                f"{start:#x} and {length:#x} are not multiples of a sector ({SECTOR:#x})",
                hint="flash is erased in sectors of 4 KB",
            )
        if length:
            cmds.erase_region(esp, start, length)
    return ErasedRegion(start, length)


@dataclass(frozen=True)
class CheckedRegion:
    """Whether a region holds what it should; *first_difference* is the address of the first byte that is another."""

    address: int
    size: int
    source: str
    matches: bool
    first_difference: int | None


@operation(Effect.READ)
def verify(link: Link, regions: Regions) -> tuple[CheckedRegion, ...]:
    """Compare flash with regions (as for `write`): by MD5, and byte by byte where that differs.

    Raises:
        FirmwareError: if a file cannot be read. OperationError: if a region is not in the flash.
    """
    return tuple(_verify_one(link, address, data, source) for address, data, source in load_regions(regions))


# -- what is to be written

Loaded = tuple[int, bytes, str]
"""Address, contents, and what a message calls them."""


def load_regions(regions: Regions) -> list[Loaded]:
    """Return what *regions* names, ordered by address.

    Raises:
        FirmwareError: if a file is missing, unreadable or empty, or two regions overlap.
    """
    pairs = _build_folder(Path(regions)) if isinstance(regions, (str, os.PathLike)) else regions
    loaded = sorted((_load(address, source) for address, source in pairs), key=lambda region: region[0])
    if not loaded:
        raise FirmwareError("there is nothing to write", hint="give pairs of address and file or bytes")
    for (address, data, source), (following, _, other) in itertools.pairwise(loaded):
        if address + len(data) > following:
            raise FirmwareError(
                f"{source} ({address:#x} to {address + len(data):#x}) overlaps {other} (from {following:#x})"
            )
    return loaded


def _load(address: int | str, source: Source) -> Loaded:
    try:
        start = parse_size(address)
    except ValueError as error:
        raise FirmwareError(f"the address is wrong: {error}") from error
    if isinstance(source, bytes):
        data, name = source, f"{len(source)} bytes"
    else:
        name = os.fspath(source)
        try:
            data = Path(source).read_bytes()
        except OSError as error:
            raise FirmwareError(f"{name} cannot be read: {error.strerror or error}") from error
    if not data:
        raise FirmwareError(f"{name} for {start:#x} is empty", hint="an empty image is a build that went wrong")
    return start, data, name


def _build_folder(folder: Path) -> Iterable[tuple[str, Path]]:
    """Return the files of an ESP-IDF build, as its flasher_args.json lists them."""
    listing = folder / "flasher_args.json"
    try:
        files = json.loads(listing.read_text(encoding="utf-8"))["flash_files"]
        return [(address, folder / name) for address, name in cast(dict[str, str], files).items()]
    except OSError as error:
        raise FirmwareError(
            f"{folder} is no ESP-IDF build folder: {listing.name} cannot be read ({error.strerror})",
            hint="give the folder `build`, or pairs of address and file",
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FirmwareError(f"{listing} is damaged: {error!r}", hint="build the project again") from error


def _check_image(chip: str, data: bytes, source: str) -> None:
    """Refuse an image of another chip; what is no image is not looked at."""
    if len(data) < _HEADER_SIZE or data[0] != _IMAGE_MAGIC or not 0 < data[1] <= _MOST_SEGMENTS or chip == "esp8266":
        return
    chip_id = int.from_bytes(data[12:14], "little")
    if chip_id == CHIP_DEFS[chip].IMAGE_CHIP_ID:
        return
    for name, rom in CHIP_DEFS.items():
        if chip_id == rom.IMAGE_CHIP_ID:
            raise FirmwareError(
                f"{source} is an image for the {rom.CHIP_NAME} ({name}), not for the {CHIP_DEFS[chip].CHIP_NAME}",
                hint=f"build it with `idf.py set-target {chip}`; nothing was written",
            )


def _check_fits(esp: Any, address: int, data: bytes, source: str) -> None:
    size = _flash_size(esp)
    if size is not None and address + len(data) > size:
        raise FirmwareError(
            f"{source} at {address:#x} needs flash up to {address + len(data):#x}, but there are {format_size(size)}",
            hint="is it built for a board with a larger flash? Nothing was written",
        )


# -- inside


def _write_one(
    link: Link, address: int, data: bytes, skip_unchanged: bool, force: bool, progress: Progress | None
) -> str:
    # One call of esptool per file: one that cannot be compressed would turn compression off for all after it.
    attempted = f"writing {len(data)} bytes at {address:#x}"
    with link.session.use(attempted, flash=True, progress=progress) as esp:
        if skip_unchanged and _has_md5(esp) and esp.flash_md5sum(address, len(data)) == _digest(data):
            return "unchanged"
        cmds.write_flash(esp, [(address, data)], force=force)
    return "written"


def _has_md5(esp: Any) -> bool:
    return esp.IS_STUB or not (esp.secure_download_mode or esp.CHIP_NAME == "ESP8266")


def _digest(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _tell_states(error: EspError, done: list[WrittenRegion], loaded: list[Loaded]) -> None:
    """Say in the hint what state each region is in."""
    states = [f"{region.address:#x} {region.state}" for region in done]
    broken, *untouched = loaded[len(done) :]
    states.append(f"{broken[0]:#x} in an unknown state (partly written)")
    states += [f"{address:#x} untouched" for address, _, _ in untouched]
    error.hint = "; ".join(filter(None, (f"regions: {', '.join(states)}", error.hint)))


def _erase_all(link: Link) -> ErasedRegion:
    with link.session.use("erasing all of the flash", flash=True) as esp:
        size = _flash_size(esp)
        if esp.IS_STUB:
            cmds.erase_flash(esp)
        elif size is not None:
            cmds.erase_region(esp, 0, size)
        else:
            raise OperationError("the size of the flash is unknown", hint="erase a region by address and size")
    return ErasedRegion(0, size or 0)


def _erase_range(link: Link, region: int | str, size: int | str | None) -> tuple[int, int]:
    if isinstance(region, str) and not region[:1].isdigit():
        from pytest_esp.operations import partitions

        partition = partitions.find(link, region)
        return partition.offset, partition.size
    if size is None:
        raise OperationError(
            f"the start {region} has no size",
            board=link.board.name,
            attempted="erasing flash",
            hint="give a size, a partition's name, or the word 'all'",
        )
    return _range(link, region, size)


def _verify_one(link: Link, address: int, data: bytes, source: str) -> CheckedRegion:
    with link.session.use(f"verifying {len(data)} bytes at {address:#x}", flash=True) as esp:
        _check_inside(esp, address, len(data))
        if _has_md5(esp) and esp.flash_md5sum(address, len(data)) == _digest(data):
            return CheckedRegion(address, len(data), source, True, None)
        found = bytes(esp.read_flash(address, len(data), None))
    differing = next((index for index, pair in enumerate(zip(data, found, strict=True)) if pair[0] != pair[1]), None)
    return CheckedRegion(
        address, len(data), source, differing is None, None if differing is None else address + differing
    )


def _range(link: Link, address: int | str, size: int | str) -> tuple[int, int]:
    try:
        return parse_size(address), parse_size(size)
    except ValueError as error:
        raise OperationError(str(error), board=link.board.name, attempted="flash access") from error


def _flash_size(esp: Any) -> int | None:
    return None if esp.secure_download_mode else flash_size_of(int(esp.flash_id()))


def _check_inside(esp: Any, address: int, size: int) -> None:
    available = _flash_size(esp)
    if available is not None and address + size > available:
        raise OperationError(
            f"{address:#x} to {address + size:#x} is beyond the flash of {format_size(available)}",
            hint=f"the last address is {available - 1:#x}",
        )


def _without_offset(progress: Progress | None) -> Callable[[int, int, int], None] | None:
    """Return *progress* as ``ESPLoader.read_flash`` calls it: with the offset that the read began at."""
    if progress is None:
        return None

    def tell(done: int, total: int, _offset: int) -> None:
        progress(done, total)

    return tell


def _save(path: Path, data: bytes, attempted: str) -> Path:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OperationError(f"{path} cannot be written: {error.strerror or error}", attempted=attempted) from error
    return path
