"""Components of other packages: the example in the docs, and broken ones."""

import importlib
import re
import sys
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest

from mcp_bridge import components
from pytest_esp.errors import RackError

PAGE = Path(__file__).parents[2] / "docs" / "components.md"


@pytest.fixture
def plug_in(monkeypatch, tmp_path):
    """Write a module, and name it in an entry point."""
    monkeypatch.syspath_prepend(tmp_path)
    points = []

    def add(name, value, source=""):
        (tmp_path / f"{value.partition(':')[0]}.py").write_text(source)
        importlib.invalidate_caches()
        monkeypatch.delitem(sys.modules, value.partition(":")[0], raising=False)
        points.append(EntryPoint(name, value, components.ENTRY_POINTS))

    monkeypatch.setattr(components, "entry_points", lambda **wanted: EntryPoints(points).select(**wanted))
    return add


def test_the_example_of_the_docs(serve, plug_in):
    python, toml = re.findall(r"```(?:python|toml)\n(.*?)```", PAGE.read_text(), re.DOTALL)
    name, value = re.search(r'(\w+) = "([\w:]+)"', toml).groups()
    plug_in(name, value, python)
    server = serve(tools=None, output_schemas=False)
    assert "esp_blink" not in server.list_tools()
    assert server.call("esp_find_tools", query="blink")["tools"][0]["name"] == "esp_blink"
    answer = server.call("esp_call_read", tool="esp_blink", arguments={"port": "c3", "times": "2"})
    assert (answer["chip"], answer["times"]) == ("esp32c3", 2)
    assert "esp_blink" in serve(tools=None, components=(name,)).list_tools()


BROKEN = {
    "missing": ("gone_module:Nothing", "raise ImportError('no such thing')"),
    "syntax": ("bad_syntax:Nothing", "def ("),
    "no class": ("no_class:Nothing", ""),
    "exit": ("exits:Nothing", "raise SystemExit(3)"),
    "no tools": ("no_tools:C", "from mcp_bridge.components.base import Component as C\n"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_component_stops_nobody_else(serve, plug_in, kind):
    plug_in("broken", *BROKEN[kind])
    server = serve()
    assert server.call("esp_detect_chip", port="c3")["success"]
    health = server.call("esp_health_check")
    assert health["status"] == "degraded"
    assert health["components"]["broken"]["status"] == "failed"
    assert health["components"]["broken"]["problem"]


def test_a_tool_that_exists_already_is_not_replaced(serve, plug_in):
    source = PAGE.read_text().partition("```python\n")[2].partition("```")[0].replace("esp_blink", "esp_flash_erase")
    plug_in("mine", "mine:MyBench", source)
    server = serve()
    assert "esp_flash_erase already" in server.call("esp_health_check")["components"]["mine"]["problem"]
    assert server.list_tools()["esp_flash_erase"].annotations.destructive_hint


def test_a_health_check_that_raises(serve, plug_in):
    source = PAGE.read_text().partition("```python\n")[2].partition("```")[0]
    plug_in("mine", "mine:MyBench", source + "    def health_check(self):\n        raise KeyError('lamp')\n")
    server = serve()
    assert "lamp" in server.call("esp_health_check")["components"]["mine"]["problem"]
    assert "lamp" in server.read("esp://server/status")["components"]["mine"]["problem"]


def test_an_unknown_component_is_still_an_error(serve, plug_in):
    with pytest.raises(RackError, match="unknown component"):
        serve(components=("mine",))
