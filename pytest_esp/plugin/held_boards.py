"""The boards that this process holds: leased for a test, and kept while the next test needs them too."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_esp.errors import EspError
from pytest_esp.plugin.known import known, learn
from pytest_esp.plugin.logs import live_echo, log_path
from pytest_esp.plugin.options import options_of
from pytest_esp.plugin.selection import Plan, fixtures_of, give_up, plan_of, rack_of, why_unfit

if TYPE_CHECKING:
    from pytest_esp.boards.board import Board
    from pytest_esp.formats.firmware import Firmware
    from pytest_esp.link.link import Link
    from pytest_esp.rack.lease import HolderRecord, Lease

# A board is released after this many seconds even if the next test needs it, so that other pytest runs get a turn.
_LONGEST_HOLD = 30.0
# Seconds; longer than the interval at which a waiting process tries the lock (rack.lease).
_TURN = 0.06
_CONNECTING = frozenset({"esp", "session_esp"})
"""The fixtures of tests that connect to the chip."""


@dataclass
class Usage:
    """What one test did with one board. Times are in seconds, sizes in bytes. Carried by the test's report."""

    board: str
    chip: str
    backend: str
    mac: str = ""
    waited: float = 0.0
    busy: float = 0.0
    written: int = 0
    skipped: int = 0

    def __str__(self) -> str:
        """Return one line for people."""
        words = (self.chip, self.backend, self.mac, f"waited {self.waited:.2f} s", f"busy {self.busy:.2f} s")
        return f"board {self.board}: {', '.join(filter(None, words))}"


@dataclass
class Held:
    """A board that this process has leased."""

    lease: Lease
    board: Board
    link: Link
    mac: str = ""
    unit: tuple[str, ...] | None = None
    """The module or session that it is held for; None: for one test."""
    since: float = field(default_factory=time.monotonic)
    firmware: Firmware | None = None
    """The firmware that the running test requested."""
    booted: tuple[tuple[str, ...] | None, int] | None = None
    """The module or session that it was booted for (None: one test), and the number of that boot of the link."""

    @property
    def name(self) -> str:
        """The board's name."""
        return self.board.name


@dataclass
class _Use:
    """A board in use by the running test; the counters are the link's at the test's start."""

    held: Held
    begun: float
    waited: float
    written: int
    skipped: int


class HeldBoards:
    """Leases boards for tests, one test after the other.

    Args:
        config: pytest's configuration.
        announce: shows a line about a wait.
        on_change: called with the names of the held boards after each change.
    """

    def __init__(
        self,
        config: pytest.Config,
        announce: Callable[[str], None] = lambda line: None,
        on_change: Callable[[list[str]], None] = lambda names: None,
    ) -> None:
        self._config = config
        self._announce = announce
        self._on_change = on_change
        self._held: dict[str, Held] = {}
        self._uses: dict[str, _Use] = {}
        self._session: list[Held] = []
        self.log_dir: Path | None = None
        """The folder for console logs; None: consoles are not logged."""
        self.finished: list[Usage] = []
        """The board usage of the last test."""
        self.notices: list[str] = []
        """Lines for people about boards that were exchanged, since the last report."""
        self.advice: dict[str, list[str]] = {}
        """The boards that the scheduler has reserved for a test, by node id."""

    # -- taking

    def take(self, item: pytest.Item, plan: Plan) -> list[Held]:
        """Return the boards for *item*: those already held if they fit, else newly leased ones.

        A chip that decides whether its board fits is asked, once in a run. The test is skipped if too few boards fit.

        Raises:
            LeaseError: if they do not become free in time.
            PortError, LinkError: if a chip cannot be asked. WrongChipError: if an entry says something else.
        """
        unit = unit_of(item, plan)
        advice = self.advice.pop(item.nodeid, [])
        while True:
            chosen = self._in_hand(item, plan, unit)
            if not chosen:
                self.release_where(lambda held: held.unit is None)  # holding boards while waiting could deadlock
                chosen = self._lease(item, plan, advice, unit)
            tried = [held for held, _ in chosen]
            fit = [self._fits(item, plan, held) for held in tried]
            if all(fit):
                break
            self.release_where(lambda held, tried=tried: held in tried and held.unit == unit)
        for held, waited in chosen:
            self._begin(held, waited, item.nodeid, is_one_of_several=len(chosen) > 1)
        return [held for held, _ in chosen]

    def take_for_session(self, item: pytest.Item, plan: Plan) -> Held:
        """Return the session's board, leased at the first call."""
        if not self._session:
            self._session = self.take(item, plan)
        return self._session[0]

    def use_session_board(self, item: pytest.Item) -> None:
        """Count the running test for the session's board, too."""
        for held in self._session:
            if held.name not in self._uses and held.name in self._held:
                self._begin(held, 0.0, item.nodeid, is_one_of_several=False)

    def _fits(self, item: pytest.Item, plan: Plan, held: Held) -> bool:
        """Return whether a leased board fits, after asking its chip if that decides and was not done in this run.

        What is remembered of a chip is enough for a test that does not connect to it.
        """
        if held.name not in plan.relies:
            return True
        about = known(self._config, held.lease.spec, rack_of(self._config))
        used = fixtures_of(item)
        flashes = plan.wanted.firmware is not None
        connects = flashes or not _CONNECTING.isdisjoint(used)
        if not about.asked and (about.facts is None or connects):
            learn(self._config, held.lease.spec, held.link.ask_chip())
            if not connects or ("console" in used and not flashes):
                held.link.close()  # which restarts the app
        return not why_unfit(item, plan, held.name)

    def _in_hand(self, item: pytest.Item, plan: Plan, unit: tuple[str, ...] | None) -> list[tuple[Held, float]]:
        fitting = self._in_plan(item, plan)
        own = [held for held in fitting if held.unit is not None and held.unit == unit]
        free = [held for held in fitting if held.unit is None]
        others = [held for held in fitting if held.unit is not None and held.unit != unit]
        chosen = [*own, *free]
        if len(self._possible(item, plan)) - len(others) < plan.wanted.count:
            chosen += others  # held for a module or the session by this process, which would wait for itself
        if len(chosen) < plan.wanted.count:
            return []
        del chosen[plan.wanted.count :]
        for held in chosen:
            held.unit = held.unit or unit
        return [(held, 0.0) for held in chosen]

    def _in_plan(self, item: pytest.Item, plan: Plan) -> list[Held]:
        """Return the held boards that fit, or may."""
        possible = self._possible(item, plan)
        return [held for held in self._held.values() if held.name in possible]

    @staticmethod
    def _possible(item: pytest.Item, plan: Plan) -> list[str]:
        """Return the boards of *plan* that fit by what is known of their chips, or may."""
        return [name for name in plan.boards if not why_unfit(item, plan, name)]

    def _lease(
        self, item: pytest.Item, plan: Plan, advice: list[str], unit: tuple[str, ...] | None
    ) -> list[tuple[Held, float]]:
        from pytest_esp.boards.registry import make_board
        from pytest_esp.link.link import Link
        from pytest_esp.rack.lease import acquire

        rack = rack_of(self._config)
        options = options_of(self._config)
        possible = self._possible(item, plan)
        if len(possible) < plan.wanted.count:
            give_up(item, plan)
        unsure = {name for name in plan.relies if known(self._config, rack.boards[name], rack).facts is None}
        names = [name for name in possible if name not in self._held]
        leases = acquire(
            [rack.boards[name] for name in sorted(names, key=lambda name: (name not in advice, name in unsure))],
            rack=rack,
            purpose=f"pytest, from {item.nodeid} on",
            count=plan.wanted.count,
            timeout=options.lock_timeout,
            on_wait=self._waiting,
        )
        chosen: list[tuple[Held, float]] = []
        try:
            for lease in leases:
                board = make_board(lease.spec, rack)
                link = Link(
                    board,
                    burns_enabled=options.allow_burn,
                    holder=item.nodeid,
                    announce=print,
                    notice=self.notices.append,
                )
                chosen.append((Held(lease, board, link, unit=unit), lease.waited))
        except BaseException:
            for lease in leases:
                lease.release()
            raise
        self._held.update((held.name, held) for held, _ in chosen)
        self._on_change(list(self._held))
        return chosen

    def _waiting(self, holders: list[HolderRecord], waited: float) -> None:
        for holder in holders:
            self._announce(f"waiting for a board ({waited:.0f} s): {holder.describe()}")

    # -- counting

    def _begin(self, held: Held, waited: float, nodeid: str, *, is_one_of_several: bool) -> None:
        link = held.link
        link.begin_log(
            log_path(self.log_dir, nodeid, held.name) if self.log_dir else None,
            live_echo(self._config, held.name if is_one_of_several else None),
        )
        self._uses[held.name] = _Use(held, time.monotonic(), waited, link.written_bytes, link.skipped_bytes)

    def transcripts(self) -> dict[str, str]:
        """Return esptool's output for each board during the running test."""
        return {name: text for name, use in self._uses.items() if (text := use.held.link.transcript.text.strip())}

    def console_logs(self) -> dict[str, Path]:
        """Return the path of each console log that the running test has written, by board."""
        return {name: path for name, use in self._uses.items() if (path := use.held.link.console_log) is not None}

    def usages(self) -> list[Usage]:
        """Return the board usage of the running test so far."""
        return [self._usage(use) for use in self._uses.values()]

    def _usage(self, use: _Use) -> Usage:
        held, link = use.held, use.held.link
        held.mac = held.mac or _mac(held)
        return Usage(
            board=held.name,
            chip=held.board.chip,
            backend=held.board.backend,
            mac=held.mac,
            waited=round(use.waited, 4),
            busy=round(time.monotonic() - use.begun, 4),
            written=link.written_bytes - use.written,
            skipped=link.skipped_bytes - use.skipped,
        )

    # -- giving back

    def settle(self, item: pytest.Item, nextitem: pytest.Item | None, failed: bool) -> None:
        """Close links that the test may have left in a bad state, and release boards that the next test does not need.

        Raises:
            EspError: if a board cannot be closed; all leases are released nevertheless.
        """
        plan = plan_of(item)
        spoilt = failed or (plan is not None and plan.wanted.burns)
        if spoilt:
            for use in self._uses.values():
                with contextlib.suppress(EspError):
                    use.held.link.close()
        for held in [use.held for use in self._uses.values()]:
            if held.link.has_met and held.board.facts is not None:  # a test has connected to a chip
                learn(self._config, held.lease.spec, held.board.facts)
        self._uses.clear()
        if not self._held:
            return
        keep = self._wanted_next(item, nextitem)
        self.release_where(lambda held: held.name not in keep or not held.lease.held)

    def _wanted_next(self, item: pytest.Item, nextitem: pytest.Item | None) -> set[str]:
        if nextitem is None:
            return set()
        keep = {held.name for held in self._held.values() if held.unit is not None and _goes_on(held.unit, item)}
        plan = plan_of(nextitem)
        if plan is None or not plan.takes_boards:
            return keep
        fitting = [held for held in self._in_plan(nextitem, plan) if held.unit is None]
        if len(fitting) >= plan.wanted.count:
            keep |= {held.name for held in fitting[: plan.wanted.count] if not self._turn_is_over(held)}
        return keep

    @staticmethod
    def _turn_is_over(held: Held) -> bool:
        return time.monotonic() - held.since > _LONGEST_HOLD

    def release_where(self, condition: Callable[[Held], bool]) -> None:
        """Close and release the boards for which *condition* is true.

        Raises:
            EspError: if one cannot be closed; all are released nevertheless.
        """
        chosen = [held for held in self._held.values() if condition(held)]
        if not chosen:
            return
        with contextlib.ExitStack() as stack:
            for held in chosen:
                del self._held[held.name]
                held.link.keeps_loader = False  # restart the app of a board that a test left in its loader
                stack.callback(held.lease.release)
                stack.callback(held.link.close)
        if any(self._turn_is_over(held) for held in chosen):
            time.sleep(_TURN)
        self._on_change(list(self._held))

    def release_all(self) -> None:
        """Close and release all boards.

        Raises:
            EspError: if a board cannot be closed; all are released nevertheless.
        """
        self._session = []
        self._uses.clear()
        self.release_where(lambda held: True)


def unit_of(item: pytest.Item, plan: Plan) -> tuple[str, ...] | None:
    """Return the module or session that the boards of *item* are held for; None for the test alone."""
    if plan.wanted.scope == "test":
        return None
    return (plan.wanted.scope, _module_of(item) if plan.wanted.scope == "module" else "", *plan.boards)


def _module_of(item: pytest.Item) -> str:
    return item.nodeid.partition("::")[0]


def _goes_on(unit: tuple[str, ...], item: pytest.Item) -> bool:
    """Whether a test after *item* belongs to *unit*."""
    items = item.session.items
    later = items[items.index(item) + 1 :]
    return any((plan := plan_of(other)) is not None and unit_of(other, plan) == unit for other in later)


def _mac(held: Held) -> str:
    """Return the board's MAC address if it can be read without disturbing the board, else an empty string."""
    mac = getattr(getattr(held.board, "simulated", held.board), "mac", None)
    if mac is not None:
        return str(mac)
    link = held.link
    if not (link.is_open and link.session.is_connected):
        return ""
    with contextlib.suppress(EspError), link.session.use("reading the MAC address", stub=False) as esp:
        if not esp.secure_download_mode:
            return bytes(esp.read_mac("BASE_MAC")).hex(":")
    return ""
