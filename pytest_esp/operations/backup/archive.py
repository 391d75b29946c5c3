"""A flash backup as files: compressed chunks, and a manifest with digests of every byte.

The manifest is written last and renamed into place: a folder with a manifest is complete. The manifest and every
chunk are rejected unless they are exactly what was written, by SHA-256 of each file and of its contents.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import zlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pytest_esp.errors import FirmwareError, OperationError
from pytest_esp.formats.files import resolve
from pytest_esp.operations.flash.layout import CHUNK, Kind, chunks

MANIFEST = "manifest.json"
FORMAT = "pytest-esp flash backup 1"
_OWN_FILE = re.compile(r"0x[0-9a-f]{8}\.bin\.gz|\.[\w.]+\.part")
_LARGEST_MANIFEST = 16 * 1024 * 1024


@dataclass(frozen=True)
class SavedChunk:
    """One chunk; a blank chunk (0xFF) may have no file and then no *file_sha256*."""

    address: int
    size: int
    sha256: str
    file_sha256: str | None


@dataclass(frozen=True)
class SavedRegion:
    """One region of the flash, and its chunks; *used* is whether it contains anything but 0xFF."""

    name: str
    kind: Kind
    address: int
    size: int
    used: bool
    sha256: str
    chunks: tuple[SavedChunk, ...]


@dataclass(frozen=True)
class Manifest:
    """Describes a backup. Sizes and addresses are in bytes, digests are 64 hex digits.

    Attributes:
        format: `FORMAT`.
        tool: name and version of the program that made it.
        created: UTC, ISO 8601.
        chip: as esptool names it.
        mac: base MAC address; None if the chip did not report it.
        flash_encryption: whether the chip encrypts its flash: only this very chip can use the contents.
        flash_size: bytes.
        note: why the flash is not divided into regions; None if it is.
        sha256: of the whole flash.
        regions: from the first byte of the flash to its last.
        manifest_sha256: of the manifest itself, without this field.
    """

    format: str
    tool: str
    created: str
    chip: str
    mac: str | None
    flash_encryption: bool
    flash_size: int
    note: str | None
    sha256: str
    regions: tuple[SavedRegion, ...]
    manifest_sha256: str = ""


def sha256(data: bytes) -> str:
    """Return the SHA-256 of *data* as hex."""
    return hashlib.sha256(data).hexdigest()


# -- writing


class Folder:
    """A folder that is being made a backup.

    Args:
        path: the folder; it is created if missing.
        overwrite: replace a complete backup in the folder; its manifest is removed first.

    Raises:
        OperationError: if it contains a complete backup or other files, or cannot be created.
    """

    def __init__(self, path: Path, *, overwrite: bool) -> None:
        self.path = path = resolve(path, "write")
        try:
            path.mkdir(parents=True, exist_ok=True)
            names = {entry.name for entry in path.iterdir()}
        except OSError as error:
            raise OperationError(f"{path} cannot be used: {error.strerror or error}") from error
        others = sorted(name for name in names if name != MANIFEST and not _OWN_FILE.fullmatch(name))
        if others:
            raise OperationError(
                f"{path} contains other files: {', '.join(others[:3])}", hint="use an empty or new folder"
            )
        if MANIFEST in names:
            if not overwrite:
                raise OperationError(f"{path} already contains a backup", hint="use another folder, or set overwrite")
            self._remove(MANIFEST)

    def load(self, address: int) -> bytes | None:
        """Return the content of an existing chunk, if it can be read."""
        try:
            return _unpacked(resolve(self.path / _name(address)).read_bytes())
        except (OSError, ValueError):
            return None

    def store(self, address: int, data: bytes) -> str:
        """Write a chunk, and return the SHA-256 of its file.

        Raises:
            OperationError: if it cannot be written.
        """
        packed = _packed(data)
        self._write(_name(address), packed)
        return sha256(packed)

    def finish(self, manifest: Manifest) -> None:
        """Remove leftovers of earlier attempts, and write the manifest.

        Raises:
            OperationError: if that fails.
        """
        needed = {_name(chunk.address) for region in manifest.regions for chunk in region.chunks if chunk.file_sha256}
        for entry in list(self.path.iterdir()):
            if entry.name not in needed and _OWN_FILE.fullmatch(entry.name):
                self._remove(entry.name)
        self._write(MANIFEST, _rendered(manifest).encode())

    def _write(self, name: str, data: bytes) -> None:
        part = resolve(self.path / f".{name}.{os.getpid()}.part", "write")
        try:
            with part.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            part.replace(self.path / name)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise OperationError(
                f"{self.path / name} cannot be written: {error.strerror or error}",
                hint="make the backup again into this folder; it continues where this one ended",
            ) from error

    def _remove(self, name: str) -> None:
        try:
            (self.path / name).unlink()
        except OSError as error:
            raise OperationError(f"{self.path / name} cannot be removed: {error.strerror or error}") from error


def _name(address: int) -> str:
    return f"{address:#010x}.bin.gz"


def _packed(data: bytes) -> bytes:
    """Return *data* compressed, always to the same bytes: resuming a backup relies on it."""
    return gzip.compress(data, compresslevel=6, mtime=0)


def _unpacked(packed: bytes) -> bytes:
    """Return the decompressed contents of a chunk's file.

    Raises:
        ValueError: if it is damaged, or longer than a chunk may be.
    """
    inflate = zlib.decompressobj(wbits=31)  # gzip's header and trailer
    try:
        data = inflate.decompress(packed, CHUNK + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if not inflate.eof or inflate.unused_data or len(data) > CHUNK:
        raise ValueError("it is truncated or too long")
    return data


def _rendered(manifest: Manifest) -> str:
    """Return the canonical text of a manifest, with its own digest."""
    plain = asdict(replace(manifest, manifest_sha256=""))
    plain["manifest_sha256"] = sha256(json.dumps(plain, sort_keys=True).encode())
    return json.dumps(plain, indent=1) + "\n"


# -- reading


class Archive:
    """A backup of which every byte was checked; its contents are in memory.

    Args:
        path: its folder.

    Raises:
        FirmwareError: if it is incomplete, or anything in it is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = resolve(path)
        self.manifest = self._manifest()
        self._contents = {
            chunk.address: self._chunk(chunk) for region in self.manifest.regions for chunk in region.chunks
        }
        self._check_digests()

    def data(self, chunk: SavedChunk) -> bytes:
        """Return the content of a chunk."""
        return self._contents[chunk.address]

    def region_data(self, region: SavedRegion) -> bytes:
        """Return the content of a region."""
        return b"".join(self.data(chunk) for chunk in region.chunks)

    def _manifest(self) -> Manifest:
        from pydantic import TypeAdapter, ValidationError

        path = resolve(self.path / MANIFEST)
        try:
            if path.stat().st_size > _LARGEST_MANIFEST:
                raise self._damaged(f"{MANIFEST} is too large")
            text = path.read_bytes()
        except FileNotFoundError as error:
            raise FirmwareError(
                f"{self.path} is not a complete backup: it has no {MANIFEST}",
                hint="if the backup was interrupted, make it again into the same folder; it continues there",
            ) from error
        except OSError as error:
            raise FirmwareError(f"{path} cannot be read: {error.strerror or error}") from error
        try:
            manifest = TypeAdapter(Manifest).validate_json(text, strict=True)
        except ValidationError as error:
            raise self._damaged(f"{MANIFEST}: {error.errors()[0]['msg']}") from error
        if manifest.format != FORMAT:
            raise FirmwareError(f"{path} has an unsupported format {manifest.format!r}; expected {FORMAT!r}")
        if _rendered(manifest).encode() != text:
            raise self._damaged(f"{MANIFEST} was changed")
        self._check_places(manifest)
        return manifest

    def _check_places(self, manifest: Manifest) -> None:
        """Reject a manifest whose regions and chunks do not cover the whole flash in order."""
        position = 0
        for region in manifest.regions:
            wanted = list(chunks(region.address, region.size))
            if region.address != position or [(chunk.address, chunk.size) for chunk in region.chunks] != wanted:
                raise self._damaged(f"{MANIFEST}: {region.name} does not follow the region before it")
            position += region.size
        if position != manifest.flash_size:
            raise self._damaged(f"{MANIFEST}: the regions end at {position:#x}")

    def _chunk(self, chunk: SavedChunk) -> bytes:
        digest = chunk.file_sha256
        data = self._stored(chunk.address, digest) if digest else b"\xff" * chunk.size
        if len(data) != chunk.size or sha256(data) != chunk.sha256:
            raise self._damaged(f"the content at {chunk.address:#x} differs from what was saved")
        return data

    def _stored(self, address: int, digest: str) -> bytes:
        path = resolve(self.path / _name(address))
        try:
            packed = path.read_bytes()
        except OSError as error:
            raise self._damaged(f"{path.name} cannot be read: {error.strerror or error}") from error
        if sha256(packed) != digest:
            raise self._damaged(f"{path.name} differs from what was written")
        try:
            return _unpacked(packed)
        except ValueError as error:
            raise self._damaged(f"{path.name}: {error}") from error

    def _check_digests(self) -> None:
        whole = hashlib.sha256()
        for region in self.manifest.regions:
            data = self.region_data(region)
            whole.update(data)
            if sha256(data) != region.sha256:
                raise self._damaged(f"the content of {region.name} differs from what was saved")
        if whole.hexdigest() != self.manifest.sha256:
            raise self._damaged("the content as a whole differs from what was saved")

    def _damaged(self, what: str) -> FirmwareError:
        return FirmwareError(
            f"the backup in {self.path} is damaged: {what}", hint="nothing was written; use another backup"
        )
