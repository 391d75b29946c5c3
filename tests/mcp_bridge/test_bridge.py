"""What every tool has in common: schemas, errors, consent, files, leases, the end of the server."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from serial.tools import list_ports
from serial.tools.list_ports_common import ListPortInfo

from mcp_bridge.boards import BoardPool
from mcp_bridge.bridge import Bridge
from mcp_bridge.settings import Settings
from pytest_esp.errors import LeaseError, RackError
from pytest_esp.rack.config import load_rack
from pytest_esp.rack.lease import acquire, holder_of
from pytest_esp.sim.chip import SimChip
from pytest_esp.wire.endpoints import serve as serve_wire


def test_answers_fit_their_schemas(server):
    calls = [
        ("esp_detect_chip", {"port": "c3"}),
        ("esp_security_audit", {"port": "esp32"}),
        ("esp_efuse_read", {"port": "c3", "efuse_name": "MAC"}),
        ("esp_efuse_read", {"port": "c3", "detailed": True}),
        ("esp_rack_status", {}),
        ("esp_partition_create", {"layout": "two_ota", "output_file": "table.bin"}),
        ("esp_flash_firmware", {"port": "c3", "firmware_path": "table.bin", "address": "0x8000"}),
        ("esp_partition_read", {"port": "c3"}),
        ("esp_serial_monitor", {"port": "c3", "duration_seconds": 0.1, "reset": True}),
    ]
    for name, arguments in calls:
        server.fits(name, arguments)
    for name, arguments in [("esp_detect_chip", {"port": "c4"}), ("esp_partition_read", {"port": "esp32"})]:
        server.fits(name, arguments, success=False)


def test_every_tool_has_a_description(server):
    for name, tool in server.list_tools().items():
        assert name.startswith("esp_")
        assert len(tool.description) > 30
        assert tool.annotations.read_only_hint is not None
    assert server.list_tools()["esp_flash_erase"].annotations.destructive_hint
    assert server.list_tools()["esp_flash_status"].annotations.read_only_hint
    # They write files, restart boards or start machines, so a client must ask before it calls them.
    for name in ("esp_flash_read", "esp_elf_to_binary", "esp_reset_chip", "esp_qemu_start", "esp_sim_fault"):
        assert not server.list_tools()[name].annotations.read_only_hint
    assert not server.list_tools()["esp_flash_firmware"].annotations.read_only_hint


def test_the_list_of_tools_is_true(server):
    listed = server.call("esp_list_tools")
    assert {name for tools in listed["components"].values() for name in tools} == set(server.list_tools())


def test_only_some_components(serve):
    server = serve(components=("server", "flash_manager"))
    assert "esp_flash_read" in server.list_tools()
    assert "esp_detect_chip" not in server.list_tools()
    with pytest.raises(RackError, match="unknown component 'flash'"):
        Bridge(Settings(rack=server.rack_file, components=("flash",)))


# -- boards


@pytest.mark.parametrize(
    ("arguments", "error", "hint"),
    [
        ({}, "3 boards, and none was selected", "c3, esp32, guarded"),
        ({"port": "c4"}, "no board 'c4'", None),
        ({"port": "/dev/ttyNone"}, "/dev/ttyNone", "plugged in"),
        ({"port": "rfc2217://"}, "rfc2217://", None),
    ],
)
def test_a_missing_board(server, arguments, error, hint):
    answer = server.call("esp_detect_chip", **arguments)
    assert error in answer["error"] + str(answer["port"])
    assert hint is None or hint in answer["hint"]


def test_a_board_is_held_between_calls_and_released(serve):
    server = serve(idle=2.0)
    server.call("esp_detect_chip", port="c3")
    assert server.held() == ["c3"]
    deadline = time.monotonic() + 20
    while server.held() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert server.held() == []
    assert server.call("esp_detect_chip", port="c3")["success"]


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_idle_board_is_released_while_another_is_kept(serve):
    server = serve(idle=0.2)
    server.call("esp_sim_start", chip_type="esp32c6")
    time.sleep(0.3)  # there is nothing to give back, as long as that one runs
    server.call("esp_detect_chip", port="c3")
    deadline = time.monotonic() + 20
    while server.held() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert server.held() == []


def test_lease_and_release(serve):
    server = serve(idle=0.05)
    assert server.call("esp_lease", board="c3", minutes=1)["seconds"] == 60
    time.sleep(0.3)
    assert server.held() == ["c3"]
    (row,) = [row for row in server.call("esp_rack_status")["boards"] if row["name"] == "c3"]
    assert row["state"] == "held"
    assert "MCP bridge" in row["holder"]
    server.call("esp_release", board="c3")
    assert server.held() == []


def test_a_board_that_somebody_else_holds(server):
    rack = load_rack(server.rack_file)
    code = (
        "import sys; from pytest_esp.rack.config import load_rack; from pathlib import Path\n"
        f"rack = load_rack(Path({str(server.rack_file)!r}))\n"
        "lease = rack.lease('c3', purpose='somebody', timeout=5); print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        answer = server.call("esp_detect_chip", port="c3")
        assert not answer["success"]
        assert "somebody" in answer["error"]
        threading.Timer(0.2, other.stdin.close).start()
        assert server.call("esp_detect_chip", port="c3", wait_s=10)["success"]
    assert holder_of(rack.board("c3"), rack).pid == os.getpid()


def test_calls_on_one_board_wait_for_each_other_and_on_two_do_not(tmp_path, monkeypatch, serve):
    server = serve()
    pool = BoardPool(load_rack(server.rack_file))
    order = []

    def use(board, seconds):
        with pool.use(board):
            order.append(f"{board} begins")
            time.sleep(seconds)
            order.append(f"{board} ends")

    threads = [threading.Thread(target=use, args=arguments) for arguments in [("c3", 0.3), ("c3", 0), ("esp32", 0)]]
    for thread in threads:
        thread.start()
        time.sleep(0.05)
    for thread in threads:
        thread.join()
    pool.close()
    assert order.index("esp32 ends") < order.index("c3 ends")
    assert [entry for entry in order if entry.startswith("c3")] == ["c3 begins", "c3 ends"] * 2


def test_a_path_that_leads_to_a_board_of_the_rack_is_that_board(tmp_path):
    (tmp_path / "boards.toml").write_text(
        '[boards.real]\nbackend="serial"\nchip="esp32"\nport="/dev/ttyUSB7"\nallow=["read"]\n'
    )
    link = tmp_path / "by-id"
    link.symlink_to("/dev/ttyUSB7")
    pool = BoardPool(load_rack(tmp_path / "boards.toml"))
    assert pool.resolve(str(link)).name == "real"
    assert pool.resolve("/dev/ttyUSB8").chip == "auto"


@pytest.mark.parametrize(
    "spelling",
    [
        f"rfc2217://{socket.gethostname()}:4000",
        "rfc2217://localhost:4000?ign_set_control",
        "RFC2217://127.1:4000",
        "socket://[::1]:4000",
        "socket://somebody@LOCALHOST.:4000",
    ],
)
def test_another_spelling_of_a_port_allows_no_more(tmp_path, spelling):
    (tmp_path / "boards.toml").write_text(
        '[boards.far]\nbackend="serial"\nchip="esp32"\nport="rfc2217://127.0.0.1:4000"\nallow=["read"]\n'
    )
    spec = BoardPool(load_rack(tmp_path / "boards.toml")).resolve(spelling)
    assert (spec.name, spec.allow) == ("far", {"read"})


def test_a_usb_port_allows_no_more_than_its_device(tmp_path, monkeypatch):
    devices = []
    for name in ("ttyACM0", "ttyACM1"):
        port = ListPortInfo(f"/dev/{name}")
        port.vid, port.pid, port.serial_number = 0x303A, 0x1001, name[-1]
        devices.append(port)
    monkeypatch.setattr(list_ports, "comports", lambda: devices)
    (tmp_path / "boards.toml").write_text(
        '[boards.one]\nbackend="serial"\nchip="esp32c3"\nport="/dev/ttyACM0"\nallow=["read"]\n'
        '[boards.any]\nbackend="serial"\nchip="esp32c3"\nport="usb:303a:1001"\nallow=["read"]\n'
    )
    pool = BoardPool(load_rack(tmp_path / "boards.toml"))
    assert pool.resolve("usb:303a:1001:serial=0").name == "one"
    assert pool.resolve("/dev/ttyACM1").name == "any"


@pytest.mark.parametrize("port", ["rfc2217://lab:99999", "socket://[::1", "usb:303a", "/dev/tty\0"])
def test_a_malformed_port_is_refused(server, port):
    answer = server.call("esp_detect_chip", port=port)
    assert "not a valid port" in answer["error"]


def test_two_spellings_of_a_port_that_the_rack_does_not_name_are_one_board(tmp_path, monkeypatch):
    (tmp_path / "boards.toml").write_text('[boards.a]\nbackend="sim"\nchip="esp32"\n')
    pool = BoardPool(load_rack(tmp_path / "boards.toml"))
    chip = SimChip("esp32c3")
    endpoint = serve_wire(chip.wire, "socket://127.0.0.1:0", name="chip")
    try:
        with pool.use(endpoint.url):
            assert pool.resolve(endpoint.url.replace("127.0.0.1", "localhost")).name == endpoint.url
    finally:
        pool.close()
        endpoint.close()
        chip.close()


# -- consent and what is allowed


def test_a_client_that_cannot_ask_confirms_with_a_token(server):
    first = server.call("esp_flash_erase", port="c3", region="all")
    assert "requires confirmation" in first["error"]
    assert "c3" in first["plan"]
    assert server.call("esp_flash_erase", port="esp32", region="all", confirm=first["confirm"])["success"] is False
    assert server.call("esp_flash_erase", port="c3", region="all", confirm="0" * 16)["success"] is False
    assert server.call("esp_flash_erase", port="c3", region="all", confirm=first["confirm"])["size"] == 4 << 20


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_a_person_is_asked(serve, mode):
    server = serve(person=True, mode=mode)
    server.answer = "no"
    assert "not confirmed" in server.call("esp_flash_erase", port="c3", start_address=0, size=4096)["error"]
    server.answer = "yes"
    assert server.call("esp_flash_erase", port="c3", start_address=0, size=4096)["success"]
    assert all("real board" not in question and "virtual board c3" in question for question in server.questions)


@pytest.mark.in_process
def test_a_burn_on_a_virtual_board(server):
    arguments = {"port": "c3", "efuse_name": "CUSTOM_MAC", "value": "7c:df:a1:00:00:09"}
    token = server.call("esp_efuse_burn", **arguments)["confirm"]
    assert server.call("esp_efuse_burn", **arguments, confirm=token)["success"]
    assert server.call("esp_efuse_read", port="c3", efuse_name="CUSTOM_MAC")["value"].startswith("7c:df:a1:00:00:09")


def test_what_the_board_or_the_server_does_not_allow(serve):
    server = serve(allow=Settings().allow)
    answer = server.call("esp_flash_firmware", port="guarded", firmware_path="boards.toml", address=0)
    assert "does not allow 'write'" in answer["error"]
    assert "[boards.guarded]" in answer["hint"]
    answer = server.call("esp_efuse_burn", port="c3", efuse_name="CUSTOM_MAC", value="x")
    assert "does not allow 'burn'" in answer["error"]
    assert "--allow" in answer["hint"]


# -- files


def test_flash_round_trip_through_files(server):
    data = os.urandom(20_000)
    (server.folder / "image.bin").write_bytes(data)
    report = server.call("esp_flash_firmware", port="c3", firmware_path="image.bin", address="0x20000")
    assert (report["bytes_written"], report["bytes_skipped"], report["verified"]) == (20_000, 0, True)
    assert server.progress[-1][0] == server.progress[-1][1] == 20_000
    again = server.call("esp_flash_multi", port="c3", files=[{"address": 0x20000, "path": "image.bin"}])
    assert (again["bytes_written"], again["bytes_skipped"]) == (0, 20_000)
    read = server.call("esp_flash_read", port="c3", address=0x20000, size=20_000, output_file="back.bin")
    assert (server.folder / "back.bin").read_bytes() == data
    assert read["output_file"].endswith("back.bin")
    assert "exists" in server.call("esp_flash_read", port="c3", address=0, size=4, output_file="back.bin")["error"]
    (server.folder / "image.bin").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    differs = server.call("esp_flash_verify", port="c3", firmware_path="image.bin", address="0x20000")
    assert differs["regions"][0]["first_difference_hex"] == hex(0x20000 + 19_999)


@pytest.mark.parametrize("name", ["../boards.toml", "/etc/passwd", "link/passwd", "~/x", "a\0b"])
def test_nothing_outside_the_roots(server, name):
    (server.folder / "link").symlink_to("/etc")
    answer = server.call("esp_flash_firmware", port="c3", firmware_path=name, address=0)
    assert not answer["success"]
    assert "outside" in answer["error"] or "is not a valid path" in answer["error"]
    assert not server.call("esp_flash_read", port="c3", address=0, size=4, output_file=name)["success"]


# -- the end


class Stdio:
    """A server as clients start it. Its output must consist of JSON-RPC lines only."""

    def __init__(self, folder, *arguments, **environment):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mcp_bridge", "--rack", folder / "boards.toml", "--roots", folder, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | environment,
        )
        self.number = 0
        self.request(
            "initialize",
            protocolVersion="2025-06-18",
            capabilities={},
            clientInfo={"name": "test", "version": "0"},
        )
        self._send({"jsonrpc": "2.0", "method": "notifications/initialized"})

    def _send(self, message):
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()

    def request(self, method, **params):
        self.number += 1
        self._send({"jsonrpc": "2.0", "id": self.number, "method": method, "params": params})
        while True:
            message = json.loads(self.process.stdout.readline())
            if message.get("id") == self.number:
                return message["result"]

    def call(self, name, **arguments):
        return self.request("tools/call", name=name, arguments=arguments)["structuredContent"]


@pytest.fixture
def stdio(serve, tmp_path):
    started = []

    def start(*arguments):
        started.append(Stdio(tmp_path / "project", *arguments))
        return started[-1]

    yield start
    for server in started:
        server.process.kill()
        server.process.wait()


@pytest.mark.parametrize("end", ["close", signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_no_board_is_held_after_the_server_has_ended(stdio, tmp_path, end):
    server = stdio()
    assert server.call("esp_detect_chip", port="c3")["chip_type"] == "esp32c3"
    rack = load_rack(tmp_path / "project" / "boards.toml")
    assert holder_of(rack.board("c3"), rack).pid == server.process.pid
    if end == "close":
        server.process.stdin.close()
    else:
        server.process.send_signal(end)
    server.process.wait(10)
    assert holder_of(rack.board("c3"), rack) is None
    with pytest.raises(LeaseError), acquire([rack.board("c3")], rack=rack, purpose="test", timeout=0)[0]:
        raise LeaseError("it was free")
