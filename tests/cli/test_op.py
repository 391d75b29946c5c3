"""``pytest-esp op``: operations from the command line."""

import json

import pytest
from click.testing import CliRunner

from pytest_esp.cli.main import cli
from pytest_esp.rack.lease import holder_of


@pytest.fixture
def op(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTEST_ESP_LOCK_DIR", str(tmp_path / "locks"))
    monkeypatch.setenv("PYTEST_ESP_STATE_DIR", str(tmp_path / "state"))
    rack = tmp_path / "boards.toml"
    rack.write_text(
        '[boards.c3]\nbackend="sim"\nchip="esp32c3"\n[boards.guarded]\nbackend="sim"\nchip="esp32"\nallow=["read"]\n'
    )

    def run(*arguments):
        result = CliRunner().invoke(cli, ["op", "--rack", str(rack), *map(str, arguments)])
        from pytest_esp.rack.config import load_rack

        loaded = load_rack(rack)
        assert not [spec.name for spec in loaded.boards.values() if holder_of(spec, loaded)]
        return result

    return run


def test_without_a_name_all_are_listed(op):
    from pytest_esp.operations.registry import load_all

    lines = op().output.splitlines()
    assert {line.split()[0] for line in lines} == set(load_all())
    assert any(line.split()[:2] == ["efuse-burn", "burn"] for line in lines)


def test_an_operation_as_json(op, tmp_path):
    image = tmp_path / "image.bin"
    image.write_bytes(b"hello" * 1000)
    written = json.loads(op("flash-write", "--board", "c3", "--json", f"firmware={image}", "address=0x10000").output)
    assert (written["success"], written["port"]) == (True, "c3")
    read = json.loads(op("flash-read", "--board", "c3", "--json", "address=64KB", "size=5").output)
    assert bytes.fromhex(read["data"]) == b"hello"


def test_lists_are_written_as_json(op):
    pairs = json.dumps([["0x10000", __file__]])
    assert json.loads(op("flash-write", "--board", "c3", "--json", f"firmware={pairs}").output)["success"]


def test_for_people(op):
    output = op("chip-identify", "--board", "c3").output
    assert "chip: esp32c3\n" in output


@pytest.mark.parametrize(
    ("arguments", "error", "hint"),
    [
        (("flash-reed", "--board", "c3"), "there is no operation 'flash-reed'", "flash-read"),
        (("flash-read", "--board", "c3", "start=0"), "'start=0' is no argument of flash-read", "address=..."),
        (("flash-read", "--board", "c3", "address"), "'address' is no argument", "address=..."),
        (("flash-read", "--board", "c3", "address=0"), "flash-read needs size", "in bytes"),
        (("flash-read", "--board", "c3", "address=x", "size=4"), "the address is wrong", ""),
        (("flash-write", "--board", "c3", "firmware=[1"), "this is not JSON", ""),
        (("chip-reset", "--board", "c3", "to=moon"), "to=moon: Input should be 'app' or 'bootloader'", ""),
        (("chip-identify", "--board", "c4"), "no board 'c4'", ""),
        (("chip-identify",), "2 boards, and none was named", "c3, guarded"),
        (("flash-erase", "--board", "guarded", "region=all"), "it needs 'erase', and allows read", "allow"),
    ],
)
def test_what_goes_wrong_is_a_record(op, arguments, error, hint):
    result = op(*arguments, "--json")
    record = json.loads(result.output)
    assert (result.exit_code, record["success"]) == (1, False)
    assert error in record["error"]
    assert hint in (record["hint"] or "")
