"""One UART between a device (a simulated chip, a QEMU machine) and its hosts."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pytest_esp.wire.faults import Faults


class Device(Protocol):
    """What sits at the far end of a virtual wire.

    All methods may be called from any thread, but never two at once: the wire's lock is held.
    """

    def receive(self, data: bytes) -> None:
        """Take *data*, as sent by a host."""
        ...

    def set_lines(self, dtr: bool, rts: bool) -> None:
        """Take the state of the host's control lines (True is asserted, i.e. the pin is low)."""
        ...

    def set_baudrate(self, baudrate: int) -> None:
        """Take the baud rate that the host's port now has."""
        ...

    def host_left(self, control_lines: bool) -> None:
        """A host closed its side; *control_lines* says whether its transport carries RTS and DTR."""
        ...


class HostSide:
    """One host's end of a `Wire`. Made by `Wire.connect`; usable from any thread."""

    def __init__(self, wire: Wire, sink: Callable[[bytes], None], control_lines: bool) -> None:
        self._wire = wire
        self._sink = sink
        self._control_lines = control_lines
        self._closed = False

    def send(self, data: bytes) -> None:
        """Send *data* to the device."""
        with self._wire.lock:
            if not self._closed and self._wire.device is not None:
                if self._wire.faults is not None:
                    data = self._wire.faults.to_device.apply(data)
                self._wire.device.receive(data)

    def set_lines(self, dtr: bool, rts: bool) -> None:
        """Drive the control lines."""
        with self._wire.lock:
            if not self._closed and self._wire.device is not None:
                self._wire.device.set_lines(dtr, rts)

    def set_baudrate(self, baudrate: int) -> None:
        """Tell the device the baud rate of this host's port."""
        with self._wire.lock:
            if not self._closed and self._wire.device is not None:
                self._wire.device.set_baudrate(baudrate)

    def deliver(self, data: bytes) -> None:
        """Hand *data* from the device to the host (called by the wire)."""
        self._sink(data)

    def close(self) -> None:
        """Leave the wire. Closing twice is harmless."""
        with self._wire.lock:
            if self._closed:
                return
            self._closed = True
            self._wire.disconnect(self)
            if self._wire.device is not None:
                self._wire.device.host_left(self._control_lines)


class Wire:
    """Carries bytes between one device and any number of hosts; what the device sends reaches all of them.

    `lock` serialises everything that touches the device; it is re-entrant, so a device may transmit while it receives.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.device: Device | None = None
        self.faults: Faults | None = None
        self._hosts: list[HostSide] = []

    def connect(self, sink: Callable[[bytes], None], *, control_lines: bool) -> HostSide:
        """Attach a host. *sink* is called with every chunk the device sends; it must not block."""
        host = HostSide(self, sink, control_lines)
        with self.lock:
            self._hosts.append(host)
        return host

    def disconnect(self, host: HostSide) -> None:
        """Forget *host* (called by `HostSide.close`)."""
        if host in self._hosts:
            self._hosts.remove(host)

    def transmit(self, data: bytes) -> None:
        """Send *data* from the device to every host."""
        with self.lock:
            if self.faults is not None:
                data = self.faults.to_host.apply(data)
            for host in tuple(self._hosts):
                host.deliver(data)
