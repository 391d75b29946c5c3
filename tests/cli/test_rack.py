"""``pytest-esp rack``."""

import json
import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

from pytest_esp.rack.config import load_rack
from pytest_esp.rack.requirement import Requirement

TEST = "tests/test_thermostat.py::test_it_heats[virtual-esp32]"
BIN = Path(sys.executable).parent


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "boards.toml"
    path.write_text(
        '[rack]\nlock_dir="locks"\n[boards.a]\nbackend="sim"\nchip="esp32"\nflash_size="4MB"\n'
        '[boards.gone]\nbackend="serial"\nchip="esp32c3"\nport="usb:303a:1001:serial=nowhere"\n'
    )
    return path


def run(*arguments):
    return subprocess.run(
        [BIN / "pytest-esp", "rack", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={name: value for name, value in os.environ.items() if name not in ("COLUMNS", "PYTEST_ESP_LOCK_DIR")},
    )


def test_it_shows_who_holds_what(path):
    rack = load_rack(path)
    with rack.lease(Requirement(boards=("a",)), purpose=TEST)[0] as lease:
        boards = json.loads(run("--rack", path, "--json").stdout)["boards"]
        assert f"by {TEST} (pid {os.getpid()}, " in run("--rack", path).stdout
    held, gone = boards
    assert (held["name"], held["state"]) == ("a", "held")
    assert held["holder"]["purpose"] == TEST
    assert held["holder"]["pid"] == os.getpid()
    assert datetime.fromisoformat(held["holder"]["since"]).timestamp() == pytest.approx(lease.since, abs=0.002)
    assert gone["state"] == "absent"
    assert "plugged in" in gone["problem"]
    assert json.loads(run("--rack", path, "--json").stdout)["boards"][0]["state"] == "free"


def test_a_lock_folder_that_cannot_be_made_is_one_message(path):
    path.with_name("locks").touch()
    result = run("--rack", path)
    assert result.returncode == 1
    assert f"cannot create a lock in {path.with_name('locks')}" in result.stderr
    assert "PYTEST_ESP_LOCK_DIR" in result.stderr


def test_an_invalid_file_is_one_message(path):
    path.write_text('[boards.a]\nbackend="sim"\nchip="esp32c33"\n')
    result = run("--rack", path)
    assert result.returncode == 1
    assert "boards.toml:3:" in result.stderr
    assert "Traceback" not in result.stderr
