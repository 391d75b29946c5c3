"""Tools for diagnosis: what they answer, and what they refuse."""

import shutil
from pathlib import Path

import pytest

LOG = Path(__file__).parents[1] / "link" / "data" / "coredump_uart_esp32.log"


def test_memory(server):
    answer = server.call("esp_memory_dump", port="c3", address="0x3fc90000", size=32, output_file="ram.bin")
    assert (answer["success"], answer["size"], answer["areas"]) == (True, 32, ["DRAM"])
    assert answer["hexdump"].startswith("3fc90000  00 00 00 00")
    assert (server.folder / "ram.bin").stat().st_size == 32
    for change, error in [
        ({"address": 0}, "nothing is mapped at 0x0"),
        ({"address": "0x42000000"}, "is in IROM"),
        ({"address": "there"}, "invalid address"),
        ({"size": 0}, "cannot read 0 bytes"),
        ({"output_file": "ram.bin"}, "exists already"),
        ({"output_file": "../ram.bin"}, "outside the folders"),
        ({"port": "nobody"}, "nobody"),
    ]:
        answer = server.call("esp_memory_dump", **{"port": "c3", "address": "0x3fc90000", "size": 16} | change)
        assert error in answer["error"]


def test_registers(server):
    answer = server.call("esp_register_dump", port="esp32", module="RTC_CNTL")
    names = {one["name"]: one for one in answer["registers"]}
    assert names["RTC_CNTL_BROWN_OUT"]["address_hex"] == "0x3ff480d4"
    assert "RTC_CNTL_BROWN_OUT_ENA" in names["RTC_CNTL_BROWN_OUT"]["fields"]
    answer = server.call("esp_register_dump", port="esp32", module="NONE")
    assert (answer["success"], "no register begins with 'NONE'" in answer["error"]) == (False, True)
    assert answer["hint"]


def test_a_core_dump_in_a_file_needs_no_board(server, firmware_folder):
    shutil.copy(LOG, server.folder / "console.log")
    shutil.copy(firmware_folder / "coredump_uart_esp32" / "hello_world.elf", server.folder / "app.elf")
    answer = server.call("esp_core_dump_analyze", dump_file="console.log", elf_file="app.elf")
    assert answer["reason"] == "StoreProhibited at address 0x00000000"
    task = answer["crashed_task"]
    assert (task["name"], task["backtrace"][0]["function"], task["backtrace"][0]["line"]) == ("main", "app_main", 17)
    assert answer["tasks"][0] == task
    assert server.held() == []


def test_a_core_dump_in_a_log(server):
    answer = server.call("esp_core_dump_analyze", log=LOG.read_text(errors="replace"))
    assert answer["crashed_task"]["backtrace"][0]["pc"] == 0x400D5260
    assert "SHA-256 begins with ab81a733d" in answer["note"]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"dump_file": "none.bin"}, "none.bin cannot be read"),
        ({"dump_file": "boards.toml"}, "not a core dump"),
        ({"dump_file": "../x"}, "outside the folders"),
        ({"log": "Hello world!"}, "the log does not contain a core dump"),
        ({"log": "x", "dump_file": "y"}, "exactly one source"),
        ({"port": "c3"}, "no partition table"),
        ({}, "board"),
    ],
)
def test_dumps_that_cannot_be_analyzed(server, arguments, error):
    answer = server.call("esp_core_dump_analyze", **arguments)
    assert not answer["success"]
    assert error in answer["error"]
    assert answer["hint"]


def test_the_profile_of_a_boot(server, build_of):
    shutil.copytree(build_of("esp32c3"), server.folder / "build")
    assert server.call("esp_flash_firmware", port="c3", firmware_path="build")["success"]
    answer = server.call("esp_performance_profile", port="c3", duration=0.4)
    assert answer["boots"][0]["phases"][0]["name"] == "ROM"
    assert answer["resets"] == 0
    assert answer["link"]["read_bytes_per_second"] > 0
    assert "invalid duration" in server.call("esp_performance_profile", port="c3", duration=0)["error"]


def test_power_with_and_without_a_meter(serve, tmp_path):
    rack = tmp_path / "metered.toml"
    meter = '{ driver = "sim", options = { levels_ma = [20] } }'
    rack.write_text(
        f'[boards.with]\nbackend = "sim"\nchip = "esp32c3"\npower_meter = {meter}\n'
        '[boards.without]\nbackend = "sim"\nchip = "esp32"\n'
    )
    server = serve(rack=rack)
    answer = server.call("esp_power_analysis", port="with", duration=0.1)
    assert answer["measurement"]["mean"] == pytest.approx(0.02)
    answer = server.call("esp_power_analysis", port="without")
    assert (answer["success"], answer["measurement"]) == (True, None)
    assert "has no power meter" in answer["not_measured"]
    assert answer["supply"]["brown_out"]["register"] == "RTC_CNTL_BROWN_OUT"


def test_the_radio(server, firmware_folder):
    assert "no partition table" in server.call("esp_rf_calibration_check", port="c3")["error"]
    shutil.copytree(firmware_folder / "hello_world_esp32c3", server.folder / "build")
    assert server.call("esp_flash_firmware", port="c3", firmware_path="build")["success"]
    answer = server.call("esp_rf_calibration_check", port="c3")
    assert (answer["phy_init"]["state"], answer["stored"]["state"], answer["usable"]) == ("blank", "absent", False)
    assert len(answer["findings"]) == 3


def test_the_temperature(server):
    for port, error in [("esp32", "removed from the data sheet"), ("c3", "returned no value")]:
        answer = server.call("esp_thermal_status", port=port)
        assert (answer["success"], error in answer["error"], bool(answer["hint"])) == (False, True, True)


def test_the_report(server):
    answer = server.call("esp_diagnostic_report", port="c3", include_memory=True, output_file="r.html", duration=0.2)
    assert answer["success"]
    assert {"performance", "identity", "flash", "registers", "memory"} <= answer["sections"].keys()
    assert "returned no value" in answer["sections"]["thermal"]["problem"]
    assert answer["notices"][0]["severity"] == "high"
    assert (server.folder / "r.html").read_text().startswith("<!DOCTYPE html>")
    assert server.read("esp://diagnostics")["boards"][0]["esp_diagnostic_report"]["chip_type"] == "esp32c3"
    answer = server.call("esp_diagnostic_report", port="c3", output_file="r.html")
    assert "exists already" in answer["error"]


def test_all_of_them_only_read(server):
    tools = server.list_tools()
    for name in ("memory_dump", "register_dump", "core_dump_analyze", "performance_profile", "power_analysis",
                 "rf_calibration_check", "thermal_status", "diagnostic_report"):  # fmt: skip
        writes_a_file = "output_file" in tools[f"esp_{name}"].input_schema["properties"]
        assert tools[f"esp_{name}"].annotations.read_only_hint is not writes_a_file
        assert not tools[f"esp_{name}"].annotations.destructive_hint
        assert tools[f"esp_{name}"].description
    answer = server.call("esp_register_dump", port="guarded", module="GPIO")
    assert answer["success"]
