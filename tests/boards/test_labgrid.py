"""Boards of a labgrid lab: a real coordinator and exporter, ports of simulated chips, labgrid's client for others."""

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from pytest_esp.boards.registry import make_board
from pytest_esp.errors import LeaseError, NoMatchError, PortError
from pytest_esp.link.link import Link
from pytest_esp.operations.esp import Esp
from pytest_esp.rack.config import load_rack
from pytest_esp.rack.requirement import Requirement
from pytest_esp.rack.state import state_of

NEAR = '[boards.near]\nLAB\nplace = "near"\nchip = "esp32c3"\n'
BOTH = '[boards.c3]\nLAB\ntags = { chip = "esp32c3" }\ncount = 2\n'


@pytest.fixture
def rack(lab):
    """The rack of one board, at the place `near`."""
    return load_rack(lab.write_rack(NEAR))


def run(rack_file, code):
    """Start a process that leases boards of a rack."""
    script = "import os, sys, time\nfrom pathlib import Path\nfrom pytest_esp.rack.config import load_rack\n"
    script += f"rack = load_rack(Path({str(rack_file)!r}))\n" + textwrap.dedent(code)
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)


def cli(*arguments, timeout=60):
    return subprocess.run(
        [sys.executable, "-c", "from pytest_esp.cli.main import main; main()", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env=os.environ | {"COLUMNS": "250"},
    )


def until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# -- a board


def test_a_board_of_a_lab_is_used_like_any_other(lab, rack):
    (lease,) = rack.lease("near", purpose="a test", timeout=5)
    with lease, Link(make_board(lease.spec, rack)) as link:
        assert "/pytest-" in lab.owner("near")
        assert lab.owner("far") is None
        esp = Esp(link)
        assert esp.chip.identify().mac_address == lab.chips["near"].mac
        data = bytes(range(256)) * 64
        lab.folder.joinpath("data.bin").write_bytes(data)
        esp.flash.write(lab.folder / "data.bin", 0x10000)
        assert esp.flash.read(0x10000, len(data)).data == data
        assert "rst:0x1" in esp.chip.reset("app").output
        link.console.expect("invalid header", timeout=5)
    assert lab.owner("near") is None


def test_a_raw_port(lab):
    rack = load_rack(lab.write_rack('[boards.b]\nLAB\nplace = "plain"\n'))
    (lease,) = rack.lease("b", purpose="a test", timeout=5)
    assert rack.board("b").chip == "auto"
    with lease, Link(make_board(lease.spec, rack)) as link:
        assert lease.place.url().startswith("socket://127.0.0.1:")
        assert Esp(link).chip.identify().mac_address == lab.chips["plain"].mac
        lab.client("-p", "plain", "release", "--kick")
        until(lambda: not lease.held)
        with pytest.raises(PortError):
            Esp(link).chip.identify()
        with pytest.raises(LeaseError, match="labgrid place plain"):
            Esp(link).chip.identify()


def test_a_board_is_leased_before_it_is_opened(rack):
    with pytest.raises(LeaseError, match="near: the labgrid place is not acquired"):
        make_board(rack.board("near"), rack).open()


def test_a_board_whose_exporter_wants_ssh(lab, rack):
    lab.stop("exporter")
    lab.start_exporter("--isolated")
    with pytest.raises(PortError, match=r"rack1/near/NetworkSerialPort/serial .* is reached over SSH only"):
        rack.lease("near", purpose="a test", timeout=5)


# -- who has it


def test_what_others_hold_in_the_lab_is_waited_for(lab, rack):
    lab.client("-p", "near", "acquire")
    state = state_of(rack.board("near"), rack)
    assert state.state == "held"
    assert state.to_dict()["holder"].startswith("near: the labgrid place near is held for ")
    with pytest.raises(LeaseError, match=r"timed out after 0.3 s waiting for near; .* by alice@far"):
        rack.lease("near", purpose="a test", timeout=0.3)

    told = []
    threading.Timer(0.5, lambda: lab.client("-p", "near", "release")).start()
    (lease,) = rack.lease("near", purpose="a test", timeout=20, on_wait=lambda who, _waited: told.append(who))
    with lease:
        assert lease.waited > 0.4
        assert [(who.user, who.host, who.place) for who in told[0]] == [("alice", "far", "near")]
        assert "/pytest-" in lab.owner("near")
    assert state_of(rack.board("near"), rack).state == "free"


def test_the_lab_keeps_a_place_for_who_waited_first(lab, rack):
    lab.client("-p", "near", "acquire")
    waiting = threading.Thread(target=lambda: leases.extend(rack.lease("near", purpose="a test", timeout=20)))
    leases = []
    waiting.start()
    time.sleep(0.3)
    assert "name: near" in " ".join(lab.client("reservations").replace("=", ": ").split())
    lab.client("-p", "near", "release")
    with pytest.raises(AssertionError, match=r"not reserved|already acquired"):
        lab.client("-p", "near", "acquire", user="bob")
    waiting.join(20)
    leases[0].release()
    assert not lab.client("reservations").strip()  # nothing stays


def test_any_place_with_the_tags_will_do(lab):
    rack = load_rack(lab.write_rack(BOTH + '[boards.left]\nLAB\ntags = { chip = "esp32c3", desk = "left" }\n'))
    assert {spec.chip for spec in rack.boards.values()} == {"esp32c3"}
    leases = rack.lease(Requirement(boards=("c3-1", "c3-2"), count=2), purpose="a test", timeout=5)
    assert {lease.place.name for lease in leases} == {"near", "far"}
    assert state_of(rack.board("left"), rack).state == "held"
    leases[0].release()
    leases[1].release()
    lab.client("-p", "near", "acquire")
    (lease,) = rack.lease(Requirement(chips=("esp32c3",)), purpose="a test", timeout=5)
    assert lease.place.name == "far"
    with pytest.raises(LeaseError, match="waiting for left"):
        rack.lease("left", purpose="a test", timeout=0)
    lease.release()


def test_who_wants_two_takes_none_while_there_is_one(lab):
    rack = load_rack(lab.write_rack(BOTH))
    lab.client("-p", "near", "acquire")
    log = lab.folder / "coordinator.log"
    before = log.read_text().count("far: place acquired")
    with pytest.raises(LeaseError, match="waiting for 2 of 2 boards"):
        rack.lease(Requirement(boards=("c3-1", "c3-2"), count=2), purpose="a test", timeout=0.3)
    assert log.read_text().count("far: place acquired") == before
    assert not lab.client("reservations").strip()


# -- what goes wrong


def test_a_killed_holder_keeps_nothing(lab, rack):
    holder = run(rack.path, "rack.lease('near', purpose='x', timeout=5)\nprint('held', flush=True)\ntime.sleep(60)")
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(LeaseError, match=f"waiting for near; .* pid {holder.pid}"):
        rack.lease("near", purpose="a test", timeout=0)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    left = lab.owner("near")
    assert f"pytest-{holder.pid}-" in left
    rack.lease("near", purpose="a test", timeout=0)[0].release()
    assert lab.owner("near") is None


def test_who_connects_gives_back_what_the_dead_have_left_and_nothing_else(lab, rack):
    (lease,) = rack.lease("near", purpose="a test", timeout=5)
    host, _, name = lab.owner("near").partition("/")
    lease.release()
    pid, start, machine = name.split("-")[1:4]
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    lab.client("-p", "far", "acquire", host=host, user=f"pytest-{gone.pid}-1-{machine}-me")
    lab.client(
        "-p", "spare0", "acquire", host=host, user=f"pytest-{pid}-{int(start) + 1}-{machine}-me"
    )  # another process by now
    lab.client("-p", "spare1", "acquire", host=host, user=f"pytest-{os.getppid()}-0-{machine}-me")
    lab.client("-p", "spare2", "acquire", host=host, user=f"pytest-{gone.pid}-1-00000000-me")  # in a container
    lab.client("-p", "spare3", "acquire", host="elsewhere", user=f"pytest-{gone.pid}-1-{machine}-me")
    assert run(rack.path, "rack.lease('near', purpose='x', timeout=5)[0].release()").wait(20) == 0
    still_held = lab.client("who")
    assert "far" not in still_held.replace("far/", "")
    assert [number for number in range(4) if f"spare{number}" in still_held] == [1, 2, 3]


def test_a_process_that_ends_gives_back_what_it_has(lab, rack):
    done = run(rack.path, "rack.lease('near', purpose='x', timeout=5)\nsys.exit(3)")
    assert done.wait(20) == 3
    assert lab.owner("near") is None


def test_a_coordinator_that_restarts_gets_told_again(lab, rack):
    (lease,) = rack.lease("near", purpose="a test", timeout=5)
    with lease, Link(make_board(lease.spec, rack)) as link:
        esp = Esp(link)
        assert esp.chip.identify().mac_address == lab.chips["near"].mac
        lab.stop("coordinator")
        assert esp.chip.identify().mac_address == lab.chips["near"].mac  # the wire does not lead through it
        lab.stop("exporter")
        lab.start_coordinator()
        lab.start_exporter()
        until(lambda: lab.owner("near"))
        link.close()
        assert esp.chip.identify().mac_address == lab.chips["near"].mac
    assert lab.owner("near") is None


def test_a_place_that_somebody_else_got_meanwhile(lab, rack):
    (lease,) = rack.lease("near", purpose="a test", timeout=5)
    with Link(make_board(lease.spec, rack)) as link:
        esp = Esp(link)
        esp.chip.identify()
        lab.client("-p", "near", "release", "--kick")
        lab.client("-p", "near", "acquire")
        until(lambda: not lease.held)
        with pytest.raises(PortError, match=r"the port failed: .* labgrid place near"):
            esp.chip.identify()
        with pytest.raises(LeaseError, match="labgrid place near"):  # and it stays so
            esp.chip.identify()
        link.close()
        with pytest.raises(LeaseError, match="labgrid place near") as caught:
            esp.chip.identify()
        assert "lease it again" in caught.value.hint
    lease.release()
    assert lab.owner("near") == "far/alice"


def test_an_exporter_that_vanishes(lab, rack):
    (lease,) = rack.lease("near", purpose="a test", timeout=5)
    lab.stop("exporter")
    until(lambda: state_of(rack.board("near"), rack).state == "absent")
    with lease, pytest.raises(PortError, match="place near has no NetworkSerialPort now") as caught:
        make_board(lease.spec, rack).open()
    assert "labgrid-exporter is running" in caught.value.hint
    with pytest.raises(PortError, match="has no NetworkSerialPort now"):
        rack.lease("near", purpose="a test", timeout=5)
    lab.start_exporter()
    rack.lease("near", purpose="a test", timeout=5)[0].release()


def test_what_the_lab_has_not(lab):
    rack = load_rack(lab.write_rack('[boards.a]\nLAB\nplace = "neer"\n[boards.b]\nLAB\ntags = { chip = "esp32s3" }\n'))
    with pytest.raises(PortError, match="has no place 'neer'") as caught:
        rack.lease("a", purpose="a test")
    assert "nearest: near" in caught.value.hint
    with pytest.raises(PortError, match="has no place with the tags chip=esp32s3") as caught:
        rack.lease("b", purpose="a test")
    assert "near (chip=esp32c3, desk=left)" in caught.value.hint


@pytest.mark.parametrize("listening", [True, False], ids=["silent", "absent"])
def test_a_coordinator_that_does_not_answer_is_asked_once(tmp_path, monkeypatch, listening):
    monkeypatch.setenv("PYTEST_ESP_LOCK_DIR", str(tmp_path / "locks"))
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if listening:
            server.listen()
        entry = f'backend = "labgrid"\ncoordinator = "127.0.0.1:{server.getsockname()[1]}"\n'
        path = tmp_path / "boards.toml"
        path.write_text("".join(f'[boards.{name}]\n{entry}place = "{name}"\n' for name in "abc"))
        begun = time.monotonic()
        shown = cli("rack", "--rack", path)
        assert time.monotonic() - begun < 10
    assert shown.returncode == 0
    assert shown.stdout.count("does not respond") == 3


def test_what_is_there_is_taken_while_a_lab_is_away(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTEST_ESP_LOCK_DIR", str(tmp_path / "locks"))
    path = tmp_path / "boards.toml"
    path.write_text(
        '[boards.a]\nbackend = "labgrid"\ncoordinator = "127.0.0.1:1"\nplace = "a"\n'
        '[boards.sim]\nbackend = "sim"\nchip = "esp32"\n'
    )
    rack = load_rack(path)
    (lease,) = rack.lease(Requirement(count=1), purpose="a test")
    with lease, pytest.raises(PortError, match=r"coordinator 127.0.0.1:1 does not respond") as caught:
        rack.lease("a", purpose="a test")
    assert lease.spec.name == "sim"
    assert "labgrid-coordinator is running there" in caught.value.hint


def test_without_grpc(tmp_path, monkeypatch):
    path = tmp_path / "boards.toml"
    path.write_text('[boards.a]\nbackend = "labgrid"\ncoordinator = "127.0.0.1:2"\nplace = "a"\n')
    monkeypatch.setitem(sys.modules, "grpc", None)
    with pytest.raises(PortError, match="labgrid boards need") as caught:
        load_rack(path).lease("a", purpose="a test")
    assert "pytest-esp[labgrid]" in caught.value.hint


def test_one_place_is_one_board(lab):
    same = '[boards.a]\nLAB\nplace = "near"\n[boards.b]\nLAB\nplace = "near"\n'
    rack = load_rack(lab.write_rack(same))
    with pytest.raises(NoMatchError, match="b is the same hardware as a"):
        rack.lease(Requirement(boards=("a", "b"), count=2), purpose="a test")


# -- by the commands, pytest and the bridge


def test_the_commands_show_the_lab(lab):
    path = lab.write_rack(NEAR + '[boards.far]\nLAB\nplace = "far"\n')
    lab.client("-p", "far", "acquire")
    shown = cli("rack", "--rack", path).stdout
    assert f"{lab.address}/near" in shown
    assert "in the lab (place far) by alice@far" in shown
    row = json.loads(cli("rack", "--rack", path, "--json").stdout)["boards"][1]
    assert (row["state"], row["holder"]["place"], row["holder"]["user"]) == ("held", "far", "alice")
    doctor = cli("doctor", "--rack", path).stdout
    assert "labgrid 26.0.1 at" in doctor
    found = cli("op", "chip-identify", "--rack", path, "--board", "near", "--json")
    assert json.loads(found.stdout)["mac_address"] == lab.chips["near"].mac, found.stdout


def test_pytest_runs_on_all_places_at_once(lab, tmp_path):
    path = lab.write_rack(BOTH)
    tests = tmp_path / "test_lab.py"
    tests.write_text(
        "import pytest, time\n"
        "@pytest.mark.esp(chip='esp32c3')\n"
        "@pytest.mark.parametrize('number', range(6))\n"
        "def test_mac(esp, number, worker_id):\n"
        "    with open('macs.txt', 'a') as file:\n"
        "        file.write(f'{worker_id} {esp.chip.identify().mac_address}\\n')\n"
        "    time.sleep(0.1)\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--esp-rack", path, "-m", "hardware"]
    done = subprocess.run([*command, "-n", "2", tests], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "6 passed" in done.stdout, done.stdout
    rows = [line.split() for line in (tmp_path / "macs.txt").read_text().splitlines()]
    assert {mac for _, mac in rows} == {lab.chips["near"].mac, lab.chips["far"].mac}
    assert {worker for worker, _ in rows} == {"gw0", "gw1"}
    assert lab.owner("near") is lab.owner("far") is None


def test_the_bridge_leases_in_the_lab(lab):
    from anyio.from_thread import start_blocking_portal
    from fastmcp import Client

    from mcp_bridge.bridge import Bridge
    from mcp_bridge.settings import Settings, parse_allow

    settings = Settings(rack=lab.write_rack(NEAR), roots=(lab.folder,), allow=parse_allow("read"))
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(Client(Bridge(settings).server())) as client,
    ):

        def call(name, **arguments):
            return portal.call(lambda: client.call_tool(name, arguments, raise_on_error=False)).structured_content

        def board():
            return call("esp_rack_status")["boards"][0]

        lab.client("-p", "near", "acquire")
        assert "by alice@far" in board()["holder"]
        refused = call("esp_lease", board="near")
        assert not refused["success"]
        assert "by alice@far" in refused["error"]
        lab.client("-p", "near", "release")
        assert call("esp_lease", board="near")["success"]
        assert call("esp_detect_chip", port="near")["mac_address"] == lab.chips["near"].mac
        assert board()["held_here_for_seconds"] > 500
        lab.client("-p", "near", "release", "--kick")
        lab.client("-p", "near", "acquire")
        refused = call("esp_detect_chip", port="near")
        assert not refused["success"]
        assert "by alice@far" in refused["error"]
        lab.client("-p", "near", "release")
        assert call("esp_detect_chip", port="near")["mac_address"] == lab.chips["near"].mac  # leased anew
        assert call("esp_release", board="near")["success"]
        assert lab.owner("near") is None
