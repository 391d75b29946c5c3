"""A scripted attacker, and clients that go away: what they try over both transports, and what happens to the boards.

The messages are written by hand, so that they can be cut off, repeated and mixed as no proper client would.
"""

import contextlib
import http.client
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter

import pytest

from pytest_esp.rack.config import load_rack
from pytest_esp.rack.lease import holder_of

# Attacks take their time, and most wait for something that must not happen.
pytestmark = pytest.mark.slow

TOKEN = "token-of-the-attacks"
RACK = """
[boards.c3]
backend = "sim"
chip = "esp32c3"
flash_file = "{folder}/c3.bin"

[boards.s3]
backend = "sim"
chip = "esp32s3"
flash_file = "{folder}/s3.bin"

[boards.slow]
backend = "sim"
chip = "esp32c3"
efuse_file = "{folder}/slow.efuse"
faults = {{ to_host = {{ latency = 0.02 }} }}
"""
BLANK = b"\xff" * 16
VERSION = "2025-11-25"


@pytest.fixture
def project(tmp_path):
    """A rack, and a file to write to flash."""
    (tmp_path / "boards.toml").write_text(RACK.format(folder=tmp_path))
    (tmp_path / "data.bin").write_bytes(b"written".ljust(4096, b"\0"))
    return tmp_path


class Server:
    """A server over standard input and output, or over HTTP, and the raw messages of one client or several."""

    def __init__(self, project, *arguments):
        self.project = project
        environment = os.environ | {
            "PYTEST_ESP_STATE_DIR": str(project / "state"),
            "PYTEST_ESP_LOCK_DIR": str(project / "locks"),
            "PYTEST_ESP_MCP_TOKEN": TOKEN,
        }
        command = [sys.executable, "-m", "mcp_bridge", "--rack", str(project / "boards.toml"), "--roots", str(project)]
        self.errors = (project / "stderr").open("w+")
        self.process = subprocess.Popen(
            [*command, "--allow", "read,write,erase,burn", *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, cwd=project, env=environment,
        )  # fmt: skip
        self.number = 0
        self.answers, self.requests, self._changed = {}, {}, threading.Condition()

    def stop(self):
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.errors):
            with contextlib.suppress(BrokenPipeError):
                stream.close()

    # -- standard input and output

    def start(self, capabilities=None):
        threading.Thread(target=self._read, daemon=True).start()
        self.ask("initialize", protocolVersion=VERSION, capabilities=capabilities or {}, clientInfo=CLIENT)
        self.write(method="notifications/initialized")
        return self

    def _read(self):
        for line in self.process.stdout:
            message = json.loads(line)
            with self._changed:
                if "method" in message:
                    self.requests[message["method"]] = message
                else:
                    self.answers[message["id"]] = message
                self._changed.notify_all()

    def write(self, **message):
        self.process.stdin.write(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")
        self.process.stdin.flush()

    def send(self, method, **params):
        """Send a request, and return its number."""
        self.number += 1
        self.write(id=self.number, method=method, params=params)
        return self.number

    def call(self, tool, **arguments):
        return self.send("tools/call", name=tool, arguments=arguments)

    def cancel(self, number):
        self.write(method="notifications/cancelled", params={"requestId": number})

    def wait(self, number, seconds=60):
        with self._changed:
            assert self._changed.wait_for(lambda: number in self.answers, seconds), f"no answer to {number}"
        return self.answers[number]

    def wait_for_request(self, method, seconds=30):
        """Return a request of the server."""
        with self._changed:
            assert self._changed.wait_for(lambda: method in self.requests, seconds), f"no {method}"
        return self.requests[method]

    def ask(self, method, **params):
        return self.wait(self.send(method, **params))

    def done(self, tool, **arguments):
        """Call a tool, and return its answer."""
        return self.wait(self.call(tool, **arguments))["result"]["structuredContent"]

    def read(self, board, size=16):
        return bytes.fromhex(self.done("esp_flash_read", port=board, address=0x10000, size=size)["data"])


CLIENT = {"name": "attacker", "version": "0"}


@pytest.fixture
def server(project):
    server = Server(project)
    yield server.start()
    server.stop()


def busy(server, seconds=4):
    """Keep the board c3 busy, and return when it is."""
    assert server.done("esp_detect_chip", port="c3")["success"]  # it stays in its loader; a blank chip would crash
    number = server.call("esp_serial_monitor", port="c3", duration_seconds=seconds)
    server.done("esp_rack_status")  # the monitor has begun
    return number


def flashing(server, board="c3"):
    return server.call("esp_flash_firmware", port=board, firmware_path="data.bin", address=0x10000)


class HttpClient:
    """A session over HTTP."""

    def __init__(self, server, capabilities=None):
        deadline, self.server, self.session = time.monotonic() + 30, server, None
        while not (found := re.search(r"running on http://\S+:(\d+)", (server.project / "stderr").read_text())):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        self.port = int(found[1])
        answer = self.send("initialize", protocolVersion=VERSION, capabilities=capabilities or {}, clientInfo=CLIENT)
        self.session = answer.getresponse().headers["mcp-session-id"]
        self.send("notifications/initialized", number=None).getresponse()

    def send(self, method, number=1, **params):
        """Send a message, and return the connection."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        headers = {
            "Authorization": f"Bearer {TOKEN}",
            "Accept": "application/json, text/event-stream",
            "Content-Type": "application/json",
            "MCP-Protocol-Version": VERSION,
        } | ({"Mcp-Session-Id": self.session} if self.session else {})
        message = {"jsonrpc": "2.0", "method": method, "params": params} | ({"id": number} if number else {})
        connection.request("POST", "/mcp", json.dumps(message), headers)
        return connection

    def call(self, tool, number=1, **arguments):
        """Call a tool, and return the connection."""
        return self.send("tools/call", number, name=tool, arguments=arguments)

    def done(self, tool, **arguments):
        """Call a tool, and return its answer."""
        body = self.call(tool, **arguments).getresponse().read().decode()
        messages = [json.loads(line[6:]) for line in body.splitlines() if line.startswith("data: {")]
        (answer,) = [message["result"] for message in messages if "result" in message]
        return answer["structuredContent"]


@pytest.fixture
def http_server(project):
    server = Server(project, "--http", "127.0.0.1:0")
    yield server
    server.stop()


# -- files


def test_links_that_are_swapped_under_the_server_lead_nowhere(server, project, tmp_path_factory):
    """Another program swaps a folder for a link to one outside, all the time, while the server reads and writes."""
    outside, inside, stop = tmp_path_factory.mktemp("outside"), project / "inside", threading.Event()
    inside.mkdir()
    for folder, size in ((inside, 4096), (outside, 8192)):
        (folder / "x.bin").write_bytes(b"\xa5" * size)

    def swap():
        for number in itertools.count():
            if stop.is_set():
                return
            link = project / f"link{number}"
            link.symlink_to(outside if number % 2 else inside)
            link.replace(project / "way")
            time.sleep(0.02)

    thread = threading.Thread(target=swap)
    thread.start()
    found = Counter()
    try:
        for number in range(60):
            answer = server.done("esp_flash_firmware", port="c3", firmware_path="way/x.bin", address=0x10000)
            found["read" if answer["success"] else "refused"] += 1
            assert not answer["success"] or [region["size"] for region in answer["regions"]] == [4096]
            arguments = {"address": 0, "size": 64, "output_file": f"way/{number}.bin"}
            found["written" if server.done("esp_flash_read", port="c3", **arguments)["success"] else "refused"] += 1
    finally:
        stop.set()
        thread.join()
    assert [path.name for path in outside.iterdir()] == ["x.bin"]
    assert found.keys() == {"read", "written", "refused"}


def test_roots_of_an_http_client_are_not_asked_for(http_server):
    """They are paths of another machine."""
    client = HttpClient(http_server, {"roots": {"listChanged": True}})
    started = time.monotonic()
    assert client.done("esp_flash_firmware", port="c3", firmware_path="data.bin", address=0x10000)["success"]
    assert time.monotonic() - started < 4


# -- calls that have not begun


def test_a_cancelled_call_that_waits_never_begins(server):
    monitor = busy(server)
    waiting = [flashing(server) for _ in range(20)]
    for number in waiting:
        server.cancel(number)
    assert monitor not in server.answers
    assert server.wait(monitor)["result"]["structuredContent"]["success"]
    assert server.read("c3") == BLANK
    assert not set(waiting) & server.answers.keys()


def test_a_call_that_waits_and_is_not_cancelled_begins(server):
    monitor, write = busy(server, 1), None
    write = flashing(server)
    assert write not in server.answers
    assert server.wait(write)["result"]["structuredContent"]["success"]
    assert monitor in server.answers
    assert server.read("c3") == b"written".ljust(16, b"\0")


def test_a_call_of_a_client_that_is_gone_never_begins(server, project):
    busy(server)
    flashing(server)
    time.sleep(0.3)
    started = time.monotonic()
    server.process.stdin.close()
    assert server.process.wait(20) == 0
    assert time.monotonic() - started < 8
    assert set((project / "c3.bin").read_bytes()) == {0xFF}
    rack = load_rack(project / "boards.toml")
    assert not any(holder_of(spec, rack) for spec in rack.boards.values())


def test_a_call_of_an_http_client_that_is_gone_never_begins(http_server):
    first, second = HttpClient(http_server), HttpClient(http_server)
    assert first.done("esp_detect_chip", port="c3")["success"]
    monitor = first.call("esp_serial_monitor", port="c3", duration_seconds=4)
    time.sleep(1)
    arguments = {"port": "c3", "firmware_path": "data.bin", "address": 0x10000}
    gone = [first.call("esp_flash_firmware", number, **arguments) for number in range(10, 20)]
    time.sleep(0.5)
    for connection in gone:
        connection.close()
    waiting = second.call("esp_flash_firmware", port="c3", firmware_path="data.bin", address=0x20000)
    assert b'"success":true' in monitor.getresponse().read().replace(b" ", b"")
    assert b'"success":true' in waiting.getresponse().read().replace(b" ", b"")
    read = {
        name: second.done("esp_flash_read", port="c3", address=name, size=16)["data"] for name in (0x10000, 0x20000)
    }
    assert bytes.fromhex(read[0x10000]) == BLANK
    assert bytes.fromhex(read[0x20000]).startswith(b"written")


# -- boards do not wait for each other


@pytest.mark.parametrize("number", [40, 400])
def test_calls_on_one_board_do_not_delay_those_on_others(server, number):
    assert server.done("esp_detect_chip", port="s3")["success"]

    def times():
        found = []
        for _ in range(60):
            started = time.perf_counter()
            assert server.done("esp_flash_read", port="s3", address=0, size=64)["success"]
            found.append(time.perf_counter() - started)
        return sorted(found)

    alone = times()
    busy(server, 12)
    waiting = [flashing(server) for _ in range(number)]
    server.done("esp_rack_status")
    beside = times()
    # The 95th percentile of 60 calls, as other work on the machine delays some of them, too.
    assert beside[-4] < alone[-4] + 0.05
    assert not set(waiting) & server.answers.keys()
    for one in waiting:
        server.cancel(one)
    started = time.monotonic()
    assert server.done("esp_detect_chip", port="s3")["success"]
    assert time.monotonic() - started < 1


@pytest.fixture
def hung():
    """A port that can be opened, and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"socket://127.0.0.1:{listener.getsockname()[1]}"


def test_a_board_that_hangs_takes_no_other_with_it(server, hung):
    assert server.done("esp_detect_chip", port="s3")["success"]
    waiting = [server.call("esp_detect_chip", port=hung) for _ in range(40)]
    time.sleep(0.5)
    started = time.monotonic()
    for _ in range(20):
        assert server.done("esp_flash_read", port="s3", address=0, size=64)["success"]
    assert server.done("esp_server_info")["success"]
    assert time.monotonic() - started < 4
    assert not set(waiting) & server.answers.keys()
    server.process.stdin.close()
    assert server.process.wait(20) == 0


# -- the end of the server


@pytest.mark.parametrize("end", ["SIGTERM", "SIGHUP", "SIGINT", "stdin"])
def test_a_burn_under_way_is_finished_and_nothing_else(project, end):
    burn = {"port": "slow", "efuse_name": "BLOCK_USR_DATA", "value": "5a" * 32}
    server = Server(project).start()
    try:
        server.done("esp_efuse_burn", **burn)
        started = time.monotonic()
        token = server.done("esp_efuse_burn", **burn)["confirm"]
        planning = time.monotonic() - started
        server.call("esp_efuse_burn", **burn, confirm=token)
        time.sleep(2 * planning + 1.5)  # it plans once more when it is confirmed
        flashing(server, "slow")
        server.done("esp_rack_status")
        started = time.monotonic()
        if end == "stdin":
            server.process.stdin.close()
        else:
            server.process.send_signal(getattr(signal, end))
        assert server.process.wait(60) == (0 if end == "stdin" else 128 + getattr(signal, end))
        assert time.monotonic() - started > 6, "the burn had ended before, or other calls would have had so long, too"
    finally:
        server.stop()
    second = Server(project).start()
    try:
        assert second.done("esp_efuse_read", port="slow", efuse_name="BLOCK_USR_DATA")["value"] == "5a " * 31 + "5a"
        assert second.read("slow") == BLANK
    finally:
        second.stop()


@pytest.mark.parametrize("end", ["SIGTERM", "SIGHUP", "stdin"])
def test_other_calls_do_not_keep_the_server_alive(server, end, hung):
    busy(server, 60)
    server.call("esp_detect_chip", port=hung)
    time.sleep(0.5)
    started = time.monotonic()
    if end == "stdin":
        server.process.stdin.close()
    else:
        server.process.send_signal(getattr(signal, end))
    server.process.wait(20)
    assert time.monotonic() - started < 10


# -- confirmation


ERASE = {"port": "c3", "start_address": 0x10000, "size": 4096}


def token_of(client, **arguments):
    return client.done("esp_flash_erase", **ERASE | arguments)["confirm"]


def refused(client, token, tool="esp_flash_erase", **arguments):
    answer = client.done(tool, **ERASE | arguments, confirm=token)
    assert "the confirm token is for another call" in answer["error"]
    return True


def test_a_token_works_once(server):
    token = token_of(server)
    assert server.done("esp_flash_erase", **ERASE, confirm=token)["success"]
    assert refused(server, token)
    assert refused(server, "0" * 32)


def test_a_token_works_for_its_arguments_and_board_only(server):
    token = token_of(server)
    assert refused(server, token, size=8192)
    assert refused(server, token, port="s3")
    assert server.done("esp_flash_erase", **ERASE, confirm=token, wait_s=1)["success"]


def test_a_token_works_in_its_session_only(http_server):
    first, second = HttpClient(http_server), HttpClient(http_server)
    token = token_of(first)
    assert refused(second, token)
    assert first.done("esp_flash_erase", **ERASE, confirm=token)["success"]


def test_a_token_is_for_what_the_call_would_do_then(server):
    """The partition has another place since the plan was shown."""
    table = "nvs, data, nvs, 0x9000, 0x6000\nfactory, app, factory, 0x10000, 1M\nstore, data, spiffs, {}, 0x10000\n"
    for name, place in (("first.csv", "0x200000"), ("second.csv", "0x300000")):
        (server.project / name).write_text(table.format(place))

    def write(name):
        arguments = {"port": "c3", "partition_file": name, "discard_data": True}
        token = server.done("esp_partition_flash", **arguments)["confirm"]
        assert server.done("esp_partition_flash", **arguments, confirm=token)["success"]

    write("first.csv")
    asked = server.done("esp_flash_erase", port="c3", region="store")
    assert "0x10000 bytes at 0x200000" in asked["plan"]
    write("second.csv")
    answer = server.done("esp_flash_erase", port="c3", region="store", confirm=asked["confirm"])
    assert "another state of the board" in answer["error"]
    assert server.done(
        "esp_flash_erase",
        port="c3",
        region="store",
        confirm=server.done("esp_flash_erase", port="c3", region="store")["confirm"],
    )["success"]


def test_what_changes_while_a_person_thinks_is_not_done(project):
    table = "nvs, data, nvs, 0x9000, 0x6000\nfactory, app, factory, 0x10000, 1M\nstore, data, spiffs, {}, 0x10000\n"
    for name, place in (("first.csv", "0x200000"), ("second.csv", "0x300000")):
        (project / name).write_text(table.format(place))
    server = Server(project)
    yes = {"result": {"action": "accept", "content": {"value": "yes"}}}

    def ask(tool, **arguments):
        """Call a tool that asks, and return the numbers of the call and of its question."""
        server.requests.clear()
        number = server.call(tool, port="c3", **arguments)
        return number, server.wait_for_request("elicitation/create")["id"]

    def confirm(number, question):
        server.write(id=question, **yes)
        return server.wait(number)["result"]["structuredContent"]

    try:
        server.start({"elicitation": {"form": {}}})
        assert confirm(*ask("esp_partition_flash", partition_file="first.csv"))["success"]
        number, question = ask("esp_flash_erase", region="store")
        assert confirm(*ask("esp_partition_flash", partition_file="second.csv", discard_data=True))["success"]
        assert "has changed since it was confirmed" in confirm(number, question)["error"]
        assert confirm(*ask("esp_flash_erase", region="store"))["address"] == 0x300000
    finally:
        server.stop()


# -- a person is asked for what can be done only


@pytest.mark.parametrize(
    ("tool", "arguments", "error"),
    [
        ("esp_flash_erase", {"port": "c3", "region": "none"}, "there is no partition table"),
        ("esp_flash_erase", {"port": "c3"}, "give either region or start_address"),
        ("esp_flash_erase", {"port": "c3", "start_address": 0x10001, "size": 4096}, "multiples of the sector size"),
        ("esp_flash_erase", {"port": "c3", "start_address": 0x10000000, "size": 4096}, "flash"),
        ("esp_flash_erase", {"port": "none", "region": "all"}, "no board 'none'"),
        ("esp_flash_restore", {"port": "c3", "backup_dir": "none"}, "none"),
        ("esp_flash_restore", {"port": "c3", "backup_dir": "/etc"}, "outside the folders"),
        ("esp_efuse_burn", {"port": "c3", "efuse_name": "NONE", "value": 1}, "NONE"),
        ("esp_flash_encryption_configure", {"port": "c3"}, "flash is not encrypted"),
        ("esp_factory_program", {"port": "c3", "config": {"firmware": "none"}}, "none"),
        ("esp_batch_program", {"ports": []}, "no boards"),
        ("esp_batch_program", {"ports": ["c3"], "firmware": "none"}, "none"),
    ],
)
def test_what_cannot_be_done_is_not_asked_for(server, tool, arguments, error):
    answer = server.done(tool, **arguments)
    assert error in answer["error"]
    assert not {"confirm", "plan"} & answer.keys()


def test_a_board_that_somebody_else_holds_is_not_asked_for(server, project, monkeypatch):
    monkeypatch.setenv("PYTEST_ESP_LOCK_DIR", str(project / "locks"))
    rack = load_rack(project / "boards.toml")
    with rack.lease("c3", purpose="somebody else")[0]:
        answer = server.done("esp_flash_erase", **ERASE)
        assert "somebody else" in answer["error"]
        assert "confirm" not in answer
        waiting = server.call("esp_flash_erase", **ERASE, wait_s=20)
        time.sleep(0.5)
        assert waiting not in server.answers
    assert "confirm" in server.wait(waiting)["result"]["structuredContent"]


def test_a_board_that_does_not_answer_is_not_asked_for(server, hung):
    answer = server.done("esp_flash_erase", port=hung, start_address=0, size=4096)
    assert "confirm" not in answer


# -- clients that cannot ask


def test_a_client_that_only_shows_links_gets_a_token(project):
    server = Server(project)
    try:
        server.start({"elicitation": {"url": {}}})
        assert server.done("esp_flash_erase", **ERASE, confirm=token_of(server))["success"]
    finally:
        server.stop()


@pytest.mark.parametrize(
    "answer",
    [
        {"error": {"code": -32603, "message": "no"}},
        {"result": {"action": "accept", "content": {"value": "maybe"}}},
        {"result": {"action": "accept"}},
        {"result": {"action": "accept", "content": {"other": 1}}},
        {"result": {"action": "decline"}},
        {"result": {}},
        {"result": {"action": 5}},
    ],
)
def test_a_client_that_answers_with_anything_else_is_refused(project, answer):
    server = Server(project)
    try:
        server.start({"elicitation": {}})
        number = server.call("esp_flash_erase", **ERASE)
        question = server.wait_for_request("elicitation/create")
        server.write(id=question["id"], **answer)
        refused = server.wait(number)["result"]["structuredContent"]
        assert refused["success"] is False
        assert "nothing was changed" in refused["error"]
        assert "defect" not in refused["error"]
        assert "confirm" not in refused
    finally:
        server.stop()
