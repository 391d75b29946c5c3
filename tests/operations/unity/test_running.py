"""Cases run on a board, whatever they do to it; `test_images.py` does the same with real programs."""

import pytest

from pytest_esp.errors import OperationError, PortError, RefusedError
from pytest_esp.operations import unity
from pytest_esp.operations.unity import Conditions, Suite


def passes(app):
    pass


def fails(app):
    return "FAIL: Expected 1 Was 2"


def hangs(app):
    while True:
        yield


def crashes(app):
    app.panic()


def restarts(app):
    app.reset()


def second(app):
    pass


def third(app):
    pass


def ends(report):
    return {result.name: result.status for result in report}


# -- the test firmware's app: one case for each way to end


def test_every_way_to_end_is_told_apart(simulated):
    report = unity.run_all(simulated[0], names=["a*", "m*", "o*", "case is*", "case crashes", "two*"])
    assert ends(report) == {
        "addition holds": "passed",
        "memory keeps a pattern": "passed",
        "one is two": "failed",
        "case is ignored": "ignored",
        "case crashes": "crashed",
        "memory survives a restart": "passed",
        "two boards talk": "ignored",
    }
    results = {result.name: result for result in report}
    failed = results["one is two"]
    assert failed.message == f"app/cases.c:{failed.line}: Expected 1 Was 2"
    assert (failed.file, failed.board, failed.tags) == ("app/cases.c", "board-1", ("math", "wrong"))
    assert failed.log.startswith("3\nRunning one is two...\n")
    assert failed.log.endswith("FAIL\nEnter next test, or 'enter' to see menu\n")
    assert results["case is ignored"].message.endswith(": not now")
    assert "store_and_restart" in results["memory survives a restart"].log
    assert results["two boards talk"].message == "it needs 2 boards"


def test_a_crash_is_decoded_with_the_elf(simulated, build_of):
    result = unity.run(simulated[0], "case crashes", elf=build_of("esp32c3") / "pytest_esp_test.elf")
    assert result.status == "crashed"
    assert result.message.startswith("panic: Store access fault at address 0x00000000")
    assert [frame.function for frame in result.crash.backtrace][:4] == [
        "store_through",
        "pass_null",
        "crash",
        "crashes",
    ]
    assert (result.file.endswith("crash.c"), result.line) == (True, result.crash.backtrace[0].line)
    assert "Guru Meditation" in result.log
    assert "in store_through (crash.c:" in result.describe()


def test_every_case_of_a_board_that_cannot_be_written_to_is_refused(links, build_of):
    (link,) = links("esp32c3", build=build_of, backend="sim", app="app:TestFirmware")
    spec = link.board.spec.model_copy(update={"allow": frozenset({"read"})})
    link.board.spec = spec
    assert len(unity.menu(link)) == 8
    for refused in (
        lambda: unity.run(link, 1),
        lambda: unity.run_all(link),
        lambda: unity.run_multi_device([link, link], "two boards talk"),
        lambda: Suite([link]),
    ):
        with pytest.raises(RefusedError, match="requires 'write'"):
            refused()


# -- whatever they do


def test_the_rest_goes_on_after_crashes_hangs_and_restarts(link, program):
    bodies = {
        "p1": passes,
        "c": crashes,
        "p2": passes,
        "h": hangs,
        "p3": passes,
        "r": restarts,
        "p4": passes,
        "f": fails,
    }
    program.cases = {name: ("[t]", body) for name, body in bodies.items()} | {"p5": ("[t]", passes)}
    report = unity.run_all(link, timeout=0.2)
    expected = {"c": "crashed", "h": "timeout", "r": "crashed", "f": "failed"}
    assert ends(report) == {name: expected.get(name, "passed") for name in program.cases}
    messages = {result.name: result.message for result in report.problems}
    assert messages == {
        "c": "panic: LoadProhibited, on core 0",
        "h": "timed out after 0.2 s",
        "r": "the chip restarted during the case",
        "f": "./main/test_it.c:80: Expected 1 Was 2",
    }


def test_the_log_of_a_case_is_its_own(link, program):
    def says(app):
        app.say("\x1b[0;32mI (1) here: once\x1b[0m\n")

    program.cases = {"h": ("[t]", hangs), "s": ("[t]", says)}
    hung, said = unity.run_all(link, timeout=0.1)
    assert hung.log == "1\nRunning h...\n"
    assert said.log.startswith("2\nRunning s...\nI (1) here: once\n./main/test_it.c:20:s:PASS\n")
    assert said.seconds < hung.seconds


def test_a_board_is_left_waiting_for_a_choice(link, program):
    program.cases = {"h": ("[t]", hangs)}
    unity.run(link, "h", timeout=0.1)
    program.heard.clear()
    unity.menu(link)
    assert program.heard == [""]


def test_the_time_of_a_case_is_its_own_or_the_callers(link, program):
    program.cases = {"own": ("[timeout=0.1]", hangs), "none": ("[t]", hangs)}
    own, none = unity.run_all(link, timeout=0.3)
    assert own.message == "timed out after 0.1 s"
    assert none.message == "timed out after 0.3 s"


def test_a_lost_choice_is_made_again(link, program, impatient):
    program.cases = {"p": ("[t]", passes), "s": ("[t]", restarts, second)}
    with Suite([link]) as suite:
        program.lost_inputs = 1
        assert suite.run(suite.menu.case("p")).status == "passed"
        program.lost_inputs = 2
        assert suite.run(suite.menu.case("p")).status == "passed"
        assert program.heard == ["", "1", "1"]


def test_a_lost_choice_of_a_stage_is_made_again(link, program, impatient):
    def loses_what_comes(app):
        program.lost_inputs = 1
        app.reset()

    def loses_too(app):
        program.lost_inputs = 1

    program.cases = {"s": ("[t]", loses_what_comes, loses_too)}
    assert unity.run(link, "s").status == "passed"


def test_a_choice_that_lost_a_digit_is_made_again(link, program, impatient, monkeypatch):
    program.cases = {f"case {number}": ("[t]", passes) for number in range(1, 13)}
    with Suite([link]) as suite:
        write, lost = link.console.write, [1]
        monkeypatch.setattr(link.console, "write", lambda text: write(text[lost.pop() if lost else 0 :]))
        result = suite.run(suite.menu.case("case 12"))
    assert result.status == "passed"
    assert ":case 12:PASS" in result.log


def test_an_app_that_never_begins_with_the_case_is_late(link, program, impatient):
    program.cases = {"p": ("[t]", passes), "q": ("[t]", passes)}
    with Suite([link]) as suite:
        program.lost_inputs = 3
        assert suite.run(suite.menu.case("p")).message == "the app did not start it"
        assert suite.run(suite.menu.case("q")).status == "passed"


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ("result_line", "I (7) wifi: got ip ./main/test_it.c:{line}:{name}:{result}\n"),
        ("result_line", "./main/test_it.c:{line}:{name}:PAI (7) wifi: got ip\nSS\n"),
        ("summary", "1 Tests 0 FaiI (7) wifi: got ip\nlures 0 Ignored\nOK\n"),
        ("goodbye", "Enter nextI (7) wifi: got ip\n test, or 'enter' to see menu\n"),
    ],
)
def test_other_output_among_the_results_does_not_matter(link, program, impatient, setting, text):
    program.cases = {"p": ("[t]", passes), "q": ("[t]", passes)}
    setattr(program, setting, text)
    assert ends(unity.run_all(link, timeout=2)) == {"p": "passed", "q": "passed"}


def test_a_crash_of_another_task_before_the_case_is_not_the_case_s(link, program, unity_app):
    program.cases = {"p": ("[t]", passes)}
    with Suite([link]) as suite:
        link.board.wire.transmit(unity_app.PANIC.replace("\n", "\r\n").encode())
        assert suite.run(suite.menu.case("p")).status == "passed"


def test_a_board_that_is_gone_is_an_error_that_tells_what_has_finished(link, program):
    def vanishes(app):
        link.port.lose("unplugged")
        yield from hangs(app)

    program.cases = {"p": ("[t]", passes), "v": ("[t]", vanishes), "q": ("[t]", passes)}
    with pytest.raises(PortError, match="unplugged") as caught:
        unity.run_all(link)
    assert caught.value.details == {"finished": {"p": "passed"}}


def test_an_app_that_does_not_come_back_is_an_error(link, program):
    def ends_the_app(app):
        program.greeting = "I am another app\n"
        app.panic()

    program.cases = {"c": ("[t]", ends_the_app), "p": ("[t]", passes)}
    with pytest.raises(OperationError, match="does not offer its test menu") as caught:
        unity.run_all(link, boot_timeout=0.3)
    assert caught.value.details == {"finished": {"c": "crashed"}}


# -- [ignore], [leaks]


def test_cases_tagged_ignore_run_if_asked_for(link, program):
    program.cases = {"i": ("[ignore]", passes)}
    (left_out,) = unity.run_all(link)
    assert (left_out.status, left_out.message) == ("ignored", "it is tagged [ignore]")
    assert ends(unity.run_all(link, include_ignored=True)) == {"i": "passed"}
    assert unity.run(link, "i").status == "passed"


@pytest.mark.parametrize("app_restarts", [True, False])
def test_the_restart_after_a_case_that_may_leak_is_waited_for(link, program, impatient, app_restarts):
    program.restarts_after_leaks = app_restarts
    program.cases = {"l": ("[leaks]", fails), "m": ("[leaks=100]", passes), "p": ("[t]", passes)}
    assert ends(unity.run_all(link)) == {"l": "failed", "m": "passed", "p": "passed"}
    assert program.heard == ["", "1", "2", "3"]


# -- resets


def test_a_case_may_have_to_crash(link, program):
    program.cases = {
        "c": ("[reset=LoadProhibited,SW_CPU_RESET]", crashes),
        "wrong": ("[reset=abort,SW_CPU_RESET]", crashes),
        "none": ("[reset=SW_CPU_RESET]", passes),
        "hangs": ("[reset=SW_CPU_RESET]", hangs),
    }
    report = unity.run_all(link, timeout=0.3)
    assert ends(report) == {"c": "passed", "wrong": "failed", "none": "failed", "hangs": "timeout"}
    _, wrong, none, _ = report
    assert wrong.message.startswith("expected the resets abort, SW_CPU_RESET, but there was LoadProhibited, ")
    assert none.message == "expected the resets SW_CPU_RESET, but there was none"


def test_stages_go_on_over_restarts_and_crashes(link, program):
    program.cases = {"s": ("[multi_stage]", restarts, crashes, third), "p": ("[t]", passes)}
    report = unity.run_all(link, timeout=2)
    assert ends(report) == {"s": "passed", "p": "passed"}
    assert program.heard == ["", "1", "1", "1", "2", "1", "3", "2"]
    assert "Guru Meditation" in next(iter(report)).log


def test_stages_must_cause_the_resets_that_their_case_names(link, program):
    program.cases = {
        "right": ("[reset=SW_CPU_RESET,LoadProhibited,SW_CPU_RESET][multi_stage]", restarts, crashes, third),
        "wrong": ("[reset=SW_CPU_RESET,SW_CPU_RESET][multi_stage]", restarts, crashes, third),
    }
    report = unity.run_all(link, timeout=2)
    assert ends(report) == {"right": "passed", "wrong": "failed"}


@pytest.mark.parametrize(
    ("bodies", "status", "message"),
    [
        ([passes, second], "failed", "stage 1 (passes) ended without a restart"),
        ([fails, second], "failed", "./main/test_it.c:10: Expected 1 Was 2"),
        ([restarts, fails], "failed", "./main/test_it.c:10: Expected 1 Was 2"),
        ([restarts, crashes], "crashed", "panic: LoadProhibited, on core 0 in stage 2 (crashes)"),
        ([crashes, restarts], "crashed", "the chip restarted during its last stage, restarts"),
        ([crashes, hangs], "timeout", "timed out after 0.3 s in stage 2 (hangs)"),
        ([hangs, second], "timeout", "timed out after 0.3 s in stage 1 (hangs)"),
    ],
)
def test_stages_that_go_wrong(link, program, bodies, status, message):
    program.cases = {"s": ("[multi_stage]", *bodies), "p": ("[t]", passes)}
    result, after = unity.run_all(link, timeout=0.3)
    assert (result.status, result.message) == (status, message)
    assert after.status == "passed"


def test_a_stage_that_crashes_for_good_has_crashed(link, program, unity_app):
    def halts(app):
        app.say(unity_app.PANIC.replace("Rebooting...", "CPU halted."))
        yield from hangs(app)

    program.cases = {"s": ("[multi_stage]", halts, second)}
    result = unity.run(link, "s", timeout=0.3)
    assert result.status == "crashed"
    assert result.message == "the app did not come back in stage 1 (halts) after panic: LoadProhibited, on core 0"
    assert len(result.crash.backtrace) == 2


# -- retries


def test_what_failed_is_tried_again_and_told(link, program):
    left = [3]

    def flaky(app):
        left[0] -= 1
        if left[0] == 2:
            app.panic()
        return "FAIL: not yet" if left[0] else None

    program.cases = {"flaky": ("[t]", flaky), "fails": ("[t]", fails), "p": ("[t]", passes)}
    flaky_end, failed, passed = unity.run_all(link, retries=2)
    assert (flaky_end.status, flaky_end.attempts) == ("passed", 3)
    assert flaky_end.earlier == ("crashed: panic: LoadProhibited, on core 0", "failed: ./main/test_it.c:10: not yet")
    assert (failed.status, failed.attempts, len(failed.earlier)) == ("failed", 3, 2)
    assert (passed.attempts, passed.earlier) == (1, ())


def test_only_some_ends_are_worth_another_try(link, program):
    program.cases = {"c": ("[t]", crashes), "f": ("[t]", fails)}
    with Suite([link]) as suite:
        conditions = Conditions(retries=1, retry_on=("crashed",))
        assert [suite.run(case, conditions).attempts for case in suite.menu] == [2, 1]


def test_a_selection_that_selects_nothing_is_an_error(simulated):
    with pytest.raises(OperationError, match="matches names") as caught:
        unity.run_all(simulated[0], names="one is too")
    assert "one is two" in caught.value.hint
    assert caught.value.attempted == "unity-run-all"
