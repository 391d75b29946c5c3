"""Test cases that run on the chip: lists, selects, runs and judges the cases of apps with ESP-IDF's Unity menu."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from pytest_esp.errors import EspError
from pytest_esp.formats.files import ReadPath
from pytest_esp.link.link import Link
from pytest_esp.operations.registry import Effect, operation
from pytest_esp.operations.unity.devices import check_boards
from pytest_esp.operations.unity.dialogue import Dialogue
from pytest_esp.operations.unity.menu import Case, Kind, Menu, Part
from pytest_esp.operations.unity.result import CaseResult, Report, Status
from pytest_esp.operations.unity.selection import Names, Selection
from pytest_esp.operations.unity.suite import BOOT_TIMEOUT, RETRY_ON, Conditions, Suite

__all__ = [
    "Case",
    "CaseResult",
    "Conditions",
    "Kind",
    "Menu",
    "Part",
    "Report",
    "Selection",
    "Status",
    "Suite",
    "menu",
    "run",
    "run_all",
    "run_multi_device",
]


@operation(Effect.READ, group="unity")
def menu(link: Link, *, boot_timeout: float = BOOT_TIMEOUT) -> Menu:
    """Return the test cases of the app's menu; an app that does not answer is reset once.

    Args:
        boot_timeout: seconds to wait after a reset for the app to offer its menu.

    Raises:
        OperationError: if the app has no menu, or its printed menu is incomplete.
        PortError: if the connection to the board is lost.
    """
    return Dialogue(link, boot_timeout).menu()


@operation(Effect.WRITE, group="unity")
def run(
    link: Link,
    case: Case | int | str,
    *,
    timeout: float = 60.0,
    elf: ReadPath | None = None,
    boot_timeout: float = BOOT_TIMEOUT,
) -> CaseResult:
    """Run one test case, and return its result; a failed test is not an error.

    Args:
        case: name or number of a test case of the menu.
        timeout: timeout in seconds for a case without a ``[timeout=...]`` tag; each stage of a multi-stage case has it.
        elf: the app's ELF file, to decode a crash into functions and lines.
        boot_timeout: seconds to wait after a reset for the app to offer its menu.

    Raises:
        OperationError: if there is no such case, or the app does not offer its menu after a reset.
        PortError: if the connection to the board is lost.
    """
    with Suite([link], elf=elf, boot_timeout=boot_timeout) as suite:
        return suite.run(_find(suite, case), Conditions(timeout, include_ignored=True))


@operation(Effect.WRITE, group="unity")
def run_all(
    link: Link,
    *,
    names: Names = (),
    groups: Names = (),
    attributes: Mapping[str, str] | None = None,
    invert: bool = False,
    include_ignored: bool = False,
    retries: int = 0,
    retry_on: Sequence[Status] = RETRY_ON,
    timeout: float = 60.0,
    elf: ReadPath | None = None,
    boot_timeout: float = BOOT_TIMEOUT,
) -> Report:
    """Run the test cases that match all given criteria, and return their results; failed tests are not errors.

    After a crash or a timeout the board is reset, and the run continues. Multi-device cases are reported as ignored:
    `run_multi_device` runs them.

    Args:
        names: shell-style patterns; a case must match one of them: ``"queue *"``.
        groups: tag expressions; a case must match one of them: ``"[a][b]"`` for both, ``"![a]"`` for not.
        attributes: required values of ``[key=value]`` tags.
        invert: run all other cases instead.
        include_ignored: also run cases tagged ``[ignore]``, which are otherwise reported as ignored.
        retries: how often to repeat a case with a status in *retry_on*.
        retry_on: statuses after which a case is repeated.
        timeout: timeout in seconds for a case without a ``[timeout=...]`` tag.
        elf: the app's ELF file, to decode a crash into functions and lines.
        boot_timeout: seconds to wait after a reset for the app to offer its menu.

    Raises:
        OperationError: if no case is selected, or the app does not offer its menu after a reset.
        PortError: if the connection to the board is lost.
    """
    selection = Selection.of(names, groups, attributes, invert)
    conditions = Conditions(timeout, include_ignored, retries, tuple(retry_on))
    results: list[CaseResult] = []
    with Suite([link], elf=elf, boot_timeout=boot_timeout) as suite:
        chosen = selection.choose(suite.menu)
        try:
            for case in chosen:
                results.append(suite.run(case, conditions))  # noqa: PERF401 - finished cases are kept on an error
        except EspError as error:
            error.details["finished"] = {result.name: result.status for result in results}
            raise
    return Report(tuple(results))


def run_multi_device(
    links: Sequence[Link],
    case: Case | int | str,
    *,
    timeout: float = 60.0,
    elf: str | os.PathLike[str] | None = None,
    boot_timeout: float = BOOT_TIMEOUT,
) -> CaseResult:
    """Run a case in which several boards interact, its first role on the first board, and relay their signals.

    Args:
        links: to as many boards as the case has roles, or more.
        case: name or number of a case of the first board's menu; on the others it is found by name.
        timeout, elf, boot_timeout: see `run`.

    Raises:
        RefusedError: if a board does not allow ``write``.
        OperationError: like `run`, or if there are not enough boards.
        PortError: if the connection to a board is lost.
    """
    with Suite(links, elf=elf, boot_timeout=boot_timeout) as suite:
        found = _find(suite, case)
        check_boards(found, len(links))
        return suite.run(found, Conditions(timeout, include_ignored=True))


def _find(suite: Suite, case: Case | int | str) -> Case:
    """Return the case in the menu of the running app."""
    return suite.menu.case(case.name if isinstance(case, Case) else case)
