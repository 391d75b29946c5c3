"""Runs the test cases of the app on one board or several, one by one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import TracebackType

from pytest_esp.errors import EspError
from pytest_esp.formats.files import resolve
from pytest_esp.link.link import Link
from pytest_esp.operations.registry import Effect, require
from pytest_esp.operations.unity.devices import run_on_boards
from pytest_esp.operations.unity.dialogue import Dialogue
from pytest_esp.operations.unity.menu import Case, Menu
from pytest_esp.operations.unity.result import CaseResult, Status
from pytest_esp.operations.unity.runner import run_on_board

BOOT_TIMEOUT = 30.0
"""Seconds to wait after a reset for the app to offer its menu."""

RETRY_ON: tuple[Status, ...] = ("crashed", "timeout", "failed")


@dataclass(frozen=True)
class Conditions:
    """How cases are run.

    Attributes:
        timeout: in seconds, for a case without a ``[timeout=...]`` tag; each stage of a multi-stage case has it.
        include_ignored: run cases tagged ``[ignore]``.
        retries: how often to repeat a case with a status in *retry_on*.
        retry_on: statuses after which a case is repeated.
        reset: reset the boards before each case.
    """

    timeout: float = 60.0
    include_ignored: bool = False
    retries: int = 0
    retry_on: Sequence[Status] = RETRY_ON
    reset: bool = False


class Suite:
    """The test cases of an app, while they are run. At its end each app waits for a choice, if possible.

    Args:
        links: of the board; or of several for multi-device cases, the first of which runs all other cases.
        elf: the app's ELF file, to decode a crash into functions and lines.
        boot_timeout: seconds to wait after a reset for the app to offer its menu.

    Raises:
        RefusedError: if a board does not allow ``write``: cases may change anything.
        OperationError: if an app has no menu, or its printed menu is incomplete.
        PortError: if the connection to a board is lost.
    """

    def __init__(
        self, links: Sequence[Link], *, elf: str | os.PathLike[str] | None = None, boot_timeout: float = BOOT_TIMEOUT
    ) -> None:
        for link in links:
            require(link, Effect.WRITE, "unity-run")
        self._dialogues = [Dialogue(link, boot_timeout) for link in links]
        if elf is not None:
            for link in links:
                link.elf = link.console.elf = resolve(elf)
        self._menus = [dialogue.menu() for dialogue in self._dialogues]

    @property
    def menu(self) -> Menu:
        """The cases of the app on the first board."""
        return self._menus[0]

    def run(self, case: Case, conditions: Conditions | None = None) -> CaseResult:
        """Run a case of `menu`, repeat it if the conditions say so, and return its result.

        Raises:
            OperationError: if the app does not offer its menu after a reset.
            PortError: if the connection to a board is lost.
        """
        conditions = conditions or Conditions()
        reason = self._why_not(case, conditions)
        if reason is not None:
            return CaseResult(case.name, "ignored", reason, board=self._dialogues[0].board, tags=case.tags)
        earlier: list[str] = []
        while True:
            if conditions.reset:
                for dialogue in self._dialogues:
                    dialogue.is_ready = False
            result = self._run_once(case, conditions.timeout)
            if len(earlier) == conditions.retries or result.status not in conditions.retry_on:
                return replace(result, attempts=len(earlier) + 1, earlier=tuple(earlier))
            earlier.append(f"{result.status}: {result.message}")

    def _why_not(self, case: Case, conditions: Conditions) -> str | None:
        if case.is_ignored and not conditions.include_ignored:
            return "it is tagged [ignore]"
        if case.kind == "multi_device" and len(case.parts) > len(self._dialogues):
            return f"it needs {len(case.parts)} boards"
        return None

    def _run_once(self, case: Case, timeout: float) -> CaseResult:
        if case.kind == "multi_device":
            return run_on_boards(self._dialogues, self._menus, case, timeout)
        return run_on_board(self._dialogues[0], case, timeout)

    def close(self) -> None:
        """Reset the boards whose app does not wait for a choice."""
        for dialogue in self._dialogues:
            with contextlib.suppress(EspError):
                dialogue.make_ready()

    def __enter__(self) -> Suite:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
