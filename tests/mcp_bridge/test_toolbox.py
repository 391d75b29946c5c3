"""Which tools are listed, what the list costs a model, and how the others are found and called."""

import pytest

from mcp_bridge.settings import parse_allow
from mcp_bridge.toolbox import COMMON

FINDERS = {"esp_find_tools", "esp_call_read", "esp_call_any"}


def tokens(tools):
    """Return what the list of *tools* costs a model: bytes of its JSON by four."""
    return sum(len(tool.model_dump_json(by_alias=True, exclude_none=True)) for tool in tools.values()) / 4


def schemas(schema):
    """Yield a schema and all schemas in it."""
    yield schema
    children = [*schema.get("properties", {}).values(), *schema.get("anyOf", ())]
    children += [schema["items"]] if "items" in schema else []
    for child in children:
        yield from schemas(child)


@pytest.fixture
def plain(serve):
    """A server as it is started without options, with all effects allowed."""
    return serve(tools=None, output_schemas=False)


def test_the_default_list_is_short(plain):
    tools = plain.list_tools()
    assert set(tools) == {*COMMON, *FINDERS}
    assert len(tools) <= 40
    assert tokens(tools) <= 8000
    assert not any(tool.output_schema for tool in tools.values())


def test_all_tools(serve):
    tools = serve(tools="all", output_schemas=False).list_tools()
    assert len(tools) > 100
    assert tokens(tools) <= 30000
    assert any(tool.output_schema for tool in serve(tools="all", output_schemas=True).list_tools().values())


def test_named_components_are_listed_with_all_their_tools(serve):
    server = serve(tools=None, components=("firmware_builder",))
    assert set(server.list_tools()) == set(server.call("esp_find_tools", query="", limit=20)["names"])


@pytest.mark.parametrize("tools", [None, "all"])
def test_only_what_reads_is_listed_if_only_reading_is_allowed(serve, tools):
    server = serve(tools=tools, allow=parse_allow("read"))
    listed = server.list_tools()
    assert {"esp_flash_read", "esp_detect_chip"} <= set(listed)
    assert not {"esp_flash_firmware", "esp_flash_erase", "esp_efuse_burn", "esp_call_any"} & set(listed)
    assert not any(tool.annotations.destructive_hint for tool in listed.values())


def test_what_is_not_allowed_is_not_listed(serve):
    server = serve(tools="all", allow=parse_allow("read,write"))
    assert "esp_flash_firmware" in server.list_tools()
    assert "esp_flash_erase" not in server.list_tools()


@pytest.mark.parametrize(
    ("query", "tool"),
    [
        ("compare two chips", "esp_chip_compare"),
        ("enable secure boot", "esp_secure_boot_enable"),
        ("factory program a board", "esp_factory_program"),
        ("read memory", "esp_memory_dump"),
        ("convert an elf file to a binary", "esp_elf_to_binary"),
        ("build an ESP-IDF project", "esp_idf_build_project"),
        ("write calibration data", "esp_calibration_data_write"),
        ("temperature", "esp_thermal_status"),
    ],
)
def test_tools_are_found(plain, query, tool):
    found = plain.call("esp_find_tools", query=query)["tools"]
    assert tool in [one["name"] for one in found[:3]]
    assert all(one["input_schema"]["type"] == "object" and one["description"] for one in found)


def test_a_search_without_hits_lists_the_names(plain):
    assert "esp_memory_dump" in plain.call("esp_find_tools", query="zzzz")["names"]


def test_a_found_tool_is_called_as_the_search_says(plain):
    (found, *_) = plain.call("esp_find_tools", query="register dump")["tools"]
    assert (found["name"], found["call_with"]) == ("esp_register_dump", "esp_call_read")
    answer = plain.call(found["call_with"], tool=found["name"], arguments={"port": "c3"})
    assert answer["success"]
    assert answer["port"] == "c3"


def test_reading_calls_only_what_reads(plain):
    assert plain.list_tools()["esp_call_read"].annotations.read_only_hint
    reads = [
        ("esp_memory_dump", {"port": "c3", "address": "0x3fc80000", "size": 16}),
        ("esp_partition_create", {"layout": "two_ota"}),
    ]
    for tool, arguments in reads:
        assert plain.call("esp_call_read", tool=tool, arguments=arguments)["success"]
    refused = [
        ("esp_flash_erase", {"port": "c3", "region": "all"}),
        ("esp_flash_read", {"port": "c3", "address": 0, "size": 16, "output_file": "read.bin"}),
        ("esp_partition_create", {"layout": "two_ota", "output_file": "table.bin"}),
        ("esp_reset_chip", {"port": "c3"}),
        ("esp_sim_start", {}),
        ("esp_encryption_enable", {"port": "c3", "key_file": "k", "firmware_path": "f", "apply": True}),
    ]
    for tool, arguments in refused:
        answer = plain.call("esp_call_read", tool=tool, arguments=arguments)
        assert "more than read" in answer["error"]
        assert "esp_call_any" in answer["hint"]
    assert not (plain.folder / "table.bin").exists()


def test_arguments_as_json_text(plain):
    answer = plain.call("esp_call_read", tool="esp_detect_chip", arguments='{"port": "c3"}')
    assert answer["chip_type"] == "esp32c3"


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_consent_is_asked_as_for_the_tool_itself(serve, mode):
    asked = serve(tools=None, person=True, mode=mode)
    asked.answer = "no"
    erase = {"tool": "esp_flash_erase", "arguments": {"port": "c3", "region": "all"}}
    assert "not confirmed" in asked.call("esp_call_any", **erase)["error"]
    assert "esp_flash_erase on the virtual board c3" in asked.questions[0]
    asked.answer = "yes"
    assert asked.call("esp_call_any", **erase)["success"]


def test_a_token_confirms_a_call_of_another_tool(plain):
    arguments = {"port": "c3", "region": "all"}
    token = plain.call("esp_call_any", tool="esp_flash_erase", arguments=arguments)["confirm"]
    assert plain.call("esp_call_any", tool="esp_flash_erase", arguments=arguments | {"confirm": token})["success"]


def test_effects_hold_for_calls_of_other_tools(serve):
    server = serve(tools=None, allow=parse_allow("read,write"))
    answer = server.call("esp_call_any", tool="esp_flash_erase", arguments={"port": "c3", "region": "all"})
    assert "does not allow 'erase'" in answer["error"]


def test_calls_of_other_tools_that_go_wrong(plain):
    unknown = plain.call("esp_call_any", tool="esp_flash_reed")
    assert "unknown tool 'esp_flash_reed'" in unknown["error"]
    assert "esp_flash_read" in unknown["hint"]
    assert "esp_flash_read" in plain.call("esp_call_read", tool="esp_flash_read", arguments={"port": "c3"})["hint"]
    assert "nonsense" in plain.call("esp_call_read", tool="esp_detect_chip", arguments={"nonsense": 1})["error"]
    for tool in FINDERS:
        assert "through another tool" in plain.call("esp_call_any", tool=tool)["error"]
    assert "JSON text" in plain.call("esp_call_any", tool="esp_detect_chip", arguments="c3")["error"]
