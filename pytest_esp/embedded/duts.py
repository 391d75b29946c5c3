"""The device under test: a board's console, port and app in one object."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pytest_esp.embedded.cases import READY_PATTERN_LIST, CaseTester, Choice, Names, TestSuite, UnittestMenuCase
from pytest_esp.embedded.expecting import Expecter, pexpect
from pytest_esp.embedded.texts import remove_asci_color_code, to_bytes, to_list, to_str
from pytest_esp.operations.unity.output import SUMMARY_WITH_VERDICT
from pytest_esp.plugin.unity import Unity

if TYPE_CHECKING:
    import pytest

    from pytest_esp.embedded.app import App
    from pytest_esp.embedded.serial import Serial
    from pytest_esp.link.link import Link


class Dut:
    """One board of a test, with its app running.

    Args:
        request: the test's request.
        link: to the board.
        app: the test's app.
        serial: the board's port.
        test_case_name: the name of the test.
        logfile: the path of the console's log.

    Attributes:
        pexpect_proc: waits for output; see `Expecter`.
        target: the chip.
        testsuite: the results of Unity test cases.
    """

    def __init__(
        self,
        request: pytest.FixtureRequest,
        link: Link,
        app: App,
        serial: Serial,
        test_case_name: str,
        logfile: str,
    ) -> None:
        self.request = request
        self.link = link
        self.app = app
        self.serial = serial
        self.test_case_name = test_case_name
        self.logfile = logfile
        self.pexpect_proc = Expecter(link)
        self.target = app.target if app.binary_path else link.board.chip
        self.skip_decode_panic = self.skip_check_coredump = False
        self.openocd = self.gdb = None
        self.testsuite = TestSuite(test_case_name)
        self._unity = Unity(request, [link])
        self._menu: list[UnittestMenuCase] | None = None

    # -- files

    @property
    def logdir(self) -> str:
        """The folder of the console's log."""
        return os.path.dirname(self.logfile)

    # -- talking

    def write(self, data: str | bytes) -> None:
        """Send text and a line end, or bytes as they are."""
        self.serial.write(to_bytes(data, "\n"))

    def expect(self, pattern: Any, timeout: float | None = -1, **options: Any) -> Any:
        """Wait for a regular expression or the first of several, and return the match (of bytes).

        Args:
            pattern: text, a compiled expression, ``pexpect.TIMEOUT``, or a list. ``.`` in text matches line ends.
            timeout: in seconds; -1 for 30 s, None to wait for ever.
            **options: ``expect_all=True`` to wait for all of a list; ``not_matching=`` what may not come before the
                match; ``return_what_before_match=True`` to return the output before the match instead.

        Raises:
            pexpect.TIMEOUT: if nothing matched in time.
            ValueError: if what may not come before did.
        """
        return self._expect(self.pexpect_proc.expect, pattern, timeout, **options)

    def expect_exact(self, pattern: Any, timeout: float | None = -1, **options: Any) -> Any:
        """Wait for a string or the first of several, and return it as bytes; see `expect`."""
        return self._expect(self.pexpect_proc.expect_exact, pattern, timeout, **options)

    def _expect(
        self,
        wait: Any,
        pattern: Any,
        timeout: float | None,
        *,
        expect_all: bool = False,
        not_matching: Any = (),
        return_what_before_match: bool = False,
        **_: Any,
    ) -> Any:
        if return_what_before_match and expect_all:
            raise ValueError("return_what_before_match and expect_all cannot be used together")
        left = [*to_list(pattern)] if isinstance(pattern, (list, tuple, set)) else [pattern]
        found: list[Any] = []
        while left:
            number = self._await(wait, left, timeout)
            found.append(self._result())
            self._check_before(to_list(not_matching))
            del left[number]
            if not expect_all:
                break
        if return_what_before_match:
            return self.pexpect_proc.before
        return found[0] if len(found) == 1 else found

    def _await(self, wait: Any, left: list[Any], timeout: float | None) -> int:
        ends = pexpect()
        try:
            return wait(left, timeout)
        except ends.TIMEOUT as error:
            raise ends.TIMEOUT(f"Not found {left if len(left) > 1 else left[0]!r}\n{error}") from None

    def _result(self) -> Any:
        """Return the match, or at an end that was waited for the output so far."""
        match = self.pexpect_proc.match
        return self.pexpect_proc.before.rstrip() if isinstance(match, type) else match

    def _check_before(self, unwanted: Sequence[Any]) -> None:
        for pattern in unwanted or ():
            text = pattern.pattern if isinstance(pattern, re.Pattern) else pattern
            if re.search(to_bytes(text), self.pexpect_proc.before):
                raise ValueError(f"the pattern {text!r} should not have been matched")

    def confirm_write(
        self,
        write_str: Any,
        *,
        expect_pattern: Any = None,
        expect_str: Any = None,
        timeout: float = 1,
        retry_times: int = 3,
    ) -> Any:
        """Send text until the answer comes, and return its match.

        Raises:
            ValueError: unless exactly one of *expect_pattern* and *expect_str* is given.
            pexpect.TIMEOUT: if no attempt was answered.
        """
        if (expect_pattern is None) == (expect_str is None):
            raise ValueError("confirm_write needs either expect_pattern or expect_str")
        for attempt in range(1, retry_times + 1):
            self.write(str(write_str))
            try:
                if expect_pattern is not None:
                    return self.expect(expect_pattern, timeout)
                return self.expect_exact(expect_str, timeout)
            except pexpect().TIMEOUT:
                if attempt == retry_times:
                    raise
        return None

    # -- the board

    def hard_reset(self) -> None:
        """Reset the chip, which starts its app."""
        self.serial.hard_reset()

    _hard_reset = hard_reset

    def close(self) -> None:
        """Close the port; the next use opens it again."""
        self.serial.close()

    # -- Unity

    def expect_unity_test_output(
        self, remove_asci_escape_code: bool = True, timeout: float = 60, extra_before: str | bytes | None = None
    ) -> None:
        """Wait for the summary of a Unity run; each of its test cases is a subtest.

        Args:
            remove_asci_escape_code: without effect: the output has no ANSI sequences.
            timeout: in seconds.
            extra_before: output that was matched before, and belongs to the run.

        Raises:
            pexpect.TIMEOUT: if there is no summary in time.
            OperationError: if the output has no test case.
        """
        self.expect(SUMMARY_WITH_VERDICT, timeout)
        output = to_str(self.pexpect_proc.before + self.pexpect_proc.after)
        self.testsuite.add(self._unity.report_output(remove_asci_color_code(extra_before or "") + output))

    @property
    def test_menu(self) -> list[UnittestMenuCase]:
        """The cases of the app's menu."""
        if self._menu is None:
            self._menu = [UnittestMenuCase.of(case) for case in self._unity.menu()]
        return self._menu

    def run_all_single_board_cases(
        self,
        group: Names = None,
        reset: bool = False,
        timeout: float = 30,
        run_ignore_cases: bool = False,
        name: Names = None,
        attributes: dict[str, Any] | None = None,
        dry_run: bool = False,
    ) -> None:
        """Run the cases for one board that match any of the criteria, each as a subtest; without criteria, all.

        Args:
            group: expressions: ``"a&b"`` is both, ``"!a"`` is not; any of several.
            reset: reset the board before each case.
            timeout: in seconds, for each case.
            run_ignore_cases: run ignored cases as well.
            name: names.
            attributes: required values of ``[key=value]`` tags.
            dry_run: log the names only.
        """
        choice = Choice.of(group, name, attributes)

        def selects(case: UnittestMenuCase) -> bool:
            is_wanted = case.type != "multi_device" and (run_ignore_cases or not case.is_ignored)
            return is_wanted and choice.selects(case)

        if dry_run:
            for case in filter(selects, self.test_menu):
                logging.getLogger(__name__).info("dry run: %s %s", case.index, case.name)
            return
        CaseTester(self).run(selects, reset=reset, timeout=timeout)

    def run_single_board_case(self, name: str, reset: bool = False, timeout: float = 30) -> None:
        """Run one case.

        Raises:
            ValueError: if there is none of that name.
        """
        case = next((one for one in self.test_menu if one.name == name and one.type != "multi_device"), None)
        if case is None:
            raise ValueError(f"the app's menu has no test case {name!r} for one board")
        CaseTester(self).run_case(case, reset, timeout)

    def _run_normal_case(self, case: UnittestMenuCase, *, reset: bool = False, timeout: float = 30) -> None:
        CaseTester(self).run_normal_case(case, reset, timeout)

    def _run_multi_stage_case(self, case: UnittestMenuCase, *, reset: bool = False, timeout: float = 30) -> None:
        CaseTester(self).run_multi_stage_case(case, reset, timeout)

    def _get_ready(self, timeout: float = 30, **_: Any) -> None:
        self.expect_exact(READY_PATTERN_LIST, timeout)


IdfDut = SerialDut = QemuDut = LinuxDut = Dut
"""pytest-embedded has a class per service; here they are one."""
