"""Finds Espressif's QEMU where its users have it, and asks each build what it can do.

Looked for in this order: ``QEMU_XTENSA_PATH`` and ``QEMU_RISCV_PATH`` (a binary, or the folder that holds it); every
folder of ``PATH``; the tools of ESP-IDF in ``IDF_TOOLS_PATH`` and in ~/.espressif, newest version first. A build
without Espressif's machines, as distributions have it, is passed over. What a build answers is kept in the user's cache
folder until the file changes, so that looking costs no process.
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
_ANSWER_TIME = 10.0  # seconds; a build answers in some 30 ms
_FAILURE_KEPT = 30.0  # seconds
_LIBRARIES_HINT = "Espressif's builds need libgcrypt, GLib, pixman, SDL2 and libslirp of the system: see docs/qemu.md"


@dataclass(frozen=True)
class Qemu:
    """One build of Espressif's QEMU.

    Attributes:
        path: the binary, absolute.
        version: e.g. ``"9.2.2 (esp_develop_9.2.2_20260417)"``; whoever builds it may leave out the second half.
        machines: names of its machines that are Espressif's.
        drivers: names of its eFuse devices.
    """

    path: Path
    version: str
    machines: frozenset[str]
    drivers: frozenset[str]

    def efuse_driver(self, machine: Machine) -> str:
        """Return the name of the machine's eFuse device in this build.

        Raises:
            BackendError: if it has none of the known ones.
        """
        found = next((driver for driver in machine.efuse_drivers if driver in self.drivers), None)
        if found is None:
            raise BackendError(
                f"{self.path} (QEMU {self.version}) has no eFuse device for {machine.name}: "
                f"none of {', '.join(machine.efuse_drivers)}",
                hint=INSTALL_HINT,
            )
        return found


@dataclass(frozen=True)
class Found:
    """A binary that was looked at.

    Attributes:
        origin: where it was found: the name of a variable, ``"PATH"`` or ``"ESP-IDF tools"``.
        qemu: what it can do; None if it cannot be used.
        problem: why it cannot be used, without its path; None if it can.
    """

    architecture: Architecture
    path: Path
    origin: str
    qemu: Qemu | None
    problem: str | None = None
    hint: str | None = None


class _UnusableError(Exception):
    """Why a binary cannot be used, and what to do about it."""

    def __init__(self, reason: str, hint: str | None = None) -> None:
        super().__init__(reason)
        self.hint = hint


_failures: dict[tuple[Path, int, int], tuple[float, _UnusableError]] = {}


def find(architecture: Architecture, machine: str | None = None) -> Qemu:
    """Return the first usable build of *architecture*; the first that has *machine*, if one is named.

    Raises:
        BackendError: if there is none (it names what was found, and why that will not do), if the environment
            variable names something that cannot be used, or on Windows, whose sockets QEMU cannot be handed.
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
                f"{found.origin} names {found.path}, which {problem}",
                hint=found.hint or f"let {found.origin} name Espressif's {_binary(architecture)}, or unset it",
            )
        problems.append(f"{found.path} {problem}")
    wanted = f"with the machine {machine} " if machine else ""
    raise BackendError(
        f"no QEMU for {architecture} {wanted}is installed" + "".join(f"; {problem}" for problem in problems),
        hint=INSTALL_HINT,
    )


def find_all() -> list[Found]:
    """Return all binaries of both architectures, in the order in which they are looked at, with what is wrong."""
    return [found for architecture in ARCHITECTURES for found in _look(architecture)]


def why_missing(chip: str) -> str | None:
    """Return why no machine of *chip* can be started, as one sentence; None if one can.

    Fit for being called for every test: it looks at files only, once a build has been asked.
    """
    try:
        machine = machine_for(chip)
        find(machine.architecture, machine.name)
    except BackendError as error:
        return f"{error.message} (pytest-esp qemu install)" if error.hint == INSTALL_HINT else error.message
    return None


def tools_folders() -> list[Path]:
    """Return the folders in which ESP-IDF installs its tools: ``IDF_TOOLS_PATH``, ~/.espressif; new tools go first."""
    named = os.environ.get(TOOLS_VARIABLE)
    folders = [_absolute(named)] if named else []
    return list(dict.fromkeys([*folders, _absolute("~/.espressif")]))


def look_at(path: Path, architecture: Architecture, origin: str) -> Found:
    """Return what the binary *path* can do, or why it cannot be used."""
    try:
        return Found(architecture, path, origin, _qemu(path, architecture))
    except _UnusableError as error:
        return Found(architecture, path, origin, None, str(error), error.hint)


def binary_in(folder: Path, architecture: Architecture) -> Path:
    """Return where the binary is below *folder*, the version's folder in ESP-IDF's tools."""
    return folder / "qemu" / "bin" / _binary(architecture)


def _look(architecture: Architecture) -> Iterator[Found]:
    for path, origin in _candidates(architecture):
        yield look_at(path, architecture, origin)


def _candidates(architecture: Architecture) -> Iterator[tuple[Path, str]]:
    """Yield the binaries and where they were found, each once, however many names it has."""
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
        # A name that begins with a dot is an installation under way.
        versions = [path for path in tools.glob(f"tools/qemu-{architecture}/*") if not path.name.startswith(".")]
        for version in sorted(versions, key=lambda path: _version_key(path.name), reverse=True):
            # os.path: unlike those of pathlib, its answers are no errors where this user may not look.
            if os.path.exists(path := binary_in(version, architecture)):
                yield path, "ESP-IDF tools"


def _absolute(name: str) -> Path:
    return Path(os.path.expanduser(name)).absolute()  # unlike Path.expanduser, it lets users have no home


def _binary(architecture: Architecture) -> str:
    return f"qemu-system-{architecture}" + (".exe" if sys.platform == "win32" else "")


def _version_key(name: str) -> tuple[tuple[int, ...], int, str]:
    """Return what orders names such as esp_develop_9.2.2_20250817: QEMU's version, then the date."""
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
    """Return what a binary answers, without asking one that failed again and again.

    For a while only: what it lacks may be installed meanwhile, and the file stays the same.
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
    """Return what a binary answers: from the cache folder, else from itself."""
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
    with contextlib.suppress(OSError):  # without a cache it is only slower
        cache.parent.mkdir(parents=True, exist_ok=True)
        part = cache.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps(kept))
        part.replace(cache)
    return qemu


def _ask(path: Path) -> Qemu:
    answer = _run(path, "--version")
    version = re.search(r"^QEMU emulator version (.+?)\s*$", answer, re.MULTILINE)
    if version is None:
        raise _UnusableError(f"is not QEMU: asked for --version, it says {_shortened(answer)!r}")
    machines = frozenset(re.findall(r"^(esp\S*)\s", _run(path, "-machine", "help"), re.MULTILINE))
    names = {name for machine in MACHINES.values() if machine.name in machines for name in machine.efuse_drivers}
    return Qemu(path, version[1], machines, frozenset(name for name in sorted(names) if _has_driver(path, name)))


def _has_driver(path: Path, name: str) -> bool:
    """Tell whether a build has a device. To describe one starts no machine, and fails with words only."""
    answer = _run(path, "-device", f"{name},help", must_succeed=False)
    return not re.search("not found|not a valid device", answer)


def _run(path: Path, *arguments: str, must_succeed: bool = True) -> str:
    """Return what the binary prints; an `_UnusableError` says why it does not."""
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
        raise _UnusableError(f"did not answer {asked} within {_ANSWER_TIME:g} s") from None
    finally:
        _end(process)
    text = output.decode(errors="replace")
    if process.returncode and must_succeed:
        raise _UnusableError(*_why_failed(process.returncode, asked, text))
    return text


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process that hangs, with what a script started; one that has ended is only cleared away."""
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
    if isinstance(error, FileNotFoundError):  # it is there: what is missing is the program that loads it
        return "needs a loader that this system does not have (a binary for another C library?)", None
    return f"cannot be run here: {error.strerror} (a binary for another kind of machine?)", None


def _why_failed(code: int, asked: str, output: str) -> tuple[str, str | None]:
    how = f"fails with exit code {code}"
    if code < 0:
        with contextlib.suppress(ValueError):  # a signal that Python does not know
            how = f"dies of {signal.Signals(-code).name}"
    no_library = "librar" in output.lower() or code == 0xC0000135  # Windows: STATUS_DLL_NOT_FOUND
    return f"{how} when asked for {asked}, and says {_shortened(output)!r}", _LIBRARIES_HINT if no_library else None


def _shortened(text: str) -> str:
    """Return the first line that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0][:200] if lines else "nothing"
