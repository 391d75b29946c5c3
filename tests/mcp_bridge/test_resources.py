"""Resources, which a client reads without calling a tool."""

import json

import pytest


def test_all_resources_are_json(server):
    uris = server.list_resources()
    assert {"esp://chips", "esp://server/status", "esp://config", "esp://capabilities"} <= set(uris)
    for uri in uris:
        assert server.read(uri)


def test_there_is_one_of_each_kind(server):
    assert {
        "esp://chips",
        "esp://flash/status",
        "esp://security/info",
        "esp://partitions",
        "esp://firmware/info",
        "esp://diagnostics",
        "esp://server/status",
        "esp://config",
        "esp://capabilities",
        "esp://products/catalog",
        "esp://idf/status",
    } <= set(server.list_resources())


def test_resources_without_a_loaded_tool_are_not_offered(serve):
    server = serve(components=("server", "partition_manager"))
    uris = server.list_resources()
    assert "esp://partitions" in uris
    assert "esp://security/info" not in uris
    hint = server.read("esp://firmware/info")["boards"][0]["hint"]
    assert hint == "call esp_partition_analyze first"


def test_chips_are_those_of_esptool(server):
    from esptool.targets import CHIP_LIST

    chips = {row["chip"]: row for row in server.read("esp://chips")["chips"]}
    assert set(chips) == set(CHIP_LIST)
    assert chips["esp32"]["bootloader_offset"] == "0x1000"
    assert chips["esp32c3"]["has_qemu_machine"]


def test_devices_are_those_of_the_rack_with_their_features(server):
    devices = {row["board"]: row for row in server.read("esp://chips")["devices"]}
    assert {name: row["chip"] for name, row in devices.items()} == {
        "c3": "esp32c3",
        "esp32": "esp32",
        "guarded": "esp32s3",
    }
    assert (devices["c3"]["state"], devices["c3"]["hint"]) == ("free", "call esp_detect_chip to identify the chip")
    server.call("esp_detect_chip", port="c3")
    c3 = next(row for row in server.read("esp://chips")["devices"] if row["board"] == "c3")
    assert "BT 5 (LE)" in c3["esp_detect_chip"]["features"]
    assert c3["state"] == "held"


@pytest.mark.parametrize("lines", ["x", "-1", "1.5"])
def test_an_invalid_number_of_lines(server, lines):
    answer = server.read(f"esp://boards/c3/console?lines={lines}")
    assert not answer["success"]
    assert "not a number of lines" in answer["error"]
    assert answer["port"] == "c3"


def test_reading_touches_no_board_and_answers_have_their_age(server):
    assert "hint" in server.read("esp://security/info")["boards"][0]
    assert server.held() == []
    server.call("esp_security_audit", port="c3")
    rows = {row["board"]: row for row in server.read("esp://security/info")["boards"]}
    assert "esp32c3" in json.dumps(rows["c3"]["esp_security_audit"])
    assert 0 <= rows["c3"]["esp_security_audit"]["age_seconds"] < 60
    assert server.held() == ["c3"]


def test_one_board(server):
    assert server.read("esp://boards/c3")["state"] == "free"
    assert server.read("esp://boards/c3/console")["lines"] == []
    server.call("esp_serial_monitor", port="c3", duration_seconds=0.1, reset=True)
    assert server.read("esp://boards/c3")["state"] == "held"
    lines = server.read("esp://boards/c3/console?lines=3")["lines"]
    assert len(lines) == 3
    server.call("esp_partition_read", port="c3")
    assert server.read("esp://boards/c3/partitions")["board"] == "c3"


@pytest.mark.parametrize("uri", ["esp://boards/none", "esp://boards/none/console", "esp://boards/none/partitions"])
def test_a_missing_board(server, uri):
    answer = server.read(uri)
    assert not answer["success"]
    assert "no board 'none'" in answer["error"]


def test_the_capabilities_are_the_tools(server):
    components = server.read("esp://capabilities")["components"]
    assert {name for tools in components.values() for name in tools} == set(server.list_tools())


def test_prompts_name_existing_tools(server):
    import re

    assert len(server.list_prompts()) == 6
    for name in server.list_prompts():
        text = server.prompt(name, **{"ports" if name == "esp_batch_production" else "port": "c3"})
        assert "c3" in text
        assert set(re.findall(r"esp_\w+(?=\()", text)) <= set(server.list_tools())


def test_prompts_use_existing_parameters(server):
    import re

    tools, named = server.list_tools(), 0
    for name in server.list_prompts():
        firmware = {} if name in ("esp_backup_plan", "esp_idf_setup_target") else {"firmware": "app.bin"}
        text = server.prompt(name, **{"ports" if name == "esp_batch_production" else "port": "c3"}, **firmware)
        for tool, arguments in re.findall(r"(esp_\w+)\(((?:[^()]|\([^)]*\))*)\)", text):
            outside_of_values = re.sub(r"\{[^}]*\}|\[[^\]]*\]|'[^']*'", "", arguments)
            wanted = set(re.findall(r"(\w+)=", outside_of_values))
            assert wanted <= set(tools[tool].input_schema["properties"]), f"{name}: {tool}"
            named += len(wanted)
    assert named > 40
