"""One QEMU process: started on the wire's loop, supervised, and never left behind."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_esp.errors import BackendError
from pytest_esp.wire.loop import loop, on_loop

if TYPE_CHECKING:
    from pytest_esp.qemu.find import Qemu
    from pytest_esp.qemu.machines import Machine

_START_TIMEOUT = 10.0
_STOP_TIMEOUT = 2.0  # QEMU writes its images back and ends in 4 to 25 ms
_BACKLOG = 1024 * 1024  # bytes kept for a guest that does not read; what comes then is lost, as on a real UART
_LAST_WORDS = 2000
_NOISE = ("Adding SPI flash device", "terminating on signal")
_PR_SET_PDEATHSIG = 1


def command_line(qemu: Qemu, machine: Machine, flash: Path, efuse: Path, strap: int, psram: str | None) -> list[str]:
    """Return how to start *machine*, without its serial port and monitor.

    Source: the documentation of Espressif's fork (esp-toolchain-docs, qemu). The watchdogs of the timer groups are off
    because the emulated clock is not the host's: on a loaded machine they would bite a healthy app.
    """
    command = [str(qemu.path), "-nographic", "-machine", machine.name]
    if psram:
        command += ["-m", psram]
    return [
        *command,
        "-drive",
        f"file={_escaped(flash)},if=mtd,format=raw",
        "-drive",
        f"file={_escaped(efuse)},if=none,format=raw,id=efuse",
        "-global",
        f"driver={machine.efuse_driver(qemu)},property=drive,value=efuse",
        "-global",
        f"driver=timer.{machine.name}.timg,property=wdt_disable,value=true",
        "-global",
        f"driver={machine.name}.gpio,property=strap_mode,value={strap:#04x}",
        "-no-user-config",
    ]


def _escaped(path: Path) -> str:
    """A comma ends a value on QEMU's command line, two are one."""
    return str(path).replace(",", ",,")


class QemuProcess:
    """A running QEMU and its UART. Its methods are for the loop's thread, but for `send`.

    UART and monitor are socket pairs that nobody else can reach; what QEMU itself says goes into *log*. It dies with
    this process, however that dies: on Linux the kernel kills it, elsewhere a shell that watches a pipe does.

    Args:
        command: see `command_line`.
        log: takes its standard output and error.
        on_output: called with what the UART sends.
        on_end: called once when it has ended by itself, with its last words.

    Raises:
        BackendError: if it cannot be started at all.
    """

    def __init__(
        self, command: list[str], log: Path, on_output: Callable[[bytes], None], on_end: Callable[[str], None]
    ) -> None:
        self._log = log
        self._on_output = on_output
        self._on_end = on_end
        self._stopping = False
        self._backlog = bytearray()
        self._sending = threading.Lock()
        self._uart, uart = socket.socketpair()
        self._monitor, monitor = socket.socketpair()
        self._ended = asyncio.Event()
        try:
            self._process = _spawn(command, (uart, monitor), log)
        except OSError as error:
            self._uart.close()
            self._monitor.close()
            raise BackendError(f"{command[0]} cannot be started: {error.strerror or error}") from error
        finally:
            uart.close()
            monitor.close()
        for end in (self._uart, self._monitor):
            end.setblocking(False)
        loop().add_reader(self._uart, self._readable)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    async def wait_until_up(self) -> bool:
        """Wait until the machine is made, and return whether it is: its monitor (QMP) greets then, or it has ended."""
        greeting = asyncio.ensure_future(loop().sock_recv(self._monitor, 4096))
        ended = asyncio.ensure_future(self._ended.wait())
        await asyncio.wait((greeting, ended), timeout=_START_TIMEOUT, return_when=asyncio.FIRST_COMPLETED)
        up = greeting.done() and not greeting.cancelled() and greeting.exception() is None and bool(greeting.result())
        for task in (greeting, ended):
            task.cancel()
        return up

    def send(self, data: bytes) -> None:
        """Send *data* to the UART; from any thread."""
        with self._sending:
            if not self._backlog:
                with contextlib.suppress(BlockingIOError):
                    try:
                        data = data[self._uart.send(data) :]
                    except BlockingIOError:
                        raise
                    except OSError:
                        return  # it has ended, and says so on the other path
            if data and len(self._backlog) < _BACKLOG:
                first = not self._backlog
                self._backlog += data
                if first:
                    on_loop(self._send_later)

    def _send_later(self) -> None:
        if self._uart.fileno() >= 0:
            loop().add_writer(self._uart, self._flush)

    def _flush(self) -> None:
        with self._sending:
            try:
                del self._backlog[: self._uart.send(self._backlog)]
            except BlockingIOError:
                return
            except OSError:
                self._backlog.clear()
            if not self._backlog:
                loop().remove_writer(self._uart)

    def _readable(self) -> None:
        try:
            data = self._uart.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._on_output(data)
            return
        loop().remove_reader(self._uart)  # only its end closes the other side
        self._ended.set()
        if not self._stopping:
            self._on_end(self.last_words())

    def last_words(self) -> str:
        """Return how it ended and what it said itself."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(0.1)  # its sockets close an instant before it is gone
        code = self._process.poll()
        how = "still runs" if code is None else f"was killed by {_signal(-code)}" if code < 0 else f"ended ({code})"
        with contextlib.suppress(OSError):
            lines = self._log.read_text(errors="replace")[-_LAST_WORDS:].splitlines()
            said = [line for line in lines if line.strip() and not any(noise in line for noise in _NOISE)]
            return f"QEMU {how}" + (": " + "; ".join(said) if said else " without a word")
        return f"QEMU {how}"

    async def stop(self) -> None:
        """End it, by force if it must be. Stopping twice is harmless."""
        self._stopping = True
        self._terminate()
        deadline = time.monotonic() + _STOP_TIMEOUT
        while self._process.poll() is None:
            if time.monotonic() > deadline:
                self._process.kill()
            await asyncio.sleep(0.001)
        self._let_go()

    def _terminate(self) -> None:
        if self._process.stdin is not None:  # the guarding shell: its pipe's end is its sign
            self._process.stdin.close()
        elif self._process.poll() is None:
            self._process.terminate()

    def _let_go(self) -> None:
        with self._sending:
            self._backlog.clear()
            if self._uart.fileno() >= 0:
                loop().remove_reader(self._uart)
                loop().remove_writer(self._uart)
            self._uart.close()
            self._monitor.close()


def _signal(number: int) -> str:
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"


def _spawn(command: list[str], ends: tuple[socket.socket, socket.socket], log: Path) -> subprocess.Popen[bytes]:
    uart, monitor = (end.fileno() for end in ends)
    command = [
        *command,
        *("-chardev", f"socket,id=uart,fd={uart}", "-serial", "chardev:uart"),
        *("-chardev", f"socket,id=qmp,fd={monitor}", "-mon", "chardev=qmp,mode=control"),
    ]
    # A pipe that nobody drains would stop the guest; a file takes everything.
    with log.open("wb") as said:
        if sys.platform == "linux":
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                pass_fds=(uart, monitor),
                preexec_fn=_DieWithOwner(),
                start_new_session=True,  # Ctrl-C is for its owner
            )
        return spawn_guarded(command, (uart, monitor), said.fileno())


class _DieWithOwner:
    """Asks the kernel, in the child, to kill it when the thread that made it ends (prctl(2)); made before the fork."""

    def __init__(self) -> None:
        self._owner = os.getpid()
        self._prctl = ctypes.CDLL(None).prctl

    def __call__(self) -> None:
        self._prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != self._owner:  # it died before the kernel was asked
            os._exit(1)


_GUARD = """
exec 3<&0
"$@" </dev/null 3<&- & child=$!
{ read -r _ <&3; kill -TERM $child; sleep 2; kill -KILL $child; } 2>/dev/null & guard=$!
wait $child; status=$?
kill $guard 2>/dev/null
exit $status
"""


def spawn_guarded(command: list[str], descriptors: tuple[int, ...], output: int) -> subprocess.Popen[bytes]:
    """Start *command* under a shell that ends it when this process is gone, or closes the shell's standard input."""
    return subprocess.Popen(
        ["/bin/sh", "-c", _GUARD, "pytest-esp-guard", *command],
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=output,
        pass_fds=descriptors,
        start_new_session=True,
    )
