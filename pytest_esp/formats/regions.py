"""Flash regions: loads their contents, and checks them against each other and the board."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pytest_esp.errors import FirmwareError, OperationError
from pytest_esp.formats.files import ReadPath, resolve
from pytest_esp.formats.hex_and_uf2 import is_container
from pytest_esp.units import format_size, parse_size

SECTOR = 0x1000

_LARGEST_FLASH = 256 * 1024 * 1024  # bytes; the largest size that esptool detects
_CONTAINERS = (".hex", ".uf2")

Source = bytes | str | os.PathLike[str]
"""Contents, or a file with them."""
Pairs = Sequence[tuple[int | str, Source]] | Mapping[int | str, Source]


@dataclass(frozen=True)
class Placed:
    """A file, and where in flash it belongs."""

    address: int | str
    path: ReadPath


@dataclass(frozen=True)
class Region:
    """Contents for a flash address, with the source's name for messages."""

    address: int
    data: bytes = field(repr=False)
    source: str

    @property
    def size(self) -> int:
        """The size in bytes."""
        return len(self.data)

    @property
    def end(self) -> int:
        """The address after the last byte."""
        return self.address + len(self.data)


def is_blank(data: bytes) -> bool:
    """Return whether *data* is erased flash (0xFF)."""
    return data.count(0xFF) == len(data)


def md5_of(data: bytes) -> str:
    """Return the MD5 of *data*, in 32 hex digits like the loader's."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def make_regions(pairs: Pairs) -> tuple[Region, ...]:
    """Return *pairs* of address and source as regions, ordered by address.

    Raises:
        FirmwareError: if there are no pairs, a file is missing, unreadable or empty, an address is invalid, or regions
            overlap.
    """
    given = pairs.items() if isinstance(pairs, Mapping) else pairs
    regions = sorted((_region(*pair) for pair in given), key=lambda region: region.address)
    if not regions:
        raise FirmwareError("there is nothing to write", hint="provide pairs of an address and a file or bytes")
    for region, following in itertools.pairwise(regions):
        _check_apart(region, following)
    return tuple(regions)


def joined(parts: Iterable[tuple[int, bytes]], source: str) -> list[tuple[int, bytes]]:
    """Return address and bytes of *parts*. Parts that are adjacent or share a sector are joined.

    Raises:
        FirmwareError: if two parts overlap.
    """
    found: list[tuple[int, bytearray]] = []
    end = -1
    for address, part in sorted(parts):
        if address < end:
            raise FirmwareError(f"{source} has data for {address:#x} twice", hint="create it again")
        if address == end or (found and address // SECTOR == (end - 1) // SECTOR):
            found[-1][1].extend(b"\xff" * (address - end) + part)
        else:
            found.append((address, bytearray(part)))
        end = address + len(part)
    return [(address, bytes(content)) for address, content in found]


def _region(address: int | str, source: Source) -> Region:
    try:
        start = parse_size(address)
    except ValueError as error:
        raise FirmwareError(f"invalid address: {error}") from error
    if isinstance(source, bytes):
        data, name = source, f"{len(source)} bytes"
    else:
        data, name = contents_of(Path(source)), os.fspath(source)
        if Path(source).suffix.lower() in _CONTAINERS and is_container(data):
            raise FirmwareError(f"{name} already contains addresses", hint=f"omit the address {start:#x}")
    if not data:
        raise FirmwareError(f"{name} for {start:#x} is empty", hint="build it again")
    return Region(start, data, name)


def contents_of(path: Path) -> bytes:
    """Return a file's contents (see `resolve` for which files may be opened).

    Raises:
        FirmwareError: if it cannot be read, is a pipe or a device, or is larger than any flash.
    """
    path = resolve(path)
    check_regular(path)
    try:
        if (size := path.stat().st_size) > _LARGEST_FLASH:
            raise FirmwareError(f"{path} has {size} bytes, more than any flash")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error


def check_regular(path: Path) -> None:
    """Refuse pipes and devices: opening or reading them may block for ever.

    Raises:
        FirmwareError: if *path* is not a regular file.
    """
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        raise FirmwareError(f"{path} is not a regular file", hint="use a file, not a device or pipe")


def unreadable(path: Path, error: OSError | ValueError) -> FirmwareError:
    """Return the error for a file that cannot be read."""
    return FirmwareError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}")


def _check_apart(region: Region, following: Region) -> None:
    """Refuse regions that share a byte or a sector: erasing for one would erase the other."""
    if region.end > following.address:
        raise FirmwareError(
            f"{region.source} ({region.address:#x} to {region.end:#x}) overlaps {following.source} "
            f"(from {following.address:#x})"
        )
    if (region.end - 1) // SECTOR == following.address // SECTOR:
        raise FirmwareError(
            f"{region.source} (to {region.end:#x}) and {following.source} (from {following.address:#x}) share "
            "a sector: one cannot be written without erasing the other",
            hint="join them into one region",
        )


# -- checks against the board


def check_fits(region: Region, flash_size: int) -> None:
    """Check that a region lies inside a flash of *flash_size* bytes.

    Raises:
        FirmwareError: if it does not.
    """
    if region.end > flash_size:
        raise FirmwareError(
            f"{region.source} at {region.address:#x} needs flash up to {region.end:#x}, "
            f"but the board has {format_size(flash_size)}",
            hint="build it for this flash size; nothing was written",
        )


def size_argument(value: int | str, what: str) -> int:
    """Return a size or address in bytes (see `units.parse_size`); *what* describes it in messages.

    Raises:
        OperationError: if it is invalid.
    """
    try:
        return parse_size(value)
    except ValueError as error:
        raise OperationError(f"invalid {what}: {error}") from error
