"""The auto-reset circuit of a devkit: RTS and DTR drive EN and the boot strap through two transistors."""

from __future__ import annotations

import threading
from collections.abc import Callable

from pytest_esp.wire.loop import Timer, call_later

SLOW_HOST_RISE_TIME = 0.25
"""Seconds for boards that are served to other programs. esptool's classic reset lets EN rise when it asserts DTR and
pulls the strap when it releases RTS, one round trip later: 50 to 100 ms over stock pyserial's RFC 2217 client, which
polls for every answer. Twice that leaves room for a loaded machine; a hard reset starts the app this much later."""


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
