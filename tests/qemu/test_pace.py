"""The pace of a UART goes by the time that QEMU has on a processor."""

import os
import signal
import subprocess
import sys
import time

import pytest

from pytest_esp.qemu.pace import UartPace

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems have the host's clock only")

A_TENTH = 2304  # bytes, of a processor's second at 115200 baud


@pytest.fixture
def process():
    """A function that starts a Python program which prints a line when it begins; it is killed in the end."""
    started = []

    def start(program):
        command = [sys.executable, "-c", f"print('begun', flush=True)\n{program}"]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert started[-1].stdout.readline() == "begun\n"
        return started[-1].pid

    yield start
    for one in started:
        one.kill()
        one.communicate()


def processor_time(pid):
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        return sum(map(int, file.read().rpartition(")")[2].split()[11:13])) / os.sysconf("SC_CLK_TCK")


def until_due(pace, timeout=30.0):
    deadline = time.monotonic() + timeout
    while not pace.is_due():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_it_waits_for_the_processor_time_that_the_bytes_need(process):
    pid = process("while True: pass")
    pace = UartPace(pid, 115200)
    until_due(pace)
    before = processor_time(pid)
    for _ in range(5):
        pace.count(A_TENTH)
        until_due(pace)
    assert processor_time(pid) - before >= 0.5 - 2 / os.sysconf("SC_CLK_TCK")


def test_a_process_that_gets_no_processor_gets_no_bytes(process):
    pid = process("while True: pass")
    pace = UartPace(pid, 115200)
    os.kill(pid, signal.SIGSTOP)
    pace.count(A_TENTH)
    deadline = time.monotonic() + 0.4
    while time.monotonic() < deadline:
        assert not pace.is_due()
        time.sleep(0.01)
    os.kill(pid, signal.SIGCONT)
    until_due(pace)


def test_one_that_sleeps_has_read_everything(process):
    pace = UartPace(process("import time; time.sleep(100)"), 115200)
    pace.count(10 * A_TENTH)
    assert not pace.is_due()
    until_due(pace, 0.5)


def test_a_higher_baud_rate_brings_more(process):
    pace = UartPace(process("import time; time.sleep(100)"), 115200)
    slow = pace.chunk
    pace.baudrate = 230400
    assert pace.chunk == 2 * slow
    pace.baudrate = 9600  # of the host: the ROM's stays
    assert pace.chunk == slow


def test_one_that_has_ended_is_no_reason_to_wait(process):
    pid = process("raise SystemExit")
    pace = UartPace(pid, 115200)
    os.waitpid(pid, 0)
    pace.count(A_TENTH)
    assert pace.is_due()


def test_a_program_that_keeps_all_it_finds_needs_none(process):
    pace = UartPace(process("while True: pass"), 115200)
    pace.count(100 * A_TENTH)
    assert not pace.is_due()
    pace.is_on = False
    assert pace.is_due()
    assert pace.chunk > A_TENTH
