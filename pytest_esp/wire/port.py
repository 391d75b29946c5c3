"""A serial port without a port: a virtual board's wire as pyserial shows a port, with no latency."""

# pyserial's stubs leave out the protected attributes that its subclasses are made of.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import serial

from pytest_esp.wire.wire import ROM_BAUDRATE, HostSide, Wire

_MOST_KEPT = 8 * 1024 * 1024  # bytes that nobody reads; what comes then is lost


class VirtualPort(serial.SerialBase):
    """The host's end of *wire* in the same process, with the interface of `serial.Serial`.

    `write` runs the device in the caller's thread, so a simulated chip has answered when it returns. Usable by one
    reader and one writer thread at a time, as a pyserial port is.

    Args:
        wire: what to connect to.
        name: what `port` and `name` say, e.g. ``"sim:virtual-s3"``.
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
        """Connect to the wire. Both lines go up together, which resets nothing (as pyserial does on Linux).

        Raises:
            serial.SerialException: if it is open, or has vanished.
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
        """How many others have connected to the wire since this port was made."""
        return self._wire.connections - self._connections_before - self._connections_of_ours

    def close(self) -> None:
        """Leave the wire; the lines go down together."""
        host, self._host = self._host, None
        self.is_open = False
        if host is not None:
            host.set_lines(False, False)
            host.close()
        with self._arrived:
            self._arrived.notify_all()

    def lose(self, reason: str) -> None:
        """Let the port vanish, as a pulled cable does: reads and writes raise SerialException from now on."""
        with self._arrived:
            self._lost = reason
            self._arrived.notify_all()
            if self._on_loss is not None:
                self._on_loss(reason)

    # -- bytes

    def read(self, size: int = 1, /) -> bytes:
        """Return up to *size* bytes; fewer only when `timeout` seconds have passed.

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
        """Send *data*; the device has taken it when this returns."""
        host = self._host
        if host is None or self._lost:
            self._check_open()
        assert host is not None
        host.send(bytes(data))
        return len(data)

    @property
    def in_waiting(self) -> int:
        """Number of bytes that can be read at once."""
        if self._lost and not self._received:
            self._check_open()
        return len(self._received)

    def flush(self) -> None:
        """Do nothing: nothing is ever buffered on the way out."""

    def reset_input_buffer(self) -> None:
        """Drop what was received and not read."""
        with self._arrived:
            self._received.clear()

    def reset_output_buffer(self) -> None:
        """Do nothing: nothing is ever buffered on the way out."""

    def divert(self, sink: Callable[[bytes], None] | None, on_loss: Callable[[str], None] | None) -> None:
        """Hand what has arrived, and what will, to *sink* instead of keeping it for `read`; None ends that.

        *on_loss* is told if the port vanishes. Both are called with the port's lock held: they must not read it.
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
        """Do nothing: no chip of ours looks at a break."""

    cts = dsr = cd = property(lambda self: True)
    ri = property(lambda self: False)
