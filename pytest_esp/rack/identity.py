"""Which board is which: one identity per piece of hardware, however its port is named."""

from __future__ import annotations

import getpass
import os
import re
import sys
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pytest_esp.errors import PortError

if TYPE_CHECKING:
    from pytest_esp.rack.rack import Rack
    from pytest_esp.rack.spec import BoardSpec

_USB = re.compile(r"usb:(?P<vid>[0-9a-fA-F]{4}):(?P<pid>[0-9a-fA-F]{4})(?::serial=(?P<serial>.+))?")
_WINDOWS_PORT = re.compile(r"(?:\\\\\.\\)?(com\d+)", re.IGNORECASE)


def identity(spec: BoardSpec, rack: Rack) -> str:
    """Return the canonical identity of a board, by which it is leased.

    Raises:
        PortError: if it is named by USB ids and none, or more than one, is plugged in.
    """
    if spec.backend == "labgrid":
        place = spec.place or ",".join(f"{key}={value}" for key, value in sorted((spec.tags or {}).items()))
        return f"labgrid:{(spec.coordinator or '').lower()}/{place}"
    if spec.port:
        return canonical_port(resolve_port(spec))
    where = os.path.realpath(rack.path) if rack.path else f"built-in of {getpass.getuser()}"
    return f"{spec.backend}:{where}:{spec.name}"


def canonical_port(port: str) -> str:
    """Return one name for all names of a port: the device node behind links, a URL without its options."""
    if "://" in port:
        parts = urlsplit(port)
        host = (parts.hostname or "").replace("localhost", "127.0.0.1")
        return f"tcp:{host}:{parts.port}"  # one TCP port is one board, whatever is spoken on it
    if match := _WINDOWS_PORT.fullmatch(port):
        return f"device:{match[1].upper()}"
    return f"device:{os.path.realpath(port)}"


def resolve_port(spec: BoardSpec) -> str:
    """Return what to open for a board with a port: a ``usb:VID:PID:serial=...`` is looked up.

    Raises:
        PortError: if none, or more than one, of these is plugged in.
    """
    port = spec.port or ""
    match = _USB.fullmatch(port)
    if match is None:
        if port.startswith("usb:"):
            raise PortError(
                f"{port!r} names no USB device",
                board=spec.name,
                hint="expected usb:VID:PID:serial=SERIAL in hex",
            )
        return port
    from serial.tools import list_ports

    found = [
        item.device
        for item in list_ports.comports()
        if item.vid == int(match["vid"], 16)
        and item.pid == int(match["pid"], 16)
        and match["serial"] in (None, item.serial_number)
    ]
    if len(found) == 1:
        return found[0]
    if not found:
        raise PortError(f"no USB device {port} is plugged in", board=spec.name, hint=_plugged_in())
    raise PortError(
        f"{port} is ambiguous: {', '.join(found)}",
        board=spec.name,
        hint="add :serial=SERIAL to tell them apart",
    )


def _plugged_in() -> str:
    from serial.tools import list_ports

    seen = [
        f"usb:{item.vid:04x}:{item.pid:04x}:serial={item.serial_number} ({item.device})"
        for item in list_ports.comports()
        if item.vid is not None and item.pid is not None
    ]
    return f"plugged in: {', '.join(seen)}" if seen else f"this {sys.platform} machine shows no USB serial port"
