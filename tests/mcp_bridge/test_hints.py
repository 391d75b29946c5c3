"""Hints are calls that a client can make."""

import re
from pathlib import Path

import pytest

import pytest_esp
from mcp_bridge.bridge import Bridge
from mcp_bridge.hints import Hints
from mcp_bridge.settings import Settings
from mcp_bridge.tool import tools_of
from pytest_esp.operations.esp import load_all

SOURCES = Path(pytest_esp.__file__).parent
HINT = re.compile(r'hint(?:=|\s*=\s*)f?"([^"]*)"')


@pytest.fixture(scope="module")
def offered():
    bridge = Bridge(Settings())
    tools = {name: info for one in bridge.components.values() for name, (_, info) in tools_of(one).items()}
    bridge.close()
    return tools


@pytest.fixture(scope="module")
def hints(offered):
    return Hints({info.operation: name for name, info in offered.items() if info.operation})


def test_operations_are_named_by_their_tools(hints, offered):
    assert hints.for_clients("check it with flash-analyze") == "check it with esp_flash_analyze"
    assert hints.for_clients("write it with flash-write") == "write it with esp_flash_firmware"
    assert hints.for_clients("a flash-analyzer") == "a flash-analyzer"
    assert set(hints._tools.values()) <= offered.keys()
    assert hints._tools.keys() <= load_all().keys()


@pytest.mark.parametrize("room", ["operations", "rack", "boards", "link", "formats", "wire", "qemu", "sim"])
def test_no_hint_of_a_room_names_another_face(hints, room):
    found = [text for path in (SOURCES / room).rglob("*.py") for text in HINT.findall(path.read_text())]
    assert found or room in ("sim", "wire")
    for text in map(hints.for_clients, found):
        assert not re.search(r"end the (holder|process)|--esp-|lock timeout|pytest-esp op", text), text


def test_a_held_board(server, monkeypatch):
    from pytest_esp.rack.config import load_rack
    from pytest_esp.rack.lease import acquire

    rack = load_rack(server.rack_file)
    with acquire([rack.board("c3")], rack=rack, purpose="somebody", timeout=5)[0]:
        hint = server.call("esp_detect_chip", port="c3")["hint"]
    assert "esp_rack_status" in hint
    assert not re.search(r"end the|timeout|pid", hint)


def test_hints_of_calls_through_another_tool(serve):
    server = serve(allow=frozenset())
    hint = server.call("esp_call_any", tool="esp_detect_chip", arguments={"port": "c3"})["hint"]
    assert "the user can restart the server with --allow" in hint
