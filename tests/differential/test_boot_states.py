"""A simulated chip boots as the real ROM and ESP-IDF's bootloader do on QEMU, in many states of flash and eFuses."""

import re
import subprocess
import time

import boot_states
import pytest

from pytest_esp.formats.nor_flash import NorFlash
from pytest_esp.qemu.find import find, why_missing
from pytest_esp.qemu.machines import machine_for
from pytest_esp.qemu.process import command_line
from pytest_esp.sim.chip import SimChip

MAC = "7c:df:a1:c0:ff:ee"
REVISIONS = {"esp32": 300, "esp32c3": 4}
BUILDS = {"esp32": "unit_test_esp32", "esp32c3": "unit_test_esp32c3"}
TIMEOUT = 20.0

_COLOUR = re.compile(r"\x1b\[[\d;]*m")
_TIME = re.compile(r"^([IWE]) \(\d+\) ")
_LAST = re.compile(
    r"Chip rev: [^\n]*\n|Falling back to built-in|ets_main\.c \d+ ?\n|verification failed\s*\n\Z"
    r"|Partition Table:.*?rst:0x|load partition table error|No bootable|too small|revision check failed[^\n]*\n.*rst:0x"
    r"|(?:invalid header: \w+\s+|wrong chip id \w+\s+){2}",
    re.DOTALL,
)
# The strap is another one; the flash is in DIO mode after QEMU's ROM has read it; these lines of the app need its code.
_NOT_OURS = re.compile(
    r"rst:|ets J|ESP-ROM|Build:|I boot.esp32\w*: SPI Mode|Multicore|cpu_start:|efuse block revision"
    r"|I boot: compile time"
)
_AFTER = re.compile(r"Chip rev: |Falling back to built-in")


def essence(text):
    """Return the lines that both print, from the first boot, without times."""
    text = _COLOUR.sub("", text).replace("\r", "")
    lines = [_TIME.sub(r"\1 ", line).strip() for line in text.split("\n")[:-1]]
    found = []
    boots = 0
    for line in lines:
        boots += line.startswith("rst:")
        if boots > 1 or _AFTER.search(line):
            break
        repeated = found and line.startswith(("invalid header", "wrong chip id")) and line[:18] == found[-1][:18]
        if line and not _NOT_OURS.search(line) and not repeated:
            found.append(line)
    return found


def real(board, efuses, folder):
    """Return the output of QEMU's machine, and its flash afterwards."""
    flash, log = folder / "flash.bin", folder / "uart.log"
    flash.write_bytes(board.flash)
    (folder / "efuses.bin").write_bytes(efuses.qemu_file())
    machine = machine_for(board.chip)
    command = command_line(
        find(machine.architecture), machine, flash, folder / "efuses.bin", strap=machine.strap_flash, psram=False
    )
    process = subprocess.Popen(
        [*command, "-monitor", "none", "-serial", f"file:{log}"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + TIMEOUT
        text = ""
        while time.monotonic() < deadline and not _LAST.search(text.replace("\r", "")):
            time.sleep(0.02)
            text = log.read_text("latin-1") if log.exists() else ""
    finally:
        process.kill()
        process.wait()
    return text, flash.read_bytes()


def simulated(board, folder):
    """Return the same of a simulated chip, and its eFuses."""
    path = folder / "simulated.bin"
    path.write_bytes(board.flash)
    chip = SimChip(board.chip, flash=NorFlash(len(board.flash), path), mac=MAC, revision=REVISIONS[board.chip])
    for name, value in board.fields.items():
        chip.efuses.preset(name, value)
    for name, data in board.blocks.items():
        chip.efuses.preset_block(name, data)
    chip.reset(bootloader=False)
    text = chip.last_boot.log.decode()
    chip.close()
    return text, path.read_bytes(), chip.efuses


DIFFERENCES = {
    ("esp32", "header: no segments"): "the ESP32's ROM reads the checksum from elsewhere",
    ("esp32", "header: odd segment"): "the ESP32's ROM loads what follows, until it hangs",
}


@pytest.mark.parametrize("name", boot_states.STATES)
@pytest.mark.parametrize("chip", BUILDS)
def test_both_boot_alike(chip, name, firmware_folder, tmp_path):
    if reason := why_missing(chip):
        pytest.skip(reason)
    board = boot_states.load(chip, firmware_folder / BUILDS[chip])
    boot_states.STATES[name](board)
    if (chip, name) in DIFFERENCES:
        pytest.xfail(DIFFERENCES[chip, name])
    text, flash, efuses = simulated(board, tmp_path)
    real_text, real_flash = real(board, efuses, tmp_path)
    assert essence(text) == essence(real_text)
    otadata = slice(boot_states.OTADATA, boot_states.OTADATA + 2 * boot_states.SECTOR)
    assert flash[otadata] == real_flash[otadata]
