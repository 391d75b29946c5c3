"""Operations that save a flash to files; `restoring` restores it."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pytest_esp import __version__
from pytest_esp.formats.files import WritePath
from pytest_esp.formats.regions import is_blank, md5_of
from pytest_esp.link.link import Link
from pytest_esp.link.logs import Progress
from pytest_esp.operations.backup.archive import FORMAT, Folder, Manifest, SavedChunk, SavedRegion, sha256
from pytest_esp.operations.flash.access import FlashAccess, Over, reach
from pytest_esp.operations.flash.layout import Kind, Span, chunks, layout_of, owner_of
from pytest_esp.operations.registry import Effect, operation
from pytest_esp.units import format_size


@dataclass(frozen=True)
class BackedUp:
    """One region of a backup; *used* is whether it contains anything but 0xFF."""

    name: str
    kind: Kind
    address: int
    size: int
    used: bool
    sha256: str


@dataclass(frozen=True)
class Backup:
    """A complete backup. Sizes are in bytes.

    Attributes:
        mac: base MAC address of the chip, if it reports it.
        flash_encryption: whether the contents are encrypted, so that only this very chip can use them.
        sha256: of the whole flash.
        regions: from the first byte of the flash to its last, including gaps between partitions.
        note: why the flash is not divided into regions; None if it is.
        bytes_read: bytes read from the chip.
        bytes_kept: bytes left by an interrupted backup, and confirmed by the chip's MD5.
        bytes_blank: bytes that are blank by the chip's MD5, and were not read.
        bytes_stored: total size of the files.
    """

    output_dir: Path
    chip: str
    mac: str | None
    flash_encryption: bool
    flash_size: int
    sha256: str
    regions: tuple[BackedUp, ...]
    note: str | None
    bytes_read: int
    bytes_kept: int
    bytes_blank: int
    bytes_stored: int
    elapsed_seconds: float


@operation(Effect.READ, group="flash")
def backup(
    link: Link,
    output_dir: WritePath,
    *,
    overwrite: bool = False,
    over: Over = "auto",
    progress: Progress | None = None,
) -> Backup:
    """Save the whole flash to a folder: compressed, with a manifest that contains a SHA-256 of everything.

    To resume an interrupted backup, make it again into the same folder: existing data is kept if the chip's MD5
    confirms it. Only a folder with a ``manifest.json`` is complete; it is written last.

    Args:
        output_dir: a new or empty folder, or that of an interrupted backup.
        overwrite: replace a complete backup in *output_dir*.
        over: "wire" reads through the chip even if its flash file could be read (QEMU).
        progress: called with bytes done and total.

    Raises:
        OperationError: if the folder contains other files or cannot be written, or the flash size is unknown.
        LinkError: if bytes were lost.
    """
    return _Saving(link, Path(output_dir), overwrite, over, progress, only_used=False).run()


@operation(Effect.READ, group="flash")
def smart_backup(
    link: Link,
    output_dir: WritePath,
    *,
    overwrite: bool = False,
    over: Over = "auto",
    progress: Progress | None = None,
) -> Backup:
    """Save the used parts of the flash, by partition: like `backup`, but blank areas are not read.

    Areas of 64 KB are blank if the chip's MD5 says so. Bootloader, partition table and the gaps between partitions are
    regions, too: the manifest accounts for every byte, and a restore restores the whole flash.

    Args:
        output_dir: a new or empty folder, or that of an interrupted backup.
        overwrite: replace a complete backup in *output_dir*.
        over: "wire" reads through the chip even if its flash file could be read (QEMU).
        progress: called with bytes done and total.

    Raises:
        OperationError, LinkError: see `backup`.
    """
    return _Saving(link, Path(output_dir), overwrite, over, progress, only_used=True).run()


class _Saving:
    """A backup in progress."""

    def __init__(
        self, link: Link, path: Path, overwrite: bool, over: Over, progress: Progress | None, *, only_used: bool
    ) -> None:
        self._link = link
        self._path = path
        self._overwrite = overwrite
        self._over: Over = over
        self._progress = progress
        self._only_used = only_used
        self._whole = hashlib.sha256()
        self._read = self._kept = self._blank = 0

    def run(self) -> Backup:
        begun = time.monotonic()
        board = owner_of(self._link, self._over)
        layout = layout_of(self._link, board.flash_size, board.chip)
        folder = Folder(self._path, overwrite=self._overwrite)
        with reach(self._link, self._over, f"a backup of {format_size(board.flash_size)} of flash") as access:
            regions = tuple(self._save(folder, access, span, board.flash_size) for span in layout.spans)
        manifest = Manifest(
            format=FORMAT,
            tool=f"pytest-esp {__version__}",
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            chip=board.chip,
            mac=board.mac,
            flash_encryption=board.flash_encryption,
            flash_size=board.flash_size,
            note=layout.note,
            sha256=self._whole.hexdigest(),
            regions=regions,
        )
        folder.finish(manifest)
        return self._result(manifest, time.monotonic() - begun)

    def _save(self, folder: Folder, access: FlashAccess, span: Span, flash_size: int) -> SavedRegion:
        digest = hashlib.sha256()
        used = False
        saved: list[SavedChunk] = []
        for address, size in chunks(span.address, span.size):
            chunk, data = self._save_chunk(folder, access, address, size, flash_size)
            saved.append(chunk)
            digest.update(data)
            self._whole.update(data)
            used = used or not is_blank(data)
        return SavedRegion(span.name, span.kind, span.address, span.size, used, digest.hexdigest(), tuple(saved))

    def _save_chunk(
        self, folder: Folder, access: FlashAccess, address: int, size: int, flash_size: int
    ) -> tuple[SavedChunk, bytes]:
        blank = b"\xff" * size
        if self._only_used and access.md5(address, size) == md5_of(blank):
            self._blank += size
            self._tell(address + size, flash_size)
            return SavedChunk(address, size, sha256(blank), None), blank
        data = folder.load(address)
        if data is not None and len(data) == size and md5_of(data) == access.md5(address, size):
            self._kept += size
            self._tell(address + size, flash_size)
        else:
            data = access.read(address, size, lambda done, _: self._tell(address + done, flash_size))
            self._read += size
        return SavedChunk(address, size, sha256(data), folder.store(address, data)), data

    def _tell(self, done: int, total: int) -> None:
        if self._progress is not None:
            self._progress(done, total)

    def _result(self, manifest: Manifest, seconds: float) -> Backup:
        return Backup(
            output_dir=self._path,
            chip=manifest.chip,
            mac=manifest.mac,
            flash_encryption=manifest.flash_encryption,
            flash_size=manifest.flash_size,
            sha256=manifest.sha256,
            regions=tuple(
                BackedUp(region.name, region.kind, region.address, region.size, region.used, region.sha256)
                for region in manifest.regions
            ),
            note=manifest.note,
            bytes_read=self._read,
            bytes_kept=self._kept,
            bytes_blank=self._blank,
            bytes_stored=sum(file.stat().st_size for file in self._path.iterdir()),
            elapsed_seconds=seconds,
        )
