"""Endpoints at which other programs reach a virtual board: TCP sockets, RFC 2217 servers and ptys.

Every endpoint serves one client at a time: a second TCP client is refused at once. (The kernel allows a pty to be
opened a second time; both clients then share the bytes, as on a serial port that is not opened exclusively.) Output of
a device while no client is connected is lost, as on a real UART.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, cast
from urllib.parse import urlsplit

from serial import rfc2217

from pytest_esp.errors import PortError
from pytest_esp.wire.loop import loop, on_loop, run
from pytest_esp.wire.pty_watch import PtyWatch
from pytest_esp.wire.wire import ROM_BAUDRATE, HostSide, Wire

_BACKLOG = 8 * 1024 * 1024  # bytes kept for a client that does not read; more is lost
_TURN = 0.05  # seconds until the end of an earlier client has been noticed
_PTY_LOOK = 0.02  # seconds between checks for a client of a pty: the kernel sends no event


class Endpoint(Protocol):
    """An address at which a wire is served."""

    @property
    def url(self) -> str:
        """The address, with the actual port number."""
        ...

    @property
    def client_count(self) -> int:
        """0 or 1."""
        ...

    def close(self) -> None:
        """Disconnect the client and free the address. Closing twice has no effect."""
        ...


def serve(wire: Wire, url: str, *, name: str = "") -> Endpoint:
    """Serve *wire* at ``rfc2217://HOST:PORT``, ``socket://HOST:PORT`` (port 0: any free one) or ``pty:PATH``.

    ``pty:`` alone picks a path. *name* is the board's name, for messages.

    Raises:
        PortError: if the address is invalid or cannot be used.
    """
    try:
        if url.startswith("pty:"):
            return _PtyEndpoint(wire, url.removeprefix("pty:"))
        parts = urlsplit(url)
        if parts.scheme in ("socket", "rfc2217") and parts.hostname and parts.port is not None:
            return _TcpEndpoint(wire, parts.scheme, parts.hostname, parts.port)
    except OSError as error:
        raise PortError(
            f"cannot listen on {url}: {error.strerror or error}",
            board=name or None,
            hint="use another port or path (port 0 picks a free one)",
        ) from error
    except ValueError as error:
        raise PortError(f"{url!r} is not a valid address: {error}", board=name or None) from error
    raise PortError(
        f"{url!r} is not an address to listen on",
        board=name or None,
        hint="expected rfc2217://HOST:PORT, socket://HOST:PORT or pty:PATH, e.g. rfc2217://127.0.0.1:4000",
    )


# -- TCP


class _TcpEndpoint:
    def __init__(self, wire: Wire, scheme: str, host: str, port: int) -> None:
        self._wire = wire
        self._client: _TcpClient | None = None
        factory = _Rfc2217Client if scheme == "rfc2217" else _TcpClient

        async def start() -> asyncio.Server:
            return await loop().create_server(lambda: factory(self), host, port)

        self._server: asyncio.Server | None = run(start())
        number = self._server.sockets[0].getsockname()[1]
        self.url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{number}"

    @property
    def client_count(self) -> int:
        return int(self._client is not None)

    def connect(self, client: _TcpClient, *, control_lines: bool) -> HostSide | None:
        """Give the wire to *client* unless another client has it."""
        if self._server is None or self._client is not None or self._wire.gone is not None:
            return None
        self._client = client
        return self._wire.connect(
            client.deliver, control_lines=control_lines, on_loss=lambda reason: on_loop(client.abort)
        )

    def leave(self, client: _TcpClient) -> None:
        """Take the wire back from *client*."""
        if self._client is client:
            self._client = None

    def close(self) -> None:
        server, self._server = self._server, None
        if server is None:
            return

        async def stop() -> None:
            server.close()
            if self._client is not None:
                self._client.abort()

        run(stop())


class _TcpClient(asyncio.Protocol):
    """A raw TCP client: bytes without control lines."""

    CONTROL_LINES = False

    def __init__(self, endpoint: _TcpEndpoint) -> None:
        self._endpoint = endpoint
        self._host: HostSide | None = None
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        if not self._begin():
            # A client that has just closed its port, and connects again, may be seen before its end was.
            self._transport.pause_reading()
            loop().call_later(_TURN, self._begin_or_abort)

    def _begin(self) -> bool:
        self._host = self._endpoint.connect(self, control_lines=self.CONTROL_LINES)
        if self._host is not None:
            self.welcome(self._host)
        return self._host is not None

    def _begin_or_abort(self) -> None:
        if self._transport.is_closing():
            return
        if self._begin():
            self._transport.resume_reading()
        else:
            self._transport.abort()  # one client at a time

    def welcome(self, host: HostSide) -> None:
        """Set up an accepted client."""

    def data_received(self, data: bytes) -> None:
        if self._host is not None:
            self._host.send(data)

    def connection_lost(self, exc: Exception | None) -> None:
        host, self._host = self._host, None
        if host is not None:
            self._endpoint.leave(self)
            if self.CONTROL_LINES:
                host.set_lines(False, False)
            host.close()

    def abort(self) -> None:
        """Disconnect without sending pending data."""
        self._transport.abort()
        self.connection_lost(None)

    def deliver(self, data: bytes) -> None:
        """Send bytes from the device. Callable from any thread; the loop's queue keeps the order."""
        on_loop(self.send, self.encode(data))

    def encode(self, data: bytes) -> bytes:
        """Return *data* as it is sent over this transport."""
        return data

    def send(self, data: bytes) -> None:
        """Send *data* unchanged (on the loop's thread)."""
        if self._host is None or self._transport.is_closing():
            return
        if self._transport.get_write_buffer_size() < _BACKLOG:
            self._transport.write(data)


class _Rfc2217Client(_TcpClient):
    """A Telnet client with the com port option (RFC 2217), handled by pyserial's `PortManager`."""

    CONTROL_LINES = True

    def welcome(self, host: HostSide) -> None:
        host.set_lines(True, True)  # as after opening a local port; some clients never set them
        self._manager = rfc2217.PortManager(cast(Any, _HostPort(host)), cast(Any, _Replies(self.send)))

    def data_received(self, data: bytes) -> None:
        if self._host is None:
            return
        if b"\xff" in data or self._manager.mode != rfc2217.M_NORMAL or self._manager.suboption is not None:
            # The manager answers negotiations while it filters. Bytes before a command reach the chip before it.
            data = self._filter(data)
        if data:
            self._host.send(data)

    def _filter(self, data: bytes) -> bytes:
        plain = bytearray()
        start = 0
        while start < len(data):
            # Data is passed on in one piece up to the next IAC, commands are handled byte by byte.
            if self._manager.mode == rfc2217.M_NORMAL and self._manager.suboption is None:
                end = data.find(b"\xff", start)
                end = len(data) if end < 0 else end
                plain += data[start:end]
                start = end
            if start < len(data):
                if self._host is not None and plain and data[start : start + 2] not in (b"\xff\xff",):
                    self._host.send(bytes(plain))
                    plain.clear()
                plain += b"".join(self._manager.filter(data[start : start + 1]))
                start += 1
        return bytes(plain)

    def encode(self, data: bytes) -> bytes:
        return data.replace(b"\xff", b"\xff\xff")


class _Replies:
    """Adapts the connection for `PortManager`."""

    def __init__(self, send: Callable[[bytes], None]) -> None:
        self.write = send


class _HostPort:
    """Adapts a wire's host side to the serial port that `PortManager` expects."""

    def __init__(self, host: HostSide) -> None:
        self._host = host
        self._baudrate = ROM_BAUDRATE
        self._dtr = self._rts = True
        self.bytesize, self.parity, self.stopbits = 8, "N", 1
        self.xonxoff = self.rtscts = self.dsrdtr = self.break_condition = False
        self.cts = self.dsr = self.cd = True
        self.ri = False
        self.name = "wire"

    @property
    def baudrate(self) -> int:
        return self._baudrate

    @baudrate.setter
    def baudrate(self, value: int) -> None:
        self._baudrate = value
        self._host.set_baudrate(value)

    @property
    def dtr(self) -> bool:
        return self._dtr

    @dtr.setter
    def dtr(self, value: bool) -> None:
        self._dtr = bool(value)
        self._host.set_lines(self._dtr, self._rts)

    @property
    def rts(self) -> bool:
        return self._rts

    @rts.setter
    def rts(self, value: bool) -> None:
        self._rts = bool(value)
        self._host.set_lines(self._dtr, self._rts)

    def reset_input_buffer(self) -> None:
        """Do nothing: there is no buffer on this side."""

    def reset_output_buffer(self) -> None:
        """Do nothing: there is no buffer on this side."""


# -- ptys

_TCGETS2 = 0x802C542A
"""Gets ``struct termios2``, whose speeds are numbers (<asm-generic/ioctls.h>): of most architectures of Linux."""


_UNSET_BAUDRATE = 38400
"""The baud rate of a new pty, whose client need not know of baud rates."""


def _unset_baudrate(terminal: int) -> None:
    import termios

    with contextlib.suppress(termios.error):
        settings = termios.tcgetattr(terminal)
        settings[4] = settings[5] = termios.B38400
        termios.tcsetattr(terminal, termios.TCSANOW, settings)


def baudrate_of(terminal: int) -> int | None:
    """Return the baud rate of a terminal's descriptor; None if the system cannot tell it."""
    if sys.platform != "linux":
        return None
    import fcntl

    with contextlib.suppress(OSError):
        return int.from_bytes(fcntl.ioctl(terminal, _TCGETS2, bytes(44))[40:44], sys.byteorder)
    return None


class _PtyEndpoint:
    """A pseudo terminal in raw mode.

    If the wire's port vanishes, the terminal is closed and its link removed. When the port returns, the link points to
    a new terminal, as the kernel numbers a USB device that is plugged in again.

    Without a client, its master end only reports "hung up". A `PtyWatch` reports clients that open and close it. On
    systems without inotify the master is polled, and a client that follows another one at once is not noticed.
    """

    def __init__(self, wire: Wire, path: str) -> None:
        if os.name != "posix":
            raise PortError("ptys are only available on POSIX systems", hint="use rfc2217:// or socket://")
        self._wire = wire
        self._host: HostSide | None = None
        self._backlog = bytearray()
        self._look: asyncio.TimerHandle | None = None
        self._closed = False
        self._link = Path(path) if path else None
        self._openers = 0
        self._watch: PtyWatch | None = None
        self._master = -1
        self._device = ""
        self._plug_in()
        self.url = f"pty:{self._link or self._device}"
        wire.watch(self._presence_changed)
        on_loop(self._start)

    def _plug_in(self) -> None:
        """Make the terminal and its link."""
        import tty

        self._master, slave = os.openpty()
        try:
            tty.setraw(slave)
            self._device = os.ttyname(slave)
            if self._link is not None:
                _link(self._link, self._device)
        except BaseException:
            os.close(self._master)
            self._master = -1
            raise
        finally:
            os.close(slave)
        os.set_blocking(self._master, False)
        self._openers = 0
        self._watch = _watch(self._device)

    def _pull_out(self) -> None:
        """Disconnect the client and remove the terminal and its link (on the loop's thread)."""
        if self._master < 0:
            return
        self._leave()
        if self._look is not None:
            self._look.cancel()
        if self._watch is not None:
            loop().remove_reader(self._watch.descriptor)
            self._watch.close()
            self._watch = None
        if self._link is not None:
            with contextlib.suppress(OSError):
                if os.readlink(self._link) == self._device:
                    self._link.unlink()
        os.close(self._master)
        self._master = -1

    def _presence_changed(self, is_present: bool) -> None:
        on_loop(self._return if is_present else self._pull_out)

    def _return(self) -> None:
        if self._closed or self._master >= 0:
            return
        with contextlib.suppress(OSError):  # somebody else has taken its path, or the folder is gone
            self._plug_in()
            self._start()

    @property
    def client_count(self) -> int:
        return int(self._host is not None)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._wire.unwatch(self._presence_changed)

        async def stop() -> None:
            self._pull_out()

        run(stop())

    def _start(self) -> None:
        if self._closed or self._master < 0:
            return
        if self._watch is not None:
            loop().add_reader(self._watch.descriptor, self._clients_changed)
        else:
            self._look_for_client()

    def _clients_changed(self) -> None:
        assert self._watch is not None
        changes = self._watch.changes()
        while changes:
            if changes.pop(0):
                self._openers += 1
                if self._host is None:
                    self._arrive()
                continue
            self._openers = max(self._openers - 1, 0)
            if not changes and self._is_hung_up():
                self._openers = 0
            elif not changes:
                changes = self._watch.changes()  # includes a client that has connected since
                if changes[:1] != [True]:
                    self._openers = max(self._openers, 1)  # the kernel merges two unread open events
            if self._openers:
                continue
            if not changes:
                self._hear_last_words()
            self._leave()

    def _hear_last_words(self) -> None:
        """Read what a client wrote before it closed; nobody else has written since."""
        with contextlib.suppress(OSError):  # EIO at its end
            while self._host is not None:
                self._host.send(os.read(self._master, 1 << 16))

    def _is_hung_up(self) -> bool:
        poll = select.poll()
        poll.register(self._master, select.POLLIN)
        return any(event & select.POLLHUP for _, event in poll.poll(0))

    def _look_for_client(self) -> None:
        if self._closed or self._master < 0:
            return
        if self._is_hung_up():
            self._look = loop().call_later(_PTY_LOOK, self._look_for_client)
            return
        self._arrive()

    def _arrive(self) -> None:
        self._host = self._wire.connect(
            lambda data: on_loop(self._send, data), control_lines=False, baudrate_of=self._baudrate
        )
        loop().add_reader(self._master, self._readable)

    def _baudrate(self) -> int | None:
        """Return the baud rate that the client has set; None if it has not."""
        baudrate = None if self._closed else baudrate_of(self._master)
        return None if baudrate == _UNSET_BAUDRATE else baudrate

    def _readable(self) -> None:
        try:
            data = os.read(self._master, 1 << 16)
        except BlockingIOError:
            return
        except OSError:  # EIO: the last client closed
            if self._watch is not None:
                loop().remove_reader(self._master)  # the watch reports further changes
                return
            self._leave()
            self._look_for_client()
            return
        if self._host is not None and data:
            self._host.send(data)

    def _leave(self) -> None:
        host, self._host = self._host, None
        self._backlog.clear()
        _unset_baudrate(self._master)
        loop().remove_reader(self._master)
        loop().remove_writer(self._master)
        if host is not None:
            host.close()

    def _send(self, data: bytes) -> None:
        if self._host is None or len(self._backlog) > _BACKLOG:
            return
        idle = not self._backlog
        self._backlog += data
        if idle:
            self._flush()

    def _flush(self) -> None:
        try:
            while self._backlog:
                sent = os.write(self._master, self._backlog[: 1 << 16])
                del self._backlog[:sent]
        except BlockingIOError:
            loop().add_writer(self._master, self._flush)
            return
        except OSError:
            self._backlog.clear()
        loop().remove_writer(self._master)


def _watch(device: str) -> PtyWatch | None:
    try:
        return PtyWatch(device)
    except OSError:
        return None


def _link(link: Path, device: str) -> None:
    """Point *link* at *device* atomically. Only a dangling link is replaced."""
    if link.is_symlink() and not link.exists():
        link.unlink()
    os.symlink(device, link)
