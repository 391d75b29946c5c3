"""Runs multi-device cases: each board plays a role, and the signals between them are relayed.

The roles use ``test_utils`` of ESP-IDF (``unity_send_signal``, ``unity_wait_for_signal`` and their variants with a
parameter): one prints ``Send signal: [name]!``; the other has printed ``Waiting for signal: [name]!`` and waits for
ENTER, or for the parameter.
"""

from __future__ import annotations

import re
import threading
import time
from collections import defaultdict, deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from pytest_esp.errors import EspError, OperationError
from pytest_esp.link.console import ConsoleError, CrashError
from pytest_esp.link.match import Match, Pattern
from pytest_esp.operations.unity.dialogue import ENDS, Dialogue
from pytest_esp.operations.unity.menu import Case, Menu, Part
from pytest_esp.operations.unity.result import CaseResult, Status, Verdict, verdict
from pytest_esp.operations.unity.runner import Run, await_restart

_SENT = re.compile(r"Send signal: \[([^\]\r\n]*)\](?:\[([^\]\r\n]*)\])?!")
_WAITING = re.compile(r"Waiting for signal: \[([^\]\r\n]*)\]!")
_ENTER, _PARAMETER = 'Please press "Enter" key', "Please input parameter value"
_EVENTS: tuple[Pattern, ...] = (_SENT, _WAITING, *ENDS)

_LOOK = 0.25  # seconds between checks of the other boards
_PROMPT_TIME = 5.0
_DEADLOCK = 3.0  # seconds for which all boards must wait before this is a deadlock
_GRAVITY: tuple[Status, ...] = ("crashed", "failed", "timeout", "ignored", "passed")


@dataclass
class _Role:
    """One board's role in a case."""

    part: Part
    run: Run
    waits_for: str | None = None
    takes_parameter: bool = False
    answer: str | None = None
    """The last answer sent to the board, until the board is known to have received it."""
    answer_mark: int = 0
    answered: float = 0.0
    result: CaseResult | None = None

    @property
    def name(self) -> str:
        return f"{self.part.name} on {self.run.dialogue.board}"

    def hear(self, parameter: str) -> None:
        """Send the board the signal that it waits for."""
        self.waits_for, self.answer = None, parameter if self.takes_parameter else ""
        self.repeat()

    def repeat(self) -> None:
        console = self.run.dialogue.console
        self.answer_mark, self.answered = console.mark(), time.monotonic()
        console.write(f"{self.answer}\n")

    def end(self, status: Status, message: str) -> None:
        self.result = self.run.ended(Verdict(status, message), name=self.part.name)


@dataclass
class _Exchange:
    """Signals that were sent and not yet received, and roles that wait for one."""

    roles: list[_Role] = field(default_factory=list[_Role])
    sent: defaultdict[str, deque[str]] = field(default_factory=lambda: defaultdict(deque))
    lock: threading.RLock = field(default_factory=threading.RLock)
    stuck_since: float | None = None
    is_cancelled: bool = False

    def send(self, name: str, parameter: str) -> None:
        with self.lock:
            waiting = next((role for role in self.roles if role.waits_for == name and role.result is None), None)
            if waiting is not None:
                waiting.hear(parameter)
            else:
                self.sent[name].append(parameter)

    def wait(self, role: _Role, name: str) -> None:
        with self.lock:
            role.waits_for = name
            if self.sent[name]:
                role.hear(self.sent[name].popleft())

    def is_stuck(self) -> bool:
        """Whether all boards still playing have waited for others for a while."""
        with self.lock:
            if self.is_cancelled:
                return True
            playing = [role for role in self.roles if role.result is None]
            if any(role.waits_for is None for role in playing):
                self.stuck_since = None
                return False
            self.stuck_since = self.stuck_since or time.monotonic()
            return time.monotonic() - self.stuck_since >= _DEADLOCK

    def others(self, role: _Role) -> str:
        """Describe what the other boards are doing."""
        return "; ".join(_state(other) for other in self.roles if other is not role)


def _state(role: _Role) -> str:
    if role.waits_for is not None:
        return f"{role.name} waits for [{role.waits_for}]"
    return f"{role.name} is running" if role.result is None else f"{role.name} has {role.result.status}"


def run_on_boards(dialogues: Sequence[Dialogue], menus: Sequence[Menu], case: Case, timeout: float) -> CaseResult:
    """Run a multi-device case, its first role on the first board.

    Args:
        dialogues: with the apps of at least as many boards as the case has roles.
        menus: of these apps, in the same order; the case has the same name in each.
        case: of the first menu.
        timeout: in seconds, for a case without its own.

    Raises:
        OperationError: if there are not enough boards, or an app has no such case or offers no menu after a reset.
        PortError: if the connection to a board is lost.
    """
    check_boards(case, len(dialogues))
    seconds = case.timeout or timeout
    begun = time.monotonic()
    exchange = _Exchange()
    for part, dialogue, menu in zip(case.parts, dialogues, menus, strict=False):
        own = menu.case(case.name)
        dialogue.make_ready()
        exchange.roles.append(_Role(part, Run(dialogue, own)))
    with ThreadPoolExecutor(len(exchange.roles), "unity") as threads:
        try:
            for played in [threads.submit(_play, role, exchange, begun + seconds, seconds) for role in exchange.roles]:
                played.result()
        except BaseException:
            exchange.is_cancelled = True
            raise
    return _joined(case, exchange.roles, round(time.monotonic() - begun, 3))


def check_boards(case: Case, count: int) -> None:
    """Check that *count* boards can run a case.

    Raises:
        OperationError: if it is not a multi-device case, or needs more boards.
    """
    if case.kind != "multi_device":
        raise OperationError(f"{case.name!r} is not a multi-device case", hint="run it on one board")
    if count < len(case.parts):
        raise OperationError(
            f"{case.name!r} needs {len(case.parts)} boards, but there are {count}",
            hint=f"in a test: @pytest.mark.esp(count={len(case.parts)})",
        )


def _play(role: _Role, exchange: _Exchange, deadline: float, timeout: float) -> None:
    """Run a role to its end, in the role's own thread."""
    going = role.run
    try:
        if not going.dialogue.start(going.case):
            role.end("timeout", "the app did not start the case")
            return
        going.dialogue.choose(going.case, role.part)
        while role.result is None:
            _step(role, exchange, deadline, timeout)
    except CrashError as error:
        role.result = going.crashed(error, name=role.part.name)
    except EspError as error:
        role.end("crashed", error.message)
        raise


def _step(role: _Role, exchange: _Exchange, deadline: float, timeout: float) -> None:
    """Handle the next output of the role's board, or check whether waiting for it is still useful."""
    try:
        found = role.run.dialogue.console.expect(_EVENTS, max(min(_LOOK, deadline - time.monotonic()), 0.0))
    except CrashError:
        raise
    except ConsoleError:
        _look_around(role, exchange, deadline, timeout)
        return
    role.answer = None
    event = _EVENTS[found.index]
    if event is _SENT:
        exchange.send(_text(found, 1), _text(found, 2))
    elif event is _WAITING:
        role.takes_parameter = _takes_parameter(role)
        exchange.wait(role, _text(found, 1))
    elif role.run.dialogue.conclude(event):
        role.result = role.run.ended(verdict(role.run.case, role.run.log), name=role.part.name)
        await_restart(role.run)
    else:
        role.end("crashed", "the chip restarted during the case")


def _takes_parameter(role: _Role) -> bool:
    """Whether the board waits for the signal's parameter, not only for ENTER; it accepts neither before it says so."""
    try:
        return role.run.dialogue.console.expect([_ENTER, _PARAMETER], _PROMPT_TIME).index == 1
    except CrashError:
        raise
    except ConsoleError:  # lost among other output
        return False


def _look_around(role: _Role, exchange: _Exchange, deadline: float, timeout: float) -> None:
    with exchange.lock:
        if role.answer is not None and time.monotonic() - role.answered > 1.0:
            if role.run.dialogue.was_heard(role.answer_mark):
                role.answer = None
            else:
                role.repeat()
        if time.monotonic() < deadline and not exchange.is_stuck():
            return
        what = f"timed out after {timeout:g} s"
        if role.waits_for is not None:
            what = f"waiting for the signal [{role.waits_for}], which no board has sent"
        role.end("timeout", f"{what}; {exchange.others(role)}")


def _text(found: Match, group: int) -> str:
    return str(found[group] or "")


def _joined(case: Case, roles: Sequence[_Role], seconds: float) -> CaseResult:
    """Return the result of the case: the worst of its roles."""
    results = tuple(role.result for role in roles if role.result is not None)
    worst = min(results, key=lambda result: _GRAVITY.index(result.status))
    bad = [result for result in results if result.status not in ("passed", "ignored")] or [worst]
    message = "; ".join(f"{one.name} on {one.board}: {one.message}" for one in bad if one.message)
    return CaseResult(
        name=case.name,
        status=worst.status,
        message=message,
        file=worst.file,
        line=worst.line,
        seconds=seconds,
        log="\n".join(f"--- {one.name} on {one.board}\n{one.log}" for one in results),
        crash=next((one.crash for one in results if one.crash is not None), None),
        board=", ".join(one.board for one in results),
        tags=case.tags,
        roles=results,
    )
