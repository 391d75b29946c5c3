"""The start of an app by a reset of the chip, and its proof: what the ROM says first."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_esp.errors import LinkError
from pytest_esp.link.console import ConsoleError

if TYPE_CHECKING:
    from pytest_esp.link.console import Console
    from pytest_esp.link.link import Link

BOOT_TIMEOUT = 3.0
"""Seconds from a reset to the banner, at most."""

# The ROM's banner, of any generation. Only a newer ROM has a line of its own between name and reason.
_NAME = r"(?:ESP-ROM:[^\n]*\n(?:Build:[^\n]*\n)?|ets [A-Z][a-z]{2} [ \d]\d \d{4}[^\n,]*(?:\r?\n){0,2},?)"
# After a pulse of EN: power-on, on the ESP8266 also the reset pin; the lines of the chip's own USB have their reasons.
_PROOF = re.compile(rb"rst:0x1 \([A-Z0-9_]+\).*\n|rst:0x[0-9a-f]+ \(\w*USB_(?:UART|JTAG)\w*\).*\n|rst cause:[12],.*\n")
_BANNER = re.compile(rf"{_NAME}?(?P<reason>rst:0x[0-9a-f]+ \((?P<name>[A-Z0-9_]+)\)|rst cause:\d+)[^\n]*\n")
_REASON = re.compile(r"rst:0x[0-9a-f]+ \([A-Z0-9_]+\)|rst cause:\d+")


@dataclass(frozen=True)
class Boot:
    """A boot that was asked for.

    Attributes:
        mark: where its banner begins in the console.
        reason: the reset reason that the ROM printed, e.g. ``"POWERON"``; None on an ESP8266, which gives a number.
        seconds: from the reset to the proof.
    """

    mark: int
    reason: str | None
    seconds: float


def start_app(link: Link, wait: float = BOOT_TIMEOUT) -> Boot | None:
    """Reset the chip by EN, or a virtual board by its own means, and prove it by the ROM's banner that follows.

    A boot for any other reason than that reset proves nothing: an app may have restarted by itself. The console stands
    at the banner afterwards.

    Args:
        wait: seconds that the banner may take.

    Returns:
        The boot; None if the console said nothing at all.

    Raises:
        LinkError: if something was said, but no banner that proves the reset; or if the lines cannot be driven.
    """
    console = link.console
    console.skip()
    mark = console.mark()
    begun = time.monotonic()
    link.reset(bootloader=False)
    try:
        console.expect(_PROOF, timeout=wait, ignore_crashes=True)
    except ConsoleError as error:
        said = console.text_since(mark)
        if not said.strip():
            return None
        raise _unproven(link, said) from error
    finally:
        seconds = time.monotonic() - begun
    end = console.position
    reason, length = _banner(console, mark)
    console.rewind(end - length)
    return Boot(end - length, reason, seconds)


def _banner(console: Console, mark: int) -> tuple[str | None, int]:
    """Return the reason in the first banner that proves the reset, and how many bytes that banner has."""
    for found in _BANNER.finditer(console.text_since(mark)):
        if _PROOF.search(found.group().encode()):
            return found["name"], len(found.group())
    return None, 0


def _unproven(link: Link, said: str) -> LinkError:
    reasons = list(dict.fromkeys(_REASON.findall(said)))
    if reasons:
        message = f"the chip was not reset: it started by itself, its ROM says {', '.join(reasons)}"
    else:
        message = "the chip was not reset: it did not start, and what it ran goes on"
    return LinkError(
        message,
        board=link.board.name,
        attempted="reset to the app",
        hint="check that DTR and RTS are connected to EN and the boot strap pin on this board",
    )
