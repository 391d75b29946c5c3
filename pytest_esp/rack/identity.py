"""Identifies boards: one identity per piece of hardware, whatever name its port is given by."""

from __future__ import annotations

import contextlib
import errno
import functools
import getpass
import ipaddress
import os
import re
import socket
import stat
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from platformdirs import user_state_path

from pytest_esp.errors import PortError
from pytest_esp.rack.holder import printable

if TYPE_CHECKING:
    from pytest_esp.rack.rack import Rack
    from pytest_esp.rack.spec import BoardSpec

STATE_ENVIRONMENT = "PYTEST_ESP_STATE_DIR"
_USB = re.compile(r"usb:(?P<vid>[0-9a-f]{4}):(?P<pid>[0-9a-f]{4})(?::serial=(?P<serial>.+))?", re.IGNORECASE)
_USB_SOCKET = re.compile(r"/(\d+-[\d.]+:\d+\.\d+)(?=/|$)")
_WINDOWS_PORT = re.compile(r"(?:[\\/]{2}[.?][\\/])?(com\d+):?", re.IGNORECASE)
_THIS_MACHINE = "127.0.0.1"
_TTYS = Path("/sys/class/tty")
_DEVICES = "/sys/dev/char"
_COORDINATOR_PORT = 20408
_FAILED_LOOKUP_LASTS = 30.0  # seconds: a name server that does not respond must not delay every lease


def state_folder() -> Path:
    """Return the folder for data kept between runs, which may not exist: PYTEST_ESP_STATE_DIR, or one per user."""
    root = os.environ.get(STATE_ENVIRONMENT)
    return Path(os.path.expanduser(root)) if root else user_state_path("pytest-esp")


def identity(spec: BoardSpec, rack: Rack) -> str:
    """Return the canonical identity of a board, which its lease is based on.

    Raises:
        PortError: if its port is malformed, or given by USB IDs, and no device or several devices match.
    """
    where = _real_path(os.path.abspath(rack.path)) if rack.path else f"built-in of {user_id()}"
    if spec.backend == "labgrid":
        # Tags may match many places; the lab ensures that two boards get different ones.
        return f"labgrid:{lab_identity(spec)}/{_place(spec)}" + ("" if spec.place else f":{where}:{spec.name}")
    if spec.port:
        return canonical_port(spec.port, board=spec.name)
    return f"{spec.backend}:{where}:{spec.name}"


_real_path = functools.lru_cache(maxsize=16)(os.path.realpath)


def files_of(spec: BoardSpec) -> list[str]:
    """Return canonical names of the files that a virtual board writes and others might, too."""
    return canonical_files(file for file in (spec.flash_file, spec.efuse_file) if file is not None)


def canonical_files(files: Iterable[str | os.PathLike[str]]) -> list[str]:
    """Return the canonical names of files: their paths without links; a file with several hard links has a second."""
    names: dict[str, None] = {}
    for file in files:
        path = os.path.normcase(os.path.realpath(file))
        names[path] = None
        with contextlib.suppress(OSError):
            if (status := os.stat(path)).st_nlink > 1:
                names[f"inode:{status.st_dev}:{status.st_ino}"] = None
    return list(names)


def lab_address(spec: BoardSpec) -> str:
    """Return the address of a labgrid board: ``coordinator:port/place``, or with its tags instead of the place."""
    return f"{coordinator_address(spec)}/{_place(spec)}"


def _place(spec: BoardSpec) -> str:
    return spec.place or ",".join(f"{key}={value}" for key, value in sorted((spec.tags or {}).items()))


def coordinator_address(spec: BoardSpec) -> str:
    """Return ``host:port`` of a labgrid board's coordinator, as it is connected to."""
    name = (spec.coordinator or "").lower()
    if name.count(":") > 1 and "[" not in name:
        name = f"[{name}]"
    return name if re.search(r":\d+$", name) else f"{name}:{_COORDINATOR_PORT}"


def lab_identity(spec: BoardSpec) -> str:
    """Return one ``host:port`` for all spellings of a labgrid board's coordinator."""
    host, _, port = coordinator_address(spec).rpartition(":")
    return f"{canonical_host(host.strip('[]'))}:{port}"


def user_id() -> str:
    """Return a unique ID of the user: the number if the system has one, as a container's user may not have a name."""
    if sys.platform == "win32":
        return re.sub(r"[^A-Za-z0-9]+", "-", getpass.getuser())
    return str(os.geteuid())


def canonical_port(port: str, board: str | None = None) -> str:
    """Return the canonical name of a port: all spellings of one port have the same.

    Links and USB IDs are resolved. For a USB device it is the USB socket: a chip with native USB may return as another
    device node after a reset, and is still the same board. A host is known by its address, and this machine by one
    address; users and options of URLs are removed.

    Raises:
        PortError: if it is malformed, or given by USB IDs, and no device or several devices match.
    """
    return _canonical(_device(port, board))


def possible_ports(port: str) -> set[str]:
    """Return the canonical names that a port may have: several if it is given by USB IDs that several devices have."""
    match = _USB.fullmatch(port)
    try:
        return {_canonical(device) for device in _matching(match)} if match else {canonical_port(port)}
    except PortError:
        return set()


def _canonical(port: str) -> str:
    if "://" in port:
        return _canonical_url(port)
    if match := _WINDOWS_PORT.fullmatch(port):
        return f"device:{match[1].upper()}"
    node = _node(port)
    if sys.platform == "darwin":  # each device has two nodes: with and without waiting for the carrier
        node = node.replace("/dev/tty.", "/dev/cu.")
    return _usb_socket(node) or f"device:{node}"


def _canonical_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme in ("spy", "alt"):  # pyserial's wrappers of another port
        return canonical_port(url.partition("://")[2].partition("?")[0])
    if parts.scheme == "hwgrep" and (device := _grep(url)):
        return _canonical(device)
    if parts.scheme in ("rfc2217", "socket"):  # one TCP port is one board, whatever the protocol
        return f"tcp:{canonical_host(parts.hostname or '')}:{parts.port}"
    return f"url:{parts.scheme}:{parts.netloc}{parts.path}"


def canonical_host(host: str) -> str:
    """Return one name for all names of a host: its lowest address, the same for all addresses of this machine.

    A host whose address cannot be found is known by its name.
    """
    name = host.lower().removesuffix(".")
    if name == "localhost" or name.endswith(".localhost"):
        return _THIS_MACHINE
    addresses = _addresses(name, int(time.monotonic() / _FAILED_LOOKUP_LASTS))
    if any(_is_own(address) for address in addresses):
        return _THIS_MACHINE
    return addresses[0] if addresses else name


_known_addresses: dict[str, Sequence[str]] = {}
"""The addresses found, for as long as the process runs: a board's identity must not change under its lease."""


@functools.lru_cache(maxsize=256)
def _addresses(name: str, _period: int) -> Sequence[str]:
    """Return the addresses of a host, IPv4 first; none if they cannot be found, which is true for one *_period*."""
    if name not in _known_addresses:
        try:
            found = {str(entry[4][0]) for entry in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)}
        except (OSError, ValueError):  # UnicodeError: the name is too long, or has an empty label
            return ()
        parsed = [ipaddress.ip_address(address.partition("%")[0]) for address in found]
        plain = {getattr(address, "ipv4_mapped", None) or address for address in parsed}
        _known_addresses[name] = [str(address) for address in sorted(plain, key=lambda item: (item.version, int(item)))]
    return _known_addresses[name]


@functools.lru_cache(maxsize=256)
def _is_own(address: str) -> bool:
    """Return whether an address is one of this machine's: only to those can a socket be bound."""
    parsed = ipaddress.ip_address(address)
    if parsed.is_loopback or parsed.is_unspecified:  # a connection to the unspecified address is one to this machine
        return True
    if parsed.is_multicast:
        return False
    family = socket.AF_INET if parsed.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise PortError("too many open files", hint="close files, or raise the limit (`ulimit -n`)") from error
        return False
    return True


def _grep(url: str) -> str | None:
    """Return the device that pyserial's ``hwgrep://REGEXP&n=NUMBER`` finds; None if there is none."""
    from serial.tools import list_ports

    expression, *options = url[len("hwgrep://") :].split("&")
    number = next((option[2:] for option in options if option.startswith("n=")), "0")
    try:
        found = sorted(item.device for item in list_ports.grep(expression))
        return found[int(number)]
    except (IndexError, ValueError, re.error):
        return None


def _node(port: str) -> str:
    """Return the path of a device without links; of a node elsewhere the one in /dev that is the same device."""
    node = os.path.realpath(port)
    if sys.platform == "linux" and os.path.dirname(node) != "/dev":
        try:
            status = os.stat(node)
        except OSError:
            return node
        if stat.S_ISCHR(status.st_mode):
            number = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
            name = os.path.basename(os.path.realpath(os.path.join(_DEVICES, number)))
            if (_TTYS / name).exists():
                return f"/dev/{name}"
    return node


def kernel_file(spec: BoardSpec, *, of_console: bool = False) -> str | None:
    """Return the kernel's own file of a local serial port on Linux, the same in every sandbox with the host's /sys.

    Args:
        of_console: whether it is that of ``console_port``.

    Raises:
        PortError: see `resolve_port`.
    """
    port = spec.console_port if of_console else spec.port
    if sys.platform != "linux" or spec.backend != "serial" or "://" in (port or ""):
        return None
    where = resolve_console_port(spec) if of_console else resolve_port(spec)
    file = _TTYS / os.path.basename(_node(where)) / "dev"
    return str(file) if file.exists() else None


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
    if "\0" in port:
        raise ValueError("a port's name cannot contain a null character")
    if port[:4].lower() == "usb:" and _USB.fullmatch(port) is None:
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
    return _device(spec.port or "", spec.name)


def resolve_console_port(spec: BoardSpec) -> str:
    """Return the device or URL of a board's ``console_port``; see `resolve_port`."""
    try:
        return _device(spec.console_port or "", spec.name)
    except PortError as error:
        raise PortError(f"the console port: {error.message}", board=spec.name, hint=error.hint) from None


def _device(port: str, board: str | None) -> str:
    try:
        check_port(port)
    except ValueError as error:
        raise PortError(f"{port!r} is not a valid port", board=board, hint=str(error)) from None
    match = _USB.fullmatch(port)
    if match is None:
        return port
    found = _matching(match)
    if len(found) == 1:
        return found[0]
    if not found:
        raise PortError(f"no USB device {port} is plugged in", board=board, hint=_plugged_in())
    raise PortError(
        f"{port} matches several devices: {printable(', '.join(found))}",
        board=board,
        hint="add :serial=SERIAL to select one",
    )


def _matching(match: re.Match[str]) -> list[str]:
    """Return the devices with these USB IDs: the one with this serial number, else all whose number begins so."""
    from serial.tools import list_ports

    wanted = (match["serial"] or "").casefold()
    devices = {
        item.device: (item.serial_number or "").casefold()
        for item in list_ports.comports()
        if item.vid == int(match["vid"], 16) and item.pid == int(match["pid"], 16)
    }
    found = [device for device, serial in devices.items() if serial == wanted and wanted]
    return found or [device for device, serial in devices.items() if serial.startswith(wanted)]


def _plugged_in() -> str:
    from serial.tools import list_ports

    seen = [
        f"usb:{item.vid:04x}:{item.pid:04x}:serial={item.serial_number} ({item.device})"
        for item in list_ports.comports()
        if item.vid is not None and item.pid is not None
    ]
    return f"plugged in: {printable(', '.join(seen))}" if seen else "no USB serial port was found"
