"""Fault injection on a wire: lost and corrupted bytes, latency, a port that vanishes, and resets.

It works for any device behind a `Wire`: a simulated chip, a QEMU machine, or a real port behind a proxy.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from pytest_esp.wire.loop import call_later

if TYPE_CHECKING:
    from pytest_esp.wire.loop import Timer
    from pytest_esp.wire.wire import Wire

ResetCause = Literal["reset", "brownout"]

_BROWNOUT = b"\r\nBrownout detector was triggered\r\n\r\n"  # ESP-IDF's last output


@dataclass
class Fault:
    """Faults of one direction. Probabilities are from 0 to 1.

    Attributes:
        lose, corrupt, double: probabilities per byte.
        cut: probability per chunk that its end is lost, from a random byte on.
        silent_after: the number of bytes after which all are lost; None for never.
        latency: the delay of every byte, in seconds.
        seed: the same seed gives the same faults.
        passed: the number of bytes that have passed so far.
    """

    lose: float = 0.0
    corrupt: float = 0.0
    double: float = 0.0
    cut: float = 0.0
    silent_after: int | None = None
    latency: float = 0.0
    seed: int = 0
    passed: int = 0
    _random: random.Random = field(init=False, repr=False)
    _late: deque[tuple[float, bytes]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._late = deque()

    def apply(self, data: bytes) -> bytes:
        """Return *data* with faults applied."""
        if self.cut and data and self._random.random() < self.cut:
            data = data[: self._random.randrange(len(data))]
        if self.lose or self.corrupt or self.double:
            data = b"".join(self._spoil(byte) for byte in data)
        if self.silent_after is not None:
            data = data[: max(0, self.silent_after - self.passed)]
        self.passed += len(data)
        return data

    def carry(self, data: bytes, deliver: Callable[[bytes], None]) -> None:
        """Apply faults to *data* and pass it to *deliver*, now or later, in order. The caller holds the wire's lock."""
        data = self.apply(data)
        if not self.latency and not self._late:
            deliver(data)
            return

        def arrive() -> None:
            while self._late and self._late[0][0] <= time.monotonic():
                deliver(self._late.popleft()[1])
            if self._late:
                call_later(max(self._late[0][0] - time.monotonic(), 0.0), arrive)

        idle = not self._late
        self._late.append((time.monotonic() + self.latency, data))
        if idle:
            call_later(self.latency, arrive)

    def _spoil(self, byte: int) -> bytes:
        chance = self._random.random()
        if chance < self.lose:
            return b""
        if chance < self.lose + self.corrupt:
            return bytes([byte ^ (1 << self._random.randrange(8))])
        if chance < self.lose + self.corrupt + self.double:
            return bytes([byte, byte])
        return bytes([byte])


@dataclass
class Faults:
    """The faults of a wire. Byte counts are of data from hosts since the faults were enabled.

    Attributes:
        to_device, to_host: the faults of each direction.
        vanish_after: the number of bytes after which the port vanishes, as with a pulled cable; None for never.
        vanish_seconds: seconds until it returns; None: only by `Wire.come_back`.
        reset_after: the number of bytes after which the chip is reset; None for never.
        reset_cause: the cause of that reset: the reset line, or a brownout.
        boot_loop: seconds after each start at which the chip restarts, unless it is in its loader; None for never.
        sent: the number of bytes that hosts have sent so far.
    """

    to_device: Fault = field(default_factory=Fault)
    to_host: Fault = field(default_factory=Fault)
    vanish_after: int | None = None
    vanish_seconds: float | None = None
    reset_after: int | None = None
    reset_cause: ResetCause = "reset"
    boot_loop: float | None = None
    sent: int = 0
    _biting: Timer | None = field(init=False, default=None, repr=False, compare=False)

    def send(self, wire: Wire, data: bytes) -> None:
        """Carry *data* from a host to the device. The caller holds the wire's lock."""
        for limit, happens in ((self.vanish_after, self._vanish), (self.reset_after, self._reset)):
            if limit is not None and self.sent <= limit < self.sent + len(data):
                head, self.sent = data[: limit - self.sent], self.sent + len(data)
                self._carry(wire, head)
                happens(wire)
                return
        self.sent += len(data)
        self._carry(wire, data)

    def transmit(self, wire: Wire, data: bytes) -> None:
        """Carry *data* from the device to the hosts. The caller holds the wire's lock."""
        if self.boot_loop is not None and self._biting is None:
            self._bite_later(wire)
        self.to_host.carry(data, wire.deliver)

    def _carry(self, wire: Wire, data: bytes) -> None:
        def arrive(late: bytes) -> None:
            with wire.lock:
                if wire.device is not None:
                    wire.device.receive(late)

        self.to_device.carry(data, arrive)

    def _vanish(self, wire: Wire) -> None:
        self.vanish_after = None
        wire.vanish("its cable was pulled", self.vanish_seconds)

    def _reset(self, wire: Wire) -> None:
        self.reset_after = None
        restart(wire, self.reset_cause)

    def _bite_later(self, wire: Wire) -> None:
        def bite() -> None:
            with wire.lock:
                self._biting = None
                if wire.faults is self and self.boot_loop is not None and wire.device is not None:
                    if not wire.device.is_in_loader:
                        wire.device.restart("TG0WDT_SYS_RST")
                    self._bite_later(wire)

        if self._biting is None:
            self._biting = call_later(self.boot_loop or 0.0, bite)


def restart(wire: Wire, cause: ResetCause) -> None:
    """Reset the device of a wire at once; it starts from its flash.

    Args:
        wire: the wire of the device.
        cause: the cause; for a brownout, the message of ESP-IDF's detector is printed first.
    """
    with wire.lock:
        if wire.device is None:
            return
        if cause == "brownout":
            wire.transmit(_BROWNOUT)
        wire.device.restart("BROWNOUT" if cause == "brownout" else "POWERON")
