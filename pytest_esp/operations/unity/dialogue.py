"""Dialogue with an app's test menu, which accepts input only while it waits for it, and prints when that is."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence

from pytest_esp.errors import OperationError
from pytest_esp.link.boot import start_app
from pytest_esp.link.console import Console, ConsoleError, CrashError
from pytest_esp.link.link import Link
from pytest_esp.link.match import Match, Pattern
from pytest_esp.operations.unity.menu import END, HEADER, Case, Draft, Menu, Part
from pytest_esp.operations.unity.result import SUMMARY

READY = re.compile(r"Press ENTER to see the list of tests[^\n]*\n")
DONE = re.compile(r"Enter next test, or 'enter' to see menu[^\n]*\n")
ENDS: tuple[Pattern, ...] = (SUMMARY, DONE, READY)
"""What an app prints at the end of a case, or when it has restarted instead."""

_OTHER_RUNS = re.compile(r"Running [^\r\n]+\.\.\.\r?\n")
_TRIES = 3
# Seconds without output after which an app that waits for input did not get it, or does not wait for input.
_ANSWER_TIME = 10.0
_ECHO_TIME = 4.0
_RESTART_TIME = 10.0
_PROMPT_TIME = 0.05  # from its greeting until an app accepts input
_LONGEST_PRINT = 120.0  # seconds; a thousand cases take ten at 115200 baud


class Dialogue:
    """A conversation with the menu of the app on a board.

    ESP-IDF's ``unity_gets`` discards what arrived before it began to wait, so that a line can be lost: unanswered lines
    are sent again.

    Args:
        link: the board's link; the board is reset unless its app was started over this link and has run since.
        boot_timeout: seconds to wait after a reset for the app to offer its menu.

    Attributes:
        is_ready: whether the app waits for a choice; if not, the board is reset before the next one.
    """

    def __init__(self, link: Link, boot_timeout: float) -> None:
        self.link = link
        self.boot_timeout = boot_timeout
        self.is_ready = False
        self._echoes = False
        if not (link.port.is_open and link.runs_app):
            self.restart()

    @property
    def console(self) -> Console:
        """The board's console."""
        return self.link.console

    @property
    def board(self) -> str:
        """The board's name."""
        return self.link.board.name

    # -- the menu

    def menu(self) -> Menu:
        """Have the menu printed, twice if part of it was lost, and return it.

        Raises:
            OperationError: if there is no menu, or parts of it are missing both times.
        """
        draft = Draft()
        for _ in range(2):
            draft.read(self._print_menu())
            if draft.is_usable and draft.is_clean:
                break
        if not draft.is_usable:
            raise OperationError(
                f"the app's menu could not be read: {_lack(draft)}",
                hint="other tasks of the app print into the menu; lower their log level, or make them wait",
            )
        self.is_ready = True
        return Menu(tuple(draft.cases[number] for number in sorted(draft.cases)))

    def _print_menu(self) -> str:
        mark = self._ask()
        self._await([END], _ANSWER_TIME, _LONGEST_PRINT)
        return self.console.text_since(mark)

    def _ask(self) -> int:
        """Press ENTER until the menu begins, and return a mark from before it; reset an app that does not answer."""
        try:
            mark = self._ask_app()
        except CrashError:
            mark = None
        if mark is None:
            self.restart()
            mark = self._ask_app()
        if mark is None:
            raise OperationError(
                "the app has no test menu: it does not answer ENTER",
                hint="check that it calls unity_run_menu(), and that it is the app in flash",
            )
        return mark

    def _ask_app(self) -> int | None:
        self.console.skip()
        mark = self.console.mark()
        for _ in range(_TRIES):
            self.console.write("\n")
            begun = self._await([HEADER, READY], _ANSWER_TIME, self.boot_timeout)
            if begun is not None and begun.index == 1:  # it was still starting, and may have lost the ENTER
                begun = self._await([HEADER], _ECHO_TIME / 3, _ECHO_TIME)
            if begun is not None:
                return mark
        return None

    def restart(self) -> None:
        """Reset the board, and wait until its app offers the menu.

        Raises:
            OperationError: if the app does not offer it. LinkError: if the board could not be reset.
        """
        self.is_ready = False
        start_app(self.link)
        try:
            self.console.expect(READY, self.boot_timeout)
        except ConsoleError as error:
            raise OperationError(
                f"the app does not offer its test menu after a reset: {error.message}", board=self.board
            ) from error
        self._greeted()

    def _greeted(self) -> None:
        time.sleep(_PROMPT_TIME)
        self.is_ready = True

    # -- choosing

    def make_ready(self) -> None:
        """Reset the board if its app does not wait for a choice.

        Raises:
            OperationError: if the app does not offer its menu.
        """
        if not self.is_ready:
            self.restart()

    def start(self, case: Case) -> bool:
        """Choose a case, and return whether it has started.

        Raises:
            CrashError: if the app crashes instead, each time.
        """
        try:
            return self._start(case)
        except CrashError:  # in a task unrelated to the case
            self.restart()
            return self._start(case)

    def _start(self, case: Case) -> bool:
        begun = re.compile(rf"Running {re.escape(case.name)}\.\.\.")
        self.console.skip()
        for _ in range(_TRIES):
            mark = self.console.mark()
            self.console.write(f"{case.index}\n")
            found = self._await([begun, SUMMARY, READY, _OTHER_RUNS], _ANSWER_TIME, self.boot_timeout)
            if found is not None and found.index < 2:  # the summary, if other output has cut the first line in two
                self._echoes = re.search(rf"(?m)^{case.index}\r?$", self.console.text_since(mark)) is not None
                self.is_ready = False
                return True
            if found is not None and found.index == 2:  # it restarted on its own
                self._greeted()
            elif found is not None:  # another case runs: a digit of the number was lost
                self.restart()
        self.is_ready = False
        return False

    def choose(self, case: Case, part: Part) -> None:
        """Choose a stage or role of a running case."""
        last = case.parts[-1]
        self._await([f'({last.index})\t"{last.name}"'], _ANSWER_TIME, self.boot_timeout)
        for _ in range(_TRIES):
            mark = self.console.mark()
            self.console.write(f"{part.index}\n")
            if self.was_heard(mark, _ECHO_TIME):
                return

    def was_heard(self, mark: int, timeout: float = 0.0) -> bool:
        """Whether the app has answered since *mark*, as far as can be known: an app without echo may be silent."""
        deadline = time.monotonic() + timeout
        while self._echoes and self.console.mark() == mark:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.01)
        return True

    def finish(self, timeout: float, *, ignore_crashes: bool = False) -> bool:
        """Wait for the end of the case: True if it ended, False if the chip restarted instead.

        Raises:
            CrashError: if the app crashed.
            ConsoleError: if neither happened in time.
        """
        end = self.console.expect(ENDS, timeout, ignore_crashes=ignore_crashes)
        return self.conclude(ENDS[end.index])

    def conclude(self, end: Pattern) -> bool:
        """Note which of `ENDS` ended a case: True for a regular end, False if the chip restarted."""
        if end is SUMMARY:  # what follows may be lost among other output
            self._await([DONE], _ECHO_TIME, _ECHO_TIME)
        if end is READY:
            self._greeted()
            return False
        self.is_ready = True
        return True

    def await_restart(self) -> None:
        """Wait for the restart that ESP-IDF's runner makes after some cases."""
        try:
            self.console.expect(READY, _RESTART_TIME, ignore_crashes=True)
        except ConsoleError:
            self.is_ready = False
        else:
            self._greeted()

    def _await(self, patterns: Sequence[Pattern], silence: float, timeout: float) -> Match | None:
        """Wait for one of *patterns* as long as the app keeps printing; return None if it was not seen.

        Raises:
            CrashError: if the app crashed.
        """
        deadline = time.monotonic() + timeout
        while True:
            seen = self.console.mark()
            left = deadline - time.monotonic()
            try:
                return self.console.expect(patterns, max(min(silence, left), 0.0))
            except CrashError:
                raise
            except ConsoleError:
                if left <= silence or self.console.mark() == seen:
                    return None


def _lack(draft: Draft) -> str:
    if not draft.cases:
        return "none of its cases is complete"
    if draft.missing:
        return f"cases {', '.join(map(str, draft.missing))} are missing"
    return "its end is missing"
