"""Tools for boards and chips, compared with unmodified esptool; and the list of tools that clients may rely on."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from serial.tools import list_ports

from pytest_esp.operations.firmware import ram

FIRMWARE = Path(__file__).parents[1] / "firmware" / "build"
OPERATIONS_TESTS = Path(__file__).parents[1] / "operations"

# The tools that a client may rely on, by component.
TOOLS = {
    "chip_control": """esp_scan_ports esp_detect_chip esp_get_chip_info esp_connect_advanced esp_reset_chip esp_load_ram
        esp_run_firmware esp_test_connection esp_recover_chip esp_serial_monitor esp_elf_to_ram_binary
        esp_load_test_firmware""",
    "flash_manager": """esp_flash_firmware esp_flash_multi esp_flash_read esp_flash_erase esp_flash_verify
        esp_verify_flash esp_flash_analyze esp_flash_optimize esp_flash_backup esp_flash_restore esp_smart_backup
        esp_smart_restore esp_flash_status esp_flash_sfdp_read esp_flash_size_detect""",
    "partition_manager": """esp_partition_create esp_partition_create_ota esp_partition_custom esp_partition_flash
        esp_partition_read esp_partition_analyze esp_ota_partition_setup esp_nvs_partition_create esp_nvs_read""",
    "security_manager": """esp_security_audit esp_security_info esp_mac_address_read esp_efuse_read esp_efuse_burn
        esp_enable_flash_encryption esp_encryption_enable esp_secure_boot_enable esp_flash_encryption_configure
        esp_flash_encrypt""",
    "qemu_manager": """esp_qemu_start esp_qemu_stop esp_qemu_list esp_qemu_status esp_qemu_flash esp_sim_start
        esp_sim_stop esp_sim_list esp_sim_status esp_sim_fault""",
    "server": "esp_health_check esp_list_tools esp_server_info esp_rack_status esp_lease esp_release",
}


def test_no_tool_is_missing(server):
    listed = server.call("esp_list_tools")["components"]
    for component, names in TOOLS.items():
        assert set(names.split()) <= listed[component].keys(), component


def test_answers_fit_their_schemas(server):
    shutil.copy(FIRMWARE / "esp32c3" / "pytest_esp_test.elf", server.folder / "app.elf")
    calls = [
        ("esp_scan_ports", {"detailed": True}),
        ("esp_detect_chip", {"port": "c3", "detailed": True}),
        ("esp_get_chip_info", {"port": "c3"}),
        ("esp_connect_advanced", {"port": "c3"}),
        ("esp_test_connection", {"port": "c3", "rounds": 1}),
        ("esp_reset_chip", {"port": "c3"}),
        ("esp_run_firmware", {"port": "c3", "wait_seconds": 0.1}),
        ("esp_elf_to_ram_binary", {"elf_file": "app.elf", "chip_type": "esp32c3"}),
        ("esp_load_ram", {"port": "c3", "firmware": "app.ram.bin", "wait_seconds": 0.1}),
        ("esp_recover_chip", {"port": "c3", "wait_seconds": 0.1}),
    ]
    for name, arguments in calls:
        server.fits(name, arguments)
    server.fits("esp_load_test_firmware", {"port": "c3"}, success=False)  # a simulated chip runs no machine code


REFUSED = [
    ("esp_connect_advanced", {"port": "c3", "baud": -1}, "invalid baud rate -1"),
    ("esp_connect_advanced", {"port": "c3", "retries": 0}, "retries must be at least 1"),
    ("esp_connect_advanced", {"port": "c4"}, "no board 'c4'"),
    ("esp_test_connection", {"port": "c3", "rounds": 0}, "rounds must be 1 to 1000, not 0"),
    ("esp_run_firmware", {"port": "c3", "wait_seconds": 1e9}, "invalid duration"),
    ("esp_serial_monitor", {"port": "c3", "duration_seconds": 0}, "invalid duration"),
    ("esp_serial_monitor", {"port": "c3", "elf_file": "/etc/passwd"}, "outside"),
    ("esp_reset_chip", {"port": "c3", "reset_mode": "soft-reset"}, "boot strap was latched"),
    ("esp_load_ram", {"port": "c3", "firmware": "../boards.toml"}, "outside"),
    ("esp_load_ram", {"port": "c3", "firmware": "none.bin"}, "cannot be read"),
    ("esp_load_ram", {"port": "c3", "firmware": "boards.toml"}, "is not an image"),
    ("esp_load_ram", {"port": "guarded", "firmware": "boards.toml"}, "does not allow 'write'"),
    ("esp_load_test_firmware", {"port": "c3"}, "does not run machine code"),
    ("esp_load_test_firmware", {"port": "c3", "chip": "esp32"}, "this board is an esp32c3, not an esp32"),
    ("esp_load_test_firmware", {"port": "c3", "chip": "esp33"}, "no self-test for the esp33"),
    ("esp_recover_chip", {"port": "guarded"}, "does not allow 'write'"),
    ("esp_recover_chip", {"port": "guarded", "erase_app": True}, "does not allow 'erase'"),
    ("esp_elf_to_ram_binary", {"elf_file": "boards.toml", "chip_type": "esp32"}, "is not an ELF file"),
    ("esp_elf_to_ram_binary", {"elf_file": "boards.toml", "chip_type": "esp33"}, "no chip 'esp33'"),
]


def test_refused_calls_give_the_reason(server):
    answers = [(server.call(name, **arguments), error) for name, arguments, error in REFUSED]
    assert [answer for answer, error in answers if answer["success"] or error not in answer["error"]] == []
    assert "Traceback" not in json.dumps([answer for answer, _ in answers])


# -- which there are


def test_a_scan_lists_the_rack_virtual_boards_and_ports(server):
    first = server.call("esp_scan_ports")
    assert [row["port"] for row in first["detected_devices"]] == ["c3", "esp32", "guarded"]
    assert [row["port"] for row in first["sim_devices"]] == ["c3", "esp32", "guarded"]
    assert {row["state"] for row in first["sim_devices"]} == {"free"}
    assert first["qemu_devices"] == []
    assert [row["port"] for row in first["available_ports"]] == [item.device for item in sorted(list_ports.comports())]

    started = server.call("esp_sim_start", chip_type="esp32s3")
    server.call("esp_detect_chip", port="c3")
    second = server.call("esp_scan_ports", detailed=True)
    rows = {row["port"]: row for row in second["scan_results"]}
    instance = rows[started["instance_id"]]
    assert (instance["kind"], instance["chip"], instance["state"]) == ("instance", "esp32s3", "held")
    assert instance["socket_uri"] == started["socket_uri"]
    assert instance in second["sim_devices"]
    assert (rows["c3"]["state"], rows["esp32"]["state"]) == ("held", "free")
    assert "MCP bridge" in rows["c3"]["holder"]
    assert rows["guarded"]["allow"] == ["read"]
    server.call("esp_sim_stop")
    assert started["instance_id"] not in {row["port"] for row in server.call("esp_scan_ports")["scan_results"]}


@pytest.mark.qemu
def test_a_scan_has_running_machines(server, need_qemu):
    need_qemu("esp32c3")
    started = server.call("esp_qemu_start", chip_type="esp32c3")
    (row,) = server.call("esp_scan_ports")["qemu_devices"]
    assert (row["port"], row["pid"], row["rfc2217_uri"]) == (
        started["instance_id"],
        started["pid"],
        started["rfc2217_uri"],
    )


def test_a_scan_without_the_component_that_starts_machines(serve):
    answer = serve(components=("chip_control",)).call("esp_scan_ports")
    assert len(answer["scan_results"]) == 3 + len(list_ports.comports())


# -- who answers


def test_detection_and_info_agree_with_esptool(server):
    started = server.call("esp_sim_start", chip_type="esp32c6", boot_mode="download")
    name = started["instance_id"]
    detected = server.call("esp_detect_chip", port=name, detailed=True)
    told = server.call("esp_get_chip_info", port=name)
    server.call("esp_reset_chip", port=name, to="bootloader")
    command = [sys.executable, "-m", "esptool", "--port", started["socket_uri"], "--no-stub", "flash-id"]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    lines = dict(re.findall(r"^([\w ]+): +(.*?) *$", said, re.MULTILINE))
    for answer in (detected, told):
        assert answer["chip_type"] == "esp32c6"
        assert answer["mac_address"] == lines["BASE MAC"]
        assert answer["features"] == lines["Features"].split(", ")
        assert answer["crystal_frequency"] == lines["Crystal frequency"]
        assert answer["flash_size"] == lines["Detected flash size"]
        assert f"(revision {answer['chip_revision']})" in lines["Chip type"]
    assert told["description"] == detected["description"] == lines["Chip type"]
    assert told["flash_id"] & 0xFF == int(lines["Manufacturer"], 16)
    assert (told["secure_boot"], told["secure_download_mode"], told["security_flags"]) == ("disabled", False, [])


def test_info_in_secure_download_mode(server):
    name = server.call("esp_sim_start", chip_type="esp32s3", secure_download=True)["instance_id"]
    told = server.call("esp_get_chip_info", port=name)
    assert told["secure_download_mode"]
    assert told["mac_address"] is None
    assert "SECURE_DOWNLOAD_ENABLE" in told["security_flags"]


# -- connection and resets


@pytest.mark.in_process
def test_a_connection_reports_its_settings_and_stays_open(server):
    answer = server.call("esp_connect_advanced", port="c3", baud=460800)
    assert {key: answer[key] for key in ("chip_type", "baud", "attempt", "strategy", "stub_loaded", "failures")} == {
        "chip_type": "esp32c3",
        "baud": 460800,
        "attempt": 1,
        "strategy": "board at 115200 baud",
        "stub_loaded": True,
        "failures": [],
    }
    measured = server.call("esp_test_connection", port="c3", rounds=2)
    assert (measured["highest_stable"], measured["errors"], measured["stub_loaded"]) == (921600, 0, True)
    assert server.call("esp_connect_advanced", port="c3", use_stub=False)["stub_loaded"] is False


def test_a_wire_that_is_cut(server):
    name = server.call("esp_sim_start", chip_type="esp32c3")["instance_id"]
    server.call("esp_sim_fault", instance_id=name, direction="to_device", silent_after=0)
    answer = server.call("esp_connect_advanced", port=name, retries=2)
    assert len(answer["attempts"]) == 2
    lost = server.call("esp_recover_chip", port=name)
    assert [step["name"] for step in lost["steps"]] == ["reset", "power cycle", "boot strap", "lower baud rate"]
    server.call("esp_sim_fault", instance_id=name, direction="to_device")
    assert server.call("esp_recover_chip", port=name, wait_seconds=0.1)["state"] == "not bootable"


def test_resets_say_what_the_chip_did(server):
    hard = server.call("esp_reset_chip", port="c3")
    assert (hard["reset_mode"], hard["mode"], hard["reason"]) == ("hard-reset", "app", "POWERON")
    bitten = server.call("esp_reset_chip", port="c3", reset_mode="watchdog-reset")
    assert (bitten["mode"], bitten["reason"]) == ("app", "RTCWDT_RTC_RST")
    assert server.call("esp_reset_chip", port="c3", to="bootloader")["mode"] == "bootloader"


# -- programs


def test_an_elf_file_becomes_a_program_and_is_loaded(server):
    shutil.copy(FIRMWARE / "esp32c3" / "pytest_esp_test.elf", server.folder / "app.elf")
    made = server.call("esp_elf_to_ram_binary", elf_file="app.elf", chip_type="esp32c3")
    assert made["path"] == str(server.folder / "app.ram.bin")
    assert "exists" in server.call("esp_elf_to_ram_binary", elf_file="app.elf", chip_type="esp32c3")["error"]
    run = server.call("esp_load_ram", port="c3", firmware="app.ram.bin", until="not run", wait_seconds=5)
    assert run["matched"]
    assert "machine code is not run" in run["output"]  # a simulated chip
    assert run["image"]["entry"] == made["entry"]
    assert int(made["entry_hex"], 16) == made["entry"]
    assert run["bytes_loaded"] == sum(segment["size"] for segment in run["image"]["segments"])


@pytest.mark.qemu
@pytest.mark.parametrize("chip", ram.SELF_TEST_CHIPS)
def test_the_self_test_runs_on_qemu(server, need_qemu, chip):
    need_qemu(chip)
    name = server.call("esp_qemu_start", chip_type=chip, boot_mode="download")["instance_id"]
    answer = server.call("esp_load_test_firmware", port=name, chip=chip)
    assert answer["passed"]
    assert {test["name"]: test["passed"] for test in answer["tests"]} == dict.fromkeys(
        ("ram", "crc", "timer", "uart", "code"), True
    )


def test_the_self_test_on_a_simulated_chip(serve, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(OPERATIONS_TESTS))
    rack = tmp_path / "played.toml"
    rack.write_text('[boards.one]\nbackend = "sim"\nchip = "esp32c3"\napp = "selftest_app:BadRam"\n')
    answer = serve(rack=rack).call("esp_load_test_firmware")
    assert answer["success"]
    assert not answer["passed"]
    assert answer["tests"][0] == {"name": "ram", "passed": False, "detail": "0x3fc98010 holds 0x55aa33cd"}


# -- the app


@pytest.fixture
def crashing(serve, tmp_path, monkeypatch):
    """A server with one board, whose app crashes at once."""
    monkeypatch.syspath_prepend(str(OPERATIONS_TESTS))
    rack = tmp_path / "crashing.toml"
    rack.write_text('[boards.one]\nbackend = "sim"\nchip = "esp32c3"\napp = "selftest_app:CrashLoop"\n')
    server = serve(rack=rack)
    shutil.copytree(FIRMWARE / "esp32c3", server.folder / "build")
    assert server.call("esp_flash_firmware", firmware_path="build")["success"]
    return server


def test_first_output_and_a_panic_decoded(crashing):
    run = crashing.call("esp_run_firmware", wait_seconds=5)
    assert (run["state"], run["project"], run["reason"]) == ("crashed", "pytest_esp_test", "POWERON")
    assert "Store access fault" in run["crash"]
    heard = crashing.call("esp_serial_monitor", duration_seconds=5, reset=True, elf_file="build/pytest_esp_test.elf")
    assert "0x42007a1e" in heard["crash"]
    assert heard["lines"][0] == [0.0, "ESP-ROM:esp32c3-api1-20210207"]
    times = [time for time, _ in heard["lines"]]
    assert times == sorted(times)


def test_a_crashing_app_is_erased_only_after_consent(crashing):
    left = crashing.call("esp_recover_chip", wait_seconds=5)
    assert (left["state"], left["steps"][-1]["outcome"]) == ("crashed", "skipped")
    asked = crashing.call("esp_recover_chip", erase_app=True, wait_seconds=5)
    assert not asked["success"]
    done = crashing.call("esp_recover_chip", erase_app=True, wait_seconds=5, confirm=asked["confirm"])
    assert (done["state"], done["steps"][-1]["detail"]) == ("erased", "factory: 0x40000 bytes at 0x10000")
    assert set(crashing.call("esp_flash_read", address=0x10000, size=64)["data"]) == {"f"}


@pytest.mark.qemu
def test_first_output_of_real_code(server, need_qemu):
    need_qemu("esp32c3")
    name = server.call("esp_qemu_start", chip_type="esp32c3")["instance_id"]
    shutil.copytree(FIRMWARE / "esp32c3", server.folder / "build")
    server.call("esp_qemu_flash", instance_id=name, firmware_path="build")
    run = server.call("esp_run_firmware", port=name, wait_seconds=20, until="ready")
    assert (run["state"], run["matched"], run["offset"]) == ("running", True, 0x10000)
    assert "pytest-esp test firmware" in run["output"]
