"""The port interface that a link needs: the part of pyserial's that esptool and the console use."""

from __future__ import annotations

from typing import Any, Protocol


class Port(Protocol):
    """A serial port, real or virtual (`serial.Serial`, an RFC 2217 or socket client, `wire.port.VirtualPort`).

    Errors are `serial.SerialException`; times are in seconds.
    """

    is_open: bool
    baudrate: Any
    timeout: Any
    write_timeout: Any
    dtr: Any
    rts: Any

    @property
    def in_waiting(self) -> int:
        """The number of bytes that can be read without waiting."""
        ...

    def open(self) -> None:
        """Open the port."""
        ...

    def close(self) -> None:
        """Close the port."""
        ...

    def read(self, size: int = 1, /) -> bytes:
        """Return *size* bytes, or fewer after the timeout."""
        ...

    def write(self, data: bytes, /) -> int | None:
        """Send *data*."""
        ...

    def reset_input_buffer(self) -> None:
        """Discard received data."""
        ...
