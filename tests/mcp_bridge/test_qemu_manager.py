"""Virtual boards that a server starts on demand."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest


def test_a_simulated_chip_from_start_to_stop(server):
    (server.folder / "image.bin").write_bytes(b"\xe9 not really an image")
    started = server.call("esp_sim_start", chip_type="esp32c6", flash_image="image.bin", flash_size_mb=2)
    name = started["instance_id"]
    assert started["socket_uri"] == f"socket://127.0.0.1:{started['tcp_port']}"
    assert server.call("esp_detect_chip", port=name)["chip_type"] == "esp32c6"
    assert bytes.fromhex(server.call("esp_flash_read", port=name, address=0, size=5)["data"]) == b"\xe9 not"
    assert bytes.fromhex(server.call("esp_flash_read", port=name, address=0x100000, size=2)["data"]) == b"\xff\xff"
    assert server.call("esp_sim_list")["count"] == 1
    assert server.call("esp_qemu_list")["count"] == 0
    assert server.call("esp_sim_status", instance_id=name)["running"]
    assert server.call("esp_sim_stop", instance_id=name)["stopped"] == [name]
    assert "no board" in server.call("esp_detect_chip", port=name)["error"]
    assert not Path(started["flash_image"]).exists()
    assert (server.folder / "image.bin").stat().st_size == 21  # its flash was a copy


def test_other_programs_reach_it(server):
    uri = server.call("esp_sim_start", chip_type="esp32c3", boot_mode="download")["rfc2217_uri"]
    esptool = Path(sys.executable).parent / "esptool"
    result = subprocess.run(
        [esptool, "--port", uri, "--no-stub", "read-mac"], capture_output=True, text=True, timeout=100, check=False
    )
    assert "ESP32-C3" in result.stdout
    assert result.returncode == 0


def test_a_fault_is_noticed_and_ended(server):
    name = server.call("esp_sim_start", chip_type="esp32")["instance_id"]
    server.call("esp_sim_fault", instance_id=name, silent_after=0)
    answer = server.call("esp_detect_chip", port=name)
    assert not answer["success"]
    assert "not answer" in answer["error"]
    server.call("esp_sim_fault", instance_id=name)
    assert server.call("esp_detect_chip", port=name)["success"]


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ({"secure_download": True}, "secure download mode"),
        ({"wrong_chip": "esp32s3"}, "this is an ESP32-S3, not an ESP32-C3"),
        ({"vanish_after": 0}, "its cable was pulled"),
        ({"reset_after": 0, "reset_cause": "brownout"}, "not answer"),
        ({"direction": "to_device", "cut": 1.0}, "not answer"),
    ],
)
def test_every_fault_is_noticed_and_ended(server, fault, error):
    name = server.call("esp_sim_start", chip_type="esp32c3")["instance_id"]
    assert server.call("esp_efuse_read", port=name, efuse_name="MAC")["success"]
    told = server.call("esp_sim_fault", instance_id=name, **fault)
    assert told["faults"]
    answer = server.call("esp_efuse_read", port=name, efuse_name="MAC")
    assert error in answer["error"]
    assert server.call("esp_sim_fault", instance_id=name)["faults"] == {}
    assert server.call("esp_efuse_read", port=name, efuse_name="MAC")["success"]


def test_stuck_bits_are_noticed(server):
    (server.folder / "image.bin").write_bytes(b"\x55" * 4096)
    name = server.call("esp_sim_start", chip_type="esp32c3")["instance_id"]
    server.call("esp_sim_fault", instance_id=name, stuck={"0x10000": 255})
    arguments = {"port": name, "firmware_path": "image.bin", "address": "0x10000"}
    assert not server.call("esp_flash_firmware", **arguments)["success"]
    server.call("esp_sim_fault", instance_id=name)
    assert server.call("esp_flash_firmware", **arguments)["success"]


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ({"lose": 2.0}, "lose: Input should be less"),
        ({"boot_loop": 0.0}, "boot_loop"),
        ({"wrong_chip": "x"}, "unknown chip 'x'"),
    ],
)
def test_an_unknown_fault(server, fault, error):
    name = server.call("esp_sim_start", chip_type="esp32c3")["instance_id"]
    answer = server.call("esp_sim_fault", instance_id=name, **fault)
    assert error in answer["error"]
    assert server.call("esp_detect_chip", port=name)["success"]


@pytest.mark.parametrize(
    ("tool", "arguments", "error"),
    [
        ("esp_sim_stop", {"instance_id": "none"}, "unknown instance 'none'"),
        ("esp_sim_start", {"chip_type": "esp33"}, "unknown chip 'esp33'"),
        ("esp_sim_start", {"tcp_port": 70000}, "70000 is not a TCP port"),
        ("esp_sim_start", {"flash_image": "none.bin"}, "cannot read"),
        ("esp_sim_start", {"flash_image": "/etc/passwd"}, "outside"),
        ("esp_qemu_start", {"extra_args": ["-drive", "file=/etc/passwd"]}, "not allowed"),
        ("esp_qemu_flash", {"instance_id": "none", "firmware_path": "x"}, "unknown instance 'none'"),
    ],
)
def test_what_cannot_be_started(server, tool, arguments, error):
    answer = server.call(tool, **arguments)
    assert error in answer["error"]
    assert server.call("esp_sim_list")["count"] == 0


def test_an_image_larger_than_the_flash(server):
    (server.folder / "large.bin").write_bytes(bytes(3 << 20))
    answer = server.call("esp_sim_start", flash_image="large.bin", flash_size_mb=2)
    assert "(3145728 bytes) does not fit into the flash" in answer["error"]


def test_the_number_of_instances_is_limited(server, monkeypatch):
    monkeypatch.setenv("QEMU_MAX_INSTANCES", "1")
    assert server.call("esp_sim_start")["success"]
    assert "QEMU_MAX_INSTANCES" in server.call("esp_sim_start")["hint"]


def test_qemu_runs_the_firmware_that_is_flashed(server, need_qemu, build_of):
    need_qemu("esp32c3")
    name = server.call("esp_qemu_start", chip_type="esp32c3", flash_size_mb=4)["instance_id"]
    (server.folder / "build").symlink_to(build_of("esp32c3"))
    assert "outside" in server.call("esp_qemu_flash", instance_id=name, firmware_path="build")["error"]
    (server.folder / "build").unlink()
    subprocess.run(["cp", "-r", build_of("esp32c3"), server.folder / "build"], check=True)
    assert server.call("esp_qemu_flash", instance_id=name, firmware_path="build")["bytes_written"] > 1000
    heard = server.call("esp_serial_monitor", port=name, duration_seconds=20, until="ready", reset=True)
    assert heard["matched"] == "ready"
    pid = next(iter(server.call("esp_qemu_list")["instances"]))["pid"]
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while server.call("esp_qemu_status", instance_id=name)["running"] and time.monotonic() < deadline:
        time.sleep(0.02)
    answer = server.call("esp_serial_monitor", port=name, duration_seconds=20, until="never")
    assert not answer["success"] or answer["duration_seconds"] < 20
    server.call("esp_qemu_stop")
    assert server.call("esp_qemu_list")["count"] == 0


def test_health_names_a_qemu_that_does_not_exist(server, monkeypatch, tmp_path):
    monkeypatch.setenv("QEMU_RISCV_PATH", str(tmp_path / "gone"))
    health = server.call("esp_health_check")
    assert health["status"] == "degraded"
    assert f"QEMU_RISCV_PATH is set to {tmp_path / 'gone'}, which does not exist" in str(health["components"])
    monkeypatch.delenv("QEMU_RISCV_PATH")
    assert "qemu_manager" not in server.call("esp_health_check")["components"]
