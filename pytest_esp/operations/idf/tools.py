"""The tools of an ESP-IDF: listed from its ``tools.json``, checked in place, installed by its own installer.

Source: ``tools/tools.json`` and ``tools/idf_tools.py`` of ESP-IDF, with their rules for versions and folders.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from pytest_esp.errors import OperationError
from pytest_esp.link.logs import Progress
from pytest_esp.names import ChipName, nearest
from pytest_esp.operations.idf.installation import Installation, base_environment, installation, tools_command
from pytest_esp.operations.idf.process import run
from pytest_esp.operations.registry import Effect, file_operation

_ANSWER_TIME = 20.0  # seconds for a tool to print its version
_INSTALL_TIME = 3600.0  # seconds; a toolchain has some 300 MB

# Platforms as named by `platform.system()` and `platform.machine()`, and as in tools.json.
_PLATFORMS = {
    "Linux-x86_64": "linux-amd64",
    "Linux-aarch64": "linux-arm64",
    "Linux-arm64": "linux-arm64",
    "Linux-armv7l": "linux-armel",
    "Linux-i686": "linux-i686",
    "Darwin-x86_64": "macos",
    "Darwin-arm64": "macos-arm64",
    "Windows-AMD64": "win64",
    "Windows-ARM64": "win-arm64",
}

Install = Literal["always", "on_request", "never"]


@dataclass(frozen=True)
class ToolVersion:
    """One version of a tool: recommended, supported or deprecated by this ESP-IDF; and whether it is installed."""

    version: str
    status: str
    installed: bool
    download_size: int | None


@dataclass(frozen=True)
class Tool:
    """One tool.

    Attributes:
        name: e.g. ``"xtensa-esp-elf"``.
        description: a short description.
        install: ``"always"`` if every build needs it, ``"on_request"``, ``"never"`` (not on this platform).
        targets: chips that it is for, or ``("all",)``.
        recommended: the version that this ESP-IDF requires; None if there is none for this platform.
        versions: all versions for this platform.
    """

    name: str
    description: str
    install: Install
    targets: tuple[str, ...]
    recommended: str | None
    versions: tuple[ToolVersion, ...]


@dataclass(frozen=True)
class ToolList:
    """The tools of an ESP-IDF; *folder* is where they are installed."""

    idf: Path
    version: str | None
    folder: Path
    platform: str
    tools: tuple[Tool, ...]


@file_operation(group="idf")
def tools(target: ChipName | None = None) -> ToolList:
    """List the tools required by the installed ESP-IDF, their versions, and which are installed. Runs nothing.

    Args:
        target: list only the tools for this chip, e.g. ``"esp32c3"``.

    Raises:
        OperationError: if there is no ESP-IDF, or its tools.json is damaged.
    """
    idf = installation()
    found = tuple(
        _tool(idf, entry)
        for entry in _entries(idf)
        if target is None or "all" in entry.get("supported_targets", ["all"]) or target in entry["supported_targets"]
    )
    return ToolList(idf.path, idf.version, idf.tools, _platform(), found)


def _platform() -> str:
    here = f"{platform.system()}-{platform.machine()}"
    return _PLATFORMS.get(here, here)


def _entries(idf: Installation) -> list[dict[str, Any]]:
    path = idf.path / "tools" / "tools.json"
    try:
        content = json.loads(path.read_text("utf-8"))
        entries = cast("list[dict[str, Any]]", content["tools"])
        damaged = next((entry for entry in entries if not {"name", "versions"} <= entry.keys()), None)
    except OSError as error:
        raise OperationError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise OperationError(f"{path} is damaged: {error!r}", hint="check out ESP-IDF again") from error
    if damaged is not None:
        raise OperationError(f"{path} is damaged: a tool has no name or versions", hint="check out ESP-IDF again")
    return [_for_platform(entry) for entry in entries]


def _for_platform(entry: dict[str, Any]) -> dict[str, Any]:
    """Return the entry, modified by its ``platform_overrides`` for this platform."""
    here = _platform()
    for override in entry.get("platform_overrides", []):
        if here in override.get("platforms", []):
            entry = {**entry, **{key: value for key, value in override.items() if key != "platforms"}}
    return entry


def _tool(idf: Installation, entry: dict[str, Any]) -> Tool:
    versions = tuple(_version(idf, entry, version) for version in _versions_here(entry))
    recommended = next((version.version for version in versions if version.status == "recommended"), None)
    return Tool(
        name=entry["name"],
        description=entry.get("description", ""),
        install=entry.get("install", "always"),
        targets=tuple(entry.get("supported_targets", ["all"])),
        recommended=recommended,
        versions=versions,
    )


def _versions_here(entry: dict[str, Any]) -> list[dict[str, Any]]:
    here = _platform()
    return [version for version in entry["versions"] if here in version or "any" in version]


def _version(idf: Installation, entry: dict[str, Any], version: dict[str, Any]) -> ToolVersion:
    download = version.get(_platform()) or version.get("any") or {}
    installed = _folder(idf, entry["name"], version["name"]).is_dir()
    return ToolVersion(version["name"], version.get("status", "supported"), installed, download.get("size"))


def _folder(idf: Installation, tool: str, version: str) -> Path:
    return idf.tools / "tools" / tool / version


# -- checking


@dataclass(frozen=True)
class ToolCheck:
    """Whether a tool is installed and works.

    Attributes:
        name: of the tool.
        wanted: the recommended version.
        installed: the versions in the folder of the tools.
        answers: the version that the installed tool reports; None if it does not run, or has no program.
        in_path: the program found in PATH, if any.
        state: ``ok``, ``outdated`` (another version is there), ``broken`` (does not run, or reports another version),
            ``missing``, or ``optional`` (missing, and not needed by every build).
        problem: what is wrong; None if nothing is.
    """

    name: str
    wanted: str | None
    installed: tuple[str, ...]
    answers: str | None
    in_path: str | None
    state: Literal["ok", "outdated", "broken", "missing", "optional"]
    problem: str | None = None


@dataclass(frozen=True)
class ToolsCheck:
    """Whether builds can work: *ok* means no required tool is missing or broken, and a Python environment exists."""

    ok: bool
    idf: Path
    version: str | None
    python: Path | None
    tools: tuple[ToolCheck, ...]
    hint: str | None = None


@file_operation(group="idf")
def check(target: ChipName | None = None) -> ToolsCheck:
    """Check the tools of the installed ESP-IDF: run each for its version; report missing, outdated and broken ones.

    Args:
        target: check only the tools for this chip; by default those for which tools were installed.

    Raises:
        OperationError: if there is no ESP-IDF, or its tools.json is damaged.
    """
    idf = installation()
    listed = [tool for tool in tools(target).tools if target or _is_for(tool, idf.targets)]
    entries = {entry["name"]: entry for entry in _entries(idf)}
    checks = tuple(_check(idf, tool, entries[tool.name]) for tool in listed if tool.install != "never")
    bad = [check.name for check in checks if check.state in ("missing", "broken", "outdated")]
    ok = not any(check.state in ("missing", "broken") for check in checks) and idf.python is not None
    hint = f"install {', '.join(bad)}" if bad else None
    if idf.python is None:
        hint = "install the tools of ESP-IDF: the Python environment is missing"
    return ToolsCheck(ok, idf.path, idf.version, idf.python, checks, hint)


def _check(idf: Installation, tool: Tool, entry: dict[str, Any]) -> ToolCheck:
    installed = tuple(version.version for version in tool.versions if version.installed)
    command = entry.get("version_cmd") or [""]
    in_path = shutil.which(command[0]) if command[0] else None
    if tool.recommended not in installed:
        needed: Literal["missing", "optional"] = "missing" if tool.install == "always" else "optional"
        state = "outdated" if installed else "ok" if in_path and tool.install != "always" else needed
        return ToolCheck(tool.name, tool.recommended, installed, None, in_path, state)
    answers, problem = _ask(_folder(idf, tool.name, tool.recommended or ""), entry, command)
    if problem is None and answers not in (None, tool.recommended):
        problem = f"it reports version {answers}"
    return ToolCheck(tool.name, tool.recommended, installed, answers, in_path, "broken" if problem else "ok", problem)


def _ask(folder: Path, entry: dict[str, Any], command: Sequence[str]) -> tuple[str | None, str | None]:
    """Return the version that a tool reports, and why it reports none."""
    if not command[0]:
        return None, None  # there is nothing to run
    paths = [str(folder.joinpath(*parts)) for parts in entry.get("export_paths", [])]
    program = shutil.which(command[0], path=os.pathsep.join(paths))
    if program is None:
        return None, f"{command[0]} not found in {folder}"
    try:
        done = subprocess.run(
            [program, *command[1:]],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_ANSWER_TIME,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, f"{program} cannot be run: {error}"
    found = re.search(entry.get("version_regex", "$^"), f"{done.stdout}\n{done.stderr}")
    if found is None:
        return None, f"{program} does not report its version (exit code {done.returncode})"
    replacement = entry.get("version_regex_replace")
    return (found.expand(replacement) if replacement else found[1]), None


# -- installing


@dataclass(frozen=True)
class ToolsInstall:
    """The result of an installation.

    Attributes:
        installed: newly installed tools, as ``NAME@VERSION``.
        present: tools that were installed already.
        python: the interpreter of the Python environment; None if it was not requested and does not exist.
        folder: where the tools are installed.
        elapsed_seconds: duration of the installation.
    """

    installed: tuple[str, ...]
    present: tuple[str, ...]
    python: Path | None
    folder: Path
    elapsed_seconds: float


@dataclass
class _Meter:
    """Tracks an installation by the installer's output, in bytes to download."""

    sizes: dict[str, int]
    progress: Progress | None
    done: int = 0
    installed: list[str] = field(default_factory=list[str])
    present: list[str] = field(default_factory=list[str])
    _current: str | None = None
    _file: Path | None = None
    _told: int = 0

    def on_line(self, line: str) -> None:
        if match := re.match(r"Skipping (\S+@\S+)", line):
            self._finish()
            self.present.append(match[1])
            self.done += self.sizes.get(match[1], 0)
        elif match := re.match(r"Installing (\S+@\S+)", line):
            self._finish()
            self._current = match[1]
        elif match := re.match(r"Destination: (.+)", line):
            self._file = Path(match[1])

    def _finish(self) -> None:
        if self._current is not None:
            self.installed.append(self._current)
            self.done += self.sizes.get(self._current, 0)
        self._current = self._file = None

    def on_wait(self) -> None:
        """Report progress, including the size of the file that is being downloaded."""
        if self.progress is None:
            return
        total = max(sum(self.sizes.values()), 1)
        here = self._file.stat().st_size if self._file is not None and self._file.is_file() else 0
        # A downloaded file is unpacked and removed before the next line reports it as installed.
        self._told = max(self._told, min(self.done + here, total))
        self.progress(self._told, total)

    def close(self) -> None:
        self._finish()
        self.on_wait()


@file_operation(group="idf", effect=Effect.WRITE)
def install(
    tools: list[str] | None = None,
    targets: list[ChipName] | None = None,
    *,
    timeout_seconds: float = _INSTALL_TIME,
    progress: Progress | None = None,
) -> ToolsInstall:
    """Install tools with the installer of ESP-IDF, which downloads them from the vendor; installed tools are kept.

    Args:
        tools: NAME or NAME@VERSION; by default everything that builds need, and the Python environment.
        targets: install tools for these chips, e.g. ["esp32c3"]; by default all.
        timeout_seconds: stop the installer after this time.
        progress: called with bytes done and total.

    Raises:
        OperationError: if there is no ESP-IDF, a name is unknown, or the installer fails; quotes its message.
    """
    idf = installation()
    chosen = [_known(idf, name) for name in tools] if tools else ["required"]
    for target in targets or []:
        _check_target(idf, target)
    meter = _Meter(_sizes(idf, tools, targets), progress)
    option = [f"--targets={','.join(targets)}"] if targets else []
    seconds = _call(idf, ["--non-interactive", "install", *option, *chosen], meter, timeout_seconds)
    meter.close()
    if not tools:
        seconds += _call(idf, ["--non-interactive", "install-python-env"], meter, timeout_seconds)
    return ToolsInstall(tuple(meter.installed), tuple(meter.present), installation().python, idf.tools, seconds)


def _known(idf: Installation, name: str) -> str:
    tool, _, version = name.partition("@")
    listed = {entry["name"]: [item["name"] for item in _versions_here(entry)] for entry in _entries(idf)}
    if tool not in listed:
        raise OperationError(f"ESP-IDF has no tool {tool!r}", hint=f"nearest: {nearest(tool, listed)}")
    if version and version not in listed[tool]:
        raise OperationError(f"{tool} {version!r} is not available here", hint=f"versions: {', '.join(listed[tool])}")
    return name


def _check_target(idf: Installation, target: str) -> None:
    known = {name for entry in _entries(idf) for name in entry.get("supported_targets", [])} - {"all"}
    if target not in known:
        raise OperationError(f"this ESP-IDF has no target {target!r}", hint=f"nearest: {nearest(target, known)}")


def _sizes(idf: Installation, names: Sequence[str] | None, targets: Sequence[str] | None) -> dict[str, int]:
    """Return the bytes to download for each tool to install."""
    wanted = {name.partition("@")[0] for name in names or []}
    sizes: dict[str, int] = {}
    for entry in _entries(idf):
        tool = _tool(idf, entry)
        if names is None and (tool.install != "always" or not _is_for(tool, targets)):
            continue
        if names is not None and tool.name not in wanted:
            continue
        for version in tool.versions:
            if version.version == tool.recommended or f"{tool.name}@{version.version}" in (names or []):
                sizes[f"{tool.name}@{version.version}"] = version.download_size or 0
    return sizes


def _is_for(tool: Tool, targets: Sequence[str] | None) -> bool:
    return not targets or "all" in tool.targets or any(target in tool.targets for target in targets)


def _call(idf: Installation, arguments: Sequence[str], meter: _Meter, timeout: float) -> float:
    done = run(tools_command(idf, *arguments), base_environment(idf), timeout, meter.on_line, meter.on_wait)
    if done.code:
        said = [line for line in done.lines if line.strip()] or ["no output"]
        errors = [line.removeprefix("ERROR: ") for line in said if line.startswith("ERROR: ")]
        raise OperationError(
            f"the installer of ESP-IDF failed ({done.code}): {(errors or said)[-1]}",
            hint="set IDF_GITHUB_ASSETS=dl.espressif.com/github_assets to use Espressif's server, or https_proxy",
            details={"last_lines": list(done.lines[-30:])},
        )
    return done.seconds
