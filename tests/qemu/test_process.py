"""One QEMU process: its UART, its end, and that nothing is left of it."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from pytest_esp.errors import BackendError
from pytest_esp.qemu import process as process_module
from pytest_esp.qemu.process import QemuProcess
from pytest_esp.wire.loop import loop, on_loop, run

pytestmark = pytest.mark.skipif(os.name != "posix", reason="QEMU machines need POSIX")

READY = b"see the list of tests.\r\n"


class Running:
    """A started process, with what it said so far."""

    def __init__(self, command, log, baudrate=None):
        self.output = bytearray()
        self.words = []
        self._changed = threading.Condition()

        async def start():
            return QemuProcess(command, log, self._take, self._end, baudrate)

        self.process = run(start())

    def _take(self, data):
        with self._changed:
            self.output += data
            self._changed.notify_all()

    def _end(self, words):
        with self._changed:
            self.words.append(words)
            self._changed.notify_all()

    def until(self, text, timeout=30.0):
        with self._changed:
            assert self._changed.wait_for(lambda: text in self.output, timeout), bytes(self.output[-2000:])

    def until_it_ends(self, timeout=30.0):
        with self._changed:
            assert self._changed.wait_for(lambda: self.words, timeout)
        return self.words[0]

    def is_up(self):
        return run(self.process.wait_until_up(), 30)

    def stop(self):
        run(self.process.stop())


@pytest.fixture
def start(tmp_path):
    """A function that starts a command; what it started is stopped in the end."""
    started = []

    def start(command, baudrate=None):
        started.append(Running(command, tmp_path / "qemu.log", baudrate))
        return started[-1]

    yield start
    for running in started:
        running.stop()


@pytest.fixture(params=["kernel", "shell"])
def guard(request, monkeypatch):
    """Both ways to make sure that QEMU ends with its owner; the shell's is for systems other than Linux."""
    if request.param == "kernel" and sys.platform != "linux":
        pytest.skip("only Linux's kernel ends a process with its parent")
    monkeypatch.setattr(process_module, "KERNEL_ENDS_CHILDREN", request.param == "kernel")
    return request.param


def processes():
    """Return the process group and name of all processes that have not ended, by pid."""
    listing = subprocess.run(["ps", "-A", "-o", "pid=,pgid=,stat=,comm="], capture_output=True, text=True, check=True)
    rows = (line.split(maxsplit=3) for line in listing.stdout.splitlines())
    return {int(pid): (int(group), name) for pid, group, state, name in rows if not state.startswith("Z")}


def group_of(pid):
    """Return the names of the processes of a group."""
    return [name for group, name in processes().values() if group == pid]


def until_gone(group, timeout=10.0):
    deadline = time.monotonic() + timeout
    while left := group_of(group):
        assert time.monotonic() < deadline, f"{left} still run"
        time.sleep(0.01)


# -- its UART


def test_what_is_sent_reaches_the_app_and_its_answer_comes_back(start, c3_command, guard):
    qemu = start(c3_command)
    assert qemu.is_up()
    qemu.until(READY)
    qemu.process.send(b"echo hello\n")
    qemu.until(b"hello\r\n")


def test_nothing_is_lost_of_what_an_app_that_reads_slowly_is_sent(start, c3_command):
    qemu = start(c3_command)
    qemu.until(READY)
    for number in range(500):
        qemu.process.send(b"echo line %03d, which is as long as many a line is\n" % number)
    qemu.until(b"line 499")
    assert [f"line {number:03}" for number in range(500)] == [
        line[:8] for line in qemu.output.decode().splitlines() if line.startswith("line ")
    ]


def test_an_app_that_does_not_read_stops_nobody_and_takes_a_megabyte_at_most(start, c3_command):
    qemu = start(c3_command)
    qemu.until(READY)
    qemu.process.send(b"hang\n")
    qemu.until(b"hanging\r\n")
    begun = time.monotonic()
    for _ in range(1000):
        qemu.process.send(bytes(16384))
    assert time.monotonic() - begun < 2
    assert len(qemu.process._backlog) <= process_module._BACKLOG + 16384
    qemu.stop()
    assert not qemu.words


GREEDY = """
    import os, re, socket, sys

    uart = socket.socket(fileno=int(re.search(r"id=uart,fd=(\\d+)", " ".join(sys.argv))[1]))
    uart.setblocking(False)
    uart.send(b"begun")
    while True:
        try:
            data = uart.recv(1 << 16)
        except BlockingIOError:
            continue
        print(len(data), file=sys.stderr, flush=True)
        uart.send(data)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have the host's clock only")
def test_a_uart_that_needs_its_pace_is_given_nothing_while_qemu_has_no_processor(start, tmp_path):
    """A program in QEMU's place takes all that it finds, and says how much that was."""
    qemu = start([sys.executable, "-c", textwrap.dedent(GREEDY)], baudrate=115200)
    qemu.until(b"begun")
    os.kill(qemu.process.pid, signal.SIGSTOP)
    qemu.output.clear()
    data = b"0123456789" * 500
    qemu.process.send(data)
    time.sleep(0.3)
    os.kill(qemu.process.pid, signal.SIGCONT)
    qemu.until(data)
    taken = list(map(int, (tmp_path / "qemu.log").read_text().split()))
    assert sum(taken) == len(data)
    assert max(taken) <= 64  # a chunk of 32, or two if it was slow


STUB = """
    import re, socket, sys

    uart = socket.socket(fileno=int(re.search(r"id=uart,fd=(\\d+)", " ".join(sys.argv))[1]))
    uart.send(b"\\xc0OH")
    uart.send(b"AI\\xc0")
    while data := uart.recv(1 << 16):
        print(len(data), file=sys.stderr, flush=True)
        uart.send(b"\\xc0reset: rst:0x1\\xc0" if data == b"reset" else data)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have the host's clock only")
def test_a_stub_flasher_is_given_all_at_once_and_the_rom_after_a_reset_is_not(start, tmp_path):
    """A program in QEMU's place greets as esptool's stub flasher does."""
    qemu = start([sys.executable, "-c", textwrap.dedent(STUB)], baudrate=115200)
    qemu.until(b"\xc0OHAI\xc0")
    data = b"0123456789" * 500
    qemu.output.clear()
    qemu.process.send(data)
    qemu.until(data)
    qemu.process.send(b"reset")
    qemu.until(b"rst:0x1\xc0")
    qemu.output.clear()
    qemu.process.send(data)
    qemu.until(data)
    taken = list(map(int, (tmp_path / "qemu.log").read_text().split()))
    assert max(taken[: taken.index(5)]) > 1000
    assert max(taken[taken.index(5) + 1 :]) <= 64


def test_a_flood_is_whole_even_if_nobody_has_time_to_read_it(start, c3_command):
    """QEMU's UART drops what its socket does not take."""
    qemu = start(c3_command)
    qemu.until(READY)
    qemu.output.clear()
    on_loop(time.sleep, 1.0)
    qemu.process.send(b"flood 300000\necho end\n")
    qemu.until(b"end\r\n")
    assert len(qemu.output) == 300_000 + len("end\r\n")


# -- its end


def test_stopping_is_no_death(start, c3_command, guard):
    qemu = start(c3_command)
    assert qemu.is_up()
    pid = qemu.process.pid
    begun = time.monotonic()
    qemu.stop()
    assert time.monotonic() - begun < 1
    assert group_of(pid) == []
    qemu.stop()
    assert qemu.words == []


def test_one_that_ignores_sigterm_is_killed(start, tmp_path, guard, monkeypatch):
    monkeypatch.setattr(process_module, "_STOP_TIMEOUT", 0.3)
    deaf = tmp_path / "deaf"
    deaf.write_text("#!/bin/sh\ntrap '' TERM\necho up >&2\nsleep 60 & wait; wait\n")
    deaf.chmod(0o755)
    qemu = start([str(deaf)])
    until = time.monotonic() + 10
    while "up" not in (tmp_path / "qemu.log").read_text():
        assert time.monotonic() < until
    pid = qemu.process.pid
    qemu.stop()
    assert group_of(pid) == []


def test_one_that_is_killed_is_noticed_at_once(start, c3_command, guard):
    qemu = start(c3_command)
    qemu.until(READY)
    begun = time.monotonic()
    subprocess.run(["pkill", "-KILL", "-g", str(qemu.process.pid), "qemu-system"], check=True)
    assert "SIGKILL" in qemu.until_it_ends()
    assert time.monotonic() - begun < 0.2


def test_one_that_aborts_at_its_start_is_quoted(start, c3_command, guard):
    begun = time.monotonic()
    qemu = start([*c3_command, "-global", "driver=esp32c3.gpio,property=strap_mode,value=nonsense"])
    assert not qemu.is_up()
    assert time.monotonic() - begun < 0.5
    assert qemu.process.last_words() == (
        f"QEMU ended (1): {os.path.basename(c3_command[0])}: can't apply global esp32c3.gpio.strap_mode=nonsense: "
        "Parameter 'strap_mode' expects uint64"
    )


def test_a_program_that_cannot_be_started(start, tmp_path):
    loop()
    descriptors = len(os.listdir("/proc/self/fd"))
    with pytest.raises(BackendError, match=r"cannot start .*: No such file or directory"):
        start([str(tmp_path / "nothing")])
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_a_log_that_cannot_be_written(c3_command, tmp_path):
    with pytest.raises(BackendError, match="cannot start"):
        Running(c3_command, tmp_path / "no-such-folder" / "qemu.log")


# -- what is left


def test_nothing_is_left(c3_command, tmp_path, guard):
    loop()  # is made once
    descriptors, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    files = {path.name for path in tmp_path.iterdir()}
    for _ in range(3):
        qemu = Running(c3_command, tmp_path / "qemu.log")
        assert qemu.is_up()
        qemu.process.send(b"x" * 100_000)
        qemu.stop()
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert threading.active_count() == threads
    assert {path.name for path in tmp_path.iterdir()} == files | {"qemu.log"}
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


OWNER = """
    import json, signal, sys, time
    from pathlib import Path
    from pytest_esp.qemu import process
    from pytest_esp.wire.loop import run

    # A shell that runs us in the background lets SIGINT be ignored, and children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    process.KERNEL_ENDS_CHILDREN = sys.argv[1] == "kernel"

    async def start():
        started = process.QemuProcess(json.loads(sys.argv[2]), Path(sys.argv[3]), lambda data: None, print)
        assert await started.wait_until_up()
        return started

    print(run(start()).pid, flush=True)
    time.sleep(100)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_it_ends_with_its_owner(c3_command, tmp_path, guard, number):
    owner = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(OWNER), guard, json.dumps(c3_command), tmp_path / "qemu.log"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        group = int(owner.stdout.readline())
        assert any("qemu-system" in name for name in group_of(group))
        owner.send_signal(number)
        owner.wait(10)
        until_gone(group)
    finally:
        owner.kill()
        owner.communicate()
