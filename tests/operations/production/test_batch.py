"""Many boards at once: fifty from one call, faults that stay with their boards, and a record that survives a kill."""

import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pytest_esp.boards.registry import make_board
from pytest_esp.errors import OperationError, StoppedError
from pytest_esp.formats.files import Confinement, confined
from pytest_esp.link.link import Link
from pytest_esp.operations.esp import Esp
from pytest_esp.operations.production.batch import batch_program, checked, run_batch
from pytest_esp.operations.production.record import BoardRecord, RecordBook, read_records
from pytest_esp.rack.config import load_rack
from pytest_esp.rack.lease import holder_of
from pytest_esp.wire.faults import Fault

SECRET = "a secret of the customer"


@pytest.fixture
def rack_file(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTEST_ESP_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("PYTEST_ESP_LOCK_DIR", str(tmp_path / "locks"))
    path = tmp_path / "boards.toml"
    path.write_text('[boards.line]\nbackend = "sim"\nchip = "esp32c3"\nflash_size = "4MB"\ncount = 50\n')
    return path


@contextlib.contextmanager
def opened(rack_file, name):
    rack = load_rack(rack_file)
    with Link(make_board(rack.board(name), rack)) as link:
        yield Esp(link)


def rows_of(result):
    with result.csv_file.open(newline="") as file:
        return list(csv.DictReader(file))


def test_fifty_boards_from_one_call(rack_file, tmp_path, config):
    """Each board with its own serial number and NVS data, using all cores; read back and inspected."""
    devices = [{"board": f"line-{n}", "nvs": {"device": {"id": n, "key": f"{SECRET} {n}"}}} for n in range(1, 51)]
    shares = []
    result = batch_program(
        ["line-*"],
        config=config | {"serial_number": "SN{index:05d}", "nvs": {"app": {"host": "broker"}}},
        devices=devices,
        first_index=101,
        output_dir=tmp_path / "record",
        rack=rack_file,
        processes=2,
        progress=lambda done, total: shares.append(done / total),
    )
    assert (result.passed, result.failed, result.processes) == (50, 0, 2), result
    assert all(board.quality and board.stage == "done" for board in result.boards)
    assert [board.serial_number for board in result.boards] == [f"SN{n:05d}" for n in range(101, 151)]
    assert len({board.mac_address for board in result.boards}) == 50
    assert shares[-1] == 1
    for number in (1, 25, 50):
        with opened(rack_file, f"line-{number}") as esp:
            found = {(entry.namespace, entry.key): entry.value for entry in esp.nvs.read().entries}
            assert found == {
                ("app", "host"): "broker",
                ("device", "id"): number,
                ("device", "key"): f"{SECRET} {number}",
                ("manufacturing", "serial_number"): f"SN{100 + number:05d}",
            }
            assert esp.production.inspect(
                f"SN{100 + number:05d}", boot_wait_seconds=10, expect="Calling app_main"
            ).passed
    records = read_records(tmp_path / "record")
    assert sorted(record.outcome for record in records) == ["begun"] * 50 + ["passed"] * 50
    assert {record.mac_address for record in records} == {board.mac_address for board in result.boards}
    lines = sorted((row["mac_address"], row["outcome"], row["serial_number"]) for row in rows_of(result))
    assert lines == sorted((record.mac_address, record.outcome, record.serial_number) for record in records)
    assert SECRET not in result.record_file.read_text() + result.csv_file.read_text() + repr(result)
    rack = load_rack(rack_file)
    assert not any(holder_of(spec, rack) for spec in rack.boards.values())


@pytest.mark.parametrize("processes", [1, 2])
def test_boards_that_fail_are_told_and_stop_no_other(rack_file, tmp_path, config, faulty, processes):
    """A pulled cable, a line that corrupts bytes, another chip, and a board that does not answer."""
    ports = {
        "pulled": faulty(vanish_after=13_000),
        "noisy": faulty(to_device=Fault(corrupt=0.02, seed=1)),
        "wrong": faulty("esp32s3"),
        "absent": "rfc2217://127.0.0.1:9",
    }
    entries = [
        f'[boards.{name}]\nbackend = "serial"\nchip = "esp32c3"\nport = "{url}"\n' for name, url in ports.items()
    ]
    rack_file.write_text(rack_file.read_text().replace("50", "3") + "".join(entries))
    result = batch_program(
        [*ports, "line-*"], config=config, output_dir=tmp_path / "record", rack=rack_file, processes=processes
    )
    boards = {board.board: board for board in result.boards}
    assert [name for name, board in boards.items() if board.passed] == ["line-1", "line-2", "line-3"]
    assert (result.passed, result.failed) == (3, 4)
    assert boards["pulled"].stage == "flash"
    assert "partly written" in boards["pulled"].state
    assert boards["absent"].state == boards["wrong"].state == "nothing was touched"
    assert all(boards[name].error and boards[name].state for name in ports)
    begun = {record.board for record in read_records(tmp_path / "record") if record.outcome == "begun"}
    assert begun >= {"pulled", "line-1", "line-2", "line-3"}
    assert not begun & {"wrong", "absent"}


def test_serial_numbers_belong_to_their_boards(rack_file, tmp_path, config):
    """Not twice in a batch, and not again for another board; the same board gets its own again."""
    call = {"output_dir": tmp_path / "record", "rack": rack_file}
    with pytest.raises(OperationError, match="would both get the serial number A1"):
        batch_program(["line-1", "line-2"], config=config | {"serial_number": "A1"}, **call)
    assert not (tmp_path / "record").exists()
    assert batch_program(["line-1"], config=config | {"serial_number": "A1"}, **call).passed == 1
    assert batch_program(["line-1"], config=config | {"serial_number": "A1"}, **call).passed == 1
    (other,) = batch_program(["line-2"], config=config | {"serial_number": "A1"}, **call).boards
    assert "A1 belongs to the board with the MAC address" in other.error
    assert other.state == "nothing was touched"
    (named,) = batch_program(["line-3"], config=config | {"serial_number": "{board}-{mac}"}, **call).boards
    assert named.serial_number == f"line-3-{named.mac_address.replace(':', '')}"


@pytest.mark.parametrize(
    ("devices", "words"),
    [
        ([{"serial_number": "1"}], "data for 1 boards, but 2 boards to assign it to"),
        ([{"board": "line-9", "serial_number": "1"}], "'line-9' is not in this batch"),
        ([{"board": "line-1"}, {"board": "line-1"}], "is given twice"),
        ([{"bord": "line-1"}], "devices[0].bord"),
        ([{"nvs": {"a": {"k": SECRET * 300}}}, {}], "the value of 'k' has 7200 bytes"),
    ],
)
def test_data_that_does_not_fit_is_found_before_any_board(rack_file, tmp_path, config, devices, words):
    with pytest.raises(OperationError) as caught:
        batch_program(
            ["line-1", "line-2"], config=config, devices=devices, output_dir=tmp_path / "record", rack=rack_file
        )
    assert words in str(caught.value)
    assert SECRET not in str(caught.value)
    assert not (tmp_path / "record").exists()


@pytest.mark.parametrize("processes", [1, 2])
def test_a_batch_that_is_stopped_brings_all_boards_to_a_safe_point(rack_file, tmp_path, config, processes):
    begun = []

    def stop(done, total):
        if done:
            begun.append(done)
            raise StoppedError("enough")

    with pytest.raises(StoppedError, match="enough"):
        batch_program(
            ["line-*"],
            config=config,
            output_dir=tmp_path / "record",
            rack=rack_file,
            processes=processes,
            progress=stop,
        )
    assert len(begun) == 1
    last = {record.board: record.outcome for record in read_records(tmp_path / "record")}
    assert len(last) == 50
    assert set(last.values()) <= {"passed", "failed"}  # nobody is left begun
    rack = load_rack(rack_file)
    assert not any(holder_of(spec, rack) for spec in rack.boards.values())


def test_a_record_is_whole_after_kill_9(rack_file, tmp_path, config):
    """The call is killed in the middle: its processes end, and every line is whole and says what had happened."""
    script = (
        "import json, sys\nfrom pytest_esp.operations.production.batch import batch_program\n"
        "config = json.loads(sys.argv[1])\n"
        "batch_program(['line-*'], config=config, output_dir=sys.argv[2], rack=sys.argv[3], processes=2)\n"
    )
    folder = tmp_path / "record"
    arguments = [json.dumps(config | {"serial_number": "SN{index}"}), str(folder), str(rack_file)]
    with subprocess.Popen([sys.executable, "-c", script, *arguments], start_new_session=True) as process:
        deadline = time.monotonic() + 60
        while not any(record.outcome == "passed" for record in read_records(folder)):
            assert time.monotonic() < deadline
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
    lines = (folder / "boards.jsonl").read_bytes()
    assert lines.endswith(b"\n")
    assert all(json.loads(line)["mac_address"] for line in lines.splitlines())
    with (folder / "boards.csv").open(newline="") as file:
        assert all(len(row) == 16 for row in csv.reader(file))
    rack = load_rack(rack_file)
    while any(holder_of(spec, rack) for spec in rack.boards.values()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    again = batch_program(["line-*"], config=config | {"serial_number": "SN{index}"}, output_dir=folder, rack=rack_file)
    assert (again.passed, again.failed) == (50, 0)


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the process in /proc")
@pytest.mark.parametrize("when", ["at its start", "at work"])
def test_a_process_that_dies_takes_no_board_out_of_the_record(rack_file, tmp_path, config, when):
    """All of its boards get an outcome: unknown if they were being programmed, else untouched; the others go on."""
    folder = tmp_path / "record"
    killed = []

    def kill(_done, _total):
        begun = any(int(record.board.partition("-")[2]) <= 25 for record in read_records(folder))
        if not killed and (when == "at its start" or begun):
            killed.extend(workers_of(rack_file))
            for process in killed:
                os.kill(process, signal.SIGKILL)

    result = batch_program(["line-*"], config=config, output_dir=folder, rack=rack_file, processes=2, progress=kill)
    assert len(killed) == 1
    assert 25 <= result.passed < 50
    last = {record.board: record for record in read_records(folder)}
    assert len(last) == 50
    for board in result.boards:
        assert (board.passed, board.stage, board.error) == (
            last[board.board].outcome == "passed",
            last[board.board].stage,
            last[board.board].error or None,
        )
        if not board.passed:
            assert board.error.startswith("the process that programmed it died")
            assert board.state == ("unknown: it was being programmed" if board.mac_address else "nothing was touched")
    rack = load_rack(rack_file)
    assert not any(holder_of(spec, rack) for spec in rack.boards.values())


def workers_of(rack_file):
    """Return the processes of a batch beside that of the caller, waiting until there are some."""
    mine = f"PYTEST_ESP_STATE_DIR={rack_file.parent / 'state'}".encode()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                command = (folder / "cmdline").read_bytes().split(b"\0")
                works = b"pytest_esp.operations.production.process" in command and command[0] != b"/bin/sh"
                if works and mine in (folder / "environ").read_bytes():
                    found.append(int(folder.name))
        if found:
            return found
    raise AssertionError("no process was started")


def test_lines_are_only_ever_added(tmp_path):
    """Also after a line cut by a power failure; foreign text becomes neither a formula nor a second line."""
    record = BoardRecord(
        time="t", batch="b", board="x", serial_number="=1+1", outcome="failed", stage="check", error="a\nb"
    )
    with RecordBook(tmp_path) as book:
        book.write(record)
    with (tmp_path / "boards.jsonl").open("a") as file:
        file.write('{"time": "cut')
    with RecordBook(tmp_path) as book:
        book.write(record)
    assert read_records(tmp_path) == [record, record]
    rows = (tmp_path / "boards.csv").read_text().splitlines()
    assert len(rows) == 3
    assert "'=1+1" in rows[1]
    assert "a | b" in rows[1]


def test_threads_and_processes_open_what_their_caller_may(rack_file, tmp_path, config):
    """A checked file may have been replaced: each board's worker is confined like the call."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "roots").mkdir()
    key = tmp_path / "outside" / "key.bin"
    key.write_bytes(bytes(range(64)))
    settings = config | {"nvs_key_file": str(key), "boot": False, "nvs": {"app": {"host": "broker"}}}
    boards = [f"line-{number}" for number in range(1, 5)]
    plan, devices = checked(boards, None, settings, None, None, 1)
    build = Path(config["firmware"])
    for roots, error in (((build, tmp_path / "outside"), None), ((build, tmp_path / "roots"), "outside the folders")):
        folder = roots[1] / "record"
        with confined(Confinement(roots)):
            result = run_batch(load_rack(rack_file), plan, devices, folder, look=False, processes=2)
        assert result.processes == 2
        assert [(error in one.error) if error else one.passed for one in result.boards] == [True] * 4, result.boards
