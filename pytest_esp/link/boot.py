"""Starts an app by a reset of the chip, and verifies the reset by the ROM's banner."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_esp.errors import LinkError, OperationError
from pytest_esp.link.console import ConsoleError

if TYPE_CHECKING:
    from pytest_esp.link.console import Console
    from pytest_esp.link.link import Link
    from pytest_esp.link.match import Match, Pattern

_SLICE = 0.2  # seconds after which a port that returned is noticed
BOOT_TIMEOUT = 3.0
"""The longest time from a reset to the banner, in seconds."""

# The ROM's banner, of any generation. Only newer ROMs print a line between name and reason.
_NAME = r"(?:ESP-ROM:[^\n]*\n(?:Build:[^\n]*\n)?|ets [A-Z][a-z]{2} [ \d]\d \d{4}[^\n,]*(?:\r?\n){0,2},?)"
# The reasons after a pulse of EN: power-on, on the ESP8266 also the reset pin, or the reset lines of the chip's USB.
_PROOF = re.compile(rb"rst:0x1 \([A-Z0-9_]+\).*\n|rst:0x[0-9a-f]+ \(\w*USB_(?:UART|JTAG)\w*\).*\n|rst cause:[12],.*\n")
# The first lines of ESP-IDF's bootloader and apps, where the ROM prints nothing (UART_PRINT_CONTROL, or a strap).
_MUTED = re.compile(rb"[EWID] \(\d+\) (?:boot|cpu_start|heap_init): [^\n]*\n")
_BANNER = re.compile(rf"{_NAME}?(?P<reason>rst:0x[0-9a-f]+ \((?P<name>[A-Z0-9_]+)\)|rst cause:\d+)[^\n]*\n")
_REASON = re.compile(r"rst:0x[0-9a-f]+ \([A-Z0-9_]+\)|rst cause:\d+")


@dataclass(frozen=True)
class Boot:
    """A boot after a requested reset.

    Attributes:
        mark: the position of its banner in the console.
        reason: the reset reason that the ROM printed, e.g. ``"POWERON"``; None on an ESP8266, which gives a number.
        seconds: the time from the reset to the banner.
    """

    mark: int
    reason: str | None
    seconds: float


def start_app(link: Link, wait: float = BOOT_TIMEOUT) -> Boot | None:
    """Reset the chip by EN, or a virtual board directly, and verify the reset by the ROM's banner.

    A boot for any other reason proves nothing: an app may have restarted by itself. Where the ROM prints
    nothing, the first line of the bootloader or of the app's start proves the boot. The console stands at the banner
    or at that line afterwards. A port that vanished and returned also proves the reset: it is the chip's own USB, on
    which the banner is not seen.

    Args:
        wait: the timeout for the banner, in seconds.

    Returns:
        The boot; None if the console printed nothing.

    Raises:
        LinkError: if the console printed something, but not the banner of this reset, or if RTS and DTR cannot be set.
    """
    console = link.console
    console.skip()
    returns = link.returning.returns
    begun = time.monotonic()
    link.reset(bootloader=False)
    mark = console.reset_mark  # before it is what an earlier boot said while the chip was being reset
    console.rewind(mark)
    try:
        match = expect_boot(link, [_PROOF, _MUTED], wait, returns)
        if match is None:
            console.rewind(mark)
            return Boot(mark, None, time.monotonic() - begun)
        if match.index == 1 and _REASON.search(console.text_since(mark)):  # the ROM does print, but another reason
            console.expect(_PROOF, timeout=max(begun + wait - time.monotonic(), 0.0), ignore_crashes=True)
    except ConsoleError as error:
        said = console.text_since(mark)
        if not said.strip():
            return None
        raise _unproven(link, said) from error
    finally:
        seconds = time.monotonic() - begun
    end = console.position
    reason, length = _banner(console, mark)
    length = length or len(match.text)
    console.rewind(end - length)
    return Boot(end - length, reason, seconds)


def expect_boot(link: Link, patterns: Sequence[Pattern], wait: float, returns: int) -> Match | None:
    """Expect one of *patterns* on the console, within *wait* seconds or as soon as the port has returned.

    Args:
        returns: `ReturningPort.returns` before the reset.

    Returns:
        The match; None if there is none, but the port has returned.

    Raises:
        ConsoleError, PortError: see `Console.expect`.
    """
    console = link.console
    deadline = time.monotonic() + wait
    while True:
        left = deadline - time.monotonic()
        try:
            slice_ = _SLICE if console.is_away else max(min(left, _SLICE), 0.0)
            return console.expect(patterns, timeout=slice_, ignore_crashes=True)
        except ConsoleError:
            if console.is_away:
                continue
            if link.returning.returns > returns:
                return None
            if left <= _SLICE:
                raise


def _banner(console: Console, mark: int) -> tuple[str | None, int]:
    """Return the reason in the first banner that proves the reset, and the banner's length in bytes."""
    for found in _BANNER.finditer(console.text_since(mark)):
        if _PROOF.search(found.group().encode()):
            return found["name"], len(found.group())
    return None, 0


def _unproven(link: Link, said: str) -> LinkError:
    reasons = list(dict.fromkeys(_REASON.findall(said)))
    if reasons:
        message = f"the chip was not reset by EN; the ROM reports {', '.join(reasons)}"
    else:
        message = "the chip was not reset: the running app continued without a boot"
    return LinkError(
        message,
        board=link.board.name,
        attempted="reset to the app",
        hint="check that DTR and RTS are connected to EN and the boot strap pin on this board",
    )


def reset_by_watchdog(esp: Any, *, download: bool) -> None:
    """Let the chip's RTC watchdog reset it (``watchdog_reset`` of esptool's chips), from its ROM loader.

    Args:
        esp: esptool's loader object; the stub would stop the watchdog.
        download: whether the chip stays in its loader.

    Raises:
        OperationError: if this chip cannot be reset so.
    """
    name = esp.CHIP_NAME
    if download:
        option = getattr(esp, "RTC_CNTL_OPTION1_REG", None)
        if option is None:
            raise OperationError(f"the {name} cannot be told to stay in its loader", hint="use the hard reset")
        esp.write_reg(option, esp.RTC_CNTL_FORCE_DOWNLOAD_BOOT_MASK, esp.RTC_CNTL_FORCE_DOWNLOAD_BOOT_MASK)

    def refuse(*_: Any) -> None:
        raise OperationError(f"the {name} cannot be reset by its watchdog from outside", hint="use the hard reset")

    esp.hard_reset = refuse  # what esptool falls back to on chips that cannot
    try:
        esp.watchdog_reset()
    finally:
        del esp.hard_reset
