"""What a run reports about its boards: properties, report sections and the summary at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import pytest

from pytest_esp.controls import without_controls
from pytest_esp.link.escapes import without_escapes
from pytest_esp.plugin.held_boards import Usage
from pytest_esp.plugin.infrastructure import fault_of
from pytest_esp.plugin.pytest_private import junit_report
from pytest_esp.plugin.selection import loaded_rack, plan_of
from pytest_esp.secrets import hide, hide_in, known

if TYPE_CHECKING:
    from pytest_esp.plugin.held_boards import Held

_USAGE, _SKIP, _NOTICES = "esp_usage", "esp_skip", "esp_notices"
_PROPERTIES = ("board", "chip", "backend", "mac")
_TAIL_LINES = 40
_COLUMNS = ("board", "chip", "backend", "tests", "passed", "failed", "busy", "waited", "written", "unchanged")


def record_properties(item: pytest.Item, held: Iterable[Held]) -> None:
    """With ``--esp-junit-properties``, add the boards to the test's report (``<properties>`` in junit.xml)."""
    if not item.config.getoption("esp_junit_properties"):
        return
    # A test that runs again has those of its last attempt.
    item.user_properties[:] = [one for one in item.user_properties if one[0] not in _PROPERTIES]
    for one in held:
        item.user_properties += [
            ("board", one.name),
            ("chip", one.board.chip),
            ("backend", one.board.backend),
        ]


def add_usage(item: pytest.Item, report: pytest.TestReport, usages: list[Usage]) -> None:
    """Add the test's board usage to its last report, which xdist sends to the controller."""
    setattr(report, _USAGE, [asdict(usage) for usage in usages])
    if item.config.getoption("esp_junit_properties"):
        report.user_properties += [("mac", usage.mac) for usage in usages if usage.mac]


def note_skip(item: pytest.Item, report: pytest.TestReport) -> None:
    """Mark the report of a test that was skipped because no board can run it, for the summary."""
    plan = plan_of(item)
    if report.skipped and plan is not None and plan.reason is not None:
        setattr(report, _SKIP, plan.reason)


def add_notices(report: pytest.TestReport, notices: list[str]) -> None:
    """Move lines about boards to a report, for the summary."""
    if notices:
        setattr(report, _NOTICES, list(notices))
        notices.clear()


def add_transcripts(report: pytest.TestReport, transcripts: dict[str, str]) -> None:
    """Show esptool's output under a failing test."""
    for name, text in transcripts.items():
        report.sections.append((f"esptool on {name}", without_controls(text)))


def add_consoles(report: pytest.TestReport, logs: dict[str, Path]) -> None:
    """Show the last console lines under a failing test, and the path of the log."""
    for name, path in logs.items():
        lines = path.read_bytes().splitlines()[-_TAIL_LINES:]
        if lines:
            said = without_controls(without_escapes(b"\n".join(lines)).decode("utf-8", "replace"))
            report.sections.append((f"console of {name}", f"{said}\nlog: {path}"))


_IDENTITY = ("nodeid", "location", "keywords", "outcome", "when", "fspath")


class Discretion:
    """Masks secrets in every report before it reaches the terminal, junit.xml or xdist's controller."""

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(self) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Mask secrets in tracebacks and the values of their variables, in captured output, logs and properties."""
        report = yield
        return _masked(report)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_make_collect_report(self) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
        """Mask secrets in the report of a module that cannot be imported."""
        report = yield
        return _masked(report)


R = TypeVar("R", pytest.TestReport, pytest.CollectReport)


def _masked(report: R) -> R:
    if not known():
        return report
    attributes = vars(report)
    for name in attributes.keys() - {*_IDENTITY, "longrepr", "result"}:
        attributes[name] = _as_before(attributes[name])
    longrepr = report.longrepr
    if isinstance(longrepr, (str, tuple)):
        report.longrepr = _as_before(longrepr)
    elif longrepr is not None:
        mask_inside(longrepr)
        text = str(longrepr)
        if (hidden := hide(text)) != text:  # `mask_inside` does not know this kind of object
            report.longrepr = hidden
    return report


def _as_before(value: Any) -> Any:
    """Return plain data with secrets masked. Tuples stay tuples: pytest unpacks them."""
    if isinstance(value, str):
        return hide(value, is_cut="..." in value)  # pytest shortens the values of variables
    if isinstance(value, tuple):
        return tuple(_as_before(item) for item in cast("tuple[Any, ...]", value))
    if isinstance(value, list):
        return [_as_before(item) for item in cast("list[Any]", value)]
    return hide_in(value)


def mask_inside(shown: Any) -> Any:
    """Mask secrets in an object that consists of strings, lists and more such objects, and return it."""
    if known():
        _mask_inside(shown, set())
    return shown


def _mask_inside(shown: Any, seen: set[int]) -> None:
    if id(shown) in seen or not hasattr(shown, "__dict__"):
        return
    seen.add(id(shown))
    for name, value in vars(shown).items():
        if isinstance(value, (str, list, tuple)):
            _mask_parts(value, seen)
            setattr(shown, name, _as_before(value))
        else:
            _mask_inside(value, seen)


def _mask_parts(value: Any, seen: set[int]) -> None:
    if isinstance(value, (list, tuple)):
        for item in cast("Iterable[Any]", value):
            _mask_parts(item, seen)
    elif not isinstance(value, str):
        _mask_inside(value, seen)


@dataclass
class _Row:
    """One board in the summary."""

    chip: str
    backend: str
    tests: int = 0
    failed: int = 0
    skipped: int = 0
    busy: float = 0.0
    waited: float = 0.0
    written: int = 0
    unchanged: int = 0

    def add(self, usage: Usage, outcome: str) -> None:
        self.tests += 1
        self.failed += outcome == "failed"
        self.skipped += outcome == "skipped"
        self.busy += usage.busy
        self.waited += usage.waited
        self.written += usage.written
        self.unchanged += usage.skipped

    def cells(self, name: str) -> tuple[str, ...]:
        return (
            name,
            self.chip,
            self.backend,
            str(self.tests),
            str(self.tests - self.failed - self.skipped),
            str(self.failed),
            f"{self.busy:.2f} s",
            f"{self.waited:.2f} s",
            f"{self.written / 1024:.1f} KB",
            f"{self.unchanged / 1024:.1f} KB",
        )


class RackSummary:
    """Adds up the usages in the reports, both in a plain run and in xdist's controller."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._rows: dict[str, _Row] = {}
        self._outcomes: dict[str, str] = {}
        self._skips: Counter[str] = Counter()
        self._notices: list[str] = []
        self._faults: dict[str, str] = {}

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> Generator[None]:
        """Take the report of one phase of a test, and add the boards to its element in junit.xml."""
        usages = [Usage(**record) for record in cast("list[dict[str, Any]]", getattr(report, _USAGE, ()))]
        if fault := fault_of(report):
            self._faults[report.nodeid] = fault
        xml = junit_report(self._config) if report.when == "teardown" else None
        if xml is None:
            result = yield
        else:
            from pytest_esp.plugin.junit import finishing

            with finishing(xml, report, "\n".join(map(str, usages)), self._faults.pop(report.nodeid, None)):
                result = yield
        self._count(report, usages)
        return result

    def pytest_sessionfinish(self) -> None:
        """Add the rack to junit.xml as properties of the suite."""
        rack = loaded_rack(self._config)
        xml = junit_report(self._config) if self._rows and rack is not None else None
        if xml is not None and rack is not None:
            from pytest_esp.plugin.junit import add_suite_property

            add_suite_property(xml, "rack", f"{rack.name} ({rack.path or 'built in'})")
            for name, row in sorted(self._rows.items()):
                add_suite_property(xml, f"board {name}", f"{row.chip}, {row.backend}")

    def _count(self, report: pytest.TestReport, usages: list[Usage]) -> None:
        self._notices += getattr(report, _NOTICES, ())
        is_subtest = hasattr(report, "context")  # from pytest.Subtests
        if (reason := getattr(report, _SKIP, None)) is not None:
            self._skips[reason] += 1
        if str(report.outcome) == "rerun":  # pytest-rerunfailures: an attempt that failed
            self._outcomes[report.nodeid] = "failed"
        elif report.failed or (report.skipped and not is_subtest and self._outcomes.get(report.nodeid) != "failed"):
            self._outcomes[report.nodeid] = report.outcome
        if report.when != "teardown":
            return
        outcome = self._outcomes.pop(report.nodeid, "passed")
        for usage in usages:
            self._rows.setdefault(usage.board, _Row(usage.chip, usage.backend)).add(usage, outcome)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Show why tests were skipped for want of a board, and a table of the boards that were used."""
        if terminalreporter.verbosity < -1:
            return
        if self._skips:
            terminalreporter.section("skipped: no board")
            for reason, count in self._skips.most_common():
                terminalreporter.write_line(f"{count} test{'s' if count > 1 else ''}: {reason}")
        if self._notices:
            terminalreporter.section("boards that were exchanged")
            for notice in self._notices:
                terminalreporter.write_line(notice)
        if not self._rows:
            return
        terminalreporter.section("boards")
        table = [_COLUMNS, *(row.cells(name) for name, row in sorted(self._rows.items()))]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        for cells in table:
            terminalreporter.write_line(
                "  ".join(
                    cell.ljust(width) if index < 3 else cell.rjust(width)
                    for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
                ).rstrip()
            )
