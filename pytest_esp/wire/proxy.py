"""A real port behind a `Wire`, for fault injection and for sharing it with other programs."""

from __future__ import annotations

import threading
from typing import Any

import serial

from pytest_esp.wire.reset import drive_lines, hard_reset
from pytest_esp.wire.wire import Wire

_POLL = 0.05  # seconds after which the reader checks whether to end


class PortProxy:
    """A serial port as the device of a wire: data from hosts is sent to the port, its data goes to all hosts.

    Args:
        port: the open port, which the proxy owns from now on.
    """

    is_in_loader = False
    """Unknown for a real chip: a boot loop continues in its loader, too."""

    def __init__(self, port: Any) -> None:
        self._port = port
        self._port.timeout = _POLL
        self._closed = threading.Event()
        self.wire = Wire()
        self.wire.device = self
        self._reader = threading.Thread(target=self._read, name="port-proxy", daemon=True)
        self._reader.start()

    def close(self) -> None:
        """Close the port. Closing twice has no effect."""
        self._closed.set()
        if threading.current_thread() is not self._reader:
            self._reader.join(2.0)
        self._port.close()

    def receive(self, data: bytes) -> None:
        """Send *data* to the port."""
        self._guarded(lambda: self._port.write(data))

    def set_lines(self, dtr: bool, rts: bool) -> None:
        """Set the port's lines."""
        self._guarded(lambda: drive_lines(self._port, dtr, rts))

    def set_baudrate(self, baudrate: int) -> None:
        """Set the port's baud rate."""

        def change() -> None:
            if self._port.baudrate != baudrate:
                self._port.baudrate = baudrate

        self._guarded(change)

    def host_left(self, control_lines: bool) -> None:
        """Do nothing: the chip keeps its state."""

    def restart(self, reason: str) -> None:
        """Pulse EN through the port's lines. The power supply is not switched, whatever the *reason*."""
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
            except (OSError, serial.SerialException, TypeError) as error:  # TypeError: the port was closed meanwhile
                self._lost(error)
                return
            if data:
                self.wire.transmit(data)

    def _lost(self, error: Exception) -> None:
        if not self._closed.is_set():
            self._closed.set()
            self.wire.vanish(str(error))
