"""Creates bootloaders: built by ESP-IDF, or a given image with other flash settings.

Source: ESP-IDF's guide, "Bootloader" and "Bootloader Image Format"; the header is changed by esptool.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from esptool.targets import CHIP_DEFS

from pytest_esp.errors import FirmwareError, OperationError
from pytest_esp.formats.files import ReadPath, WritePath, confined, known_chip, new_file, read_file, save
from pytest_esp.formats.flash_settings import FlashSettings
from pytest_esp.formats.regions import is_blank
from pytest_esp.link.logs import Progress
from pytest_esp.names import ChipName
from pytest_esp.operations.firmware.elf_image import FLASH_MODES, FlashMode, check_setting
from pytest_esp.operations.firmware.image_report import Fit, ImageReport, fit_of_bootloader, report
from pytest_esp.operations.flash.header import with_settings
from pytest_esp.operations.registry import file_operation
from pytest_esp.operations.results import Address

Option = bool | int | str
"""The value of an ESP-IDF configuration option."""

_OPTION = re.compile(r"[A-Z][A-Z0-9_]*")
_QUAD = ("qio", "qout")
_LISTS = """cmake_minimum_required(VERSION 3.16)
include($ENV{IDF_PATH}/tools/cmake/project.cmake)
project(bootloader_only)
"""
_COMPONENT = 'idf_component_register(SRCS "main.c")\n'
_MAIN = "void app_main(void)\n{\n}\n"


@dataclass(frozen=True)
class BootloaderConfig:
    """Properties of a bootloader; omitted ones stay as they are, or are chosen by ESP-IDF.

    Attributes:
        image: a bootloader to use instead of building one; only its flash settings are changed.
        flash_freq: e.g. ``"80m"``.
        flash_size: e.g. ``"4MB"``.
        options: ESP-IDF configuration options, for a build.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    image: ReadPath | None = None
    flash_mode: FlashMode | None = None
    flash_freq: str | None = None
    flash_size: str | None = None
    options: Mapping[str, Option] | None = None

    def lines(self) -> dict[str, str]:
        """Return the lines of ESP-IDF configuration for the flash settings, each with a description."""
        given = {"mode": self.flash_mode, "freq": self.flash_freq, "size": self.flash_size}
        return {
            f"CONFIG_ESPTOOLPY_FLASH{name.upper()}_{value.upper()}=y": f"flash {_SETTINGS[name]} {value}"
            for name, value in given.items()
            if value is not None
        }


_SETTINGS = {"mode": "mode", "freq": "frequency", "size": "size"}


@dataclass(frozen=True)
class Bootloader:
    """A bootloader that was created.

    Attributes:
        how: "built" by ESP-IDF, or "adapted" from a given image.
        done: what was done, in words.
        offset: its address in flash on this chip.
        image: a report on the image.
        fit: its fit between *offset* and the usual place of the partition table.
        idf_version: version of the ESP-IDF that built it; None if it was not built.
        warnings: anything unusual about it.
    """

    output_file: Path
    chip_type: str
    how: Literal["built", "adapted"]
    done: str
    offset: Address
    image: ImageReport
    fit: Fit
    idf_version: str | None
    warnings: tuple[str, ...]


@file_operation(group="firmware")
def bootloader(
    chip_type: ChipName,
    config: BootloaderConfig | None = None,
    output_file: WritePath = "bootloader.bin",
    *,
    timeout: float = 1200.0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Bootloader:
    """Create a bootloader: built by the installed ESP-IDF, or a given image with other flash settings and a new hash.

    `how` says which of the two was done.

    Args:
        chip_type: chip name as in esptool, e.g. esp32c3.
        config: its properties: flash_mode, flash_freq (80m), flash_size (4MB); image, a bootloader to use instead of
            building one, of which only these settings are changed; options, for a build, ESP-IDF configuration options,
            e.g. {"CONFIG_BOOTLOADER_APP_ROLLBACK_ENABLE": true}. Omitted settings stay, or are chosen by ESP-IDF.
        output_file: file for the bootloader.
        timeout: maximum duration of a build in seconds.
        overwrite: replace *output_file* if it exists.
        progress: called with steps of the build done and total.

    Raises:
        FirmwareError: if the image is damaged, signed, not a bootloader, or for another chip.
        OperationError: if an argument is invalid, neither an image nor an ESP-IDF is available, or the build fails.
    """
    chip, wanted = known_chip(chip_type), config or BootloaderConfig()
    _check(chip, wanted)
    path = new_file(output_file, overwrite)
    version: str | None = None
    if wanted.image is not None:
        if wanted.options:
            raise OperationError(
                "ESP-IDF options have no effect on an existing image", hint="omit either image or options"
            )
        data, done, warnings = _adapted(read_file(wanted.image, "bootloader"), str(wanted.image), chip, wanted)
        how: Literal["built", "adapted"] = "adapted"
    else:
        data, done, warnings, version = _built(chip, wanted, timeout, progress)
        how = "built"
    found = _checked(data, "the bootloader", chip)
    fit = fit_of_bootloader(found)
    if not fit.fits:
        warnings = (*warnings, f"{-fit.free} bytes too large for a partition table at its usual place")
    save(path, data)
    offset = CHIP_DEFS[chip].BOOTLOADER_FLASH_OFFSET
    return Bootloader(path, chip, how, done, offset, found, fit, version, warnings)


def _check(chip: str, wanted: BootloaderConfig) -> None:
    rom = CHIP_DEFS[chip]
    if wanted.flash_mode is not None:
        check_setting("mode", wanted.flash_mode, FLASH_MODES, chip)
    if wanted.flash_freq is not None:
        check_setting("frequency", wanted.flash_freq, rom.FLASH_FREQUENCY, chip)
    if wanted.flash_size is not None:
        check_setting("size", wanted.flash_size, rom.FLASH_SIZES, chip)


def _checked(data: bytes, source: str, chip: str) -> ImageReport:
    """Return a report on a bootloader.

    Raises:
        FirmwareError: if it is damaged, not a bootloader, or for another chip.
    """
    found = report(data, source, 0, chip)
    if found.chip_type != chip:
        raise FirmwareError(f"{source} is for the {found.chip_type}, not for the {chip}")
    if found.problem is not None:
        raise FirmwareError(f"{source} is damaged: {found.problem}", hint="use another file")
    if found.kind == "app":
        raise FirmwareError(f"{source} is an app, not a bootloader", hint="use bootloader/bootloader.bin of a build")
    rest = data[found.end :]
    if any(rest) and not is_blank(rest):
        raise FirmwareError(
            f"{source} has {len(rest)} bytes after its bootloader",
            hint="if it is a merged image, use bootloader/bootloader.bin of the build instead",
        )
    return found


# -- without ESP-IDF


def _adapted(data: bytes, source: str, chip: str, wanted: BootloaderConfig) -> tuple[bytes, str, tuple[str, ...]]:
    """Return a bootloader with other flash settings, what was done, and warnings."""
    before = _checked(data, source, chip)
    offset = CHIP_DEFS[chip].BOOTLOADER_FLASH_OFFSET
    settings = FlashSettings(wanted.flash_mode or "keep", wanted.flash_freq or "keep", wanted.flash_size or "keep")
    changed = with_settings(data, source, chip, settings)
    if changed != data and before.signature is not None:
        raise FirmwareError(
            f"{source} is signed; changing it would invalidate the signature", hint="change it before signing"
        )
    begun = f"not built: {source} was used unchanged"
    if changed == data:
        done = f"{begun}; its flash settings: {_settings(before)}"
    else:
        after = report(changed, source, 0, chip)
        rehashed = ", and its SHA-256 was updated" if after.hash is not None else ""
        change = f"{_settings(before)} changed to {_settings(after)}"
        done = f"{begun} except for the flash settings in its header: {change}{rehashed}"
    return changed, f"{done}. It belongs at {offset:#x}.", _odd(wanted)


def _settings(image: ImageReport) -> str:
    return ", ".join(item or "unknown" for item in (image.flash_mode, image.flash_freq, image.flash_size))


def _odd(wanted: BootloaderConfig) -> tuple[str, ...]:
    if wanted.flash_mode not in _QUAD:
        return ()
    return (
        f"the header now has {wanted.flash_mode}, which ESP-IDF's bootloader enables only if it was built "
        "for it (CONFIG_ESPTOOLPY_FLASHMODE_...); it then keeps dio or dout in its header",
    )


# -- with ESP-IDF


def _built(
    chip: str, wanted: BootloaderConfig, timeout: float, progress: Progress | None
) -> tuple[bytes, str, tuple[str, ...], str | None]:
    """Return a bootloader built by ESP-IDF, what was done, warnings, and the version of ESP-IDF."""
    from pytest_esp.operations.idf.installation import build_environment, installation

    lines = [*wanted.lines(), *(_line(name, value) for name, value in (wanted.options or {}).items())]
    try:
        idf = installation()
        variables = build_environment(idf)
    except OperationError as error:
        raise OperationError(
            f"building a bootloader requires ESP-IDF: {error.message}",
            hint="install ESP-IDF and set IDF_PATH, or give an image to change the flash settings of",
            details=error.details,
        ) from error
    variables.pop("IDF_TARGET", None)  # set-target sets the chip
    with tempfile.TemporaryDirectory(prefix="bootloader-") as folder:
        project = Path(folder)
        (project / "main").mkdir()
        (project / "CMakeLists.txt").write_text(_LISTS)
        (project / "main" / "CMakeLists.txt").write_text(_COMPONENT)
        (project / "main" / "main.c").write_text(_MAIN)
        (project / "sdkconfig.defaults").write_text("".join(f"{line}\n" for line in lines))
        place = project / "build"
        steps = ["set-target", chip, "bootloader"]
        tool = str(idf.path / "tools" / "idf.py")
        _run([str(idf.python), tool, "-C", folder, "-B", str(place), *steps], variables, timeout, progress)
        with confined(None):  # the folder is ours
            data = read_file(place / "bootloader" / "bootloader.bin", "bootloader")
        missing = _without_effect(project / "sdkconfig", lines)
    warnings = tuple(f"ESP-IDF did not accept {line}" for line in missing)
    taken = ", ".join(words for line, words in wanted.lines().items() if line not in missing)
    asked = f" with {taken}" if taken else ""
    return data, f"built by ESP-IDF {idf.version or ''} for the {chip}{asked}", warnings, idf.version


def _run(command: Sequence[str], variables: Mapping[str, str], timeout: float, progress: Progress | None) -> None:
    from pytest_esp.operations.idf.diagnostics import findings, step_of
    from pytest_esp.operations.idf.process import run

    done = [0, 1]

    def on_line(line: str) -> None:
        step = step_of(line)
        if step is not None and step[1] >= done[1]:
            done[:] = max(done[0], step[0]), step[1]

    def on_wait() -> None:
        if progress is not None:
            progress(done[0], done[1])

    ended = run(command, variables, timeout, on_line, on_wait)
    on_wait()  # the last step, too
    if ended.code:
        errors = findings(ended.lines).errors
        last = next((line for line in reversed(ended.lines) if line.strip()), "no output")
        details: dict[str, Any] = {"errors": [vars(one) for one in errors], "last_lines": list(ended.lines[-40:])}
        raise OperationError(
            f"ESP-IDF failed to build the bootloader (exit code {ended.code}): {errors[0].message if errors else last}",
            hint="see last_lines; check the options for this chip",
            details=details,
        )


def _line(name: str, value: Option) -> str:
    bare = name.removeprefix("CONFIG_")
    if _OPTION.fullmatch(bare) is None:
        raise OperationError(f"invalid ESP-IDF option {name!r}", hint="use e.g. CONFIG_BOOTLOADER_APP_ROLLBACK_ENABLE")
    if isinstance(value, bool):
        return f"CONFIG_{bare}={'y' if value else 'n'}"
    if isinstance(value, int) or value in ("y", "n"):
        return f"CONFIG_{bare}={value}"
    if not value.isprintable() or '"' in value or "\\" in value:
        raise OperationError(f"invalid value {value!r} of {name}", hint="use printable characters without quotes")
    return f'CONFIG_{bare}="{value}"'


def _without_effect(sdkconfig: Path, lines: Sequence[str]) -> list[str]:
    """Return the *lines* missing in the resulting configuration: Kconfig drops options that it does not know."""
    try:
        text = sdkconfig.read_text("utf-8", errors="replace")
    except OSError:
        return []
    taken = set(text.splitlines())
    return [line for line in lines if not {line, f"# {line.removesuffix('=n')} is not set"} & taken]
