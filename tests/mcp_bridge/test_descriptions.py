"""Every parameter of every tool has a description, and the imports of the server have no circle."""

import graphlib

import grimp
import pytest

from mcp_bridge.components import COMPONENT_REGISTRY


@pytest.mark.parametrize("component", COMPONENT_REGISTRY)
def test_every_parameter_is_described(serve, component):
    tools = serve(components=(component,)).list_tools()
    assert tools
    bare = {
        f"{name}({parameter})"
        for name, tool in tools.items()
        for parameter, schema in tool.input_schema["properties"].items()
        if not schema.get("description")
    }
    assert not bare


def test_imports_have_no_circle():
    graph = grimp.build_graph("mcp_bridge")
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    del imports["mcp_bridge.components"]  # loads them by name
    assert list(graphlib.TopologicalSorter(imports).static_order())
