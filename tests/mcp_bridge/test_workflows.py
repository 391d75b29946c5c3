"""The main workflows, each done by an agent that uses only the server's tools."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_esp.operations.firmware.ram import self_test_image

BUILDS = Path(__file__).parents[1] / "firmware" / "build"
RACK = """
[boards.blank]
backend = "{backend}"
chip = "{chip}"
flash_size = "8MB"
"""


class Agent:
    """Calls tools like a client that cannot ask its user, and confirms with the token that it gets."""

    def __init__(self, server):
        self._server = server
        self.folder = server.folder

    def do(self, tool, **arguments):
        answer = self._server.call(tool, **arguments)
        if not answer["success"] and "confirm" in answer:
            answer = self._server.call(tool, **arguments, confirm=answer["confirm"])
        assert answer["success"], (tool, answer)
        return answer

    def md5(self, address, size):
        """Of the flash, as it is."""
        path = self.folder / "read.bin"
        self.do("esp_flash_read", address=address, size=size, output_file="read.bin", overwrite=True)
        return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def agent_with(serve, tmp_path):
    """An agent with one blank board, and the files that its user has given it."""

    def make(backend, chip, build=None, more=""):
        rack = tmp_path / "rack.toml"
        rack.write_text(RACK.format(backend=backend, chip=chip) + more)
        agent = Agent(serve(rack=rack))
        if build is not None:
            shutil.copytree(build, agent.folder / "build")
        return agent

    return make


@pytest.mark.parametrize("chip", ["esp32c3", "esp32"])
def test_firmware_is_tested_in_ram_without_changing_flash(agent_with, need_qemu, chip):
    need_qemu(chip)
    agent = agent_with("qemu", chip)
    (agent.folder / "program.bin").write_bytes(self_test_image(chip))
    assert agent.do("esp_detect_chip")["chip_type"] == chip
    before = agent.md5(0, "64KB")
    run = agent.do("esp_load_ram", firmware="program.bin", until="PASS", wait_seconds=20)
    assert run["matched"]
    assert "PASS" in run["output"]
    own = agent.do("esp_load_test_firmware")
    assert own["passed"]
    assert agent.md5(0, "64KB") == before == hashlib.md5(b"\xff" * 0x10000).hexdigest()
    agent.do("esp_reset_chip")
    blank = agent.do("esp_serial_monitor", reset=True, duration_seconds=20, until="invalid header: 0xffffffff")
    assert blank["matched"]


@pytest.mark.parametrize("board", ["sim-esp32", "sim-esp32c3", "qemu-esp32c3"])
def test_a_blank_board_is_prepared_for_updates_and_gets_one(agent_with, need_qemu, board):
    backend, _, chip = board.partition("-")
    if backend == "qemu":
        need_qemu(chip)
    agent = agent_with(backend, chip, BUILDS / chip)
    agent.do("esp_detect_chip")
    table = agent.do(
        "esp_partition_create_ota", flash_size="8MB", app_size="2MB", storage="littlefs", output_file="table.bin"
    )
    slots = [part for part in table["partitions"] if part["subtype"].startswith("ota_")]
    assert [slot["size"] for slot in slots] == [0x200000, 0x200000]
    loader = agent.do(
        "esp_bootloader_build",
        chip_type=chip,
        config={"image": "build/bootloader/bootloader.bin", "flash_size": "8MB"},
        output_file="bootloader.bin",
    )
    files = [
        {"address": loader["offset"], "path": "bootloader.bin"},
        {"address": table["table_offset"], "path": "table.bin"},
        {"address": slots[0]["offset"], "path": "build/pytest_esp_test.bin"},
    ]
    assert agent.do("esp_flash_firmware", files=files)["verified"]
    ready = agent.do("esp_ota_flash_prepare")
    assert (ready["running"], ready["next_slot"], ready["warnings"]) == ("ota_0", "ota_1", [])
    package = agent.do("esp_ota_package_create", firmware_file="build", version="1.0.1")["path"]
    update = agent.do("esp_ota_deploy", package=package)
    assert (update["slot"], update["started"]) == ("ota_1", True)
    assert f"offset 0x{slots[1]['offset']:x}" in boot_log(agent)
    assert agent.do("esp_ota_rollback")["slot"] == "ota_0"
    assert f"offset 0x{slots[0]['offset']:x}" in boot_log(agent)


def boot_log(agent):
    """Return the board's output at its next start."""
    return str(agent.do("esp_serial_monitor", reset=True, duration_seconds=20, until="app_init")["lines"])


@pytest.mark.in_process
def test_fifty_devices_in_production(agent_with):
    agent = agent_with("sim", "esp32c3", BUILDS / "esp32c3", more="count = 50\n")
    boards = [row["name"] for row in agent.do("esp_rack_status")["boards"] if row["state"] == "free"]
    assert len(boards) == 50
    macs = {agent.do("esp_detect_chip", port=name)["mac_address"] for name in boards}
    assert len(macs) == 50
    batch = agent.do(
        "esp_batch_program",
        ports=boards,
        firmware="build",
        serial_number="SN{index:05d}",
        devices=[{"board": name, "nvs": {"cloud": {"id": f"device of {name}"}}} for name in boards],
        config={"boot": {"wait": 30, "expect": "Calling app_main"}},
        wait_s=30,
    )
    assert (batch["passed"], batch["failed"]) == (50, 0)
    assert {device["mac_address"] for device in batch["boards"]} == macs
    lines = Path(batch["record_file"]).read_text().splitlines()
    assert len(lines) == 100  # begun, and passed
    for number, name in enumerate(boards, 1):
        agent.do("esp_manufacturing_data_write", port=name, data={"batch": "B7"})
        wanted = {"serial_number": f"SN{number:05d}", "expect": "Calling app_main", "tests": False}
        control = agent.do("esp_quality_control", port=name, **wanted)
        assert control["passed"], control
    values = {
        (entry["namespace"], entry["key"]): entry["value"]
        for entry in agent.do("esp_nvs_read", port=boards[7])["entries"]
    }
    assert values["cloud", "id"] == f"device of {boards[7]}"
    assert values["manufacturing", "serial_number"] == "SN00008"
    assert values["manufacturing", "batch"] == "B7"
    tested = agent.do("esp_production_test", port=boards[0], test_suite="identity")
    assert tested["passed"]
    assert tested["counts"]["passed"] >= 3


def espsecure(*arguments):
    subprocess.run([sys.executable, "-m", "espsecure", *map(str, arguments)], check=True, capture_output=True)


@pytest.fixture
def signed_build(tmp_path):
    """A signed build with its key beside it."""
    build = tmp_path / "signed"
    shutil.copytree(BUILDS / "esp32c3", build)
    key = build / "signing.pem"
    espsecure("generate-signing-key", "--version", 2, "--scheme", "rsa3072", key)
    for name in ("bootloader/bootloader.bin", "pytest_esp_test.bin"):
        espsecure("sign-data", "--version", 2, "--keyfile", key, "--output", build / name, BUILDS / "esp32c3" / name)
    (build / "encryption.key").write_bytes(bytes(range(32)))
    return build


@pytest.mark.in_process
def test_a_virgin_chip_is_secured(agent_with, signed_build):
    agent = agent_with("sim", "esp32c3", signed_build)
    audit = agent.do("esp_security_audit")
    assert (audit["posture"]["secure_boot"], audit["posture"]["flash_encryption"]) == ("disabled", "disabled")
    arguments = {
        "key_file": "build/encryption.key",
        "secure_boot_key": "build/signing.pem",
        "firmware_path": "build",
        "mode": "release",
    }
    plan = agent.do("esp_encryption_enable", **arguments)
    assert plan["refused"] is None
    assert {burn["efuse_name"] for burn in plan["burns"]} >= {"SECURE_BOOT_EN", "SPI_BOOT_CRYPT_CNT"}
    assert agent.do("esp_security_audit")["posture"] == audit["posture"]  # a plan burns nothing
    done = agent.do("esp_encryption_enable", **arguments, apply=True)
    assert "Loaded app from partition" in done["boot_output"]
    for fuse in ("DIS_PAD_JTAG", "DIS_USB_JTAG"):
        if agent.do("esp_efuse_read", efuse_name=fuse)["value"] in ("0", False, 0):
            agent.do("esp_efuse_burn", efuse_name=fuse, value="1")
    posture = agent.do("esp_security_audit")["posture"]
    assert (posture["secure_boot"], posture["flash_encryption"], posture["jtag"]) == (
        "enabled (v2)",
        "enabled",
        "disabled",
    )
    assert "Loaded app from partition" in boot_log(agent)
    app = (agent.folder / "build" / "pytest_esp_test.bin").read_bytes()
    assert agent.md5(0x10000, len(app)) != hashlib.md5(app).hexdigest()  # ciphertext
