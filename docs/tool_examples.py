"""Calls of all tools, in an order in which each finds what it needs. docs/tools.py and the tests make them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anyio.from_thread import start_blocking_portal
from fastmcp import Client
from fastmcp.client.transports import StdioTransport

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "tests" / "firmware" / "build" / "esp32c3"
STAND_IN = ROOT / "tests" / "idf"

RACK = """\
[boards.c3]
backend = "sim"
chip = "esp32c3"
flash_size = "4MB"
mac = "7C:DF:A1:00:00:01"

[boards.locked]
backend = "sim"
chip = "esp32c3"
flash_size = "4MB"
mac = "7C:DF:A1:00:00:02"

[boards.shared]
backend = "sim"
chip = "esp32c3"
"""


@dataclass(frozen=True)
class Example:
    """A call, and the keys that its answer must have.

    Attributes:
        arguments: a text such as ``$esp_sim_start.instance_id`` is replaced by that key of the tool's last answer.
        keys: keys that must be in the answer, besides `success`.
        qemu: whether it requires QEMU.
        refused: part of the error, if a simulated chip cannot do it.
    """

    tool: str
    arguments: Mapping[str, Any]
    keys: tuple[str, ...]
    qemu: bool = False
    refused: str | None = None


def _call(tool: str, keys: str, qemu: bool = False, refused: str | None = None, **arguments: Any) -> Example:
    return Example(tool, arguments, tuple(keys.split()), qemu, refused)


# The first example of a tool is the one that docs/tools.md shows.
EXAMPLES = (
    # server
    _call("esp_server_info", "version esptool rack boards allow roots idle_seconds"),
    _call("esp_health_check", "status components", detailed=True),
    _call("esp_list_tools", "components count", component="server"),
    _call("esp_lease", "board held seconds", board="c3", minutes=5),
    _call("esp_rack_status", "rack boards"),
    _call("esp_release", "board held", board="c3"),
    # chip control
    _call("esp_scan_ports", "detected_devices available_ports qemu_devices sim_devices scan_results"),
    _call(
        "esp_detect_chip",
        "chip_type chip_revision mac_address features crystal_frequency flash_size connection_time_seconds usb_mode",
        port="c3",
        detailed=True,
    ),
    _call("esp_get_chip_info", "chip_type efuse_block_version package usb_mode secure_download_mode", port="c3"),
    _call("esp_connect_advanced", "baud attempt strategy stub_loaded", port="c3", baud=460800),
    _call("esp_test_connection", "speeds highest_stable errors", port="c3", rounds=2, highest_baud=230400),
    _call("esp_reset_chip", "reset_mode mode reason", port="c3", reset_mode="hard-reset"),
    # partitions and NVS: files
    _call("esp_partition_create", "partitions csv md5 free", layout="two_ota", output_file="table.bin"),
    _call(
        "esp_partition_create_ota",
        "partitions csv md5 free",
        flash_size="2MB",
        app_size="512KB",
        storage="littlefs",
        output_file="ota.csv",
    ),
    _call(
        "esp_partition_custom",
        "partitions csv md5 free",
        config={
            "flash_size": "4MB",
            "partitions": [
                {"name": "nvs", "type": "data", "subtype": "nvs", "size": "24KB"},
                {"name": "app", "type": "app", "subtype": "factory", "size": "1MB"},
            ],
        },
    ),
    _call(
        "esp_nvs_partition_create",
        "output_file size encrypted namespaces",
        data={"wifi": {"ssid": "bench", "channel": 6}},
        output_file="nvs.bin",
        size="16KB",
    ),
    # flash
    _call(
        "esp_flash_firmware", "bytes_written bytes_skipped verified elapsed_seconds", port="c3", firmware_path="build"
    ),
    _call("esp_flash_verify", "matches regions", port="c3", firmware_path="build"),
    _call("esp_verify_flash", "matches regions", port="c3", firmware_path="build"),
    _call("esp_flash_read", "address size data", port="c3", address="0x10000", size=32),
    _call("esp_flash_status", "flash_id registers block_protection voltage", port="c3"),
    _call("esp_flash_sfdp_read", "size erase_types fast_reads quad_enable", port="c3"),
    _call("esp_flash_size_detect", "size agree", port="c3"),
    _call("esp_flash_analyze", "used_sectors erased_sectors entropy images map", port="c3"),
    _call("esp_flash_optimize", "rates best_baudrate header changes applied", port="c3", baudrates=[115200, 460800]),
    _call("esp_run_firmware", "output", port="c3", until="app_main"),
    _call("esp_serial_monitor", "lines matched crash", port="c3", reset=True, until="app_main"),
    _call("esp_recover_chip", "steps", port="c3", wait_seconds=1),
    _call("esp_partition_read", "partitions", port="c3"),
    _call("esp_partition_analyze", "table_offset partitions gaps", port="c3"),
    _call("esp_flash_backup", "output_dir flash_size sha256 regions", port="c3", output_dir="backup"),
    _call("esp_smart_backup", "output_dir flash_size sha256 regions", port="c3", output_dir="smart"),
    _call("esp_flash_erase", "address size", port="c3", region="all"),
    _call("esp_flash_restore", "verified bytes_written regions", port="c3", backup_dir="backup"),
    _call("esp_smart_restore", "verified regions", port="c3", backup_dir="smart", regions=["partition-table"]),
    # updates
    _call(
        "esp_ota_partition_setup",
        "table app_size bootloader app warnings",
        port="c3",
        app_size="448KB",  # the build's bootloader is for a flash of 2 MB, and refuses tables beyond that
        discard_data=True,
    ),
    _call("esp_ota_flash_prepare", "running next_slot warnings", port="c3"),
    _call("esp_ota_package_create", "path manifest", firmware_file="build", version="1.0.1", output_file="app.espota"),
    _call("esp_ota_deploy", "slot started", port="c3", package="app.espota"),
    _call("esp_ota_deploy", "slot started", port="c3", package="app.espota"),
    _call("esp_otadata_read", "partition entries active slots", port="c3"),
    _call("esp_ota_rollback", "slot started", port="c3"),
    _call("esp_flash_multi", "bytes_written verified", port="c3", files=[{"address": "0x9000", "path": "nvs.bin"}]),
    _call("esp_nvs_read", "entries namespaces", port="c3"),
    _call(
        "esp_partition_flash",
        "table_offset state orphaned partitions",
        port="c3",
        partition_file="ota.csv",
        discard_data=True,
    ),
    # firmware
    _call(
        "esp_elf_to_ram_binary",
        "path entry segments",
        elf_file="app.elf",
        chip_type="esp32c3",
        output_file="program.bin",
    ),
    _call("esp_load_ram", "image bytes_loaded output", port="c3", firmware="program.bin", wait_seconds=0.5),
    _call(
        "esp_elf_to_binary",
        "output_file chip_type size sha256",
        elf_file="app.elf",
        chip_type="esp32c3",
        output_file="app.bin",
    ),
    _call(
        "esp_app_prepare",
        "output_file image sizes warnings",
        elf_file="build/pytest_esp_test.elf",
        chip_type="esp32c3",
        output_file="app2.bin",
        top=3,
    ),
    _call("esp_binary_merge", "output_file format size sha256 parts", files="build", output_file="merged.bin"),
    _call("esp_firmware_analyze", "problems", binary_file="build/pytest_esp_test.bin", chip_type="esp32c3"),
    _call(
        "esp_bootloader_build",
        "offset done",
        chip_type="esp32c3",
        config={"image": "build/bootloader/bootloader.bin", "flash_size": "4MB"},
    ),
    _call(
        "esp_binary_optimize",
        "output_dir parts blank size_before size compressed_size seconds_saved",
        binary_file="merged.bin",
        output_dir="parts",
    ),
    _call("esp_size_analysis", "sections memories symbols archives", elf_file="app.elf", top=3),
    # security
    _call("esp_security_audit", "chip_id security_info efuse_summary security_fuses posture findings", port="c3"),
    _call("esp_security_info", "flags flash_crypt_count key_purposes chip_id", port="c3"),
    _call("esp_mac_address_read", "mac_address", port="c3"),
    _call("esp_efuse_read", "efuse_name value meaning", port="c3", efuse_name="MAC"),
    _call(
        "esp_efuse_burn",
        "value_before value_after burnt_bits verified warning",
        port="c3",
        efuse_name="CUSTOM_MAC",
        value="7c:df:a1:00:00:09",
    ),
    _call("esp_enable_flash_encryption", "flash_encryption_enabled message steps", port="c3"),
    _call(
        "esp_flash_encrypt",
        "output_file address size",
        key_file="encryption.key",
        input_file="build/pytest_esp_test.bin",
        output_file="encrypted.bin",
        address="0x10000",
        chip_type="esp32c3",
    ),
    _call("esp_secure_boot_enable", "burns refused", port="locked", key_file="signing.pem", firmware_path="signed"),
    _call("esp_encryption_enable", "burns refused", port="locked", key_file="encryption.key", firmware_path="build"),
    _call(
        "esp_encryption_enable",
        "boot_output",
        port="locked",
        key_file="encryption.key",
        firmware_path="build",
        apply=True,
    ),
    _call("esp_flash_encryption_configure", "mode burnt", port="locked", mode="release"),
    # simulated chips and QEMU
    _call(
        "esp_sim_start",
        "instance_id chip_type tcp_port socket_uri rfc2217_uri flash_image boot_mode pid hint",
        chip_type="esp32c6",
        boot_mode="download",
    ),
    _call("esp_sim_list", "instances count"),
    _call("esp_sim_status", "instance running clients", instance_id="$esp_sim_start.instance_id"),
    _call("esp_sim_fault", "lose direction", instance_id="$esp_sim_start.instance_id", lose=0.001),
    _call("esp_sim_stop", "stopped", instance_id="$esp_sim_start.instance_id"),
    _call(
        "esp_qemu_start",
        "instance_id chip_type tcp_port socket_uri rfc2217_uri flash_image boot_mode pid hint",
        qemu=True,
        chip_type="esp32c3",
        boot_mode="download",
    ),
    _call("esp_qemu_list", "instances count"),
    _call("esp_qemu_status", "instance running", qemu=True, instance_id="$esp_qemu_start.instance_id"),
    _call("esp_load_test_firmware", "passed", qemu=True, port="$esp_qemu_start.instance_id"),
    _call(
        "esp_qemu_flash",
        "bytes_written bytes_skipped",
        qemu=True,
        instance_id="$esp_qemu_start.instance_id",
        firmware_path="build",
    ),
    _call("esp_qemu_stop", "stopped", instance_id=None),
    # ESP-IDF
    _call("esp_idf_env_info", "idf"),
    _call("esp_idf_tools_install", "installed", targets=["esp32c3"]),
    _call("esp_idf_tools_list", "tools", target="esp32c3"),
    _call("esp_idf_tools_check", "ok", target="esp32c3"),
    _call("esp_idf_build_project", "target name version", project_path="blink", target="esp32c3"),
    _call("esp_idf_flash_project", "bytes_written verified", project_path="blink", port="c3"),
    _call("esp_idf_monitor", "lines matched", project_path="blink", port="c3", until="app_main"),
    # diagnostics
    _call("esp_memory_dump", "address size areas hexdump", port="c3", address="0x3fc90000", size=32),
    _call("esp_register_dump", "chip_type reset_reason registers source", port="c3", module="RTC_CNTL"),
    _call("esp_core_dump_analyze", "reason crashed_task tasks note", dump_file="console.log"),
    _call(
        "esp_performance_profile", "boots resets crashes log heap_lines link", port="c3", duration=2, until="app_main"
    ),
    _call("esp_power_analysis", "measurement not_measured supply", port="c3", duration=0.5),
    _call("esp_rf_calibration_check", "mac_address phy_init stored efuses usable findings", port="c3"),
    _call("esp_thermal_status", "hint", refused="the temperature sensor returned no value", port="c3"),
    _call(
        "esp_diagnostic_report",
        "notices sections output_file",
        port="c3",
        duration=0.5,
        output_file="report.html",
    ),
    # production
    _call(
        "esp_factory_program",
        "mac_address serial_number nvs_written bytes_written verified booted",
        port="shared",
        config={"firmware": "build", "serial_number": "SN-0001", "boot": {"expect": "app_main"}},
    ),
    _call("esp_batch_program", "passed failed boards record_file csv_file", ports=["c3", "shared"], firmware="build"),
    _call("esp_production_test", "passed counts tests summary", port="shared", test_suite="identity"),
    _call("esp_quality_control", "passed checks serial_number", port="shared", boot_wait_seconds=1, tests=False),
    _call("esp_calibration_data_write", "namespace nvs efuse", port="shared", data={"adc_offset": 3}),
    _call(
        "esp_manufacturing_data_write",
        "namespace nvs efuse",
        port="shared",
        data={"serial_number": "SN-0001", "batch": "B7"},
    ),
    _call(
        "esp_provision_device",
        "ssid nvs",
        port="shared",
        config={"wifi": {"ssid": "bench", "password": "not-for-logs"}},
    ),
    _call("esp_factory_reset", "erased kept", port="shared"),
    # catalogue
    _call("esp_product_search", "products", query="wifi", kind="module", chip_type="esp32c6", min_flash="8MB"),
    _call("esp_product_info", "product not_known as_of", product="ESP32-C3-MINI-1"),
    _call("esp_chip_compare", "names rows differences", chips=["esp32c3", "esp32c6"]),
    _call("esp_product_recommend", "products rejected", thread_or_zigbee=True, min_flash="8MB", count=2),
    _call("esp_product_availability", "status parts as_of source", product="ESP32-C3-MINI-1"),
)


class Bench:
    """A server as a client starts it, over standard input and output, with boards and files in *folder*."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self.folder = folder / "project"
        self.folder.mkdir()
        self.answers: dict[str, dict[str, Any]] = {}
        environment = self._environment(folder / "home", folder)
        self._furnish(folder / "home", environment)
        transport = StdioTransport(
            sys.executable,
            [
                *("-m", "mcp_bridge", "--roots", str(self.folder), "--allow", "read,write,erase,burn"),
                *("--tools", "all", "--output-schemas"),
            ],
            env=environment,
            cwd=str(self.folder),
        )
        self._portal = stack.enter_context(start_blocking_portal())
        self._client = stack.enter_context(self._portal.wrap_async_context_manager(Client(transport)))
        self.tools = {tool.name: tool for tool in self._portal.call(self._client.list_tools)}

    def _environment(self, home: Path, folder: Path) -> dict[str, str]:
        from pytest_esp.qemu.find import VARIABLES, find_all

        unset = ("IDF_PATH", "ESP_IDF_PATH", "IDF_TOOLS_PATH", "IDF_PYTHON_ENV_PATH", "PYTEST_ESP_RACK")
        environment = {key: value for key, value in os.environ.items() if key not in unset}
        for found in find_all():  # as the home folder is another one
            if found.qemu is not None:
                environment[VARIABLES[found.architecture]] = str(found.path)
        return environment | {
            "HOME": str(home),
            "PYTEST_ESP_LOCK_DIR": str(folder / "locks"),
            "PYTEST_ESP_STATE_DIR": str(folder / "state"),
            "FAKE_IDF_LOG": str(home / "calls"),
            "FAKE_IDF_BUILDS": str(BUILD.parent),
            "FAKE_IDF_SLOW": "0",
        }

    def _furnish(self, home: Path, environment: Mapping[str, str]) -> None:
        (self.folder / "boards.toml").write_text(RACK)
        (self.folder / "encryption.key").write_bytes(bytes(range(32)))
        shutil.copy(ROOT / "tests" / "link" / "data" / "coredump_uart_esp32.log", self.folder / "console.log")
        shutil.copytree(BUILD, self.folder / "build")
        shutil.copytree(BUILD, self.folder / "signed")
        shutil.copy(BUILD / "pytest_esp_test.elf", self.folder / "app.elf")
        self._espsecure("generate-signing-key", "--version", "2", "--scheme", "rsa3072", "signing.pem")
        for name in ("bootloader/bootloader.bin", "pytest_esp_test.bin"):
            self._espsecure(
                "sign-data", "--version", "2", "--keyfile", "signing.pem", "--output", f"signed/{name}", f"build/{name}"
            )
        # ESP-IDF's place is taken by the stand-in of the tests, which builds nothing.
        shutil.copytree(STAND_IN / "esp-idf", home / "esp" / "esp-idf")
        shutil.copytree(STAND_IN / "project", self.folder / "blink")
        installer = [sys.executable, str(home / "esp" / "esp-idf" / "tools" / "idf_tools.py"), "install-python-env"]
        tools = dict(environment) | {"IDF_TOOLS_PATH": str(home / ".espressif")}
        subprocess.run(installer, check=True, env=tools, capture_output=True)

    def _espsecure(self, *arguments: str) -> None:
        subprocess.run(
            [sys.executable, "-m", "espsecure", *arguments], check=True, cwd=self.folder, capture_output=True
        )

    def call(self, tool: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Call a tool; where it wants to be confirmed, confirm it."""
        given = dict(arguments)
        answer = self._once(tool, given)
        if "confirm" in answer:
            answer = self._once(tool, given | {"confirm": answer["confirm"]})
        self.answers[tool] = answer
        return answer

    def _once(self, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
        result = self._portal.call(lambda: self._client.call_tool(tool, arguments, raise_on_error=False))
        assert result.structured_content is not None, (tool, result.content)
        return result.structured_content

    def run(self, example: Example) -> dict[str, Any]:
        """Call an example."""
        return self.call(example.tool, {name: self._filled(value) for name, value in example.arguments.items()})

    def _filled(self, value: Any) -> Any:
        if isinstance(value, str) and value.startswith("$"):
            tool, _, key = value[1:].partition(".")
            return self.answers[tool][key]
        return value


def have_qemu() -> bool:
    """Return whether the examples that need QEMU can be run."""
    from pytest_esp.qemu.find import why_missing

    return why_missing("esp32c3") is None


def run_all(bench: Bench, *, qemu: bool) -> Iterator[tuple[Example, dict[str, Any] | None]]:
    """Yield every example with its answer; None for those that need QEMU, where there is none."""
    for example in EXAMPLES:
        yield example, (None if example.qemu and not qemu else bench.run(example))
