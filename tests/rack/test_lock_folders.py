"""Where locks lie, what they are called, and what lies beside them."""

import json
import os
import re
import stat
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
from filelock import FileLock

from pytest_esp.errors import LeaseError
from pytest_esp.processes import own_start
from pytest_esp.rack import lease as module
from pytest_esp.rack.config import load_rack
from pytest_esp.rack.holder import HOST, HolderRecord
from pytest_esp.rack.identity import identity, user_id
from pytest_esp.rack.lease import file_stem, holder_of, holders, lock_folder


@pytest.fixture
def rack_of(tmp_path):
    """A function that returns a rack of one board, ``a``, with these lines in [rack]."""

    def make(lines=""):
        (tmp_path / "boards.toml").write_text(f'[rack]\n{lines}\n[boards.a]\nbackend="sim"\nchip="esp32"\n')
        return load_rack(tmp_path / "boards.toml")

    return make


@pytest.fixture
def usual(tmp_path, monkeypatch):
    """The two folders that are used where none is named."""
    shared, temporary = tmp_path / "run" / "lock" / "pytest-esp", tmp_path / "tmp" / "pytest-esp"
    monkeypatch.setattr(module, "_SHARED", shared)
    monkeypatch.setattr(module, "_TEMPORARY", temporary)
    return shared, temporary


# -- the folder


def test_the_environment_goes_before_the_rack_file(rack_of, tmp_path, monkeypatch):
    rack = rack_of('lock_dir = "here"')
    assert lock_folder(rack) == tmp_path / "here"
    monkeypatch.setenv("PYTEST_ESP_LOCK_DIR", str(tmp_path / "there"))
    assert lock_folder(rack) == tmp_path / "there"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PYTEST_ESP_LOCK_DIR", "~/locks")
    assert lock_folder(rack) == tmp_path / "home" / "locks"


def test_where_none_is_named_all_users_have_one(rack_of, usual):
    shared, temporary = usual
    assert lock_folder(rack_of()) == temporary
    shared.parent.mkdir(parents=True)
    assert lock_folder(rack_of()) == shared
    assert stat.S_IMODE(shared.stat().st_mode) == 0o1777


def test_a_folder_that_is_there_is_used_as_it_is(rack_of, usual, monkeypatch):
    shared, _ = usual
    shared.mkdir(parents=True)
    shared.chmod(0o770)
    writable = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != shared.parent and writable(path, mode))
    assert lock_folder(rack_of()) == shared
    assert stat.S_IMODE(shared.stat().st_mode) == 0o770


def test_a_folder_whose_parent_may_not_be_written_is_not_made(rack_of, usual, monkeypatch):
    shared, temporary = usual
    shared.parent.mkdir(parents=True)
    monkeypatch.setattr(os, "access", lambda path, mode: (path, mode) != (shared.parent, os.W_OK | os.X_OK))
    assert lock_folder(rack_of()) == temporary
    assert not shared.exists()


def test_a_folder_that_may_not_be_written_is_not_passed_over(rack_of, usual, monkeypatch):
    shared, temporary = usual
    shared.mkdir(parents=True)
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK | os.X_OK or path != shared)
    with pytest.raises(LeaseError, match=f"in {re.escape(str(shared))}: Permission denied"):
        lock_folder(rack_of())
    assert not temporary.exists()


# -- the names


def test_a_lock_is_called_after_its_board(rack_of):
    rack = rack_of()
    stem = file_stem(rack.board("a"), rack)
    assert re.fullmatch(r"[A-Za-z0-9-]{1,48}-[0-9a-f]{12}", stem)
    assert re.search(r"[A-Za-z0-9]-boards-toml-a-[0-9a-f]{12}$", stem)
    assert stem == file_stem(rack.board("a"), rack)
    assert len(identity(rack.board("a"), rack)) > 48  # its beginning is left out
    assert len(stem) <= 48 + 1 + 12


def test_a_short_identity_is_whole_in_the_name(tmp_path):
    (tmp_path / "b.toml").write_text('[boards.a]\nbackend="serial"\nchip="esp32"\nport="socket://lab:4000"\n')
    rack = load_rack(tmp_path / "b.toml")
    assert re.fullmatch(r"tcp-lab-4000-[0-9a-f]{12}", file_stem(rack.board("a"), rack))


# -- the records


def test_the_record_of_a_lease(rack_of):
    rack = rack_of('lock_dir = "locks"')
    begun = time.time()
    (lease,) = rack.lease("a", purpose="a test")
    folder, stem = lock_folder(rack), file_stem(rack.board("a"), rack)
    assert sorted(path.name for path in folder.iterdir()) == [f"{stem}.{user_id()}.json", f"{stem}.lock"]
    record = holder_of(rack.board("a"), rack)
    assert begun <= record.since <= time.time()
    assert stat.S_IMODE((folder / f"{stem}.{user_id()}.json").stat().st_mode) == 0o644
    assert (record.board, record.pid, record.host, record.purpose) == ("a", os.getpid(), HOST, "a test")
    assert (record.since, record.started) == (lease.since, own_start(os.getpid()))
    assert holders(list(rack.boards.values()), rack) == [record]
    lease.release()
    assert [path.name for path in folder.iterdir()] == [f"{stem}.lock"]
    assert holders(list(rack.boards.values()), rack) == []


def written(rack, user, **fields):
    """Write the record of a user beside the lock of board ``a``."""
    record = HolderRecord("a", os.getpid(), HOST, "somebody", "something", 1000.0, own_start(os.getpid()))
    path = lock_folder(rack) / f"{file_stem(rack.board('a'), rack)}.{user}.json"
    path.write_text(json.dumps(asdict(record) | fields))


@pytest.fixture
def locked(rack_of):
    """A rack whose board ``a`` is locked by somebody who has not signed yet."""
    rack = rack_of('lock_dir = "locks"')
    with FileLock(lock_folder(rack) / f"{file_stem(rack.board('a'), rack)}.lock"):
        yield rack


def test_who_has_not_signed_is_unknown(locked):
    holder = holder_of(locked.board("a"), locked)
    assert (holder.board, holder.pid, holder.host, holder.is_signed) == ("a", 0, HOST, False)
    assert holder.seconds < 60


def test_the_newest_record_says_who_holds_a_board(locked):
    for user, since in (("1", 1000.0), ("2", 3000.0), ("3", 2000.0)):
        written(locked, user, since=since, purpose=f"of {user}")
    assert holder_of(locked.board("a"), locked).purpose == "of 2"


def test_the_record_of_a_dead_process_is_none(locked):
    started = own_start(os.getpid())
    written(locked, "1", since=9000.0, started=started - 1)
    written(locked, "2", since=9001.0, started=started + 1)
    assert not holder_of(locked.board("a"), locked).is_signed
    written(locked, "3", since=1000.0)
    assert holder_of(locked.board("a"), locked).since == 1000.0


@pytest.mark.parametrize("fields", [{"host": "another"}, {"host": "another", "started": 1}, {"started": None}])
def test_a_process_that_cannot_be_looked_at_counts_as_alive(locked, fields):
    written(locked, "1", **fields)
    assert holder_of(locked.board("a"), locked).purpose == "something"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"pid": 1}', "\0", '{"board": "a"'])
def test_a_damaged_record_is_none(locked, text):
    (lock_folder(locked) / f"{file_stem(locked.board('a'), locked)}.1.json").write_text(text)
    assert not holder_of(locked.board("a"), locked).is_signed


def test_a_record_that_cannot_be_written_leaves_the_board_free(rack_of, monkeypatch):
    rack = rack_of('lock_dir = "locks"')

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(LeaseError, match="No space left on device"):
            rack.lease("a", purpose="me")
    assert holder_of(rack.board("a"), rack) is None
    assert not list(rack.lock_dir.glob("*.json*"))
    rack.lease("a", purpose="me", timeout=0)[0].release()


def test_a_lock_that_is_a_link_is_not_followed(rack_of):
    rack = rack_of('lock_dir = "locks"')
    path = lock_folder(rack) / f"{file_stem(rack.board('a'), rack)}.lock"
    Path(path).symlink_to("/etc/hostname")
    with pytest.raises(LeaseError, match="lock"):
        holder_of(rack.board("a"), rack)


# -- sandboxes

HOLD = """
import sys
from pathlib import Path
from pytest_esp.rack.config import load_rack
with load_rack(Path(sys.argv[1])).lease("a", purpose="a sandbox", timeout=0)[0]:
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def tty():
    """The node of a serial port that exists, though nothing may be behind it."""
    for name in ("ttyS9", "ttyS0", "tty10"):
        if Path(f"/sys/class/tty/{name}/dev").exists() and Path(f"/dev/{name}").exists():
            return f"/dev/{name}"
    pytest.skip("this machine has no tty")


@pytest.mark.skipif(sys.platform != "linux", reason="network namespaces are Linux's")
@pytest.mark.parametrize("wrapper", [(), ("unshare", "--net")], ids=["here", "sandbox"])
def test_a_device_has_one_holder_also_in_a_sandbox_with_its_own_lock_folder(tmp_path, tty, monkeypatch, wrapper):
    if wrapper and subprocess.run([*wrapper, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this user may not make network namespaces")
    path = tmp_path / "boards.toml"
    path.write_text(f'[boards.a]\nbackend="serial"\nchip="esp32"\nport="{tty}"\n')
    monkeypatch.setenv("PYTEST_ESP_LOCK_DIR", str(tmp_path / "ours"))
    environment = os.environ | {"PYTEST_ESP_LOCK_DIR": str(tmp_path / "theirs")}
    command = [*wrapper, sys.executable, "-c", HOLD, path]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as sandbox:
        assert sandbox.stdout.readline() == "held\n"
        rack = load_rack(path)
        assert holder_of(rack.board("a"), rack) is not None
        with pytest.raises(LeaseError):
            rack.lease("a", purpose="here", timeout=0)
        sandbox.kill()
    with rack.lease("a", purpose="here", timeout=5)[0] as lease:
        assert lease.held
