"""The worker's side of a run under xdist."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from typing import Any

import pytest

from pytest_esp import secrets
from pytest_esp.plugin.held_boards import HeldBoards, unit_of
from pytest_esp.plugin.pytest_private import tear_down
from pytest_esp.plugin.selection import plan_of, problems_of


class Barrier(pytest.Item):
    """A placeholder in a worker's queue for a next test that is not known yet.

    It runs nothing and is not reported. The scheduler addresses it by the index after the last test. The fixtures
    of the modules and classes that the last test used stay until the next test is known.
    """

    previous: pytest.Item | None = None

    def listchain(self) -> list[Any]:
        """Return the collectors whose fixtures stay."""
        chain = self.previous.listchain()[:-1] if self.previous is not None else super().listchain()[:-1]
        return [*chain, self]

    def runtest(self) -> None:
        """Do nothing."""

    def reportinfo(self) -> tuple[Any, int | None, str]:
        """Return its path and name, without a line."""
        return self.path, None, self.name


class Worker:
    """The hooks of a worker.

    Args:
        channel: the execnet channel to `xdist.Controller`.
        barriers: whether the scheduler uses barriers.
    """

    held_boards: HeldBoards
    """The boards that this process holds."""

    def __init__(self, channel: Any, barriers: bool) -> None:
        self._channel = channel
        self._barriers = barriers
        self._barrier: Barrier | None = None
        self._items: list[pytest.Item] = []
        secrets.listeners.append(lambda values: self._send("secrets", values))  # other workers may use the board next

    def say(self, line: str) -> None:
        """Show a line on the controller's terminal."""
        self._send("say", line)

    def tell_held(self, names: list[str]) -> None:
        """Send the scheduler the names of the boards that this process holds."""
        self._send("held", names)

    def _send(self, kind: str, content: object) -> None:
        with contextlib.suppress(OSError):  # the controller is gone, and this process will end soon
            self._channel.send((kind, content))

    @pytest.hookimpl(wrapper=True)
    def pytest_collection_finish(self, session: pytest.Session) -> Generator[None]:
        """Send the scheduler the tests' demands before xdist sends the list of tests."""
        self._items = list(session.items)
        if problems := problems_of(session.config):
            self._send("problems", problems)
        self._send("demands", [_demand(item) for item in session.items])
        self._channel.setcallback(self._receive)
        yield
        if self._barriers:
            self._barrier = Barrier.from_parent(session, name="barrier", nodeid="pytest-esp::barrier")
            session.items.append(self._barrier)

    def _receive(self, message: tuple[str, list[int], list[str]]) -> None:
        kind, indices, boards = message
        if kind == "secrets":
            secrets.learn(boards)  # `learn` does not send them on: two workers would send them to and fro for ever
        if kind == "reserve":
            for index in indices:
                self.held_boards.advice[self._items[index].nodeid] = boards

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
        """Handle a barrier: tear down what the test after it does not need."""
        if self._barrier is None:
            return None
        if item is not self._barrier:
            self._barrier.previous = item
            return None
        if item.config.pluginmanager.hasplugin("allure_listener"):
            from pytest_esp.plugin import allure

            allure.drop_result(item)
        call = pytest.CallInfo.from_call(
            lambda: tear_down(item.session, nextitem),
            "teardown",
            reraise=(KeyboardInterrupt, pytest.exit.Exception),
        )
        if call.excinfo is not None:
            report = item.ihook.pytest_runtest_makereport(item=item, call=call)
            item.ihook.pytest_runtest_logreport(report=report)
        return True


def _demand(item: pytest.Item) -> tuple[list[str], int, str, str]:
    plan = plan_of(item)
    if plan is None or not plan.takes_boards:
        return [], 0, "", ""
    unit = unit_of(item, plan)
    return list(plan.boards), plan.wanted.count, "" if unit is None else "|".join(unit), plan.firmware_key
