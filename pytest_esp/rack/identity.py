"""Identifies boards: one identity per piece of hardware, whatever name its port is given by."""

from __future__ import annotations

import getpass
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pytest_esp.errors import PortError

if TYPE_CHECKING:
    from pytest_esp.rack.rack import Rack
    from pytest_esp.rack.spec import BoardSpec

_USB = re.compile(r"usb:(?P<vid>[0-9a-fA-F]{4}):(?P<pid>[0-9a-fA-F]{4})(?::serial=(?P<serial>.+))?")
_USB_SOCKET = re.compile(r"/(\d+-[\d.]+:\d+\.\d+)(?=/|$)")
_WINDOWS_PORT = re.compile(r"(?:\\\\\.\\)?(com\d+)", re.IGNORECASE)
_LOCAL = {"localhost": "127.0.0.1", "::1": "127.0.0.1"}
_TTYS = Path("/sys/class/tty")
_COORDINATOR_PORT = 20408


def identity(spec: BoardSpec, rack: Rack) -> str:
    """Return the canonical identity of a board, which its lease is based on.

    Raises:
        PortError: if its port is given by USB IDs, and no device or several devices match.
    """
    where = os.path.realpath(rack.path) if rack.path else f"built-in of {user_id()}"
    if spec.backend == "labgrid":
        # Tags may match many places; the lab ensures that two boards get different ones.
        return f"labgrid:{lab_address(spec)}" + ("" if spec.place else f":{where}:{spec.name}")
    if spec.port:
        return canonical_port(resolve_port(spec))
    return f"{spec.backend}:{where}:{spec.name}"


def lab_address(spec: BoardSpec) -> str:
    """Return the address of a labgrid board: ``coordinator:port/place``, or with its tags instead of the place."""
    tags = ",".join(f"{key}={value}" for key, value in sorted((spec.tags or {}).items()))
    return f"{coordinator_address(spec)}/{spec.place or tags}"


def coordinator_address(spec: BoardSpec) -> str:
    """Return ``host:port`` of a labgrid board's coordinator."""
    name = (spec.coordinator or "").lower()
    return name if ":" in name else f"{name}:{_COORDINATOR_PORT}"


def user_id() -> str:
    """Return a unique ID of the user: the number if the system has one, as a container's user may not have a name."""
    if sys.platform == "win32":
        return re.sub(r"[^A-Za-z0-9]+", "-", getpass.getuser())
    return str(os.geteuid())


def canonical_port(port: str) -> str:
    """Return the canonical name of a port.

    Links are resolved. For a USB device it is the USB socket: a chip with native USB may return as another device node
    after a reset, and is still the same board. The options of URLs are removed.
    """
    if "://" in port:
        return _canonical_url(port)
    if match := _WINDOWS_PORT.fullmatch(port):
        return f"device:{match[1].upper()}"
    node = os.path.realpath(port)
    if sys.platform == "darwin":  # each device has two nodes: with and without waiting for the carrier
        node = node.replace("/dev/tty.", "/dev/cu.")
    return _usb_socket(node) or f"device:{node}"


def _canonical_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme in ("spy", "alt"):  # pyserial's wrappers of another port
        return canonical_port(url.partition("://")[2].partition("?")[0])
    if parts.scheme in ("rfc2217", "socket"):
        host = parts.hostname or ""
        return f"tcp:{_LOCAL.get(host, host)}:{parts.port}"  # one TCP port is one board, whatever the protocol
    return f"url:{parts.scheme}:{parts.netloc}{parts.path}"


def _usb_socket(node: str) -> str | None:
    """Return hub path and interface of a Linux device node's USB device; None if it is not a USB device."""
    device = _TTYS / os.path.basename(node) / "device"
    if os.path.dirname(node) != "/dev" or not device.exists():
        return None
    sockets = _USB_SOCKET.findall(os.path.realpath(device))
    if not sockets:
        return None
    number = device / "port_number"  # for adapters with several ports on one interface
    return f"usb-socket:{sockets[-1]}" + (f"#{number.read_text().strip()}" if number.is_file() else "")


def check_port(port: str) -> None:
    """Check the syntax of a port's name.

    Raises:
        ValueError: if it is invalid; says what was expected.
    """
    if port.startswith("usb:") and _USB.fullmatch(port) is None:
        raise ValueError("expected usb:VID:PID or usb:VID:PID:serial=SERIAL, with four hex digits for each id")
    scheme, separator, _ = port.partition("://")
    if separator and scheme.lower() in ("rfc2217", "socket"):
        try:
            parts = urlsplit(port)
            complete = bool(parts.hostname and parts.port)
        except ValueError:  # the port is not a number, or a [ is not closed
            complete = False
        if not complete:
            raise ValueError(f"expected {scheme.lower()}://HOST:PORT")


def resolve_port(spec: BoardSpec) -> str:
    """Return the device or URL to open for a board; ``usb:VID:PID:serial=...`` is looked up.

    A serial number may be abbreviated to its beginning if only one device matches.

    Raises:
        PortError: if no device or several devices match, or the port is invalid.
    """
    port = spec.port or ""
    try:
        check_port(port)
    except ValueError as error:
        raise PortError(f"{port!r} is not a valid port", board=spec.name, hint=str(error)) from None
    match = _USB.fullmatch(port)
    if match is None:
        return port
    from serial.tools import list_ports

    wanted = (match["serial"] or "").casefold()
    devices = {
        item.device: (item.serial_number or "").casefold()
        for item in list_ports.comports()
        if item.vid == int(match["vid"], 16) and item.pid == int(match["pid"], 16)
    }
    found = [device for device, serial in devices.items() if serial == wanted and wanted]
    found = found or [device for device, serial in devices.items() if serial.startswith(wanted)]
    if len(found) == 1:
        return found[0]
    if not found:
        raise PortError(f"no USB device {port} is plugged in", board=spec.name, hint=_plugged_in())
    raise PortError(
        f"{port} matches several devices: {', '.join(found)}",
        board=spec.name,
        hint="add :serial=SERIAL to select one",
    )


def _plugged_in() -> str:
    from serial.tools import list_ports

    seen = [
        f"usb:{item.vid:04x}:{item.pid:04x}:serial={item.serial_number} ({item.device})"
        for item in list_ports.comports()
        if item.vid is not None and item.pid is not None
    ]
    return f"plugged in: {', '.join(seen)}" if seen else "no USB serial port was found"
