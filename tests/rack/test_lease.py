"""One board, one holder: proven with real processes."""

import multiprocessing
import os
import signal
import stat
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from pytest_esp.errors import LeaseError
from pytest_esp.rack.config import load_rack
from pytest_esp.rack.identity import canonical_port, identity
from pytest_esp.rack.lease import holder_of
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
    context = multiprocessing.get_context("spawn")
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
        assert "did not become free in 0.1 s" in message
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


def test_all_names_of_a_port_are_one_board(tmp_path):
    main, device = os.openpty()
    try:
        node = os.ttyname(device)
        by_id = tmp_path / "usb-Espressif-if00"
        by_id.symlink_to(node)
        again = tmp_path / "again"
        again.symlink_to(by_id)
        path = tmp_path / "boards.toml"
        path.write_text(
            "".join(
                f'[boards.{name}]\nbackend="serial"\nchip="esp32"\nport="{port}"\n'
                for name, port in (("node", node), ("by-id", by_id), ("link", again))
            )
        )
        rack = load_rack(path)
        assert len({identity(spec, rack) for spec in rack.boards.values()}) == 1
        with rack.lease(Requirement(boards=("node",)), purpose="one")[0], pytest.raises(LeaseError):
            rack.lease(Requirement(boards=("link",)), purpose="two", timeout=0)
    finally:
        os.close(main)
        os.close(device)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("rfc2217://LocalHost:4000?ign_set_control", "rfc2217://127.0.0.1:4000"),
        ("socket://lab:4000", "rfc2217://LAB:4000"),
        ("com7", r"\\.\COM7"),
    ],
)
def test_remote_and_windows_ports_have_one_name(one, other):
    assert canonical_port(one) == canonical_port(other)


def test_a_lock_folder_that_cannot_be_made_is_named_with_the_setting(rack, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("PYTEST_ESP_LOCK_DIR", str(tmp_path / "file" / "locks"))
    with pytest.raises(LeaseError) as caught:
        rack.lease(ANY, purpose="me")
    assert str(tmp_path / "file" / "locks") in str(caught.value)
    assert "PYTEST_ESP_LOCK_DIR" in str(caught.value)


def test_the_lock_folder_is_made_for_all_users(rack):
    with rack.lease(ANY, purpose="me")[0]:
        folder = rack.lock_dir
        assert stat.S_IMODE(folder.stat().st_mode) == 0o1777
        assert all(stat.S_IMODE(path.stat().st_mode) == 0o666 for path in folder.glob("*.lock"))
    assert not list(folder.glob("*.json"))
