"""Resets into the app or the loader: by EN, by the loader or by the watchdog; what the chip then says is the proof."""

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
from pytest_esp.link.boot import BOOT_TIMEOUT, reset_by_watchdog, start_app
from pytest_esp.link.console import ConsoleError
from pytest_esp.link.esptool_private import port_of
from pytest_esp.link.link import Link
from pytest_esp.operations.registry import Effect, operation
from pytest_esp.wire.framing import Decoder
from pytest_esp.wire.wire import ROM_BAUDRATE

_ANSWER_TIMEOUT = 0.2  # seconds for the last answer; code that sets up the UART anew can cut it off
_FRAME_END = 0xC0  # of SLIP
_LINE_TIMEOUT = 0.2  # seconds for the rest of a line of the banner
_RESET_REASON = re.compile(r"rst:0x[0-9a-f]+ \(([A-Z0-9_]+)\)")
_RESET_REASON_LINE = re.compile(rb"rst:0x[0-9a-f]+ \([A-Z0-9_]+\).*\n|rst cause:\d+.*\n")
# What a chip says first: the ROM's banner, of any generation.
_ROM_BANNER = re.compile(rb"ESP-ROM:|ets [A-Z][a-z]{2} [ 0-9]\d \d{4}|rst:0x|rst cause")

ResetMode = Literal["hard-reset", "soft-reset", "watchdog-reset"]
"""By EN (or a virtual board's own reset), by the loader, by the RTC's watchdog; the words are esptool's."""


@dataclass(frozen=True)
class ResetResult:
    """What the chip did after a reset.

    Attributes:
        mode: where it is now.
        reset_mode: how it was reset.
        reason: the reset reason that its ROM printed, e.g. ``"POWERON"``; None if it was not seen.
        seconds: from the reset to the proof.
        output: what the console said (to the app only), without ANSI sequences.
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
    """Reset the chip into its app or its bootloader, and check by what it then does.

    The bootloader proves itself by an answer to SYNC, the app by the ROM's banner on the console. The banner has to
    give the reason that fits: power-on or the reset pin after a hard reset, the watchdog after a reset by it.

    Args:
        to: what starts after the reset.
        reset_mode: how. After a soft reset the boot strap is still that of the loader: only an ESP8266 starts its app
            then. Some chips have no watchdog reset.
        wait_seconds: seconds that the app has for its banner.

    Raises:
        LinkError: if the proof does not come.
        OperationError: for another *to* or *reset_mode*, or if this chip cannot be reset so.
    """
    if to not in ("app", "bootloader"):
        raise OperationError(f"there is no reset to {to!r}", hint="use 'app' or 'bootloader'")
    if reset_mode not in typing.get_args(ResetMode):
        words = "', '".join(typing.get_args(ResetMode))
        raise OperationError(f"there is no reset mode {reset_mode!r}", hint=f"use one of '{words}'")
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
    _restart(link, reset_mode)
    output = _boot_log(link, mark, wait_seconds)
    console.rewind(mark)  # a test may look for any of it
    reason = reset_reason(output)
    if reset_mode == "watchdog-reset" and "WDT" not in (reason or ""):
        raise LinkError(
            f"it started, but not by the watchdog: the ROM says {reason}", attempted="reset by the watchdog"
        )
    return ResetResult("app", reset_mode, reason, time.monotonic() - begun, output)


def reset_reason(boot_log: str) -> str | None:
    """Return the reset reason of the last boot in a log, as the ROM calls it; None if there is none."""
    found = _RESET_REASON.findall(boot_log)
    return found[-1] if found else None


def _boot_log(link: Link, mark: int, wait: float) -> str:
    """Wait for the ROM's banner, and return what came since *mark*."""
    try:
        link.console.expect(_ROM_BANNER, timeout=wait, ignore_crashes=True)
        with contextlib.suppress(ConsoleError):  # an ESP8266 gives its reason as a number only
            link.console.expect(_RESET_REASON_LINE, timeout=_LINE_TIMEOUT, ignore_crashes=True)
    except ConsoleError as error:
        raise _no_banner() from error
    return link.console.text_since(mark)


def _no_banner() -> LinkError:
    return LinkError(
        "it did not start: no boot banner came",
        attempted="reset to the app",
        hint="a chip whose console is not on this port (USB) says nothing here; else check EN and its supply",
    )


def _restart(link: Link, reset_mode: ResetMode) -> None:
    """Let the loader restart the chip."""
    session = link.session
    if session.is_stub:
        session.drop()  # only the ROM can start the app, and only it lets the watchdog bite at once
    with session.use(reset_mode, stub=False, flash=reset_mode == "soft-reset") as esp:
        _check_not_locked(esp, reset_mode)
        link.console.expect_reset()
        if reset_mode == "watchdog-reset":
            reset_by_watchdog(esp, download=False)
        else:
            _start_app(esp)
    session.drop()  # the console has the wire again, and what came meanwhile
    link.port.baudrate = ROM_BAUDRATE
    link.note_boot()


def _start_app(esp: Any) -> None:
    if esp.CHIP_NAME != "ESP8266":
        raise OperationError(
            f"the ROM of the {esp.CHIP_NAME} restarts into its loader, as its boot strap was latched",
            hint="use the hard reset, or the watchdog's",
        )
    esp.flash_begin(0, 0)
    answer_only(esp, esp.ESP_CMDS["FLASH_END"], struct.pack("<I", 0))


def _into_loader(link: Link, reset_mode: ResetMode) -> str | None:
    """Reset into the loader and return the reason that the ROM gives, where its banner can be seen."""
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
        else:
            esp.flash_begin(0, 0)
            answer_only(esp, esp.ESP_CMDS["FLASH_END"], struct.pack("<I", 0))
        link.port.baudrate = ROM_BAUDRATE
        banner = _banner(port_of(esp), max(link.board.boot_seconds, 1.0))
        if not _says_hello(esp):
            raise LinkError(
                "its loader does not answer after the reset", hint="it has started the app: a hard reset keeps it there"
            )
    session.drop()
    return reset_reason(banner)


def _banner(port: Any, seconds: float) -> str:
    """Return what the ROM says after a reset, up to the line with its reason."""
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
    """Send a command after which other code runs, and read no more than the loader's answer: the rest is for a console.

    Returns:
        What came instead of an answer, if anything.

    Raises:
        OperationError: if the loader refuses.
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
            raise OperationError(f"the loader refuses: status {packet[8]:#04x} {packet[9]:#04x}")
    return b""


def _check_not_locked(esp: Any, reset_mode: ResetMode) -> None:
    if esp.secure_download_mode:
        raise OperationError(f"in secure download mode there is no {reset_mode}", hint="use hard-reset")
