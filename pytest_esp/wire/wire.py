"""One UART between a device (a simulated chip, a QEMU machine) and its hosts."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from pytest_esp.wire.loop import call_later

if TYPE_CHECKING:
    from pytest_esp.wire.faults import Faults

ROM_BAUDRATE = 115200
"""Baud of every ROM loader whose crystal has the usual frequency; a console begins at it, too."""


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

    def restart(self, reason: str) -> None:
        """Start what its flash holds anew, at once, for *reason* (as the ROM calls it): for `faults`."""
        ...

    @property
    def is_in_loader(self) -> bool:
        """Whether a loader runs: for `faults`."""
        ...


class HostSide:
    """One host's end of a `Wire`. Made by `Wire.connect`; usable from any thread."""

    def __init__(
        self,
        wire: Wire,
        sink: Callable[[bytes], None],
        control_lines: bool,
        on_loss: Callable[[str], None] | None = None,
    ) -> None:
        self._wire = wire
        self._sink = sink
        self._on_loss = on_loss
        self._control_lines = control_lines
        self._closed = False

    def send(self, data: bytes) -> None:
        """Send *data* to the device."""
        with self._wire.lock:
            if not self._reaches or self._wire.device is None:
                return
            if self._wire.faults is not None:
                self._wire.faults.send(self._wire, data)
            else:
                self._wire.device.receive(data)

    def set_lines(self, dtr: bool, rts: bool) -> None:
        """Drive the control lines."""
        with self._wire.lock:
            if self._reaches and self._wire.device is not None:
                self._wire.device.set_lines(dtr, rts)

    def set_baudrate(self, baudrate: int) -> None:
        """Tell the device the baud rate of this host's port."""
        with self._wire.lock:
            if self._reaches and self._wire.device is not None:
                self._wire.device.set_baudrate(baudrate)

    def deliver(self, data: bytes) -> None:
        """Hand *data* from the device to the host (called by the wire)."""
        self._sink(data)

    @property
    def _reaches(self) -> bool:
        return not self._closed and self._wire.gone is None

    def lose(self, reason: str) -> None:
        """Tell the host that its port has vanished (called by the wire)."""
        if self._on_loss is not None:
            self._on_loss(reason)

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

    Attributes:
        gone: why nothing passes now, because the port has vanished; None while it is there.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.device: Device | None = None
        self.faults: Faults | None = None
        self.gone: str | None = None
        self._hosts: list[HostSide] = []
        self.connections = 0
        """How many hosts have been attached so far; see `wire.port.VirtualPort.other_connections`."""

    def connect(
        self,
        sink: Callable[[bytes], None],
        *,
        control_lines: bool,
        on_loss: Callable[[str], None] | None = None,
    ) -> HostSide:
        """Attach a host. *sink* is called with every chunk the device sends; it must not block.

        *on_loss* is told the reason if the port vanishes.
        """
        host = HostSide(self, sink, control_lines, on_loss)
        with self.lock:
            self.connections += 1
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
                self.faults.transmit(self, data)
            else:
                self.deliver(data)

    def deliver(self, data: bytes) -> None:
        """Hand bytes that have come through to every host."""
        with self.lock:
            if self.gone is None:
                for host in tuple(self._hosts):
                    host.deliver(data)

    # -- a port that vanishes

    def vanish(self, reason: str = "its cable was pulled", seconds: float | None = None) -> None:
        """Let the port vanish for every host: whoever uses it fails, and nobody can connect.

        Args:
            reason: what they are told.
            seconds: until it is back; None: until `come_back`.
        """
        with self.lock:
            self.gone = reason
            for host in tuple(self._hosts):
                host.lose(reason)
        if seconds is not None:
            call_later(seconds, self.come_back)

    def come_back(self) -> None:
        """Let the port be there again; hosts must connect anew."""
        with self.lock:
            self.gone = None
