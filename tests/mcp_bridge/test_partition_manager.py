"""Tools for partition tables: what they make, flash and find."""

import pytest

from pytest_esp.formats.partition_table import parse


def confirmed(server, name, **arguments):
    token = server.call(name, **arguments)["confirm"]
    return server.call(name, **arguments, confirm=token)


def test_a_table_is_made_flashed_and_analyzed(server):
    made = server.call("esp_partition_create", layout="two_ota_littlefs", output_file="table.bin")
    assert parse((server.folder / "table.bin").read_bytes())[-1].name == "storage"
    flashed = confirmed(server, "esp_partition_flash", partition_file="table.bin", port="c3")
    assert flashed["partitions"] == made["partitions"]
    assert server.call("esp_partition_read", port="c3")["partitions"] == made["partitions"]
    analysis = server.call("esp_partition_analyze", port="c3")
    assert analysis["partitions"][1]["partition"]["offset_hex"] == "0xd000"
    assert {found["kind"] for found in analysis["partitions"]} == {"blank"}
    assert analysis["gaps"] == []


def test_tables_for_updates_and_custom_tables(server):
    made = server.call("esp_partition_create_ota", flash_size="8MB", app_size="2MB", output_file="ota.csv")
    assert "ota_1,app,ota_1,0x210000,2M" in (server.folder / "ota.csv").read_text()
    assert (made["flash_size"], made["table_offset"], made["table_offset_hex"]) == (0x800000, 0x8000, "0x8000")
    rows = [{"name": "app", "type": "app", "subtype": "factory", "size": "1MB"}]
    made = server.call("esp_partition_custom", config={"flash_size": "2MB", "partitions": rows})
    assert (made["partitions"][0]["offset"], made["output_file"]) == (0x10000, None)
    assert made["warnings"] == ["no NVS partition: Wi-Fi and many libraries need one"]
    assert server.call("esp_partition_create", layout="ota.csv", flash_size="8MB")["success"]


@pytest.mark.parametrize(
    ("tool", "arguments", "error"),
    [
        ("esp_partition_create", {"layout": "tow_ota"}, "no layout 'tow_ota'"),
        ("esp_partition_create", {"layout": "a, app, factory, , 8M"}, "does not fit"),
        ("esp_partition_create", {"layout": "two_ota", "output_file": "../table.bin"}, "outside the folders"),
        ("esp_partition_create", {"layout": "/etc/secret.csv"}, "outside the folders"),
        ("esp_partition_create", {"layout": "two_ota", "output_file": "boards.toml"}, "may not be written"),
        ("esp_partition_create_ota", {"flash_size": "4MB", "app_size": "3MB"}, "do not fit"),
        ("esp_partition_create_ota", {"flash_size": "much"}, "invalid flash size"),
        ("esp_partition_custom", {"config": {}}, "no list 'partitions'"),
        ("esp_partition_custom", {"config": {"flash": "2MB", "partitions": []}}, "a layout has no 'flash'"),
        ("esp_partition_create_ota", {"storage": "fat32"}, "storage: Input should be"),
        ("esp_partition_analyze", {"port": "c3"}, "there is no partition table"),
        ("esp_partition_flash", {"port": "guarded", "partition_file": "x.bin"}, "does not allow 'erase'"),
        ("esp_ota_partition_setup", {"port": "guarded"}, "does not allow 'erase'"),
    ],
)
def test_what_is_refused(server, tool, arguments, error):
    assert error in server.call(tool, **arguments)["error"]


@pytest.mark.parametrize("name", ["../table.bin", "../table.csv"])
def test_a_table_outside_the_roots(server, name):
    (server.folder / name).write_text("factory, app, factory, 0x10000, 1M\n")
    assert "outside the folders" in confirmed(server, "esp_partition_flash", partition_file=name, port="c3")["error"]


def test_no_output_replaces_a_file(server):
    (server.folder / "mine.bin").write_text("mine")
    for tool, arguments in [
        ("esp_partition_create", {"layout": "two_ota"}),
        ("esp_partition_create_ota", {}),
        ("esp_nvs_partition_create", {"data": {"a": {"b": 1}}}),
    ]:
        assert "exists already" in server.call(tool, output_file="mine.bin", **arguments)["error"]
        assert (server.folder / "mine.bin").read_text() == "mine"
    assert server.call("esp_partition_create", layout="two_ota", output_file="mine.bin", overwrite=True)["success"]


def test_data_that_would_be_orphaned(server):
    server.call("esp_partition_create", layout="single_factory", output_file="one.bin")
    server.call("esp_partition_create", layout="two_ota", output_file="two.bin")
    confirmed(server, "esp_partition_flash", partition_file="one.bin", port="c3")
    (server.folder / "settings.bin").write_bytes(b"settings")
    server.call("esp_flash_firmware", firmware_path="settings.bin", address="0x9000", port="c3")
    answer = confirmed(server, "esp_partition_flash", partition_file="two.bin", port="c3")
    assert answer["orphaned"] == ["nvs"]
    assert not answer["success"]
    assert "discard_data" in answer["hint"]
    assert confirmed(server, "esp_ota_partition_setup", port="c3", discard_data=True)["table"]["orphaned"] == ["nvs"]


def test_a_board_is_made_ready_for_updates(server):
    answer = confirmed(server, "esp_ota_partition_setup", port="esp32", app_size="1MB", storage="spiffs")
    assert (answer["app_size"], answer["bootloader"]) == (0x100000, None)
    assert "there is no bootloader in flash" in answer["warnings"]
    assert server.call("esp_otadata_read", port="esp32")["slots"] == ["ota_0", "ota_1"]


def test_nvs_from_values_to_a_board_and_back(server):
    made = server.call(
        "esp_nvs_partition_create", data={"wifi": {"ssid": "home", "port": 80}}, output_file="nvs.bin", size="24KB"
    )
    assert (made["size"], made["namespaces"], made["encrypted"]) == (0x6000, {"wifi": 2}, False)
    server.call("esp_partition_create", layout="single_factory", output_file="table.bin")
    confirmed(server, "esp_partition_flash", partition_file="table.bin", port="c3")
    server.call("esp_flash_firmware", firmware_path="nvs.bin", address="0x9000", port="c3")
    found = server.call("esp_nvs_read", port="c3")
    assert found["entries"] == [
        {"namespace": "wifi", "key": "port", "type": "u32", "value": 80},
        {"namespace": "wifi", "key": "ssid", "type": "string", "value": "home"},
    ]
    assert "not data/nvs" in server.call("esp_nvs_read", port="c3", partition="factory")["error"]


def test_encrypted_nvs(server):
    (server.folder / "keys.bin").write_bytes(bytes(range(64)))
    made = server.call(
        "esp_nvs_partition_create", data={"a": {"b": 1}}, output_file="n.bin", size=0x6000, key_file="keys.bin"
    )
    assert (made["encrypted"], made["namespaces"]) == (True, {"a": 1})
    server.call("esp_partition_create", layout="single_factory", output_file="table.bin")
    confirmed(server, "esp_partition_flash", partition_file="table.bin", port="c3")
    server.call("esp_flash_firmware", firmware_path="n.bin", address="0x9000", port="c3")
    closed = server.call("esp_nvs_read", port="c3")
    assert (closed["encrypted"], closed["entries"]) == (True, [])
    assert server.call("esp_nvs_read", port="c3", key_file="keys.bin")["entries"][0]["value"] == 1


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"data": {"a": {"k": {"type": "u8", "value": 256}}}}, "value of 'k' is invalid"),
        ({"data": "../values.csv"}, "outside the folders"),
        ({"data": {"a": {}}, "size": 100}, "invalid size of an NVS partition"),
        ({"data": {"a": {}}, "output_file": "boards.toml"}, "may not be written"),
        ({"data": {"a": {}}, "key_file": "boards.toml", "size": "1"}, "invalid size of an NVS partition"),
    ],
)
def test_invalid_nvs_values(server, arguments, error):
    assert error in server.call("esp_nvs_partition_create", **{"output_file": "x.bin"} | arguments)["error"]
