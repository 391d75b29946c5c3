"""Writing, erasing and verifying flash."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from esptool.targets import CHIP_DEFS

from pytest_esp.errors import EspError, FirmwareError, OperationError
from pytest_esp.formats.firmware import Contents, Firmware, load
from pytest_esp.formats.flash_settings import KEEP
from pytest_esp.formats.images import check_image
from pytest_esp.formats.regions import SECTOR, Region, check_fits, size_argument
from pytest_esp.link.link import Link
from pytest_esp.link.logs import Progress
from pytest_esp.operations.flash import tables
from pytest_esp.operations.flash.access import ADDRESS_SPACE, FlashAccess, Over, check_inside, reach
from pytest_esp.operations.flash.header import for_board
from pytest_esp.operations.registry import Effect, operation
from pytest_esp.operations.results import Address
from pytest_esp.units import parse_size

# -- writing

State = Literal["written", "unchanged", "partly", "untouched"]
"""Of a region: *unchanged* had these contents already; *partly* is erased or written up to some byte."""


@dataclass(frozen=True)
class WrittenRegion:
    """One region of a write, and its state afterwards."""

    address: Address
    size: int
    source: str
    state: State


@dataclass(frozen=True)
class FlashWrite:
    """The result of a write. Sizes are bytes of content, not of the compressed transfer.

    *verified* is False only if the chip cannot compute an MD5 (secure download mode, ESP8266 without stub).
    """

    regions: tuple[WrittenRegion, ...]
    bytes_written: int
    bytes_skipped: int
    verified: bool
    elapsed_seconds: float


@operation(Effect.WRITE, group="flash")
def write(
    link: Link,
    firmware: Contents,
    address: int | str | None = None,
    *,
    skip_unchanged: bool = True,
    force: bool = False,
    over: Over = "auto",
    progress: Progress | None = None,
) -> FlashWrite:
    """Write regions to flash and verify each one by the chip's MD5.

    A region whose MD5 matches already is not written again. Files, overlaps, the size of the flash, and the chip that
    an image is for are checked before anything is erased. Flash is erased in sectors of 4 KB: a region that begins or
    ends inside a sector also erases the rest of that sector.

    For a QEMU machine the flash file is written while the machine is stopped: same result, some hundred times
    faster. The machine stays stopped until it is reset.

    Args:
        firmware: bytes or a file for *address*; pairs of address and bytes or file; or the path of a build, or an
            opened one (see `Firmware.open`). A single app goes to the app partition of the table in flash.
        address: where to write *firmware*, if it has no addresses of its own.
        skip_unchanged: skip regions whose contents are in flash already; False writes all.
        force: write even if an image is for another chip, or security features may make the chip unusable.
        over: "wire" writes through the chip even if its flash file could be written (QEMU).
        progress: called with bytes done and total, over all regions.

    Raises:
        FirmwareError: if a file or image is unsuitable; nothing was written.
        OperationError, LinkError, PortError: if a write failed; the hint gives the state of each region, and
            ``details["regions"]`` has the same as `WrittenRegion` records.
    """
    loaded = _check_load(link, _placed(link, load(firmware, address)), force, over)
    return write_regions(link, loaded.regions, skip_unchanged, force, over, progress)


def write_regions(
    link: Link, regions: Sequence[Region], skip_unchanged: bool, force: bool, over: Over, progress: Progress | None
) -> FlashWrite:
    """Write regions like `write`, without checking their contents: they are known to fit this board.

    Raises:
        OperationError, LinkError, PortError: see `write`.
    """
    begun = time.monotonic()
    job = _Write(link, regions, skip_unchanged, force, over, progress)
    job.run()
    written, skipped = job.bytes_in("written"), job.bytes_in("unchanged")
    link.written_bytes += written
    link.skipped_bytes += skipped
    return FlashWrite(job.regions(), written, skipped, job.verified, time.monotonic() - begun)


def _placed(link: Link, firmware: Firmware) -> Firmware:
    """Move a single app to where the bootloader looks for it; without a partition table keep the usual address."""
    if not firmware.needs_slot:
        return firmware
    try:
        slot = tables.app_slot(link)
    except OperationError:
        return firmware
    return firmware.in_slot(slot)


def _check_load(link: Link, loaded: Firmware, force: bool, over: Over) -> Firmware:
    """Return the firmware for this board; reject it if it does not fit, before anything is erased."""
    total = sum(region.size for region in loaded.regions)
    with reach(link, over, f"writing {len(loaded.regions)} region(s), {total} bytes") as access:
        chip, size, revision = access.chip, access.size, access.revision
        if loaded.chip not in (None, chip) and not force:
            raise FirmwareError(
                f"this is a build for {loaded.chip}, not for the {CHIP_DEFS[chip].CHIP_NAME}",
                hint=f"nothing was written; build for this chip with `idf.py set-target {chip}`",
            )
        for region in loaded.regions:
            check_fits(region, size)
            if not force:
                check_image(region, chip, revision)
        return for_board(loaded, chip, size) if loaded.chip in (None, chip) else loaded


class _Write:
    """A write under way, region by region.

    Each region is a separate call of esptool: one incompressible region would disable compression for all after it.
    """

    def __init__(
        self,
        link: Link,
        regions: Sequence[Region],
        skip_unchanged: bool,
        force: bool,
        over: Over,
        progress: Progress | None,
    ) -> None:
        self._link = link
        self._regions = regions
        self._skip_unchanged = skip_unchanged
        self._force = force
        self._over: Over = over
        self._progress = progress
        self._states: list[State] = ["untouched"] * len(regions)
        self.verified = True

    def run(self) -> None:
        """Write all regions; an error gives the state of each."""
        try:
            for number, region in enumerate(self._regions):
                self._write(number, region)
        except EspError as error:
            error.details["regions"] = [asdict(region) for region in self.regions()]
            error.hint = "; ".join(filter(None, (self._describe(), error.hint)))
            raise
        except BaseException as error:  # Ctrl-C, or an error of the callback
            error.add_note(self._describe())
            raise

    def regions(self) -> tuple[WrittenRegion, ...]:
        """Return all regions with their states."""
        return tuple(
            WrittenRegion(region.address, region.size, region.source, state)
            for region, state in zip(self._regions, self._states, strict=True)
        )

    def bytes_in(self, state: State) -> int:
        """Return the number of bytes in regions with that state."""
        return sum(region.size for region in self.regions() if region.state == state)

    def _write(self, number: int, region: Region) -> None:
        before = sum(earlier.size for earlier in self._regions[:number])
        attempted = f"writing {region.size} bytes at {region.address:#x}"
        with reach(self._link, self._over, attempted, self._meter(before, region.size)) as access:
            proves = access.has_md5
            unchanged = self._skip_unchanged and proves and _holds(access, region)
            if not unchanged:
                self._states[number] = "untouched" if access.is_atomic else "partly"
                access.write(region.address, region.data, force=self._force)
                self.verified &= proves
        self._states[number] = "unchanged" if unchanged else "written"
        self._tell(before + region.size)

    def _meter(self, before: int, size: int) -> Progress | None:
        """Return a callback that converts esptool's compressed bytes of one region into bytes of all regions."""
        if self._progress is None:
            return None
        return lambda done, total: self._tell(before + size * done // max(total, 1))

    def _tell(self, done: int) -> None:
        if self._progress is not None:
            self._progress(done, sum(region.size for region in self._regions))

    def _describe(self) -> str:
        words = {"partly": "partly written"}
        states = (f"{region.address:#x} {words.get(region.state, region.state)}" for region in self.regions())
        return f"regions: {', '.join(states)}"


# -- erasing


@dataclass(frozen=True)
class ErasedRegion:
    """What was erased: *size* in bytes; None for the whole of a flash whose size is unknown."""

    address: Address
    size: int | None


@operation(Effect.ERASE, group="flash")
def erase(
    link: Link, region: int | str, size: int | str | None = None, *, force: bool = False, over: Over = "auto"
) -> ErasedRegion:
    """Erase ``"all"`` of the flash, a partition by name, or *size* bytes from an address (whole sectors of 4 KB).

    Args:
        region: the word ``all``, the name of a partition, or an address.
        size: in bytes, if *region* is an address; a multiple of 4096.
        force: erase even if security features may make the chip unusable.
        over: "wire" erases through the chip even if its flash file could be written (QEMU).

    Raises:
        OperationError: if an address has no size, the range is not made of whole sectors, or lies beyond the flash.
    """
    start, length = range_to_erase(link, region, size, over=over)
    if region == "all":
        return _erase_all(link, force, over)
    with reach(link, over, f"erasing {length:#x} bytes at {start:#x}") as access:
        if length:
            access.erase(start, length, force=force)
    return ErasedRegion(start, length)


def range_to_erase(
    link: Link, region: int | str, size: int | str | None = None, *, over: Over = "auto"
) -> tuple[int, int]:
    """Return the first address and the number of bytes that `erase` with the same arguments would erase.

    Raises:
        OperationError: see `erase`.
    """
    if region == "all" and size is not None:
        raise OperationError("'all' does not take a size", hint="omit the size, or give an address")
    start, length = (0, 0) if region == "all" else _erase_range(link, region, size)
    if start % SECTOR or length % SECTOR:
        raise OperationError(
            f"address {start:#x} and size {length:#x} must be multiples of the sector size ({SECTOR:#x})",
            hint="round them to sectors of 4 KB: flash is erased in whole sectors",
        )
    with reach(link, over, "looking at what to erase") as access:
        if region == "all":
            return 0, access.size
        check_inside(access, start, length)
    return start, length


def _erase_all(link: Link, force: bool, over: Over) -> ErasedRegion:
    with reach(link, over, "erasing all of the flash") as access:
        size = access.size
        access.erase_all(force=force)
    return ErasedRegion(0, size if size < ADDRESS_SPACE else None)


def _erase_range(link: Link, region: int | str, size: int | str | None) -> tuple[int, int]:
    if size is not None:
        return size_argument(region, "address"), size_argument(size, "size")
    if isinstance(region, str) and not _is_size(region):
        partition = tables.find(link, region)
        return partition.offset, partition.size
    raise OperationError(f"region {region} needs a size", hint="give a size, a partition's name, or the word 'all'")


def _is_size(text: str) -> bool:
    try:
        parse_size(text)
    except ValueError:
        return False
    return True


# -- verifying


@dataclass(frozen=True)
class CheckedRegion:
    """Whether a region matches; *first_difference* is the address of the first byte that differs."""

    address: Address
    size: int
    source: str
    matches: bool
    first_difference: Address | None


@dataclass(frozen=True)
class FlashVerify:
    """The result of a comparison; *matches* is whether all regions match. Iterating yields the regions."""

    matches: bool
    regions: tuple[CheckedRegion, ...]

    def __iter__(self) -> Iterator[CheckedRegion]:
        return iter(self.regions)


@operation(Effect.READ, group="flash")
def verify(link: Link, firmware: Contents, address: int | str | None = None, *, over: Over = "auto") -> FlashVerify:
    """Compare flash with regions, given as for `write`: by MD5, and byte by byte if that differs.

    Args:
        firmware: bytes or a file for *address*; pairs of address and bytes or file; or the path of a build, or an
            opened one (see `Firmware.open`). A single app is compared with the app partition of the table in flash.
        address: where *firmware* is in flash, if it has no addresses of its own.
        over: "wire" reads through the chip even if its flash file could be read (QEMU).

    Raises:
        FirmwareError: if a file cannot be read. OperationError: if a region lies beyond the flash.
    """
    loaded = _placed(link, load(firmware, address))
    if loaded.settings != KEEP:
        with reach(link, over, "verifying a build") as access:
            loaded = for_board(loaded, access.chip, access.size)
    regions = tuple(_verify_one(link, region, over) for region in loaded.regions)
    return FlashVerify(all(region.matches for region in regions), regions)


def _verify_one(link: Link, region: Region, over: Over) -> CheckedRegion:
    with reach(link, over, f"verifying {region.size} bytes at {region.address:#x}") as access:
        check_inside(access, region.address, region.size)
        if access.has_md5 and _holds(access, region):
            return CheckedRegion(region.address, region.size, region.source, True, None)
        found = access.read(region.address, region.size)
    pairs = enumerate(zip(region.data, found, strict=True), start=region.address)
    differing = next((place for place, (wanted, there) in pairs if wanted != there), None)
    return CheckedRegion(region.address, region.size, region.source, differing is None, differing)


# -- inside


def _holds(access: FlashAccess, region: Region) -> bool:
    wanted = hashlib.md5(region.data, usedforsecurity=False).hexdigest()
    return access.md5(region.address, region.size) == wanted
