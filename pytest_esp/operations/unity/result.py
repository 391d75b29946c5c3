"""Reads the result of a test case from the app's output.

The lines are Unity's (``UnityPrintFail``, ``UnityConcludeTest`` and ``UnityEnd`` in ``unity.c``)::

    ./main/test_queue.c:30:queue keeps order:PASS
    ./main/test_queue.c:41:queue is bounded:FAIL: Expected 8 Was 9
    1 Tests 1 Failures 0 Ignored
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from pytest_esp.link.crash import RESET, Crash
from pytest_esp.operations.unity.menu import Case

Status = Literal["passed", "failed", "ignored", "crashed", "timeout"]

SUMMARY = re.compile(r"(\d+) Tests (\d+) Failures (\d+) Ignored")

_DETAIL = re.compile(r"(?:^|\s)Function (?:\[[^\[\]]*\]\s?)+\.\s*")
_GURU = re.compile(r"Guru Meditation Error: Core +\d+ panic'ed \(([^\r\n]*?)\)")
_EVENT = re.compile(
    r"(?:Guru Meditation Error: Core +\d+ panic'ed \([^\r\n]*?\)"
    r"|abort\(\) was called at PC 0x[0-9a-fA-F]+[^\r\n]*"
    r"|^assert failed: [^\r\n]*"
    rf"|{RESET.pattern})",
    re.MULTILINE,
)


@dataclass(frozen=True)
class CaseResult:
    """The result of one test case.

    Attributes:
        name: of the case; of a role in a multi-device case, of the role.
        status: ``"passed"``, ``"failed"``, ``"ignored"``, ``"crashed"`` (or restarted unasked) or ``"timeout"``.
        message: why it did not pass; empty if it did.
        file, line: where it failed or crashed; otherwise where the case is, if the app printed it.
        seconds: its duration, including the restarts that belong to it.
        log: the app's output meanwhile, without ANSI sequences.
        crash: the crash, decoded.
        board: the board's name.
        tags: of the case.
        attempts: how often it was run; all other fields are about the last time.
        earlier: outcomes of the earlier times, in order.
        roles: of a multi-device case, the result on each board.
    """

    name: str
    status: Status
    message: str = ""
    file: str | None = None
    line: int | None = None
    seconds: float = 0.0
    log: str = ""
    crash: Crash | None = None
    board: str = ""
    tags: tuple[str, ...] = ()
    attempts: int = 1
    earlier: tuple[str, ...] = ()
    roles: tuple[CaseResult, ...] = ()

    @property
    def is_problem(self) -> bool:
        """Whether it failed, crashed or timed out."""
        return self.status in ("failed", "crashed", "timeout")

    def describe(self) -> str:
        """Return the text for an error message: what happened, where, and how the app got there."""
        lines = [f"{self.name}: {self.status}" + (f": {self.message}" if self.message else "")]
        lines += [f"{number}. attempt: {what}" for number, what in enumerate(self.earlier, 1)]
        if self.crash is not None:
            first, *frames = self.crash.describe().splitlines()
            lines += frames if first in self.message else [first, *frames]
        lines += [role.describe() for role in self.roles if role.is_problem]
        return "\n".join(lines)


@dataclass(frozen=True)
class Report:
    """The results of several test cases, in the order in which they ran."""

    results: tuple[CaseResult, ...]

    def __iter__(self) -> Iterator[CaseResult]:
        return iter(self.results)

    def __len__(self) -> int:
        return len(self.results)

    @property
    def problems(self) -> tuple[CaseResult, ...]:
        """The results that failed, crashed or timed out."""
        return tuple(result for result in self.results if result.is_problem)

    def count(self, status: Status) -> int:
        """Return the number of results with this status."""
        return sum(result.status == status for result in self.results)


@dataclass(frozen=True)
class Verdict:
    """What Unity reports about a case."""

    status: Status
    message: str = ""
    file: str | None = None
    line: int | None = None


def verdict(case: Case, log: str) -> Verdict:
    """Return what Unity's lines in *log* report about *case*.

    If other output has split a line, the summary with its counts is used instead.
    """
    pattern = (
        rf"(?P<file>\S*?):(?P<line>\d+):{re.escape(case.name)}:(?P<word>PASS|FAIL|IGNORE)(?:: ?(?P<text>[^\r\n]*))?"
    )
    told = {found["word"]: found for found in reversed(list(re.finditer(pattern, log)))}
    counts = SUMMARY.findall(log)
    tests, failures, ignored = map(int, counts[-1]) if counts else (1, 0, 0)
    if "FAIL" in told or failures:
        return _worded("failed", told.get("FAIL"), case)
    if "IGNORE" in told or ignored:
        return _worded("ignored", told.get("IGNORE"), case)
    if "PASS" in told:
        return Verdict("passed", "", told["PASS"]["file"], int(told["PASS"]["line"]))
    if counts and tests:
        return Verdict("passed")
    return Verdict("failed", "the app reported no result")


def _worded(status: Status, found: re.Match[str] | None, case: Case) -> Verdict:
    if found is None:
        return Verdict(status, "its line is lost among other output")
    text = (found["text"] or "").strip()
    # ESP-IDF's runner gives Unity the case's tags as a "detail", which Unity prints with each message.
    text = _DETAIL.sub(" ", text).strip() if case.tags else text
    where = f"{found['file']}:{found['line']}"
    return Verdict(status, f"{where}: {text}" if text else where, found["file"], int(found["line"]))


def unexpected_resets(case: Case, log: str) -> str | None:
    """Return how the crashes and resets in *log* differ from those that a case must cause; None if they do not.

    ESP-IDF's runner compares each crash and each ROM's report of a reset, in order, with the words of ``[reset=...]``.
    """
    seen = [_event(found[0]) for found in _EVENT.finditer(log)]
    if len(seen) == len(case.resets) and all(word in event for word, event in zip(case.resets, seen, strict=True)):
        return None
    return f"expected the resets {', '.join(case.resets)}, but there was {', '.join(seen) or 'none'}"


def _event(text: str) -> str:
    reset, guru = RESET.search(text), _GURU.search(text)
    if reset is not None:
        return reset["name"] or reset[0]
    return guru[1] if guru is not None else text.strip()
