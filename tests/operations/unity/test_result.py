"""What came of a case, read from what its app said."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_esp.link.panic import decode
from pytest_esp.operations.results import to_dict
from pytest_esp.operations.unity import Case, CaseResult, Report
from pytest_esp.operations.unity.result import unexpected_resets, verdict

CASE = Case(1, "queue keeps order", ("queue", "fast"))


def said(*lines, summary="1 Tests 0 Failures 0 Ignored"):
    return "\r\n".join(["1", "Running queue keeps order...", *lines, "", "-----------------------", summary, ""])


def told(*lines, **keys):
    """Return what the verdict is made of."""
    end = verdict(CASE, said(*lines, **keys))
    return end.status, end.message, end.file, end.line


def test_a_pass():
    assert told("./main/q.c:30:queue keeps order:PASS") == ("passed", "", "./main/q.c", 30)
    assert told("./main/q.c:30:queue keeps order:PASS (12 ms)")[0] == "passed"


def test_a_failure_says_where_and_why():
    end = told("./main/q.c:41:queue keeps order:FAIL: Expected 8 Was 9", summary="1 Tests 1 Failures 0 Ignored")
    assert end == ("failed", "./main/q.c:41: Expected 8 Was 9", "./main/q.c", 41)


def test_the_tags_that_the_runner_lends_to_unity_are_no_part_of_the_message():
    end = told("q.c:41:queue keeps order:FAIL: Expected 1 Was 2. Function [queue][fast]. nothing came")
    assert end[1] == "q.c:41: Expected 1 Was 2. nothing came"
    assert told("q.c:41:queue keeps order:FAIL: Function [queue][fast]. nothing came")[1] == "q.c:41: nothing came"


def test_a_failure_without_words():
    assert told("q.c:41:queue keeps order:FAIL") == ("failed", "q.c:41", "q.c", 41)


def test_an_ignored_case():
    end = told("q.c:41:queue keeps order:IGNORE: no sensor", summary="1 Tests 0 Failures 1 Ignored")
    assert end == ("ignored", "q.c:41: no sensor", "q.c", 41)


def test_the_first_failure_counts_and_a_failure_more_than_a_pass():
    """What tearDown finds (a leak) is said after the body's own result."""
    end = told(
        "q.c:41:queue keeps order:FAIL: first", "q.c:99:queue keeps order:FAIL: second", "q.c:9:queue keeps order:PASS"
    )
    assert end[1] == "q.c:41: first"


def test_a_line_with_other_output_in_front_of_it():
    assert told("I (3) wifi: upq.c:30:queue keeps order:PASS") == ("passed", "", "upq.c", 30)
    assert told("I (3) wifi: up q.c:30:queue keeps order:PASS") == ("passed", "", "q.c", 30)


def test_a_drive_letter_is_part_of_the_file():
    assert told(r"C:\work\q.c:30:queue keeps order:PASS")[2:] == (r"C:\work\q.c", 30)


@pytest.mark.parametrize(
    ("summary", "status"),
    [
        ("1 Tests 0 Failures 0 Ignored", "passed"),
        ("1 Tests 1 Failures 0 Ignored", "failed"),
        ("1 Tests 0 Failures 1 Ignored", "ignored"),
        ("0 Tests 0 Failures 0 Ignored", "failed"),
        ("1 TeI (9) wifi: x", "failed"),
    ],
)
def test_the_summary_makes_up_for_a_line_that_was_cut(summary, status):
    assert told("./main/q.c:30:queue keI (3) wifi: up", "eps order:PASS", summary=summary)[0] == status


def test_a_summary_with_failures_is_believed_more_than_a_line():
    assert told("q.c:30:queue keeps order:PASS", summary="1 Tests 1 Failures 0 Ignored")[0] == "failed"


def test_lines_of_other_cases_do_not_count():
    end = told(
        "q.c:30:queue keeps order too:FAIL: x", "q.c:30:my queue keeps order:FAIL: y", "q.c:3:queue keeps order:PASS"
    )
    assert end[0] == "passed"


@given(st.text(max_size=200))
def test_garbage_is_no_pass(garbage):
    assert verdict(CASE, garbage).status == "failed"


def test_names_are_no_patterns():
    case = Case(1, "a.b (c)* [d]")
    assert verdict(case, "x.c:1:a.b (c)* [d]:PASS\r\n").status == "passed"
    assert verdict(case, "x.c:1:aXb (c)* [d]:PASS\r\n").status == "failed"


# -- resets that a case must cause

STORE = "Guru Meditation Error: Core  0 panic'ed (StoreProhibited). Exception was unhandled.\r\n"
REBOOT = "Rebooting...\r\nets Jul 29 2019 12:21:46\r\n\r\nrst:0xc (SW_CPU_RESET),boot:0x12 (SPI_FAST_FLASH_BOOT)\r\n"


@pytest.mark.parametrize(
    ("expected", "log"),
    [
        ("SW_CPU_RESET", REBOOT),
        ("StoreProhibited,SW_CPU_RESET", STORE + REBOOT),
        ("abort, SW_CPU_RESET", "abort() was called at PC 0x400d1234 on core 0\r\n" + REBOOT),
        ("assert failed,SW_CPU", "assert failed: test_it x.c:3 (false)\r\n" + REBOOT),
        ("SW_CPU_RESET,SW_CPU_RESET", 2 * REBOOT),
    ],
)
def test_resets_as_expected(expected, log):
    assert unexpected_resets(Case(1, "resets", (f"reset={expected}",)), log) is None


@pytest.mark.parametrize(
    ("expected", "log", "seen"),
    [
        ("SW_CPU_RESET", "", "none"),
        ("SW_CPU_RESET", STORE + REBOOT, "StoreProhibited, SW_CPU_RESET"),
        ("DEEPSLEEP_RESET", REBOOT, "SW_CPU_RESET"),
        ("StoreProhibited,SW_CPU_RESET", REBOOT, "SW_CPU_RESET"),
    ],
)
def test_resets_that_were_not_expected(expected, log, seen):
    wrong = unexpected_resets(Case(1, "resets", (f"reset={expected}",)), log)
    assert wrong == f"expected the resets {', '.join(expected.split(','))}, but there was {seen}"


# -- the result itself


def test_a_result_describes_itself():
    crash = decode(STORE + "Backtrace: 0x400d5ac9:0x3ffb4660\r\n")
    what, *frames = crash.describe().splitlines()
    role = CaseResult("sender", "timeout", "it waits for the signal [go]", board="b")
    result = CaseResult("both", "crashed", "gone", crash=crash, earlier=("timeout: late",), roles=(role,))
    assert result.describe().splitlines() == [
        "both: crashed: gone",
        "1. attempt: timeout: late",
        what,
        *frames,
        "sender: timeout: it waits for the signal [go]",
    ]
    assert CaseResult("one", "crashed", f"{what} in stage 2", crash=crash).describe().splitlines() == [
        f"one: crashed: {what} in stage 2",
        *frames,
    ]


def test_a_report_counts_and_becomes_plain_data():
    results = [
        CaseResult(str(number), status) for number, status in enumerate(["passed", "failed", "ignored", "timeout"])
    ]
    report = Report(tuple(results))
    assert [result.status for result in report.problems] == ["failed", "timeout"]
    assert (len(report), report.count("passed"), report.count("crashed")) == (4, 1, 0)
    assert json.loads(json.dumps(to_dict(report)))["results"][1]["status"] == "failed"
