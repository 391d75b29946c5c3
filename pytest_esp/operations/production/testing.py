"""Runs a pytest suite on one board, in a separate process that takes the board's lease."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self
from xml.etree import ElementTree

from pytest_esp.errors import OperationError
from pytest_esp.formats.files import ReadPath, resolve
from pytest_esp.link.logs import Progress
from pytest_esp.names import nearest
from pytest_esp.operations.chip.identity import identify
from pytest_esp.operations.idf.process import Finished, run
from pytest_esp.operations.production.process import leased
from pytest_esp.operations.production.quality import Inspection, inspect
from pytest_esp.operations.registry import Effect, file_operation

if TYPE_CHECKING:
    from pytest_esp.rack.rack import Rack
    from pytest_esp.rack.spec import BoardSpec

Outcome = Literal["passed", "failed", "error", "skipped"]

_SUITES = Path(__file__).parents[2] / "suites"
EVERYTHING = "all"
_INTERNAL, _USAGE, _NOTHING = 3, 4, 5  # pytest's exit codes
_LONGEST_MESSAGE = 2000
_PLAIN_NAME = "board"
_MOST_OUTPUT = 4000  # characters of pytest's output in an error
_SETTLING = 30.0  # seconds for the board's lease to become free
# Outcomes as pytest prints them with -v, at the end of the line of a test.
_RESULT_LINE = re.compile(r"::.* (?:PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b")
_COLLECTED = re.compile(r"collected (\d+) items?(?:.* / (\d+) selected)?")
# Marks of tests with effects beyond what a caller may allow; see pytest_esp.plugin.options.
_MARKS = {Effect.ERASE: "erases", Effect.BURN: "burns"}


@dataclass(frozen=True)
class TestOutcome:
    """One test: its name including the module, its outcome, and the reason if it did not pass."""

    __test__ = False

    name: str
    outcome: Outcome
    elapsed_seconds: float
    message: str | None


@dataclass(frozen=True)
class TestRun:
    """The result of a suite on a board.

    Attributes:
        passed: whether at least one test ran and none failed.
        counts: number of tests by outcome.
        summary: pytest's last line.
    """

    __test__ = False

    board: str
    test_suite: str
    passed: bool
    counts: dict[str, int]
    tests: tuple[TestOutcome, ...]
    summary: str
    elapsed_seconds: float


@dataclass(frozen=True)
class QualityReport(Inspection):
    """The result of a quality control: an inspection, and *tests* that change nothing (None if they did not run)."""

    tests: TestRun | None

    @classmethod
    def of(cls, seen: Inspection, tests: TestRun | None) -> Self:
        """Combine both; *passed* is whether both passed."""
        found = {field.name: getattr(seen, field.name) for field in fields(seen)}
        found["passed"] = seen.passed and (tests is None or tests.passed)
        return cls(**found, tests=tests)


def suites() -> tuple[str, ...]:
    """Return the names of the built-in suites, those in ``pytest_esp.suites``."""
    return tuple(sorted(path.stem.removeprefix("test_") for path in _SUITES.glob("test_*.py")))


@file_operation(group="production")
def run_tests(
    port: str,
    test_suite: str | os.PathLike[str] = EVERYTHING,
    *,
    keyword: str | None = None,
    timeout_seconds: float = 600.0,
    rack: ReadPath | None = None,
    progress: Progress | None = None,
) -> TestRun:
    """Run a pytest suite on a board of the rack, in a process that takes the board's lease and ends with this one.

    Args:
        port: name of the board; it must not be held, not even by this process.
        test_suite: "all" or names of the built-in suites ("identity,reset"), or a file or folder with your own tests.
        keyword: select tests by name, like pytest's -k.
        timeout_seconds: stop the tests after this time.
        rack: the rack file; by default PYTEST_ESP_RACK, else boards.toml in this folder or its parents.
        progress: called with tests done and total.

    Raises:
        OperationError: if there is no such suite, pytest itself fails, or the tests time out.
        RackError: if there is no such board.
    """
    from pytest_esp.rack.config import load_rack

    found = load_rack(resolve(rack) if rack is not None else None)
    spec = found.board(port)
    return run_suite(spec, found, test_suite, keyword=keyword, timeout=timeout_seconds, progress=progress)


@file_operation(group="production")
def quality_control(
    port: str,
    serial_number: str | None = None,
    *,
    expect: str | None = None,
    boot_wait_seconds: float = 3.0,
    tests: bool = True,
    timeout_seconds: float = 600.0,
    rack: ReadPath | None = None,
    wait_s: float = 0.0,
    progress: Progress | None = None,
) -> QualityReport:
    """Inspect a finished board, then run the built-in suites on it, except tests that erase or burn.

    Args:
        port: name of the board.
        serial_number: required serial number in NVS; by default it is not checked.
        expect: text that the app must print when it starts.
        boot_wait_seconds: how long to listen to the console after the restart.
        tests: run the suites after the inspection.
        timeout_seconds: stop the tests after this time.
        rack: the rack file; by default PYTEST_ESP_RACK, else boards.toml in this folder or its parents.
        wait_s: seconds to wait for the board if it is held.
        progress: called with tests done and total.

    Raises:
        LeaseError: if the board is held. OperationError, RackError: see `run_tests`.
    """
    from pytest_esp.rack.config import load_rack

    found = load_rack(resolve(rack) if rack is not None else None)
    spec = found.board(port)
    with leased(found, wait_s)(spec.name) as link:
        seen = inspect(link, serial_number, expect=expect, boot_wait_seconds=boot_wait_seconds)
    reads = frozenset({Effect.READ})
    run = run_suite(spec, found, effects=reads, timeout=timeout_seconds, progress=progress) if tests else None
    return QualityReport.of(seen, run)


def run_suite(
    spec: BoardSpec,
    rack: Rack,
    suite: str | os.PathLike[str] = EVERYTHING,
    *,
    keyword: str | None = None,
    effects: frozenset[Effect] = frozenset({Effect.READ, Effect.WRITE, Effect.ERASE, Effect.BURN}),
    allow_burn: bool = False,
    timeout: float = 600.0,
    progress: Progress | None = None,
) -> TestRun:
    """Run a suite like `run_tests`, on a board that need not be in the rack file.

    Args:
        spec: the board.
        rack: the rack that it belongs to.
        suite, keyword, timeout (seconds), progress: see `run_tests`.
        effects: allowed effects: tests marked with others are left out.
        allow_burn: consent to burn eFuses of a real board, like --esp-allow-burn.

    Raises:
        OperationError: see `run_tests`.
    """
    targets = _targets(suite)
    ours = targets[0] == "--pyargs"
    if spec.name not in rack.boards:
        spec = _as_an_entry(spec, rack)
    with tempfile.TemporaryDirectory(prefix="pytest-esp-") as name, _rack_file(spec, rack, Path(name)) as file:
        report = Path(name) / "junit.xml"
        command = [
            # Not from the working folder (-P): others may write modules there.
            *(sys.executable, "-P", "-m", "pytest", "-v", "--color=no", "-p", "no:cacheprovider", "-o", "addopts="),
            *(f"--rootdir={name}" if ours else f"--rootdir={_folder_of(Path(targets[0]))}",),
            f"--basetemp={Path(name) / 'tmp'}",
            f"--junitxml={report}",
            # Each in one word: pytest looks for its settings beside every word that is a path.
            f"--esp-rack={file.absolute()}",
            f"--esp-board={spec.name}",
            f"--esp-lock-timeout={min(timeout, _SETTLING)}",
            "--esp-strict",
            *(("--esp-allow-burn",) if allow_burn else ()),
            *(("-k", keyword) if keyword else ()),
            *_left_out(effects),
            *(("-p", "pytest_esp.plugin") if ours else ()),
            *targets,
        ]
        watch = _Watch(progress)
        # Built-in suites must not find a conftest.py or settings of pytest in the working folder.
        folder = Path(name) if ours else None
        finished = run(command, _environment(rack, ours), timeout, watch.line, watch.wait, folder=folder)
        tests = _read_report(report, finished)
    counts = Counter[str](test.outcome for test in tests)
    bad = counts["failed"] + counts["error"]
    passed = finished.code == 0 and not bad and counts["passed"] > 0
    last = next((line for line in reversed(finished.lines) if line.strip()), "")
    return TestRun(
        board=spec.name,
        test_suite=os.fspath(suite),
        passed=passed,
        counts={outcome: counts[outcome] for outcome in ("passed", "failed", "error", "skipped")},
        tests=tests,
        summary=last.strip("= "),
        elapsed_seconds=round(finished.seconds, 3),
    )


def _targets(suite: str | os.PathLike[str]) -> list[str]:
    """Return the arguments that select the tests: modules of this package, or a path."""
    names = [name.strip() for name in os.fspath(suite).split(",")] if isinstance(suite, str) else []
    known = suites()
    if names == [EVERYTHING]:
        return ["--pyargs", "pytest_esp.suites"]
    if names and all(name in known for name in names):
        return ["--pyargs", *(f"pytest_esp.suites.test_{name}" for name in names)]
    path = Path(suite)  # not a client's: the MCP server passes only names that it knows
    if not path.exists():
        wrong = next((name for name in names if name not in known), os.fspath(suite))
        raise OperationError(
            f"unknown suite {wrong!r}, and no file has this name",
            hint=f"nearest: {nearest(wrong, known)}; suites: {', '.join(known)}, all; or a path to tests of your own",
        )
    return [str(path.resolve())]


def _folder_of(path: Path) -> Path:
    return path if path.is_dir() else path.parent


def _left_out(effects: frozenset[Effect]) -> Sequence[str]:
    words = [f"not {mark}" for effect, mark in _MARKS.items() if effect not in effects]
    return ("-m", " and ".join(words)) if words else ()


def _environment(rack: Rack, ours: bool) -> Mapping[str, str]:
    """Return the environment of the tests, without the options of a pytest that may run around this call.

    The built-in suites do not need plugins of others, which take longer to import than a suite takes to run.
    """
    from pytest_esp.rack.lease import ENVIRONMENT

    dropped = ("PYTEST_ADDOPTS", "PYTEST_CURRENT_TEST", "PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT")
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    if ours:
        environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    if rack.lock_dir is not None:
        environment.setdefault(ENVIRONMENT, str(rack.lock_dir))
    named = {name: environment[name] for name in (ENVIRONMENT, "PYTEST_ESP_STATE_DIR") if environment.get(name)}
    return environment | {name: os.path.abspath(folder) for name, folder in named.items()}


def _as_an_entry(spec: BoardSpec, rack: Rack) -> BoardSpec:
    """Return a board that is named by its port in a form for boards.toml: with a plain name, and its chip."""
    if spec.chip != "auto":
        return spec.model_copy(update={"name": _PLAIN_NAME})
    with leased(replace(rack, boards={spec.name: spec}), _SETTLING)(spec.name) as link:
        return spec.model_copy(update={"name": _PLAIN_NAME, "chip": identify(link).chip_type})


@contextlib.contextmanager
def _rack_file(spec: BoardSpec, rack: Rack, folder: Path) -> Generator[Path]:
    """Yield a rack file with the board: that of its rack, or a temporary one for the built-in rack or a mere port."""
    if rack.path is not None and rack.boards.get(spec.name) == spec:
        yield rack.path
        return
    file = folder / "boards.toml"
    told = spec.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    entry = {key: value for key, value in told.items() if key != "name"}
    lines = [f"[boards.{json.dumps(spec.name)}]", *(f"{key} = {json.dumps(value)}" for key, value in entry.items())]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    yield file


class _Watch:
    """Counts finished tests by pytest's output."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._done = 0
        self._total = 1

    def line(self, line: str) -> None:
        if found := _COLLECTED.search(line):
            self._total = max(1, int(found[2] or found[1]))
        if _RESULT_LINE.search(line):
            self._done = min(self._done + 1, self._total)

    def wait(self) -> None:
        """Report progress; an exception from the callback ends the run."""
        if self._progress is not None:
            self._progress(self._done, self._total)


def _read_report(report: Path, finished: Finished) -> tuple[TestOutcome, ...]:
    """Return the tests in pytest's report.

    Raises:
        OperationError: if there is none, or pytest could not run as requested.
    """
    said = "\n".join(finished.lines)[-_MOST_OUTPUT:]
    if finished.code == _NOTHING:
        raise OperationError("no test was selected for this board", hint="see the output", details={"output": said})
    if finished.code in (_INTERNAL, _USAGE) or not report.exists():
        told = [line for line in finished.lines if line.strip()]
        reason = next((line for line in told if line.startswith(("ERROR", "E "))), told[-1] if told else "")
        raise OperationError(
            f"pytest exited with {finished.code}: {reason.strip()}", hint="see the output", details={"output": said}
        )
    try:
        cases = list(ElementTree.parse(report).iter("testcase"))
    except ElementTree.ParseError as error:
        raise OperationError(f"pytest's report cannot be read: {error}") from error
    return tuple(_outcome(case) for case in cases)


def _outcome(case: Any) -> TestOutcome:
    kinds: dict[str, Outcome] = {"failure": "failed", "error": "error", "skipped": "skipped"}
    name = "::".join(filter(None, (case.get("classname"), case.get("name"))))
    for tag, outcome in kinds.items():
        found = case.find(tag)
        if found is not None:
            message = str(found.get("message") or "")
            if tag == "error" or not message:  # for an error in setup or collection, pytest's message only says which
                message = f"{message}\n{found.text or ''}".strip()
            message = message[-_LONGEST_MESSAGE:] if tag == "error" else message[:_LONGEST_MESSAGE]
            return TestOutcome(name, outcome, float(case.get("time") or 0), message)
    return TestOutcome(name, "passed", float(case.get("time") or 0), None)
