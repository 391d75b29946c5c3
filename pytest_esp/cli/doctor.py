"""``pytest-esp doctor``: check that this machine has what a run needs, and say how to fix what is missing."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import platform
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from pytest_esp import __version__
from pytest_esp.errors import BackendError, EspError, LeaseError, PortError, RackError

if TYPE_CHECKING:
    from pytest_esp.rack.rack import Rack
    from pytest_esp.rack.spec import BoardSpec

_DISTRIBUTION = "pytest-esp"
_NEEDED = ("esptool", "pyserial", "pytest")
_IMPORTS = (
    ("esptool", "pytest_esp.link.session", "boards cannot be used"),
    ("esptool", "espefuse.efuse_interface", "eFuses cannot be read or burnt"),
    ("pytest-xdist", "pytest_esp.plugin.scheduling", "pytest -n does not work"),
    ("fastmcp", "mcp_bridge.bridge", "the MCP server cannot start"),
    ("allure-pytest", "pytest_esp.plugin.allure", "pytest --alluredir does not work"),
    ("grpcio-reflection", "grpc_reflection.v1alpha.reflection_pb2_grpc", "boards of labgrid labs cannot be used"),
)
"""A package, a module that imports it and its dependencies, and what does not work if the import fails."""
_OPTIONAL = {
    "pytest-xdist": ("xdist", "tests cannot use several boards at the same time"),
    "fastmcp": ("mcp", "the MCP bridge cannot be used"),
    "allure-pytest": ("allure", "Allure reports cannot be written"),
    "grpcio-reflection": ("labgrid", "boards of labgrid labs cannot be used"),
}
_PLUG_IN = "check that the board is plugged in and that `port` in its entry is right"
_STYLES = {"ok": "green", "note": "yellow", "wrong": "bold red"}


@dataclass(frozen=True)
class Finding:
    """One line of the report. A *wrong* finding prevents runs; a *note* matters only to some."""

    level: Literal["ok", "note", "wrong"]
    text: str
    hint: str | None = None


@dataclass
class Section:
    """One part of the report.

    Attributes:
        data: the findings as plain data, for programs.
    """

    title: str
    data: Any = None
    findings: list[Finding] = field(default_factory=list[Finding])

    @property
    def is_wrong(self) -> bool:
        """Whether a finding prevents runs."""
        return any(finding.level == "wrong" for finding in self.findings)

    def ok(self, text: str) -> None:
        """Add a finding that is as it should be."""
        self.findings.append(Finding("ok", text))

    def note(self, text: str, hint: str | None = None) -> None:
        """Add a finding that matters only to some runs."""
        self.findings.append(Finding("note", text, hint))

    def wrong(self, text: str, hint: str | None = None) -> None:
        """Add a finding that prevents runs."""
        self.findings.append(Finding("wrong", text, hint))


@click.command("doctor")
@click.option(
    "--rack",
    "path",
    type=click.Path(path_type=Path),
    help="The rack file. Default: PYTEST_ESP_RACK, else boards.toml in this folder or above.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor_command(path: Path | None, as_json: bool) -> None:
    """Check what a run needs: packages, rack, locks, QEMU, serial ports.

    The exit code is 1 if something prevents runs. No port is opened.
    """
    sections = examine(path)
    problems = [finding for section in sections.values() for finding in section.findings if finding.level == "wrong"]
    if as_json:
        click.echo(json.dumps(_report(sections), indent=2))
    else:
        _print(sections)
        count = f"{len(problems)} problem" + ("s" if len(problems) > 1 else "")
        click.echo(f"\n{count}: see above." if problems else "\nNo problems found.")
    if problems:
        sys.exit(1)


def examine(path: Path | None) -> dict[str, Section]:
    """Return the report's sections by their names in the JSON object; *path* is the rack file."""
    packages = _packages()
    try:
        boards, rack = _rack(path)
    except ImportError:
        if not packages.is_wrong:
            raise
        return {"packages": packages}  # the other sections need the broken packages
    return {"packages": packages, "rack": boards, "folders": _folders(rack), "qemu": _qemu(), "ports": _ports()}


# -- packages


def _packages() -> Section:
    versions = {name: _version(name) for name in (*_NEEDED, *_OPTIONAL)}
    section = Section("Packages", {"python": platform.python_version(), _DISTRIBUTION: __version__, **versions})
    here = [f"{name} {version}" for name, version in versions.items() if version]
    section.ok(", ".join([f"Python {platform.python_version()}", f"{_DISTRIBUTION} {__version__}", *here]))
    for text, needed in [*_misfits(), *_broken(versions)]:
        section.wrong(text, f"pip install --upgrade '{needed}', in the environment {sys.prefix}")
    for name, (extra, without) in _OPTIONAL.items():
        if versions[name] is None:
            section.note(f"{name} is not installed: {without}", f"pip install '{_DISTRIBUTION}[{extra}]'")
    if _version("pyserial-labgrid"):
        section.wrong(
            "pyserial-labgrid and pyserial install the same files",
            "move labgrid to a separate environment; then pip install --force-reinstall pyserial",
        )
    if os.environ.get("PYTEST_DISABLE_PLUGIN_AUTOLOAD"):
        section.note(
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD is set: pytest does not load plugins", "run pytest -p pytest_esp.plugin"
        )
    return section


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _broken(versions: Mapping[str, str | None]) -> Iterator[tuple[str, str]]:
    """Yield each package whose import fails, with the consequence, and what to install."""
    for name, module, consequence in _IMPORTS:
        try:
            if versions[name]:
                importlib.import_module(module)
        except Exception as error:
            yield f"{consequence} with {name} {versions[name]}: {type(error).__name__}: {error}", name


def _misfits() -> Iterator[tuple[str, str]]:
    """Yield each requirement that is missing, too old or too new, and what to install."""
    from packaging.requirements import Requirement

    try:
        requirements = [Requirement(text) for text in metadata.requires(_DISTRIBUTION) or ()]
    except metadata.PackageNotFoundError:
        yield f"{_DISTRIBUTION} is not installed: pytest cannot find its plugin", _DISTRIBUTION
        return
    for requirement in requirements:
        extra_only = requirement.marker is not None and not requirement.marker.evaluate({"extra": ""})
        version = _version(requirement.name)
        if version is None and not extra_only:
            yield f"{requirement.name} is missing", f"{requirement.name}{requirement.specifier}"
        elif version is not None and not requirement.specifier.contains(version, prereleases=True):
            needed = str(requirement.specifier)
            yield f"{requirement.name} is {version}, but {needed} is required", f"{requirement.name}{needed}"


# -- the rack


def _rack(path: Path | None) -> tuple[Section, Rack | None]:
    from pytest_esp.rack.config import load_rack

    section = Section("Rack")
    try:
        rack = load_rack(path)
    except RackError as error:
        section.wrong(error.message, error.hint)
        return section, None
    rows = [_board(spec, rack) for spec in rack.boards.values()]
    section.data = {"name": rack.name, "path": str(rack.path) if rack.path else None, "boards": rows}
    section.ok(f"{rack.name} ({rack.path or 'built in; no boards.toml in this folder or above'}): {_at_a_glance(rack)}")
    troubled: dict[tuple[str, str | None], list[str]] = {}
    for row in rows:
        if row["problem"]:
            troubled.setdefault((row["problem"], row["hint"]), []).append(row["name"])
        elif row["holder"]:
            section.note(row["holder"])
    for (problem, hint), names in troubled.items():
        section.wrong(f"{', '.join(names)}: {problem}", hint)
    for text, hint in _contradictions(rack):
        section.note(text, hint)
    for names in _same_hardware(rack):
        section.wrong(f"{' and '.join(names)} are one board", "remove one of the entries: they wait for each other")
    for text in _labs(rack.board(row["name"]) for row in rows if not row["problem"]):
        section.ok(text)
    return section, rack


def _contradictions(rack: Rack) -> Iterator[tuple[str, str]]:
    """Yield what entries of real boards say unlike the chips that were last seen on their ports, and a hint."""
    from pytest_esp.rack.facts import contradictions, remembered

    for spec in rack.boards.values():
        if facts := remembered(spec, rack):
            for key, message in contradictions(spec, facts):
                yield f"{spec.name}: {message} (remembered of {facts.mac})", f"correct or remove `{key}` in its entry"


def _same_hardware(rack: Rack) -> list[list[str]]:
    """Return the names of serial boards whose ports, however they are spelled, are one."""
    from pytest_esp.rack.identity import identity

    names: dict[str, list[str]] = {}
    for spec in rack.boards.values():
        if spec.backend == "serial":
            with contextlib.suppress(PortError):
                names.setdefault(identity(spec, rack), []).append(spec.name)
    return [same for same in names.values() if len(same) > 1]


def _labs(specs: Iterable[BoardSpec]) -> Iterator[str]:
    """Yield address and version of the labgrid labs of *specs*."""
    from pytest_esp.rack.identity import coordinator_address
    from pytest_esp.rack.lease import LABGRID

    labs = {coordinator_address(spec): spec for spec in specs if spec.backend == LABGRID}
    for address, spec in labs.items():
        from pytest_esp.rack import labgrid, labgrid_protocol

        with contextlib.suppress(PortError):
            yield f"labgrid {labgrid.version(spec)} at {address} (known to work: {labgrid_protocol.SUPPORTED})"


def _at_a_glance(rack: Rack) -> str:
    """Return e.g. ``5 boards: 4 sim (esp32, esp32c3), 1 serial (esp32s3)``."""
    chips: dict[str, list[str]] = {}
    for spec in rack.boards.values():
        chips.setdefault(spec.backend, []).append(rack.known(spec).chip)
    kinds = [f"{len(names)} {backend} ({', '.join(dict.fromkeys(names))})" for backend, names in chips.items()]
    return f"{len(rack.boards)} board{'s' if len(rack.boards) > 1 else ''}: {', '.join(kinds)}"


def _board(spec: BoardSpec, rack: Rack) -> dict[str, Any]:
    from pytest_esp.rack.lease import holder_of
    from pytest_esp.rack.presence import check_reachable

    row: dict[str, Any] = {"name": spec.name, "backend": spec.backend, "chip": rack.known(spec).chip}
    row |= {"port": spec.port, "holder": None, "problem": None, "hint": None}
    try:
        _check_board(spec)
        if holder := holder_of(spec, rack):
            row["holder"] = holder.describe()
        else:
            check_reachable(spec)
    except LeaseError:
        pass  # the lock folder cannot be used; the section on folders reports that
    except EspError as error:
        row |= {"problem": error.message, "hint": error.hint}
    return row


def _check_board(spec: BoardSpec) -> None:
    """Raise an `EspError` if the board cannot be opened. Its port is not opened."""
    from pytest_esp.boards.registry import board_class
    from pytest_esp.qemu.find import find
    from pytest_esp.qemu.machines import machine_for
    from pytest_esp.rack.identity import resolve_port
    from pytest_esp.rack.presence import check_present

    board_class(spec.backend)
    if spec.backend == "qemu":
        machine = machine_for(spec.chip)
        find(machine.architecture, machine.name)
    if spec.port is None:
        return
    check_present(spec)
    port = resolve_port(spec)
    if sys.platform != "win32" and "://" not in port and not _may_open(port):
        raise PortError(f"this user may not open {port}", hint=_group_hint(port))


# -- folders


def _folders(rack: Rack | None) -> Section:
    from platformdirs import user_state_path

    from pytest_esp.rack.lease import lock_folder
    from pytest_esp.rack.rack import STATE_ENVIRONMENT, Rack

    state = Path(os.environ.get(STATE_ENVIRONMENT) or user_state_path("pytest-esp")).expanduser().absolute()
    section = Section("Folders", {"locks": None, "state": str(state)})
    try:
        locks = lock_folder(rack or Rack("none", None, {}))
    except LeaseError as error:
        section.wrong(error.message, error.hint)
    else:
        section.data["locks"] = str(locks)
        section.ok(f"locks: {locks}")
    if _can_be_written(state):
        section.ok(f"state of virtual boards: {state}")
    else:
        section.wrong(
            f"cannot write the state of virtual boards to {state}", f"set {STATE_ENVIRONMENT} to another folder"
        )
    return section


def _can_be_written(folder: Path) -> bool:
    """Return whether a folder can be written, or made."""
    existing = next(parent for parent in (folder, *folder.parents) if os.path.exists(parent))
    return os.path.isdir(existing) and os.access(existing, os.W_OK | os.X_OK)


# -- QEMU


def _qemu() -> Section:
    from pytest_esp.qemu.find import find, find_all, why_missing
    from pytest_esp.qemu.machines import ARCHITECTURES, MACHINES

    everything = find_all()
    section = Section("QEMU", [])
    for architecture in ARCHITECTURES:
        used = None
        try:
            used = find(architecture)
        except BackendError as error:
            section.note(error.message, error.hint)
        for found in everything:
            if found.architecture != architecture:
                continue
            qemu = found.qemu
            row = {"architecture": architecture, "path": str(found.path), "origin": found.origin}
            row |= {"version": qemu and qemu.version, "machines": sorted(qemu.machines) if qemu else []}
            section.data.append({**row, "used": qemu is not None and qemu == used, "problem": found.problem})
            if qemu is None and used is not None:  # otherwise `find` has reported it
                section.note(f"{found.path} ({found.origin}) is not used: it {found.problem}", found.hint)
            elif qemu is not None:
                text = f"{architecture}: {qemu.version}, machines {', '.join(sorted(qemu.machines))}"
                section.ok(f"{text}; {found.path} ({found.origin})" + ("" if qemu == used else ", not used"))
        for machine in MACHINES.values():
            if machine.architecture == architecture and used and (reason := why_missing(machine.chip)):
                section.note(reason)
    return section


# -- serial ports


def _ports() -> Section:
    from pytest_esp.rack.ports import plugged_in

    section = Section("Serial ports", [])
    others: list[str] = []
    for port in plugged_in():
        openable = _may_open(port.device)
        row = {"device": port.device, "usb": port.usb, "description": port.description, "openable": openable}
        section.data.append(row)
        if port.usb is None:
            others.append(port.device)
        elif openable is False:
            section.note(
                f"{port.device}: {port.description} ({port.usb}): this user may not open it", _group_hint(port.device)
            )
        else:
            section.ok(f"{port.device}: {port.description} ({port.usb})")
    if others:
        section.ok(f"not USB: {', '.join(others)}")
    if not section.data:
        section.ok("none found")
    return section


def _may_open(device: str) -> bool | None:
    """Return whether this user may open a device; None if this is not known, on Windows."""
    return None if sys.platform == "win32" else os.access(device, os.R_OK | os.W_OK)


def _group_hint(device: str) -> str:
    try:
        group = Path(device).group()
    except (OSError, KeyError, NotImplementedError):  # a group without a name
        group = "dialout"
    return f"run sudo usermod -aG {group} $USER, and log in again; see docs/boards.md"


# -- the report


def _report(sections: dict[str, Section]) -> dict[str, Any]:
    findings = [{"section": name, **asdict(item)} for name, section in sections.items() for item in section.findings]
    problems = [item for item in findings if item["level"] == "wrong"]
    notes = [item for item in findings if item["level"] == "note"]
    return {
        "success": not problems,
        "problems": problems,
        "notes": notes,
        **{name: section.data for name, section in sections.items()},
    }


def _print(sections: dict[str, Section]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 250
    for section in sections.values():
        console.print(Text(section.title, style="bold"))
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for finding in section.findings:
            table.add_row(Text(f"  {finding.level}", style=_STYLES[finding.level]), Text(finding.text))
            if finding.hint:
                table.add_row("", Text(f"hint: {finding.hint}", style="dim"))
        console.print(table)
