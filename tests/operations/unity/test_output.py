"""Reading the output of apps that run their tests by themselves, without a menu."""

import pytest

from pytest_esp.errors import OperationError
from pytest_esp.operations.unity.output import SUMMARY_WITH_VERDICT, read_output

BASIC = """I (300) main: begin
main/test_sum.c:12:test_sum:PASS
main/test_sum.c:20:test_carry:FAIL: Expected 1 Was 2
main/test_sum.c:30:test_later:IGNORE: not now
C:\\project\\test.cpp:7:test_on_windows:PASS
-----------------------
4 Tests 1 Failures 1 Ignored
FAIL
"""

FIXTURE = """Unity test run 1 of 1
TEST(queue, keeps_order) PASS
TEST(queue, is_bounded)main/test_queue.c:30::FAIL: Expected 8 Was 9
IGNORE_TEST(queue, later)
TEST(queue, talks)some output
 and its result PASS
-----------------------
3 Tests 1 Failures 0 Ignored
FAIL
"""


def short(results):
    return [(one.name, one.status, one.message) for one in results]


def test_lines_of_unity():
    results = read_output(BASIC, board="b")
    assert short(results) == [
        ("test_sum", "passed", ""),
        ("test_carry", "failed", "main/test_sum.c:20: Expected 1 Was 2"),
        ("test_later", "ignored", "main/test_sum.c:30: not now"),
        ("test_on_windows", "passed", ""),
    ]
    assert (results[1].file, results[1].line, results[1].board) == ("main/test_sum.c", 20, "b")


def test_lines_of_unity_s_fixtures():
    assert short(read_output(FIXTURE)) == [
        ("queue.keeps_order", "passed", ""),
        ("queue.is_bounded", "failed", "main/test_queue.c:30: Expected 8 Was 9"),
        ("queue.talks", "passed", ""),
    ]


def test_a_failure_whose_line_is_lost_is_a_failure():
    results = read_output("a.c:1:one:PASS\na.c:2:tw[ISR] FAIL\n2 Tests 1 Failures 0 Ignored\nFAIL\n")
    assert short(results) == [
        ("one", "passed", ""),
        ("(lost)", "failed", "the summary counts 1 failures, but 0 failed cases were found in the output"),
    ]


def test_output_without_test_cases():
    with pytest.raises(OperationError, match="no test case was found"):
        read_output("....\n4 Tests 0 Failures 0 Ignored\nOK\n")


@pytest.mark.parametrize("end", ["\r\nOK\r\n", " \nFAIL\n"])
def test_the_end_of_a_run(end):
    assert SUMMARY_WITH_VERDICT.search(f"2 Tests 0 Failures 0 Ignored{end}")
    assert not SUMMARY_WITH_VERDICT.search("2 Tests 0 Failures 0 Ignored\n")
