"""Looks whether a real board's port is there, without opening a serial port: that may reset a running board."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pytest_esp.errors import PortError
from pytest_esp.names import nearest
from pytest_esp.rack.identity import resolve_console_port, resolve_port

if TYPE_CHECKING:
    from pytest_esp.rack.spec import BoardSpec

_TIMEOUT = 2.0  # seconds for a server's answer


def check_present(spec: BoardSpec) -> None:
    """Check that a serial board's local ports exist; other boards and remote ports pass.

    Raises:
        PortError: if one does not exist.
    """
    if spec.backend == "serial":
        _check_present(spec, spec.port or "", resolve_port, "port")
        if spec.console_port:
            _check_present(spec, spec.console_port, resolve_console_port, "console port")


def _check_present(spec: BoardSpec, port: str, resolve: Callable[[BoardSpec], str], what: str) -> None:
    if "://" in port:
        return
    where = resolve(spec)
    if port.startswith("usb:"):  # it was just found among the devices
        return
    if sys.platform == "win32":
        found = where.upper().removeprefix("\\\\.\\") in (name.upper() for name in _ports())
    else:
        found = os.path.exists(where)
    if not found:
        ports = _ports()
        plugged = f"available ports: {nearest(where, ports, 5)}" if ports else "no serial port was found"
        raise PortError(
            f"the {what} {where} does not exist",
            board=spec.name,
            hint=f"check that the board is plugged in; {plugged}",
        )


def check_reachable(spec: BoardSpec) -> None:
    """Check `check_present`, and that the servers of remote ports accept a connection, which ends at once.

    Only for a board whose lease is held, or that nobody holds: most servers have one client at a time.

    Raises:
        PortError: if one does not.
    """
    check_present(spec)
    if spec.backend == "serial":
        for port, what in ((spec.port, "remote port"), (spec.console_port, "console port")):
            _check_reachable(spec, port or "", what)


def _check_reachable(spec: BoardSpec, port: str, what: str) -> None:
    parts = urlsplit(port)
    if parts.scheme.lower() not in ("rfc2217", "socket"):
        return
    try:
        with contextlib.closing(socket.create_connection((parts.hostname or "", parts.port or 0), timeout=_TIMEOUT)):
            pass
    except OSError as error:
        raise PortError(
            f"no connection to the {what} {port}: {error.strerror or error}",
            board=spec.name,
            hint="check that its server is running, and the address",
        ) from error


def _ports() -> list[str]:
    from serial.tools import list_ports

    return [item.device for item in list_ports.comports()]
