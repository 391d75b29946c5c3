"""The serial backend: a real board on a local port, or a remote port over RFC 2217 or a raw socket."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any, ClassVar, cast

import serial
from serial.tools import list_ports

from pytest_esp.boards.board import Board
from pytest_esp.boards.port import Port
from pytest_esp.errors import PortError
from pytest_esp.names import nearest
from pytest_esp.rack.identity import resolve_console_port, resolve_port
from pytest_esp.wire import rfc2217
from pytest_esp.wire.loop import settle
from pytest_esp.wire.port import VirtualPort
from pytest_esp.wire.proxy import PortProxy
from pytest_esp.wire.wire import ROM_BAUDRATE, Wire

RETURN_TIMEOUT = 10.0
"""Seconds to wait for a port that vanished. A chip's own USB is back after 0.2 to 2 s, depending on the host."""
_RETURN_LOOK = 0.05  # seconds between two looks for it


class SerialBoard(Board):
    """A real board. Its port is opened exclusively: other programs cannot use it at the same time.

    If its entry has ``faults``, a proxy in front of the port can inject them.
    """

    backend: ClassVar[str] = "serial"
    virtual: ClassVar[bool] = False

    _port: serial.SerialBase | None = None
    _proxy: PortProxy | None = None
    _front: VirtualPort | None = None
    _console_port: serial.SerialBase | None = None

    @property
    def wire(self) -> Wire | None:
        """The wire of the open board's proxy, if the entry has ``faults``; else None."""
        return self._proxy.wire if self._proxy else None

    def resolve(self) -> str:
        """Return the device or URL to open.

        Raises:
            PortError: if the board cannot be found.
        """
        return resolve_port(self.spec)

    def open(self) -> Port:
        """Open the port exclusively, with RTS and DTR as pyserial sets them."""
        port = self._port = self._open(self.resolve())
        if self.spec.faults is None:
            return cast(Port, port)
        self._proxy = PortProxy(port)
        # A name like a remote port's: esptool then sets the lines one by one, without calls on the device.
        self._front = VirtualPort(self._proxy.wire, f"rfc2217:proxy:{port.port}")
        self._front.open()
        self.switch_on_faults()
        return self._front

    def open_console(self) -> Port | None:
        """Open ``console_port``, exclusively; None if the entry does not have it."""
        if self.spec.console_port is None:
            return None
        where = resolve_console_port(self.spec)
        try:
            port = self._console_port = self._open(where)
        except PortError as error:
            error.message = f"the console port: {error.message}"
            raise
        return cast(Port, port)

    def _open(self, where: str) -> serial.SerialBase:
        rfc2217.register()
        if _is_file(where):  # never open a regular file: a user of ports may not be allowed to access files
            raise self._explain(where, OSError(errno.ENOTTY, os.strerror(errno.ENOTTY)))
        try:
            port = serial.serial_for_url(where, baudrate=ROM_BAUDRATE, do_not_open=True, exclusive=True)
            _open(port)
        except (OSError, ValueError) as error:  # SerialException is an OSError
            raise self._explain(where, error) from error
        return port

    def reopen(self, reason: str, *, wait: bool = True) -> None:
        """Open the port again for up to `RETURN_TIMEOUT` seconds: it is found by its serial number, link or URL."""
        port, front = self._port, self._front  # another thread may close them
        if front is not None:  # a fault to show at once; what is behind the proxy does not return by itself
            front.close()
            with contextlib.suppress(OSError):
                return front.open()
        if port is None or front is not None:
            return super().reopen(reason)
        settle()  # the loop may still use the port's descriptor
        with contextlib.suppress(OSError):
            port.close()
        begun = time.monotonic()
        while not self._try_to_reopen(port):
            waited = time.monotonic() - begun
            if not wait or waited >= RETURN_TIMEOUT or self._port is not port:
                raise PortError(
                    f"the port was lost: {reason}; it did not return within {waited:.0f} s",
                    board=self.name,
                    hint="check that the board is plugged in and has power; data being written may be incomplete",
                )
            time.sleep(_RETURN_LOOK)

    def _try_to_reopen(self, port: serial.SerialBase) -> bool:
        try:
            port.port = self.resolve()
            if _is_file(str(port.port)):
                return False
            with _input_kept(port):
                _open(port)
            return True
        except (PortError, OSError, ValueError):
            return False

    def close(self) -> None:
        """Close the ports."""
        console, self._console_port = self._console_port, None
        if console is not None:
            settle()
            console.close()
        port, self._port = self._port, None
        proxy, self._proxy = self._proxy, None
        front, self._front = self._front, None
        if front is not None:
            front.close()
        if proxy is not None:
            proxy.close()
        elif port is not None:
            settle()  # the loop may still use the port's descriptor
            port.close()

    def _explain(self, where: str, error: Exception) -> PortError:
        message, hint = _explain(where, error)
        return PortError(message, board=self.name, attempted=f"opening {where}", hint=hint)


def _open(port: Any) -> None:
    """Open *port* with RTS and DTR in a state that does not reset the chip."""
    # The kernel asserts both, and pyserial then sets each as it was last set: RTS alone would reset the chip. Windows
    # asserts one after the other, which also would.
    port.rts = port.dtr = sys.platform != "win32"
    port.open()


@contextlib.contextmanager
def _input_kept(port: Any) -> Generator[None]:
    """Let *port* keep what arrives while it is opened, which pyserial discards: the first output after a reset."""
    names = ("reset_input_buffer", "_reset_input_buffer")
    vars(port).update(dict.fromkeys(names, lambda: None))
    try:
        yield
    finally:
        for name in names:
            del vars(port)[name]


def _is_file(where: str) -> bool:
    """Return whether *where* exists and is not a device."""
    try:
        return "://" not in where and sys.platform != "win32" and not stat.S_ISCHR(os.stat(where).st_mode)
    except (OSError, ValueError):
        return False


def _explain(where: str, error: Exception) -> tuple[str, str]:  # noqa: PLR0911 - a table written as ifs
    """Return message and hint for pyserial's exception."""
    code = _errno(error)
    text = str(error)
    if "://" in where:
        return (
            f"the remote port does not respond: {text}",
            "check that its server is running and has no other client",
        )
    if code == errno.ENOENT or "FileNotFoundError" in text:
        ports = [item.device for item in list_ports.comports()]
        found = f"available ports: {nearest(where, ports, 5)}" if ports else "no serial port was found"
        return f"the port {where} does not exist", f"check that the board is plugged in; {found}"
    if code == errno.EACCES or "Permission" in text or "Access is denied" in text:
        if sys.platform == "win32":
            return f"the port {where} is in use by another program", "close the monitor or IDE that uses it"
        return (
            f"permission denied for {where}",
            f"add the user to the group that owns it ({_group(where)}), e.g. `sudo usermod -aG dialout $USER`, "
            "and log in again (docs/boards.md)",
        )
    if code in (errno.EBUSY, errno.EAGAIN) or "exclusively lock" in text:
        return (
            f"the port {where} is in use by another program",
            f"close the monitor or other program that uses it: {_users(where)}",
        )
    if code in (errno.ENOTTY, errno.EINVAL) or "Could not configure" in text:
        return f"{where} is not a serial port", "use the board's device node, e.g. /dev/ttyUSB0"
    return f"cannot open the port {where}: {text}", "unplug the board and plug it in again"


def _errno(error: Exception) -> int | None:
    code = getattr(error, "errno", None)
    if code is None and (match := re.search(r"\[Errno (\d+)\]", str(error))):
        code = int(match[1])
    return code


def _group(where: str) -> str:
    try:
        import grp

        return grp.getgrgid(os.stat(where).st_gid).gr_name
    except (ImportError, OSError, KeyError):
        return "dialout"


def _users(where: str) -> str:
    """Return the processes that have the device open, as far as /proc shows them to this user."""
    try:
        device = os.path.realpath(where)
        pids = sorted({int(link.parts[2]) for link in Path("/proc").glob("[0-9]*/fd/*") if _target(link) == device})
    except OSError:
        pids = []
    return "held by pid " + ", ".join(map(str, pids)) if pids else "held by a process that this user cannot see"


def _target(link: Path) -> str:
    try:
        return os.readlink(link)
    except OSError:
        return ""
