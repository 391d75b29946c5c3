"""The serial ports of this machine, and racks of boards that are named by their ports only. No port is opened."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_esp.errors import PortError, RackError
from pytest_esp.rack.holder import printable
from pytest_esp.rack.identity import canonical_port, check_port
from pytest_esp.rack.rack import Rack
from pytest_esp.rack.spec import BoardSpec

if TYPE_CHECKING:
    from serial.tools.list_ports_common import ListPortInfo

AUTO = "auto"
"""In place of a port: all ports that `SerialPort.is_likely`."""

_ESPRESSIF, _CP210X, _CH34X, _FTDI = (0x303A, None), (0x10C4, 0xEA60), (0x1A86, None), (0x0403, None)
_LIKELY = {_ESPRESSIF, _CP210X, _CH34X, _FTDI}
"""USB IDs (vendor, product) of chips with native USB, and of the bridges on boards. None: all products."""

_LINKS = ("/dev/serial/by-id", "/dev/serial/by-path")


@dataclass(frozen=True)
class SerialPort:
    """A serial port. Its texts come from a USB device; they are without control characters.

    Attributes:
        device: the device node or name.
        name: the port's name for boards.toml: of the names that lead to it, the one that lasts longest.
        usb: ``usb:VID:PID`` or ``usb:VID:PID:serial=SERIAL``; None if it is not a USB device.
        is_likely: whether an Espressif chip may be behind it, by its USB IDs, or because the user named it.
    """

    device: str
    name: str
    description: str = ""
    usb: str | None = None
    serial_number: str | None = None
    is_likely: bool = False


def plugged_in() -> list[SerialPort]:
    """Return the serial ports that the system lists, sorted by device."""
    from serial.tools import list_ports

    return [_serial_port(item) for item in sorted(list_ports.comports())]


def find_ports(given: Sequence[str] = (), *, others: bool = True) -> list[SerialPort]:
    """Return the ports that are plugged in, and the *given* ones that the system does not list.

    Args:
        given: ports that the user named; they count as likely.
        others: False for the given ports only.

    Raises:
        PortError: if a given port is malformed, or given by USB IDs, and no device or several devices match.
    """
    missing = {canonical_port(port): port for port in reversed(given)}
    found: list[SerialPort] = []
    for port in plugged_in():
        is_given = missing.pop(canonical_port(port.device), None) is not None
        if is_given or others:
            found.append(replace(port, is_likely=is_given or port.is_likely))
    return found + [SerialPort(printable(port), port, is_likely=True) for port in reversed(missing.values())]


def expand_auto(ports: Sequence[str]) -> list[str]:
    """Return *ports* with the names of all likely ports in place of `AUTO`.

    Raises:
        RackError: if there is none; says which ports were found.
    """
    if AUTO not in ports:
        return list(ports)
    found = plugged_in()
    likely = [port.name for port in found if port.is_likely]
    if not likely:
        seen = ", ".join(f"{port.device} ({port.usb or port.description})" for port in found)
        have = f"found: {seen}" if seen else "no serial port was found"
        raise RackError(
            f"auto found no Espressif chip and no USB bridge; {have}",
            hint="check the cable and the permissions (docs/boards.md), or name the port",
        )
    return [name for port in ports for name in (likely if port == AUTO else [port])]


def rack_of_ports(rack: Rack, ports: Sequence[str]) -> Rack:
    """Return a rack of the boards on *ports* only.

    An entry of *rack* that names a port holds for it, with all its keys. Other ports become serial boards whose chip
    is not known, named after their ports.

    Raises:
        RackError: if a port is malformed, or given by USB IDs, and no device or several devices match, or if `AUTO`
            finds none.
    """
    boards: dict[str, BoardSpec] = {}
    seen: set[str] = set()
    try:
        for port in expand_auto(ports):
            if (identity := canonical_port(port)) not in seen:
                seen.add(identity)
                spec = rack.board_at(port) or board_on(port, [*boards, *rack.boards])
                boards[spec.name] = spec
    except PortError as error:
        raise RackError(error.message, hint=error.hint) from error
    return Rack("ports", rack.path, boards, rack.lock_dir)


def board_on(port: str, taken: Sequence[str] = ()) -> BoardSpec:
    """Return the entry of a board of which only the port is known, with a name that is not *taken*.

    Raises:
        PortError: if *port* is malformed.
    """
    name = stem = _board_name(port)
    number = 1
    while name in taken:
        number += 1
        name = f"{stem}-{number}"
    try:
        return BoardSpec.model_validate({"name": name, "backend": "serial", "chip": AUTO, "port": port})
    except ValueError as error:
        raise PortError(f"{port!r} is not a valid port", hint=str(error).splitlines()[-1].strip()) from error


def _board_name(port: str) -> str:
    """Return e.g. ``ttyUSB0``, ``pts-3``, ``bench-4000`` (of ``rfc2217://bench:4000``)."""
    where = port.partition("://")[2] or port
    if where.startswith("/") and (not where.startswith("/dev/") or where.startswith(_LINKS)):
        where = os.path.basename(where)
    bare = re.sub(r"[^A-Za-z0-9_.-]+", "-", where.removeprefix("/dev/")).strip("-._")
    return bare or "board"


def _serial_port(item: ListPortInfo) -> SerialPort:
    usb = None
    if item.vid is not None and item.pid is not None:
        usb = f"usb:{item.vid:04x}:{item.pid:04x}" + (f":serial={item.serial_number}" if item.serial_number else "")
    return SerialPort(
        printable(item.device),
        printable(_lasting_name(item, usb)),
        "" if item.description in (None, "n/a") else printable(item.description),
        usb and printable(usb),
        item.serial_number and printable(item.serial_number),
        bool(_LIKELY & {(item.vid, item.pid), (item.vid, None)}),
    )


def _lasting_name(item: ListPortInfo, usb: str | None) -> str:
    """Return the name of a port that lasts longest of those that lead to it.

    udev's names stand for one interface of one device. Without a serial number they stand for a kind of device, or for
    a USB socket; the socket is the surer one, as two devices of a kind share a name.
    """
    by_id, by_path = (list(_links_to(item.device, folder)) for folder in _LINKS)
    named = [*by_id, usb, *by_path] if item.serial_number else [*by_path, *by_id]
    return next((name for name in named if name and _leads_to(name, item.device)), item.device)


def _links_to(device: str, folder: str) -> Iterator[str]:
    try:
        links = sorted(Path(folder).iterdir())
    except OSError:
        return
    for link in links:
        if os.path.realpath(link) == device:
            yield str(link)


def _leads_to(name: str, device: str) -> bool:
    """Return whether *name* can stand in boards.toml for *device*, and for no other one."""
    try:
        check_port(name)
        return printable(name) == name and canonical_port(name) == canonical_port(device)
    except (PortError, ValueError):
        return False
