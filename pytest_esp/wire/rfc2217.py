"""A client for remote serial ports (RFC 2217) that is fast enough to reset a chip into its loader.

pyserial's client polls for each response every 50 ms, waits for the response to every change of RTS and DTR, and
negotiates all settings again whenever one is set, even the timeout. The time between DTR and RTS becomes so long that
a real chip starts its app instead of its loader. This subclass keeps pyserial's protocol, but waits on events.
"""

# pyserial's type stubs lack the protected attributes that subclasses need.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

import serial
from serial import rfc2217

_LOST = "the connection to the remote port was lost"
_LONGEST_COMMAND = 1 << 16  # bytes
_HANDLERS = "pytest_esp.wire.handlers"


def register() -> None:
    """Let ``serial.serial_for_url("rfc2217://...")`` use this client in this process."""
    if _HANDLERS not in serial.protocol_handler_packages:
        serial.protocol_handler_packages.insert(0, _HANDLERS)


class Serial(rfc2217.Serial):
    """A remote port. See `serial.rfc2217.Serial`; only the waiting is different."""

    _barred: str | None = None

    def open(self) -> None:
        """Connect and negotiate.

        Raises:
            serial.SerialException: if the server does not respond, or does not support RFC 2217.
        """
        if self._barred is not None:
            raise serial.SerialException(self._barred)
        self._received = bytearray()
        self._changed = threading.Condition()
        self._settings: tuple[Any, ...] | None = None
        self._lost = False
        self._loss = _LOST
        self._confirms_purges = True
        self._sink: Callable[[bytes], None] | None = None
        self._on_loss: Callable[[str], None] | None = None
        super().open()

    def close(self) -> None:
        """Disconnect, without the 0.3 s that pyserial sleeps here for slow servers."""
        self.is_open = False
        connection, self._socket = self._socket, None
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        thread, self._thread = self._thread, None
        if thread is not None and thread is not threading.current_thread():
            thread.join(2)

    def lose(self, reason: str) -> None:
        """Disconnect permanently: reads, writes and `open` raise SerialException with *reason* from now on."""
        self._barred = reason
        with self._changed:
            self._loss, self._lost = reason, True
            self._changed.notify_all()
        if (connection := self._socket) is not None:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    # -- settings and lines

    def _reconfigure_port(self) -> None:
        if self._socket is None:
            raise serial.PortNotOpenError()
        self._write_timeout = None  # the base class refuses others; a lost server is a broken connection
        settings = (self._baudrate, self._bytesize, self._parity, self._stopbits, self._xonxoff, self._rtscts)
        if settings == self._settings:
            return
        if not 0 < self._baudrate < 1 << 32:
            raise ValueError(f"invalid baud rate: {self._baudrate}")
        options = self._rfc2217_port_settings
        options["baudrate"].set(struct.pack("!I", self._baudrate))
        options["datasize"].set(struct.pack("!B", self._bytesize))
        options["parity"].set(struct.pack("!B", rfc2217.RFC2217_PARITY_MAP[self._parity]))
        options["stopsize"].set(struct.pack("!B", rfc2217.RFC2217_STOPBIT_MAP[self._stopbits]))
        self._wait_until(lambda: all(option.is_ready() for option in options.values()), "the port's settings")
        if self._rtscts:
            self.rfc2217_set_control(rfc2217.SET_CONTROL_USE_HW_FLOW_CONTROL)
        elif self._xonxoff:
            self.rfc2217_set_control(rfc2217.SET_CONTROL_USE_SW_FLOW_CONTROL)
        else:
            self.rfc2217_set_control(rfc2217.SET_CONTROL_USE_NO_FLOW_CONTROL)
        self._settings = settings

    def rfc2217_set_control(self, value: bytes) -> None:
        """Request a change of a line without waiting: the server handles requests in order, so the timing is kept."""
        self._rfc2217_options["control"].set(value)

    def rfc2217_send_purge(self, value: bytes) -> None:
        """Request that the server discards its buffered data, and wait for it.

        Some servers never confirm a purge (ser2net 4.6, labgrid#1396): after the first one nothing waits for it.
        """
        option = self._rfc2217_options["purge"]
        option.set(value)
        if self._confirms_purges:
            with self._changed:
                self._changed.wait_for(
                    lambda: bool(self._lost or option.state != rfc2217.REQUESTED), self._network_timeout
                )
                self._confirms_purges = option.state == rfc2217.ACTIVE
            if self._lost:
                raise serial.SerialException(self._loss)

    def _wait_until(self, done: Callable[[], bool], what: str) -> None:
        with self._changed:
            if not self._changed.wait_for(lambda: self._lost or self._is(done, what), self._network_timeout):
                raise serial.SerialException(f"the remote port did not confirm {what} (RFC 2217)")
            if self._lost:
                raise serial.SerialException(self._loss)

    @staticmethod
    def _is(done: Callable[[], bool], what: str) -> bool:
        try:
            return done()
        except ValueError as error:  # the server has answered with another value
            raise serial.SerialException(f"the remote port refused {what} (RFC 2217)") from error

    def _telnet_process_subnegotiation(self, suboption: bytes) -> None:
        super()._telnet_process_subnegotiation(suboption)
        with self._changed:
            self._changed.notify_all()

    # -- bytes

    @property
    def in_waiting(self) -> int:
        """The number of bytes that can be read without waiting."""
        if not self.is_open:
            raise serial.PortNotOpenError()
        if self._lost and not self._received:
            raise serial.SerialException(self._loss)
        return len(self._received)

    def read(self, size: int = 1) -> bytes:
        """Return *size* bytes, or fewer after `timeout` seconds.

        Raises:
            serial.SerialException: if the connection was lost.
        """
        deadline = None if self._timeout is None else time.monotonic() + self._timeout
        with self._changed:
            while len(self._received) < size:
                if not self.is_open:
                    raise serial.PortNotOpenError()
                if self._lost:
                    raise serial.SerialException(self._loss)
                remaining = None if deadline is None else deadline - time.monotonic()
                if remaining is not None and remaining <= 0:
                    break
                self._changed.wait(remaining)
            data = bytes(self._received[:size])
            del self._received[:size]
            return data

    def write(self, data: Any, /) -> int | None:
        """Send *data*.

        Raises:
            serial.SerialException: if the connection was lost.
        """
        if self._lost:
            raise serial.SerialException(self._loss)
        return super().write(data)

    def _internal_raw_write(self, data: bytes) -> None:
        """Send *data* as it is: also answers and requests, for which pyserial lets the socket's errors escape."""
        try:
            super()._internal_raw_write(data)
        except OSError as error:
            raise serial.SerialException(f"{self._loss}: {error}") from error

    def reset_input_buffer(self) -> None:
        """Discard received data, here and at the server."""
        self.rfc2217_send_purge(rfc2217.PURGE_RECEIVE_BUFFER)
        with self._changed:
            self._received.clear()

    def divert(self, sink: Callable[[bytes], None] | None, on_loss: Callable[[str], None] | None) -> None:
        """Pass received data to *sink* (see `wire.port.VirtualPort.divert`)."""
        with self._changed:
            self._sink, self._on_loss = sink, on_loss
            if sink is not None and self._received:
                sink(bytes(self._received))
                self._received.clear()
            if on_loss is not None and self._lost:
                on_loss(self._loss)

    def _telnet_read_loop(self) -> None:
        """Receive until the connection ends, on the thread that the base class starts."""
        pending = b""
        connection = self._socket
        try:
            while self.is_open:
                try:
                    data = connection.recv(1 << 16)
                except TimeoutError:
                    continue
                except OSError:
                    break
                if not data:
                    break
                try:
                    pending = self._take(pending + data)
                except Exception as error:  # pyserial's parser, of what a server sends
                    self._loss = f"invalid answer from the server of the remote port (RFC 2217): {error}"
                    break
                if len(pending) > _LONGEST_COMMAND:
                    self._loss = (
                        "invalid answer from the server of the remote port (RFC 2217): a command without an end"
                    )
                    break
        finally:
            with self._changed:
                self._lost = True
                self._changed.notify_all()
                for option in self._telnet_options:  # ends pyserial's wait in `open`, whose next step notices the loss
                    option.active = option.state != rfc2217.INACTIVE
                if self._on_loss is not None and self.is_open:
                    self._on_loss(self._loss)

    def _take(self, data: bytes) -> bytes:
        """Separate *data* into plain bytes and Telnet commands; return the beginning of an incomplete command."""
        plain = bytearray()
        while data:
            head, mark, data = data.partition(b"\xff")
            plain += head
            if not mark:
                break
            rest = self._command(data, plain)
            if rest is None:
                data = mark + data
                break
            data = rest
        if plain:
            with self._changed:
                if self._sink is not None:
                    self._sink(bytes(plain))
                else:
                    self._received += plain
                    self._changed.notify_all()
        return data if data.startswith(b"\xff") else b""

    def _command(self, data: bytes, plain: bytearray) -> bytes | None:  # noqa: PLR0911 - one per kind of command
        """Handle the command after an IAC; return the data after it, or None if it is incomplete."""
        code = data[:1]
        if not code:
            return None
        if code == rfc2217.IAC:
            plain += code
            return data[1:]
        if code == rfc2217.SB:
            # An IAC within is doubled, so the first lone IAC SE ends it.
            end = data.replace(b"\xff\xff", b"\x00\x00").find(b"\xff\xf0")
            if end < 0:
                return None
            self._telnet_process_subnegotiation(data[1:end].replace(b"\xff\xff", b"\xff"))
            return data[end + 2 :]
        if code in (rfc2217.DO, rfc2217.DONT, rfc2217.WILL, rfc2217.WONT):
            if len(data) < 2:
                return None
            self._telnet_negotiate_option(code, data[1:2])
            return data[2:]
        self._telnet_process_command(code)
        return data[1:]
