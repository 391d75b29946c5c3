"""The boards that a server drives: leased at the first call, kept open between calls, released when idle."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mcp_bridge.calls import check_not_stopped, patience, progress
from pytest_esp.boards.board import Board
from pytest_esp.boards.registry import make_board
from pytest_esp.errors import BackendError, EspError, LeaseError, PortError, RackError, StoppedError
from pytest_esp.link.link import Link
from pytest_esp.operations.esp import Esp
from pytest_esp.rack.identity import canonical_port, possible_ports
from pytest_esp.rack.lease import Lease, acquire
from pytest_esp.rack.spec import BoardSpec

if TYPE_CHECKING:
    from pytest_esp.rack.rack import Rack

_SCHEMES = ("rfc2217", "socket")  # pyserial has others; its spy:// writes to any file that the URL names
LONGEST_WAIT = 3600.0  # seconds that a call waits for another process
_LONGEST_QUEUE = 600.0  # seconds that a call waits for another call on the same board
_PASSING = 1.0  # seconds that the janitor, or a call that has just ended, may still use a board
_IN_USE = f"still in use by another call after {_LONGEST_QUEUE:g} s"


@dataclass
class _Slot:
    """One board. A call uses it while it holds `turn`."""

    spec: BoardSpec
    turn: threading.Lock = field(default_factory=threading.Lock)
    lease: Lease | None = None
    link: Link | None = None
    free_at: float = 0.0
    """The monotonic time at which it is released, unless it is used again."""
    kept_until: float = 0.0
    """The monotonic time until which it is kept on request."""


class BoardPool:
    """Boards for tool calls, which may run in any thread. Calls on one board wait for each other.

    Args:
        rack: the rack; ports that it does not name can be used, too.
        idle: seconds after the last call until a board is released.
        burns_enabled: see `Link`.
        purpose: shown to others that wait for a board that is held here.
    """

    def __init__(self, rack: Rack, *, idle: float = 60.0, burns_enabled: bool = False, purpose: str = "MCP") -> None:
        self.rack = rack
        self._idle = idle
        self._burns_enabled = burns_enabled
        self._purpose = purpose
        self._slots: dict[str, _Slot] = {}
        self._own: dict[str, Board] = {}
        self._changed = threading.Condition()
        self._closed = False
        self._janitor: threading.Thread | None = None

    # -- which board

    def resolve(self, port: str | None) -> BoardSpec:
        """Return the board for *port*: a name in the rack, a device path or a URL; None for the rack's only board.

        If a path or URL belongs to a board of the rack, that board is returned, with the limits of its entry.

        Raises:
            RackError: if there is no board of that name, or *port* is None and the rack has several.
            PortError: if the path or URL is malformed.
        """
        if port is not None and port in self._own:
            return self._own[port].spec
        if port is None or port in self.rack.boards:
            return self.rack.boards[self.rack.only_board(port)]
        if not _looks_like_a_port(port):
            self.rack.board(port)  # raises, with the nearest name
        scheme, separator, _ = port.partition("://")
        if separator and scheme.lower() not in _SCHEMES:
            raise PortError(
                f"{scheme}:// is not supported as a port", hint="use rfc2217://HOST:PORT or socket://HOST:PORT"
            )
        if (spec := self.rack.board_at(port)) is not None:
            return spec
        for spec in self._unnamed():
            if canonical_port(port) in possible_ports(spec.port or ""):
                return spec
        try:
            return BoardSpec.model_validate({"name": port, "backend": "serial", "chip": "auto", "port": port})
        except ValueError as error:
            raise PortError(f"{port!r} is not a valid port", hint=str(error).splitlines()[-1].strip()) from error

    def _unnamed(self) -> list[BoardSpec]:
        """Return the used ports that the rack does not name."""
        with self._changed:
            return [slot.spec for slot in self._slots.values() if slot.spec.port and slot.spec.name == slot.spec.port]

    # -- using

    @contextlib.contextmanager
    def use(self, port: str | None = None, *, wait: float | None = None) -> Generator[Esp]:
        """Yield the operations on a board, leased by this process. Its link stays open afterwards.

        Args:
            port: see `resolve`.
            wait: seconds to wait for a board that another process holds; by default as many as the running call.

        Raises:
            RackError, PortError: see `resolve`. LeaseError: if another process holds it; the message says which.
            StoppedError: if the running call was stopped before.
        """
        slot = self._slot(self.resolve(port))
        _take(slot)
        try:
            yield Esp(self._link(slot, patience() if wait is None else wait))
        except (PortError, BackendError):
            self._close_link(slot)  # the next call opens it again
            raise
        finally:
            slot.free_at = max(time.monotonic() + self._idle, slot.kept_until)
            slot.turn.release()
            self._wake_janitor()

    @contextlib.contextmanager
    def lend(self, ports: Sequence[str | None]) -> Generator[list[BoardSpec]]:
        """Release boards so that another process can lease them. Calls of this server wait until it is done.

        Raises:
            RackError, PortError: see `resolve`; also for a virtual board that this server started.
            LeaseError: if another call still uses one of them.
        """
        specs = {spec.name: spec for spec in map(self.resolve, ports)}
        for name in specs.keys() & self._own.keys():
            raise RackError(
                f"{name} runs inside this server; other processes cannot use it", hint="use a board of the rack"
            )
        with contextlib.ExitStack() as turns:
            for name in sorted(specs):  # the same order in all calls prevents deadlocks
                slot = self._slot(specs[name])
                _take(slot)
                turns.callback(slot.turn.release)
                self._give_back(slot)
            yield list(specs.values())

    def is_own(self, port: str | None) -> bool:
        """Return whether *port* is a virtual board that this server started."""
        return port in self._own

    def _slot(self, spec: BoardSpec) -> _Slot:
        with self._changed:
            if self._closed:
                raise RackError("the server is shutting down")
            return self._slots.setdefault(spec.name, _Slot(spec))

    def _link(self, slot: _Slot, wait: float) -> Link:
        if slot.lease is not None and not slot.lease.held:  # the lab gave the board to another user
            self._give_back(slot)
        if slot.lease is None:
            wait = min(max(wait, 0.0), LONGEST_WAIT)
            (slot.lease,) = acquire(
                [slot.spec],
                rack=self.rack,
                purpose=self._purpose,
                timeout=wait,
                on_wait=lambda _holders, waited: progress(int(waited), int(wait)),  # a cancelled call stops here
            )
        if slot.link is None:
            board = self._own.get(slot.spec.name) or make_board(slot.spec, self.rack)
            slot.link = Link(board, burns_enabled=self._burns_enabled, holder=self._purpose)
        return slot.link

    @staticmethod
    def _close_link(slot: _Slot) -> None:
        link, slot.link = slot.link, None
        if link is not None:
            with contextlib.suppress(EspError, OSError):
                link.close()

    # -- virtual boards of this server

    def add(self, board: Board, *, bootloader: bool) -> None:
        """Start a virtual board inside this server, and keep it until `remove`.

        Raises:
            EspError: if it cannot be started.
        """
        spec = board.spec
        if spec.name in self._own or spec.name in self.rack.boards:
            raise RackError(f"a board named {spec.name!r} already exists")
        self._own[spec.name] = board
        try:
            with self.use(spec.name) as esp:
                esp.link.port  # noqa: B018 - opens the port, which stays open
                if bootloader:
                    board.reset(bootloader=True)
                self._slot(spec).kept_until = float("inf")
        except BaseException:
            self.remove(spec.name)
            raise

    def remove(self, name: str) -> None:
        """Stop a board that was added, when the call that uses it has ended."""
        slot = self._slot(self._own[name].spec)
        _take(slot)
        try:
            self._give_back(slot)
            del self._own[name]
        finally:
            slot.turn.release()
        with self._changed:
            self._slots.pop(name, None)

    # -- keeping and releasing

    def keep(self, port: str | None, seconds: float, *, wait: float = 0.0) -> BoardSpec:
        """Lease a board and keep it for *seconds*, even if no call uses it."""
        with self.use(port, wait=wait) as esp:
            spec = esp.link.board.spec
            self._slot(spec).kept_until = time.monotonic() + seconds
        return spec

    def release(self, port: str | None) -> bool:
        """Release a board, when the call that uses it has ended; return whether it was held."""
        slot = self._slot(self.resolve(port))
        _take(slot)
        try:
            held = slot.lease is not None
            slot.kept_until = 0.0
            self._give_back(slot)
        finally:
            slot.turn.release()
        return held

    def _give_back(self, slot: _Slot) -> None:
        self._close_link(slot)
        lease, slot.lease = slot.lease, None
        if lease is not None:
            lease.release()

    def held(self) -> dict[str, float]:
        """Return the boards that this server holds, with the seconds until they are released if no call uses them."""
        now = time.monotonic()
        with self._changed:
            return {slot.spec.name: max(slot.free_at - now, 0.0) for slot in self._slots.values() if slot.lease}

    def console_lines(self, name: str, most: int) -> list[tuple[float, str]] | None:
        """Return the last console lines of a board, with their times; None if it is not open here."""
        with self._changed:
            slot = self._slots.get(name)
            link = slot.link if slot else None
        if link is None or not link.is_open:
            return None
        return [(round(line.time, 3), line.text) for line in link.console.last_lines(most)]

    def close(self) -> None:
        """Release all boards that no call uses; the end of the process releases the others."""
        with self._changed:
            self._closed = True
            slots = list(self._slots.values())
            self._changed.notify_all()
        for slot in slots:
            if slot.turn.acquire(timeout=_PASSING):
                try:
                    self._give_back(slot)
                finally:
                    slot.turn.release()
        if self._janitor is not None:
            self._janitor.join(timeout=_PASSING)

    # -- the janitor: a thread that releases idle boards

    def _wake_janitor(self) -> None:
        with self._changed:
            if self._janitor is None and not self._closed:
                self._janitor = threading.Thread(target=self._sweep, name="mcp-bridge-janitor", daemon=True)
                self._janitor.start()
            self._changed.notify_all()

    def _sweep(self) -> None:
        while True:
            with self._changed:
                if self._closed:
                    return
                due = min((slot.free_at for slot in self._slots.values() if slot.lease), default=None)
                left = None if due is None else due - time.monotonic()
                if left is None or left > 0:
                    self._changed.wait(None if left is None else min(left, threading.TIMEOUT_MAX))
                    continue
                slots = [slot for slot in self._slots.values() if slot.lease and slot.free_at <= time.monotonic()]
            for slot in slots:
                self._give_back_if_idle(slot)

    def _give_back_if_idle(self, slot: _Slot) -> None:
        if not slot.turn.acquire(timeout=0.05):
            return  # in use: that call sets a new time
        try:
            if slot.free_at <= time.monotonic():
                self._give_back(slot)
        finally:
            slot.turn.release()


def _take(slot: _Slot) -> None:
    """Take the turn of a board, which another thread may have.

    Raises:
        LeaseError: if it still has it after 600 s.
        StoppedError: if the running call is stopped before.
    """
    deadline = time.monotonic() + _LONGEST_QUEUE
    while not slot.turn.acquire(timeout=0.1):
        check_not_stopped()
        if time.monotonic() > deadline:
            raise LeaseError(_IN_USE, board=slot.spec.name, hint="wait for that call to end, or cancel it")
    try:
        check_not_stopped()
    except StoppedError:
        slot.turn.release()
        raise


def _looks_like_a_port(text: str) -> bool:
    return "://" in text or text.lower().startswith(("/", "usb:", "\\\\", "com"))
