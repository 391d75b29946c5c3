"""Distributes tests over xdist's workers so that no worker waits for a board while there is other work.

Imported only under xdist. Every worker uses one board (or the boards of one ``count=2`` test) at a time.
The tests that need boards wait in lanes: one lane for each combination of suitable boards and firmware. A worker
gets tests from the lanes of the board that it holds, first those whose firmware is on it. When they are empty, it
takes the free board with the most work, or tests without a board.

xdist's worker starts a test only when it knows the next one. A worker that may have to change boards therefore
gets a barrier (see `worker`) as its next test, so that no test is assigned to it before it is free: another
worker may be free earlier.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScheduling
from xdist.workermanage import WorkerController

from pytest_esp.plugin.xdist_private import have_same_collection

_SLOW = 0.1  # seconds; a worker with tests this slow needs only one more test in its queue
_DEEPEST = 16


class Demand(NamedTuple):
    """What a test needs: *needed* of the *boards*. All tests of one *unit* run on one worker.

    A test that needs no boards runs anywhere. Tests with the same *firmware* run one after the other on a board.
    """

    boards: tuple[str, ...]
    needed: int
    unit: str
    firmware: str = ""


NO_BOARD = Demand((), 0, "")


@dataclass
class PlanBook:
    """What the workers reported: the demand of every test, by its index, and the boards that each worker holds."""

    reserve: Callable[[WorkerController, list[int], tuple[str, ...]], None]
    """Sends a worker the boards that are reserved for its tests."""
    demands: list[Demand] = field(default_factory=list[Demand])
    held: dict[WorkerController, tuple[str, ...]] = field(default_factory=dict[WorkerController, Any])

    def take(self, node: WorkerController, kind: str, content: list[Any]) -> None:
        """Store a worker's message."""
        if kind == "held":
            self.held[node] = tuple(content)
        elif kind == "demands" and not self.demands:
            self.demands = [Demand(tuple(boards), *others) for boards, *others in content]


class RackScheduling(LoadScheduling):
    """xdist's load scheduling, extended for tests that need boards.

    Args:
        config: pytest's configuration.
        log: xdist's logger.
        book: filled by the workers before their collections arrive.
    """

    def __init__(self, config: pytest.Config, log: Producer | None, book: PlanBook) -> None:
        super().__init__(config, log)
        self._book = book
        self._lanes: dict[Demand, list[int]] = {}
        self._hold: dict[WorkerController, tuple[str, ...]] = {}
        self._unit: dict[WorkerController, Demand] = {}
        self._behind_barrier: set[WorkerController] = set()
        self._duration: dict[WorkerController, float] = {}
        self._flashed: dict[str, str] = {}

    # -- xdist's protocol

    def schedule(self) -> None:
        """Start, or continue after a worker was added."""
        if not any(demand.needed for demand in self._book.demands):
            super().schedule()
            return
        if self.collection is None:
            if not have_same_collection(self):
                return
            self.collection = next(iter(self.node2collection.values()))
            self._add(range(len(self.collection)))
        self._feed_all()

    def mark_test_complete(self, node: WorkerController, item_index: int, duration: float = 0) -> None:
        """Record that a worker has finished a test, and send it more."""
        if not self._knows_boards:
            super().mark_test_complete(node, item_index, duration)
            return
        if item_index not in self.node2pending[node]:
            return  # a barrier
        self.node2pending[node].remove(item_index)
        self._duration[node] = duration
        held_before = self._hold.get(node)
        self._feed(node)
        if held_before != self._hold.get(node):
            self._feed_all()

    def mark_test_pending(self, item: str) -> None:
        """Run a test again."""
        if not self._knows_boards:
            super().mark_test_pending(item)
            return
        assert self.collection is not None
        self._add([self.collection.index(item)])
        self._feed_all()

    def remove_node(self, node: WorkerController) -> str | None:
        """Take back the unfinished tests of a worker; return the test that crashed it, if any."""
        if not self._knows_boards:
            return super().remove_node(node)
        pending = self.node2pending.pop(node)
        self._hold.pop(node, None)
        self._unit.pop(node, None)
        self._book.held.pop(node, None)
        self._behind_barrier.discard(node)
        if not pending:
            return None
        assert self.collection is not None
        died_of = self.collection[pending[0]]
        self._add(pending[1:])
        self._feed_all()
        return died_of

    # -- lanes

    @property
    def _knows_boards(self) -> bool:
        return bool(self._lanes)

    def _add(self, indices: Sequence[int]) -> None:
        for index in indices:
            self.pending.append(index)
            self._lanes.setdefault(self._book.demands[index], []).append(index)
        for lane in self._lanes.values():
            lane.sort()

    def _fits(self, demand: Demand, boards: set[str], node: WorkerController) -> bool:
        """Return whether *node* could run tests with this demand on these boards."""
        if not self._lanes[demand] or not demand.needed or len(boards & set(demand.boards)) < demand.needed:
            return False
        return not demand.unit or all(self._unit.get(other) != demand for other in self.nodes if other is not node)

    def _free_boards(self, node: WorkerController) -> set[str]:
        """Return the boards that are neither held by another worker nor reserved for one."""
        taken: set[str] = set()
        for other in self.nodes:
            if other is not node:
                taken.update(self._hold.get(other, ()), self._book.held.get(other, ()))
        return {board for demand in self._lanes for board in demand.boards} - taken

    def _lane_of_hold(self, node: WorkerController) -> Demand | None:
        """Return the lane to continue with on the boards that *node* holds.

        Lanes whose firmware is already flashed come first, then those whose firmware no other worker has; among
        these, the lane with the fewest suitable boards.
        """
        unit = self._unit.get(node)
        if unit is not None and self._lanes[unit]:
            return unit
        self._unit.pop(node, None)
        hold = set(self._hold.get(node, ()))
        fitting = [lane for lane in self._lanes if lane.needed == len(hold) and self._fits(lane, hold, node)]
        elsewhere = {
            self._flashed.get(board) for other in self.nodes if other is not node for board in self._hold.get(other, ())
        }

        def rank(lane: Demand) -> tuple[int, int, int]:
            ready = not lane.firmware or all(self._flashed.get(board) == lane.firmware for board in hold)
            cost = 0 if ready else 2 if lane.firmware in elsewhere else 1
            return cost, len(lane.boards), self._lanes[lane][0]

        return min(fitting, key=rank, default=None)

    def _next_hold(self, node: WorkerController) -> tuple[str, ...]:
        """Return the boards to take next: several if a test needs several, else the one with the most work."""
        free = self._free_boards(node)
        fitting = [lane for lane in self._lanes if self._fits(lane, free, node)]
        if not fitting:
            return ()
        needed = max(lane.needed for lane in fitting)
        if needed == 1:
            usable = {board for lane in fitting for board in lane.boards} & free
        else:
            usable = free & set(next(lane for lane in fitting if lane.needed == needed).boards)
        return tuple(sorted(usable, key=lambda board: (-self._work(board), board))[:needed])

    def _work(self, board: str) -> float:
        """Return the number of tests that wait for *board*; a test that n boards could run counts as 1/n."""
        return sum(len(lane) / len(demand.boards) for demand, lane in self._lanes.items() if board in demand.boards)

    # -- feeding

    def _feed_all(self) -> None:
        for node in self.nodes:
            self._feed(node)
        if not self.pending:
            for node in self.nodes:
                node.shutdown()

    def _feed(self, node: WorkerController) -> None:
        """Send *node* its next tests, if it needs more and there are some for it."""
        self._correct_hold(node)
        queue = self.node2pending[node]
        if node.shutting_down or len(queue) >= 2:
            return
        demand = self._lane_of_hold(node)
        if demand is None:
            next_hold = self._next_hold(node)
            if next_hold and queue:
                self._send_barrier(node)
                return
            if next_hold:
                self._hold[node] = next_hold
                demand = self._lane_of_hold(node)
            elif self._lanes.get(NO_BOARD):
                demand = NO_BOARD
        if demand is not None:
            self._send_lane(node, demand)
        elif not self.pending:
            node.shutdown()
        elif queue:
            self._send_barrier(node)

    def _correct_hold(self, node: WorkerController) -> None:
        """Use what the worker reports: it gets another board than the reserved one if that was in use."""
        queue = self.node2pending[node]
        if not any(self._book.demands[index].needed for index in queue):
            self._hold.pop(node, None)
        elif len(held := self._book.held.get(node, ())) == len(self._hold.get(node, ())):
            self._hold[node] = held

    def _send_lane(self, node: WorkerController, demand: Demand) -> None:
        lane = self._lanes[demand]
        room = self._depth(node, lane) - len(self.node2pending[node])
        chosen = lane[:room]
        del lane[:room]
        if demand.unit:
            self._unit[node] = demand
        if demand.firmware:
            self._flashed.update(dict.fromkeys(self._hold[node], demand.firmware))
        for index in chosen:
            self.pending.remove(index)
        self.node2pending[node].extend(chosen)
        self._behind_barrier.discard(node)
        if demand.needed:
            self._book.reserve(node, chosen, self._hold[node])
        node.send_runtest_some(chosen)
        if len(self.node2pending[node]) < 2:
            self._feed(node)  # the lane is empty; the worker starts its last test only when it knows the next one

    def _depth(self, node: WorkerController, lane: list[int]) -> int:
        """Return how many tests to keep in the worker's queue: two, or more if they are quick and plentiful."""
        if self._duration.get(node, _SLOW) >= _SLOW:
            return 2
        depth = min(_DEEPEST, len(lane) // (2 * len(self.nodes)))
        return max(2, min(depth, self.maxschedchunk or depth))

    def _send_barrier(self, node: WorkerController) -> None:
        assert self.collection is not None
        if node not in self._behind_barrier:
            self._behind_barrier.add(node)
            node.send_runtest_some([len(self.collection)])
