"""A persistent esptool connection: connected once, stub loaded once, flash attached once."""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Callable, Generator
from typing import Any, cast

import serial
from esptool import cmds
from esptool.loader import DEFAULT_TIMEOUT, ESPLoader
from esptool.targets import CHIP_DEFS
from esptool.util import FatalError, NotImplementedInROMError, NotSupportedError, UnsupportedCommandError

from pytest_esp.boards.port import Port
from pytest_esp.errors import EspError, LinkError, OperationError, PortError, StoppedError, WrongChipError
from pytest_esp.formats.stubs import stub_entries
from pytest_esp.link.burns import BurnGuard
from pytest_esp.link.esptool_private import bind, finish_connecting, replace_burn_hooks
from pytest_esp.link.fast import FastLoader, fast_class
from pytest_esp.link.logs import Progress, Transcript, capture
from pytest_esp.link.returning import ReturningPort
from pytest_esp.wire.reset import drive_lines
from pytest_esp.wire.wire import ROM_BAUDRATE


class Session:
    """esptool's connection to one chip.

    Args:
        port: the open port.
        chip: the expected chip (a name from ``esptool.CHIP_LIST``); None accepts any.
        board: the board's name, for messages.
        burns: decides which eFuses may be burned.
        reset: resets the chip into its loader and returns True, or returns False if RTS and DTR must be used.
        baudrate: the baud rate for operations on real ports; the connection is made at 115200.
        usb: whether the port may be a USB device, whose IDs determine esptool's reset sequence.
        before: how RTS and DTR bring the chip into its loader; esptool's words for ``--before``.
        boot_seconds: how long the loader may take to respond after a *reset* that returned True.
        ram_block: the block size, in bytes, for uploading the stub; None for esptool's default.
        meet: called with esptool's loader object at the beginning of a connection; refuses a wrong board.
        before_connect: called before the session uses the port, to stop the console.
        after_drop: called when the connection to the loader has ended.
        returning: opens the port of a real board again after it vanished; None for others.
        transcript: receives esptool's output.
    """

    def __init__(
        self,
        port: Port,
        chip: str | None,
        *,
        board: str,
        burns: BurnGuard,
        reset: Callable[[], bool],
        baudrate: int = ROM_BAUDRATE,
        usb: bool = True,
        before: str = "default-reset",
        boot_seconds: float = 0.0,
        ram_block: int | None = None,
        meet: Callable[[Any], object] = lambda esp: None,
        before_connect: Callable[[], object] = lambda: None,
        after_drop: Callable[[], object] = lambda: None,
        returning: ReturningPort | None = None,
        transcript: Transcript | None = None,
    ) -> None:
        self.port = port
        self.expected_chip = None if chip == "auto" else chip  # "auto": a board given by its port only
        self.chip = chip or ""
        self.board = board
        self._burns = burns
        self.transcript = transcript or Transcript()
        self.connect_attempts = 7 if usb else 2
        self._reset = reset
        self._meet = meet
        self._before_connect = before_connect
        self._after_drop = after_drop
        self._returning = returning
        self.may_use_otg = False
        self._baudrate = baudrate
        self._usb = usb
        self._before = before
        self._boot_seconds = boot_seconds
        self._ram_block = ram_block
        self._esp: FastLoader | None = None
        self._attached = False
        self._entered_by_reset = False
        self._espefuse: Any = None

    @property
    def is_connected(self) -> bool:
        """Whether the next use can reuse the connection."""
        return self._esp is not None

    @property
    def is_stub(self) -> bool:
        """Whether the stub flasher is running."""
        return self._esp is not None and self._esp.IS_STUB

    def drop(self) -> None:
        """Drop the connection, after a reset or in an unknown state: the next use connects again."""
        self._esp = None
        self._attached = False
        self._espefuse = None
        self._after_drop()

    def reconnect(self) -> FastLoader:
        """Connect again over the open port, inside a `use`: for code that would otherwise close and open the port.

        Raises:
            FatalError, SerialException: from esptool and pyserial; `use` translates them.
        """
        self.drop()
        return self._connect()

    @contextlib.contextmanager
    def use(
        self, attempted: str, *, stub: bool = True, flash: bool = False, progress: Progress | None = None
    ) -> Generator[Any]:
        """Yield esptool's loader object (``esptool.loader.ESPLoader``), connected.

        Args:
            attempted: the operation, for messages.
            stub: whether to load the stub flasher first, if the chip allows it; False uses whatever is running.
            flash: whether to attach the flash first.
            progress: see `logs.Progress`.

        Raises:
            LinkError: if the chip does not answer.
            PortError: if the port fails.
            WrongChipError: if it is another chip.
            OperationError: if esptool or the chip refuses.
            After any of them, the next use connects again.
        """
        with capture(self.transcript, progress), self._translated(attempted):
            esp = self._esp or self._connect()
            if stub and not esp.IS_STUB:
                esp = self._run_stub(esp)
            if flash and not self._attached:
                cmds.attach_flash(esp)
                self._attached = True
            yield esp

    def espefuse(self, esp: Any) -> Any:
        """Return espefuse's commands, which read over *esp* and burn through the ROM only.

        They are created once (espefuse parses YAML for 0.1 s); see `forget_efuses`. A burn needs a permit, which
        `BurnGuard.permitted` opens. It resets the chip into its ROM if the stub was running: after that *esp* is
        invalid, and the commands' ``esp`` is the connection.
        """
        if self._espefuse is None:
            from espefuse.efuse_interface import init_commands

            self._espefuse = init_commands(esp=esp, do_not_confirm=True)
            self._burn_by_rom(self._espefuse)
        bind(self._espefuse, esp)
        return self._espefuse

    def _burn_by_rom(self, commands: Any) -> None:
        """Let *commands* burn through the ROM, as espefuse does: its timing is wrong once the stub has run."""

        def set_up_in_rom(set_up: Callable[[], None]) -> None:  # before espefuse writes the registers to burn
            bind(commands, self._fresh_rom())
            self._espefuse = commands
            set_up()
            blocks = commands.efuses.blocks
            for register in {block.wr_addr + 4 * word for block in blocks for word in range(block.len)}:
                commands.efuses.write_reg(register, 0)  # an ESP32 burns all its blocks, also what others left there

        def reconnect(_esp: object) -> FastLoader:  # after a burn of security eFuses; espefuse would close the port
            return self.reconnect()

        def permitted(burn: Callable[[], bool]) -> bool:
            return self._burns.permitted(commands, burn)

        replace_burn_hooks(commands, permitted=permitted, set_up=set_up_in_rom, reconnect=reconnect)

    def _fresh_rom(self) -> FastLoader:
        """Return the ROM loader at its default baud rate, with nothing run since a reset by this session."""
        esp = self._esp
        if esp is None or esp.IS_STUB or not self._entered_by_reset or self.port.baudrate != ROM_BAUDRATE:
            if self.is_stub:
                self._baudrate = self.port.baudrate  # for the next stub
            esp = self.reconnect()
        if esp.sync_stub_detected:
            raise LinkError(
                "the stub flasher is still running after a reset, but eFuses must be burned by the ROM",
                hint="enter download mode manually (hold BOOT, press RESET); nothing was burned",
            )
        return esp

    def forget_efuses(self) -> None:
        """Read the eFuses again at their next use, after a burn."""
        self._espefuse = None

    def change_baudrate(self, baudrate: int) -> None:
        """Change the baud rate.

        Raises:
            LinkError: if the chip does not answer at that rate.
        """
        with self.use(f"changing the baud rate to {baudrate}") as esp:
            self._change_baudrate(esp, baudrate)
            self._baudrate = baudrate

    # -- connecting

    def connect_by(
        self, attempted: str, enter: Callable[[Any], object], *, hello: int = ROM_BAUDRATE, baudrate: int
    ) -> None:
        """Connect again, with *enter* instead of the usual ways to enter the loader.

        Args:
            attempted: see `use`.
            enter: called with esptool's loader object; brings the chip into its loader and synchronizes with it.
            hello: the baud rate for that.
            baudrate: the baud rate for operations, once the stub is running.

        Raises:
            LinkError, PortError, WrongChipError, OperationError: see `use`.
        """
        self.drop()
        with capture(self.transcript), self._translated(attempted):
            self._connect(enter, hello)
        self._baudrate = baudrate

    def _connect(self, enter: Callable[[Any], object] | None = None, hello: int = ROM_BAUDRATE) -> Any:
        if self._returning is not None:
            self._returning.ensure_open()
        elif not self.port.is_open:
            self.port.open()
        self._before_connect()
        self.port.baudrate = hello
        base = CHIP_DEFS[self.expected_chip] if self.expected_chip else ESPLoader
        esp: Any = fast_class(base, usb=self._usb)(cast(Any, self.port), hello)
        esp.USES_RFC2217 = str(getattr(self.port, "name", "")).startswith("rfc2217:")
        if enter is not None or self._returning is None:
            (enter or self._sync)(esp)
        else:
            self._enter_loader(esp, self._returning)
        found = _identify(esp)
        if self.expected_chip and found != self.expected_chip:
            raise WrongChipError(
                f"this is an {_name(found)}, not an {_name(self.expected_chip)}",
                board=self.board,
                hint="check which board is plugged into this port, or correct `chip` in boards.toml",
            )
        if not self.expected_chip:
            synced_with_stub = esp.sync_stub_detected
            esp = fast_class(CHIP_DEFS[found], usb=self._usb)(cast(Any, self.port), hello)
            esp.sync_stub_detected = synced_with_stub
        self.chip = found
        self.may_use_otg = esp.USB_OTG_SUPPORTED and (esp.get_usb_vid_pid() == (None, None) or esp.uses_usb_otg())
        self._entered_by_reset = enter is None
        esp.secure_download_mode = _secure_download(esp)
        if not esp.secure_download_mode:
            finish_connecting(esp)
        if self._ram_block is not None:
            esp.ESP_RAM_BLOCK = self._ram_block
        self._meet(esp)
        self._esp = esp
        return esp

    def _sync(self, esp: FastLoader) -> None:
        """Reset the chip into its loader and synchronize. Boards with `reset` need neither control lines nor delays."""
        for attempt in range(self.connect_attempts):
            if not self._reset():
                esp.connect(self._before, attempts=self.connect_attempts, detecting=True, warnings=False)
                return
            try:
                return self._sync_within(esp, self._boot_seconds)
            except FatalError:
                if attempt + 1 == self.connect_attempts:
                    raise

    def _enter_loader(self, esp: FastLoader, returning: ReturningPort) -> None:
        """Do `_sync`, over a port that may vanish at the reset and return as the loader's."""
        for _ in range(_RETURNS):
            try:
                return self._sync(esp)
            except OSError as error:
                returning.recover(str(error))
            with contextlib.suppress(FatalError, OSError):
                drive_lines(self.port, dtr=False, rts=False)
            with contextlib.suppress(FatalError, OSError):
                return self._sync_within(esp, _LOADER_START)
        self._sync(esp)

    def follow_port(self) -> None:
        """Open the port again if it vanished at a reset by a command of this session.

        Raises:
            PortError: if it does not return.
        """
        try:
            _ = self.port.in_waiting
        except OSError as error:
            if self._returning is None:
                raise
            self._returning.recover(str(error))

    @staticmethod
    def _sync_within(esp: FastLoader, seconds: float) -> None:
        """Send SYNC, at least once, until the loader answers."""
        deadline = time.monotonic() + seconds
        while True:
            esp.flush_input()
            try:
                return esp.sync()
            except FatalError:
                if time.monotonic() >= deadline:
                    raise

    def _run_stub(self, esp: FastLoader) -> FastLoader:
        if esp.secure_download_mode or esp.stub_is_disabled or not _has_stub(esp):
            return esp
        stub = self._started_stub(esp)
        if not stub.IS_STUB:  # esptool skips it on chips that refuse one, such as an ESP32-C3 with secure boot
            esp.stub_is_disabled = True
            return esp
        self._esp = stub
        if self._baudrate != self.port.baudrate:
            self._change_baudrate(stub, self._baudrate)
        return stub

    def _started_stub(self, esp: FastLoader) -> FastLoader:
        # esptool waits for the stub's greeting with the port's timeout, which may be None.
        wait = min(max(DEFAULT_TIMEOUT, self._boot_seconds), FastLoader.longest_wait)
        saved, self.port.timeout = self.port.timeout, wait
        try:
            return cast(FastLoader, cmds.run_stub(esp))
        finally:
            self.port.timeout = saved

    def _change_baudrate(self, esp: Any, baudrate: int) -> None:
        esp.change_baud(baudrate)
        esp.flash_id(cache=False)  # verify the new rate: only a response proves it

    # -- errors

    @contextlib.contextmanager
    def _translated(self, attempted: str) -> Generator[None]:
        """Translate exceptions of esptool and pyserial into pytest-esp's errors."""
        try:
            yield
        except EspError as error:
            error.attempted = error.attempted or attempted
            error.board = error.board or self.board
            if isinstance(error, (LinkError, PortError, StoppedError)):
                self.drop()
            raise
        except (NotImplementedInROMError, NotSupportedError, UnsupportedCommandError) as error:
            raise OperationError(
                f"not supported by this chip: {error}", attempted=attempted, board=self.board, hint=_CANNOT
            ) from error
        except OSError as error:
            if not isinstance(error, serial.SerialException) and error.errno not in _LOSSES:
                self.drop()
                raise
            if self._returning is not None:
                self._returning.note_loss(str(error))
                with contextlib.suppress(OSError):
                    self.port.close()  # before `drop`, after which the console reads it
            self.drop()
            with contextlib.suppress(OSError):  # a port that vanished and returned must be opened again
                self.port.close()
            raise PortError(
                f"the port failed: {error}",
                attempted=attempted,
                board=self.board,
                hint="check that the board is plugged in and has power; data being written may be incomplete",
            ) from error
        except FatalError as error:
            self.drop()
            raise _translate(str(error), attempted, self.board) from error
        except BaseException:
            self.drop()  # Ctrl-C, or a callback's exception: the chip's state is unknown
            raise


_RETURNS = 3  # how often a port may vanish while the loader is entered
_LOADER_START = 0.5  # seconds until the loader answers on a port that has returned
_LOSSES = (errno.EIO, errno.ENXIO, errno.ENODEV, errno.EBADF)
"""What system calls report for a device that is gone; pyserial passes some of them on as they are."""
_CANNOT = "the ROM loader supports fewer commands than the stub flasher, and even fewer in secure download mode"
_LINK_MARKS = (
    "does not answer",
    "No serial data",
    "Failed to connect",
    "bytes were lost",
    "stub flasher",
    "other commands",
)


def _translate(message: str, attempted: str, board: str) -> EspError:
    text = message.split("\nFor troubleshooting", maxsplit=1)[0].strip()
    if any(mark in text for mark in _LINK_MARKS):
        return LinkError(
            text,
            attempted=attempted,
            board=board,
            hint="check the board's power and boot pins; the next operation resets it and tries again",
        )
    return OperationError(text, attempted=attempted, board=board)


def _identify(esp: FastLoader) -> str:
    """Return the connected chip, from its security info or its magic register (see ``cmds.detect_chip``)."""
    if esp.SECURITY_INFO_SUPPORTED or type(esp).CHIP_NAME == ESPLoader.CHIP_NAME:
        try:
            chip_id = esp.get_security_info(cache=False)["chip_id"]
        except FatalError:
            chip_id = None
        for name, rom in CHIP_DEFS.items():
            if chip_id is not None and not rom.USES_MAGIC_VALUE and chip_id == rom.IMAGE_CHIP_ID:
                return name
    return _identify_by_magic(esp)


def _identify_by_magic(esp: FastLoader) -> str:
    try:
        magic = esp.read_reg(ESPLoader.CHIP_DETECT_MAGIC_REG_ADDR)
    except UnsupportedCommandError:
        return "esp32s2"  # the only chip with a secure download mode but without a chip ID
    for name, rom in CHIP_DEFS.items():
        if rom.USES_MAGIC_VALUE and magic == rom.MAGIC_VALUE:
            return name
    # It responds, but the magic value is unknown: a newer chip than this esptool supports.
    chip_id = esp.get_security_info(cache=False)["chip_id"]
    for name, rom in CHIP_DEFS.items():
        if chip_id == rom.IMAGE_CHIP_ID:
            return name
    raise FatalError(f"the chip (magic {magic:#010x}, id {chip_id}) is not supported by this version of esptool")


def _secure_download(esp: Any) -> bool:
    if not esp.SECURITY_INFO_SUPPORTED:
        return False
    return bool(esp.get_security_info()["parsed_flags"]["SECURE_DOWNLOAD_ENABLE"])


def _has_stub(esp: FastLoader) -> bool:
    return esp.STUB_CLASS is not None and _stub_file(type(esp))


def _stub_file(loader: type[FastLoader]) -> bool:
    return bool(stub_entries(loader.CHIP_NAME))


def _name(chip: str) -> str:
    return CHIP_DEFS[chip].CHIP_NAME
