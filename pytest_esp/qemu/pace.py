"""Limits the data rate of an emulated UART.

The ROM loaders of the ESP32 and the ESP32-S3 receive bytes by an interrupt into a ring buffer of 256 bytes, and do not
check whether it is full: they rely on the pace of a real UART. QEMU keeps that pace by the host's clock, and only while
its FIFO of 128 bytes is full. On a busy host the emulated processor stops while the clock continues, and bytes are
overwritten.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

from pytest_esp.wire.wire import ROM_BAUDRATE

_BITS_PER_BYTE = 10
_HASTE = 2  # times the baud rate; an undisturbed ROM keeps up with it, and esptool allows 3 s for 6 KB
_CHUNK, _FIFO = 32, 128  # bytes; the ring buffer has room for a full FIFO and several chunks
_UNPACED_CHUNK = 1 << 16
_LOOK_EVERY = 0.01  # seconds


class UartPace:
    """Determines when to send more data to the UART: at twice its baud rate, measured in QEMU's processor time.

    On systems other than Linux, the host's clock is used instead.

    Args:
        pid: QEMU's process ID.
        baudrate: the UART's baud rate; may be changed.

    Attributes:
        is_on: may be set to False while a program that loses no data reads the UART, such as esptool's stub flasher.
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
        """The number of bytes that may be sent at once."""
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
        """Record that *size* bytes were sent."""
        needed = size * _BITS_PER_BYTE / max(self.baudrate, ROM_BAUDRATE) / _HASTE
        self._due = self._clock() + needed
        self._look = time.monotonic() + _LOOK_EVERY


def _clock_of(pid: int) -> Callable[[], float]:
    """Return a clock of a process's processor time, see clock_getcpuclockid(3)."""
    if sys.platform != "linux":
        return time.monotonic
    number = ~pid << 3 | 2

    def clock() -> float:
        try:
            return time.clock_gettime(number)
        except OSError:  # the process has ended
            return float("inf")

    return clock


def _is_asleep(pid: int) -> bool:
    """Return whether all threads of a process sleep: a guest that waits for an interrupt has read everything."""
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        states = [(thread / "stat").read_bytes().rpartition(b")")[2].split()[0] for thread in threads]
    except OSError:  # not Linux, or the process has ended
        return False
    return all(state == b"S" for state in states)
