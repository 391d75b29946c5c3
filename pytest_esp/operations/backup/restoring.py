"""Operations that restore a flash from a backup (see `saving`)."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pytest_esp.errors import FirmwareError, OperationError
from pytest_esp.formats.files import ReadPath
from pytest_esp.formats.regions import Region, is_blank, md5_of
from pytest_esp.link.link import Link
from pytest_esp.link.logs import Progress
from pytest_esp.names import nearest
from pytest_esp.operations.backup.archive import Archive, Manifest, SavedChunk, SavedRegion
from pytest_esp.operations.flash import writing
from pytest_esp.operations.flash.access import FlashAccess, Over, reach
from pytest_esp.operations.flash.layout import FlashOwner, owner_of
from pytest_esp.operations.registry import Effect, operation, require
from pytest_esp.units import format_size

_Piece = tuple[SavedRegion, SavedChunk]

Outcome = Literal["written", "unchanged", "left"]
"""Of a region: *unchanged* had the contents already; *left* was not selected."""


@dataclass(frozen=True)
class RestoredRegion:
    """One region of a backup, and the outcome for it."""

    name: str
    address: int
    size: int
    outcome: Outcome


@dataclass(frozen=True)
class Restore:
    """The result of a restore; it lists all regions, including those left alone. Sizes are in bytes.

    Attributes:
        verified: whether the flash now matches the backup, by the chip's MD5.
    """

    backup_dir: Path
    created: str
    regions: tuple[RestoredRegion, ...]
    bytes_written: int
    bytes_erased: int
    bytes_unchanged: int
    verified: bool
    elapsed_seconds: float


@operation(Effect.ERASE, group="flash")
def restore(
    link: Link,
    backup_dir: ReadPath,
    *,
    any_mac: bool = False,
    force: bool = False,
    over: Over = "auto",
    progress: Progress | None = None,
) -> Restore:
    """Restore the whole flash from a backup, and verify it.

    The whole backup is checked before anything is written, and that it is from this chip and this flash size. Contents
    that match already are not written again; areas that are blank in the backup are erased.

    Args:
        backup_dir: folder made by `backup` or `smart_backup`.
        any_mac: allow restoring onto another chip of the same type; never allowed if the backup is of encrypted flash.
        force: write even if security features may make the chip unusable.
        over: "wire" writes through the chip even if its flash file could be written (QEMU).
        progress: called with bytes done and total.

    Raises:
        FirmwareError: if the backup is incomplete, damaged, or of another board; nothing was written.
        OperationError, LinkError, PortError: if writing failed; the hint gives the state of each region.
    """
    return _restore(link, Path(backup_dir), None, any_mac, force, over, progress)


@operation(Effect.ERASE, group="flash")
def smart_restore(
    link: Link,
    backup_dir: ReadPath,
    regions: Sequence[str] | None = None,
    *,
    any_mac: bool = False,
    force: bool = False,
    over: Over = "auto",
    progress: Progress | None = None,
) -> Restore:
    """Restore regions of a backup by name; all others are left alone, and listed as such in the result.

    Args:
        backup_dir: folder made by `backup` or `smart_backup`.
        regions: names of partitions, ``bootloader``, ``partition-table``, or gaps as named in the backup; by default
            all regions.
        any_mac: allow restoring onto another chip of the same type; never allowed if the backup is of encrypted flash.
        force: write even if security features may make the chip unusable.
        over: "wire" writes through the chip even if its flash file could be written (QEMU).
        progress: called with bytes done and total.

    Raises:
        OperationError: if the backup has no such region. Otherwise see `restore`.
    """
    if isinstance(regions, str) or (regions is not None and not regions):
        raise OperationError("regions must be a list of names", hint='use e.g. ["nvs", "otadata"]')
    return _restore(link, Path(backup_dir), regions, any_mac, force, over, progress)


def _restore(
    link: Link,
    path: Path,
    names: Sequence[str] | None,
    any_mac: bool,
    force: bool,
    over: Over,
    progress: Progress | None,
) -> Restore:
    begun = time.monotonic()
    require(link, Effect.WRITE, "flash-restore")
    archive, wanted = _checked(link, path, names, any_mac, over)
    pieces = [(region, chunk) for region in wanted for chunk in region.chunks]
    with reach(link, over, "comparing flash with the backup") as access:
        changed = [piece for piece in pieces if not _holds(access, piece[1], archive)]
    blank = [piece for piece in changed if is_blank(archive.data(piece[1]))]
    full = [piece for piece in changed if not is_blank(archive.data(piece[1]))]
    if full:
        writing.write_regions(link, _joined(full, archive), False, force, over, progress)
    if blank:
        _erase(link, blank, force, over)
    with reach(link, over, "verifying what was restored") as access:
        _verify(access, pieces, archive)
    touched = {region.name for region, _ in changed}
    return Restore(
        backup_dir=path,
        created=archive.manifest.created,
        regions=tuple(
            RestoredRegion(region.name, region.address, region.size, _outcome(region, wanted, touched))
            for region in archive.manifest.regions
        ),
        bytes_written=_total(full),
        bytes_erased=_total(blank),
        bytes_unchanged=_total(pieces) - _total(changed),
        verified=True,
        elapsed_seconds=time.monotonic() - begun,
    )


def to_restore(link: Link, backup_dir: Path, regions: Sequence[str] | None = None, any_mac: bool = False) -> list[str]:
    """Return the names of the regions that a restore with these arguments would write.

    Raises:
        OperationError, RefusedError: see `smart_restore`.
    """
    return [region.name for region in _checked(link, backup_dir, regions, any_mac, "auto")[1]]


def _checked(
    link: Link, path: Path, names: Sequence[str] | None, any_mac: bool, over: Over
) -> tuple[Archive, list[SavedRegion]]:
    archive = Archive(path)
    wanted = _chosen(archive, names)
    _check_board(archive.manifest, owner_of(link, over), any_mac)
    return archive, list(wanted)


def _outcome(region: SavedRegion, wanted: Sequence[SavedRegion], touched: Iterable[str]) -> Outcome:
    if region not in wanted:
        return "left"
    return "written" if region.name in touched else "unchanged"


def _total(pieces: Iterable[_Piece]) -> int:
    return sum(chunk.size for _, chunk in pieces)


def _chosen(archive: Archive, names: Sequence[str] | None) -> list[SavedRegion]:
    there = [region.name for region in archive.manifest.regions]
    for name in names or ():
        if name not in there:
            raise OperationError(
                f"the backup has no region {name!r}",
                hint=f"nearest: {nearest(name, there)}; it has: {', '.join(there)}",
            )
    return [region for region in archive.manifest.regions if names is None or region.name in names]


def _check_board(manifest: Manifest, board: FlashOwner, any_mac: bool) -> None:
    """Reject a backup of another board.

    Raises:
        FirmwareError: if it is of another board.
    """
    if manifest.chip != board.chip:
        raise FirmwareError(f"the backup is of an {manifest.chip}, not of an {board.chip}", hint=_UNTOUCHED)
    if manifest.flash_size != board.flash_size:
        raise FirmwareError(
            f"the backup is of a flash of {format_size(manifest.flash_size)}, "
            f"but this board has {format_size(board.flash_size)}",
            hint=_UNTOUCHED,
        )
    if manifest.flash_encryption != board.flash_encryption:
        raise FirmwareError(
            f"flash encryption was {'on' if manifest.flash_encryption else 'off'} when the backup was made, "
            f"and is {'on' if board.flash_encryption else 'off'} now: the chip could not read the restored contents",
            hint=_UNTOUCHED,
        )
    if manifest.mac != board.mac and manifest.flash_encryption:
        raise FirmwareError(
            f"the backup is encrypted with the key of the chip with MAC {manifest.mac}; this chip has {board.mac}",
            hint=_UNTOUCHED,
        )
    if manifest.mac != board.mac and not any_mac:
        raise FirmwareError(
            f"the backup is from the chip with MAC {manifest.mac}; this chip has {board.mac}",
            hint="set any_mac to restore it anyway, including calibration data and credentials of the other chip",
        )


_UNTOUCHED = "nothing was written"


def _holds(access: FlashAccess, chunk: SavedChunk, archive: Archive) -> bool:
    return access.md5(chunk.address, chunk.size) == md5_of(archive.data(chunk))


def _joined(pieces: Sequence[_Piece], archive: Archive) -> list[Region]:
    """Return what to write; consecutive chunks of a region are joined."""
    return [
        Region(run[0][1].address, b"".join(archive.data(chunk) for _, chunk in run), run[0][0].name)
        for run in _runs(pieces)
    ]


def _runs(pieces: Sequence[_Piece]) -> Iterator[list[_Piece]]:
    run: list[_Piece] = []
    for region, chunk in pieces:
        if run and (run[-1][0] is not region or run[-1][1].address + run[-1][1].size != chunk.address):
            yield run
            run = []
        run.append((region, chunk))
    if run:
        yield run


def _erase(link: Link, pieces: Sequence[_Piece], force: bool, over: Over) -> None:
    with reach(link, over, "erasing what is blank in the backup") as access:
        for run in _runs(pieces):
            access.erase(run[0][1].address, _total(run), force=force)


def _verify(access: FlashAccess, pieces: Iterable[_Piece], archive: Archive) -> None:
    """Raise OperationError if the flash does not match what was restored."""
    wrong = {region.name: chunk.address for region, chunk in pieces if not _holds(access, chunk, archive)}
    if wrong:
        places = ", ".join(f"{name} (in the 64 KB from {address:#x})" for name, address in wrong.items())
        raise OperationError(
            f"verification failed: the flash differs from what was written: {places}",
            hint="check flash-status for protected blocks; the flash may be worn; all other regions are restored",
        )
