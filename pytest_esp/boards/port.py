"""What a link needs of a port: the part of pyserial's interface that esptool and the console use."""

from __future__ import annotations

from typing import Any, Protocol


class Port(Protocol):
    """A serial port, real or virtual (`serial.Serial`, an RFC 2217 or socket client, `wire.port.VirtualPort`).

    Errors are `serial.SerialException`; times are seconds.
    """

    is_open: bool
    baudrate: Any
    timeout: Any
    write_timeout: Any
    dtr: Any
    rts: Any

    @property
    def in_waiting(self) -> int:
        """Bytes that can be read at once."""
        ...

    def open(self) -> None:
        """Open it."""
        ...

    def close(self) -> None:
        """Close it."""
        ...

    def read(self, size: int = 1, /) -> bytes:
        """Return up to *size* bytes; fewer only after the time-out."""
        ...

    def write(self, data: bytes, /) -> int | None:
        """Send *data*."""
        ...

    def reset_input_buffer(self) -> None:
        """Drop what was received."""
        ...
