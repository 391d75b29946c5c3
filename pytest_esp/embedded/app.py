"""The build of a test's app, as pytest-embedded describes it."""

from __future__ import annotations

import json
import os
import shlex
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from pytest_esp.errors import FirmwareError
from pytest_esp.formats.builds import Build, builds_in
from pytest_esp.formats.firmware import Firmware
from pytest_esp.formats.partition_table import parse

_XTENSA = frozenset({"esp8266", "esp32", "esp32s2", "esp32s3"})


class FlashFile(NamedTuple):
    """A file to flash, and its address."""

    offset: int
    file_path: str
    encrypted: bool = False


class App:
    """The app in a folder, and its build.

    Args:
        app_path: the app's folder.
        build_dir: the build's folder: absolute, or relative to *app_path* or the working directory; None if there is
            none.
        target: the chip of the test; None if it can be any.

    Attributes:
        app_path: the app's folder.
        binary_path: the build's folder; None if there is none.
    """

    def __init__(self, app_path: str | None = None, build_dir: str | None = None, target: str | None = None) -> None:
        self.app_path = os.path.realpath(app_path or os.getcwd())
        self.binary_path = binary_path(self.app_path, build_dir or "build")
        self._target = target

    def _file(self, *names: str) -> Path | None:
        path = Path(self.binary_path, *names) if self.binary_path else None
        return path if path is not None and path.is_file() else None

    def _json(self, *names: str) -> dict[str, Any]:
        path = self._file(*names)
        return {} if path is None else json.loads(path.read_text(encoding="utf-8"))

    def _first(self, ending: str) -> str | None:
        found = sorted(Path(self.binary_path).glob(f"*{ending}")) if self.binary_path else []
        return str(found[0].resolve()) if found else None

    @cached_property
    def firmware(self) -> Firmware:
        """The build as this plugin flashes it.

        Raises:
            FirmwareError: if there is none, or it is damaged.
        """
        if self.binary_path is None:
            raise FirmwareError(
                f"{self.app_path} has no build for this test",
                hint="build it, or use --app-path, --build-dir, or --skip-autoflash y to run what is in flash",
            )
        return Firmware.open(self.binary_path, self._target)

    @cached_property
    def sdkconfig(self) -> dict[str, Any]:
        """The build's ``config/sdkconfig.json``; empty if there is none."""
        return self._json("config", "sdkconfig.json")

    @cached_property
    def flash_args(self) -> dict[str, Any]:
        """The build's ``flasher_args.json``; empty if there is none."""
        return self._json("flasher_args.json")

    @property
    def flash_settings(self) -> dict[str, Any]:
        """The flash's mode, size and frequency, and whether a file is encrypted."""
        encrypted = any(file.encrypted for file in self.flash_files)
        return {**self.flash_args.get("flash_settings", {}), "encrypt": encrypted}

    @property
    def flash_files(self) -> list[FlashFile]:
        """The files to flash, by address."""
        parts = [part for part in self.flash_args.values() if isinstance(part, dict) and "file" in part]
        encrypted = {part["file"] for part in parts if part.get("encrypted") == "true"}
        return sorted(
            FlashFile(int(address, 0), os.path.join(self.binary_path or "", name), name in encrypted)
            for address, name in self.flash_args.get("flash_files", {}).items()
        )

    @property
    def write_flash_args(self) -> list[str]:
        """The arguments of esptool's write-flash."""
        listing = self._file("flash_project_args") or self._file("flash_args")
        if listing is not None:
            return shlex.split(listing.read_text(encoding="utf-8"))
        files = self.flash_args.get("flash_files", {})
        return [*self.flash_args.get("write_flash_args", []), *(word for pair in files.items() for word in pair)]

    @property
    def elf_file(self) -> str | None:
        """The build's ELF file."""
        return self._first(".elf")

    @property
    def bin_file(self) -> str | None:
        """The app's image."""
        app = self.flash_args.get("app", {}).get("file")
        return str(Path(self.binary_path or "", app).resolve()) if app else self._first(".bin")

    @property
    def target(self) -> str:
        """The chip of the build, else of the test, else ``"esp32"``."""
        named = self.sdkconfig.get("IDF_TARGET") or self.flash_args.get("extra_esptool_args", {}).get("chip")
        return named or self._target or "esp32"

    @property
    def is_xtensa(self) -> bool:
        """Whether the chip's cores are Xtensa."""
        return self.target in _XTENSA

    @property
    def is_riscv32(self) -> bool:
        """Whether the chip's cores are RISC-V."""
        return not self.is_xtensa and self.target != "linux"

    @property
    def is_loadable_elf(self) -> bool:
        """Whether the app runs in RAM."""
        return any(self.sdkconfig.get(f"APP_BUILD_TYPE_{word}") for word in ("ELF_RAM", "RAM"))

    @cached_property
    def partition_table(self) -> dict[str, dict[str, Any]]:
        """The build's partitions by name: ``type``, ``subtype``, ``offset``, ``size`` and ``flags``."""
        part = self.flash_args.get("partition-table") or self.flash_args.get("partition_table") or {}
        path = self._file(part["file"]) if "file" in part else None
        return {} if path is None else {one.name: _described(one) for one in parse(path.read_bytes())}


IdfApp = QemuApp = App
"""pytest-embedded has a class per service; here they are one."""


def _described(partition: Any) -> dict[str, Any]:
    return {
        "type": partition.type,
        "subtype": partition.subtype,
        "offset": partition.offset,
        "size": partition.size,
        "flags": "encrypted" if partition.encrypted else "",
    }


def build_folders(target: str | None, config: str | None) -> list[str]:
    """Return the names of a build's folder, in the order in which they are tried."""
    both = f"build_{target}_{config}" if target and config else None
    alone = [f"build_{word}" for word in (target, config) if word]
    return [*([both] if both else []), *alone, "build"]


def find_build(app_path: str, target: str | None, config: str | None) -> str | None:
    """Return the name of the first of the `build_folders` that exists in the app's folder."""
    return next((name for name in build_folders(target, config) if os.path.isdir(os.path.join(app_path, name))), None)


def binary_path(app_path: str, build_dir: str) -> str | None:
    """Return the path of a build's folder; None if there is none."""
    found = next((path for path in (os.path.join(app_path, build_dir), build_dir) if os.path.isdir(path)), None)
    return None if found is None else os.path.realpath(found)


def chips_of(folder: str) -> set[str]:
    """Return the chips of the builds in a folder, as far as its listings and headers give them."""
    try:
        found: list[Build] = builds_in(Path(folder))
    except FirmwareError:
        return set()
    return {build.chip for build in found if build.chip is not None}
