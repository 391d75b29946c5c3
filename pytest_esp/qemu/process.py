"""A QEMU process: started on the wire's loop, supervised, and ended with this process."""

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
from pytest_esp.processes import spawn_guarded
from pytest_esp.qemu.pace import UartPace
from pytest_esp.wire.loop import loop, on_loop

if TYPE_CHECKING:
    from pytest_esp.qemu.find import Qemu
    from pytest_esp.qemu.machines import Machine

_START_TIMEOUT = 10.0
_STOP_TIMEOUT = 2.0  # seconds; QEMU writes its images and ends in 4 to 25 ms
_BACKLOG = 1024 * 1024  # bytes kept for a guest that does not read; more is lost, as on a real UART
_LAST_WORDS = 2000
_GATHER = 0.0005  # seconds
_TICK = 0.001  # seconds
_NOISE = ("Adding SPI flash device", "terminating on signal")
_PR_SET_PDEATHSIG = 1
_STUB_GREETING = b"\xc0OHAI\xc0"  # in SLIP; the stub's last output before the host's first command
_ROM_BANNER = b"rst:0x"
_LOOK_BACK = 64  # bytes; longer than both

KERNEL_ENDS_CHILDREN = sys.platform == "linux"
"""Whether the kernel can end a process with its parent; else a shell does that."""


def command_line(qemu: Qemu, machine: Machine, flash: Path, efuse: Path, *, strap: int, psram: bool) -> list[str]:
    """Return the command line for *machine*, without serial port and monitor (see `machines` for the sources).

    The watchdogs of the timer groups are disabled because the emulated clock differs from the host's: on a loaded
    machine they would reset a working app.
    """
    return [
        *(str(qemu.path), "-nographic", "-no-user-config", "-machine", machine.name),
        *(("-m", machine.memory) if psram and machine.memory else ()),
        "-drive",
        f"file={_escaped(flash)},if=mtd,format=raw",
        "-drive",
        f"file={_escaped(efuse)},if=none,format=raw,id=efuse",
        "-global",
        f"driver={qemu.efuse_driver(machine)},property=drive,value=efuse",
        "-global",
        f"driver={machine.watchdog_driver},property=wdt_disable,value=true",
        "-global",
        f"driver={machine.strap_driver},property=strap_mode,value={strap:#04x}",
    ]


def _escaped(path: Path) -> str:
    """Escape commas, which separate options for QEMU. The path is made absolute: else it may look like a protocol."""
    return str(path.absolute()).replace(",", ",,")


class QemuProcess:
    """A running QEMU and its UART. Call its methods on the loop's thread, except `send`.

    UART and monitor are socket pairs, which other programs cannot reach. QEMU ends when this process ends in any way:
    on Linux the kernel kills it, elsewhere a shell that watches a pipe.

    Args:
        command: see `command_line`.
        log: the file for its standard output and error.
        on_output: called with the UART's output.
        on_end: called once with its last output if it ends unexpectedly.
        baudrate: the baud rate of a UART that needs `pace`; None for others.

    Raises:
        BackendError: if it cannot be started.
    """

    def __init__(
        self,
        command: list[str],
        log: Path,
        on_output: Callable[[bytes], None],
        on_end: Callable[[str], None],
        baudrate: int | None = None,
    ) -> None:
        self._log = log
        self._on_output = on_output
        self._on_end = on_end
        self.is_up = False
        self._stopping = False
        self._backlog = bytearray()
        self._sending = threading.Lock()
        self._uart, uart = _loopback_pair()
        self._monitor, monitor = socket.socketpair()
        self._ended = asyncio.Event()
        try:
            self._process = _spawn(command, (uart, monitor), log)
        except OSError as error:
            self._uart.close()
            self._monitor.close()
            raise BackendError(f"cannot start {command[0]}: {error.strerror or error}") from error
        finally:
            uart.close()
            monitor.close()
        for end in (self._uart, self._monitor):
            end.setblocking(False)
        self._said = b""
        self._pace = UartPace(self._process.pid, baudrate) if baudrate is not None else None
        loop().add_reader(self._uart, self._readable)

    @property
    def pid(self) -> int:
        """The process ID."""
        return self._process.pid

    async def wait_until_up(self) -> bool:
        """Wait until the machine runs, and return True; False if QEMU has ended or hangs."""
        answer = asyncio.ensure_future(self._answers())
        ended = asyncio.ensure_future(self._ended.wait())
        await asyncio.wait((answer, ended), timeout=_START_TIMEOUT, return_when=asyncio.FIRST_COMPLETED)
        self.is_up = answer.done() and answer.result() and not self._ended.is_set()
        for task in (answer, ended):
            task.cancel()
        return self.is_up

    async def _answers(self) -> bool:
        """Send a command to the monitor (QMP), and return whether a response arrives.

        The monitor's greeting arrives before the machine exists. Responses come from QEMU's main loop, which starts
        once the machine exists. The command is refused without negotiation, which is enough, and no events fill the
        socket.
        """
        with contextlib.suppress(OSError):
            await loop().sock_sendall(self._monitor, b'{"execute": "query-status"}\n')
            said = b""
            while data := await loop().sock_recv(self._monitor, 4096):
                said += data
                if b'"error"' in said:
                    return True
        return False

    def send(self, data: bytes) -> None:
        """Send *data* to the UART. Callable from any thread."""
        with self._sending:
            idle = not self._backlog
            if idle:
                data = data[self._send_now(data) :]
            if data and len(self._backlog) < _BACKLOG:
                self._backlog += data
                if idle:
                    on_loop(self._send_later)

    def set_baudrate(self, baudrate: int) -> None:
        """Change the pace of the UART's input, if it needs one."""
        if self._pace is not None:
            self._pace.baudrate = baudrate

    def _send_now(self, data: bytes | bytearray) -> int:
        """Return the number of bytes sent; all if QEMU has ended, as `_listen` reports that."""
        if self._pace is not None:
            if not self._pace.is_due():
                return 0
            data = data[: self._pace.chunk]
        try:
            sent = self._uart.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            return len(data)
        if self._pace is not None:
            self._pace.count(sent)
        return sent

    def _send_later(self) -> None:
        if self._uart.fileno() < 0:
            return
        if self._pace is None:
            loop().add_writer(self._uart, self._flush)
        else:
            loop().call_later(_TICK, self._flush)

    def _flush(self) -> None:
        with self._sending:
            del self._backlog[: self._send_now(self._backlog)]
            if self._pace is None and not self._backlog:
                loop().remove_writer(self._uart)
            elif self._pace is not None and self._backlog:
                loop().call_later(_TICK, self._flush)

    def _readable(self) -> None:
        try:
            data = self._uart.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        loop().remove_reader(self._uart)
        if data:
            self._heed(data)
            # QEMU sends byte by byte: pass on the first one at once, and the next ones together.
            loop().call_later(_GATHER, self._listen)
            self._on_output(data)
            return
        self._ended.set()  # the other side is only closed when QEMU ends
        if not self._stopping:
            self._on_end(self.last_words())

    def _heed(self, data: bytes) -> None:
        """Turn the pace off while the stub flasher runs, whose interrupt handler buffers whole packets."""
        if self._pace is None:
            return
        self._said = (self._said + data)[-_LOOK_BACK:]
        if self._said.endswith(_STUB_GREETING):
            self._pace.is_on = False
        elif _ROM_BANNER in self._said:
            self._pace.is_on = True

    def last_words(self) -> str:
        """Return how QEMU ended, and its last messages."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(0.1)  # its sockets close a moment before it ends
        how = _describe(self._process.poll())
        with contextlib.suppress(OSError):
            lines = self._log.read_text(errors="replace")[-_LAST_WORDS:].splitlines()
            said = [line for line in lines if line.strip() and not any(noise in line for noise in _NOISE)]
            return f"QEMU {how}" + (": " + "; ".join(said) if said else " without a message")
        return f"QEMU {how}"

    def _listen(self) -> None:
        if self._uart.fileno() >= 0:
            loop().add_reader(self._uart, self._readable)

    async def stop(self) -> None:
        """End QEMU; kill it if necessary. Stopping twice has no effect."""
        if self._uart.fileno() < 0:
            return
        self._stopping = True
        self._signal(signal.SIGTERM)
        if not await self._is_gone():
            self._signal(signal.SIGKILL)
            await self._is_gone()
        self._let_go()

    async def _is_gone(self) -> bool:
        """Wait briefly until QEMU and other holders of its UART, such as a script or the guard, have ended."""
        deadline = time.monotonic() + _STOP_TIMEOUT
        while self._process.poll() is None or not self._ended.is_set():
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(0.001)
        return True

    def _signal(self, number: int) -> None:
        """Send a signal to its whole session, as a script may have started it."""
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS raises the latter for ended processes
            os.killpg(self._process.pid, number)

    def _let_go(self) -> None:
        with self._sending:
            self._backlog.clear()
            if self._uart.fileno() >= 0:
                loop().remove_reader(self._uart)
                loop().remove_writer(self._uart)
            self._uart.close()
            self._monitor.close()
            if self._process.stdin is not None:
                self._process.stdin.close()


def _loopback_pair() -> tuple[socket.socket, socket.socket]:
    """Return two connected TCP sockets that no other program can use.

    QEMU's UART writes single bytes and drops what does not fit. The buffer of a Unix socket is full after a few hundred
    writes, as each is stored separately; TCP's grows to megabytes and joins them.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        while True:
            theirs, address = server.accept()
            if address == ours.getsockname():
                break
            theirs.close()  # another program that connected to the port
    for end in (ours, theirs):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return ours, theirs


def _describe(code: int | None) -> str:
    """Return how a process ended. Shells report signals as 128 plus the number."""
    if code is None:
        return "still runs"
    number = -code if code < 0 else code - 128
    with contextlib.suppress(ValueError):
        return f"was killed by {signal.Signals(number).name}"
    return f"was killed by signal {number}" if number > 0 else f"ended ({code})"


def _spawn(command: list[str], ends: tuple[socket.socket, socket.socket], log: Path) -> subprocess.Popen[bytes]:
    uart, monitor = (end.fileno() for end in ends)
    command = [
        *command,
        *("-chardev", f"socket,id=uart,fd={uart}", "-serial", "chardev:uart"),
        *("-chardev", f"socket,id=qmp,fd={monitor}", "-mon", "chardev=qmp,mode=control"),
    ]
    # A file, as a full pipe would stop the guest.
    with log.open("wb") as said:
        if KERNEL_ENDS_CHILDREN:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                pass_fds=(uart, monitor),
                preexec_fn=_DieWithOwner(),  # noqa: PLW1509 - it does not use locks that another thread may hold
                start_new_session=True,  # so that Ctrl-C only reaches the owner
            )
        return spawn_guarded(command, (uart, monitor), said.fileno())


class _DieWithOwner:
    """Runs in the child: lets the kernel kill it when the thread that started it ends (prctl(2))."""

    def __init__(self) -> None:
        self._owner = os.getpid()
        self._prctl = ctypes.CDLL(None).prctl

    def __call__(self) -> None:
        self._prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != self._owner:  # the owner ended before prctl was called
            os._exit(1)
