"""Collects all diagnostics of a board in one report: as data, as Markdown, and as a page of HTML."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pytest_esp.errors import EspError, OperationError, PortError, StoppedError
from pytest_esp.formats import files
from pytest_esp.formats.files import FileName, ReadPath, WritePath, new_file, resolve
from pytest_esp.formats.partition_table import Partition
from pytest_esp.link.link import Link
from pytest_esp.link.logs import Progress
from pytest_esp.operations.chip.identity import identify
from pytest_esp.operations.diagnostics import (
    memory,
    partition_picture,
    power,
    profile,
    radio,
    report_text,
    thermal,
)
from pytest_esp.operations.diagnostics.core_dump import core_dump
from pytest_esp.operations.diagnostics.soc import soc_of
from pytest_esp.operations.flash import analysis, tables
from pytest_esp.operations.registry import Effect, operation
from pytest_esp.operations.results import Address, to_dict
from pytest_esp.operations.security import posture
from pytest_esp.units import Picture

_RAM_SIZE = 1024  # bytes of RAM to show
_HOT = 85.0  # degrees Celsius; maximum ambient temperature of most of these chips

_ENDINGS = (".html", ".htm", ".md")

Severity = Literal["high", "medium", "info"]


@dataclass(frozen=True)
class Section:
    """One part of a report.

    Attributes:
        title: for display.
        data: the results; None if they are not available.
        problem, hint: why not.
    """

    title: str
    data: Mapping[str, Any] | None
    problem: str | None = None
    hint: str | None = None


@dataclass(frozen=True)
class Notice:
    """Something wrong or worth checking; *count* is how often the same was found."""

    severity: Severity
    section: str
    what: str
    count: int = 1


@dataclass(frozen=True)
class DiagnosticReport:
    """All diagnostics of a board.

    Attributes:
        board, chip_type: name and chip of the board; *chip_type* is None if it did not answer.
        made: time, UTC, ISO 8601.
        notices: the worst first.
        sections: all parts by name, e.g. ``"core_dump"``, including unavailable ones.
        markdown: the report as Markdown.
        flash_map: a picture of the flash's sectors, SVG; None if it could not be read.
        partition_picture: a picture of the partitions, SVG; None if there is no partition table.
        output_file: the file it was saved to, if any.
    """

    board: str
    chip_type: str | None
    made: str
    notices: tuple[Notice, ...]
    sections: Mapping[str, Section]
    markdown: str = field(repr=False)
    flash_map: Picture | None = field(repr=False)
    partition_picture: Picture | None = field(repr=False)
    output_file: Path | None = None

    def html(self) -> str:
        """Return the report as one page of HTML, which needs no other file."""
        return report_text.html(self)


@operation(Effect.READ, group="diagnostics")
def diagnostic_report(
    link: Link,
    include_memory: bool = False,
    output_file: WritePath | None = None,
    *,
    elf_file: ReadPath | None = None,
    duration: float = 3.0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> DiagnosticReport:
    """Collect all diagnostics of a board in one report, most severe findings first; failed parts give the reason.

    Args:
        include_memory: also show 1 KB of RAM.
        output_file: save the report: as HTML (.html) with pictures of partitions and flash, or as Markdown (.md).
        elf_file: ELF file of the firmware, for the functions of a core dump.
        duration: seconds to read the console of the app, which is started for this; at most 600.
        overwrite: replace *output_file* if it exists.
        progress: called with sections done and total.

    Raises:
        OperationError: if the file exists or cannot be written, the ELF file does not exist, or the duration is
            invalid.
        PortError: if the port is lost.
    """
    path = _output(output_file, overwrite)
    _check(elf_file, duration)
    parts = _parts(link, include_memory, elf_file, duration, progress)
    sections: dict[str, Section] = {}
    for number, (name, title, ask) in enumerate(parts):
        sections[name] = _section(title, ask)
        if progress is not None:
            progress(number + 1, len(parts))
    picture = _flash_map(sections)
    identity = sections["identity"].data
    report = DiagnosticReport(
        board=link.board.name,
        chip_type=identity["chip_type"] if identity else None,
        made=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        notices=_counted(_notices(sections)),
        sections=sections,
        markdown="",
        flash_map=picture,
        partition_picture=_partition_picture(sections),
        output_file=path,
    )
    report = replace(report, markdown=report_text.markdown(report))
    if path is not None:
        text = report.markdown if path.suffix.lower() == ".md" else report.html()
        files.save(path, text.encode())
    return report


def _output(name: FileName | None, overwrite: bool) -> Path | None:
    """Return the path of the report; reject early what would fail only after all data has been collected."""
    if name is None:
        return None
    path = new_file(name, overwrite)
    if path.suffix.lower() not in _ENDINGS:
        hint = f"use the suffix {' or '.join(_ENDINGS)}"
        raise OperationError(f"unsupported report format: {path.name}", hint=hint)
    if not path.parent.is_dir():
        raise OperationError(
            f"{path} cannot be written: there is no folder {path.parent}", hint="create it, or use another"
        )
    return path


def _check(elf_file: FileName | None, duration: float) -> None:
    if elf_file is not None and not resolve(elf_file).is_file():
        raise OperationError(f"there is no ELF file {elf_file}", hint="look in the ESP-IDF build folder")
    profile.check_duration(duration)


def _parts(
    link: Link,
    include_memory: bool,
    elf_file: FileName | None,
    duration: float,
    progress: Progress | None,
) -> list[tuple[str, str, Callable[[], Any]]]:
    """Return name, title and function of every section; the console comes first, as the others stop the app."""

    def listening(_done: int, _total: int) -> None:
        if progress is not None:
            progress(0, len(parts))

    parts: list[tuple[str, str, Callable[[], Any]]] = [
        ("performance", "Boot and console", lambda: profile.performance_profile(link, duration, progress=listening)),
        ("identity", "Chip", lambda: identify(link)),
        ("core_dump", "Core dump", lambda: core_dump(link, elf_file)),
        ("partitions", "Partition table", lambda: _table(link)),
        ("flash", "Flash", lambda: analysis.analyze(link)),
        ("security", "Security", lambda: posture.posture(link)),
        ("thermal", "Temperature", lambda: thermal.thermal_status(link)),
        ("power", "Supply", lambda: power.power_analysis(link, max(duration, 0.1))),
        ("radio", "Radio calibration", lambda: radio.rf_calibration_check(link)),
        ("registers", "Registers", lambda: memory.register_dump(link)),
    ]
    if include_memory:
        parts.append(("memory", "Memory", lambda: _some_ram(link)))
    return parts


def _section(title: str, ask: Callable[[], Any]) -> Section:
    try:
        return Section(title, to_dict(ask()))
    except (PortError, StoppedError):
        raise
    except EspError as error:
        return Section(title, None, error.message, error.hint)


def _some_ram(link: Link) -> memory.MemoryDump:
    soc = soc_of(link.session.chip or link.board.chip, None)
    ram = next((area for area in soc.areas if area.kind == "RAM" and area.name == "DRAM"), None)
    if ram is None:
        raise OperationError(f"the RAM of the {soc.chip} is unknown")
    return memory.memory_dump(link, ram.begin, _RAM_SIZE)


@dataclass(frozen=True)
class _Table:
    """A partition table, and which partition's app the bootloader tries first."""

    offset: Address
    checked: bool
    starts: str | None
    partitions: tuple[Partition, ...]


def _table(link: Link) -> _Table:
    found = tables.read(link)
    try:
        starts = tables.app_slot(link).name
    except OperationError:  # a table without an app partition
        starts = None
    return _Table(found.offset, found.checked, starts, found.partitions)


def _partition_picture(sections: Mapping[str, Section]) -> str | None:
    table, contents = sections["partitions"].data, sections["flash"].data
    if table is None or contents is None:
        return None
    return partition_picture.draw(contents["regions"], table["starts"])


def _flash_map(sections: dict[str, Section]) -> str | None:
    """Remove the picture from the section on flash, and return it."""
    found = sections["flash"]
    if found.data is None:
        return None
    sections["flash"] = replace(found, data={key: value for key, value in found.data.items() if key != "map"})
    return found.data.get("map")


def _counted(notices: Iterator[Notice]) -> tuple[Notice, ...]:
    """Return each notice once with its count, most severe first."""
    found = [replace(notice, count=count) for notice, count in Counter(notices).items()]
    return tuple(sorted(found, key=lambda notice: ("high", "medium", "info").index(notice.severity)))


def _notices(sections: Mapping[str, Section]) -> Iterator[Notice]:
    data = {name: section.data for name, section in sections.items() if section.data is not None}
    if "performance" in data:
        yield from _of_the_boot(data["performance"])
    if "core_dump" in data:
        task = (data["core_dump"]["crashed_task"] or {}).get("name")
        what = f"there is a core dump: {data['core_dump']['reason'] or 'a crash'}, in task {task}"
        yield Notice("high", "core_dump", what)
    for image in data.get("flash", {}).get("images", ()):
        if image["problem"]:
            yield Notice("high", "flash", f"the image at {image['address']:#x} is damaged: {image['problem']}")
    yield from (
        Notice("medium" if found["severity"] == "high" else "info", "security", found["what"])
        for found in data.get("security", {}).get("findings", ())
    )
    if "thermal" in data and data["thermal"]["celsius"] > _HOT:
        yield Notice("high", "thermal", f"the chip is at {data['thermal']['celsius']} degrees Celsius")
    supply = data.get("power", {}).get("supply") or {}
    if (supply.get("brown_out") or {}).get("detected"):
        yield Notice("high", "power", "the brown-out detector reports a low supply voltage")
    yield from (Notice("info", "radio", found) for found in data.get("radio", {}).get("findings", ()))
    yield from (Notice("info", name, one.problem) for name, one in sections.items() if one.problem)


def _of_the_boot(found: Mapping[str, Any]) -> Iterator[Notice]:
    for crash in found["crashes"]:
        yield Notice("high", "performance", crash)
    if found["resets"]:
        yield Notice("medium", "performance", f"the chip was reset {found['resets']} times while the console was read")
    if found["boots"] and found["boots"][0]["to_app"] is None and not found["crashes"]:
        yield Notice("medium", "performance", "no app was seen to start")
    if not found["boots"]:
        yield Notice("info", "performance", "no boot was seen: the console may be on another port")
    errors = found["log"]["levels"].get("error", 0)
    if errors:
        yield Notice("medium", "performance", f"the app logged {errors} errors")
