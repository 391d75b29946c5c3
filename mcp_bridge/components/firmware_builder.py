"""Firmware files before they are flashed: made of ELF files, merged, split, looked into. No board is touched."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from mcp_bridge.components.base import Component
from mcp_bridge.components.flash_manager import Placed
from mcp_bridge.tool import progress, tool
from pytest_esp.errors import OperationError
from pytest_esp.formats.files import resolve
from pytest_esp.names import nearest
from pytest_esp.operations.firmware.bootloader_image import Bootloader, bootloader
from pytest_esp.operations.firmware.elf_image import NO_LIMIT, ElfImage, FlashMode, elf_to_image
from pytest_esp.operations.firmware.image_report import FirmwareAnalysis, analyze
from pytest_esp.operations.firmware.merging import Format, Merged, merge
from pytest_esp.operations.firmware.preparing import PreparedApp, prepare
from pytest_esp.operations.firmware.size_analysis import SizeAnalysis, size
from pytest_esp.operations.firmware.splitting import Optimized, Prefer, optimize

_BOOTLOADER_KEYS = ("image", "flash_mode", "flash_freq", "flash_size", "options")
_HALF_AN_HOUR = 1800.0


class FirmwareBuilder(Component):
    """Tools for firmware files."""

    NAME: ClassVar[str] = "firmware_builder"
    SUMMARY: ClassVar[str] = "ELF files to images, merging and splitting, image and size analysis, bootloaders"

    @tool()
    def esp_elf_to_binary(
        self,
        elf_file: str,
        chip_type: str,
        output_file: str | None = None,
        flash_mode: FlashMode = "qio",
        flash_freq: str | None = None,
        flash_size: str = "1MB",
        min_revision: int = 0,
        max_revision: int = NO_LIMIT,
        overwrite: bool = False,
    ) -> ElfImage:
        """Convert an ELF file into an image for flash, as esptool's elf2image does. Touches no board.

        The ELF file is checked first: damaged, cut, or built for another chip is an error. Without output_file the
        image lies beside it, with the ending .bin. Revisions are major * 100 + minor. esp_app_prepare does the same
        and reports what is in the image.
        """
        elf, output = self._in_and_out(elf_file, output_file)
        return elf_to_image(
            elf, chip_type, output, flash_mode=flash_mode, flash_freq=flash_freq, flash_size=flash_size,
            min_revision=min_revision, max_revision=max_revision, overwrite=overwrite,
        )  # fmt: skip

    @tool()
    def esp_app_prepare(
        self,
        elf_file: str,
        chip_type: str,
        output_file: str | None = None,
        flash_mode: FlashMode | None = None,
        flash_freq: str | None = None,
        flash_size: str | None = None,
        min_revision: int = 0,
        max_revision: int = NO_LIMIT,
        partition_table: str | None = None,
        top: int = 10,
        overwrite: bool = False,
    ) -> PreparedApp:
        """Make an app ready to be flashed: image, app descriptor, hash, sizes, and whether it fits. Touches no board.

        Flash settings come from the build folder if they are left out. partition_table (.bin or .csv) is what it must
        fit into; by default that of the build folder.
        """
        elf, output = self._in_and_out(elf_file, output_file)
        return prepare(
            elf, chip_type, output, flash_mode=flash_mode, flash_freq=flash_freq, flash_size=flash_size,
            min_revision=min_revision, max_revision=max_revision, partition_table=self._path(partition_table),
            top=top, overwrite=overwrite,
        )  # fmt: skip

    @tool()
    def esp_binary_merge(
        self,
        files: list[Placed] | str,
        output_file: str,
        chip_type: str | None = None,
        format: Format | None = None,
        flash_mode: FlashMode | Literal["keep"] = "keep",
        flash_freq: str = "keep",
        flash_size: str = "keep",
        target_offset: int | str = 0,
        pad_to_size: str | None = None,
        overwrite: bool = False,
    ) -> Merged:
        """Merge images into one file: raw .bin, Intel .hex or .uf2 (by the ending, or format). Touches no board.

        files is a list of {"address": "0x10000", "path": "app.bin"}, or an ESP-IDF build folder. flash_mode, flash_freq
        and flash_size change the bootloader's header. target_offset and pad_to_size (e.g. 4MB) are for raw files.
        """
        parts = resolve(files) if isinstance(files, str) else [(one.address, resolve(one.path)) for one in files]
        return merge(
            parts, resolve(output_file, "write"), chip=chip_type, format=format, flash_mode=flash_mode,
            flash_freq=flash_freq, flash_size=flash_size, target_offset=target_offset, pad_to_size=pad_to_size,
            overwrite=overwrite,
        )  # fmt: skip

    @tool()
    def esp_firmware_analyze(
        self,
        binary_file: str,
        chip_type: str | None = None,
        partition_table: str | None = None,
        key_file: str | None = None,
    ) -> FirmwareAnalysis:
        """Look into an app, a bootloader, a partition table or a merged image (.bin, .hex, .uf2). Touches no board.

        Header, segments, descriptor, checksum, hash and signature, chip and revision limits, and where it fits by
        partition_table (default: that of the build folder). chip_type and key_file are what it should be for and be
        signed by; all that is wrong is in `problems`.
        """
        table, key = self._path(partition_table), self._path(key_file)
        return analyze(resolve(binary_file), chip_type, partition_table=table, key_file=key)

    @tool(timeout=_HALF_AN_HOUR)
    def esp_bootloader_build(
        self,
        chip_type: str,
        config: dict[str, Any] | None = None,
        output_file: str = "bootloader.bin",
        overwrite: bool = False,
    ) -> Bootloader:
        """Make a bootloader: built by ESP-IDF where it is installed, or a given image adapted. Touches no board.

        config may have flash_mode, flash_freq (80m), flash_size (4MB); image, a bootloader file to take instead of
        building one, of which only these settings and the hash are changed; and options of ESP-IDF for a build, e.g.
        {"CONFIG_BOOTLOADER_APP_ROLLBACK_ENABLE": true}. `done` in the answer says what was done.
        """
        given = dict(config or {})
        unknown = [key for key in given if key not in _BOOTLOADER_KEYS]
        if unknown:
            hint = f"nearest: {nearest(unknown[0], _BOOTLOADER_KEYS)}"
            raise OperationError(f"config has no {unknown[0]!r}", hint=hint)
        options = given.pop("options", None) or {}
        if not isinstance(options, dict) or not all(isinstance(value, (bool, int, str)) for value in options.values()):
            raise OperationError("options is no table of options", hint='e.g. {"CONFIG_LOG_DEFAULT_LEVEL_NONE": true}')
        if not all(isinstance(value, str) for value in given.values() if value is not None):
            raise OperationError("config has a value that is no text", hint='e.g. {"flash_size": "4MB"}')
        return bootloader(
            chip_type, resolve(output_file, "write"), image=self._path(given.pop("image", None)), **given,
            options=options, timeout=_HALF_AN_HOUR, overwrite=overwrite, progress=progress,
        )  # fmt: skip

    @tool()
    def esp_binary_optimize(
        self,
        binary_file: str,
        output_dir: str | None = None,
        address: int | str | None = None,
        prefer: Prefer = "bytes",
        baudrate: int = 460800,
        overwrite: bool = False,
    ) -> Optimized:
        """Make a firmware smaller to flash: padding dropped, split at blank sectors. Touches no board.

        The parts lie in output_dir (default: NAME-parts beside it), a build folder that esp_flash_firmware takes. The
        answer has sizes, compressed sizes, times, and the MD5 that proves the content; `blank` must be erased where the
        flash is not. prefer="time" leaves together what flashes faster so. address is needed for what is neither app
        nor merged image.
        """
        path = resolve(binary_file)
        folder = self._path(output_dir) or path.with_name(f"{path.stem}-parts")
        return optimize(path, folder, address=address, prefer=prefer, baudrate=baudrate, overwrite=overwrite)

    @tool()
    def esp_size_analysis(
        self, elf_file: str, chip_type: str | None = None, map_file: str | None = None, top: int = 20
    ) -> SizeAnalysis:
        """Say what takes room in an app: sections, memories, largest symbols; archives by the linker's map.

        map_file is by default NAME.map beside the ELF file. Touches no board.
        """
        return size(resolve(elf_file), chip_type, map_file=self._path(map_file), top=top)

    def _path(self, name: str | None) -> Path | None:
        return resolve(name) if name else None

    def _in_and_out(self, elf_file: str, output_file: str | None) -> tuple[Path, Path | None]:
        return resolve(elf_file), self._path(output_file)
