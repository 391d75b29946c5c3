"""Secrets on a console: its log, its echo and its errors have none, and the test that waits for one finds it."""

import time

import pytest

from pytest_esp.link.console import Console, ConsoleError, CrashError
from pytest_esp.secrets import remember
from pytest_esp.wire.port import VirtualPort
from pytest_esp.wire.wire import Wire


@pytest.fixture
def console(tmp_path):
    """A console, what lets its board say something, and what it has shown."""
    remember("hunter22")
    wire, shown = Wire(), []
    port = VirtualPort(wire, "board")
    port.open()
    made = Console(port, board="board", journal=tmp_path / "log", echo=shown.append)
    made.attach()
    yield made, wire.transmit, shown
    made.close()


def test_the_test_sees_it_and_nobody_else(console, tmp_path):
    made, say, shown = console
    say(b"wifi: hunter22\r\n\x1b[32mI (5) wifi: hun\x1b[0mter22\x1b[0m\r\n")
    assert made.expect("hunter22").text == "hunter22"
    assert made.expect("hunter22").text == "hunter22"
    made.expect("\n")
    assert [line.text for line in made.lines()] == ["wifi: hunter22", "I (5) wifi: hunter22"]
    assert made.log.count(b"***") == 2
    assert b"ter22" not in (tmp_path / "log").read_bytes() + made.log + "".join(shown).encode()
    assert "".join(shown) == "wifi: ***\r\nI (5) wifi: ***\r\n"


def test_in_pieces_and_without_an_end(console, tmp_path):
    made, say, shown = console
    for piece in (b"pass hun", b"ter", b"22", b", prompt> ", b"hunter2"):
        say(piece)
        made.expect(piece)
    assert "".join(shown) == "pass ***, prompt> "  # what may become one waits
    log = made.log
    assert log[12:] == b"pass ***, prompt> ***"
    made.close()
    assert (tmp_path / "log").read_bytes() == log
    assert "".join(shown) == "pass ***, prompt> ***"


def test_each_line_has_its_time(console, tmp_path):
    made, say, _ = console
    say(b"one hun")
    time.sleep(0.05)
    say(b"ter22\ntwo\n")
    made.expect("two\n")
    lines = (tmp_path / "log").read_text().splitlines()
    assert [line[12:] for line in lines] == ["one ***", "two"]
    first, second = (float(line[1:10]) for line in lines)
    assert second - first >= 0.04


def test_errors(console):
    made, say, _ = console
    say(b"wifi: hunter22\r\nassert hunt")
    with pytest.raises(ConsoleError) as failed:
        made.expect("never hunter22", timeout=0.05)
    assert "waiting for 'never ***'" in str(failed.value)
    assert "wifi: ***" in str(failed.value)
    assert "hunt" not in str(failed.value)
    say(b'\r\nassert failed: check main.c:5 (pass == "hunter22")\r\n\r\nRebooting...\r\n')
    with pytest.raises(CrashError) as crashed:
        made.expect("never")
    assert "main.c:5" in str(crashed.value)
    assert "hunter22" not in str(crashed.value)
    assert "hunter22" in crashed.value.crash.reason
