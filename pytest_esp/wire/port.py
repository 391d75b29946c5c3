"""A virtual board's wire with the interface of a pyserial port, without latency."""

# pyserial's type stubs lack the protected attributes that subclasses need.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import serial

from pytest_esp.wire.wire import ROM_BAUDRATE, HostSide, Wire

_MOST_KEPT = 8 * 1024 * 1024  # unread bytes; more is lost


class VirtualPort(serial.SerialBase):
    """The host's end of *wire* in this process, with the interface of `serial.Serial`.

    `write` runs the device in the caller's thread, so a simulated chip has responded when it returns. Like a pyserial
    port, it can be used by one reader thread and one writer thread at a time.

    Args:
        wire: the wire to connect to.
        name: the value of `port` and `name`, e.g. ``"sim:virtual-s3"``.
    """

    def __init__(self, wire: Wire, name: str, baudrate: int = ROM_BAUDRATE) -> None:
        self._wire = wire
        self._host: HostSide | None = None
        self._received = bytearray()
        self._arrived = threading.Condition(threading.Lock())
        self._lost: str | None = None
        self._sink: Callable[[bytes], None] | None = None
        self._on_loss: Callable[[str], None] | None = None
        self._connections_before = wire.connections
        self._connections_of_ours = 0
        super().__init__(port=None, baudrate=baudrate)
        self.port = name
        self.name = name

    # -- opening and closing

    def open(self) -> None:
        """Connect to the wire. Both lines are asserted together, which does not reset the chip (as with pyserial on
        Linux).

        Raises:
            serial.SerialException: if the port is open, or has vanished.
        """
        if self.is_open:
            raise serial.SerialException(f"{self.name} is already open")
        self._lost = None
        self._sink = self._on_loss = None
        if self._wire.gone is not None:
            raise serial.SerialException(f"{self.name} vanished: {self._wire.gone}")
        self._host = self._wire.connect(self._receive, control_lines=True, on_loss=self.lose)
        self._connections_of_ours += 1
        self.is_open = True
        self._host.set_baudrate(self._baudrate)
        self._update_lines()

    @property
    def other_connections(self) -> int:
        """The number of other hosts that have connected to the wire since this port was created."""
        return self._wire.connections - self._connections_before - self._connections_of_ours

    def close(self) -> None:
        """Disconnect from the wire. Both lines are released together."""
        host, self._host = self._host, None
        self.is_open = False
        if host is not None:
            host.set_lines(False, False)
            host.close()
        with self._arrived:
            self._arrived.notify_all()

    def lose(self, reason: str) -> None:
        """Make the port vanish, as with a pulled cable: reads and writes raise SerialException from now on."""
        with self._arrived:
            self._lost = reason
            self._arrived.notify_all()
            if self._on_loss is not None:
                self._on_loss(reason)

    # -- bytes

    def read(self, size: int = 1, /) -> bytes:
        """Return *size* bytes, or fewer after `timeout` seconds.

        Raises:
            serial.SerialException: if the port is closed or was lost.
        """
        with self._arrived:
            received = self._received
            if len(received) < size:
                self._wait_for(size)
            data = bytes(received[:size])
            del received[:size]
            return data

    def _wait_for(self, size: int) -> None:
        self._check_open()
        timeout = self._timeout
        deadline = None if timeout is None else time.monotonic() + timeout
        while len(self._received) < size:
            remaining = None if deadline is None else deadline - time.monotonic()
            if remaining is not None and remaining <= 0:
                return
            self._arrived.wait(remaining)
            self._check_open()

    def write(self, data: Any, /) -> int:
        """Send *data*; the device has received it when this returns."""
        host = self._host
        if host is None or self._lost:
            self._check_open()
        assert host is not None
        host.send(bytes(data))
        return len(data)

    @property
    def in_waiting(self) -> int:
        """The number of bytes that can be read without waiting."""
        if self._lost and not self._received:
            self._check_open()
        return len(self._received)

    def flush(self) -> None:
        """Do nothing: nothing is ever buffered on the way out."""

    def reset_input_buffer(self) -> None:
        """Discard received data."""
        with self._arrived:
            self._received.clear()

    def reset_output_buffer(self) -> None:
        """Do nothing: nothing is ever buffered on the way out."""

    def divert(self, sink: Callable[[bytes], None] | None, on_loss: Callable[[str], None] | None) -> None:
        """Pass received data, including data not read yet, to *sink* instead of `read`; None ends this.

        *on_loss* is called with the reason if the port vanishes. Both are called with the port's lock held, and must
        not read the port.
        """
        with self._arrived:
            self._sink, self._on_loss = sink, on_loss
            if sink is not None and self._received:
                sink(bytes(self._received))
                self._received.clear()
            if on_loss is not None and self._lost:
                on_loss(self._lost)

    def _receive(self, data: bytes) -> None:
        with self._arrived:
            if self._sink is not None:
                self._sink(data)
                return
            if len(self._received) < _MOST_KEPT:
                self._received += data
            self._arrived.notify_all()

    def _check_open(self) -> None:
        if self._lost:
            raise serial.SerialException(f"{self.name} vanished: {self._lost}")
        if not self.is_open:
            raise serial.PortNotOpenError()

    # -- settings and lines

    def _reconfigure_port(self) -> None:
        if self._host is not None:
            self._host.set_baudrate(self._baudrate)

    def _update_lines(self) -> None:
        if self._host is not None:
            self._host.set_lines(bool(self._dtr_state), bool(self._rts_state))

    def _update_dtr_state(self) -> None:
        self._update_lines()

    def _update_rts_state(self) -> None:
        self._update_lines()

    def _update_break_state(self) -> None:
        """Do nothing: virtual chips ignore breaks."""

    cts = dsr = cd = property(lambda self: True)
    ri = property(lambda self: False)
