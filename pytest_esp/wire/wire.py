"""A UART connection between a device (a simulated chip, a QEMU machine) and its hosts."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from pytest_esp.wire.loop import call_later

if TYPE_CHECKING:
    from pytest_esp.wire.faults import Faults

ROM_BAUDRATE = 115200
"""The baud rate of ROM loaders (with the usual crystal frequency), and of consoles at their start."""


_CHIPS_AT_26_MHZ = ("esp8266", "esp32c2")
"""Chips whose ROM takes its crystal for one of 40 MHz, and prints at 26/40 of `ROM_BAUDRATE` with the usual one."""


def rom_console_baudrate(chip: str, crystal_mhz: int | None = None) -> int:
    """Return the baud rate at which the ROM of *chip* prints: 74880 with the crystal of 26 MHz of two chips.

    Args:
        crystal_mhz: the crystal's frequency; None for the usual one.
    """
    return 74880 if chip in _CHIPS_AT_26_MHZ and crystal_mhz in (None, 26) else ROM_BAUDRATE


class Device(Protocol):
    """The device at the end of a virtual wire.

    All methods may be called from any thread, but not at the same time: the wire's lock is held.
    """

    def receive(self, data: bytes) -> None:
        """Receive *data* from a host."""
        ...

    def set_lines(self, dtr: bool, rts: bool) -> None:
        """Handle a change of the host's control lines (True is asserted, i.e. the pin is low)."""
        ...

    def set_baudrate(self, baudrate: int) -> None:
        """Handle a change of the host's baud rate."""
        ...

    def host_left(self, control_lines: bool) -> None:
        """Handle that a host has closed its side; *control_lines* says whether its transport has RTS and DTR."""
        ...

    def restart(self, reason: str) -> None:
        """Restart from flash at once, with the ROM's reset *reason*: for `faults`."""
        ...

    @property
    def is_in_loader(self) -> bool:
        """Whether the loader is running: for `faults`."""
        ...


class HostSide:
    """A host's end of a `Wire`, from `Wire.connect`. Usable from any thread."""

    def __init__(
        self,
        wire: Wire,
        sink: Callable[[bytes], None],
        control_lines: bool,
        on_loss: Callable[[str], None] | None = None,
        baudrate_of: Callable[[], int | None] | None = None,
    ) -> None:
        self._baudrate_of = baudrate_of
        self._asked: int | None = None
        self._wire = wire
        self._sink = sink
        self._on_loss = on_loss
        self._control_lines = control_lines
        self._closed = False
        self._was_lost = False

    def send(self, data: bytes) -> None:
        """Send *data* to the device."""
        with self._wire.lock:
            if not self._reaches or self._wire.device is None:
                return
            self.ask_baudrate()
            if self._wire.faults is not None:
                self._wire.faults.send(self._wire, data)
            else:
                self._wire.device.receive(data)

    def set_lines(self, dtr: bool, rts: bool) -> None:
        """Set the control lines."""
        with self._wire.lock:
            if self._reaches and self._wire.device is not None:
                self._wire.device.set_lines(dtr, rts)

    def ask_baudrate(self) -> None:
        """Pass on the baud rate of a port whose changes are not reported (called by the wire)."""
        if self._baudrate_of is not None and (baudrate := self._baudrate_of()) != self._asked:
            self._asked = baudrate
            if baudrate is not None:
                self.set_baudrate(baudrate)

    def set_baudrate(self, baudrate: int) -> None:
        """Set the baud rate of this host's port."""
        with self._wire.lock:
            if self._reaches and self._wire.device is not None:
                self._wire.device.set_baudrate(baudrate)

    def deliver(self, data: bytes) -> None:
        """Pass *data* from the device to the host (called by the wire)."""
        self._sink(data)

    @property
    def _reaches(self) -> bool:
        return not self._closed and self._wire.gone is None

    def lose(self, reason: str) -> None:
        """Notify the host that its port has vanished (called by the wire)."""
        self._was_lost = True
        if self._on_loss is not None:
            self._on_loss(reason)

    def close(self) -> None:
        """Disconnect from the wire. Closing twice has no effect."""
        with self._wire.lock:
            if self._closed:
                return
            self._closed = True
            self._wire.disconnect(self)
            if self._wire.device is not None:
                # A host whose port has vanished did not leave: the device keeps its state.
                self._wire.device.host_left(self._control_lines or self._was_lost)


class Wire:
    """Carries bytes between a device and any number of hosts. Output of the device reaches all hosts.

    `lock` serializes all access to the device. It is re-entrant, so a device may transmit while it receives.

    Args:
        fifo_size: the number of bytes that the device keeps for the next host while no host is connected, as a USB
            device does; further bytes are lost. A UART keeps none.

    Attributes:
        gone: why the port has vanished; None if it has not.
    """

    def __init__(self, fifo_size: int = 0) -> None:
        self.lock = threading.RLock()
        self.device: Device | None = None
        self.faults: Faults | None = None
        self.gone: str | None = None
        self.fifo_size = fifo_size
        self._fifo = b""
        self._watchers: list[Callable[[bool], None]] = []
        self._hosts: list[HostSide] = []
        self.connections = 0
        """The number of hosts that have connected so far; see `wire.port.VirtualPort.other_connections`."""

    def connect(
        self,
        sink: Callable[[bytes], None],
        *,
        control_lines: bool,
        on_loss: Callable[[str], None] | None = None,
        baudrate_of: Callable[[], int | None] | None = None,
    ) -> HostSide:
        """Connect a host. *sink* is called with every chunk that the device sends; it must not block.

        *on_loss* is called with the reason if the port vanishes. *baudrate_of* returns the port's baud rate, or None if
        it is unknown; it is for ports that do not report changes.
        """
        host = HostSide(self, sink, control_lines, on_loss, baudrate_of)
        with self.lock:
            self.connections += 1
            self._hosts.append(host)
            kept, self._fifo = self._fifo, b""
            if kept:
                self.deliver(kept)
        return host

    def disconnect(self, host: HostSide) -> None:
        """Remove *host* (called by `HostSide.close`)."""
        if host in self._hosts:
            self._hosts.remove(host)

    def ask_baudrates(self) -> None:
        """Let the device know the baud rates of all hosts; called by devices before they transmit."""
        for host in tuple(self._hosts):
            host.ask_baudrate()

    def transmit(self, data: bytes) -> None:
        """Send *data* from the device to every host."""
        with self.lock:
            if self.faults is not None:
                self.faults.transmit(self, data)
            else:
                self.deliver(data)

    def deliver(self, data: bytes) -> None:
        """Pass bytes, after faults, to every host."""
        with self.lock:
            if self.gone is not None or not self._hosts:
                self._fifo += data[: self.fifo_size - len(self._fifo)]
                return
            for host in tuple(self._hosts):
                host.deliver(data)

    # -- a port that vanishes

    def vanish(self, reason: str = "its cable was pulled", seconds: float | None = None) -> None:
        """Make the port vanish for every host: using it and connecting to it fail.

        Args:
            reason: the reason for the hosts' exceptions.
            seconds: the time until it returns; None: until `come_back`.
        """
        with self.lock:
            self.gone = reason
            for host in tuple(self._hosts):
                host.lose(reason)
                self._hosts.remove(host)
            for notify in self._watchers:
                notify(False)
        if seconds is not None:
            call_later(seconds, self.come_back)

    def come_back(self) -> None:
        """Restore the port; hosts must connect again."""
        with self.lock:
            self.gone = None
            for notify in self._watchers:
                notify(True)

    def watch(self, notify: Callable[[bool], None]) -> None:
        """Call *notify* with False when the port vanishes, and with True when it returns, with the lock held."""
        self._watchers.append(notify)

    def unwatch(self, notify: Callable[[bool], None]) -> None:
        """End `watch`."""
        with self.lock:
            self._watchers.remove(notify)
