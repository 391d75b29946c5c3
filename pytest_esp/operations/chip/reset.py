"""Resets into the app or the loader (by EN, the loader or the watchdog), checked by what the chip does afterwards."""

from __future__ import annotations

import contextlib
import re
import struct
import time
import typing
from dataclasses import dataclass
from typing import Any, Literal

from esptool.util import FatalError

from pytest_esp.errors import LinkError, OperationError
from pytest_esp.link.boot import BOOT_TIMEOUT, expect_boot, reset_by_watchdog, start_app
from pytest_esp.link.console import ConsoleError
from pytest_esp.link.esptool_private import port_of
from pytest_esp.link.link import Link
from pytest_esp.operations.registry import Effect, operation
from pytest_esp.wire.framing import Decoder
from pytest_esp.wire.wire import ROM_BAUDRATE

_ANSWER_TIMEOUT = 0.2  # seconds for the last answer; code that reconfigures the UART can cut it off
_FRAME_END = 0xC0  # of SLIP
_LINE_TIMEOUT = 0.2  # seconds for the rest of a line of the banner
_RESET_REASON = re.compile(r"rst:0x[0-9a-f]+ \(([A-Z0-9_]+)\)")
_RESET_REASON_LINE = re.compile(rb"rst:0x[0-9a-f]+ \([A-Z0-9_]+\).*\n|rst cause:\d+.*\n")
# What a chip prints first: the ROM's banner, of any generation.
_ROM_BANNER = re.compile(rb"ESP-ROM:|ets [A-Z][a-z]{2} [ 0-9]\d \d{4}|rst:0x|rst cause")

ResetMode = Literal["hard-reset", "soft-reset", "watchdog-reset"]
"""By EN (or a virtual board's own reset), by the loader, by the RTC watchdog; the words are esptool's."""


@dataclass(frozen=True)
class ResetResult:
    """What the chip did after a reset.

    Attributes:
        mode: what runs now.
        reset_mode: how it was reset.
        reason: the reset reason printed by the ROM, e.g. ``"POWERON"``; None if it was not seen.
        seconds: from the reset until this was confirmed.
        output: console output (after a reset to the app only), without ANSI sequences.
    """

    mode: Literal["app", "bootloader"]
    reset_mode: ResetMode
    reason: str | None
    seconds: float
    output: str


@operation(Effect.READ, group="chip")
def reset(
    link: Link,
    to: Literal["app", "bootloader"] = "app",
    reset_mode: ResetMode = "hard-reset",
    wait_seconds: float = BOOT_TIMEOUT,
) -> ResetResult:
    """Reset the chip into its app or its bootloader, and check that it got there.

    The bootloader is confirmed by an answer to SYNC, the app by the ROM's banner on the console. The reset reason in
    the banner must match: power-on or reset pin after a hard reset, watchdog after a watchdog reset.

    Args:
        to: what to start: app or bootloader.
        reset_mode: how to reset. A soft reset keeps the latched boot strap, so that only an ESP8266 starts its app.
            Some chips have no watchdog reset.
        wait_seconds: seconds to wait for the app's boot banner.

    Raises:
        LinkError: if the chip does not get there.
        OperationError: if *to* or *reset_mode* is invalid, or this chip cannot be reset that way.
    """
    if to not in ("app", "bootloader"):
        raise OperationError(f"invalid reset target {to!r}", hint="use 'app' or 'bootloader'")
    if reset_mode not in typing.get_args(ResetMode):
        words = "', '".join(typing.get_args(ResetMode))
        raise OperationError(f"invalid reset mode {reset_mode!r}", hint=f"use one of '{words}'")
    begun = time.monotonic()
    if to == "bootloader":
        reason = _into_loader(link, reset_mode)
        link.keeps_loader = True
        return ResetResult("bootloader", reset_mode, reason, time.monotonic() - begun, "")
    if reset_mode == "hard-reset":
        boot = start_app(link, wait_seconds)
        if boot is None:
            raise _no_banner()
        return ResetResult("app", reset_mode, boot.reason, boot.seconds, link.console.text_since(boot.mark))
    console = link.console
    console.skip()  # the banner of an earlier boot proves nothing
    mark = console.mark()
    returns = link.returning.returns
    _restart(link, reset_mode)
    output = _boot_log(link, mark, wait_seconds, returns)
    console.rewind(mark)  # a test may expect any part of it
    reason = reset_reason(output)
    if reason is None and link.returning.returns > returns:  # the chip's own USB, which has missed most of the banner
        return ResetResult("app", reset_mode, None, time.monotonic() - begun, output)
    if reset_mode == "watchdog-reset" and "WDT" not in (reason or ""):
        raise LinkError(
            f"the app started, but not by the watchdog: the ROM reports {reason}", attempted="reset by the watchdog"
        )
    return ResetResult("app", reset_mode, reason, time.monotonic() - begun, output)


def reset_reason(boot_log: str) -> str | None:
    """Return the reset reason of the last boot in a log, in the ROM's words; None if there is none."""
    found = _RESET_REASON.findall(boot_log)
    return found[-1] if found else None


def _boot_log(link: Link, mark: int, wait: float, returns: int) -> str:
    """Wait for the ROM's banner, or the return of the port, and return the output since *mark*."""
    try:
        expect_boot(link, [_ROM_BANNER], wait, returns)
        with contextlib.suppress(ConsoleError):  # an ESP8266 prints its reason as a number only
            link.console.expect(_RESET_REASON_LINE, timeout=_LINE_TIMEOUT, ignore_crashes=True)
    except ConsoleError as error:
        raise _no_banner() from error
    return link.console.text_since(mark)


def _no_banner() -> LinkError:
    return LinkError(
        "timed out waiting for the boot banner of the app",
        attempted="reset to the app",
        hint="if the chip's console is not on this port, nothing is printed here; otherwise check EN and the supply",
    )


def _restart(link: Link, reset_mode: ResetMode) -> None:
    """Restart the chip by a command to its loader."""
    session = link.session
    if session.is_stub:
        session.drop()  # only the ROM can start the app, and only the ROM lets the watchdog fire at once
    with session.use(reset_mode, stub=False, flash=reset_mode == "soft-reset") as esp:
        _check_not_locked(esp, reset_mode)
        link.begin_boot()
        if reset_mode == "watchdog-reset":
            reset_by_watchdog(esp, download=False)
        else:
            _start_app(esp)
        session.follow_port()
    session.drop()  # the console reads the port again, including what arrived meanwhile
    link.hear_boot()


def _start_app(esp: Any) -> None:
    if esp.CHIP_NAME != "ESP8266":
        raise OperationError(
            f"the ROM of the {esp.CHIP_NAME} restarts into its loader, because its boot strap was latched",
            hint="use the hard reset or the watchdog reset",
        )
    esp.flash_begin(0, 0)
    answer_only(esp, esp.ESP_CMDS["FLASH_END"], struct.pack("<I", 0))


def _into_loader(link: Link, reset_mode: ResetMode) -> str | None:
    """Reset into the loader and return the reset reason printed by the ROM, if its banner can be seen."""
    if reset_mode == "hard-reset":
        link.reset(bootloader=True)
        return None
    session = link.session
    if session.is_stub:
        session.drop()
    with session.use(reset_mode, stub=False, flash=reset_mode == "soft-reset") as esp:
        _check_not_locked(esp, reset_mode)
        if reset_mode == "watchdog-reset":
            reset_by_watchdog(esp, download=True)
            session.follow_port()
        else:
            esp.flash_begin(0, 0)
            answer_only(esp, esp.ESP_CMDS["FLASH_END"], struct.pack("<I", 0))
        link.port.baudrate = ROM_BAUDRATE
        banner = _banner(port_of(esp), max(link.board.boot_seconds, 1.0))
        if not _says_hello(esp):
            raise LinkError(
                "the loader does not answer after the reset", hint="the app may have started: use the hard reset"
            )
    session.drop()
    return reset_reason(banner)


def _banner(port: Any, seconds: float) -> str:
    """Return the ROM's output after a reset, up to the line with the reset reason."""
    saved, port.timeout = port.timeout, 0.05
    deadline = time.monotonic() + seconds
    said = b""
    try:
        while not _RESET_REASON_LINE.search(said) and time.monotonic() < deadline:
            said += port.read(port.in_waiting or 1)
    finally:
        port.timeout = saved
    return said.decode("ascii", "replace")


def _says_hello(esp: Any) -> bool:
    for _ in range(5):
        esp.flush_input()
        with contextlib.suppress(FatalError):
            esp.sync()
            return True
    return False


def answer_only(esp: Any, command: int, data: bytes) -> bytes:
    """Send a command after which other code runs; read only the loader's answer and leave the rest to the console.

    Returns:
        What was received instead of an answer, if anything.

    Raises:
        OperationError: if the loader rejects it.
    """
    esp.command(command, data, wait_response=False)
    port = port_of(esp)
    saved, port.timeout = port.timeout, _ANSWER_TIMEOUT
    came = bytearray()
    try:
        while (byte := port.read(1)) and (came or byte[0] == _FRAME_END):
            came += byte
            if len(came) > 2 and byte[0] == _FRAME_END:
                break
        else:
            return bytes(came + byte)
    finally:
        port.timeout = saved
    for packet in Decoder().feed(bytes(came)):
        if len(packet) >= 10 and packet[8]:
            raise OperationError(f"the loader rejected the command: status {packet[8]:#04x} {packet[9]:#04x}")
    return b""


def _check_not_locked(esp: Any, reset_mode: ResetMode) -> None:
    if esp.secure_download_mode:
        raise OperationError(f"{reset_mode} is not available in secure download mode", hint="use hard-reset")
