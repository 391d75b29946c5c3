"""A QEMU machine behind a wire: straps, resets and restarts, as a devkit's reset circuit makes them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pytest_esp.errors import BackendError
from pytest_esp.qemu.process import QemuProcess, command_line
from pytest_esp.wire.framing import END, Decoder
from pytest_esp.wire.loop import loop, on_loop, run
from pytest_esp.wire.reset import AutoResetCircuit
from pytest_esp.wire.wire import ROM_BAUDRATE, Wire

if TYPE_CHECKING:
    from pytest_esp.qemu.find import Qemu
    from pytest_esp.qemu.machines import Machine

OnClose = Literal["bootloader", "app", "keep"]

_OPERATION_TIMEOUT = 30.0
_MEM_END = b"\x00\x06\x08\x00"  # a request, the command, 8 bytes of data; esptool's documentation of the protocol
_MEM_END_LENGTH = 2 + 2 * 16  # bytes at most: a SLIP packet in which every byte is escaped


class QemuMachine:
    """A machine that is restarted whenever its boot strap or its flash changes: neither can change while it runs.

    Its wire outlives every restart, so endpoints and ports stay what they are.

    Args:
        qemu: the program; machine: what it shall be.
        flash, efuse: the images that it runs on, its own. They may be changed while it is stopped.
        log: takes what QEMU itself says.
        psram: whether the module has one, where the chip can.
        rise_time: see `AutoResetCircuit`.
        on_close: what a host without reset lines leaves behind when it leaves the ROM's loader.
        on_death: called with QEMU's last words if it ends by itself, from any thread.
    """

    def __init__(
        self,
        qemu: Qemu,
        machine: Machine,
        *,
        flash: Path,
        efuse: Path,
        log: Path,
        psram: bool = False,
        rise_time: float = 0.0,
        on_close: OnClose = "bootloader",
        on_death: Callable[[str], None] = lambda words: None,
    ) -> None:
        self.wire = Wire()
        self.wire.device = self
        self.machine = machine
        self._qemu = qemu
        self._files = (flash, efuse)
        self._log = log
        self._psram = psram
        self._on_close = on_close
        self._on_death = on_death
        self._circuit = AutoResetCircuit(
            on_hold=lambda: self._want(None),
            on_reset=self._want_started,
            rise_time=rise_time,
            lock=self.wire.lock,
        )
        self._process: QemuProcess | None = None
        self._wanted: int | None = None  # the strap; None: held in reset, or off
        self._changes = 0
        self._settling: asyncio.Task[None] | None = None
        self._death: str | None = None
        self._baudrate = ROM_BAUDRATE
        self._last_bytes = b""

    @property
    def pid(self) -> int | None:
        """The process id of the running QEMU."""
        process = self._process
        return process.pid if process is not None else None

    @property
    def is_in_loader(self) -> bool:
        """Whether it was started into the ROM's loader."""
        return self._wanted == self.machine.strap_download

    # -- for its owner, on any thread but the loop's

    def reset(self, bootloader: bool) -> None:
        """Start it anew, into the ROM's loader or what its flash holds, and wait until it runs.

        Raises:
            BackendError: if it does not start, also not at a second attempt; says what QEMU said.
        """
        with self.wire.lock:
            self._circuit.cancel()
        self._now(self._strap(bootloader))

    def stop(self) -> None:
        """Stop it: its flash and eFuse files are whole and nobody else's. Stopping twice is harmless."""
        with self.wire.lock:
            self._circuit.cancel()
        self._now(None)

    def _now(self, strap: int | None) -> None:
        async def settle() -> None:
            self._set_wanted(strap)
            while self._settling is not None and not self._settling.done():
                await asyncio.wait((self._settling,))

        try:
            run(settle(), _OPERATION_TIMEOUT)
        except TimeoutError:
            raise BackendError("QEMU did not respond to a command", hint=f"its log: {self._log}") from None
        if strap is not None and self._death is not None:
            raise BackendError(self._death, hint=f"its log: {self._log}")

    # -- the wire (`wire.Device`)

    def receive(self, data: bytes) -> None:
        """Take bytes from a host."""
        self._last_bytes = (self._last_bytes + data)[-_MEM_END_LENGTH:]
        process = self._process
        if process is not None:
            process.send(data)

    def set_lines(self, dtr: bool, rts: bool) -> None:
        """Take the host's control lines."""
        self._circuit.set_lines(dtr, rts)

    def set_baudrate(self, baudrate: int) -> None:
        """Take the host's baud rate: the emulated UART takes every one, but some need its pace."""
        self._baudrate = baudrate
        process = self._process
        if process is not None:
            process.set_baudrate(baudrate)

    def host_left(self, control_lines: bool) -> None:
        """Do what ``on_close`` says after a host that had no lines to reset the chip with.

        Not if the last thing it did was to start a program in RAM (``esptool load-ram``): that is to run.
        """
        ran_a_program = _is_jump(self._last_bytes)
        self._last_bytes = b""
        if not control_lines and self._on_close != "keep" and self.is_in_loader and not ran_a_program:
            self._want_started(self._on_close == "bootloader")

    def restart(self, reason: str) -> None:
        """Start what flash holds anew; the machine itself knows of no *reason*."""
        self._want_started(False)

    # -- inside: the loop's thread makes the machine what is wanted

    def _strap(self, bootloader: bool) -> int:
        return self.machine.strap_download if bootloader else self.machine.strap_flash

    def _want_started(self, bootloader: bool) -> None:
        self._want(self._strap(bootloader))

    def _want(self, strap: int | None) -> None:
        on_loop(self._set_wanted, strap)

    def _set_wanted(self, strap: int | None) -> None:
        self._wanted = strap
        self._changes += 1
        if self._settling is None or self._settling.done():
            self._settling = loop().create_task(self._settle())

    async def _settle(self) -> None:
        settled = None
        while settled != self._changes:
            settled, strap = self._changes, self._wanted
            process, self._process = self._process, None
            if process is not None:
                await process.stop()
            self._death = None
            if strap is not None and settled == self._changes:
                await self._start(strap)

    async def _start(self, strap: int) -> None:
        words = ""
        for _ in range(2):  # a machine that aborts at its start is given a second chance
            try:
                process = QemuProcess(
                    self._command(strap),
                    self._log,
                    self._transmit,
                    self._ended,
                    baudrate=self._baudrate if self.machine.needs_pace else None,
                )
            except BackendError as error:
                words = error.message
                continue
            self._process = process
            if await process.wait_until_up():
                return
            words = process.last_words()
            self._process = None
            await process.stop()
        self._die(words)

    def _command(self, strap: int) -> list[str]:
        flash, efuse = self._files
        return command_line(self._qemu, self.machine, flash, efuse, strap=strap, psram=self._psram)

    def _transmit(self, data: bytes) -> None:
        self.wire.transmit(data)

    def _ended(self, words: str) -> None:
        """Take the end of a machine that was up; one that is being started is looked after by `_start`."""
        process = self._process
        if process is not None and process.is_up:
            self._die(words)

    def _die(self, words: str) -> None:
        self._death = words
        self._on_death(words)


def _is_jump(sent: bytes) -> bool:
    """Whether what a host sent ends with the command to leave the loader for a program in RAM.

    A host that uploads its stub flasher sends the same, and then goes on.
    """
    frame = END + sent.removesuffix(END).rpartition(END)[2] + END
    packet = b"".join(Decoder().feed(frame))
    return sent.endswith(END) and len(packet) == 16 and packet.startswith(_MEM_END) and not any(packet[8:12])
