"""Cases that several boards play together."""

import sys

import pytest

from pytest_esp.errors import OperationError, PortError
from pytest_esp.operations import unity

MAC = "10:20:30:40:50:60"


def send(app, signal):
    """Send a signal, ``"name"`` or ``"name][parameter"``."""
    app.say(f"Send signal: [{signal}]!\n")


def wait(app, signal):
    app.say(f"Waiting for signal: [{signal}]!\n")
    app.say('Please press "Enter" key once any board send this signal.\n')
    app.say((yield) + "\n")


def wait_for_parameter(app, signal):
    app.say(f"Waiting for signal: [{signal}]!\n")
    app.say('Please input parameter value from any board send this signal and press "Enter" key.\n')
    line = yield
    app.say(line + "\n")
    return line


def passes(app):
    pass


def case(*roles, tags="[multi_device]"):
    return {"both": (tags, *roles)}


@pytest.fixture
def hasty(monkeypatch):
    """Makes deadlocks of boards that wait for each other be detected sooner."""
    monkeypatch.setattr(sys.modules["pytest_esp.operations.unity.devices"], "_DEADLOCK", 0.3)


def test_two_boards_talk(simulated):
    result = unity.run_multi_device(simulated, "two boards talk")
    assert (result.status, result.message, result.board) == ("passed", "", "board-1, board-2")
    assert [(role.name, role.board, role.status) for role in result.roles] == [
        ("speak_first", "board-1", "passed"),
        ("answer", "board-2", "passed"),
    ]
    assert "--- speak_first on board-1\n" in result.log
    assert "Send signal: [first is up]!" in result.roles[0].log
    assert "Waiting for signal: [first is up]!" in result.roles[1].log


def test_roles_go_to_the_boards_in_their_order(simulated):
    result = unity.run_multi_device(simulated[::-1], 8)
    assert [(role.name, role.board) for role in result.roles] == [("speak_first", "board-2"), ("answer", "board-1")]


def test_the_other_board_s_menu_may_have_another_order(pair, program, unity_app, monkeypatch):
    program.cases = {"first": ("[t]", passes), **case(passes, passes)}
    other = type("Other", (unity_app.UnityApp,), {"program": unity_app.Program(cases=case(passes, passes))})
    monkeypatch.setattr(unity_app, "Other", other, raising=False)
    spec = pair[1].board.spec.model_copy(update={"app": "unity_app:Other"})
    pair[1].close()
    pair[1].board.spec = spec
    assert unity.run_multi_device(pair, "both").status == "passed"
    assert other.program.heard == ["", "1", "2"]


def test_signals_are_kept_until_they_are_awaited_and_counted(pair, program):
    def sends_three(app):
        for _ in range(3):
            send(app, "tick")
        send(app, "done")
        yield from wait(app, "thanks")

    def waits_for_three(app):
        yield from wait(app, "done")
        for _ in range(3):
            yield from wait(app, "tick")
        send(app, "thanks")

    program.cases = case(sends_three, waits_for_three)
    result = unity.run_multi_device(pair, "both", timeout=10)
    assert result.status == "passed", result.describe()


def test_parameters_go_with_signals(pair, program):
    taken = []

    def tells(app):
        send(app, f"mac][{MAC}")
        send(app, f"mac][{MAC}")

    def asks(app):
        yield from wait(app, "mac")
        taken.append((yield from wait_for_parameter(app, "mac")))

    program.cases = case(tells, asks)
    assert unity.run_multi_device(pair, "both", timeout=10).status == "passed"
    assert taken == [MAC]
    assert MAC not in program.heard[: program.heard.index(MAC)]  # whoever waits for ENTER gets that alone


def test_a_failure_on_one_board_fails_the_case(pair, program):
    def fails(app):
        return "FAIL: Expected 1 Was 2"

    program.cases = case(passes, fails)
    result = unity.run_multi_device(pair, "both", timeout=10)
    assert (result.status, result.file, result.line) == ("failed", "./main/test_it.c", 10)
    assert result.message == "fails on board-2: ./main/test_it.c:10: Expected 1 Was 2"
    assert [role.status for role in result.roles] == ["passed", "failed"]


def test_boards_that_wait_for_each_other_are_named(pair, program, hasty):
    def waits_for_a(app):
        yield from wait(app, "a")

    def waits_for_b(app):
        yield from wait(app, "b")

    program.cases = case(waits_for_a, waits_for_b)
    result = unity.run_multi_device(pair, "both", timeout=60)
    assert result.status == "timeout"
    assert result.seconds < 10
    assert result.roles[0].message.startswith(
        "waiting for the signal [a], which no board has sent; waits_for_b on board-2 waits for [b]"
    )
    assert "waits_for_b on board-2: waiting for the signal [b]" in result.message
    assert unity.run_multi_device(pair, "both", timeout=0.2).status == "timeout"


def test_a_time_out_says_who_waits_for_what(pair, program):
    def hangs(app):
        while True:
            yield

    def waits(app):
        yield from wait(app, "go")

    program.cases = case(hangs, waits)
    result = unity.run_multi_device(pair, "both", timeout=0.5)
    assert result.status == "timeout"
    hung, waited = result.roles
    assert hung.message.startswith("timed out after 0.5 s; waits on board-2 waits for [go]")
    assert waited.message.startswith("waiting for the signal [go], which no board has sent; hangs on board-1 ")


def test_a_crash_on_one_board_ends_the_wait_of_the_other(pair, program, hasty):
    def crashes(app):
        app.panic()

    def waits(app):
        yield from wait(app, "go")

    program.cases = case(crashes, waits) | {"p": ("[t]", passes)}
    result = unity.run_multi_device(pair, "both", timeout=60)
    assert result.status == "crashed"
    assert result.seconds < 10
    assert result.crash is not None
    assert result.roles[1].message.endswith("crashes on board-1 has crashed")
    assert all(unity.run(link, "p").status == "passed" for link in pair)


def test_a_restart_in_the_middle_is_a_crash(pair, program):
    def restarts(app):
        app.reset()

    program.cases = case(restarts, passes)
    result = unity.run_multi_device(pair, "both", timeout=10)
    assert result.status == "crashed"
    assert result.message == "restarts on board-1: the chip restarted during the case"


def test_a_lost_answer_is_said_again(pair, program, monkeypatch):
    def sends(app):
        program.lost_inputs = 1
        send(app, "go")

    def waits(app):
        yield from wait(app, "go")

    program.cases = case(waits, sends)
    result = unity.run_multi_device(pair, "both", timeout=10)
    assert result.status == "passed", result.describe()


def test_a_board_that_is_gone_is_an_error_and_ends_the_others(pair, program, hasty):
    def vanishes(app):
        pair[0].port.lose("unplugged")
        yield from wait(app, "never")

    def waits(app):
        yield from wait(app, "go")

    program.cases = case(vanishes, waits)
    with pytest.raises(PortError, match="unplugged") as caught:
        unity.run_multi_device(pair, "both", timeout=60)
    assert caught.value.board == "board-1"


def test_there_must_be_boards_enough(simulated):
    with pytest.raises(OperationError, match="needs 2 boards, but there are 1") as caught:
        unity.run_multi_device(simulated[:1], "two boards talk")
    assert "count=2" in caught.value.hint
    with pytest.raises(OperationError, match="not a multi-device case"):
        unity.run_multi_device(simulated, "one is two")
