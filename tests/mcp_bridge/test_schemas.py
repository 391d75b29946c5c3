"""The schemas of tools, in the part of JSON Schema that all clients take, and the texts that arguments may be."""

import importlib
import json

import pytest

FORMATS = {"date-time", "uri", "uuid", "email"}  # those that anybody has registered and a tool might use


def parts(schema):
    """Yield a schema and all schemas in it, of inputs and of outputs."""
    yield schema
    children = [*schema.get("properties", {}).values()]
    for key in ("anyOf", "oneOf", "allOf", "prefixItems"):
        children += schema.get(key, ())
    children += [schema["items"]] if "items" in schema else []
    for child in children:
        yield from parts(child)


@pytest.fixture
def tools(server):
    return server.list_tools()


def test_keywords_that_some_clients_refuse(tools):
    problems = [
        f"{name}: {part}"
        for name, tool in tools.items()
        for part in (*parts(tool.input_schema), *parts(tool.output_schema))
        if {"additionalProperties", "$ref", "$defs"} & set(part) or part.get("format", "uri") not in FORMATS
    ]
    assert not problems, "\n".join(problems)


def test_arguments_have_one_type_and_closed_sets_are_strings(tools):
    problems = [
        f"{name}: {part}"
        for name, tool in tools.items()
        for part in parts(tool.input_schema)
        if isinstance(part.get("type"), list)
        or part.get("type") == "null"
        or "const" in part
        or ("type" in part) == ("anyOf" in part)
        or not all(isinstance(one, str) for one in part.get("enum", ()))
        or (part.get("type") == "array" and "items" not in part)
    ]
    assert not problems, "\n".join(problems)


def test_unknown_arguments_are_refused(server):
    answer = server.call("esp_detect_chip", port="c3", speed=1)
    assert "unknown parameter 'speed'" in answer["error"]
    assert "esp_detect_chip takes" in answer["hint"]


@pytest.mark.parametrize("chip", ["ESP32-C3", "esp32_c3", "Esp32C3", "esp32 c3"])
def test_chips_in_any_spelling(server, chip):
    started = server.call("esp_sim_start", chip_type=chip)
    assert started["chip_type"] == "esp32c3"
    assert server.call("esp_product_search", chip_type=chip)["count"]
    server.call("esp_sim_stop")


def test_the_chip_of_a_qemu_machine_in_any_spelling(server):
    answer = server.call("esp_qemu_start", chip_type="ESP32-C6")
    assert "esp32s3" in answer["error"]  # it lists those that can be started
    assert "chip_type" not in server.call("esp_qemu_start", chip_type="ESP32-C3").get("error", "")
    server.call("esp_qemu_stop")


def test_lists_and_tables_as_json_text(server):
    rows = [{"name": "nvs", "type": "data", "subtype": "nvs", "size": "24KB"}]
    table = {"flash_size": "4MB", "partitions": rows}
    for layout in (rows, table, json.dumps(rows), json.dumps(table)):
        assert server.call("esp_partition_create", layout=layout)["partitions"][0]["name"] == "nvs"
    assert server.call("esp_partition_create", layout="two_ota")["success"]
    (server.folder / "app.bin").write_bytes(b"\xff" * 4096)
    files = json.dumps([{"address": "0x10000", "path": "app.bin"}])
    assert server.call("esp_flash_verify", port="c3", files=files)["matches"]
    assert server.call("esp_chip_compare", chips='["ESP32-C3", "ESP32-C6"]')["success"]
    wrong = server.call("esp_chip_compare", chips="ESP32-C3, ESP32-C6")
    assert "JSON text" in wrong["error"]
    data = json.dumps({"wifi": {"ssid": "home"}})
    assert server.call("esp_nvs_partition_create", data=data, size="24KB", output_file="n.bin")["success"]


@pytest.mark.parametrize("size", [8, "8", "8MB"])
def test_closed_sets_of_numbers(server, size):
    started = server.call("esp_sim_start", chip_type="esp32c3", flash_size_mb=size)
    assert server.call("esp_detect_chip", port=started["instance_id"])["flash_size"] == "8MB"
    assert not server.call("esp_sim_start", flash_size_mb="3")["success"]


@pytest.mark.parametrize("size", ["1.5MB", "1.5 MB", "1536K", "0x180000", 1536 * 1024])
def test_sizes_as_people_write_them(server, size):
    table = server.call("esp_partition_create_ota", flash_size="4MB", app_size=size)
    assert {one["size"] for one in table["partitions"] if one["type"] == "app"} == {1536 * 1024}
    assert "whole number" in server.call("esp_partition_create_ota", flash_size="4MB", app_size="0.3")["error"]


def test_an_empty_text_leaves_an_argument_out(server):
    assert server.call("esp_efuse_read", port="c3", efuse_name="")["success"]
    assert "3 boards" in server.call("esp_detect_chip", port="")["error"]


# -- the converters of the vendors' own packages


def package(name):
    try:
        return importlib.import_module(name)
    except ImportError:
        pytest.skip(f"the package {name} is not installed")


def test_openai_takes_the_schemas(tools):
    strict = package("openai.lib._pydantic")
    for tool in tools.values():
        schema = json.loads(json.dumps(tool.input_schema))
        converted = strict._ensure_strict_json_schema(schema, path=(), root=schema)
        assert converted["additionalProperties"] is False
        assert set(converted.get("required", ())) == set(tool.input_schema["properties"])


def test_google_genai_takes_the_schemas(tools):
    utilities = package("google.genai._mcp_utils")
    declared = utilities.mcp_to_gemini_tools(list(tools.values()))
    names = {one.name for tool in declared for one in tool.function_declarations}
    assert names == set(tools)
