"""Arguments are completed without touching a board."""


def test_boards(server):
    assert server.complete("port", "")[:3] == ["c3", "esp32", "guarded"]
    assert server.complete("port", "C") == ["c3"]
    assert server.complete("ports", "c3,es", prompt="esp_batch_production") == ["c3,esp32"]
    started = server.call("esp_sim_start", chip_type="esp32c6")["instance_id"]
    assert server.complete("board", "sim-") == [started]
    assert server.held() == []


def test_partitions_that_were_read(server):
    assert server.complete("partition", "", port="c3") == []
    server.call("esp_partition_create", layout="two_ota", output_file="table.bin")
    server.call("esp_flash_firmware", port="c3", firmware_path="table.bin", address="0x8000")
    server.call("esp_partition_read", port="c3")
    assert server.complete("partition", "ota", port="c3") == ["otadata", "ota_0", "ota_1"]
    assert server.call("esp_partition_analyze", port="c3")["success"]
    assert server.complete("region", "nv") == ["nvs"]


def test_efuses_suites_and_chips(server):
    assert server.complete("efuse_name", "dis_pad", port="c3") == ["DIS_PAD_JTAG"]
    assert "FLASH_CRYPT_CNT" in server.complete("efuse_name", "FLASH", port="esp32")
    assert server.complete("efuse_name", "", port="nobody") == []
    assert server.complete("test_suite", "flash") == ["flash_roundtrip"]
    assert server.complete("target", "esp32c6", prompt="esp_idf_setup_target") == ["esp32c6", "esp32c61"]


def test_what_cannot_be_completed(server):
    assert server.complete("output_dir", "b") == []
