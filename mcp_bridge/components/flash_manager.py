"""Flash: write, read, erase, verify; back up and restore; look at what is in it, and at the flash chip."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, ClassVar

from mcp_bridge.components.base import Component
from mcp_bridge.tool import progress, tool
from pytest_esp.errors import OperationError
from pytest_esp.files import resolve
from pytest_esp.operations.analysis import FlashAnalysis
from pytest_esp.operations.flash_chip import FlashStatus, SizeDetection
from pytest_esp.operations.registry import Effect
from pytest_esp.operations.restoring import Restore
from pytest_esp.operations.saving import Backup
from pytest_esp.operations.sfdp import Sfdp
from pytest_esp.operations.tuning import RATES, Optimization


@dataclass(frozen=True)
class Placed:
    """A file, and where in flash it belongs."""

    address: int | str
    path: str


@dataclass(frozen=True)
class FlashReport:
    """What a write did; regions are (address, size, written or unchanged)."""

    bytes_written: int
    bytes_skipped: int
    verified: bool
    elapsed_seconds: float
    regions: list[tuple[str, int, str]]


@dataclass(frozen=True)
class ReadReport:
    """What was read: in *output_file*, or as hex."""

    address: str
    size: int
    output_file: str | None
    data: str | None


@dataclass(frozen=True)
class EraseReport:
    """What was erased."""

    address: str
    size: int | None


@dataclass(frozen=True)
class VerifyReport:
    """Whether flash holds the files; regions name the first address that differs."""

    matches: bool
    regions: list[dict[str, Any]]


_MOST_HEX = 4096  # bytes that are returned in the answer itself
_HOUR = 3600.0  # 16 MB at 115200 baud take 25 minutes


class FlashManager(Component):
    """Tools for flash."""

    NAME: ClassVar[str] = "flash_manager"
    SUMMARY: ClassVar[str] = "write, read, erase, verify, back up and analyze flash"

    @tool(Effect.WRITE, timeout=600.0)
    def esp_flash_firmware(
        self,
        firmware_path: str | None = None,
        port: str | None = None,
        address: int | str | None = None,
        files: list[Placed] | None = None,
        verify: bool = True,
    ) -> FlashReport:
        """Write firmware to flash: one image at an address, a build folder, Intel HEX, UF2, or a list of files.

        Regions that are there already are skipped; an image for another chip is refused. Every written region is
        verified by the chip's MD5; verify=true compares all of them once more.
        """
        firmware = self._firmware(firmware_path, files)
        begun = time.monotonic()
        with self.bridge.boards.use(port) as esp:
            result = esp.flash.write(firmware, address, progress=progress)
            verified = result.verified and (not verify or esp.flash.verify(firmware, address).matches)
        return FlashReport(
            bytes_written=sum(region.size for region in result.regions if region.state == "written"),
            bytes_skipped=sum(region.size for region in result.regions if region.state == "unchanged"),
            verified=verified,
            elapsed_seconds=round(time.monotonic() - begun, 3),
            regions=[(f"{region.address:#x}", region.size, region.state) for region in result.regions],
        )

    @tool(Effect.WRITE, timeout=600.0)
    def esp_flash_multi(self, files: list[Placed], port: str | None = None, verify: bool = True) -> FlashReport:
        """Write several files to flash, each at its address; like esp_flash_firmware with files."""
        return self.esp_flash_firmware(port=port, files=files, verify=verify)

    @tool(Effect.READ, timeout=600.0, shows_secrets=True)  # bytes that are not those on the chip help nobody
    def esp_flash_read(
        self,
        address: int | str,
        size: int | str,
        port: str | None = None,
        output_file: str | None = None,
        overwrite: bool = False,
    ) -> ReadReport:
        """Read flash into a file, or up to 4 KB of it as hex in the answer.

        Addresses and sizes may be written as 4096, "0x1000" or "4KB".
        """
        path = resolve(output_file, "write") if output_file else None
        with self.bridge.boards.use(port) as esp:
            result = esp.flash.read(address, size, output_file=path, overwrite=overwrite, progress=progress)
        if path is None and result.size > _MOST_HEX:
            raise OperationError(f"{result.size} bytes are too many for an answer", hint="name an output_file")
        data = result.data.hex() if path is None else None
        return ReadReport(f"{result.address:#x}", result.size, str(path) if path else None, data)

    @tool(Effect.ERASE, timeout=300.0)
    def esp_flash_erase(
        self,
        region: str | None = None,
        start_address: int | str | None = None,
        size: int | str | None = None,
        port: str | None = None,
    ) -> EraseReport:
        """Erase a partition by its name, size bytes from start_address, or everything with region="all"."""
        if (region is None) == (start_address is None):
            raise OperationError("say what to erase", hint='"all", the name of a partition, or start_address and size')
        with self.bridge.boards.use(port) as esp:
            result = esp.flash.erase(region if region is not None else str(start_address), size)
        return EraseReport(f"{result.address:#x}", result.size)

    @tool(Effect.READ, timeout=600.0)
    def esp_flash_verify(
        self,
        firmware_path: str | None = None,
        port: str | None = None,
        address: int | str | None = None,
        files: list[Placed] | None = None,
    ) -> VerifyReport:
        """Compare flash with an image, a build folder or a list of files; names the first address that differs."""
        with self.bridge.boards.use(port) as esp:
            result = esp.flash.verify(self._firmware(firmware_path, files), address)
        regions = [
            {
                "address": f"{region.address:#x}",
                "size": region.size,
                "file": region.source,
                "matches": region.matches,
                "first_difference": None if region.first_difference is None else f"{region.first_difference:#x}",
            }
            for region in result
        ]
        return VerifyReport(result.matches, regions)

    @tool(Effect.READ, timeout=600.0)
    def esp_verify_flash(
        self,
        firmware_path: str | None = None,
        port: str | None = None,
        address: int | str | None = None,
        files: list[Placed] | None = None,
    ) -> VerifyReport:
        """Compare flash with an image, a build folder or a list of files; another name of esp_flash_verify."""
        return self.esp_flash_verify(firmware_path, port, address, files)

    # -- backups

    @tool(Effect.READ, timeout=_HOUR)
    def esp_flash_backup(self, output_dir: str, port: str | None = None, overwrite: bool = False) -> Backup:
        """Save the whole flash to a folder: compressed chunks, and a manifest with a SHA-256 of everything.

        Called again with the folder of an interrupted backup, it goes on where that one ended. A complete backup is
        replaced only with overwrite.
        """
        path = resolve(output_dir, "write")
        with self.bridge.boards.use(port) as esp:
            return esp.flash.backup(path, overwrite=overwrite, progress=progress)

    @tool(Effect.READ, timeout=_HOUR)
    def esp_smart_backup(self, output_dir: str, port: str | None = None, overwrite: bool = False) -> Backup:
        """Save what is used of the flash, by partition; faster than esp_flash_backup where much is blank.

        The chip's own MD5 tells what is blank: no region is skipped unseen, and a restore brings all of it back.
        """
        path = resolve(output_dir, "write")
        with self.bridge.boards.use(port) as esp:
            return esp.flash.smart_backup(path, overwrite=overwrite, progress=progress)

    @tool(Effect.ERASE, timeout=_HOUR, idempotent=True)
    def esp_flash_restore(
        self, backup_dir: str, port: str | None = None, any_mac: bool = False, force: bool = False
    ) -> Restore:
        """Bring the whole flash back to what a backup holds (of either kind), and verify it.

        Every byte of the backup is checked before one is written, and that it is of this chip, flash size and MAC
        address. any_mac restores onto another chip of the same kind; force, where security features speak against it:
        an encrypted flash, to which its own ciphertext comes back.
        """
        path = resolve(backup_dir)
        with self.bridge.boards.use(port) as esp:
            return esp.flash.restore(path, any_mac=any_mac, force=force, progress=progress)

    @tool(Effect.ERASE, timeout=_HOUR, idempotent=True)
    def esp_smart_restore(
        self,
        backup_dir: str,
        port: str | None = None,
        regions: list[str] | None = None,
        any_mac: bool = False,
        force: bool = False,
    ) -> Restore:
        """Bring some regions of a backup back, by their names in it (nvs, bootloader, ...); all if none is named.

        Checks as esp_flash_restore does. The answer says of every region whether it was written or left alone.
        """
        path = resolve(backup_dir)
        with self.bridge.boards.use(port) as esp:
            return esp.flash.smart_restore(path, regions, any_mac=any_mac, force=force, progress=progress)

    # -- looking

    @tool(Effect.READ, timeout=_HOUR)
    def esp_flash_analyze(self, port: str | None = None) -> FlashAnalysis:
        """Tell what is in flash: by partition how full it is and its entropy, the images with their app descriptors.

        `map` is a picture of it, SVG. The problem of an image is what the bootloader would say of it.
        """
        with self.bridge.boards.use(port) as esp:
            return esp.flash.analyze(progress=progress)

    @tool(Effect.WRITE, timeout=600.0, idempotent=True, reads_unless="apply")
    def esp_flash_optimize(
        self, port: str | None = None, baudrates: list[int] | None = None, apply: bool = False
    ) -> Optimization:
        """Measure reads at several baud rates, read the bootloader's flash settings, and say what to change.

        Changes nothing without apply; with it, the bootloader is written again with the better size, frequency and
        mode in its header. What needs a new build is only said.
        """
        with self.bridge.boards.use(port) as esp:
            return esp.flash.optimize(baudrates or RATES, apply=apply)

    @tool(Effect.READ)
    def esp_flash_status(self, port: str | None = None) -> FlashStatus:
        """Read the flash chip's status registers: write protection, quad mode, and its voltage where the chip tells."""
        with self.bridge.boards.use(port) as esp:
            return esp.flash.status()

    @tool(Effect.READ)
    def esp_flash_sfdp_read(self, port: str | None = None) -> Sfdp:
        """Read what the flash chip says of itself (SFDP, JESD216): size, erase sizes, fast reads, quad enable."""
        with self.bridge.boards.use(port) as esp:
            return esp.flash.sfdp_read()

    @tool(Effect.READ)
    def esp_flash_size_detect(self, port: str | None = None) -> SizeDetection:
        """Detect how large the flash really is: by its id, by SFDP, and by where reads wrap around.

        A relabelled chip promises more than it has: then agree is false, and size is the one to believe.
        """
        with self.bridge.boards.use(port) as esp:
            return esp.flash.size_detect()

    def _firmware(self, path: str | None, files: list[Placed] | None) -> Any:
        """Return what an operation takes as firmware, with every name inside the roots."""
        if (path is None) == (not files):
            raise OperationError("say what to write", hint="firmware_path, or files with address and path")
        if path is not None:
            return resolve(path)
        return [(placed.address, resolve(placed.path)) for placed in files or ()]
