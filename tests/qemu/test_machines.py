"""The machine table, held against the QEMU that is installed."""

import re
import subprocess
import time

import pytest

from pytest_esp.errors import BackendError
from pytest_esp.qemu.find import find, why_missing
from pytest_esp.qemu.machines import MACHINES, machine_for

BLANK_FLASH = b"\xff" * 4 * 1024 * 1024


@pytest.mark.parametrize("chip", ["esp32s2", "esp32c6", "esp8266"])
def test_a_chip_without_a_machine_is_told_which_chips_have_one(chip):
    with pytest.raises(BackendError, match=rf"no machine for {chip}; it has esp32, esp32s3, esp32c3") as caught:
        machine_for(chip)
    assert "sim" in caught.value.hint


@pytest.mark.parametrize("chip", list(MACHINES))
def test_the_devices_of_a_machine_exist(chip):
    """QEMU says nothing of a ``-global`` for a device that it does not have."""
    if reason := why_missing(chip):
        pytest.skip(reason)
    machine = machine_for(chip)
    qemu = find(machine.architecture, machine.name)
    for driver in (qemu.efuse_driver(machine), machine.watchdog_driver, machine.strap_driver):
        answer = subprocess.run([qemu.path, "-device", f"{driver},help"], capture_output=True, text=True, check=False)
        assert "not found" not in answer.stderr


@pytest.mark.parametrize("strap", ["flash", "download"])
@pytest.mark.parametrize("chip", list(MACHINES))
def test_the_rom_says_that_the_strap_is_what_it_is_called(chip, strap, tmp_path):
    """Each machine starts with what the table says of it, and its ROM reads the strap as we name it."""
    if reason := why_missing(chip):
        pytest.skip(reason)
    machine = machine_for(chip)
    qemu = find(machine.architecture, machine.name)
    value = machine.strap_flash if strap == "flash" else machine.strap_download
    (tmp_path / "flash").write_bytes(BLANK_FLASH)
    (tmp_path / "efuse").write_bytes(bytes(machine.efuse_size))
    properties = [
        (qemu.efuse_driver(machine), "drive", "efuse"),
        (machine.watchdog_driver, "wdt_disable", "true"),
        (machine.strap_driver, "strap_mode", hex(value)),
    ]
    settings = [f"driver={driver},property={name},value={setting}" for driver, name, setting in properties]
    process = subprocess.Popen(
        [
            *(qemu.path, "-nographic", "-monitor", "none", "-machine", machine.name),
            *(("-m", machine.memory) if machine.memory else ()),
            *("-drive", f"file={tmp_path / 'flash'},if=mtd,format=raw"),
            *("-drive", f"file={tmp_path / 'efuse'},if=none,format=raw,id=efuse"),
            *(word for setting in settings for word in ("-global", setting)),
            *("-serial", f"file:{tmp_path / 'uart'}"),
        ],
        stdin=subprocess.DEVNULL,
        stdout=(tmp_path / "said").open("wb"),
        stderr=subprocess.STDOUT,
    )
    try:
        boot = _boot_line(process, tmp_path / "uart")
    finally:
        process.kill()
        process.wait()
    assert boot, (tmp_path / "said").read_text()
    assert int(boot[1], 16) == value
    assert {"flash": "FLASH_BOOT", "download": "UART"}[strap] in boot[2]


def _boot_line(process, uart):
    end = time.monotonic() + 30
    while time.monotonic() < end and process.poll() is None:
        text = uart.read_text(errors="replace") if uart.exists() else ""
        if found := re.search(r"boot:0x([0-9a-f]+) \((.+)\)\r?\n", text):
            return found
        time.sleep(0.01)
    return None
