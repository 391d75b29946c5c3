"""The console of a test: when it begins, where it is kept, how it is shown."""

import json

import pytest

BOOTS = """
    @pytest.mark.esp(chip="esp32")
    def test_boots(console, esp):
        esp.chip.reset("app")
        console.expect("invalid header: 0xffffffff")
"""


@pytest.mark.in_process
@pytest.mark.parametrize("workers", [0, 2])
def test_every_test_has_its_own_log_file(project, workers):
    project.file(
        BOOTS
        + """
    @pytest.mark.parametrize("value", ["a/b"])
    @pytest.mark.esp(chip="esp32")
    def test_values(console, esp, value):
        esp.chip.reset("app")

    @pytest.mark.esp(chip="esp32")
    def test_with_a_long_name_%s(console): ...

    @pytest.mark.esp(chip="esp32")
    def test_without(esp):
        esp.chip.identify()
    """
        % ("x" * 300)
    )
    project.run("--esp-log-dir=logs", f"-n{workers}").assert_outcomes(passed=4)
    names = sorted(path.name for path in (project.path / "logs").iterdir())
    assert names[0] == "test_it.py--test_boots.one-esp32.log"
    assert names[1] == "test_it.py--test_values[a-b].one-esp32.log"
    assert names[2].startswith("test_it.py--test_with_a_long_name_xxx")
    assert len(names[2]) < 160
    assert names[3] == "test_it.py--test_without.one-esp32.log"
    log = (project.path / "logs" / names[0]).read_text()
    assert log.count("rst:0x1 (POWERON") == 2  # it was off, and was reset
    assert log.startswith("[    0.0")


def test_without_an_option_logs_lie_in_the_temporary_folder(project):
    project.file(BOOTS + "        print('log:', console.log_path)\n")
    result = project.run("-s", "--basetemp=temporary")
    result.assert_outcomes(passed=1)
    assert (project.path / "temporary/consoles/test_it.py--test_boots.one-esp32.log").is_file()


def test_a_failing_test_shows_the_end_and_names_the_log(project):
    project.file(BOOTS + "        assert False\n")
    lines = project.run("--esp-log-dir=logs").stdout
    lines.fnmatch_lines(["*console of one-esp32*", "*invalid header: 0xffffffff*", "log: *test_boots.one-esp32.log"])


@pytest.mark.in_process
def test_a_crash_is_shown_in_the_failure(project):
    project.file("""
        @pytest.mark.esp(chip="esp32")
        def test_waits(console):
            console.expect("Hello world!", timeout=60)
    """)
    result = project.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*CrashError: one-esp32: the app crashed while waiting for 'Hello world!'*"])


def test_the_console_is_shown_live(project):
    project.file(BOOTS)
    assert "invalid header" in str(project.run("-s").stdout)
    assert "invalid header" not in str(project.run().stdout)


@pytest.mark.in_process
def test_lines_of_two_consoles_have_the_boards_name(project):
    project.file("""
        @pytest.mark.esp(chip="esp32c3", count=2)
        def test_two(boards, _esp_held):
            for held in _esp_held:
                held.link.console.expect("invalid header")
    """)
    shown = project.run("-s").outlines
    assert any(line.startswith("c3-1| rst:0x1") for line in shown)
    assert any(line.startswith("c3-2| rst:0x1") for line in shown)


def test_allure_gets_the_console(project):
    project.file(BOOTS)
    assert project.run_process("--alluredir=results")[0] == pytest.ExitCode.OK
    result = json.loads(next(project.path.glob("results/*-result.json")).read_text())
    source = next(item["source"] for item in result["attachments"] if item["name"] == "console of one-esp32")
    assert "invalid header" in (project.path / "results" / source).read_text()
