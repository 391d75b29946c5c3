"""Tells faults of the boards and the rack from failures of tests: they are errors, with a short message."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from pytest_esp.errors import EspError

EXIT_CODE = 8
"""The exit code of a run whose only failures are faults of the boards or the rack."""

_FAULT = "esp_fault"


def fault_of(report: pytest.TestReport) -> str | None:
    """Return the kind of fault that a report is about, e.g. ``"PortError"``; None for all others."""
    return getattr(report, _FAULT, None)


def note_fault(item: pytest.Item, report: pytest.TestReport, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
    """Shorten the report of an error of this package, where its traceback helps nobody, and mark faults.

    In the test itself only faults are shortened: the traceback of another error shows what the test did.
    """
    error = excinfo.value
    if not report.failed or not isinstance(error, EspError):
        return
    if error.is_fault:
        setattr(report, _FAULT, type(error).__name__)
    if error.is_fault or report.when != "call":
        places = [f"{entry.path}:{entry.lineno + 1}: " for entry in excinfo.traceback if entry.path == item.path]
        report.longrepr = f"{places[-1] if places else ''}{type(error).__name__}: {error}"


class Faults:
    """Reports faults as errors in whatever phase of a test they occur: in the terminal, junit.xml and the exit code."""

    def __init__(self) -> None:
        self._count = 0

    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, str] | None:
        """Show a fault as an error."""
        return ("error", "E", "ERROR") if report.failed and fault_of(report) else None

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> Generator[None]:
        """Let other plugins take a fault in the test for one in its set-up: junit.xml then has an <error>."""
        phase = report.when
        if fault_of(report):
            self._count += report.failed
            report.when = "setup" if phase == "call" else phase
        try:
            return (yield)
        finally:
            report.when = phase

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Change the exit code of a run in which no test failed, but boards did."""
        if session.exitstatus == pytest.ExitCode.TESTS_FAILED and self._count and self._count == session.testsfailed:
            session.exitstatus = EXIT_CODE
