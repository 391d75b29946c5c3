"""A real board is reset from any state of DTR and RTS, by every way in which somebody resets it."""

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import serial
from click.testing import CliRunner

from pytest_esp.boards.registry import make_board
from pytest_esp.cli.main import cli
from pytest_esp.errors import LinkError
from pytest_esp.formats.nor_flash import NorFlash
from pytest_esp.link.link import Link
from pytest_esp.operations.esp import Esp
from pytest_esp.rack.config import load_rack
from pytest_esp.sim.app import SimApp
from pytest_esp.sim.chip import SimChip
from pytest_esp.wire.endpoints import serve
from pytest_esp.wire.loop import call_later

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
    assert op(board, "chip-recover", "wait_seconds=1")["state"] == "running"


@every_state
@every_chip
def test_a_test_resets_into_the_app_and_does_nothing_else(devkit, pytester, chip, lines):
    board = devkit(chip, lines)
    pytester.makepyfile("def test_it(esp):\n    assert esp.chip.reset('app').output.strip()\n")
    plugins = [f"-pno:{name}" for name in ("cacheprovider", "hypothesispytest", "anyio", "platformdirs")]
    pytester.runpytest_inprocess(*plugins, f"--esp-rack={board.rack}", "-m", "").assert_outcomes(passed=1)


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


# -- a port without lines: a reset that does nothing


class Ticking(SimApp):
    """Says something again and again."""

    def start(self):
        self.tick()

    def tick(self):
        self.send(b"tick\r\n")
        self.timer = call_later(0.02, self.tick)

    def stop(self):
        self.timer.cancel()


class Restarting(Ticking):
    """Restarts by itself."""

    def tick(self):
        self.timer = call_later(0.3, self.restart)


class Silent(Ticking):
    """Has said all that it will."""

    def tick(self):
        self.timer = call_later(60, self.restart)


@pytest.fixture
def without_lines(tmp_path, monkeypatch, flash_of, build_of):
    """A function that makes a link to a chip that runs *app*, over a raw socket, which has no lines."""
    monkeypatch.setenv("PYTEST_ESP_STATE_DIR", str(tmp_path / "state"))
    with contextlib.ExitStack() as stack:

        def make(app):
            flash = NorFlash(2 * 1024 * 1024)
            flash.program(0, bytes(flash_of(build_of("esp32c3"))))
            chip = SimChip("esp32c3", flash=flash, app=app, on_close="keep")
            chip.reset(bootloader=False)
            stack.callback(chip.close)
            endpoint = serve(chip.wire, "socket://127.0.0.1:0")
            stack.callback(endpoint.close)
            rack_file = tmp_path / "boards.toml"
            rack_file.write_text(f'[boards.devkit]\nbackend="serial"\nchip="esp32c3"\nport="{endpoint.url}"\n')
            rack = load_rack(rack_file)
            return stack.enter_context(Link(make_board(rack.board("devkit"), rack)))

        yield make


@pytest.mark.parametrize(
    ("app", "message"),
    [
        (Restarting, r"not reset by EN; the ROM reports rst:0xc \(RTC_SW_CPU_RST\)"),
        (Ticking, "the running app continued without a boot"),
        (Silent, "timed out waiting for the boot banner"),
    ],
)
def test_a_reset_that_did_not_happen_is_an_error(without_lines, app, message):
    with pytest.raises(LinkError, match=message):
        Esp(without_lines(app)).chip.reset("app", wait_seconds=1)


@pytest.mark.parametrize(
    "start",
    [
        lambda esp: esp.chip.run_firmware(wait_seconds=0.1),
        lambda esp: esp.chip.monitor(0.1, reset=True),
        lambda esp: esp.diagnostics.performance_profile(0.1),
        lambda esp: esp.link.boot(),
        lambda esp: esp.unity.menu(),
    ],
    ids=["run_firmware", "monitor", "profile", "boot", "unity"],
)
@pytest.mark.parametrize("app", [Restarting, Ticking])
def test_whatever_starts_the_app_says_that_it_was_not_reset(without_lines, app, start):
    with pytest.raises(LinkError, match="was not reset"):
        start(Esp(without_lines(app)))


def test_the_output_begins_at_the_boot(devkit):
    """Also where what the app said before the reset is still on its way."""
    with devkit("esp32c3").link() as link:
        esp = Esp(link)
        esp.chip.reset("app")
        reset = link.reset

        def reset_late(bootloader):
            link.console._feed(b"said before\r\n")
            reset(bootloader)

        link.reset = reset_late
        run = esp.chip.run_firmware(wait_seconds=0.5)
        assert run.output.startswith("ESP-ROM:")
        assert run.lines[0] == (0.0, "ESP-ROM:esp32c3-api1-20210207")
        assert esp.chip.monitor(0.5, reset=True).lines[0][1].startswith("ESP-ROM:")
        assert esp.chip.reset("app").output.startswith("ESP-ROM:")
        assert esp.diagnostics.performance_profile(0.5).boots[0].reason == "rst:0x1 (POWERON)"
