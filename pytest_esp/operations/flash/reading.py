"""Reading flash."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pytest_esp.errors import OperationError
from pytest_esp.formats.files import WritePath, new_file, save
from pytest_esp.formats.regions import md5_of, size_argument
from pytest_esp.link.facts import flash_size_of
from pytest_esp.link.link import Link
from pytest_esp.link.logs import Progress
from pytest_esp.operations.flash.access import ADDRESS_SPACE, Over, check_inside, reach
from pytest_esp.operations.registry import Effect, operation
from pytest_esp.operations.results import Address


@dataclass(frozen=True)
class FlashInfo:
    """The flash chip: its id as returned by RDID, manufacturer, device, and size in bytes (None if unknown)."""

    flash_id: Address
    manufacturer: Address
    device: Address
    size: int | None


@operation(Effect.READ, group="flash")
def info(link: Link) -> FlashInfo:
    """Return the id of the flash chip (``ESPLoader.flash_id``)."""
    with link.session.use("reading the flash id", stub=not link.board.uploads_slowly, flash=True) as esp:
        number = int(esp.flash_id(cache=False))
    device = (number >> 8 & 0xFF) << 8 | number >> 16
    return FlashInfo(number, number & 0xFF, device, flash_size_of(number))


@dataclass(frozen=True)
class FlashRead:
    """The bytes read: *size* bytes from *address*, and the file they were saved to, if any."""

    address: Address
    size: int
    data: bytes
    output_file: Path | None = None


@operation(Effect.READ, group="flash")
def read(
    link: Link,
    address: int | str,
    size: int | str,
    output_file: WritePath | None = None,
    *,
    overwrite: bool = False,
    over: Over = "auto",
    progress: Progress | None = None,
) -> FlashRead:
    """Read *size* bytes of flash from *address*; on the wire the stub confirms them by an MD5.

    Args:
        address: of the first byte.
        size: in bytes.
        output_file: also save the bytes to this file; a failed read leaves no partial file.
        overwrite: replace *output_file* if it exists.
        over: "wire" reads through the chip even if its flash file could be read (QEMU).
        progress: called with bytes done and total.

    Raises:
        OperationError: if the region lies beyond the flash, or the file exists or cannot be written.
        LinkError: if bytes were lost.
    """
    start, length = size_argument(address, "address"), size_argument(size, "size")
    path = new_file(output_file, overwrite) if output_file is not None else None
    with reach(link, over, f"reading {length:#x} bytes of flash at {start:#x}", progress) as access:
        check_inside(access, start, length)
        data = access.read(start, length, progress)
    if path is not None:
        save(path, data)
    return FlashRead(start, length, data, path)


@dataclass(frozen=True)
class FlashMd5:
    """The MD5 of a region: 32 hex digits."""

    address: Address
    size: int
    md5: str


@operation(Effect.READ, group="flash")
def md5(link: Link, address: int | str, size: int | str, *, over: Over = "auto") -> FlashMd5:
    """Return the MD5 of a region, computed by the chip (``ESPLoader.flash_md5sum``).

    Args:
        address: of the first byte.
        size: in bytes.
        over: "wire" asks the chip even if its flash file could be read (QEMU).

    Raises:
        OperationError: if the region lies beyond the flash, or the loader lacks the command.
    """
    start, length = size_argument(address, "address"), size_argument(size, "size")
    with reach(link, over, f"MD5 of {length:#x} bytes at {start:#x}") as access:
        check_inside(access, start, length)
        return FlashMd5(start, length, access.md5(start, length))


def is_blank(link: Link, address: int, size: int) -> bool:
    """Return whether a region is erased, by the chip's MD5, without transferring the region."""
    return md5(link, address, size).md5 == md5_of(b"\xff" * size)


def chip_of_flash(link: Link) -> str:
    """Return the board's chip; the port is not opened if its flash file can be used (QEMU)."""
    with reach(link, "auto", "looking at the flash") as access:
        return access.chip


def flash_size(link: Link) -> int:
    """Return the size of the flash in bytes.

    Raises:
        OperationError: if it is known neither from the flash id nor from boards.toml.
    """
    with reach(link, "auto", "reading the size of the flash") as access:
        if access.size >= ADDRESS_SPACE:
            raise OperationError(f"the size of the flash of this {access.chip} is unknown", hint="set flash_size")
        return access.size
