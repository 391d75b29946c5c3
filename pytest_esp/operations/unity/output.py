"""Reads the output of an app that runs its tests by itself, without ESP-IDF's menu.

The lines are those of Unity, and of its fixture extension::

    main/test_sum.c:12:test_sum:PASS
    main/test_sum.c:20:test_carry:FAIL: Expected 1 Was 2
    TEST(queue, keeps_order) PASS
    TEST(queue, is_bounded)main/test_queue.c:30::FAIL: Expected 8 Was 9
    -----------------------
    4 Tests 2 Failures 0 Ignored
    FAIL
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pytest_esp.errors import OperationError
from pytest_esp.operations.unity.result import SUMMARY, CaseResult, Status

if TYPE_CHECKING:
    from collections.abc import Iterator

SUMMARY_WITH_VERDICT = re.compile(rf"{SUMMARY.pattern}\s*(?P<result>OK|FAIL)")
"""The end of a run."""

_STATUS: dict[str, Status] = {"PASS": "passed", "FAIL": "failed", "IGNORE": "ignored"}
_WORD = r"(?P<word>PASS|FAIL|IGNORE)(?::\s*(?P<text>[^\r\n]*))?\s*$"
_BASIC = re.compile(rf"(?P<file>\S+?):(?P<line>\d+):(?P<name>[^\r\n]+?):{_WORD}")
_FIXTURE = re.compile(r"TEST\((?P<group>[^\s,()]+), (?P<case>[^\r\n()]+)\)")
_FIXTURE_RESULT = re.compile(rf"(?:(?P<file>\S+?):(?P<line>\d+)::)?{_WORD}")


def read_output(output: str, *, board: str = "") -> tuple[CaseResult, ...]:
    """Return the test cases in *output*, in order. ANSI sequences must have been removed.

    If the summary counts more failures than there are lines of failed cases, the last result is a failure for them.

    Raises:
        OperationError: if there are none.
    """
    results = [
        CaseResult(
            name=name,
            status=_STATUS[found["word"]],
            message=_message(found),
            file=found["file"],
            line=int(found["line"]) if found["line"] else None,
            log=found.string.strip(),
            board=board,
        )
        for name, found in _cases(output)
    ]
    summaries = SUMMARY.findall(output)
    failures = int(summaries[-1][1]) if summaries else 0
    known = sum(result.status == "failed" for result in results)
    if failures > known:
        text = f"the summary counts {failures} failures, but {known} failed cases were found in the output"
        results.append(CaseResult("(lost)", "failed", text, board=board))
    if not results:
        raise OperationError(
            "no test case was found in the app's output",
            board=board,
            hint="Unity's fixtures print the names of tests with UnityMain's option -v only",
        )
    return tuple(results)


def _message(found: re.Match[str]) -> str:
    text = (found["text"] or "").strip()
    where = f"{found['file']}:{found['line']}" if found["file"] else ""
    return "" if found["word"] == "PASS" else ": ".join(filter(None, (where, text)))


def _cases(output: str) -> Iterator[tuple[str, re.Match[str]]]:
    """Yield the name and the result's match of each test case. What a test prints may come before its result."""
    name = ""
    for line in output.splitlines():
        basic, begun = _BASIC.search(line), _FIXTURE.search(line)
        if begun is not None and not (basic and basic["name"].startswith("TEST(")):
            name = f"{begun['group']}.{begun['case']}"
            basic = None
        found = basic or (_FIXTURE_RESULT.search(line, begun.end() if begun else 0) if name else None)
        if found is not None:
            yield found["name"] if found is basic else name, found
            name = ""
