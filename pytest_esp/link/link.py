"""The open link to a board, in one of two modes: console (the app runs) or bootloader (esptool uses the port)."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from pytest_esp.boards.board import Board, DirectFlash
from pytest_esp.boards.port import Port
from pytest_esp.errors import EspError, LinkError, PortError
from pytest_esp.link.burns import BurnGuard
from pytest_esp.link.logs import Transcript
from pytest_esp.link.returning import ReturningPort
from pytest_esp.wire.reset import drive_lines, hard_reset
from pytest_esp.wire.wire import ROM_BAUDRATE, rom_console_baudrate

if TYPE_CHECKING:
    from pytest_esp.link.console import Console
    from pytest_esp.link.session import Session
    from pytest_esp.rack.facts import Facts

_log = logging.getLogger(__name__)

_TAKEOVER = 0.5
"""Seconds in which a USB-OTG port vanishes after a reset into the app; if it does not, it belongs to a UART."""


class Link:
    """The link to *board*. The port is opened at the first use and stays open, in both modes, until `close`.

    Args:
        board: the board; the caller holds its lease.
        burns_enabled: whether eFuses of real boards may be burned (``--esp-allow-burn``).
        holder: who uses the board, for the audit log.
        announce: called with a description of each burn before it happens.
        notice: called with a line for people if another board is on the port than before; the default logs it.

    Attributes:
        burns: the guard below every burn.
        elf: the ELF file of the running app, if known, for decoding crashes.
        app_baudrate: the baud rate of the running app's console, if its build says it; ``console_baud`` in the board's
            entry comes first.
        keeps_loader: whether `close` leaves a chip in its loader; by default it starts the app, see `close`.
        has_met: whether the chip of a real board has been connected, and `board.facts` are its own.
        written_bytes, skipped_bytes: the number of bytes written to flash, and of those already there.
    """

    def __init__(
        self,
        board: Board,
        *,
        burns_enabled: bool = False,
        holder: str = "",
        announce: Callable[[str], object] | None = None,
        notice: Callable[[str], object] = _log.warning,
    ) -> None:
        self.board = board
        self.burns = BurnGuard(board, enabled=burns_enabled, holder=holder, announce=announce)
        self.notice = notice
        self.has_met = False
        self.transcript = Transcript()
        self.elf: Path | None = None
        self.app_baudrate: int | None = None
        self.skipped_bytes = 0
        self.written_bytes = 0
        self._port: Port | None = None
        self._returning: ReturningPort | None = None
        self._session: Session | None = None
        self._console: Console | None = None
        self._own_console_port: Port | None = None
        self._rom_speaks = False  # the ROM's boot log is expected, at the ROM's rate
        self._journal: Path | None = None
        self._echo: Callable[[str], None] | None = None
        self.keeps_loader = False
        self._runs_app = False
        self._in_loader = False
        self._boots = 0
        self._other_connections = 0
        self._lock = threading.RLock()

    @property
    def is_open(self) -> bool:
        """Whether the port is open."""
        return self._port is not None

    @property
    def port(self) -> Port:
        """The open port.

        Raises:
            PortError, BackendError: if it cannot be opened.
        """
        with self._lock:
            if self._port is None:
                self._port = self.board.open()
                self._returning = ReturningPort(self.board, self._port)
                self._other_connections = self.board.chip_changes
                if self.board.virtual:
                    self.note_boot()
                    self._rom_speaks = self._changes_baudrate
                else:
                    self.burns.watch(self._port, self._answering_chip)
            return self._port

    def _answering_chip(self) -> str | None:
        session = self._session
        return session.chip if session is not None and session.is_connected else None

    @property
    def returning(self) -> ReturningPort:
        """What opens the open port again after it vanished."""
        _ = self.port
        assert self._returning is not None
        return self._returning

    @property
    def console_baudrate(self) -> int:
        """The baud rate at which the app's console is read: as the entry says, else the build; 115200 if none does."""
        return self.board.spec.console_baud or self.app_baudrate or ROM_BAUDRATE

    @property
    def _rom_baudrate(self) -> int:
        if not self.board.has_baudrates:
            return ROM_BAUDRATE
        return rom_console_baudrate(self.board.chip, None if self.board.virtual else self.board.spec.crystal)

    @property
    def _changes_baudrate(self) -> bool:
        """Whether the app prints at another baud rate than the ROM."""
        return self.board.has_baudrates and self._rom_baudrate != self.console_baudrate

    @property
    def runs_app(self) -> bool:
        """Whether this link started the app and has not reset the chip or entered the loader since."""
        return self._runs_app

    @property
    def boots(self) -> int:
        """The number of times this link has started the app."""
        return self._boots

    def note_boot(self) -> None:
        """Note that the chip has started its app, for what starts it in another way than `reset`."""
        self._runs_app = True
        self._in_loader = self.keeps_loader = False
        self._boots += 1

    def note_program(self) -> None:
        """Note that the loader has started a program in RAM, which `close` must not reset."""
        self._in_loader = self.keeps_loader = False

    @property
    def session(self) -> Session:
        """esptool's connection; using it resets the chip into its loader."""
        from pytest_esp.link.session import Session

        port = self.port
        if self._session is None:
            real = not self.board.virtual
            self._session = Session(
                port,
                self.board.spec.chip,
                board=self.board.name,
                burns=self.burns,
                reset=lambda: self.board.reset(bootloader=True),
                baudrate=self.board.spec.baud if real else ROM_BAUDRATE,
                usb=real,
                before=self.board.spec.before,
                boot_seconds=self.board.boot_seconds,
                ram_block=self.board.ram_block,
                meet=self._meet,
                before_connect=self._begin_bootloader_mode,
                after_drop=self._begin_console_mode,
                returning=self.returning if real else None,
                transcript=self.transcript,
            )
        others = getattr(port, "other_connections", 0) + self.board.chip_changes
        if others != self._other_connections:
            self._other_connections = others
            self._session.drop()  # another program or a fault used the board: the chip's state is unknown
        return self._session

    def _meet(self, esp: Any) -> None:
        from pytest_esp.link.facts import meet

        assert self._session is not None
        if not self.board.virtual:
            meet(self.board, esp, self._session.chip, self.notice)
            self.has_met = True

    def ask_chip(self) -> Facts:
        """Return what the chip reports about itself, for which the chip is connected; see `rack.facts`.

        Raises:
            LinkError, PortError, WrongChipError: see `Session.use`.
        """
        from pytest_esp.link.facts import ask

        with self.session.use("asking the chip", stub=False) as esp:
            if self.board.virtual or self.board.facts is None:
                self.board.facts = ask(esp, self.session.chip)
            return self.board.facts

    @property
    def console(self) -> Console:
        """The app's output. It grows in console mode only."""
        from pytest_esp.link.console import Console

        port = self.port
        is_new = self._console is None
        if self._console is None:
            if self._own_console_port is None:
                self._own_console_port = self.board.open_console()
                if self._own_console_port is not None:  # a chip's loader may answer at both
                    self.burns.watch(self._own_console_port, self._answering_chip, "console_port")
            own = self._own_console_port
            self._console = Console(
                own or port,
                board=self.board.name,
                journal=self._journal,
                echo=self._echo,
                elf=self.elf,
                recover=None if self.board.virtual or own else self.returning.recover,
                baudrate=self._console_baudrate_now,
            )
        if self._own_console_port is not None:
            self._console.attach()
        elif self._session is None or not self._session.is_connected:
            try:
                self.returning.ensure_open()
            except PortError:
                if is_new:
                    raise
                return self._console  # what was read; waiting and writing raise the error
            self._console.attach()
        if self._rom_speaks:
            self._hear_rom(self._console)
        return self._console

    @property
    def _console_baudrate_now(self) -> int | None:
        if not self.board.has_baudrates:
            return None
        return self._rom_baudrate if self._rom_speaks else self.console_baudrate

    def _begin_bootloader_mode(self) -> None:
        self._runs_app = self._rom_speaks = False
        self._in_loader = True
        console = self.console
        if self._own_console_port is None:
            console.detach()

    def _begin_console_mode(self) -> None:
        if self._console is not None and self._port is not None and self._port.is_open:
            self._console.attach()

    def begin_boot(self) -> None:
        """Prepare the console for a boot that the caller causes now: it reads at the ROM's baud rate.

        Call `hear_boot` when the app was started.
        """
        self._rom_speaks = self._changes_baudrate
        if self._console is not None:
            self._console.expect_reset()
            if (baudrate := self._console_baudrate_now) is not None:
                self._console.set_baudrate(baudrate)

    def hear_boot(self) -> None:
        """Note that the chip has started its app. The console goes on at the app's baud rate after the ROM's log."""
        self.note_boot()
        if self._rom_speaks or self._console is not None:
            self._hear_rom(self.console)

    def _hear_rom(self, console: Console) -> None:
        if self._rom_speaks:
            self._rom_speaks = False
            console.hear_rom()
        if self.board.has_baudrates:
            console.set_baudrate(self.console_baudrate)

    def reset(self, bootloader: bool) -> None:
        """Reset the chip into its loader or its app.

        The console continues: bytes that were not read yet come before the boot log.

        Raises:
            LinkError: if the chip does not respond.
        """
        port = self.port
        if bootloader:
            self.session.drop()
            with self.session.use("reset into the loader", stub=False):
                return
        if self._session is not None:
            self._session.drop()
        self.begin_boot()
        self._open_again(port)
        if self._console is None or self._own_console_port is not None:
            port.baudrate = self._rom_baudrate
        if not self.board.reset(bootloader=False):
            self._hard_reset(port)
        self.hear_boot()

    def _hard_reset(self, port: Port) -> None:
        try:
            hard_reset(port, self._console.expect_reset if self._console is not None else lambda: None)
        except OSError as error:
            raise LinkError(
                f"cannot set DTR and RTS: {error}",
                board=self.board.name,
                attempted="hard reset",
                hint="a pty has no such lines: use the board's rfc2217:// port, or a watchdog reset",
            ) from error

    def boot(self) -> Console:
        """Reset the chip into its app, and return a console that begins with this boot.

        Earlier output is removed, also from the console's log.

        Raises:
            PortError, BackendError: if the port cannot be opened.
            LinkError: if the chip was not reset; see `link.boot.start_app`.
        """
        from pytest_esp.link.boot import start_app

        self._close_console()
        if self._port is None and self.board.virtual:
            return self.console  # opening the board has started it
        if self._session is not None:
            self._session.drop()
        self._open_again(self.port)
        for port in (self.port, self._own_console_port):
            if port is not None and port.is_open:
                port.reset_input_buffer()
        start_app(self)
        return self.console

    def direct_flash(self) -> AbstractContextManager[DirectFlash] | None:
        """Return direct access to the board's flash if its backend has that; see `Board.direct_flash`.

        A link in bootloader mode loses its connection: the next use of `session` restarts the chip.

        Raises:
            BackendError: if one of the board's files cannot be used.
        """
        flash = self.board.direct_flash()
        if flash is not None:
            self._runs_app = False
            if self._session is not None:
                self._session.drop()
        return flash

    def begin_log(self, journal: Path | None = None, echo: Callable[[str], None] | None = None) -> None:
        """Start a new transcript and console log, for another test on the same open board.

        Earlier output is dropped; a connection to the loader is kept. A port that was lost (such as that of an emulator
        that ended) is closed, and the next use opens it again.

        Args:
            journal, echo: for the new console (see `Console`).
        """
        self.transcript.clear()
        self._journal, self._echo = journal, echo
        self._close_console()
        if self._port is None:
            return
        try:
            self._open_again(self._port)
        except PortError:
            return self.close()
        if _has_vanished(self._port) or (self._own_console_port and _has_vanished(self._own_console_port)):
            self.close()
        elif not (self._session and self._session.is_connected):
            self._port.reset_input_buffer()

    @property
    def console_log(self) -> Path | None:
        """The path of the console's log since `begin_log`; None if the console was not used."""
        return self._console.log_path if self._console is not None else None

    def _close_console(self) -> None:
        console, self._console = self._console, None
        if console is not None:
            console.close()

    def power_cycle(self) -> None:
        """Switch the board's power off and on.

        Raises:
            BackendError: if its power cannot be switched.
        """
        if self._port is not None and not self.board.virtual:
            with contextlib.suppress(OSError):  # the port of a board that needs this may be lost
                drive_lines(self._port, dtr=False, rts=False)  # else the chip may stay in reset, or start its loader
        if self._session is not None:
            self._session.drop()
        self.begin_boot()
        self.board.power_cycle()
        self.hear_boot()

    def close(self) -> None:
        """Close the port and stop a virtual board. Closing twice has no effect.

        A real board that this link has left in its loader starts its app again, by a reset as ``after`` in its entry
        says, like esptool after a command; not if `keeps_loader` is set.
        """
        with self._lock:
            try:
                if self._port is not None and self._in_loader and not (self.keeps_loader or self.board.virtual):
                    self._start_app_again(self._port)
            finally:
                self._session = None
                self._runs_app = self._in_loader = self.keeps_loader = False
                self._rom_speaks = False
                self._close_console()
                if self._port is not None:
                    self._port = self._own_console_port = None
                    self.board.close()

    def _start_app_again(self, port: Port) -> None:
        from pytest_esp.link.boot import reset_by_watchdog

        after = self.board.spec.after
        if after == "watchdog-reset":
            with contextlib.suppress(EspError, OSError):  # then by EN
                if self.session.is_stub:
                    self.session.drop()
                with self.session.use("reset by the watchdog", stub=False) as esp:
                    return reset_by_watchdog(esp, download=False)
        if after != "no-reset":
            with contextlib.suppress(EspError, OSError):  # the port may be lost; what was done to the board is done
                self._open_again(port)
                if not self.board.reset(bootloader=False):
                    self._hard_reset(port)
                    self._await_app(port)

    def _open_again(self, port: Port) -> None:
        """Open the port of a real board again if it vanished while nobody read it."""
        if self.board.virtual:
            return
        if not port.is_open:
            self.returning.ensure_open()
        elif _has_vanished(port):
            self.returning.recover("it was disconnected")

    def _await_app(self, port: Port) -> None:
        """Wait until the app has taken over a USB-OTG port, so that the next user finds it."""
        if self._session is None or not self._session.may_use_otg:
            return
        deadline = time.monotonic() + _TAKEOVER
        while time.monotonic() < deadline:
            if _has_vanished(port):
                return self.returning.recover("the app has taken it over")
            time.sleep(0.02)

    def __enter__(self) -> Link:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _has_vanished(port: Port) -> bool:
    try:
        return port.in_waiting < 0
    except OSError:
        return True
