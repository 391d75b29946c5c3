"""The auto-reset circuit of a devkit: RTS and DTR drive EN and the boot strap through two transistors."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from pytest_esp.wire.loop import Timer, call_later

SLOW_HOST_RISE_TIME = 0.25
"""Rise time, in seconds, for boards that are served to other programs. In esptool's classic reset, EN rises when DTR is
asserted, and the strap goes low when RTS is released, one round trip later: 50 to 100 ms with pyserial's RFC 2217
client, which polls for every response. Twice that leaves room for a loaded machine. A hard reset starts the app this
much later."""


_HOLD = 0.1
"""Seconds for which EN stays low, as in esptool's hard reset: long enough for any capacitor at EN."""


class ControlLines(Protocol):
    """The part of a pyserial port's interface that sets the control lines."""

    dtr: Any
    rts: Any


def drive_lines(port: ControlLines, dtr: bool, rts: bool) -> None:
    """Set both lines of *port* (True is asserted), from any state.

    DTR is asserted before RTS changes, and released after it. So EN goes low only if the final state is RTS without
    DTR: from both asserted to both released, for example, the chip keeps running. Both lines are always written, since
    the state that pyserial remembers may be wrong: esptool also sets the lines directly. DTR is written last, because
    Windows' ``usbser.sys`` sends a change of RTS only with the next write of DTR.

    Raises:
        OSError: if the port was lost or does not have these lines.
    """
    if dtr:
        port.dtr = True
    port.rts = rts
    port.dtr = dtr


def hard_reset(port: ControlLines) -> None:
    """Reset the chip by EN, with its boot strap high, from any state of the lines, and release both lines.

    Pulsing RTS is not enough: the kernel and pyserial open a port with both lines asserted, and EN stays high while
    DTR is asserted.

    Raises:
        OSError: if the port was lost or does not have these lines.
    """
    drive_lines(port, dtr=False, rts=True)
    time.sleep(_HOLD)
    drive_lines(port, dtr=False, rts=False)


class AutoResetCircuit:
    """Turns the state of RTS and DTR into resets.

    EN is low while only RTS is asserted; the strap (IO0, or IO9 on the C series) is low while only DTR is asserted. If
    both or neither are asserted, both are high (ESP32 devkit schematics). While EN is low, the chip is held in reset.
    When EN rises, the chip does not read its strap at once: the capacitor at EN needs *rise_time* seconds. If the strap
    is low by then, the chip starts its ROM loader, else the app. A strap that goes low within the rise time decides at
    once, so that slow hosts (with pyserial's RFC 2217 client, 50 to 100 ms pass between DTR and RTS) always reach the
    loader.

    Args:
        on_hold: called when EN goes low.
        on_reset: called with True (strap low: loader) or False (app) when the chip starts.
        rise_time: in seconds; 0 reads the strap at once.
        lock: the wire's lock, held while a callback runs on the timer's thread.
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
        """Handle a change of the host's lines (True is asserted)."""
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
        """Cancel a pending start, after the chip was reset in another way."""
        if self._rising is not None:
            self._rising.cancel()
            self._rising = None

    def _risen(self) -> None:
        with self._lock:
            if self._rising is not None:
                self._rising = None
                self._on_reset(False)
