"""Who waits longest gets its boards first, also who needs several, and nobody waits for ever."""

import contextlib
import json
import multiprocessing
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from pytest_esp.errors import LeaseError
from pytest_esp.rack import waiting as module
from pytest_esp.rack.config import load_rack
from pytest_esp.rack.lease import acquire, file_stem, holder_of
from pytest_esp.rack.requirement import Requirement
from pytest_esp.rack.waiting import Queue, Ticket, allot

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="needs signals and flock")


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.delenv("PYTEST_ESP_LOCK_DIR", raising=False)
    monkeypatch.setenv("PYTEST_ESP_STATE_DIR", str(tmp_path / "state"))


@pytest.fixture
def rack(tmp_path):
    """Three boards: a, b and c."""
    boards = "".join(f'[boards.{name}]\nbackend="sim"\nchip="esp32"\n' for name in "abc")
    (tmp_path / "boards.toml").write_text(f'[rack]\nlock_dir = "locks"\n{boards}')
    return load_rack(tmp_path / "boards.toml")


def tickets(rack):
    return sorted((rack.lock_dir / "waiting").glob("*.ticket"))


# -- the order


def ticket(count, *boards):
    return Ticket(1, count, tuple((board,) for board in boards))


@pytest.mark.parametrize(
    ("queue", "free", "kept"),
    [
        ([ticket(1, "a", "b")], "ab", "a"),
        ([ticket(1, "a", "b")], "b", "b"),
        ([ticket(2, "a", "b", "c")], "a", "a"),
        ([ticket(2, "a", "b", "c")], "abc", "ab"),
        ([ticket(1, "a"), ticket(1, "a", "b")], "ab", "ab"),
        ([ticket(3, "a", "b", "c"), ticket(1, "a", "b")], "ab", "ab"),
        ([ticket(1, "a"), ticket(1, "a")], "a", "a"),
        ([ticket(2, "a", "b")], "cd", ""),
        ([Ticket(1, 1, (("a", "file"), ("b",)))], "ab", "b"),
    ],
)
def test_what_earlier_tickets_keep(queue, free, kept):
    assert "".join(sorted(allot(queue, set(free)))) == kept


def test_what_becomes_free_after_a_look_is_for_who_came_first(tmp_path):
    first = Queue(str(tmp_path), [["a"], ["b"]], 1, lambda name: False)
    first.join()
    later = Queue(str(tmp_path), [["a"], ["b"]], 1, lambda name: name == "c")
    assert set(later.kept()) == {"a", "b"}
    assert set(Queue(str(tmp_path), [["a"], ["b"]], 1, lambda name: name == "b").kept()) == {"a", "b"}
    first.close()
    assert later.kept() == {}


class Taker(threading.Thread):
    """Takes boards in a thread and keeps them until it is told to stop."""

    def __init__(self, rack, order, name, count, boards=("a", "b", "c")):
        super().__init__(daemon=True)
        self._arguments = rack, order, name, count, boards
        self.done = threading.Event()
        self.has = threading.Event()

    def run(self):
        rack, order, name, count, boards = self._arguments
        specs = [rack.board(board) for board in boards]
        leases = acquire(specs, rack=rack, purpose=name, count=count, timeout=20)
        order.append(name)
        self.has.set()
        self.done.wait(20)
        for lease in leases:
            lease.release()


def queue_up(rack, order, *takers):
    """Start takers, each after the one before has a ticket."""
    started = []
    for name, count, *boards in takers:
        before = len(tickets(rack))
        taker = Taker(rack, order, name, count, *boards)
        taker.start()
        until(lambda before=before, taker=taker: len(tickets(rack)) > before or taker.has.is_set())
        started.append(taker)
    return started


def until(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "nothing changed"
        time.sleep(0.002)


def test_boards_are_taken_in_the_order_of_arrival(rack):
    order = []
    held = rack.lease(Requirement(count=3), purpose="before")
    takers = queue_up(rack, order, ("two", 2), ("one", 1), ("three", 3), ("last", 1))
    assert len(tickets(rack)) == 4
    held[0].release()
    time.sleep(0.2)
    assert order == []  # the first board is kept for "two"
    held[1].release()
    until(lambda: order == ["two"])
    held[2].release()
    until(lambda: order == ["two", "one"])
    takers[0].done.set()
    time.sleep(0.2)
    assert order == ["two", "one"]  # "three" needs all; "last" came later
    takers[1].done.set()
    until(lambda: order == ["two", "one", "three"])
    takers[2].done.set()
    until(lambda: order == ["two", "one", "three", "last"])
    takers[3].done.set()
    for taker in takers:
        taker.join()
    assert tickets(rack) == []


def test_who_comes_later_takes_what_nobody_before_it_needs(rack):
    order = []
    held = rack.lease("a", purpose="before")[0]
    first, second = queue_up(rack, order, ("first", 2, ("a", "b")), ("second", 1, ("b", "c")))
    until(lambda: order == ["second"])
    assert holder_of(rack.board("c"), rack).purpose == "second"
    assert holder_of(rack.board("b"), rack) is None
    run(lambda: refused(rack, rf"b: kept for pid {os.getpid()}, which has waited longer for 2 boards"))
    held.release()
    until(lambda: order == ["second", "first"])
    for taker in (first, second):
        taker.done.set()
        taker.join()


def test_takers_of_several_boards_do_not_wait_for_each_other(rack):
    order = []
    held = rack.lease(Requirement(count=3), purpose="before")
    pairs = [("ab", 2, "ab"), ("bc", 2, "bc"), ("ca", 2, "ca"), ("abc", 3, "abc"), ("ba", 2, "ba")]
    takers = queue_up(rack, order, *pairs)
    for taker in takers:
        taker.done.set()
    for lease in held:
        lease.release()
    for taker in takers:
        taker.join(10)
    assert order == ["ab", "bc", "ca", "abc", "ba"]


def test_who_holds_a_board_does_not_queue_behind_who_waits_for_it(rack):
    """They would wait for each other: a test that needs one more board than its module holds."""
    order = []
    held = rack.lease("a", purpose="a module")[0]
    (both,) = queue_up(rack, order, ("both", 2, "ab"))
    with rack.lease("b", purpose="a test", timeout=1)[0] as more:
        assert more.held
    held.release()
    until(lambda: order == ["both"])
    both.done.set()
    both.join()


# -- who does not count


def wait_for_two(path):
    load_rack(Path(path)).lease(Requirement(count=2), purpose="waiting", timeout=60)
    time.sleep(60)


@contextlib.contextmanager
def waiting_elsewhere(rack):
    """Another process waits for two boards."""
    process = multiprocessing.get_context("fork").Process(target=wait_for_two, args=(rack.path,))
    process.start()
    try:
        until(lambda: tickets(rack))
        yield process
    finally:
        process.kill()
        process.join()


@posix_only
def test_the_ticket_of_a_killed_process_keeps_nothing(rack):
    held = rack.lease(Requirement(count=2), purpose="before")
    held += rack.lease(Requirement(), purpose="before")
    with waiting_elsewhere(rack) as process:
        held[0].release()
        run(lambda: refused(rack, "kept for pid"))
        process.kill()
        process.join()
        run(lambda: take_one(rack, timeout=0))
    assert tickets(rack) == []
    for lease in held:
        lease.release()


def refused(rack, why):
    with pytest.raises(LeaseError, match=why):
        rack.lease(Requirement(), purpose="me", timeout=0)


def take_one(rack, timeout):
    rack.lease(Requirement(), purpose="me", timeout=timeout)[0].release()


def run(work):
    """Do something in a thread that holds no boards."""
    failed = []

    def guarded():
        try:
            work()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


@posix_only
def test_a_stopped_process_keeps_its_place_but_no_boards(rack, monkeypatch):
    monkeypatch.setattr(module, "_ASLEEP_AFTER", 1.0)
    held = rack.lease(Requirement(count=3), purpose="before")
    with waiting_elsewhere(rack) as process:
        os.kill(process.pid, signal.SIGSTOP)
        held[0].release()
        begun = time.monotonic()
        run(lambda: take_one(rack, timeout=10))
        assert time.monotonic() - begun < 5
        (before,) = tickets(rack)
        os.kill(process.pid, signal.SIGCONT)
        until(lambda: time.time() - before.stat().st_mtime < 0.5)
        assert tickets(rack) == [before]
        run(lambda: refused(rack, "kept for pid"))
    for lease in held:
        lease.release()


def test_a_wait_that_ends_leaves_no_ticket(rack):
    with rack.lease("a", purpose="one")[0]:
        with pytest.raises(LeaseError):
            rack.lease("a", purpose="two", timeout=0.1)
        assert tickets(rack) == []
        with pytest.raises(KeyboardInterrupt):
            rack.lease("a", purpose="two", timeout=5, on_wait=interrupt)
    assert tickets(rack) == []


def interrupt(*_):
    raise KeyboardInterrupt


GOOD = "0" * 20 + "-1-0.ticket"


@posix_only
@pytest.mark.parametrize(
    "text",
    ["", "[", "[" * 9000, "[1]", "[1, 2, 3]", '["1", [["{a}"]]]', "[0, []]", "[true, [[]]]", '[2, [["{a}"]]]'],
)
def test_a_ticket_that_is_not_one_keeps_nothing(rack, text):
    """It is locked, as that of a process that waits."""
    fcntl = pytest.importorskip("fcntl")
    (rack.lock_dir / "waiting").mkdir(parents=True)
    (rack.lock_dir / "waiting" / GOOD).write_text(text.replace("{a}", file_stem(rack.board("a"), rack)))
    with (rack.lock_dir / "waiting" / GOOD).open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        rack.lease("a", purpose="me", timeout=0)[0].release()


@posix_only
def test_odd_files_among_the_tickets(rack, tmp_path):
    folder = rack.lock_dir / "waiting"
    folder.mkdir(parents=True)
    os.mkfifo(folder / GOOD)
    (folder / GOOD.replace("-1-", "-2-")).symlink_to("/dev/zero")
    (folder / GOOD.replace("-1-", "-3-")).mkdir()
    (folder / "notes.txt").touch()
    begun = time.monotonic()
    rack.lease("a", purpose="me", timeout=0)[0].release()
    assert time.monotonic() - begun < 1
    assert (folder / "notes.txt").exists()


def test_names_in_a_ticket_do_not_lead_out_of_the_folder():
    assert module._parse(GOOD, json.dumps([1, [["../../etc/x"]]]).encode()) is None
    assert module._parse(GOOD, json.dumps([1, [["x-1"]]]).encode()) == Ticket(1, 1, (("x-1",),))


def test_a_queue_that_cannot_be_used_is_none(rack):
    """A lease is then only less fair."""
    rack.lock_dir.mkdir()
    (rack.lock_dir / "waiting").write_text("not a folder")
    with rack.lease("a", purpose="one")[0], pytest.raises(LeaseError, match="held for"):
        rack.lease("a", purpose="two", timeout=0.1)


def test_other_boards_are_waited_for_at_the_same_place(tmp_path):
    queue = Queue(str(tmp_path), [["a"]], 1, lambda name: True)
    queue.join()
    later = Queue(str(tmp_path), [["a"], ["b"]], 1, lambda name: True)
    assert set(later.kept()) == {"a"}
    queue.change([["b"]])
    queue.join()
    other = Queue(str(tmp_path), [["a"]], 1, lambda name: True)
    assert set(other.kept()) == {"b"}
    other.join()
    assert set(queue.kept()) == set()
    assert other.length == 1
    for each in (queue, other):
        each.close()


# -- stress, with processes


def take_turns(path, proof, count, hold, end, results):
    rack = load_rack(Path(path))
    collisions, turns, longest = 0, 0, 0.0
    while time.monotonic() < end:
        leases = rack.lease(Requirement(count=count), purpose="stress", timeout=60)
        longest, turns = max(longest, leases[0].waited), turns + 1
        for lease in leases:
            collisions += not mark(Path(proof) / lease.spec.name)
        time.sleep(hold)
        for lease in leases:
            (Path(proof) / lease.spec.name).unlink(missing_ok=True)
            lease.release()
    results.put((count, collisions, turns, longest))


def mark(path):
    """Sign for a board; return whether nobody who lives and holds it has signed."""
    owner = f"{os.getpid()}"
    with contextlib.suppress(FileNotFoundError, ValueError):
        other = int(path.read_text())
        if other != os.getpid() and Path(f"/proc/{other}").exists() and not is_zombie(other):
            return False
    path.write_text(owner)
    return True


def is_zombie(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


@posix_only
def test_takers_of_several_boards_get_as_many_turns_as_takers_of_one(rack, tmp_path):
    """Before, a taker of two or three boards beside five of one got none."""
    (tmp_path / "proof").mkdir()
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    hold, end, counts = 0.03, time.monotonic() + 2.5, [1, 1, 1, 1, 1, 2, 3]
    arguments = [(rack.path, tmp_path / "proof", count, hold, end, results) for count in counts]
    processes = [context.Process(target=take_turns, args=each) for each in arguments]
    for process in processes:
        process.start()
    found = sorted(results.get(timeout=60) for _ in processes)
    for process in processes:
        process.join()
    assert [collisions for _, collisions, _, _ in found] == [0] * len(counts)
    singles = [turns for count, _, turns, _ in found if count == 1]
    for count, _, turns, longest in found:
        if count > 1:
            assert turns >= min(singles) * 0.6
            # Every process before it has one turn; the rest is for a busy machine.
            assert longest < (len(counts) + 1) * hold * 3 + 0.5


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks at processes in /proc")
def test_processes_that_are_killed_stopped_and_continued_never_share_a_board(rack, tmp_path):
    """ESP_LEASE_SECONDS=120 makes it a long one."""
    (tmp_path / "proof").mkdir()
    seconds, chance = float(os.environ.get("ESP_LEASE_SECONDS", "3")), random.Random(1)
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    end = time.monotonic() + seconds

    def start():
        count = chance.choice([1, 1, 1, 2, 3])
        arguments = (rack.path, tmp_path / "proof", count, 0.002, end, results)
        process = context.Process(target=take_turns, args=arguments)
        process.start()
        return process

    processes = [start() for _ in range(7)]
    killed = 0
    while time.monotonic() < end - 1:
        time.sleep(chance.uniform(0.005, 0.03))
        number = chance.randrange(len(processes))
        process = processes[number]
        if chance.random() < 0.3:
            process.kill()
            process.join()
            killed += 1
            processes[number] = start()
        else:
            os.kill(process.pid, signal.SIGSTOP)
            time.sleep(chance.uniform(0.001, 0.05))
            os.kill(process.pid, signal.SIGCONT)
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert killed > 5
    assert sum(collisions for _, collisions, _, _ in found) == 0
    assert sum(turns for _, _, turns, _ in found) > 20
    rack.lease(Requirement(count=3), purpose="me", timeout=5)
