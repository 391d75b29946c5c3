"""Finds the installed ESP-IDF, and the environment that its programs need.

Search order: ``IDF_PATH``, ``ESP_IDF_PATH``; then where Espressif's installers and guides put it:
``~/esp/esp-idf``, ``~/esp/*/esp-idf``, ``~/.espressif/*/esp-idf``, newest version first. Its tools are in
``IDF_TOOLS_PATH``, else in ~/.espressif.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from packaging.version import InvalidVersion, Version

from pytest_esp.errors import OperationError
from pytest_esp.operations.registry import file_operation
from pytest_esp.qemu.find import tools_folders

VARIABLES = ("IDF_PATH", "ESP_IDF_PATH")
_USUAL = ("esp/esp-idf", "esp/*/esp-idf", ".espressif/*/esp-idf")
_EXPORT_TIME = 60.0  # seconds; it checks every tool
_HINT = (
    "install ESP-IDF (docs.espressif.com/projects/esp-idf, Get Started) and set IDF_PATH to its folder; see docs/idf.md"
)


@dataclass(frozen=True)
class Installation:
    """One ESP-IDF.

    Attributes:
        path: its folder.
        version: e.g. ``"5.5.1"``; None if unknown.
        found_by: the variable or place by which it was found.
        tools: the folder of its tools (which may not exist yet).
        python: the interpreter of its Python environment; None if this is not installed.
        targets: the chips that its tools were installed for; empty if not recorded, which means all.
    """

    path: Path
    version: str | None
    found_by: str
    tools: Path
    python: Path | None
    targets: tuple[str, ...] = ()


@dataclass(frozen=True)
class EnvironmentInfo:
    """The installed ESP-IDF.

    Attributes:
        idf: the one in use; None if there is none.
        others: folders of other installations.
        problems: what is missing or wrong, and what to do.
        variables: variables that ESP-IDF reads and that are set.
    """

    idf: Installation | None
    others: tuple[Path, ...]
    problems: tuple[str, ...]
    variables: dict[str, str]


_READ = (*VARIABLES, "IDF_TOOLS_PATH", "IDF_PYTHON_ENV_PATH", "IDF_TARGET", "IDF_GITHUB_ASSETS", "ESP_IDF_VERSION")


@file_operation(group="idf")
def environment() -> EnvironmentInfo:
    """Return the ESP-IDF installed on this machine, the location of its tools, and what is missing. Runs nothing."""
    problems: list[str] = []
    for name in VARIABLES:
        value = os.environ.get(name)
        if value and not _is_idf(Path(value)):
            problems.append(f"{name} is {value}, which is not an ESP-IDF: it has no tools/idf.py and tools/tools.json")
    everything = list(_installations())
    idf = everything[0] if everything else None
    if idf is None:
        problems.append(f"ESP-IDF not found: {_HINT}")
    elif idf.python is None:
        problems.append(f"its Python environment is not installed in {idf.tools}: install its tools")
    variables = {name: os.environ[name] for name in _READ if os.environ.get(name)}
    return EnvironmentInfo(idf, tuple(other.path for other in everything[1:]), tuple(problems), variables)


def installation() -> Installation:
    """Return the ESP-IDF in use.

    Raises:
        OperationError: if there is none.
    """
    found = next(_installations(), None)
    if found is None:
        named = [f"{name}={os.environ[name]}" for name in VARIABLES if os.environ.get(name)]
        where = f" ({', '.join(named)} is not one)" if named else ""
        raise OperationError(f"ESP-IDF not found{where}", hint=_HINT)
    return found


def _installations() -> Iterator[Installation]:
    seen: set[Path] = set()
    for path, found_by in _candidates():
        real = path.expanduser().resolve()
        if real not in seen and _is_idf(real):
            seen.add(real)
            yield _look_at(real, found_by)


def _candidates() -> Iterator[tuple[Path, str]]:
    for name in VARIABLES:
        if value := os.environ.get(name):
            yield Path(value), name
    home = Path.home()
    usual = [path for pattern in _USUAL for path in home.glob(pattern)]
    for path in sorted(usual, key=_order, reverse=True):
        yield path, f"~/{path.relative_to(home)}"


def _order(path: Path) -> Version:
    try:
        return Version(_version_of(path) or "0")
    except InvalidVersion:
        return Version("0")


def _is_idf(path: Path) -> bool:
    return (path / "tools" / "idf.py").is_file() and (path / "tools" / "tools.json").is_file()


def _look_at(path: Path, found_by: str) -> Installation:
    version = _version_of(path)
    tools = tools_folders()[0]
    return Installation(path, version, found_by, tools, _python_of(tools, version), _targets_of(tools, path))


def _targets_of(tools: Path, path: Path) -> tuple[str, ...]:
    """Return the chips recorded by the installer for this ESP-IDF in ``idf-env.json``; none for a damaged file."""
    try:
        records = json.loads((tools / "idf-env.json").read_text("utf-8"))["idfInstalled"].values()
        noted = {name for record in records if Path(record["path"]) == path for name in record.get("targets", [])}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ()
    return tuple(sorted(noted))


def _version_of(path: Path) -> str | None:
    """Return the version that ESP-IDF reports without git: ``version.txt`` of a release, else its CMake file."""
    try:
        return (path / "version.txt").read_text("utf-8").strip().removeprefix("v") or None
    except OSError:
        pass
    try:
        text = (path / "tools" / "cmake" / "version.cmake").read_text("utf-8")
    except OSError:
        return None
    numbers = dict(re.findall(r"set\(IDF_VERSION_(MAJOR|MINOR|PATCH)\s+(\d+)\)", text))
    return ".".join(numbers[key] for key in ("MAJOR", "MINOR", "PATCH")) if len(numbers) == 3 else None


def _python_of(tools: Path, version: str | None) -> Path | None:
    """Return the interpreter of ``python_env/idf5.5_py3.12_env``, or of IDF_PYTHON_ENV_PATH."""
    named = os.environ.get("IDF_PYTHON_ENV_PATH")
    short = found[0] if (found := re.match(r"\d+\.\d+", version or "")) else ""
    folders = [Path(named)] if named else sorted((tools / "python_env").glob(f"idf{short}_py*_env"), reverse=True)
    for folder in folders:
        for name in ("bin/python", "Scripts/python.exe"):
            if (folder / name).is_file():
                return folder / name
    return None


def base_environment(idf: Installation) -> dict[str, str]:
    """Return this process's variables, with those for *idf* and its tools; output is without colours."""
    variables = {**os.environ, "IDF_PATH": str(idf.path), "IDF_TOOLS_PATH": str(idf.tools), "NO_COLOR": "1"}
    variables["PYTHONUNBUFFERED"] = "1"  # output is not buffered
    for name in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "CLICOLOR_FORCE"):
        variables.pop(name, None)
    return variables


def tools_command(idf: Installation, *arguments: str) -> list[str]:
    """Return the command for its ``idf_tools.py``; any Python is suitable."""
    return [str(idf.python or sys.executable), str(idf.path / "tools" / "idf_tools.py"), *arguments]


def build_environment(idf: Installation) -> dict[str, str]:
    """Return the variables that ``export.sh`` would set, according to ``idf_tools.py export``.

    Raises:
        OperationError: if tools or the Python environment are missing; quotes its message.
    """
    variables = base_environment(idf)
    if idf.python is None:
        raise OperationError(
            f"the Python environment of ESP-IDF is not installed in {idf.tools}",
            hint="install the tools of ESP-IDF with idf-install or its own install.sh",
        )
    command = tools_command(idf, "export", "--format", "key-value")
    try:
        done = subprocess.run(
            command, env=variables, capture_output=True, text=True, timeout=_EXPORT_TIME, check=False, errors="replace"
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise OperationError(f"cannot determine the environment of ESP-IDF: {error}") from error
    if done.returncode:
        said = [line for line in f"{done.stdout}\n{done.stderr}".splitlines() if line.strip()]
        raise OperationError(
            f"the tools of ESP-IDF are incomplete: {said[-1] if said else 'no output'}",
            hint="check the tools of ESP-IDF (idf-check), and install what is missing (idf-install)",
            details={"last_lines": said[-20:]},
        )
    for line in done.stdout.splitlines():
        name, mark, value = line.partition("=")
        if mark and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            variables[name] = value.replace("$PATH", variables.get("PATH", "")) if name == "PATH" else value
    return variables
