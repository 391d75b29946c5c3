"""The checksum of images and of the packets of the serial protocol."""

from __future__ import annotations

_MAGIC = 0xEF


def checksum(data: bytes) -> int:
    """Return the exclusive or of all bytes and 0xEF, as the loaders compute it."""
    value = int.from_bytes(data, "little")
    size = len(data)
    # Folding the data in halves is a hundred times faster than a loop over the bytes.
    while size > 1:
        half = (size + 1) // 2
        value = (value >> (half * 8)) ^ (value & ((1 << (half * 8)) - 1))
        size = half
    return value ^ _MAGIC
