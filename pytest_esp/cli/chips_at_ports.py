"""What is behind serial ports, for ``pytest-esp ports`` and ``init``: who holds them, and which chips answer."""

from __future__ import annotations

import importlib
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_esp.errors import EspError, LinkError, PortError, RackError
from pytest_esp.rack.chips import AUTO
from pytest_esp.rack.config import load_rack
from pytest_esp.rack.holder import HolderRecord, printable
from pytest_esp.rack.lease import acquire, holder_of
from pytest_esp.rack.ports import SerialPort, board_on
from pytest_esp.rack.presence import check_present
from pytest_esp.rack.rack import Rack
from pytest_esp.rack.state import holder_to_dict
from pytest_esp.units import format_size

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_esp.rack.spec import BoardSpec

_LONGEST = 2.0
"""Seconds until a port whose chip has not answered is given up."""


@dataclass
class PortState:
    """A port, and what was found out about it.

    Attributes:
        spec: the entry of the rack that names it, or one of which only the port is known.
        board: the name of that entry; None if the rack does not name the port.
        problem: why it cannot be used, or why its chip was not identified.
        chip, revision, mac, flash_size: of the chip behind it; None if not asked or not known; the size is in bytes.
    """

    port: SerialPort
    spec: BoardSpec
    board: str | None
    holder: HolderRecord | None = None
    problem: str | None = None
    chip: str | None = None
    revision: int | None = None
    mac: str | None = None
    flash_size: int | None = None

    @property
    def revision_text(self) -> str | None:
        """The chip's revision, e.g. ``"v0.4"``."""
        return None if self.revision is None else f"v{self.revision // 100}.{self.revision % 100}"

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "device": self.port.device,
            "name": self.port.name,
            "description": self.port.description,
            "usb": self.port.usb,
            "likely": self.port.is_likely,
            "board": self.board,
            "holder": self.holder and holder_to_dict(self.holder),
            "problem": self.problem,
            "chip": self.chip,
            "revision": self.revision_text,
            "mac": self.mac,
            "flash_size": self.flash_size and format_size(self.flash_size),
        }


def rack_or_none(path: Path | None) -> tuple[Rack, str | None]:
    """Return the rack, or one without boards and why it cannot be read: ports can be listed all the same."""
    try:
        return load_rack(path), None
    except RackError as error:
        return Rack("ports", None, {}), error.message


def look_at(ports: Sequence[SerialPort], rack: Rack) -> list[PortState]:
    """Return who holds each port. No port is opened.

    Raises:
        LeaseError: if the lock folder cannot be used.
    """
    return [_look_at(port, rack) for port in ports]


def _look_at(port: SerialPort, rack: Rack) -> PortState:
    entry = rack.board_at(port.device)
    spec = entry or board_on(port.name)
    state = PortState(port, spec, entry and entry.name)
    try:
        state.holder = holder_of(spec, rack)
        check_present(spec)
    except PortError as error:
        state.problem = error.message
    return state


def ask_chips(states: Sequence[PortState], rack: Rack) -> None:
    """Ask for the chips behind all likely ports at the same time, each under its lease, for 2 s at most.

    A board that was asked runs its app again. What is held, absent or silent has its `PortState.problem`.
    """
    for module in ("boards.serial", "link.session", "operations.chip.identity"):
        importlib.import_module(f"pytest_esp.{module}")  # before the time runs in which chips must answer
    threads: list[tuple[PortState, _Question]] = []
    for state in states:
        if state.holder is not None or state.problem is not None:
            continue
        if "read" not in state.spec.allow:
            state.problem = f"not asked: the entry of {state.board} does not allow 'read'"
        elif state.port.is_likely:
            threads.append((state, thread := _Question(state.spec, rack)))
            thread.start()
        else:
            state.problem = "not asked: its USB IDs are of no known bridge; name the port to ask it"
    deadline = time.monotonic() + _LONGEST
    for _, thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    for state, thread in threads:
        state.problem = f"timed out after {_LONGEST:g} s" if thread.is_alive() else thread.problem
        if not thread.is_alive() and thread.answer is not None:
            state.chip, state.revision, state.mac, state.flash_size = thread.answer


_Answer = tuple[str, int | None, str | None, int | None]


class _Question(threading.Thread):
    """Asks for the chip of one board. A daemon: a server that says nothing must not keep the command from ending."""

    answer: _Answer | None = None
    problem: str | None = None

    def __init__(self, spec: BoardSpec, rack: Rack) -> None:
        super().__init__(daemon=True)
        self._spec = spec
        self._rack = rack

    def run(self) -> None:
        """Fill in the answer or the problem."""
        try:
            self.answer = _ask(self._spec, self._rack)
        except (EspError, OSError) as error:
            self.problem = printable(error.message if isinstance(error, EspError) else str(error))


def _ask(spec: BoardSpec, rack: Rack) -> _Answer:
    """Return chip, revision, MAC address and flash size in bytes, as the ROM gives them: without the stub."""
    from pytest_esp.boards.registry import make_board
    from pytest_esp.link.facts import flash_size_of, mac_of, revision_of
    from pytest_esp.link.link import Link

    purpose = "pytest-esp ports --identify"
    # Whatever the entry states: the question is which chip it is.
    unstated = dict.fromkeys(("mac", "revision", "flash_size", "crystal", "faults"))
    spec = spec.model_copy(update={**unstated, "chip": AUTO})
    (lease,) = acquire([spec], rack=rack, purpose=purpose, timeout=0)
    with lease, Link(make_board(spec, rack), holder=purpose) as link:
        session = link.session
        session.connect_attempts = 1
        try:
            with session.use("identify", stub=False, flash=True) as esp:
                if esp.secure_download_mode:
                    return session.chip, None, None, None
                return session.chip, revision_of(esp, session.chip), mac_of(esp), flash_size_of(int(esp.flash_id()))
        except LinkError as error:
            said = error.message.partition("it said:")[2]
            raise LinkError(f"no chip answers{f'; received {said.strip()}' if said else ''}") from error
