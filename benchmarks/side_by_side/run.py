"""Whole pytest runs of one side or the other, and what they took."""

from __future__ import annotations

import itertools
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from rich import box
from rich.console import Console
from rich.table import Table

from side_by_side.peer import VERSION

RECORDS = "records.jsonl"
"""What tests and the conftest below have to tell, one JSON object a line."""

CONFTEST = f"""
import json, time

import pytest


@pytest.fixture
def record():
    def write(**values):
        with open({RECORDS!r}, "a") as file:
            file.write(json.dumps(values) + "\\n")

    return write


def pytest_runtest_logstart():
    # Only remembered here: it would be part of what is measured.
    begins.append(time.perf_counter())


def pytest_sessionfinish():
    with open({RECORDS!r}, "a") as file:
        file.write(json.dumps({{"begins": begins}}) + "\\n")


begins = []
"""


@dataclass(frozen=True)
class Side:
    """One of the two: its interpreter, its plugin, and the fixture that is the device's console.

    Attributes:
        arguments: of every run.
        environment: added to this process's.
    """

    name: str
    python: Path
    plugin: str | None
    fixture: str
    arguments: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class Run:
    """What a run took, in seconds, and what its tests have recorded."""

    wall: float
    cpu: float
    records: list[dict[str, Any]]

    def values(self, name: str) -> list[Any]:
        """Return all that was recorded as *name*."""
        return [record[name] for record in self.records if name in record]

    def gaps(self) -> list[float]:
        """Return the seconds from each test's begin to that of the next."""
        begins = self.values("begins")[0]
        return [later - earlier for earlier, later in itertools.pairwise(begins)]


def run(side: Side, folder: Path, tests: str, *arguments: str) -> Run:
    """Run pytest over the text of a test module, in *folder*, with no other plugin than the side's.

    Raises:
        RuntimeError: if a test fails; with pytest's output.
    """
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_it.py").write_text(tests)
    (folder / "pytest.ini").write_text("[pytest]\n")
    shutil.copy(Path(__file__).with_name("cpu.py"), folder)
    (folder / RECORDS).unlink(missing_ok=True)
    command = [str(side.python), "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["-p", side.plugin, *side.arguments] if side.plugin else []
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    before, begun = _children(), time.perf_counter()
    done = subprocess.run(
        [*command, *arguments],
        cwd=folder,
        env={**environment, **side.environment},
        capture_output=True,
        text=True,
        check=False,
    )
    wall, cpu = time.perf_counter() - begun, _children() - before
    if done.returncode:
        raise RuntimeError(f"{side.name}: {done.stdout[-3000:]}{done.stderr[-1000:]}")
    records = [json.loads(line) for line in (folder / RECORDS).read_text().splitlines()]
    return Run(wall, cpu, records)


def _children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


# -- one more test, by runs that differ in the number of tests


@dataclass
class Slope:
    """What one more test costs, from whole runs of few and of many tests; milliseconds.

    Attributes:
        side, test: whose test; it has ``{number}`` in its name and ``FIXTURE`` for the side's fixture.
        rounds: so many runs of each length.
    """

    side: Side
    test: str
    rounds: int
    few: int = 10
    many: int = 50
    runs: dict[int, list[Run]] = field(default_factory=dict[int, list[Run]])

    def measure(self, folder: Path) -> None:
        """Add one run of few and one of many tests."""
        test = self.test.replace("FIXTURE", self.side.fixture)
        for count in (self.few, self.many):
            text = "\n".join(test.replace("{number}", str(number)) for number in range(count))
            self.runs.setdefault(count, []).append(run(self.side, folder, text))

    @property
    def wall(self) -> float:
        """By the best runs of each length: everything else on the machine can only add to them."""
        return self._slope([[one.wall for one in self.runs[count]] for count in (self.few, self.many)])

    @property
    def cpu(self) -> float:
        """The same by processor time, with all child processes."""
        return self._slope([[one.cpu for one in self.runs[count]] for count in (self.few, self.many)])

    def gaps(self) -> list[float]:
        """Return how long each test took, from its begin to that of the next, in all runs but for the first test."""
        return [gap * 1000 for runs in self.runs.values() for one in runs for gap in one.gaps()[1:]]

    def _slope(self, times: list[list[float]]) -> float:
        few, many = (min(found) for found in times)
        return (many - few) / (self.many - self.few) * 1000


def measure_in_turn(slopes: Sequence[Slope], folder: Path) -> None:
    """Let the slopes take turns, so that what else the machine does meets all of them."""
    for number in range(max(slope.rounds for slope in slopes)):
        for slope in slopes:
            if number < slope.rounds:
                slope.measure(folder)


# -- numbers in a table


def p50(values: Sequence[float]) -> float:
    """Return the median."""
    return statistics.median(values)


def p90(values: Sequence[float]) -> float:
    """Return what nine of ten do not exceed."""
    return sorted(values)[max(0, -(-len(values) * 9 // 10) - 1)]


def both(values: Sequence[float], unit: str, digits: int = 2) -> str:
    """Return median and p90 for a cell."""
    return f"{p50(values):.{digits}f} / {p90(values):.{digits}f} {unit}"


class Report:
    """The table of a benchmark: ours, the peer, how they compare, and what was aimed at."""

    def __init__(self, title: str, *more: str, peer: str = f"pytest-embedded {VERSION}") -> None:
        self._table = Table(title=title, box=box.SIMPLE)
        self._table.add_column("what", overflow="fold")
        for heading in ("pytest-esp", peer, *more, "ratio", "goal"):
            self._table.add_column(heading, justify="right")
        self._load = [os.getloadavg()[0]]

    def add(self, *cells: str) -> None:
        """Add a line: what, ours, the peer's, ..., ratio, goal."""
        self._load.append(os.getloadavg()[0])
        self._table.add_row(*cells)

    def print(self) -> None:
        """Print it, with what it was measured on."""
        Console(width=max(120, Console().width)).print(self._table)
        load = f"load {min(self._load):.1f} to {max(self._load):.1f}"
        versions = f"Python {platform.python_version()}, pytest {pytest.__version__}"
        print(f"{os.cpu_count()} cores, {load}; {versions}; {platform.system()} {platform.machine()}")
        print(f"command: {Path(sys.executable).name} {' '.join(sys.argv)}")
