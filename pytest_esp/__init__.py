"""pytest-esp: hardware-in-the-loop testing of Espressif chips.

This is the front door: every name that a test, a project's conftest or a package of backends needs can be imported
from here. A name is loaded when it is first used (PEP 562), so that importing this package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_esp.boards.board import Board as Board
    from pytest_esp.boards.faults import BoardFaults as BoardFaults
    from pytest_esp.boards.power_meter import PowerMeter as PowerMeter
    from pytest_esp.boards.registry import make_board as make_board
    from pytest_esp.errors import BackendError as BackendError
    from pytest_esp.errors import EspError as EspError
    from pytest_esp.errors import FirmwareError as FirmwareError
    from pytest_esp.errors import LeaseError as LeaseError
    from pytest_esp.errors import LinkError as LinkError
    from pytest_esp.errors import NoMatchError as NoMatchError
    from pytest_esp.errors import OperationError as OperationError
    from pytest_esp.errors import PortError as PortError
    from pytest_esp.errors import RackError as RackError
    from pytest_esp.errors import RefusedError as RefusedError
    from pytest_esp.errors import StoppedError as StoppedError
    from pytest_esp.errors import WrongChipError as WrongChipError
    from pytest_esp.formats.firmware import Firmware as Firmware
    from pytest_esp.link.console import Console as Console
    from pytest_esp.link.console import ConsoleError as ConsoleError
    from pytest_esp.link.console import CrashError as CrashError
    from pytest_esp.link.console import Line as Line
    from pytest_esp.link.crash import Crash as Crash
    from pytest_esp.link.link import Link as Link
    from pytest_esp.link.match import Match as Match
    from pytest_esp.operations.esp import Esp as Esp
    from pytest_esp.operations.registry import Effect as Effect
    from pytest_esp.rack.config import load_rack as load_rack
    from pytest_esp.rack.lease import Lease as Lease
    from pytest_esp.rack.rack import Rack as Rack
    from pytest_esp.rack.requirement import Requirement as Requirement
    from pytest_esp.rack.spec import BoardSpec as BoardSpec
    from pytest_esp.sim.app import SimApp as SimApp
    from pytest_esp.sim.chip import SimChip as SimChip
    from pytest_esp.wire.faults import Fault as Fault
    from pytest_esp.wire.loop import call_later as call_later
    from pytest_esp.wire.wire import Wire as Wire

__version__ = "0.1.0"

HOMEPAGE = ""
"""The project's address on the web. While it is empty, no link is printed, and pyproject.toml has no [project.urls]."""

USER_AGENT = f"pytest-esp/{__version__}" + (f" (+{HOMEPAGE})" if HOMEPAGE else "")
"""How the project names itself to servers on the web."""

__all__ = [
    "BackendError",
    "Board",
    "BoardFaults",
    "BoardSpec",
    "Console",
    "ConsoleError",
    "Crash",
    "CrashError",
    "Effect",
    "Esp",
    "EspError",
    "Fault",
    "Firmware",
    "FirmwareError",
    "Lease",
    "LeaseError",
    "Line",
    "Link",
    "LinkError",
    "Match",
    "NoMatchError",
    "OperationError",
    "PortError",
    "PowerMeter",
    "Rack",
    "RackError",
    "RefusedError",
    "Requirement",
    "SimApp",
    "SimChip",
    "StoppedError",
    "Wire",
    "WrongChipError",
    "__version__",
    "call_later",
    "load_rack",
    "make_board",
]

_MODULES = {
    "boards.board": ("Board",),
    "boards.faults": ("BoardFaults",),
    "boards.power_meter": ("PowerMeter",),
    "boards.registry": ("make_board",),
    "link.console": ("Console", "ConsoleError", "CrashError", "Line"),
    "link.crash": ("Crash",),
    "link.link": ("Link",),
    "link.match": ("Match",),
    "operations.esp": ("Esp",),
    "formats.firmware": ("Firmware",),
    "operations.registry": ("Effect",),
    "rack.config": ("load_rack",),
    "rack.lease": ("Lease",),
    "rack.rack": ("Rack",),
    "rack.requirement": ("Requirement",),
    "rack.spec": ("BoardSpec",),
    "sim.app": ("SimApp",),
    "sim.chip": ("SimChip",),
    "wire.faults": ("Fault",),
    "wire.loop": ("call_later",),
    "wire.wire": ("Wire",),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
