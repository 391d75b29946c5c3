"""One board, one holder: proven with real processes."""

import contextlib
import multiprocessing
import os
import random
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock

from pytest_esp.errors import LeaseError, NoMatchError, PortError, RackError
from pytest_esp.rack import lease as module
from pytest_esp.rack.config import load_rack
from pytest_esp.rack.lease import Lease, acquire, holder_of
from pytest_esp.rack.requirement import Requirement

ANY = Requirement()


@pytest.fixture
def rack(tmp_path):
    path = tmp_path / "boards.toml"
    path.write_text(
        '[rack]\nlock_dir = "locks"\n[boards.a]\nbackend="sim"\nchip="esp32"\n[boards.b]\nbackend="sim"\nchip="esp32"\n'
    )
    return load_rack(path)


@pytest.fixture(autouse=True)
def no_lock_dir_from_outside(monkeypatch):
    monkeypatch.delenv("PYTEST_ESP_LOCK_DIR", raising=False)


HOLD = """
    import sys, time
    from pathlib import Path
    from pytest_esp.rack.config import load_rack
    from pytest_esp.rack.requirement import Requirement
    rack = load_rack(Path(sys.argv[1]))
    leases = rack.lease(Requirement(count=int(sys.argv[2])), purpose="the other test")
    print(*[lease.spec.name for lease in leases], flush=True)
    time.sleep(60)
"""


def hold_elsewhere(rack, count=2):
    """Start a process that holds boards; returns it once it does."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLD), str(rack.path), str(count)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline().split()
    return process


def fight(path, proof, rounds, results):
    rack = load_rack(Path(path))
    collisions = 0
    for _ in range(rounds):
        with rack.lease(ANY, purpose="fight", timeout=60)[0] as lease:
            mark = Path(proof) / lease.spec.name
            try:
                mark.touch(exist_ok=False)
            except FileExistsError:
                collisions += 1
                continue
            mark.unlink()
    results.put(collisions)


def test_processes_that_fight_over_two_boards_never_hold_one_together(rack, tmp_path):
    """ESP_LEASE_ROUNDS=1000 makes ten processes take ten thousand leases, as it was once proven."""
    rounds = int(os.environ.get("ESP_LEASE_ROUNDS", "60"))
    proof = tmp_path / "proof"
    proof.mkdir()
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=fight, args=(rack.path, proof, rounds, results)) for _ in range(10)]
    for process in processes:
        process.start()
    collisions = [results.get(timeout=100) for _ in processes]
    for process in processes:
        process.join()
    assert collisions == [0] * 10


def test_a_killed_holder_frees_its_boards_at_once(rack):
    holder = hold_elsewhere(rack)
    begun = time.monotonic()
    holder.send_signal(signal.SIGKILL)
    with rack.lease(ANY, purpose="next", timeout=10)[0]:
        assert time.monotonic() - begun < 1
    holder.wait()


def test_a_child_that_outlives_its_killed_parent_does_not_keep_the_board(rack):
    code = textwrap.dedent(HOLD).replace("time.sleep(60)", "import subprocess; subprocess.run(['sleep', '5'])")
    parent = subprocess.Popen([sys.executable, "-c", code, str(rack.path), "2"], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    parent.stdout.readline()
    time.sleep(0.1)
    parent.kill()
    parent.wait()
    rack.lease(ANY, purpose="next", timeout=1)[0].release()


def test_a_waiter_says_who_holds_the_board_and_for_how_long(rack):
    holder = hold_elsewhere(rack)
    heard = []
    try:
        with pytest.raises(LeaseError) as caught:
            rack.lease(ANY, purpose="me", timeout=0.1, on_wait=lambda holders, waited: heard.append(holders))
        message = str(caught.value)
        assert f"pid {holder.pid}" in message
        assert "the other test" in message
        assert "timed out after 0.1 s waiting for" in message
        assert {record.board for record in heard[0]} == {"a", "b"}
        assert holder_of(rack.board("a"), rack).pid == holder.pid
    finally:
        holder.kill()
        holder.wait()
    assert holder_of(rack.board("a"), rack) is None  # its record is still there, and means nothing


def test_whichever_of_several_boards_frees_first_is_taken(rack):
    first, second = rack.lease(Requirement(count=2), purpose="both")
    timer = threading.Timer(0.05, second.release)
    timer.start()
    with rack.lease(ANY, purpose="any", timeout=5)[0] as lease:
        assert lease.spec.name == second.spec.name
        assert 0.04 < lease.waited < 1
    first.release()


def test_takers_of_two_boards_do_not_block_each_other(rack):
    def take_both():
        for _ in range(30):
            for lease in rack.lease(Requirement(count=2), purpose="both", timeout=20):
                lease.release()

    threads = [threading.Thread(target=take_both) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)


def test_a_process_does_not_get_a_board_twice(rack):
    with rack.lease(Requirement(boards=("a",)), purpose="one")[0], pytest.raises(LeaseError, match="held"):
        rack.lease(Requirement(boards=("a",)), purpose="two", timeout=0)


def test_a_lock_folder_that_cannot_be_made_is_named_with_the_setting(rack, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("PYTEST_ESP_LOCK_DIR", str(tmp_path / "file" / "locks"))
    with pytest.raises(LeaseError) as caught:
        rack.lease(ANY, purpose="me")
    assert str(tmp_path / "file" / "locks") in str(caught.value)
    assert "PYTEST_ESP_LOCK_DIR" in str(caught.value)


def test_a_board_stays_the_same_when_the_working_folder_changes(rack, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    relative = load_rack(Path("boards.toml"))
    monkeypatch.chdir("/")
    with rack.lease("a", purpose="me")[0]:
        assert holder_of(relative.board("a"), relative) is not None
    monkeypatch.setenv("PYTEST_ESP_LOCK_DIR", "locks")
    with pytest.raises(LeaseError, match="must be absolute"):
        rack.lease("a", purpose="me")


def test_the_lock_folder_is_made_for_all_users(rack):
    with rack.lease(ANY, purpose="me")[0]:
        folder = rack.lock_dir
        assert stat.S_IMODE(folder.stat().st_mode) == 0o1777
        assert all(stat.S_IMODE(path.stat().st_mode) == 0o666 for path in folder.glob("*.lock"))
    assert not list(folder.glob("*.json*"))


kept: list[Lease] = []
"""Leases that a forked child keeps until it is killed."""


@contextlib.contextmanager
def forked(work):
    """Run *work* in a forked child, which then sleeps until it is killed; yields what *work* returned."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            answer = str(work())
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        os.write(writing, answer.encode())
        os.close(writing)
        time.sleep(60)
        os._exit(0)
    os.close(writing)
    try:
        with os.fdopen(reading) as pipe:
            yield pipe.read()
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def as_user(uid, work):
    """Return *work*, done by another user with a strict umask."""

    def done():
        os.umask(0o077)
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
        return work()

    return done


needs_root = pytest.mark.skipif(sys.platform == "win32" or os.geteuid() != 0, reason="only root can become other users")


@pytest.fixture
def open_rack():
    """A rack whose lock folder, made by root, all users reach. (Every start of pytest closes `tmp_path` to them.)"""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "boards.toml").write_text('[rack]\nlock_dir = "locks"\n[boards.a]\nbackend="sim"\nchip="esp32"\n')
        rack = load_rack(folder / "boards.toml")
        rack.lease(ANY, purpose="the folder's first user")[0].release()
        yield rack


@needs_root
def test_a_killed_holder_locks_no_other_user_out(open_rack):
    """It leaves its record, which in a sticky folder nobody else may remove or replace."""

    def hold():
        kept.append(open_rack.lease("a", purpose="a test", timeout=0)[0])
        return "taken"

    for uid in (12001, 12002, 12001):
        with forked(as_user(uid, hold)) as answer:
            assert answer == "taken"
            record = holder_of(open_rack.board("a"), open_rack)
            assert record is not None
            assert record.purpose == "a test"
    assert len(list(open_rack.lock_dir.glob("*.json"))) == 2
    assert holder_of(open_rack.board("a"), open_rack) is None
    open_rack.lease("a", purpose="root", timeout=0)[0].release()


@needs_root
def test_users_tell_each_other_who_holds_a_board(open_rack):
    """Whatever their umasks."""

    def holder():
        return holder_of(open_rack.board("a"), open_rack).purpose

    with (
        forked(as_user(12001, lambda: repr(kept.extend(open_rack.lease("a", purpose="night run"))))) as answer,
        forked(as_user(12002, holder)) as told,
    ):
        assert (answer, told) == ("None", "night run")


@needs_root
def test_a_folder_that_a_user_may_not_write_is_refused_by_name(open_rack):
    open_rack.lock_dir.chmod(0o755)
    with forked(as_user(12001, lambda: open_rack.lease("a", purpose="me", timeout=0))) as answer:
        assert f"LeaseError: cannot create a lock in {open_rack.lock_dir}: Permission denied" in answer
        assert "PYTEST_ESP_LOCK_DIR" in answer


def test_a_forked_child_neither_keeps_nor_frees_the_board_of_its_parent(rack):
    lease = rack.lease("a", purpose="parent")[0]

    def release():
        lease.release()
        return lease.held

    with forked(release) as held:
        assert held == "False"
        assert lease.held
        assert holder_of(rack.board("a"), rack).pid == os.getpid()
        lease.release()
        assert holder_of(rack.board("a"), rack) is None  # while the child, with all it inherited, lives


def test_an_observer_is_never_in_the_way_of_a_taker(rack):
    def look():
        while True:
            holder_of(rack.board("a"), rack)

    pid = os.fork()
    if pid == 0:
        look()
    try:
        for _ in range(300):
            rack.lease("a", purpose="me", timeout=0)[0].release()
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_the_record_of_a_killed_holder_is_never_taken_for_the_holder(rack):
    holder = hold_elsewhere(rack)
    holder.kill()
    holder.wait()
    (record,) = rack.lock_dir.glob("*-toml-a-*.json")
    assert f'"pid": {holder.pid}' in record.read_text()
    (path,) = rack.lock_dir.glob("*-toml-a-*.lock")
    with FileLock(path):  # taken by somebody who has not signed yet
        assert "just taking" in holder_of(rack.board("a"), rack).purpose
    assert holder_of(rack.board("a"), rack) is None


def test_threads_release_a_lease_once(rack):
    for _ in range(50):
        lease = rack.lease("a", purpose="one")[0]
        threads = [threading.Thread(target=lease.release) for _ in range(3)]
        for thread in threads:
            thread.start()
        with rack.lease("a", purpose="two", timeout=5)[0]:
            for thread in threads:
                thread.join()
            assert holder_of(rack.board("a"), rack).purpose == "two"


def test_an_interrupted_wait_holds_nothing(rack):
    def interrupt(holders, waited):
        raise KeyboardInterrupt

    with rack.lease("a", purpose="one")[0]:
        with pytest.raises(KeyboardInterrupt):
            rack.lease(Requirement(count=2), purpose="two", on_wait=interrupt)
        assert holder_of(rack.board("b"), rack) is None


def test_a_wait_is_reported_at_once_and_then_every_few_seconds(rack, monkeypatch):
    monkeypatch.setattr("pytest_esp.rack.lease._REPORT_EVERY", 0.05)
    reports = []
    with rack.lease("a", purpose="one")[0], pytest.raises(LeaseError):
        rack.lease("a", purpose="two", timeout=0.3, on_wait=lambda holders, waited: reports.append(waited))
    assert reports[0] < 0.05
    assert 3 <= len(reports) <= 7


def test_of_free_boards_the_first_candidates_are_taken(rack):
    """The order of the candidates is a preference."""
    specs = [rack.board("b"), rack.board("a")]
    for count in (1, 2):
        leases = acquire(specs, rack=rack, purpose="me", count=count)
        assert [lease.spec.name for lease in leases] == ["b", "a"][:count]
        for lease in leases:
            lease.release()


def test_a_board_by_a_name_that_the_rack_has_not(rack):
    with pytest.raises(RackError, match="no board 'c'; nearest: a, b"):
        rack.lease("c", purpose="me")


def test_a_free_board_is_taken_and_given_back_in_less_than_a_millisecond(rack):
    """The record is part of it. The best of many, as others use this machine, too."""

    def once():
        begun = time.perf_counter()
        rack.lease("a", purpose="me")[0].release()
        return time.perf_counter() - begun

    assert min(once() for _ in range(200)) < 0.001


def test_the_state_of_a_board_has_a_folder_of_its_own(rack, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTEST_ESP_STATE_DIR", str(tmp_path / "state"))
    folders = [rack.state_dir(spec) for spec in rack.boards.values()]
    assert len(set(folders)) == 2
    assert all(folder.is_dir() and folder.parent == tmp_path / "state" for folder in folders)
    assert "boards-toml-a-" in folders[0].name


# -- waiting, by a clock of its own


class Clock:
    """Time passes only while somebody sleeps; *then* is called before each sleep."""

    def __init__(self):
        self.now, self.sleeps, self.then = 1000.0, [], lambda: None

    def monotonic(self):
        return self.now

    def time(self):
        return time.time()

    def sleep(self, seconds):
        assert seconds >= 0
        self.sleeps.append(seconds)
        self.then()
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_a_wait_is_as_long_as_its_time_out(rack, clock):
    with rack.lease("a", purpose="one")[0] as lease:
        assert lease.waited == 0
        with pytest.raises(LeaseError, match=r"3\.0 s waiting for a; a: held for .* by one"):
            rack.lease("a", purpose="two", timeout=3.0)
    assert clock.now == pytest.approx(1003.0, abs=1e-6)


def test_who_does_not_want_to_wait_does_not(rack, clock):
    with rack.lease("a", purpose="one")[0], pytest.raises(LeaseError, match=r"after 0\.0 s"):
        rack.lease("a", purpose="two", timeout=0)
    assert clock.sleeps == []


def test_pauses_grow_to_an_upper_limit(rack, clock, monkeypatch):
    halves = SimpleNamespace(uniform=lambda low, high: low if (low, high) == (0.5, 1.0) else None)
    monkeypatch.setattr(module, "_random", halves)
    with rack.lease("a", purpose="one")[0], pytest.raises(LeaseError):
        rack.lease("a", purpose="two", timeout=1.0)
    assert clock.sleeps[:6] == pytest.approx([0.0005, 0.001, 0.002, 0.004, 0.008, 0.0125])
    assert max(clock.sleeps) == 0.0125


def test_pauses_do_not_follow_the_seed_of_the_global_generator(rack, clock):
    """Plugins seed it alike in all workers, which would then try at the same moments."""
    waits = []
    with rack.lease("a", purpose="one")[0]:
        for _ in range(2):
            random.seed(1)
            state = random.getstate()
            clock.sleeps = []
            with pytest.raises(LeaseError):
                rack.lease("a", purpose="two", timeout=0.2)
            waits.append(clock.sleeps)
            assert random.getstate() == state
    assert waits[0] != waits[1]


def test_a_wait_without_an_end(rack, clock):
    held = rack.lease("a", purpose="one")[0]
    clock.then = lambda: held.release() if clock.now > 1100 else None
    with rack.lease("a", purpose="two")[0] as lease:
        assert 100 < lease.waited < 101
        assert holder_of(rack.board("a"), rack).purpose == "two"


def test_reports_come_at_once_and_every_five_seconds(rack, clock):
    reports = []
    with rack.lease("a", purpose="one")[0], pytest.raises(LeaseError):
        rack.lease("a", purpose="two", timeout=16.0, on_wait=lambda holders, waited: reports.append((waited, holders)))
    assert [waited for waited, _ in reports] == pytest.approx([0, 5, 10, 15], abs=0.2)
    assert all([holder.purpose for holder in holders] == ["one"] for _, holders in reports)


def test_a_lock_that_nobody_signs_is_waited_for_a_little_longer(rack, clock):
    """It may be an observer's."""
    rack.lease("a", purpose="me")[0].release()
    (path,) = rack.lock_dir.glob("*-toml-a-*.lock")
    lock = FileLock(path)
    with lock, pytest.raises(LeaseError, match="just taking or releasing it"):
        rack.lease("a", purpose="two", timeout=1.0)
    assert clock.now == pytest.approx(1001.05, abs=0.002)
    lock.acquire()
    clock.now = 1000.0
    clock.then = lambda: lock.release() if clock.now > 1000.03 else None
    rack.lease("a", purpose="two", timeout=0)[0].release()


def test_an_unsigned_lock_is_enough_for_one_board_and_not_for_two(rack, clock):
    for lease in rack.lease(Requirement(count=2), purpose="me"):
        lease.release()
    (path,) = rack.lock_dir.glob("*-toml-b-*.lock")
    specs = [rack.board("a"), rack.board("b")]
    with rack.lease("a", purpose="one")[0], FileLock(path):
        with pytest.raises(LeaseError, match=r"0\.1 s waiting for 1 of 2 boards; a: held .* by one .*; b: held by a"):
            acquire(specs, rack=rack, purpose="two", timeout=0)
        with pytest.raises(LeaseError, match=r"0\.0 s waiting for 2 of 2 boards"):
            acquire(specs, rack=rack, purpose="two", count=2, timeout=0)


def test_a_holder_that_has_just_let_go(rack, clock, monkeypatch):
    held = rack.lease("a", purpose="one")[0]
    monkeypatch.setattr(module, "_is_passing", lambda slots, count: held.release())
    with pytest.raises(LeaseError, match="just released"):
        rack.lease("a", purpose="two", timeout=0)


def test_boards_that_come_back_elsewhere_are_looked_for_every_second(rack, clock, monkeypatch):
    looks, file_stem = [], module.file_stem

    def look(spec, rack):
        looks.append(clock.now)
        return file_stem(spec, rack)

    with rack.lease("a", purpose="one")[0]:
        monkeypatch.setattr(module, "file_stem", look)
        with pytest.raises(LeaseError):
            rack.lease("a", purpose="two", timeout=3.5)
    assert looks == pytest.approx([1000, 1001, 1002, 1003], abs=0.2)


def test_what_is_taken_of_several_is_given_back(rack):
    with rack.lease("b", purpose="one")[0]:
        with pytest.raises(LeaseError, match="2 of 2 boards"):
            rack.lease(Requirement(count=2), purpose="two", timeout=0)
        assert holder_of(rack.board("a"), rack) is None
        assert len(list(rack.lock_dir.glob("*.json"))) == 1


def test_more_boards_than_there_are(rack):
    with pytest.raises(NoMatchError, match="3 boards"):
        acquire([rack.board("a"), rack.board("b")], rack=rack, purpose="me", count=3)


def test_of_boards_that_are_not_plugged_in_the_first_is_named(tmp_path):
    path = tmp_path / "boards.toml"
    path.write_text(
        '[rack]\nlock_dir = "locks"\n'
        f'[boards.gone]\nbackend="serial"\nchip="esp32"\nport="{tmp_path}/gone"\n'
        f'[boards.lost]\nbackend="serial"\nchip="esp32"\nport="{tmp_path}/lost"\n'
    )
    rack = load_rack(path)
    for names in (["gone"], ["gone", "lost"]):
        with pytest.raises(PortError, match=f"the port {tmp_path}/gone does not exist"):
            acquire([rack.board(name) for name in names], rack=rack, purpose="me")


def test_a_lease_ends_with_its_block_or_by_hand(rack):
    with rack.lease("a", purpose="me")[0] as lease:
        assert lease.held
        assert abs(lease.since - time.time()) < 60
    assert not lease.held
    lease.release()
    with rack.lease("a", purpose="me", timeout=0)[0] as again:
        lease.release()
        assert again.held
        assert holder_of(rack.board("a"), rack) is not None
