"""Test cases that run on the chip: apps with ESP-IDF's Unity menu, their cases chosen, run and judged."""

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
    """Return the test cases that the app offers; an app that does not answer is reset once.

    Args:
        boot_timeout: seconds from a reset to the app's offer to print its menu.

    Raises:
        OperationError: if the app has no menu, or prints it with losses.
        PortError: if the board is gone.
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
    """Run one test case, and return what came of it; one that fails is no error.

    Args:
        case: of `menu`, its name or its number.
        timeout: seconds, for a case without a ``[timeout=...]`` of its own; each stage of several may take so long.
        elf: the app's ELF file, which names functions and lines of a crash.
        boot_timeout: see `menu`.

    Raises:
        OperationError: if there is no such case, or the app does not come back with its menu after a reset.
        PortError: if the board is gone.
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
    """Run the test cases that fulfil all of what is given, and return what came of each; failures are no errors.

    After a crash or a time-out the board is reset, and the rest goes on. Cases for several boards are reported as
    ignored: `run_multi_device` runs them.

    Args:
        names: patterns as of a shell, any of them: ``"queue *"``.
        groups: expressions of tags, any of them: ``"[a][b]"`` for both, ``"![a]"`` for not.
        attributes: values of ``[key=value]`` tags.
        invert: run all other cases instead.
        include_ignored: run those tagged ``[ignore]``, too, which else are reported as ignored.
        retries: how often a case is repeated that ended as *retry_on* says.
        retry_on: which ends are worth another try.
        timeout: see `run`.
        elf: see `run`.
        boot_timeout: see `menu`.

    Raises:
        OperationError: if nothing is selected, or the app does not come back with its menu after a reset.
        PortError: if the board is gone.
    """
    selection = Selection.of(names, groups, attributes, invert)
    conditions = Conditions(timeout, include_ignored, retries, tuple(retry_on))
    results: list[CaseResult] = []
    with Suite([link], elf=elf, boot_timeout=boot_timeout) as suite:
        chosen = selection.choose(suite.menu)
        try:
            for case in chosen:
                results.append(suite.run(case, conditions))  # noqa: PERF401 - what has finished is told with an error
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
    """Run a case in which several boards play together, its first role on the first board, and carry their signals.

    Args:
        links: to as many boards as the case has roles, or more.
        case: of the first board's `menu`, its name or its number; the others know it by its name.
        timeout, elf, boot_timeout: see `run`.

    Raises:
        RefusedError: if a board does not allow ``write``.
        OperationError: as `run`, or if there are not boards enough.
        PortError: if a board is gone.
    """
    with Suite(links, elf=elf, boot_timeout=boot_timeout) as suite:
        found = _find(suite, case)
        check_boards(found, len(links))
        return suite.run(found, Conditions(timeout, include_ignored=True))


def _find(suite: Suite, case: Case | int | str) -> Case:
    """Return the case in the menu of the app that runs now."""
    return suite.menu.case(case.name if isinstance(case, Case) else case)
