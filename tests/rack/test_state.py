"""The state of boards, as every face shows it."""

import os

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
    assert (found.state, found.holder) == ("missing", None)
    assert "not-plugged-in" in found.to_dict()["problem"]
