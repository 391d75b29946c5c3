"""A board prints its secrets: answers, resources and the server's log must not contain them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import leaks
import pytest
from leaks import leaks_in

FOLDER = Path(leaks.__file__).parent
RACK = """
[boards.leaky]
backend = "sim"
chip = "esp32c3"
flash_size = "4MB"
app = "leaks:LeakyApp"
"""
FACTORY = {"firmware": str(leaks.BUILD), "nvs": leaks.VALUES, "boot": {"wait": 5, "expect": "Werk 3"}}


class Stdio:
    """A server in a separate process with full logging; all of its output is kept."""

    def __init__(self, folder):
        self.log = folder / "log"
        self.said = []
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mcp_bridge", "--rack", folder / "boards.toml", "--roots", leaks.BUILD],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=os.environ
                | {"PYTHONPATH": str(FOLDER), "FASTMCP_LOG_LEVEL": "DEBUG", "FASTMCP_DEBUG": "1", "MCP_DEBUG": "1"},
            )
        self.number = 0
        client = {"name": "test", "version": "0"}
        self.request("initialize", protocolVersion="2025-06-18", capabilities={}, clientInfo=client)
        self._send({"method": "notifications/initialized"})

    def _send(self, message):
        self.process.stdin.write(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")
        self.process.stdin.flush()

    def request(self, method, **params):
        self.number += 1
        self._send({"id": self.number, "method": method, "params": params})
        for line in self.process.stdout:
            self.said.append(line)
            message = json.loads(line)
            if message.get("id") == self.number:
                return message.get("result") or message["error"]
        raise AssertionError(self.log.read_text())

    def call(self, tool, **arguments):
        return self.request("tools/call", name=tool, arguments=arguments)["structuredContent"]

    def read(self, uri):
        return self.request("resources/read", uri=uri)["contents"][0]["text"]

    def close(self):
        """End it as a client does."""
        self.process.stdin.close()
        self.process.wait(20)
        self.process.stdout.close()


@pytest.fixture
def stdio(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTEST_ESP_LOCK_DIR", str(tmp_path / "locks"))
    monkeypatch.setenv("PYTEST_ESP_STATE_DIR", str(tmp_path / "state"))
    (tmp_path / "boards.toml").write_text(RACK)
    server = Stdio(tmp_path)
    yield server
    if server.process.poll() is None:
        server.close()


def test_no_answer_and_no_log_has_a_secret(stdio):
    wrong = {**leaks.PROVISIONING, "wifi": {"ssid": "", "password": leaks.PASSWORD}}
    assert not stdio.call("esp_provision_device", config=wrong)["success"]
    assert not stdio.call("esp_provision_device", config=[leaks.PASSWORD])["success"]
    asked = stdio.call("esp_factory_program", config=FACTORY)
    stdio.call("esp_factory_program", config=FACTORY, confirm=asked["confirm"])
    assert stdio.call("esp_provision_device", config=leaks.PROVISIONING)["success"]
    run = stdio.call("esp_run_firmware", wait_seconds=1, until="ready")
    assert 'wifi: connecting to "Werk 3" with "***"' in run["output"]
    seen = stdio.call("esp_serial_monitor", duration_seconds=0.5, reset=True)
    assert any("split ***" in line for _, line in seen["lines"])
    late = stdio.call("esp_serial_monitor", duration_seconds=0.5, reset=True, until=leaks.PASSWORD)
    assert late["matched"] == "***"
    console = json.loads(stdio.read("esp://boards/leaky/console?lines=1000"))
    assert any(line.endswith(f"***@{leaks.NOT_SECRET}") for _, line in console["lines"])
    for uri in ("esp://firmware/info", "esp://diagnostics", "esp://boards/leaky"):
        stdio.read(uri)
    assert stdio.call("esp_diagnostic_report")["success"]
    stdio.close()
    assert leaks_in(b"".join(stdio.said)) == []
    assert leaks_in(stdio.log.read_bytes()) == []
