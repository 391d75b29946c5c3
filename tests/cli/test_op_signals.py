"""Signals that end ``pytest-esp op``: it releases the board, and a burn is finished before."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from pytest_esp.rack.config import load_rack
from pytest_esp.rack.lease import holder_of

RACK = """
[boards.slow]
backend = "sim"
chip = "esp32c3"
efuse_file = "{folder}/efuses"
faults = {{ to_host = {{ latency = 0.005 }} }}
"""


@pytest.fixture
def op(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTEST_ESP_LOCK_DIR", str(tmp_path / "locks"))
    monkeypatch.setenv("PYTEST_ESP_STATE_DIR", str(tmp_path / "state"))
    rack = tmp_path / "boards.toml"
    rack.write_text(RACK.format(folder=tmp_path))
    started = []

    def start(*arguments):
        process = subprocess.Popen(
            [sys.executable, "-c", "from pytest_esp.cli.main import main; main()", "op", "--rack", rack, *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
        )  # fmt: skip
        started.append(process)
        return process

    def is_held():
        loaded = load_rack(rack)
        return holder_of(loaded.boards["slow"], loaded) is not None

    start.is_held = is_held
    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    "name", ["SIGTERM", *(pytest.param(name, marks=pytest.mark.slow) for name in ("SIGHUP", "SIGINT"))]
)
def test_a_burn_is_finished(op, name):
    number = getattr(signal, name)
    process = op("efuse-burn", "--board", "slow", "efuse_name=BLOCK_USR_DATA", f"value={'5a' * 32}")
    assert "to be burnt on slow" in process.stderr.readline()  # what will be burnt is printed before
    time.sleep(0.3)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert (process.returncode, "5a 5a" in output) == (128 + number, True)
    assert not op.is_held()
    read, _ = op("efuse-read", "--board", "slow", "efuse_name=BLOCK_USR_DATA", "--json").communicate(timeout=60)
    assert json.loads(read)["value"] == "5a " * 31 + "5a"


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_another_operation_releases_the_board(op, name, tmp_path):
    process = op("flash-read", "--board", "slow", "address=0", "size=4MB", "output_file=flash.bin")
    deadline = time.monotonic() + 30
    while not op.is_held():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(1)
    process.send_signal(getattr(signal, name))
    assert process.wait(15) == 128 + getattr(signal, name)
    assert not op.is_held()
    assert not [file for file in os.listdir(tmp_path) if "flash.bin" in file]
