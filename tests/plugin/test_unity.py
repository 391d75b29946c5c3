"""Test cases on the chip as pytest shows and records them: on simulated chips with the test firmware's app."""

import json
import os
from pathlib import Path
from xml.etree import ElementTree

import pytest

TOOLS = os.environ.get("IDF_TOOLS_PATH") or str(Path.home() / ".espressif")  # pytester gives tests another home
FIRMWARE = Path(__file__).parents[1] / "firmware"
RACK = """
[boards.{0}]
backend = "sim"
chip = "esp32c3"
flash_size = "2MB"
flash_file = "{0}.bin"
app = "app:TestFirmware"
"""

ALL = """
    def test_app(unity):
        report = unity.run_all(names=["case hangs"], invert=True)
        assert len(report) == 7
"""
STATUSES = {
    "addition holds": "passed",
    "memory keeps a pattern": "passed",
    "one is two": "failed",
    "case is ignored": "ignored",
    "case crashes": "crashed",
    "memory survives a restart": "passed",
    "two boards talk": "ignored",
}


@pytest.fixture
def app(project, flash_of, build_of):
    """A project with two boards on which the test firmware's app runs."""
    project.pytester.makeini(f"[pytest]\npythonpath = {FIRMWARE}\n")
    project.rack("".join(RACK.format(name) for name in ("one", "two")))
    for name in ("one", "two"):
        (project.path / f"{name}.bin").write_bytes(flash_of(build_of("esp32c3")))
    return project


def junit_cases(project):
    """The test cases in junit.xml, by class and name."""
    suite = ElementTree.parse(project.path / "junit.xml").find("testsuite")
    cases = list(suite.iter("testcase"))
    assert int(suite.get("tests")) == len(cases)
    assert int(suite.get("failures")) == sum(len(case.findall("failure")) for case in cases)
    assert int(suite.get("skipped")) == sum(len(case.findall("skipped")) for case in cases)
    found = {(case.get("classname"), case.get("name")): case for case in cases}
    assert len(found) == len(cases)
    return found


def status_of(case):
    return {one.get("name"): one.get("value") for one in case.iter("property")}["status"]


def test_every_case_is_a_subtest(app):
    app.file(ALL)
    result = app.run("-v", "--esp-board=one")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        [
            "test_it.py::test_app SUBPASSED[[]addition holds]*",
            "test_it.py::test_app SUBFAILED[[]one is two]*",
            "test_it.py::test_app SUBSKIPPED[[]case is ignored]*",
            "test_it.py::test_app SUBFAILED[[]case crashes]*",
            "*test_app [[]one is two]*",
            "app/cases.c:*: Expected 1 Was 2",
            "*log of one is two*",
            "Running one is two...",
            "*test_app [[]case crashes]*",
            "crashed: panic: Store access fault*",
            "#0 0x*",
            "Guru Meditation Error: Core  0*",
            "contains 2 failed subtests",
            "SUBSKIPPED[[]case is ignored]*app/cases.c:*: not now",
        ]
    )
    result.assert_outcomes(failed=3, skipped=2)


@pytest.mark.parametrize("workers", [0, 2])
def test_junit_has_every_case_with_its_time_and_message(app, workers):
    app.file(ALL)
    app.file("def test_plain(): ...", "test_other")
    app.run_process("--junitxml=junit.xml", "--esp-junit-properties", f"-n{workers}", "--esp-board=one")
    cases = junit_cases(app)
    named = {name: case for (classname, name), case in cases.items() if classname == "test_it.test_app"}
    assert {name: status_of(case) for name, case in named.items()} == STATUSES
    (failure,) = named["one is two"].iter("failure")
    assert "Expected 1 Was 2" in failure.get("message")
    (crash,) = named["case crashes"].iter("failure")
    assert "Store access fault" in crash.get("message")
    assert "#0 0x" in crash.text
    (skip,) = named["case is ignored"].iter("skipped")
    assert skip.get("message").endswith(": not now")
    assert float(named["memory survives a restart"].get("time")) > 0
    (whole,) = [case for key, case in cases.items() if key == ("test_it", "test_app")]
    assert [failure.get("message") for failure in whole.iter("failure")] == ["contains 2 failed subtests"]
    assert not list(whole.iter("skipped"))
    assert ("test_other", "test_plain") in cases


def test_workers_share_the_boards_and_lose_no_case(app):
    app.file("""
        @pytest.mark.esp(each="board")
        @pytest.mark.parametrize("turn", range(4))
        def test_app(unity, turn):
            unity.run_all(groups=["[math]", "[memory]"])
    """)
    code, output = app.run_process("--junitxml=junit.xml", "--esp-junit-properties", "-n2")
    assert code == pytest.ExitCode.TESTS_FAILED
    assert "16 failed" in output, output
    cases = junit_cases(app)
    boards = [
        one.get("value") for case in cases.values() for one in case.iter("property") if one.get("name") == "board"
    ]
    statuses = [status_of(case) for (classname, _), case in cases.items() if classname != "test_it"]
    assert sorted(statuses) == 8 * ["failed"] + 8 * ["ignored"] + 16 * ["passed"]
    assert boards.count("one") == boards.count("two") == 4 * 5  # the test itself, and its four cases


@pytest.mark.parametrize("family", ["xunit1", "xunit2"])
def test_both_families_of_junit(app, family):
    app.file(ALL)
    app.run(
        "--junitxml=junit.xml",
        "--esp-junit-properties",
        "-o",
        f"junit_family={family}",
        "-o",
        "junit_logging=all",
        "--esp-board=one",
    )
    failed = junit_cases(app)["test_it.test_app", "one is two"]
    assert failed.get("file") == ("app/cases.c" if family == "xunit1" else None)
    assert "Running one is two..." in failed.find("system-out").text


def test_a_crash_is_decoded_with_the_elf(app, build_of):
    app.file(f"""
        def test_app(unity):
            unity.run_all(names="case crashes", elf="{build_of("esp32c3") / "pytest_esp_test.elf"}")
    """)
    app.run("--esp-board=one").stdout.fnmatch_lines(
        ["#0 0x* in store_through (crash.c:*)", "#3 0x* in crashes (cases.c:*)"]
    )


def test_real_programs_on_two_machines_at_once(project, build_of, need_qemu, monkeypatch):
    monkeypatch.setenv("IDF_TOOLS_PATH", TOOLS)
    for chip in ("esp32", "esp32c3"):
        need_qemu(chip)
    project.rack("".join(f'[boards.q-{chip}]\nbackend = "qemu"\nchip = "{chip}"\n' for chip in ("esp32", "esp32c3")))
    project.file(f"""
        @pytest.mark.firmware("{build_of("esp32")}", "{build_of("esp32c3")}")
        @pytest.mark.esp(each="chip")
        def test_app(firmware, unity):
            unity.run_all(names=["memory*", "one is two", "case crashes"])
    """)
    code, output = project.run_process("--junitxml=junit.xml", "--esp-junit-properties", "-n2")
    assert code == pytest.ExitCode.TESTS_FAILED, output
    named = {key: case for key, case in junit_cases(project).items() if key[0] != "test_it"}
    assert sorted(map(status_of, named.values())) == 2 * ["crashed"] + 2 * ["failed"] + 4 * ["passed"], output
    for chip in ("esp32", "esp32c3"):
        assert "in store_through (crash.c:" in named[f"test_it.test_app[{chip}]", "case crashes"].find("failure").text


def test_a_single_case_does_not_fail_the_test(app):
    app.file("""
        def test_app(unity):
            assert [case.name for case in unity.menu()][:1] == ["addition holds"]
            assert unity.run("one is two").status == "failed"
            assert unity.run(5).crash.kind == "panic"
    """)
    result = app.run("--esp-board=one")
    result.assert_outcomes(passed=1)


def test_two_boards_play_a_case_together(app):
    app.file("""
        @pytest.mark.esp(count=2)
        def test_app(unity, boards):
            report = unity.run_all(groups="[multi_device]")
            (result,) = report
            assert {role.board for role in result.roles} == {board.name for board in boards}
            assert unity.run("two boards talk").status == "passed"
    """)
    app.run().assert_outcomes(passed=1)


def test_retries_are_reported(app):
    app.file("""
        def test_app(unity):
            unity.run_all(names="one is two", retries=1)
    """)
    result = app.run("--junitxml=junit.xml", "--esp-junit-properties", "--esp-board=one")
    result.stdout.fnmatch_lines(["app/cases.c:*", "1. attempt: failed: app/cases.c:*: Expected 1 Was 2"])
    case = junit_cases(app)["test_it.test_app", "one is two"]
    assert {one.get("name"): one.get("value") for one in case.iter("property")}["attempts"] == "2"


def test_a_board_that_vanishes_ends_the_test_and_keeps_what_ran(app):
    app.file("""
        def test_app(unity, esp, monkeypatch):
            from pytest_esp.operations.unity import suite
            run = suite.run_on_board

            def vanish_at_the_third(dialogue, case, timeout):
                if case.index == 3:
                    esp.link.port.lose("unplugged")
                return run(dialogue, case, timeout)

            monkeypatch.setattr(suite, "run_on_board", vanish_at_the_third)
            unity.run_all()
    """)
    result = app.run("--junitxml=junit.xml", "--esp-junit-properties", "--esp-board=one")
    result.assert_outcomes(errors=1, failed=1)
    result.stdout.fnmatch_lines(["*PortError: one: *unplugged*", "crashed: *unplugged*"])
    named = {name: status_of(case) for (classname, name), case in junit_cases(app).items() if classname != "test_it"}
    assert named == {"addition holds": "passed", "memory keeps a pattern": "passed", "one is two": "crashed"}


def test_failing_fast_ends_after_the_first_failure(app):
    app.file(ALL)
    result = app.run("-x", "--esp-board=one", "-v")
    assert "SUBFAILED[one is two]" in str(result.stdout)
    assert "Running case crashes" not in str(result.stdout)


def test_a_test_with_an_ignored_case_has_passed(app):
    app.file("""
        def test_app(unity):
            unity.run_all(names=["addition*", "case is*"])
    """)
    result = app.run("--esp-board=one")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["board *chip *", "one *esp32c3 *sim * 1 * 1 * 0 *"])


def test_selecting_nothing_fails(app):
    app.file("""
        def test_app(unity):
            unity.run_all(groups="[no such group]")
    """)
    result = app.run("--esp-board=one")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*OperationError: *none of the app's 8 test cases*"])


@pytest.mark.parametrize("workers", [0, 2])
def test_allure_has_every_case_as_a_step_with_its_log(app, workers):
    app.file(ALL)
    app.file(
        """
        def test_ignored(unity):
            unity.run_all(names=["addition*", "case is*"])
    """,
        "test_other",
    )
    app.run_process("--alluredir=results", f"-n{workers}")
    results = [json.loads(path.read_text()) for path in app.path.glob("results/*-result.json")]
    whole = {result["name"]: result for result in results}
    steps = {step["name"]: step for step in whole["test_app"]["steps"]}
    allures = {"passed": "passed", "failed": "failed", "crashed": "failed", "ignored": "skipped"}
    assert {name: step["status"] for name, step in steps.items()} == {
        name: allures[status] for name, status in STATUSES.items()
    }
    assert "Expected 1 Was 2" in steps["one is two"]["statusDetails"]["message"]
    (log,) = steps["case crashes"]["attachments"]
    assert "Guru Meditation" in (app.path / "results" / log["source"]).read_text()
    assert whole["test_app"]["status"] == "failed"
    assert whole["test_ignored"]["status"] == "passed"


def test_without_subtests_the_test_fails_with_the_list(app):
    """As with a pytest older than 9."""
    app.file(ALL)
    code, output = app.run_process(
        "-pno:subtests", "--junitxml=junit.xml", "--esp-junit-properties", "-n2", "--esp-board=one"
    )
    assert code == pytest.ExitCode.TESTS_FAILED
    assert "1 failed" in output
    assert "2 of the app's test cases failed:" in output
    named = {name: case for (classname, name), case in junit_cases(app).items() if classname == "test_it.test_app"}
    assert {name: status_of(case) for name, case in named.items()} == STATUSES
    (failure,) = named["one is two"].iter("failure")
    assert "Expected 1 Was 2" in failure.get("message")


PRINTING = """
from pytest_esp import SimApp

class Tests(SimApp):
    def start(self):
        self.send(b"main/a.c:1:test_sum:PASS\\r\\nmain/a.c:2:test_carry:FAIL: Expected 1 Was 2\\r\\n")
        self.send(b"-----\\r\\n2 Tests 1 Failures 0 Ignored \\r\\nFAIL\\r\\n")
"""


def test_an_app_without_a_menu(app):
    (app.path / "printing.py").write_text(PRINTING)
    app.pytester.makeini(f"[pytest]\npythonpath = {FIRMWARE} .\n")
    app.rack(RACK.format("one").replace("app:TestFirmware", "printing:Tests"))
    app.file("""
        def test_app(unity):
            report = unity.expect_output(timeout=5)
            assert [result.status for result in report] == ["passed", "failed"]
    """)
    result = app.run("--junitxml=junit.xml", "--esp-junit-properties")
    result.stdout.fnmatch_lines(["main/a.c:2: Expected 1 Was 2", "SUBFAILED?test_carry?*"])
    cases = {name: case for (_, name), case in junit_cases(app).items()}
    assert status_of(cases["test_sum"]) == "passed"
    assert status_of(cases["test_carry"]) == "failed"
