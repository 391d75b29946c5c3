"""Which board is which: one identity per piece of hardware, however its port is named."""

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
    """Return the canonical identity of a board, by which it is leased.

    Raises:
        PortError: if it is named by USB ids and none, or more than one, is plugged in.
    """
    where = os.path.realpath(rack.path) if rack.path else f"built-in of {user_id()}"
    if spec.backend == "labgrid":
        # Tags may mean many places: the lab itself sees to it that two boards get two.
        return f"labgrid:{lab_address(spec)}" + ("" if spec.place else f":{where}:{spec.name}")
    if spec.port:
        return canonical_port(resolve_port(spec))
    return f"{spec.backend}:{where}:{spec.name}"


def lab_address(spec: BoardSpec) -> str:
    """Return where a labgrid board is: ``coordinator:port/place``, or its tags instead of the place."""
    tags = ",".join(f"{key}={value}" for key, value in sorted((spec.tags or {}).items()))
    return f"{coordinator_address(spec)}/{spec.place or tags}"


def coordinator_address(spec: BoardSpec) -> str:
    """Return host and port of a labgrid board's coordinator."""
    name = (spec.coordinator or "").lower()
    return name if ":" in name else f"{name}:{_COORDINATOR_PORT}"


def user_id() -> str:
    """Return what tells users apart: a number where there are numbers, as a container's user may have no name."""
    if sys.platform == "win32":
        return re.sub(r"[^A-Za-z0-9]+", "-", getpass.getuser())
    return str(os.geteuid())


def canonical_port(port: str) -> str:
    """Return one name for all names of a port.

    The device behind links is a board's USB socket where it has one: a chip with native USB that is reset while it is
    held comes back as another device node, and is still the same board. A URL loses its options.
    """
    if "://" in port:
        return _canonical_url(port)
    if match := _WINDOWS_PORT.fullmatch(port):
        return f"device:{match[1].upper()}"
    node = os.path.realpath(port)
    if sys.platform == "darwin":  # one device, two nodes: with and without waiting for the carrier
        node = node.replace("/dev/tty.", "/dev/cu.")
    return _usb_socket(node) or f"device:{node}"


def _canonical_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme in ("spy", "alt"):  # pyserial's wrappers of another port
        return canonical_port(url.partition("://")[2].partition("?")[0])
    if parts.scheme in ("rfc2217", "socket"):
        host = parts.hostname or ""
        return f"tcp:{_LOCAL.get(host, host)}:{parts.port}"  # one TCP port is one board, whatever is spoken on it
    return f"url:{parts.scheme}:{parts.netloc}{parts.path}"


def _usb_socket(node: str) -> str | None:
    """Return hub path and interface of the USB device behind a Linux device node; None if there is none."""
    device = _TTYS / os.path.basename(node) / "device"
    if os.path.dirname(node) != "/dev" or not device.exists():
        return None
    sockets = _USB_SOCKET.findall(os.path.realpath(device))
    if not sockets:
        return None
    number = device / "port_number"  # an adapter with several ports on one interface
    return f"usb-socket:{sockets[-1]}" + (f"#{number.read_text().strip()}" if number.is_file() else "")


def check_port(port: str) -> None:
    """Refuse what can be no port, without looking at the machine.

    Raises:
        ValueError: says what was expected.
    """
    if port.startswith("usb:") and _USB.fullmatch(port) is None:
        raise ValueError("expected usb:VID:PID or usb:VID:PID:serial=SERIAL, with four hex digits for each id")
    scheme, separator, _ = port.partition("://")
    if separator and scheme.lower() in ("rfc2217", "socket"):
        try:
            parts = urlsplit(port)
            complete = bool(parts.hostname and parts.port)
        except ValueError:  # a port that is no number, or an unclosed [
            complete = False
        if not complete:
            raise ValueError(f"expected {scheme.lower()}://HOST:PORT")


def resolve_port(spec: BoardSpec) -> str:
    """Return what to open for a board with a port: a ``usb:VID:PID:serial=...`` is looked up.

    A serial number may be shortened to its beginning, as long as it fits one device only.

    Raises:
        PortError: if none, or more than one, of these is plugged in; or if it can be no port.
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
