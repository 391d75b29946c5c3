"""A QEMU machine behind a wire: boot straps, resets and restarts, like a devkit with a reset circuit."""

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
_MEM_END = b"\x00\x06\x08\x00"  # request, command, 8 bytes of data; see esptool's serial protocol documentation
_MEM_END_LENGTH = 2 + 2 * 16  # bytes, at most: a SLIP packet with every byte escaped


class QemuMachine:
    """A machine. QEMU is restarted when the boot strap or the flash changes: they cannot change while it runs.

    The wire stays the same across restarts, so endpoints and ports stay connected.

    Args:
        qemu: the program.
        machine: the machine to run.
        flash, efuse: its images. They may be changed while it is stopped.
        log: the file for QEMU's messages.
        psram: whether the module has PSRAM, if the chip supports it.
        rise_time: see `AutoResetCircuit`.
        on_close: what happens when a host without reset lines disconnects while the ROM's loader runs.
        on_death: called with QEMU's last output if it ends unexpectedly, on any thread.
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
        self._wanted: int | None = None  # the boot strap; None: held in reset, or off
        self._changes = 0
        self._settling: asyncio.Task[None] | None = None
        self._death: str | None = None
        self._baudrate = ROM_BAUDRATE
        self._last_bytes = b""

    @property
    def pid(self) -> int | None:
        """QEMU's process ID; None while it is stopped."""
        process = self._process
        return process.pid if process is not None else None

    @property
    def is_in_loader(self) -> bool:
        """Whether the machine was started into the ROM's loader."""
        return self._wanted == self.machine.strap_download

    # -- for the owner, on any thread except the loop's

    def reset(self, bootloader: bool) -> None:
        """Restart the machine into the ROM's loader or from flash, and wait until it runs.

        Raises:
            BackendError: if it does not start in two attempts; with QEMU's messages.
        """
        with self.wire.lock:
            self._circuit.cancel()
        self._now(self._strap(bootloader))

    def stop(self) -> None:
        """Stop the machine. Its flash and eFuse files are then complete. Stopping twice has no effect."""
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
        """Receive bytes from a host."""
        self._last_bytes = (self._last_bytes + data)[-_MEM_END_LENGTH:]
        process = self._process
        if process is not None:
            process.send(data)

    def set_lines(self, dtr: bool, rts: bool) -> None:
        """Handle a change of the host's control lines."""
        self._circuit.set_lines(dtr, rts)

    def set_baudrate(self, baudrate: int) -> None:
        """Handle a change of the host's baud rate: any works, but some chips need its pace."""
        self._baudrate = baudrate
        process = self._process
        if process is not None:
            process.set_baudrate(baudrate)

    def host_left(self, control_lines: bool) -> None:
        """Apply ``on_close`` after a host without control lines has disconnected.

        If it has just started a program in RAM (``esptool load-ram``), that keeps running.
        """
        ran_a_program = _is_jump(self._last_bytes)
        self._last_bytes = b""
        if not control_lines and self._on_close != "keep" and self.is_in_loader and not ran_a_program:
            self._want_started(self._on_close == "bootloader")

    def restart(self, reason: str) -> None:
        """Restart from flash. QEMU does not support a *reason*."""
        self._want_started(False)

    # -- inside: the loop's thread brings the machine into the wanted state

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
        for _ in range(2):  # try again if QEMU aborts at its start
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
        """Handle the end of a running QEMU; `_start` handles one that is being started."""
        process = self._process
        if process is not None and process.is_up:
            self._die(words)

    def _die(self, words: str) -> None:
        self._death = words
        self._on_death(words)


def _is_jump(sent: bytes) -> bool:
    """Return whether a host's data ends with the command to run a program in RAM.

    A host that uploads the stub flasher sends the same command, but then continues.
    """
    frame = END + sent.removesuffix(END).rpartition(END)[2] + END
    packet = b"".join(Decoder().feed(frame))
    return sent.endswith(END) and len(packet) == 16 and packet.startswith(_MEM_END) and not any(packet[8:12])
