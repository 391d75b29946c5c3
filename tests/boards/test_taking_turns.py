"""Unmodified esptool and our own link use one served board by turns, each in every state that the other leaves."""

import re
import subprocess
import sys

import pytest

from pytest_esp.operations.esp import Esp

ROUNDS = 5  # with every pair of states: 100 turns of each

ESPTOOL = {
    "hard-reset": (),
    "no-reset": ("--after", "no-reset"),
    "rom": ("--no-stub", "--after", "no-reset"),
    "fast-stub": ("--baud", "460800", "--after", "no-reset-stub"),
    "watchdog": ("--after", "watchdog-reset"),
}


def run_esptool(url, *options):
    command = [sys.executable, "-m", "esptool", "--port", url, "--connect-attempts", "3", *options, "flash-id"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return re.search(r"MAC:\s+(\S+)", result.stdout)[1]


def leave_the_app(devkit):
    with devkit.link() as link:
        return Esp(link).chip.identify().mac_address


def leave_the_stub(devkit):
    with devkit.link() as link:
        esp = Esp(link)
        esp.flash.md5(0, 4096, over="wire")
        esp.chip.change_baudrate(460800)
        link.keeps_loader = True
        return esp.chip.read_mac().mac_address


def leave_the_rom(devkit):
    with devkit.link() as link:
        esp = Esp(link)
        esp.chip.reset("bootloader")
        link.keeps_loader = True
        return esp.chip.read_mac().mac_address


def only_listen(devkit):
    with devkit.link() as link:
        esp = Esp(link)
        assert esp.chip.reset("app").output
        return None


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("ours", [leave_the_app, leave_the_stub, leave_the_rom, only_listen])
@pytest.mark.parametrize("theirs", ESPTOOL)
def test_both_work_whatever_the_other_leaves(devkit, theirs, ours):
    board = devkit("esp32c3")
    for _ in range(ROUNDS):
        mac = run_esptool(board.url, *ESPTOOL[theirs])
        assert ours(board) in (mac, None)
