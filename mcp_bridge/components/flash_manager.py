"""Tools for flash: write, read, erase, verify, back up, restore; analyze its contents and the flash chip."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from mcp_bridge.components.base import Component
from mcp_bridge.tool import offer, progress, tool
from pytest_esp.errors import OperationError
from pytest_esp.formats.files import resolve
from pytest_esp.formats.regions import Placed, size_argument
from pytest_esp.operations.backup import restoring, saving
from pytest_esp.operations.flash import analysis, flash_chip, tuning, writing
from pytest_esp.operations.flash.reading import FlashRead
from pytest_esp.operations.flash.writing import ErasedRegion, FlashVerify, FlashWrite
from pytest_esp.operations.registry import Effect

_MOST_HEX = 4096  # bytes that are returned in the answer itself
_HOUR = 3600.0  # reading 16 MB at 115200 baud takes 25 minutes


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
    ) -> FlashWrite:
        """Write firmware to flash: one image at an address, a build folder, Intel HEX, UF2, or a list of files.

        Regions that already have the right contents are skipped. An image for another chip is refused. Written regions
        are verified by MD5 on the chip.

        Args:
            firmware_path: an image, a build folder, a .hex or a .uf2 file.
            address: the address of an image; not needed for files that contain it.
            files: several files, each with its address, instead of firmware_path.
            verify: compare all regions after writing, also the skipped ones.
        """
        firmware = _firmware(firmware_path, files)
        with self.bridge.boards.use(port) as esp:
            result = esp.flash.write(firmware, address, progress=progress)
            if verify and not esp.flash.verify(firmware, address).matches:
                return replace(result, verified=False)
            return result

    @tool(Effect.WRITE, timeout=600.0)
    def esp_flash_multi(self, files: list[Placed], port: str | None = None, verify: bool = True) -> FlashWrite:
        """Write several files to flash, each at its address; the same as esp_flash_firmware with files.

        Args:
            files: the files, each with its address.
            verify: compare all regions after writing, also the skipped ones.
        """
        return self.esp_flash_firmware(port=port, files=files, verify=verify)

    @tool(Effect.READ, timeout=600.0, shows_secrets=True)  # not masked: the caller needs the chip's own bytes
    def esp_flash_read(
        self,
        address: int | str,
        size: int | str,
        port: str | None = None,
        output_file: str | None = None,
        overwrite: bool = False,
    ) -> FlashRead:
        """Read flash into a file, or return up to 4 KB of it as hex.

        Args:
            address: address of the first byte: 4096, "0x1000" or "4KB".
            size: size in bytes, in the same formats.
            output_file: file to save the bytes to.
            overwrite: whether to replace *output_file* if it exists.
        """
        if output_file is None and size_argument(size, "size") > _MOST_HEX:
            raise OperationError(f"{size} bytes are too many for an answer", hint="save them with output_file")
        with self.bridge.boards.use(port) as esp:
            return esp.flash.read(address, size, output_file=output_file, overwrite=overwrite, progress=progress)

    @tool(Effect.ERASE, timeout=300.0)
    def esp_flash_erase(
        self,
        region: str | None = None,
        start_address: int | str | None = None,
        size: int | str | None = None,
        port: str | None = None,
    ) -> ErasedRegion:
        """Erase a partition, a range of flash, or the whole flash with region="all".

        Args:
            region: a partition's name, or "all".
            start_address: instead of region: the first address of a range; a multiple of 0x1000.
            size: size of the range in bytes.
        """
        where = _region(region, start_address)
        with self.bridge.boards.use(port) as esp:
            return esp.flash.erase(where, size)

    @tool(Effect.READ, timeout=600.0)
    def esp_flash_verify(
        self,
        firmware_path: str | None = None,
        port: str | None = None,
        address: int | str | None = None,
        files: list[Placed] | None = None,
    ) -> FlashVerify:
        """Compare flash with an image, a build folder or a list of files, and return the first address that differs.

        Args:
            firmware_path: an image, a build folder, a .hex or a .uf2 file.
            address: the address of an image; not needed for files that contain it.
            files: several files, each with its address, instead of firmware_path.
        """
        with self.bridge.boards.use(port) as esp:
            return esp.flash.verify(_firmware(firmware_path, files), address)

    esp_verify_flash = esp_flash_verify
    esp_flash_backup = offer(
        saving.backup,
        words="Save the whole flash to a folder, compressed, with SHA-256 sums. The same call resumes an interrupted "
        "backup.",
        timeout=_HOUR,
    )
    esp_smart_backup = offer(saving.smart_backup, timeout=_HOUR)
    esp_flash_restore = offer(
        restoring.restore,
        words="Restore the whole flash from a backup, and verify it. Backup, chip and flash size are checked first; "
        "contents that match already are not written again.",
        timeout=_HOUR,
        idempotent=True,
    )
    esp_smart_restore = offer(restoring.smart_restore, timeout=_HOUR, idempotent=True)
    esp_flash_analyze = offer(analysis.analyze, timeout=_HOUR)
    esp_flash_optimize = offer(tuning.optimize, timeout=600.0, idempotent=True)
    esp_flash_status = offer(flash_chip.status)
    esp_flash_sfdp_read = offer(flash_chip.sfdp_read)
    esp_flash_size_detect = offer(flash_chip.size_detect)

    def plan(self, tool: str, arguments: Mapping[str, Any]) -> str:
        """Return what a call would erase or restore."""
        words = super().plan(tool, arguments)
        if tool == "esp_flash_erase":
            where = _region(arguments.get("region"), arguments.get("start_address"))
            with self.bridge.boards.use(arguments.get("port")) as esp:
                start, size = writing.range_to_erase(esp.link, where, arguments.get("size"))
            return f"{words}; {size:#x} bytes at {start:#x} are erased"
        folder = resolve(arguments["backup_dir"])
        with self.bridge.boards.use(arguments.get("port")) as esp:
            names = restoring.to_restore(
                esp.link, folder, arguments.get("regions"), any_mac=arguments.get("any_mac", False)
            )
        return f"{words}; these regions are overwritten: {', '.join(names)}"


def _region(region: str | None, start_address: int | str | None) -> str:
    """Return the region argument of an erase."""
    if (region is None) == (start_address is None):
        raise OperationError(
            "give either region or start_address",
            hint='use region="all", region with the name of a partition, or start_address and size',
        )
    return region if region is not None else str(start_address)


def _firmware(path: str | None, files: list[Placed] | None) -> Any:
    """Return the firmware argument of an operation."""
    if (path is None) == (not files):
        raise OperationError("give either firmware_path or files", hint="each of files has an address and a path")
    return path if path is not None else [(placed.address, placed.path) for placed in files or ()]
