"""The controller's side of a run under xdist: it has a channel to each worker."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from pytest_esp import secrets

if TYPE_CHECKING:
    from xdist.remote import Producer
    from xdist.scheduler import Scheduling
    from xdist.workermanage import WorkerController

    from pytest_esp.plugin.scheduling import PlanBook

CHANNEL = "esp_channel"
"""Key in ``workerinput``: the execnet channel between this plugin in the controller and in a worker."""

BARRIERS = "esp_barriers"
"""Key in ``workerinput``: whether the scheduler uses barriers."""

PORTS = "esp_ports"
"""Key in ``workerinput``: the ports of ``--esp-port``, or those that stand for ``auto``."""


class Controller:
    """The hooks of the controller.

    xdist's controller does not collect tests or read the rack. Each worker sends over its channel which boards the
    tests need, before its collection arrives, and what is wrong with the rack or the markers.

    Args:
        config: pytest's configuration.
        announce: shows a line about a wait.
    """

    def __init__(self, config: pytest.Config, announce: Callable[[str], None]) -> None:
        self._config = config
        self._announce = announce
        self._channels: dict[WorkerController, Any] = {}
        self._book: PlanBook | None = None
        self._problems: list[str] = []

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: WorkerController) -> None:
        """Open a channel to a worker that is about to start."""
        channel = node.gateway.newchannel()
        channel.setcallback(partial(self._receive, node))
        if values := secrets.known():
            channel.send(("secrets", [], values))
        self._channels[node] = channel
        self._plans()
        workerinput: dict[str, Any] = node.workerinput
        workerinput[CHANNEL] = channel
        workerinput[BARRIERS] = self._schedules
        workerinput[PORTS] = self._config.getoption("esp_port")

    @property
    def _schedules(self) -> bool:
        return self._config.getoption("dist") == "load"

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Producer) -> Scheduling | None:
        """Return the scheduler for boards, unless the user chose another one (``--dist``)."""
        if not self._schedules:
            return None
        from pytest_esp.plugin.scheduling import RackScheduling

        return RackScheduling(config, log, self._plans())

    def _plans(self) -> PlanBook:
        from pytest_esp.plugin.scheduling import PlanBook

        self._book = self._book or PlanBook(self._reserve)
        return self._book

    def _reserve(self, node: WorkerController, indices: list[int], boards: tuple[str, ...]) -> None:
        with contextlib.suppress(OSError):  # the worker died; xdist reports that
            self._channels[node].send(("reserve", indices, list(boards)))

    def _pass_on(self, sender: WorkerController, values: list[str | bytes]) -> None:
        for node, channel in list(self._channels.items()):
            if node is not sender:
                with contextlib.suppress(OSError):
                    channel.send(("secrets", [], values))

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node: WorkerController, ids: Sequence[str]) -> None:
        """End the run before the first test if the rack or a marker is invalid."""
        if self._problems:
            raise pytest.UsageError("\n".join(self._problems))

    def _receive(self, node: WorkerController, message: tuple[str, Any]) -> None:
        """Handle a worker's message. Runs in execnet's thread, in the order of the worker's messages."""
        kind, content = message
        if kind == "problems":
            self._problems = content
        elif kind == "say":
            self._announce(content)
        elif kind == "secrets":
            secrets.learn(content)
            self._pass_on(node, content)
        elif self._book is not None:
            self._book.take(node, kind, content)
