"""The auto-reset circuit of a devkit: RTS and DTR drive EN and the boot strap through two transistors."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from pytest_esp.wire.loop import Timer, call_later

SLOW_HOST_RISE_TIME = 0.25
"""Seconds for boards that are served to other programs. esptool's classic reset lets EN rise when it asserts DTR and
pulls the strap when it releases RTS, one round trip later: 50 to 100 ms over stock pyserial's RFC 2217 client, which
polls for every answer. Twice that leaves room for a loaded machine; a hard reset starts the app this much later."""


_HOLD = 0.1
"""Seconds that EN stays low, as in esptool's hard reset: long enough for any capacitor at EN."""


class ControlLines(Protocol):
    """The part of a pyserial port that drives the circuit."""

    dtr: Any
    rts: Any


def drive_lines(port: ControlLines, dtr: bool, rts: bool) -> None:
    """Set both lines of *port* (True is asserted), whatever they are now.

    DTR goes on before RTS changes, and off after it. So EN goes low only if the lines end as RTS without DTR: from both
    asserted to both released, for example, the chip runs on. Both lines are always written, since the state that
    pyserial remembers may be wrong: esptool also sets them past it. DTR comes last, because the ``usbser.sys`` of
    Windows sends a change of RTS only with the next write of DTR.

    Raises:
        OSError: if the port is lost or has no such lines.
    """
    if dtr:
        port.dtr = True
    port.rts = rts
    port.dtr = dtr


def hard_reset(port: ControlLines) -> None:
    """Reset the chip by EN, with its boot strap high, from any state of the lines; release both lines.

    A pulse of RTS alone is not enough: the kernel and pyserial open a port with both lines asserted, and EN stays high
    as long as DTR is.

    Raises:
        OSError: if the port is lost or has no such lines.
    """
    drive_lines(port, dtr=False, rts=True)
    time.sleep(_HOLD)
    drive_lines(port, dtr=False, rts=False)


class AutoResetCircuit:
    """Turns the state of RTS and DTR into resets.

    EN is low while RTS and not DTR; the strap (IO0, or IO9 on the C series) is low while DTR and not RTS; both
    asserted, or none, leaves both high (ESP32 devkit schematics). While EN is low the chip is held. When it rises,
    the chip does not look at its strap at once: the capacitor at EN needs *rise_time* seconds. If the strap is low
    by then the chip starts its ROM loader, else the app. A strap that goes low within the rise time decides at once,
    so that a slow host (stock pyserial over RFC 2217 leaves 50 to 100 ms between DTR and RTS) still gets its
    loader every time.

    Args:
        on_hold: called when EN goes low.
        on_reset: called with True (strap low: loader) or False (app) when the chip starts.
        rise_time: seconds; 0 looks at the strap at once.
        lock: held while a callback runs from the timer's thread (the wire's lock).
    """

    def __init__(
        self,
        on_hold: Callable[[], None],
        on_reset: Callable[[bool], None],
        rise_time: float,
        lock: threading.RLock,
    ) -> None:
        self.rise_time = rise_time
        self._on_hold = on_hold
        self._on_reset = on_reset
        self._lock = lock
        self._held = False
        self._rising: Timer | None = None

    def set_lines(self, dtr: bool, rts: bool) -> None:
        """Take the host's lines (True is asserted)."""
        en_low = rts and not dtr
        strap_low = dtr and not rts
        if en_low:
            self.cancel()
            if not self._held:
                self._held = True
                self._on_hold()
        elif self._held:
            self._held = False
            if strap_low or self.rise_time <= 0:
                self._on_reset(strap_low)
            else:
                self._rising = call_later(self.rise_time, self._risen)
        elif strap_low and self._rising is not None:
            self.cancel()
            self._on_reset(True)

    def cancel(self) -> None:
        """Forget a start that is under way (the chip was reset by other means)."""
        if self._rising is not None:
            self._rising.cancel()
            self._rising = None

    def _risen(self) -> None:
        with self._lock:
            if self._rising is not None:
                self._rising = None
                self._on_reset(False)
