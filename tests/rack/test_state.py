"""The state of boards, as every face shows it."""

import os
import socket

import pytest

from pytest_esp.errors import PortError
from pytest_esp.rack.config import load_rack
from pytest_esp.rack.lease import acquire
from pytest_esp.rack.state import holder_to_dict, state_of


def rack_of(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTEST_ESP_LOCK_DIR", str(tmp_path / "locks"))
    path = tmp_path / "boards.toml"
    path.write_text(
        '[boards.virtual]\nbackend="sim"\nchip="esp32c3"\n'
        '[boards.real]\nbackend="serial"\nchip="esp32"\nport="usb:303a:1001:serial=not-plugged-in"\n'
    )
    return load_rack(path)


def test_free_held_and_free_again(tmp_path, monkeypatch):
    rack = rack_of(tmp_path, monkeypatch)
    board = rack.board("virtual")
    assert state_of(board, rack).to_dict() == {"state": "free"}
    with acquire([board], rack=rack, purpose="a test", timeout=0)[0]:
        found = state_of(board, rack)
        assert (found.state, found.to_dict()["holder"]) == ("held", found.holder.describe())
        record = holder_to_dict(found.holder)
        assert (record["pid"], record["purpose"]) == (os.getpid(), "a test")
        assert 0 <= record["seconds"] < 60
        assert record["since"].endswith("+00:00")
    assert state_of(board, rack).state == "free"


def test_a_board_that_is_not_plugged_in(tmp_path, monkeypatch):
    rack = rack_of(tmp_path, monkeypatch)
    found = state_of(rack.board("real"), rack)
    assert (found.state, found.holder) == ("absent", None)
    assert "not-plugged-in" in found.to_dict()["problem"]


@pytest.fixture
def refused():
    """The address of a server that has just ended."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return f"127.0.0.1:{port}"


@pytest.mark.parametrize("port", ["/dev/ttyUSB77", "/dev/serial/by-id/usb-none", "rfc2217://{}", "socket://{}"])
def test_a_port_that_is_absent_is_passed_over(tmp_path, monkeypatch, refused, port):
    monkeypatch.setenv("PYTEST_ESP_LOCK_DIR", str(tmp_path / "locks"))
    with socket.create_server(("127.0.0.1", 0)) as server:
        there = f"rfc2217://127.0.0.1:{server.getsockname()[1]}"
        (tmp_path / "boards.toml").write_text(
            f'[boards.gone]\nbackend="serial"\nchip="esp32"\nport="{port.format(refused)}"\n'
            f'[boards.there]\nbackend="serial"\nchip="esp32"\nport="{there}"\n'
        )
        rack = load_rack(tmp_path / "boards.toml")
        assert [state_of(spec, rack).state for spec in rack.boards.values()] == ["absent", "free"]
        with acquire(list(rack.boards.values()), rack=rack, purpose="a test", timeout=0)[0] as lease:
            assert lease.spec.name == "there"
        if port.startswith("/dev"):
            with pytest.raises(PortError, match="does not exist"):
                acquire([rack.board("gone")], rack=rack, purpose="a test", timeout=0)
