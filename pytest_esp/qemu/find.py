"""Finds Espressif's QEMU, and determines the machines of each build.

The search order is: ``QEMU_XTENSA_PATH`` and ``QEMU_RISCV_PATH`` (a binary, or its folder); every folder in ``PATH``;
the tools of ESP-IDF in ``IDF_TOOLS_PATH`` and in ~/.espressif, newest version first. Builds without Espressif's
machines, such as those of Linux distributions, are skipped. The properties of a build are cached in the user's cache
folder until the file changes, so that a search does not start a process.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from platformdirs import user_cache_path

from pytest_esp.errors import BackendError
from pytest_esp.qemu.machines import ARCHITECTURES, MACHINES, Architecture, Machine, machine_for

VARIABLES: dict[Architecture, str] = {"xtensa": "QEMU_XTENSA_PATH", "riscv32": "QEMU_RISCV_PATH"}
TOOLS_VARIABLE = "IDF_TOOLS_PATH"
INSTALL_HINT = (
    "`pytest-esp qemu install`, or ESP-IDF's `idf_tools.py install qemu-xtensa qemu-riscv32`; see docs/qemu.md"
)

_FORMAT = 1  # of the cached files
_ANSWER_TIME = 10.0  # seconds; a build answers in about 30 ms
_FAILURE_KEPT = 30.0  # seconds
_LIBRARIES_HINT = "install the libraries that it needs: libgcrypt, GLib, pixman, SDL2 and libslirp; see docs/qemu.md"


@dataclass(frozen=True)
class Qemu:
    """A build of Espressif's QEMU.

    Attributes:
        path: the absolute path of the binary.
        version: e.g. ``"9.2.2 (esp_develop_9.2.2_20260417)"``; custom builds may lack the second part.
        machines: the names of its Espressif machines.
        drivers: the names of its eFuse devices.
    """

    path: Path
    version: str
    machines: frozenset[str]
    drivers: frozenset[str]

    def efuse_driver(self, machine: Machine) -> str:
        """Return the name of the machine's eFuse device in this build.

        Raises:
            BackendError: if it has no known eFuse device for the machine.
        """
        found = next((driver for driver in machine.efuse_drivers if driver in self.drivers), None)
        if found is None:
            raise BackendError(
                f"{self.path} (QEMU {self.version}) has no eFuse device for {machine.name}: "
                f"expected one of {', '.join(machine.efuse_drivers)}",
                hint=INSTALL_HINT,
            )
        return found


@dataclass(frozen=True)
class Found:
    """A binary that was found.

    Attributes:
        origin: where it was found: the name of a variable, ``"PATH"`` or ``"ESP-IDF tools"``.
        qemu: the build; None if it cannot be used.
        problem: why it cannot be used, without its path; None if it can.
    """

    architecture: Architecture
    path: Path
    origin: str
    qemu: Qemu | None
    problem: str | None = None
    hint: str | None = None


class _UnusableError(Exception):
    """A binary cannot be used; with the reason and a hint."""

    def __init__(self, reason: str, hint: str | None = None) -> None:
        super().__init__(reason)
        self.hint = hint


_failures: dict[tuple[Path, int, int], tuple[float, _UnusableError]] = {}


def find(architecture: Architecture, machine: str | None = None) -> Qemu:
    """Return the first usable build of *architecture*, with *machine* if that is given.

    Raises:
        BackendError: if there is none (the message lists the unusable ones), if the environment variable points to an
            unusable one, or on Windows, where sockets cannot be passed to QEMU.
    """
    if sys.platform == "win32":
        raise BackendError("QEMU boards are only supported on Linux and macOS", hint="use WSL 2, or a simulated chip")
    problems: list[str] = []
    for found in _look(architecture):
        problem = found.problem
        if found.qemu is not None:
            if machine is None or machine in found.qemu.machines:
                return found.qemu
            problem = f"has no machine {machine}, only {', '.join(sorted(found.qemu.machines))}"
        if found.origin == VARIABLES[architecture]:
            raise BackendError(
                f"{found.origin} is set to {found.path}, which {problem}",
                hint=found.hint or f"set {found.origin} to Espressif's {_binary(architecture)}, or unset it",
            )
        problems.append(f"{found.path} {problem}")
    wanted = f"with the machine {machine} " if machine else ""
    raise BackendError(
        f"no QEMU for {architecture} {wanted}is installed" + "".join(f"; {problem}" for problem in problems),
        hint=INSTALL_HINT,
    )


def find_all() -> list[Found]:
    """Return all binaries of both architectures in search order, including unusable ones."""
    return [found for architecture in ARCHITECTURES for found in _look(architecture)]


def why_missing(chip: str) -> str | None:
    """Return why no machine of *chip* can be started, as one sentence; None if one can.

    Fast enough to be called for every test: once a build is cached, it only looks at files.
    """
    try:
        machine = machine_for(chip)
        find(machine.architecture, machine.name)
    except BackendError as error:
        return f"{error.message} (pytest-esp qemu install)" if error.hint == INSTALL_HINT else error.message
    return None


def tools_folders() -> list[Path]:
    """Return the folders of ESP-IDF's tools: ``IDF_TOOLS_PATH``, ~/.espressif. New tools are installed in the first."""
    named = os.environ.get(TOOLS_VARIABLE)
    folders = [_absolute(named)] if named else []
    return list(dict.fromkeys([*folders, _absolute("~/.espressif")]))


def look_at(path: Path, architecture: Architecture, origin: str) -> Found:
    """Return the build at *path*, or why it cannot be used."""
    try:
        return Found(architecture, path, origin, _qemu(path, architecture))
    except _UnusableError as error:
        return Found(architecture, path, origin, None, str(error), error.hint)


def binary_in(folder: Path, architecture: Architecture) -> Path:
    """Return the path of the binary in *folder*, a version's folder in ESP-IDF's tools."""
    return folder / "qemu" / "bin" / _binary(architecture)


def _look(architecture: Architecture) -> Iterator[Found]:
    for path, origin in _candidates(architecture):
        yield look_at(path, architecture, origin)


def _candidates(architecture: Architecture) -> Iterator[tuple[Path, str]]:
    """Yield each binary once, with its origin."""
    seen: set[str] = set()
    for path, origin in _places(architecture):
        real = os.path.realpath(path)
        if real not in seen:
            seen.add(real)
            yield path, origin


def _places(architecture: Architecture) -> Iterator[tuple[Path, str]]:
    variable, name = VARIABLES[architecture], _binary(architecture)
    if named := os.environ.get(variable):
        path = _absolute(named)
        yield (path / name if os.path.isdir(path) else path), variable
    for folder in os.get_exec_path():
        if folder and (found := shutil.which(name, path=folder)):
            yield Path(found).absolute(), "PATH"
    for tools in tools_folders():
        # A name that begins with a dot is an installation in progress.
        versions = [path for path in tools.glob(f"tools/qemu-{architecture}/*") if not path.name.startswith(".")]
        for version in sorted(versions, key=lambda path: _version_key(path.name), reverse=True):
            # os.path does not raise for folders that this user may not read, unlike pathlib.
            if os.path.exists(path := binary_in(version, architecture)):
                yield path, "ESP-IDF tools"


def _absolute(name: str) -> Path:
    return Path(os.path.expanduser(name)).absolute()  # Path.expanduser raises for users without a home


def _binary(architecture: Architecture) -> str:
    return f"qemu-system-{architecture}" + (".exe" if sys.platform == "win32" else "")


def _version_key(name: str) -> tuple[tuple[int, ...], int, str]:
    """Return the sort key of a name such as esp_develop_9.2.2_20250817: QEMU's version, then the date."""
    number = re.search(r"\d+(?:\.\d+)+", name)
    date = re.search(r"(?<!\d)\d{8}(?!\d)", name)
    return tuple(int(part) for part in number[0].split(".")) if number else (), int(date[0]) if date else 0, name


def _qemu(path: Path, architecture: Architecture) -> Qemu:
    try:
        status = path.stat()
    except OSError as error:
        reason = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
        raise _UnusableError(reason) from None
    if path.is_dir():
        raise _UnusableError("is a folder")
    qemu = _remembered(path, status.st_size, status.st_mtime_ns)
    known = {machine.name for machine in MACHINES.values() if machine.architecture == architecture}
    if not qemu.machines:
        raise _UnusableError(f"is QEMU {qemu.version} without Espressif's machines")
    if not qemu.machines & known:
        raise _UnusableError(f"is QEMU for other chips: {', '.join(sorted(qemu.machines))}")
    return qemu


def _remembered(path: Path, size: int, modified: int) -> Qemu:
    """Return the build of a binary, without starting one that failed again and again.

    A failure is remembered for a while only: a missing library may be installed without a change of the file.
    """
    key = (path, size, modified)
    when, error = _failures.get(key, (0.0, None))
    if error is not None and time.monotonic() - when < _FAILURE_KEPT:
        raise _UnusableError(str(error), error.hint)
    try:
        return _answers(*key)
    except _UnusableError as error:
        _failures[key] = time.monotonic(), error
        raise


@functools.cache
def _answers(path: Path, size: int, modified: int) -> Qemu:
    """Return the build of a binary, from the cache or by running it."""
    identity = {"path": str(path), "size": size, "modified": modified}
    name = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    cache = user_cache_path("pytest-esp") / f"qemu-{_FORMAT}-{name}.json"
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        kept = json.loads(cache.read_bytes())
        if kept["identity"] == identity:
            return Qemu(path, str(kept["version"]), frozenset(kept["machines"]), frozenset(kept["drivers"]))
    qemu = _ask(path)
    kept = {
        "identity": identity,
        "version": qemu.version,
        "machines": sorted(qemu.machines),
        "drivers": sorted(qemu.drivers),
    }
    with contextlib.suppress(OSError):  # it also works without a cache
        cache.parent.mkdir(parents=True, exist_ok=True)
        part = cache.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps(kept))
        part.replace(cache)
    return qemu


def _ask(path: Path) -> Qemu:
    answer = _run(path, "--version")
    version = re.search(r"^QEMU emulator version (.+?)\s*$", answer, re.MULTILINE)
    if version is None:
        raise _UnusableError(f"is not QEMU: --version printed {_shortened(answer)!r}")
    machines = frozenset(re.findall(r"^(esp\S*)\s", _run(path, "-machine", "help"), re.MULTILINE))
    names = {name for machine in MACHINES.values() if machine.name in machines for name in machine.efuse_drivers}
    return Qemu(path, version[1], machines, frozenset(name for name in sorted(names) if _has_driver(path, name)))


def _has_driver(path: Path, name: str) -> bool:
    """Return whether a build has a device. The query does not start a machine; only its text reports a failure."""
    answer = _run(path, "-device", f"{name},help", must_succeed=False)
    return not re.search("not found|not a valid device", answer)


def _run(path: Path, *arguments: str, must_succeed: bool = True) -> str:
    """Return the binary's output.

    Raises:
        _UnusableError: if it cannot be run.
    """
    asked = " ".join(arguments)
    try:
        process = subprocess.Popen(
            [path, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        raise _UnusableError(*_why_not_started(error)) from error
    try:
        output, _ = process.communicate(timeout=_ANSWER_TIME)
    except subprocess.TimeoutExpired:
        raise _UnusableError(f"did not respond to {asked} within {_ANSWER_TIME:g} s") from None
    finally:
        _end(process)
    text = output.decode(errors="replace")
    if process.returncode and must_succeed:
        raise _UnusableError(*_why_failed(process.returncode, asked, text))
    return text


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that hangs, with its children, and reap it."""
    if process.returncode is not None:
        return
    if sys.platform == "win32":
        process.kill()
    else:
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def _why_not_started(error: OSError) -> tuple[str, str | None]:
    if isinstance(error, PermissionError):
        return "is not executable", "chmod +x, or install it again"
    if isinstance(error, FileNotFoundError):  # the file exists: its dynamic loader is missing
        return "needs a dynamic loader that this system does not have (it may be built for another C library)", None
    return f"cannot be run: {error.strerror} (it may be built for another machine)", None


def _why_failed(code: int, asked: str, output: str) -> tuple[str, str | None]:
    how = f"failed with exit code {code}"
    if code < 0:
        with contextlib.suppress(ValueError):  # a signal that Python does not know
            how = f"was killed by {signal.Signals(-code).name}"
    no_library = "librar" in output.lower() or code == 0xC0000135  # Windows: STATUS_DLL_NOT_FOUND
    return f"{how} for {asked}: {_shortened(output)!r}", _LIBRARIES_HINT if no_library else None


def _shortened(text: str) -> str:
    """Return the first non-empty line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0][:200] if lines else "nothing"
