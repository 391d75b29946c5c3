"""How RTS and DTR reset a chip: the auto-reset circuit of a devkit, USB-Serial-JTAG and USB-OTG."""

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

_OTG_RESTART = 0.05
"""Seconds from the end of the pulse of RTS to the restart of an app with a USB-OTG console."""
_OTG_PULSE = 0.08
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


def hard_reset(port: ControlLines, on_hold: Callable[[], object] = lambda: None) -> None:
    """Reset the chip by EN, with its boot strap high, from any state of the lines, and release both lines.

    Pulsing RTS is not enough: the kernel and pyserial open a port with both lines asserted, and EN stays high while
    DTR is asserted.

    Args:
        on_hold: called before EN rises: what arrives from then on is of the new boot.

    Raises:
        OSError: if the port was lost or does not have these lines.
    """
    port.dtr = False  # before RTS is asserted: USB-Serial-JTAG takes DTR without RTS as the download flag
    drive_lines(port, dtr=False, rts=True)
    time.sleep(_HOLD)
    on_hold()
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
        is_strict: read the strap only at the end of the rise time, as a chip does: a host that releases the strap
            earlier starts the app.
    """

    def __init__(
        self,
        on_hold: Callable[[], None],
        on_reset: Callable[[bool], None],
        rise_time: float,
        lock: threading.RLock,
        *,
        is_strict: bool = False,
    ) -> None:
        self.rise_time = rise_time
        self._is_strict = is_strict
        self._strap_low = False
        self._on_hold = on_hold
        self._on_reset = on_reset
        self._lock = lock
        self._held = False
        self._rising: Timer | None = None

    def set_lines(self, dtr: bool, rts: bool) -> None:
        """Handle a change of the host's lines (True is asserted)."""
        en_low = rts and not dtr
        strap_low = self._strap_low = dtr and not rts
        if en_low:
            self.cancel()
            if not self._held:
                self._held = True
                self._on_hold()
        elif self._held:
            self._held = False
            if self.rise_time <= 0 or (strap_low and not self._is_strict):
                self._on_reset(strap_low)
            else:
                self._rising = call_later(self.rise_time, self._risen)
        elif strap_low and self._rising is not None and not self._is_strict:
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
                self._on_reset(self._strap_low)


class UsbSerialJtag:
    """Turns the state of RTS and DTR into resets as the chip's USB-Serial-JTAG controller does.

    RTS without DTR holds the chip in reset. While RTS is released, DTR is the download flag: if it was set before the
    reset, the chip starts its ROM loader, whatever its boot strap. If both are asserted, nothing changes. (Technical
    reference manual of the ESP32-C3, chapter "USB Serial/JTAG Controller"; ``esptool.reset.USBJTAGSerialReset``.)

    Args:
        on_hold: called when the reset begins.
        on_reset: called with True (loader) or False (app) when it ends.
    """

    def __init__(self, on_hold: Callable[[], None], on_reset: Callable[[bool], None]) -> None:
        self._on_hold = on_hold
        self._on_reset = on_reset
        self._held = False
        self._download = False

    def set_lines(self, dtr: bool, rts: bool) -> None:
        """Handle a change of the host's lines (True is asserted)."""
        if rts and not dtr:
            if not self._held:
                self._held = True
                self._on_hold()
        elif self._held:
            self._held = False
            self._on_reset(self._download)
        if not rts:
            self._download = dtr

    def cancel(self) -> None:
        """Do nothing: no start is ever pending."""


class UsbOtg:
    """Turns the state of RTS and DTR into restarts as the software behind a USB-OTG port does.

    A pulse of RTS restarts the chip: into its ROM loader if DTR is asserted when it ends, else into the app (ESP-IDF's
    ``usb_console.c``, which waits 50 ms; ``USBCDC.cpp`` of Arduino). RTS must have been asserted without DTR for most
    of the 0.1 s that esptool waits: clients that open or close a port change one line shortly after the other.

    Args:
        on_reset: called with True (loader) or False (app).
        is_in_loader: returns whether the loader has the port.
        rise_time: seconds after which the loader starts the app, so that slow hosts can end their sequence.
        lock: the wire's lock, held while a callback runs on the timer's thread.
    """

    def __init__(
        self,
        on_reset: Callable[[bool], None],
        is_in_loader: Callable[[], bool],
        rise_time: float,
        lock: threading.RLock,
    ) -> None:
        self.rise_time = rise_time
        self._on_reset = on_reset
        self._is_in_loader = is_in_loader
        self._lock = lock
        self._pulse_began: float | None = None
        self._pulsed = False
        self._restart: Timer | None = None

    def set_lines(self, dtr: bool, rts: bool) -> None:
        """Handle a change of the host's lines (True is asserted)."""
        now = time.monotonic()
        if self._pulse_began is not None and now - self._pulse_began >= _OTG_PULSE:
            self._pulsed = True
        if rts:
            self._pulse_began = None if dtr else self._pulse_began or now
            return
        self._pulse_began = None
        pulsed, self._pulsed = self._pulsed, False
        if not pulsed:
            return
        self.cancel()
        if dtr and self._is_in_loader():
            self._on_reset(True)
            return

        def restart() -> None:
            with self._lock:
                if self._restart is timer:
                    self._restart = None
                    self._on_reset(dtr)

        self._restart = timer = call_later(self.rise_time if self._is_in_loader() else _OTG_RESTART, restart)

    def cancel(self) -> None:
        """Cancel a pending restart, after the chip was reset in another way."""
        if self._restart is not None:
            self._restart.cancel()
            self._restart = None
