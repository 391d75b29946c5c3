"""The scheduler with simulated workers that behave like xdist's, in simulated time."""

import heapq
import itertools
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_esp.plugin.scheduling import NO_BOARD, Demand, PlanBook, RackScheduling

ROUND_TRIP = 0.001


class FakeWorker:
    """A worker's queue. It begins a test when it knows the next one, and stops at the end of its queue."""

    def __init__(self, number, clock):
        self.gateway = SimpleNamespace(id=f"gw{number}")
        self.clock = clock
        self.queue = []
        self.current = None
        self.shutting_down = False
        self.promised = {}

    def send_runtest_some(self, indices):
        assert not self.shutting_down
        self.queue += indices
        self.clock.wake(self)

    def shutdown(self):
        if not self.shutting_down:
            self.shutting_down = True
            self.queue.append(None)
            self.clock.wake(self)


class Clock:
    """Runs the workers: `durations` by test, `demands` by test."""

    def __init__(self, config, workers, demands, durations):
        self.demands = demands
        self.durations = durations
        self.now = 0.0
        self.events = []
        self.order = itertools.count()
        self.in_use = {}
        self.ran = []
        self.book = PlanBook(self.reserve, list(demands))
        self.scheduler = RackScheduling(config, None, self.book)
        self.scheduler.numnodes = workers
        self.workers = [FakeWorker(number, self) for number in range(workers)]

    def reserve(self, worker, indices, boards):
        worker.promised.update(dict.fromkeys(indices, boards))

    def wake(self, worker):
        if worker.current is None and len(worker.queue) >= 2 and worker.queue[0] is not None:
            worker.current = worker.queue.pop(0)
            self.begin(worker, worker.current)

    def begin(self, worker, index):
        duration = 0.0
        if index < len(self.demands):
            demand = self.demands[index]
            boards = worker.promised.get(index, ())[: demand.needed]
            assert len(boards) == demand.needed
            assert set(boards) <= set(demand.boards)
            for board in boards:
                assert self.in_use.setdefault(board, worker) is worker, f"{board} is held by another worker"
            duration = self.durations[index]
            self.ran.append((index, worker))
        heapq.heappush(self.events, (self.now + duration + ROUND_TRIP, next(self.order), worker, index, duration))

    def run(self):
        for worker in self.workers:
            self.scheduler.add_node(worker)
            self.scheduler.add_node_collection(worker, [f"test_{index}" for index in range(len(self.demands))])
        self.scheduler.schedule()
        while self.events:
            self.now, _, worker, index, duration = heapq.heappop(self.events)
            worker.current = None
            self.in_use = {board: by for board, by in self.in_use.items() if by is not worker}
            self.scheduler.mark_test_complete(worker, index, duration)
            if self.scheduler.tests_finished:
                for other in self.workers:
                    other.shutdown()
            self.wake(worker)
            self.check_that_nobody_idles()
        return self.now

    def tests_of(self, worker):
        return [index for index in (worker.current, *worker.queue) if index is not None and index < len(self.demands)]

    def check_that_nobody_idles(self):
        for worker in self.workers:
            if self.tests_of(worker) or worker.shutting_down:
                continue
            others = [other for other in self.workers if other is not worker]
            taken = {
                board for other in others for index in self.tests_of(other) for board in other.promised.get(index, ())
            }
            for index in self.scheduler.pending:
                boards, needed, unit, _ = self.demands[index]
                assert unit or len(set(boards) - taken) < needed, f"an idle worker could run {self.demands[index]}"


class Config:
    """The options that LoadScheduling asks for."""

    hook = None

    @staticmethod
    def getoption(name):
        return None

    @staticmethod
    def getvalue(name):
        return ["popen"] if name == "tx" else None


def run(workers, demands, durations):
    clock = Clock(Config(), workers, demands, durations)
    seconds = clock.run()
    assert sorted(index for index, _ in clock.ran) == list(range(len(demands)))
    assert all(worker.shutting_down for worker in clock.workers)
    return clock, seconds


def on(*boards, needed=1, unit="", firmware=""):
    return Demand(boards, needed, unit, firmware)


def flashes(clock):
    """Return how often a board is flashed with other firmware."""
    count, there = 0, {}
    for index, worker in clock.ran:
        firmware = clock.demands[index].firmware
        for board in worker.promised.get(index, ()):
            count += firmware not in ("", there.get(board))
            there[board] = firmware or there.get(board)
    return count


def test_each_board_has_a_worker():
    demands = [on(board) for board in "abcd" for _ in range(10)]
    _, seconds = run(4, demands, [1.0] * 40)
    assert seconds == pytest.approx(10, abs=0.5)


def test_fewer_workers_than_boards():
    demands = [on(board) for board in "abcd" for _ in range(10)]
    _, seconds = run(2, demands, [1.0] * 40)
    assert seconds == pytest.approx(20, abs=0.5)


def test_more_workers_than_boards_do_the_tests_without_a_board():
    demands = [on("a")] * 10 + [NO_BOARD] * 30
    _, seconds = run(4, demands, [1.0] * 40)
    assert seconds == pytest.approx(10, abs=1.5)


def test_tests_that_any_board_can_run_even_out_those_that_only_one_can():
    demands = [on("a")] * 12 + [on("a", "b")] * 12
    _, seconds = run(2, demands, [1.0] * 24)
    assert seconds == pytest.approx(12, abs=1.5)


def test_one_long_test_does_not_delay_its_neighbours():
    demands = [on("a", "b")] * 21
    _, seconds = run(2, demands, [20.0] + [1.0] * 20)
    assert seconds == pytest.approx(20, abs=2.5)


def test_a_board_that_becomes_free_goes_to_whoever_is_free_first():
    # A worker may not promise itself board c while it is busy on a: another one is done earlier.
    demands = [on("a"), on("b"), on("c"), on("c"), on("c")]
    _, seconds = run(2, demands, [10.0, 1.0, 3.0, 3.0, 3.0])
    assert seconds == pytest.approx(10, abs=0.5)


def test_tests_that_need_several_boards_come_first_and_are_not_starved():
    demands = [on(board) for board in "abcd" for _ in range(5)] + [on(*"abcd", needed=3)] * 2
    clock, _ = run(4, demands, [1.0] * 22)
    assert clock.ran[0][0] == 20


def test_a_unit_stays_with_one_worker():
    demands = [on("a", "b", unit="m1")] * 6 + [on("a", "b", unit="m2")] * 6
    clock, seconds = run(3, demands, [1.0] * 12)
    for unit in (range(6), range(6, 12)):
        assert len({worker for index, worker in clock.ran if index in unit}) == 1
    assert seconds == pytest.approx(6, abs=0.5)


def test_tests_of_one_firmware_follow_each_other_on_a_board():
    demands = [on("a", "b", firmware=name) for name in ("one", "two") * 10]
    clock, seconds = run(2, demands, [1.0] * 20)
    assert flashes(clock) == 2
    assert seconds == pytest.approx(10, abs=0.5)
    clock, _ = run(1, [on("a", firmware=name) for name in ("one", "", "two", "three") * 5], [1.0] * 20)
    assert flashes(clock) == 3


def test_a_worker_that_has_done_its_firmware_helps_with_the_other():
    demands = [on("a", "b", firmware="one")] * 4 + [on("a", "b", firmware="two")] * 12
    clock, seconds = run(2, demands, [1.0] * 16)
    assert flashes(clock) == 3
    assert seconds == pytest.approx(8, abs=1.5)


@given(data=st.data(), workers=st.integers(1, 5), tests=st.integers(1, 40))
@settings(max_examples=150, deadline=None)
def test_every_test_runs_once_and_no_board_is_driven_by_two(data, workers, tests):
    boards = st.lists(st.sampled_from("abcd"), min_size=1, max_size=4, unique=True).map(
        lambda names: tuple(sorted(names))
    )
    demand = st.one_of(
        st.just(NO_BOARD),
        boards.map(lambda names: Demand(names, 1, "")),
        boards.map(lambda names: Demand(names, len(names), "")),
        boards.map(lambda names: Demand(names, 1, "unit" + "".join(names))),
        st.builds(Demand, boards, st.just(1), st.just(""), st.sampled_from(["one", "two"])),
    )
    demands = data.draw(st.lists(demand, min_size=tests, max_size=tests))
    durations = data.draw(st.lists(st.sampled_from([0.001, 0.05, 0.5, 5.0]), min_size=tests, max_size=tests))
    if any(demand.needed for demand in demands):
        run(workers, demands, durations)
