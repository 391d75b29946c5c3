"""One holder on one machine, whatever folders there are, and whatever becomes of them."""

import contextlib
import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import pytest
from filelock import FileLock

from pytest_esp.errors import LeaseError, NoMatchError, RackError
from pytest_esp.rack import lease as module
from pytest_esp.rack.config import load_rack
from pytest_esp.rack.lease import file_stem, holder_of, lock_folder
from pytest_esp.rack.locks import KernelName, Locker, MachineLock
from pytest_esp.rack.requirement import Requirement

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has names that need no folder")
posix_only = pytest.mark.skipif(sys.platform == "win32", reason="Windows does not delete open files")


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.delenv("PYTEST_ESP_LOCK_DIR", raising=False)
    monkeypatch.setenv("PYTEST_ESP_STATE_DIR", str(tmp_path / "state"))


@pytest.fixture
def node():
    """A pty: a device that only this test has."""
    main, device = os.openpty()
    yield os.ttyname(device)
    os.close(main)
    os.close(device)


@pytest.fixture
def make(tmp_path):
    """A function that returns a rack in a new folder, with a lock folder of its own."""

    def make(name, entry, lines='lock_dir = "locks"'):
        (tmp_path / name).mkdir()
        (tmp_path / name / "boards.toml").write_text(f"[rack]\n{lines}\n[boards.{name}]\n{entry}\n")
        return load_rack(tmp_path / name / "boards.toml")

    return make


HOLD = """
    import sys, time
    from pathlib import Path
    from pytest_esp.rack.config import load_rack
    from pytest_esp.rack.requirement import Requirement
    (lease,) = load_rack(Path(sys.argv[1])).lease(Requirement(), purpose="the other test", timeout=0)
    print(lease.held, flush=True)
    for _ in sys.stdin:
        print(lease.held, flush=True)
"""


@contextlib.contextmanager
def held_elsewhere(rack, **environment):
    """Another process holds the board of a rack; yields a function that asks it whether it does."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLD), str(rack.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )

    def ask():
        process.stdin.write("?\n")
        process.stdin.flush()
        return process.stdout.readline().strip()

    try:
        assert process.stdout.readline() == "True\n"
        yield SimpleNamespace(pid=process.pid, ask=ask)
    finally:
        process.kill()
        process.communicate()


def port(url):
    return f'backend = "serial"\nchip = "esp32"\nport = "{url}"'


# -- other folders


@linux_only
def test_a_device_has_one_holder_whatever_the_lock_folders(make, node):
    first, second = make("first", port(node)), make("second", port(node))
    with held_elsewhere(first) as other:
        with pytest.raises(LeaseError) as caught:
            second.lease("second", purpose="me", timeout=0)
        assert f"second: held by pid {other.pid}, " in str(caught.value)
        assert "uses another lock folder" in str(caught.value)
        assert holder_of(second.board("second"), second).pid == other.pid
    with second.lease("second", purpose="me", timeout=5)[0] as lease:  # at once after its death
        assert lease.held


@linux_only
@pytest.mark.parametrize("url", ["rfc2217://localhost:{}", "socket://127.1:{}?logging=debug"])
def test_a_remote_port_has_one_holder_whatever_the_lock_folders(make, url):
    number = 10000 + os.getpid() % 50000  # nobody opens it
    first = make("first", port(f"rfc2217://127.0.0.1:{number}"))
    second = make("second", port(url.format(number)))
    with held_elsewhere(first), pytest.raises(LeaseError, match="held by pid"):
        second.lease("second", purpose="me", timeout=0)


@linux_only
def test_a_folder_that_is_made_later_does_not_give_a_second_holder(make, node, tmp_path, monkeypatch):
    """As root may make /run/lock/pytest-esp after others have used /tmp/pytest-esp."""
    shared, temporary = tmp_path / "run" / "lock" / "pytest-esp", tmp_path / "tmp" / "pytest-esp"
    monkeypatch.setattr(module, "_SHARED", shared)
    monkeypatch.setattr(module, "_TEMPORARY", temporary)
    rack = make("a", port(node), lines="")
    virtual = make("b", 'backend="sim"\nchip="esp32"', lines="")
    with rack.lease("a", purpose="one")[0], virtual.lease("b", purpose="one")[0]:
        assert lock_folder(rack) == temporary
        shared.mkdir(parents=True)
        assert lock_folder(rack) == shared
        for other, name in ((rack, "a"), (virtual, "b")):
            with pytest.raises(LeaseError, match="held by pid"):
                other.lease(name, purpose="two", timeout=0)
    rack.lease("a", purpose="two", timeout=0)[0].release()


def test_virtual_boards_with_folders_of_their_own_are_different_boards(make, tmp_path, monkeypatch):
    """So that test runs which name their folders do not meet."""
    rack = make("a", 'backend="sim"\nchip="esp32"')
    with held_elsewhere(rack):
        monkeypatch.setenv("PYTEST_ESP_STATE_DIR", str(tmp_path / "other"))
        monkeypatch.setenv("PYTEST_ESP_LOCK_DIR", str(tmp_path / "others"))
        rack.lease("a", purpose="me", timeout=0)[0].release()


@linux_only
@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="only root can become other users")
def test_a_device_has_one_holder_whatever_the_user(make, node, tmp_path):
    rack = make("a", port(node))
    with rack.lease("a", purpose="root")[0]:
        pid = os.fork()
        if pid == 0:
            os.setgroups([])
            os.setgid(12001)
            os.setuid(12001)
            os._exit(KernelName(file_stem(rack.board("a"), rack)).try_lock())
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


# -- folders and files that vanish


@posix_only
@pytest.mark.parametrize("what", ["file", "folder", "moved", "replaced"])
@pytest.mark.parametrize("entry", ['backend="sim"\nchip="esp32"', "pty"])
def test_a_deleted_lock_is_noticed_and_gives_no_second_holder(make, node, what, entry):
    rack = make("a", port(node) if entry == "pty" else entry)
    folder, name = rack.lock_dir, f"{file_stem(rack.board('a'), rack)}.lock"
    with held_elsewhere(rack) as other:
        assert other.ask() == "True"
        if what == "file":
            (folder / name).unlink()
        elif what == "folder":
            shutil.rmtree(folder)
        elif what == "moved":
            folder.rename(folder.with_name("old"))
        else:
            (folder / name).unlink()
            (folder / name).touch()
        assert other.ask() == "False"
        if sys.platform == "linux":
            with pytest.raises(LeaseError, match=f"pid {other.pid}, "):
                rack.lease("a", purpose="me", timeout=0)
        assert other.ask() == "False"
    with rack.lease("a", purpose="me", timeout=5)[0] as lease:
        assert lease.held


@posix_only
def test_a_lease_whose_lock_was_deleted_is_released_nevertheless(make):
    rack = make("a", 'backend="sim"\nchip="esp32"')
    (lease,) = rack.lease("a", purpose="one")
    shutil.rmtree(rack.lock_dir)
    assert not lease.held
    lease.release()
    with rack.lease("a", purpose="two", timeout=0)[0] as again:
        assert again.held


@posix_only
def test_a_folder_that_is_deleted_during_a_wait_is_made_again(make):
    rack = make("a", 'backend="sim"\nchip="esp32"')
    (lease,) = rack.lease("a", purpose="one")

    def delete(*_):
        shutil.rmtree(rack.lock_dir)
        lease.release()

    with rack.lease("a", purpose="two", timeout=5, on_wait=delete)[0] as later:
        assert later.held


@posix_only
def test_a_file_that_is_deleted_while_it_is_locked_is_not_taken(tmp_path, monkeypatch):
    """Between opening and locking it, say."""
    fcntl = pytest.importorskip("fcntl")
    deleted = []
    flock = fcntl.flock

    def delete_once(descriptor, operation):
        if not deleted:
            deleted.append((tmp_path / "x.lock").unlink())
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", delete_once)
    lock = MachineLock(str(tmp_path / "x.lock"), f"test/{os.getpid()}")
    assert lock.try_lock()
    assert deleted
    assert lock.is_held
    lock.unlock()


# -- the parts


@linux_only
def test_the_kernel_says_who_has_a_name():
    name, other = KernelName(f"test/{os.getpid()}"), KernelName(f"test/{os.getpid()}")
    assert name.locker() is None
    assert name.try_lock()
    assert not other.try_lock()
    assert other.locker() == Locker(os.getpid(), os.geteuid())
    for _ in range(1500):  # more than the kernel keeps
        assert other.locker() is not None
    name.forget()
    assert other.locker() is None
    assert other.try_lock()
    other.forget()


@linux_only
@pytest.mark.parametrize("call", ["socket", "bind"])
def test_where_sockets_are_forbidden_the_file_is_the_lock(tmp_path, monkeypatch, call):
    class Forbidden(socket.socket):
        def __init__(self, *arguments):
            if call == "socket":
                raise PermissionError(errno.EPERM, "Operation not permitted")
            super().__init__(*arguments)

        def bind(self, address):
            raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(socket, "socket", Forbidden)
    one, two = (MachineLock(str(tmp_path / "x.lock"), f"test/{os.getpid()}") for _ in range(2))
    assert one.try_lock()
    assert not two.try_lock()
    assert two.locker() == Locker()
    assert one.unlock()
    assert two.locker() is None


@linux_only
def test_a_forked_child_does_not_keep_the_name_of_its_killed_parent():
    code = """
        import os, sys, time
        from pytest_esp.rack.locks import KernelName, MachineLock
        lock = MachineLock(sys.argv[1], sys.argv[2])
        assert lock.try_lock()
        if os.fork() == 0:
            assert not lock.is_held and not lock.unlock()
            print(os.getpid(), flush=True)
            time.sleep(60)
        time.sleep(60)
    """
    name = f"test/{os.getpid()}"
    path = f"/tmp/{os.getpid()}.lock"
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), path, name], stdout=subprocess.PIPE, text=True
    )
    child = int(process.stdout.readline())
    lock = MachineLock(path, name)
    try:
        assert not lock.try_lock()
        process.kill()
        process.wait()
        assert lock.try_lock()
    finally:
        os.kill(child, signal.SIGKILL)
        lock.unlock()
        os.unlink(path)
        process.stdout.close()


def test_a_lock_is_taken_as_a_whole_or_not_at_all(tmp_path):
    """A container without the names of this machine may hold the file."""
    lock = MachineLock(str(tmp_path / "x.lock"), f"test/{os.getpid()}")
    with FileLock(tmp_path / "x.lock"):
        assert not lock.try_lock()
        assert lock.locker() == Locker()
    assert lock.locker() is None
    assert lock.try_lock()
    assert not lock.try_lock()
    assert lock.unlock()
    assert not lock.unlock()


def test_a_lock_that_nobody_refers_to_is_released(tmp_path):
    MachineLock(str(tmp_path / "x.lock"), f"test/{os.getpid()}").try_lock()
    assert MachineLock(str(tmp_path / "x.lock"), f"test/{os.getpid()}").locker() is None


@posix_only
def test_too_few_descriptors_have_a_hint_of_their_own(make):
    """And nothing is held afterwards."""
    resource = pytest.importorskip("resource")
    rack = make("a", 'backend="sim"\nchip="esp32"')
    rack.lease("a", purpose="me")[0].release()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open("/dev/null", os.O_RDONLY)
    os.close(free)
    try:
        for spare in range(3):
            resource.setrlimit(resource.RLIMIT_NOFILE, (free + spare, limits[1]))
            try:
                rack.lease("a", purpose="me", timeout=0)[0].release()
            except LeaseError as error:
                found = error
            else:
                break
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            assert "Too many open files" in str(found)
            assert "ulimit -n" in found.hint
            assert "lock_dir" not in found.hint
            assert holder_of(rack.board("a"), rack) is None
        assert spare > 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


# -- files of virtual boards


def flash(path, key="flash_file"):
    return f'backend = "sim"\nchip = "esp32"\n{key} = "{path}"'


@linux_only
@pytest.mark.parametrize("key", ["flash_file", "efuse_file"])
@pytest.mark.parametrize("spelling", ["../x.bin", "{0}/x.bin", "{0}/sub/../x.bin", "link.bin", "hard.bin"])
def test_two_racks_do_not_use_one_file_at_once(make, tmp_path, spelling, key):
    (tmp_path / "x.bin").touch()
    (tmp_path / "sub").mkdir()
    second = make("second", flash(spelling.format(tmp_path), key))
    (tmp_path / "second" / "link.bin").symlink_to(tmp_path / "x.bin")
    os.link(tmp_path / "x.bin", tmp_path / "second" / "hard.bin")
    first = make("first", flash(tmp_path / "x.bin"))
    with held_elsewhere(first) as other:
        with pytest.raises(LeaseError, match="second: held by pid"):
            second.lease("second", purpose="me", timeout=0)
        assert holder_of(second.board("second"), second).pid == other.pid
    second.lease("second", purpose="me", timeout=0)[0].release()


def test_who_uses_a_file_is_said_within_a_lock_folder(make, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTEST_ESP_LOCK_DIR", str(tmp_path / "locks"))
    first, second = make("first", flash("../x.bin")), make("second", flash("../x.bin"))
    with first.lease("first", purpose="the first test")[0] as lease:
        with pytest.raises(LeaseError, match=r"first: held for .* by the first test"):
            second.lease("second", purpose="me", timeout=0)
        assert lease.held
    assert not list(lock_folder(first).glob("*.json"))


@pytest.mark.parametrize("spelling", ["x.bin", "./sub/../x.bin", "link.bin", "hard.bin"])
def test_a_rack_does_not_name_one_file_twice(tmp_path, spelling):
    (tmp_path / "x.bin").touch()
    (tmp_path / "sub").mkdir()
    (tmp_path / "link.bin").symlink_to("x.bin")
    os.link(tmp_path / "x.bin", tmp_path / "hard.bin")
    (tmp_path / "boards.toml").write_text(f"[boards.a]\n{flash('x.bin')}\n[boards.b]\n{flash(spelling, 'efuse_file')}")
    with pytest.raises(RackError, match="belongs to the board 'a'"):
        load_rack(tmp_path / "boards.toml")


def test_boards_that_come_to_share_a_file_are_not_leased_together(tmp_path):
    """A link was made after the rack was read."""
    (tmp_path / "boards.toml").write_text(
        f"[rack]\nlock_dir='locks'\n[boards.a]\n{flash('a')}\n[boards.b]\n{flash('b')}"
    )
    rack = load_rack(tmp_path / "boards.toml")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(NoMatchError, match="b uses the same file as a"):
        rack.lease(Requirement(count=2), purpose="me", timeout=0)
