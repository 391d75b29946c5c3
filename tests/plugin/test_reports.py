"""What a run reports about its boards."""

import json
from xml.etree import ElementTree

import pytest

TESTS = """
    @pytest.mark.esp(chip="esp32")
    def test_passes(esp):
        esp.flash.write([(0x10000, bytes(4096))])
        esp.flash.write([(0x10000, bytes(4096))])

    @pytest.mark.esp(chip="esp32")
    def test_fails(esp):
        esp.chip.identify()
        assert False

    def test_plain(): ...
"""


@pytest.mark.parametrize("workers", [0, 2])
def test_the_summary_counts_per_board(project, workers):
    project.file(TESTS)
    result = project.run(f"-n{workers}")
    result.assert_outcomes(passed=2, failed=1)
    lines = result.outlines[next(i for i, line in enumerate(result.outlines) if " boards " in line) :]
    assert lines[1].split() == [
        "board",
        "chip",
        "backend",
        "tests",
        "passed",
        "failed",
        "busy",
        "waited",
        "written",
        "unchanged",
    ]
    cells = lines[2].split()
    assert cells[:6] == ["one-esp32", "esp32", "sim", "2", "1", "1"]
    assert cells[-4:] == ["4.0", "KB", "4.0", "KB"]


def test_a_run_without_boards_has_no_summary_of_boards(project):
    project.file("def test_plain(): ...")
    assert " boards " not in str(project.run().stdout)


def test_a_failing_test_shows_the_output_of_esptool(project):
    project.file("""
        @pytest.mark.esp(chip="esp32")
        def test_fails(esp):
            esp.flash.write([(0x10000, bytes(4096))], skip_unchanged=False)
            assert False
    """)
    project.run().stdout.fnmatch_lines(["*- esptool on one-esp32 -*", "*stub*", "*0x00010000*"])


@pytest.mark.parametrize("workers", [0, 1])
def test_junit_properties_name_the_board(project, workers):
    project.file(TESTS)
    project.run("--junitxml=junit.xml", "--esp-junit-properties", f"-n{workers}")
    cases = {case.get("name"): case for case in ElementTree.parse(project.path / "junit.xml").iter("testcase")}
    properties = {entry.get("name"): entry.get("value") for entry in cases["test_passes"].iter("property")}
    assert properties.pop("mac").count(":") == 5
    assert properties == {"board": "one-esp32", "chip": "esp32", "backend": "sim"}
    assert not list(cases["test_plain"].iter("property"))


@pytest.mark.parametrize("workers", [0, 2])
def test_allure_gets_the_board_the_transcript_and_the_environment(project, workers):
    project.file(TESTS)
    assert project.run_process("--alluredir=results", f"-n{workers}")[0] == pytest.ExitCode.TESTS_FAILED
    results = [json.loads(path.read_text()) for path in project.path.glob("results/*-result.json")]
    assert sorted(result["name"] for result in results) == ["test_fails", "test_passes", "test_plain"]
    passed = next(result for result in results if result["name"] == "test_passes")
    attached = {attachment["name"]: attachment["source"] for attachment in passed["attachments"]}
    identity = json.loads((project.path / "results" / attached["board one-esp32"]).read_text())
    assert (identity["board"], identity["chip"], identity["skipped"]) == ("one-esp32", "esp32", 4096)
    assert "stub" in (project.path / "results" / attached["esptool on one-esp32"]).read_text()
    environment = (project.path / "results" / "environment.properties").read_text()
    assert "rack = bench\n" in environment
    assert "board.c3-1 = esp32c3 (sim)\n" in environment
