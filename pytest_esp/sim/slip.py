"""SLIP framing (RFC 1055): ``C0 ... C0``, with ``DB DC`` for C0 and ``DB DD`` for DB inside."""

from __future__ import annotations

END = b"\xc0"
_LIMIT = 1 << 17  # no command is longer; more without an end is noise


def encode(packet: bytes) -> bytes:
    """Return *packet* as one frame."""
    return END + packet.replace(b"\xdb", b"\xdb\xdd").replace(END, b"\xdb\xdc") + END


class Decoder:
    """Cuts a byte stream into packets; noise between and inside frames costs no more than the frame it hit."""

    def __init__(self) -> None:
        self._buffer = b""
        self._inside = False

    def feed(self, data: bytes) -> list[bytes]:
        """Return the packets that *data* completes."""
        packets: list[bytes] = []
        pieces = (self._buffer + data).split(END)
        self._buffer = pieces.pop()[:_LIMIT]
        for piece in pieces:
            # A frame's END is also taken as the next one's beginning: after lost bytes the stream finds itself again.
            if piece and self._inside:
                packets.append(piece.replace(b"\xdb\xdc", END).replace(b"\xdb\xdd", b"\xdb"))
            self._inside = not (piece and self._inside)
        return packets

    def reset(self) -> None:
        """Forget a frame that was begun."""
        self._buffer, self._inside = b"", False
