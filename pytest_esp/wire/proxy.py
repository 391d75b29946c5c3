"""A real port behind a `Wire`, so that faults can be put in front of it and other programs can share it."""

from __future__ import annotations

import threading
from typing import Any

import serial

from pytest_esp.wire.reset import drive_lines, hard_reset
from pytest_esp.wire.wire import Wire

_POLL = 0.05  # seconds until the reader looks whether it is to end


class PortProxy:
    """The device of a wire that is a serial port: what hosts send goes out, and what comes in goes to all hosts.

    Args:
        port: open; the proxy owns it from now on.
    """

    is_in_loader = False  # nobody knows
    """A real chip does not tell: a boot loop goes on in its loader, too."""

    def __init__(self, port: Any) -> None:
        self._port = port
        self._port.timeout = _POLL
        self._closed = threading.Event()
        self.wire = Wire()
        self.wire.device = self
        self._reader = threading.Thread(target=self._read, name="port-proxy", daemon=True)
        self._reader.start()

    def close(self) -> None:
        """Close the port. Closing twice is harmless."""
        self._closed.set()
        if threading.current_thread() is not self._reader:
            self._reader.join(2.0)
        self._port.close()

    def receive(self, data: bytes) -> None:
        """Send *data* out of the port."""
        self._guarded(lambda: self._port.write(data))

    def set_lines(self, dtr: bool, rts: bool) -> None:
        """Drive the port's lines."""
        self._guarded(lambda: drive_lines(self._port, dtr, rts))

    def set_baudrate(self, baudrate: int) -> None:
        """Set the port's baud rate."""

        def change() -> None:
            if self._port.baudrate != baudrate:
                self._port.baudrate = baudrate

        self._guarded(change)

    def host_left(self, control_lines: bool) -> None:
        """Leave the chip as it is."""

    def restart(self, reason: str) -> None:
        """Pulse EN by the port's lines; a real supply is left alone, whatever the *reason*."""
        self._guarded(lambda: hard_reset(self._port))

    def _guarded(self, work: Any) -> None:
        try:
            work()
        except (OSError, serial.SerialException) as error:
            self._lost(error)

    def _read(self) -> None:
        while not self._closed.is_set():
            try:
                data = self._port.read(max(1, self._port.in_waiting))
            except (OSError, serial.SerialException, TypeError) as error:  # TypeError: pyserial's port closed meanwhile
                self._lost(error)
                return
            if data:
                self.wire.transmit(data)

    def _lost(self, error: Exception) -> None:
        if not self._closed.is_set():
            self._closed.set()
            self.wire.vanish(str(error))
