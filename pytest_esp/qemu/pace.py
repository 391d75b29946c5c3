"""How fast an emulated UART is given its bytes.

The ROM loaders of the ESP32 and the ESP32-S3 take bytes by an interrupt into a ring of 256, without a look at whether
it is full: they rely on the pace of a real UART. QEMU keeps that pace by the host's clock, and only while its FIFO of
128 bytes is full. On a busy host the emulated processor stands while that clock goes on, and bytes are overwritten.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

from pytest_esp.wire.wire import ROM_BAUDRATE

_BITS_PER_BYTE = 10
_HASTE = 2  # a ROM on a processor of its own keeps up with this; esptool gives it 3 s for 6 KB
_CHUNK, _FIFO = 32, 128  # bytes; the ring has room for a full FIFO and several chunks
_UNPACED_CHUNK = 1 << 16
_LOOK_EVERY = 0.01  # seconds


class UartPace:
    """Says when the UART may be given more: at twice its baud rate, in time that QEMU has had on a processor.

    Where that cannot be told (on Linux it can) the host's time has to do.

    Args:
        pid: of QEMU.
        baudrate: of the UART, bits per second; may be changed.

    Attributes:
        is_on: may be put off while a program reads the UART that keeps all it finds, such as esptool's stub flasher.
    """

    def __init__(self, pid: int, baudrate: int) -> None:
        self.baudrate = baudrate
        self._pid = pid
        self._clock = _clock_of(pid)
        self._due = 0.0
        self.is_on = True
        self._look = 0.0

    @property
    def chunk(self) -> int:
        """How many bytes may be sent at once."""
        if not self.is_on:
            return _UNPACED_CHUNK
        return min(_CHUNK * max(self.baudrate, ROM_BAUDRATE) // ROM_BAUDRATE, _FIFO)

    def is_due(self) -> bool:
        """Whether a chunk may be sent now."""
        if not self.is_on or self._clock() >= self._due:
            return True
        now = time.monotonic()
        if now < self._look:
            return False
        self._look = now + _LOOK_EVERY
        return _is_asleep(self._pid)

    def count(self, size: int) -> None:
        """Note that *size* bytes were sent."""
        needed = size * _BITS_PER_BYTE / max(self.baudrate, ROM_BAUDRATE) / _HASTE
        self._due = self._clock() + needed
        self._look = time.monotonic() + _LOOK_EVERY


def _clock_of(pid: int) -> Callable[[], float]:
    """Return the clock of the processor time of a process: clock_getcpuclockid(3), whose result Linux documents."""
    if sys.platform != "linux":
        return time.monotonic
    number = ~pid << 3 | 2

    def clock() -> float:
        try:
            return time.clock_gettime(number)
        except OSError:  # it has ended
            return float("inf")

    return clock


def _is_asleep(pid: int) -> bool:
    """Whether no thread of a process wants a processor: a guest that waits for an interrupt has read everything."""
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        states = [(thread / "stat").read_bytes().rpartition(b")")[2].split()[0] for thread in threads]
    except OSError:  # another system, or it has ended
        return False
    return all(state == b"S" for state in states)
