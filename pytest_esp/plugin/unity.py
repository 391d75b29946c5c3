"""The fixture ``unity``: every test case of the app is a subtest, and a separate test case in junit.xml.

pytest writes the failures of all subtests into the ``<testcase>`` element of their test, and only counts the others.
This plugin writes an element for each case, with its name, time and message. Under xdist, the controller does so,
from the reports that the workers send.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from pytest_esp.errors import EspError
from pytest_esp.plugin.held_boards import Held
from pytest_esp.secrets import hide

if TYPE_CHECKING:
    import os

    from pytest_esp.link.link import Link
    from pytest_esp.operations.unity import Case, CaseResult, Menu, Report, Status

_RECORD = "esp_unity_case"
"""Attribute of a subtest's report: the case as plain data, for junit.xml."""
_RECORDS = "esp_unity_cases"
"""Attribute of a test's report: all its cases, for a run with ``-p no:subtests``."""

_CURRENT = pytest.StashKey[dict[str, Any]]()
_UNREPORTED = pytest.StashKey[list[dict[str, Any]]]()
_LONGEST_LOG = 64 * 1024
_TAIL_LINES = 100  # enough for the panic of a RISC-V chip with its stack dump, and the boot after it
_BOOT_TIMEOUT = 30.0
_STACK_ROW = re.compile(r"[0-9a-f]{8}:(?: 0x[0-9a-f]{8})+")


class Unity:
    """The test cases of the app on a test's boards.

    Args:
        request: the test's request.
        links: the links to its boards; single-device cases run on the first.
    """

    def __init__(self, request: pytest.FixtureRequest, links: Sequence[Link]) -> None:
        self._request = request
        self._item: pytest.Item = request.node
        self._links = links
        self._has_subtests = request.config.pluginmanager.hasplugin("subtests")

    def menu(self, *, boot_timeout: float = _BOOT_TIMEOUT) -> Menu:
        """Return the cases that the app on the first board offers; see `operations.unity.menu`."""
        from pytest_esp.operations import unity

        return unity.menu(self._links[0], boot_timeout=boot_timeout)

    def run(
        self,
        case: Case | int | str,
        *,
        timeout: float = 60.0,
        elf: str | os.PathLike[str] | None = None,
        boot_timeout: float = _BOOT_TIMEOUT,
    ) -> CaseResult:
        """Run one case and return its result without failing the test; see `operations.unity.run`.

        A multi-device case runs on all boards of the test.
        """
        from pytest_esp.operations import unity

        with unity.Suite(self._links, elf=elf, boot_timeout=boot_timeout) as suite:
            found = suite.menu.case(case.name if not isinstance(case, (int, str)) else case)
            return suite.run(found, unity.Conditions(timeout, include_ignored=True))

    def run_all(
        self,
        *,
        names: str | Sequence[str] = (),
        groups: str | Sequence[str] = (),
        attributes: Mapping[str, str] | None = None,
        invert: bool = False,
        include_ignored: bool = False,
        retries: int = 0,
        retry_on: Sequence[Status] = ("crashed", "timeout", "failed"),
        timeout: float = 60.0,
        elf: str | os.PathLike[str] | None = None,
        boot_timeout: float = _BOOT_TIMEOUT,
    ) -> Report:
        """Run the cases that match all arguments, each as a subtest; see `operations.unity.run_all`.

        Multi-device cases run on all boards of the test, and are skipped if there are too few. Ignored cases are
        skipped. With ``-p no:subtests`` the test fails at the end, with a list of the failed cases.
        """
        from pytest_esp.operations import unity

        return self.run_cases(
            unity.Selection.of(names, groups, attributes, invert).choose,
            include_ignored=include_ignored,
            retries=retries,
            retry_on=retry_on,
            timeout=timeout,
            elf=elf,
            boot_timeout=boot_timeout,
        )

    def run_cases(
        self,
        choose: Callable[[Menu], Iterable[Case]],
        *,
        include_ignored: bool = False,
        retries: int = 0,
        retry_on: Sequence[Status] = ("crashed", "timeout", "failed"),
        timeout: float = 60.0,
        reset: bool = False,
        elf: str | os.PathLike[str] | None = None,
        boot_timeout: float = _BOOT_TIMEOUT,
    ) -> Report:
        """Run the cases of the menu that *choose* returns; with *reset*, after a reset for each. See `run_all`."""
        from pytest_esp.operations import unity

        conditions = unity.Conditions(timeout, include_ignored, retries, tuple(retry_on), reset)
        with unity.Suite(self._links, elf=elf, boot_timeout=boot_timeout) as suite:
            results = [self._report(case, partial(suite.run, case, conditions)) for case in choose(suite.menu)]
        return self._finished(results)

    def _finished(self, results: list[CaseResult]) -> Report:
        from pytest_esp.operations import unity

        if not self._has_subtests:
            _fail_for_all(results)
        return unity.Report(tuple(results))

    def expect_output(self, timeout: float = 60.0) -> Report:
        """Wait for the end of the tests that the app on the first board runs by itself, without a menu.

        Each test case is a subtest, as in `run_all`.

        Raises:
            CrashError, ConsoleError: if the app crashes, or prints no summary in time; see `Console.expect`.
            OperationError: if the output before the summary has no test case.
        """
        __tracebackhide__ = True
        from pytest_esp.operations.unity.output import SUMMARY_WITH_VERDICT

        return self.report_output(self._links[0].console.read_until(SUMMARY_WITH_VERDICT, timeout))

    def report_output(self, output: str) -> Report:
        """Report the test cases in the output of an app, up to its summary, each as a subtest.

        Raises:
            OperationError: if it has none.
        """
        from pytest_esp.operations.unity import Case
        from pytest_esp.operations.unity.output import read_output

        found = read_output(output, board=self._links[0].board.name)
        return self._finished([self._report(Case(0, one.name), lambda one=one: one) for one in found])

    def _report(self, case: Case, run: Callable[[], CaseResult]) -> CaseResult:
        """Run a case as a subtest.

        Raises:
            EspError: if no more cases can be run.
        """
        from pytest_esp.operations.unity import CaseResult

        record = self._item.stash[_CURRENT] = {"name": case.name}
        broken: EspError | None = None
        result: CaseResult | None = None
        try:
            with self._subtest(case.name), _allure_step(self._item.config, case.name) as attach:
                try:
                    result = run()
                except EspError as error:
                    broken = error
                    result = CaseResult(case.name, "crashed", error.message, board=error.board or "", tags=case.tags)
                record.update(_record(result))
                attach(result.log)
                _judge(result)
        finally:
            del self._item.stash[_CURRENT]
        if not self._has_subtests:
            self._item.stash.setdefault(_UNREPORTED, []).append(record)
        if broken is not None:
            raise broken
        assert result is not None
        return result

    def _subtest(self, name: str) -> AbstractContextManager[object]:
        if self._has_subtests:
            return self._request.getfixturevalue("subtests").test(name)
        return contextlib.suppress(pytest.fail.Exception, pytest.skip.Exception)


@pytest.fixture
def unity(request: pytest.FixtureRequest, esp: object, _esp_held: list[Held]) -> Unity:
    """The Unity test cases of the app on `board`, or on all `boards`: ``unity.run_all(groups="[queue]")``."""
    return Unity(request, [held.link for held in _esp_held])


def _record(result: CaseResult) -> dict[str, Any]:
    """Return a result as plain data, which xdist can send with a report."""
    return {
        "name": result.name,
        "status": result.status,
        "seconds": result.seconds,
        "message": result.message,
        "text": result.describe(),
        "file": result.file,
        "line": result.line,
        "board": result.board,
        "attempts": result.attempts,
        "log": hide(result.log)[-_LONGEST_LOG:],
    }


def _judge(result: CaseResult) -> None:
    """Fail or skip the subtest as the case did."""
    if result.status == "ignored":
        raise pytest.skip.Exception(result.message or "ignored by the app", _use_item_location=True)
    if result.is_problem:  # pytest prints the name, and that it failed
        pytest.fail(result.describe().removeprefix(f"{result.name}: ").removeprefix("failed: "), pytrace=False)


def _fail_for_all(results: Iterable[CaseResult]) -> None:
    problems = [result for result in results if result.is_problem]
    if problems:
        text = "\n\n".join(result.describe() for result in problems)
        pytest.fail(f"{len(problems)} of the app's test cases failed:\n{text}", pytrace=False)


@contextlib.contextmanager
def _allure_step(config: pytest.Config, name: str) -> Generator[Callable[[str], None]]:
    """Record a case as a step in allure's report, in runs with ``--alluredir``."""
    if not config.pluginmanager.hasplugin("allure_listener"):
        yield lambda log: None
        return
    from pytest_esp.plugin import allure

    with allure.unity_case(name) as attach:
        yield attach


class UnityReports:
    """Adds the cases to reports, and to junit.xml what pytest leaves out.

    Args:
        config: pytest's configuration.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Add the case to its subtest's report, with its log instead of the whole console's."""
        record = item.stash.get(_CURRENT, None)
        if record is None:
            report = yield
            if report.when == "call" and _UNREPORTED in item.stash:
                setattr(report, _RECORDS, item.stash[_UNREPORTED])
                del item.stash[_UNREPORTED]
            return report
        with _unskipped(self._config, is_ignored=record.get("status") == "ignored"):
            report = yield
        setattr(report, _RECORD, record)
        report.sections.clear()
        if report.failed and (log := str(record.get("log", ""))):
            report.sections.append((f"log of {record['name']}", _readable(log)))
        return report

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> Generator[None]:
        """Write a separate element for each case in junit.xml."""
        record, records = getattr(report, _RECORD, None), getattr(report, _RECORDS, ())
        if record is None and not records:
            yield
            return
        from pytest_esp.plugin.junit import JunitCases

        with JunitCases(self._config, report) as cases:
            yield
            cases.add(record, records)


def _readable(log: str) -> str:
    """Return the end of a log without the raw stack dump: the decoded crash shows the backtrace."""
    lines = [line for line in log.splitlines() if not _STACK_ROW.match(line)]
    left_out = [f"({len(lines) - _TAIL_LINES} lines before)"] if len(lines) > _TAIL_LINES else []
    return "\n".join(left_out + lines[-_TAIL_LINES:])


@contextlib.contextmanager
def _unskipped(config: pytest.Config, *, is_ignored: bool) -> Generator[None]:
    """Keep a skipped subtest from changing the outcome of its test in allure's report."""
    if not is_ignored or not config.pluginmanager.hasplugin("allure_listener"):
        yield
        return
    from pytest_esp.plugin import allure

    with allure.unchanged_status(config):
        yield
