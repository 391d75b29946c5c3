"""ESP-IDF projects: built by idf.py, and flashed from the build folder."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pytest_esp.errors import FirmwareError, OperationError
from pytest_esp.formats.builds import builds_in
from pytest_esp.formats.files import ReadPath, resolve
from pytest_esp.formats.firmware import Firmware
from pytest_esp.formats.listings import read_json
from pytest_esp.link.link import Link
from pytest_esp.link.logs import Progress
from pytest_esp.names import ChipName, nearest
from pytest_esp.operations.chip import running
from pytest_esp.operations.chip.running import ConsoleText
from pytest_esp.operations.flash import writing
from pytest_esp.operations.flash.writing import FlashWrite
from pytest_esp.operations.idf.diagnostics import Diagnostic, Findings, findings, step_of
from pytest_esp.operations.idf.installation import build_environment, installation
from pytest_esp.operations.idf.process import Finished, run
from pytest_esp.operations.registry import Effect, file_operation, operation
from pytest_esp.operations.results import Address

_BUILD_TIME = 1800.0  # seconds; a first build compiles more than a thousand files

FLAGS = ("-v", "--verbose", "--ccache", "--no-ccache", "--no-hints", "--preview", "--cmake-warn-uninitialized")
"""Allowed options of idf.py for a build."""

CACHE_ENTRIES = ("SDKCONFIG", "SDKCONFIG_DEFAULTS", "PROJECT_VER", "EXCLUDE_COMPONENTS", "CMAKE_BUILD_TYPE")
"""Allowed CMake variables for a build, as ``-DNAME=VALUE``; files that they name must be in the project."""


@dataclass(frozen=True)
class BuiltFile:
    """A file of a build, and its address in flash."""

    address: Address
    path: Path


@dataclass(frozen=True)
class ProjectBuild:
    """A successful build.

    Attributes:
        project_path: folder of the project.
        build_dir: folder of the build.
        target: the chip.
        idf_version: version of the ESP-IDF that built it.
        name: name of the app; None if it has no descriptor.
        version: version of the app.
        files: the files to flash.
        elf: the ELF file; None if there is none.
        size: total bytes of the files.
        warnings: of compilers, linker and CMake, the first hundred.
        warning_count: number of warnings.
        elapsed_seconds: duration of the build.
    """

    project_path: Path
    build_dir: Path
    target: str | None
    idf_version: str | None
    name: str | None
    version: str | None
    files: tuple[BuiltFile, ...]
    elf: Path | None
    size: int
    warnings: tuple[Diagnostic, ...]
    warning_count: int
    elapsed_seconds: float


@file_operation(group="idf", effect=Effect.WRITE)
def build(
    project_path: ReadPath,
    target: ChipName | None = None,
    *,
    build_dir: str = "build",
    clean: bool = False,
    arguments: list[str] | None = None,
    timeout_seconds: float = _BUILD_TIME,
    progress: Progress | None = None,
) -> ProjectBuild:
    """Build an ESP-IDF project with the installed ESP-IDF; its build scripts run on this machine, as this user.

    A failed build is an error with the messages of compiler, linker and CMake by file and line. idf.py and its child
    processes end when the call is stopped, times out, or this process ends.

    Args:
        project_path: folder of the project.
        target: the chip; by default the one that the project is configured for. For another one, idf.py renames
            sdkconfig to sdkconfig.old and empties the build folder.
        build_dir: folder of the build, inside the project.
        clean: empty the build folder first.
        arguments: options of idf.py, such as -v, and -DNAME=VALUE for SDKCONFIG, SDKCONFIG_DEFAULTS, PROJECT_VER,
            EXCLUDE_COMPONENTS and CMAKE_BUILD_TYPE.
        timeout_seconds: stop the build after this time.
        progress: called with steps done and total.

    Raises:
        OperationError: if ESP-IDF or the project is missing, an argument is not allowed, or the build fails:
            ``details`` then contains the errors by file and line, hints, and the last lines.
    """
    folder = _project(project_path)
    place = _build_folder(folder, build_dir)
    extra = [_allowed(argument, folder) for argument in arguments or []]
    idf = installation()
    steps = ["fullclean"] if clean else []
    if target is not None and target != _configured_target(folder, place):
        _check_target_name(target)
        steps += ["set-target", target]
    variables = build_environment(idf)
    variables.pop("IDF_TARGET", None)  # it would contradict the configuration of the project
    command = [
        *(str(idf.python), str(idf.path / "tools" / "idf.py")),
        *("-C", str(folder), "-B", str(place), *extra, *steps, "build"),
    ]
    meter = _Steps(progress)
    done = run(command, variables, timeout_seconds, meter.on_line, meter.on_wait)
    said = findings(done.lines)
    if done.code:
        raise _failed(folder, done, said)
    return _built(folder, place, idf.version, done, said)


class _Steps:
    """Turns Ninja's steps into progress that never decreases: builds contain other builds, e.g. the bootloader's."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._done, self._total = 0, 1

    def on_line(self, line: str) -> None:
        step = step_of(line)
        if step is not None and step[1] >= self._total:
            self._done, self._total = max(self._done, step[0]), step[1]

    def on_wait(self) -> None:
        """Report progress; an exception from the callback stops the build."""
        if self._progress is not None:
            self._progress(self._done, self._total)


def _project(path: str | os.PathLike[str]) -> Path:
    folder = resolve(path).expanduser().resolve()
    lists = folder / "CMakeLists.txt"
    try:
        text = resolve(lists).read_text("utf-8", errors="replace")
    except OSError as error:
        raise OperationError(
            f"{folder} is not an ESP-IDF project: it has no CMakeLists.txt", hint="give the project's own folder"
        ) from error
    if "project.cmake" not in text:
        raise OperationError(
            f"{folder} is not an ESP-IDF project: its CMakeLists.txt does not include project.cmake",
            hint="if it is a component, give the folder of its project",
        )
    return folder


def _build_folder(project: Path, build_dir: str) -> Path:
    place = (project / build_dir).resolve()
    if place == project or project not in place.parents:
        raise OperationError(f"the build folder {build_dir!r} is not inside the project", hint="use e.g. build")
    return place


def _allowed(argument: str, project: Path) -> str:
    """Return an argument for idf.py, after checking that it is allowed."""
    if argument in FLAGS:
        return argument
    match = re.fullmatch(r"-D(\w+)=(.*)", argument)
    if match is None or match[1] not in CACHE_ENTRIES:
        raise OperationError(
            f"build argument not allowed: {argument!r}",
            hint=f"allowed: {', '.join(FLAGS)}, and -DNAME=VALUE for {', '.join(CACHE_ENTRIES)}",
        )
    if match[1].startswith("SDKCONFIG"):
        for name in match[2].split(";"):
            if project not in (project / name).resolve().parents:
                raise OperationError(f"{argument}: {name} is not inside the project")
    return argument


def _check_target_name(target: str) -> None:
    from esptool.targets import CHIP_LIST

    if target not in CHIP_LIST and target != "linux":
        raise OperationError(f"unknown chip {target!r}", hint=f"nearest: {nearest(target, CHIP_LIST)}")


def _configured_target(project: Path, build_dir: Path) -> str | None:
    """Return the chip that a project is configured for, by its sdkconfig or else its last build."""
    try:
        found = re.search(
            r'^CONFIG_IDF_TARGET="(\w+)"', resolve(project / "sdkconfig").read_text("utf-8"), re.MULTILINE
        )
    except OSError:
        found = None
    return found[1] if found else _description(build_dir).get("target")


def _description(build_dir: Path) -> dict[str, Any]:
    try:
        return read_json(build_dir / "project_description.json")
    except FirmwareError:
        return {}


def _failed(project: Path, done: Finished, said: Findings) -> OperationError:
    first = said.errors[0] if said.errors else None
    if first is None:
        last = next((line for line in reversed(done.lines) if line.strip()), "no output")
        what = last
    else:
        what = f"{first.file}:{first.line}: {first.message}" if first.file else first.message
    more = f" and {len(said.errors) - 1} more" if len(said.errors) > 1 else ""
    return OperationError(
        f"building {project.name} failed (exit code {done.code}): {what}{more}",
        hint=said.hints[0] if said.hints else None,
        details={
            "errors": [vars(item) for item in said.errors],
            "warnings": [vars(item) for item in said.warnings],
            "hints": list(said.hints),
            "last_lines": list(done.lines[-40:]),
        },
    )


def _built(folder: Path, place: Path, version: str | None, done: Finished, said: Findings) -> ProjectBuild:
    firmware = Firmware.open(place)
    listed = builds_in(place)[0]
    return ProjectBuild(
        project_path=folder,
        build_dir=place,
        target=listed.chip,
        idf_version=version,
        name=firmware.app.project if firmware.app else None,
        version=firmware.app.version if firmware.app else None,
        files=tuple(_files(listed.files)),
        elf=firmware.elf,
        size=sum(region.size for region in firmware.regions),
        warnings=said.warnings,
        warning_count=said.warning_count,
        elapsed_seconds=round(done.seconds, 3),
    )


def _files(files: Sequence[tuple[int | str, Any]]) -> list[BuiltFile]:
    pairs = [(int(address, 0) if isinstance(address, str) else address, Path(file)) for address, file in files]
    return [BuiltFile(address, file) for address, file in sorted(pairs)]


# -- flashing


@dataclass(frozen=True)
class ProjectFlash(FlashWrite):
    """What was flashed, as returned by `writing.write`; *name* and *version* are those of the app."""

    build_dir: Path
    target: str | None
    name: str | None
    version: str | None


@operation(Effect.WRITE, group="idf")
def flash_project(
    link: Link,
    project_path: ReadPath,
    build_dir: str = "build",
    *,
    skip_unchanged: bool = True,
    progress: Progress | None = None,
) -> ProjectFlash:
    """Flash all images of the last build of an ESP-IDF project; regions that are already in flash are skipped.

    This does not build the project. Afterwards the console decodes crashes with the ELF file of the build.

    Args:
        project_path: folder of the project.
        build_dir: folder of the build, inside the project.
        skip_unchanged: skip regions that are already in flash.
        progress: called with bytes done and total.

    Raises:
        FirmwareError: if the project is not built, or built for another chip; nothing was written.
        OperationError, LinkError, PortError: see `writing.write`.
    """
    firmware = built_firmware(project_path, build_dir)
    result = writing.write(link, firmware, skip_unchanged=skip_unchanged, progress=progress)
    link.elf, link.app_baudrate = firmware.elf, firmware.console_baud
    return ProjectFlash(
        **{field.name: getattr(result, field.name) for field in fields(result)},
        build_dir=firmware.path or Path(project_path),
        target=firmware.chip,
        name=firmware.app.project if firmware.app else None,
        version=firmware.app.version if firmware.app else None,
    )


@operation(Effect.READ, group="idf")
def monitor(
    link: Link,
    project_path: ReadPath,
    duration_seconds: float = 10.0,
    until: str | None = None,
    *,
    reset: bool = True,
    build_dir: str = "build",
    progress: Progress | None = None,
) -> ConsoleText:
    """Start the app of an ESP-IDF project and return what it prints for some time, or until a text appears.

    A crash ends this, and is decoded with the ELF file of the build.

    Args:
        project_path: folder of the project.
        duration_seconds: how long to listen, at most 300 s.
        until: stop listening at this text.
        reset: restart the app first.
        build_dir: folder of the build, inside the project.
        progress: called every second with seconds done and total.

    Raises:
        FirmwareError: if the project is not built.
        PortError, LinkError, OperationError: see `running.monitor`.
    """
    link.console.elf = built_firmware(project_path, build_dir).elf
    return running.monitor(link, duration_seconds, until, reset=reset, progress=progress)


def built_firmware(project_path: str | os.PathLike[str], build_dir: str = "build") -> Firmware:
    """Return the last build of a project.

    Raises:
        FirmwareError: if there is none, or one of its files is missing or damaged.
        OperationError: if the folder is not an ESP-IDF project.
    """
    folder = _project(project_path)
    place = _build_folder(folder, build_dir)
    if not (place / "flasher_args.json").is_file():
        raise FirmwareError(
            f"{folder.name} is not built: {place.name}/flasher_args.json not found", hint="build it first"
        )
    return Firmware.open(place)
