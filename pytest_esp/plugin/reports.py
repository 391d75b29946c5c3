"""What a run says about its boards: properties, report sections, and the rack at the end."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from pytest_esp.plugin.bench import Usage

if TYPE_CHECKING:
    from _pytest.terminal import TerminalReporter

    from pytest_esp.plugin.bench import Held

_USAGE = "esp_usage"
_TAIL_LINES = 40
_COLUMNS = ("board", "chip", "backend", "tests", "passed", "failed", "busy", "waited", "written", "unchanged")


def record_properties(item: pytest.Item, held: Iterable[Held]) -> None:
    """Put the identity of the boards on the test's report (``<properties>`` in junit.xml)."""
    for one in held:
        item.user_properties += [
            ("board", one.name),
            ("chip", one.board.chip),
            ("backend", one.board.backend),
        ]


def add_usage(report: pytest.TestReport, usages: list[Usage]) -> None:
    """Put what the test did with its boards on its last report, which xdist carries to the controller."""
    setattr(report, _USAGE, [asdict(usage) for usage in usages])
    report.user_properties += [("mac", usage.mac) for usage in usages if usage.mac]


def add_transcripts(report: pytest.TestReport, transcripts: dict[str, str]) -> None:
    """Show what esptool said under a failing test."""
    for name, text in transcripts.items():
        report.sections.append((f"esptool on {name}", text))


def add_consoles(report: pytest.TestReport, logs: dict[str, Path]) -> None:
    """Show what the apps said last under a failing test, and where all of it is."""
    for name, path in logs.items():
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL_LINES:]
        if lines:
            report.sections.append((f"console of {name}", "\n".join([*lines, f"log: {path}"])))


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
    """Adds up what the reports say, in a plain run and in xdist's controller alike."""

    def __init__(self) -> None:
        self._rows: dict[str, _Row] = {}
        self._outcomes: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take one phase of one test."""
        is_subtest = hasattr(report, "context")  # as pytest.Subtests makes them
        if report.failed or (report.skipped and not is_subtest and self._outcomes.get(report.nodeid) != "failed"):
            self._outcomes[report.nodeid] = report.outcome
        if report.when != "teardown":
            return
        outcome = self._outcomes.pop(report.nodeid, "passed")
        for record in cast("list[dict[str, Any]]", getattr(report, _USAGE, ())):
            usage = Usage(**record)
            self._rows.setdefault(usage.board, _Row(usage.chip, usage.backend)).add(usage, outcome)

    def pytest_terminal_summary(self, terminalreporter: TerminalReporter) -> None:
        """Show the boards that were used."""
        if not self._rows or terminalreporter.verbosity < -1:
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
