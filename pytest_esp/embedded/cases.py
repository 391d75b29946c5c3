"""The app's Unity test cases, as pytest-embedded selects and runs them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pytest_esp.plugin.unity import Unity

if TYPE_CHECKING:
    from pytest_esp.embedded.duts import Dut
    from pytest_esp.operations.unity import Case, CaseResult

READY_PATTERN_LIST = [
    "Press ENTER to see the list of tests",
    "Enter test for running",
    "Enter next test, or 'enter' to see menu",
]
"""What an app prints when it waits for a choice."""

_TIMEOUT = 90.0  # seconds
_KEYWORDS = ("ignore", "disable")
_RESULTS = {"passed": "PASS", "ignored": "IGNORE"}


@dataclass
class UnittestMenuCase:
    """A case of the menu; see `operations.unity.Case`."""

    index: int
    name: str
    type: str
    keywords: list[str] = field(default_factory=list[str])
    groups: list[str] = field(default_factory=list[str])
    attributes: dict[str, Any] = field(default_factory=dict[str, Any])
    subcases: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    @classmethod
    def of(cls, case: Case) -> UnittestMenuCase:
        """Return a case in pytest-embedded's form."""
        return cls(
            index=case.index,
            name=case.name,
            type=case.kind,
            keywords=[tag for tag in case.groups if tag in _KEYWORDS],
            groups=[tag for tag in case.groups if tag not in _KEYWORDS],
            attributes={name.strip(): value.strip() for name, value in case.attributes.items()},
            subcases=[{"index": part.index, "name": part.name} for part in case.parts],
        )

    @property
    def is_ignored(self) -> bool:
        """Whether it is run on request only."""
        return bool(self.keywords)


@dataclass
class TestCase:
    """The result of a case: ``PASS``, ``FAIL`` or ``IGNORE``."""

    __test__ = False

    name: str
    result: str
    attrs: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass
class TestSuite:
    """The results of the cases that ran on a board, in order."""

    __test__ = False

    name: str
    testcases: list[TestCase] = field(default_factory=list[TestCase])

    @property
    def failed_cases(self) -> list[TestCase]:
        """Those that failed, crashed or timed out."""
        return [case for case in self.testcases if case.result == "FAIL"]

    def add(self, report: Iterable[CaseResult]) -> None:
        """Add results."""
        for one in report:
            attributes = {"message": one.message, "file": one.file, "line": one.line, "time": one.seconds}
            self.testcases.append(TestCase(one.name, _RESULTS.get(one.status, "FAIL"), attributes))


Names = str | Sequence[str] | None


@dataclass(frozen=True)
class Choice:
    """Selects cases that match any of the criteria; without criteria, all.

    Attributes:
        groups: expressions, of which any must hold: ``"a&b"`` is both, ``"!a"`` is not.
        names: names, of which any must be equal.
        attributes: all of these values.
    """

    groups: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    attributes: dict[str, Any] | None = None

    @classmethod
    def of(cls, group: Names, name: Names, attributes: dict[str, Any] | None) -> Choice:
        """Make a choice from the arguments of ``run_all_single_board_cases``."""
        return cls(_words(group), _words(name), attributes)

    def selects(self, case: UnittestMenuCase) -> bool:
        """Whether *case* is selected."""
        if not (self.groups or self.names or self.attributes):
            return True
        values = self.attributes or {}
        return (
            any(_holds(expression, case.groups) for expression in self.groups)
            or case.name in self.names
            or (bool(values) and all(case.attributes.get(key) == value for key, value in values.items()))
        )


def _words(given: Names) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given or ())


def _holds(expression: str, groups: Sequence[str]) -> bool:
    terms = [term.strip() for term in expression.split("&")]
    return all((term.lstrip("!") in groups) != term.startswith("!") for term in terms)


class CaseTester:
    """Runs the cases of the app on one board or several, each as a subtest.

    Args:
        dut: the test's `Dut`, or a list of them; cases of one board run on the first.
    """

    def __init__(self, dut: Dut | Sequence[Dut]) -> None:
        self.dut: list[Dut] = [*dut] if isinstance(dut, Sequence) else [dut]
        self.is_multi_dut = len(self.dut) > 1
        self.first_dut = self.dut[0]
        self._unity = Unity(self.first_dut.request, [one.link for one in self.dut])

    @property
    def test_menu(self) -> list[UnittestMenuCase]:
        """The cases of the app on the first board."""
        return self.first_dut.test_menu

    def run(
        self,
        selects: Callable[[UnittestMenuCase], bool],
        *,
        reset: bool = False,
        timeout: float = _TIMEOUT,
        include_ignored: bool = True,
    ) -> None:
        """Run the cases that *selects* selects."""
        report = self._unity.run_cases(
            lambda menu: [case for case in menu if selects(UnittestMenuCase.of(case))],
            timeout=timeout,
            reset=reset,
            include_ignored=include_ignored,
        )
        self.first_dut.testsuite.add(report)

    def run_case(self, case: UnittestMenuCase, reset: bool = False, timeout: float = _TIMEOUT, **_: Any) -> None:
        """Run one case of any kind."""
        self.run(lambda one: one.name == case.name, reset=reset, timeout=timeout)

    def run_multi_dev_case(
        self, case: UnittestMenuCase, reset: bool = False, timeout: float = _TIMEOUT, **_: Any
    ) -> None:
        """Run a case if it is for several boards."""
        self._run_if(case, "multi_device", reset, timeout)

    def run_multi_stage_case(self, case: UnittestMenuCase, reset: bool = False, timeout: float = _TIMEOUT) -> None:
        """Run a case if it has several stages."""
        self._run_if(case, "multi_stage", reset, timeout)

    def run_normal_case(self, case: UnittestMenuCase, reset: bool = False, timeout: float = _TIMEOUT) -> None:
        """Run a case if it is for one board and has one stage."""
        self._run_if(case, "normal", reset, timeout)

    def _run_if(self, case: UnittestMenuCase, kind: str, reset: bool, timeout: float) -> None:
        if case.type == kind:
            self.run_case(case, reset, timeout)

    def run_all_cases(self, reset: bool = False, timeout: float = _TIMEOUT, **_: Any) -> None:
        """Run all cases except ignored ones."""
        self.run(lambda case: not case.is_ignored, reset=reset, timeout=timeout)

    def run_all_normal_cases(self, reset: bool = False, timeout: float = _TIMEOUT) -> None:
        """Run all cases for one board with one stage."""
        self._run_all("normal", reset, timeout)

    def run_all_multi_stage_cases(self, reset: bool = False, timeout: float = _TIMEOUT) -> None:
        """Run all cases with several stages."""
        self._run_all("multi_stage", reset, timeout)

    def run_all_multi_dev_cases(self, reset: bool = False, timeout: float = _TIMEOUT, **_: Any) -> None:
        """Run all cases for several boards."""
        self._run_all("multi_device", reset, timeout)

    def _run_all(self, kind: str, reset: bool, timeout: float) -> None:
        self.run(lambda case: case.type == kind and not case.is_ignored, reset=reset, timeout=timeout)
