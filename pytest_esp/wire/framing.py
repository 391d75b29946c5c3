"""SLIP framing (RFC 1055), as the serial protocol uses it.

``C0 ... C0`` is a frame, with ``DB DC`` for C0 and ``DB DD`` for DB inside. ROM and stub loaders use it in both
directions.
"""

from __future__ import annotations

END = b"\xc0"
_LIMIT = 1 << 17  # bytes; longer packets are noise
_NOISE = 512  # bytes of noise that are kept for messages


def encode(packet: bytes) -> bytes:
    """Return *packet* as one frame."""
    return END + packet.replace(b"\xdb", b"\xdb\xdd").replace(END, b"\xdb\xdc") + END


def decode(frame: bytes) -> bytes:
    """Return the packet in a frame, which is given without its ends."""
    return frame.replace(b"\xdb\xdc", END).replace(b"\xdb\xdd", b"\xdb")


class Decoder:
    """Splits a byte stream into packets, in linear time. Bytes between frames are `noise`."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0
        self._inside = False
        self.noise = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Return the packets that *data* completes. Empty frames are ignored."""
        packets: list[bytes] = []
        *ends, rest = data.split(END)
        for end in ends:
            packet = b"".join((*self._pieces, end)) if self._pieces else end
            self._pieces.clear()
            self._size = 0
            if not self._inside:
                self._add_noise(packet)
                self._inside = True
            elif packet:
                packets.append(decode(packet))
                self._inside = False
        if rest and self._size < _LIMIT:
            self._pieces.append(rest)
            self._size += len(rest)
        return packets

    @property
    def is_inside(self) -> bool:
        """Whether a frame has begun but not ended."""
        return self._inside

    @property
    def leftover(self) -> bytes:
        """The noise and the bytes since the last frame: output of a chip that does not use the protocol."""
        return (self.noise + b"".join(self._pieces))[-_NOISE:]

    def _add_noise(self, data: bytes) -> None:
        if data:
            self.noise = (self.noise + data)[-_NOISE:]
