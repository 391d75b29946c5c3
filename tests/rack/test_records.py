"""Records of other users are untrusted: they never delay, break or colour anything."""

import json
import os
import re
import sys
import time
from dataclasses import asdict

import pytest
from filelock import FileLock

from pytest_esp import processes
from pytest_esp.errors import LeaseError
from pytest_esp.processes import own_start
from pytest_esp.rack import holder as module
from pytest_esp.rack.config import load_rack
from pytest_esp.rack.holder import HOST, NAMESPACE, HolderRecord, PlaceHolder, printable, read_records, write_record
from pytest_esp.rack.lease import file_stem, holder_of, lock_folder
from pytest_esp.rack.state import holder_to_dict, state_of

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX files")


@pytest.fixture
def rack(tmp_path, monkeypatch):
    monkeypatch.delenv("PYTEST_ESP_LOCK_DIR", raising=False)
    (tmp_path / "boards.toml").write_text('[rack]\nlock_dir = "locks"\n[boards.a]\nbackend="sim"\nchip="esp32"\n')
    return load_rack(tmp_path / "boards.toml")


@pytest.fixture
def record(rack):
    """The path of another user's record of board ``a``, which is held by somebody without a kernel name."""
    stem = file_stem(rack.board("a"), rack)
    with FileLock(lock_folder(rack) / f"{stem}.lock"):
        yield rack.lock_dir / f"{stem}.12001.json"


def content(**fields):
    return json.dumps(asdict(HolderRecord("a", 1, "elsewhere", "somebody", "something", 1000.0)) | fields)


def look(rack):
    """Look at the board in all ways; return what is said."""
    begun = time.monotonic()
    holder = holder_of(rack.board("a"), rack)
    said = [
        holder.describe(),
        json.dumps(holder_to_dict(holder)),
        json.dumps(state_of(rack.board("a"), rack).to_dict()),
    ]
    with pytest.raises(LeaseError) as caught:
        rack.lease("a", purpose="me", timeout=0)
    assert time.monotonic() - begun < 2
    return holder, "\n".join([*said, str(caught.value)])


@posix_only
def test_a_record_that_is_a_pipe(rack, record):
    os.mkfifo(record)
    holder, _ = look(rack)
    assert not holder.is_signed


@posix_only
@pytest.mark.parametrize("target", ["/dev/zero", "/dev/stdin", "good.json", "nowhere", "."])
def test_a_record_that_is_a_link(rack, record, target):
    (record.parent / "good.json").write_text(content())
    record.symlink_to(target)
    assert not look(rack)[0].is_signed


def test_a_record_that_is_a_folder(rack, record):
    record.mkdir()
    assert not look(rack)[0].is_signed


@pytest.mark.parametrize("size", [5000, 1 << 32])
def test_a_huge_record(rack, record, size):
    record.write_text(content())
    assert look(rack)[0].is_signed
    os.truncate(record, size)
    assert not look(rack)[0].is_signed


@pytest.mark.parametrize("text", ["[" * 4000, '{"a":' * 700, "1" * 4000, "\xff\xfe", "null", '"x"', "NaN"])
def test_a_record_that_is_not_one(rack, record, text):
    record.write_bytes(text.encode("latin-1"))
    assert not look(rack)[0].is_signed


WRONG = [None, True, -1, 1e400, float("nan"), 10**30, [], {}, "soon"]


@pytest.mark.parametrize("field", ["board", "pid", "host", "user", "purpose", "since"])
@pytest.mark.parametrize("value", WRONG, ids=repr)
def test_a_field_of_a_wrong_type_or_range(rack, record, field, value):
    if value == "soon" and field in ("board", "host", "user", "purpose"):
        value = 7
    record.write_text(content(**{field: value}))
    assert not look(rack)[0].is_signed


@pytest.mark.parametrize("value", WRONG, ids=repr)
@pytest.mark.parametrize("field", ["started", "namespace"])
def test_a_wrong_field_that_can_be_missing(rack, record, field, value):
    record.write_text(content(**{field: value, "another": value}))
    assert look(rack)[0].is_signed


def test_a_field_that_is_missing(rack, record):
    record.write_text('{"board": "a"}')
    assert not look(rack)[0].is_signed


ESCAPES = "\x1b[31mred\x1b[0m\nnext\r\x07\x9b2J\x00\u202ertl\u200b\u2028\ud800end"


@pytest.mark.parametrize("field", ["board", "host", "user", "purpose"])
def test_escapes_do_not_reach_a_terminal(rack, record, field):
    record.write_text(content(**{field: ESCAPES}))
    holder, said = look(rack)
    assert "red" in getattr(holder, field)
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u202e\ud800]", said)
    assert "\n" not in holder.describe()
    said.encode()


def test_long_texts_are_shortened(rack, record):
    record.write_text(content(purpose="x" * 3000))
    assert len(look(rack)[0].purpose) < 320


def test_the_escapes_of_a_lab_do_not_reach_a_terminal():
    place = PlaceHolder("a", 0, f"h{ESCAPES}", "u\x1b[31m", "p\n", 1000.0, place="\x1b]0;x\x07")
    assert place.describe() == printable(place.describe())


def test_a_record_from_the_future_is_not_in_the_future(rack, record):
    record.write_text(content(since=time.time() + 1e6))
    holder, _ = look(rack)
    assert 0 <= holder.seconds < 60
    assert holder.since <= time.time()


def test_many_records_are_not_all_read(rack, record):
    for number in range(300):
        (record.parent / f"{record.name.removesuffix('.12001.json')}.{number}.json").write_text(content())
    stem = record.name.removesuffix(".12001.json")
    assert len(read_records(str(record.parent), stem)) == 64


# -- who it really is


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel says so on Linux only")
def test_a_record_of_somebody_else_is_not_believed(rack):
    """Another user names himself, later than the holder."""
    stem = file_stem(rack.board("a"), rack)
    with rack.lease("a", purpose="the true one")[0]:
        for user in ("0-1", "12001"):
            (rack.lock_dir / f"{stem}.{user}.json").write_text(content(since=time.time(), pid=1, host=HOST))
        (rack.lock_dir / f"{stem}.0-2.json").write_text(content(since=time.time(), namespace="other"))
        if os.geteuid() == 0:
            os.chown(rack.lock_dir / f"{stem}.0-2.json", 12001, 12001)
            assert holder_of(rack.board("a"), rack).purpose == "the true one"
        (rack.lock_dir / f"{stem}.0-2.json").unlink()
        assert holder_of(rack.board("a"), rack).purpose == "the true one"


def test_a_holder_in_another_pid_namespace_is_described_as_such(rack, record):
    """As in a container with the host's name and lock folder: its process IDs mean nothing here."""
    for pid, started in ((os.getpid(), own_start(os.getpid())), (1, 5), (99999999, 7)):
        record.write_text(content(host=HOST, pid=pid, started=started, namespace="0123456789ab"))
        holder, said = look(rack)
        assert holder.is_signed
        assert f"pid {pid} in another PID namespace, somebody@{HOST}" in said
        assert "this process" not in said
        assert "just taking" not in said


def test_a_process_that_proc_hides_is_not_taken_for_dead(rack, monkeypatch):
    """As /proc mounted with hidepid does with other users' processes."""
    with rack.lease("a", purpose="one")[0]:
        monkeypatch.setattr(processes, "_stat", lambda pid: None)
        assert holder_of(rack.board("a"), rack).purpose == "one"


def test_a_holder_in_the_same_pid_namespace(rack):
    with rack.lease("a", purpose="one")[0]:
        holder, said = look(rack)
        assert holder.namespace == NAMESPACE
        assert f"(this process, pid {os.getpid()}, " in said


def test_a_pid_namespace_has_a_name_of_its_own(monkeypatch):
    assert module._namespace() == NAMESPACE
    monkeypatch.setattr(os, "readlink", lambda path: "pid:[1]")
    assert module._namespace() != NAMESPACE


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs a PID namespace")
def test_a_real_pid_namespace(rack, tmp_path):
    import shutil
    import subprocess

    if not shutil.which("unshare") or subprocess.run(["unshare", "-pf", "true"], check=False).returncode:
        pytest.skip("cannot make PID namespaces")
    code = (
        "import sys, time; from pathlib import Path; from pytest_esp.rack.config import load_rack\n"
        "held = load_rack(Path(sys.argv[1])).lease('a', purpose='in a container'); print('held', flush=True)\n"
        "time.sleep(60)"
    )
    command = ["unshare", "-pf", "--kill-child", sys.executable, "-c", code, str(rack.path)]
    for network in ([], ["-n"]):  # with the names of this machine, and without
        process = subprocess.Popen([*command[:2], *network, *command[2:]], stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout.readline() == "held\n"
            _, said = look(rack)
            assert "in a container (pid 1 in another PID namespace" in said
        finally:
            process.kill()
            process.communicate()
        rack.lease("a", purpose="me", timeout=5)[0].release()


# -- writing


@posix_only
def test_a_record_is_never_written_through_a_link(tmp_path, monkeypatch):
    """In a folder that all can write to, another user could guess its name."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    monkeypatch.setattr(time, "monotonic_ns", lambda: 7)
    for name in ("stem.1.json", f"stem.1.json.{os.getpid()}.7.part"):
        (tmp_path / name).symlink_to(victim)
    with pytest.raises(FileExistsError):
        write_record(str(tmp_path), "stem", "1", HolderRecord("a", 1, HOST, "u", "p", 0.0))
    assert victim.read_text() == "precious"


def test_a_name_that_somebody_has_taken_does_not_prevent_a_lease(rack):
    stem = file_stem(rack.board("a"), rack)
    lock_folder(rack)
    from pytest_esp.rack.identity import user_id

    (rack.lock_dir / f"{stem}.{user_id()}.json").mkdir()
    with rack.lease("a", purpose="me", timeout=0)[0]:
        assert holder_of(rack.board("a"), rack).purpose == "me"
    assert [path.is_dir() for path in rack.lock_dir.glob("*.json")] == [True]


def test_a_purpose_is_written_readably(rack):
    """A test's ID can have any length and any characters."""
    with rack.lease("a", purpose=f"test[{ESCAPES}{'x' * 9000}]")[0]:
        holder, _ = look(rack)
        assert holder.is_signed
        assert holder.purpose.startswith("test[ [31mred")
