"""A real board is reset from any state of DTR and RTS, by every way in which somebody resets it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import serial
from click.testing import CliRunner

from pytest_esp.cli.main import cli
from pytest_esp.operations.esp import Esp

BIN = Path(sys.executable).parent
CHIPS = ["esp32", "esp32c3", "esp8266"]

every_state = pytest.mark.parametrize("lines", ["both", "none", "dtr", "rts"])
every_chip = pytest.mark.parametrize("chip", CHIPS)


def op(devkit, *arguments):
    command = ["op", "--rack", str(devkit.rack), arguments[0], "--board", "devkit", *arguments[1:], "--json"]
    result = CliRunner().invoke(cli, command)
    answer = json.loads(result.output)
    assert (result.exit_code, answer["success"]) == (0, True), answer
    return answer


@every_state
@every_chip
def test_commands_reset_it(devkit, chip, lines):
    board = devkit(chip, lines)
    answer = op(board, "chip-reset")
    assert answer["mode"] == "app"
    assert ("ets Jan  8 2013" if chip == "esp8266" else "rst:0x1 ") in answer["output"]
    answer = op(board, "chip-run-firmware", "until=Hello world!")
    assert (answer["state"], answer["matched"]) == ("running", True)
    assert op(board, "chip-reset", "to=bootloader")["mode"] == "bootloader"


@every_state
def test_other_operations_reset_it_too(devkit, lines):
    board = devkit("esp32c3", lines)
    assert op(board, "chip-monitor", "reset=true", "until=Hello world!")["matched"] == "Hello world!"
    assert op(board, "diagnostics-performance-profile", "duration=1")["boots"]
    assert op(board, "chip-connect")["attempt"] == 1
    assert op(board, "chip-recover", "wait=1")["state"] == "running"


@every_state
@every_chip
def test_a_test_resets_into_the_app_and_does_nothing_else(devkit, pytester, chip, lines):
    board = devkit(chip, lines)
    pytester.makepyfile("def test_it(esp):\n    assert esp.chip.reset('app').output.strip()\n")
    plugins = [f"-pno:{name}" for name in ("cacheprovider", "hypothesispytest", "anyio", "platformdirs")]
    pytester.runpytest_inprocess(*plugins, f"--rack={board.rack}", "-m", "").assert_outcomes(passed=1)


@every_chip
def test_the_suite_passes_alone_on_a_port_as_it_was_opened(devkit, chip):
    command = [BIN / "pytest-esp", "check", "--rack", devkit(chip).rack, "--board", "devkit"]
    result = subprocess.run(
        [*command, "-q", "-k", "reset_into_the_app"], capture_output=True, text=True, timeout=60, check=False
    )
    assert "1 passed" in result.stdout, result.stdout + result.stderr


@every_chip
def test_a_port_behind_a_proxy(devkit, chip):
    board = devkit(chip)
    board.rack.write_text(board.rack.read_text() + "faults = {}\n")
    assert op(board, "chip-reset")["mode"] == "app"
    assert op(board, "chip-run-firmware", "until=Hello world!")["state"] == "running"


@every_state
def test_a_power_cycle_leaves_neither_the_chip_held_nor_its_strap_low(devkit, lines):
    board = devkit("esp32c3", lines)
    board.rack.write_text(board.rack.read_text() + 'power = { off = "true", on = "true" }\n')
    with board.link() as link:
        link.console.skip()
        link.power_cycle()
        assert (link.port.dtr, link.port.rts) == (False, False)
        assert Esp(link).chip.reset("app").output


@every_chip
def test_esptool_itself_resets_and_connects(devkit, chip):
    board = devkit(chip)
    command = [BIN / "esptool", "--port", board.url, "--no-stub", "--connect-attempts", "2", "read-mac"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Hard resetting" in result.stdout
    assert op(board, "chip-reset")["mode"] == "app"


def test_the_devkit_is_one(devkit):
    """A pulse of RTS on a port as pyserial opens it resets nothing; with DTR released it does."""
    with serial.serial_for_url(devkit("esp32c3").url, 115200, timeout=1) as port:
        port.rts = False
        port.rts = True
        port.rts = False
        assert port.read(1) == b""
        port.dtr = False
        port.rts = True
        port.rts = False
        assert port.read(8) == b"ESP-ROM:"
