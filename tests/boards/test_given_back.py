"""A real board runs its app again when it is given back, whatever was done to it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import serial
from click.testing import CliRunner

from pytest_esp.cli.main import cli
from pytest_esp.errors import EspError
from pytest_esp.operations.esp import Esp
from pytest_esp.wire import rfc2217

BIN = Path(sys.executable).parent


def op(devkit, *arguments):
    command = ["op", "--rack", str(devkit.rack), arguments[0], "--board", "devkit", *arguments[1:], "--json"]
    result = CliRunner().invoke(cli, command)
    answer = json.loads(result.output)
    assert answer["success"], answer
    return answer


def is_running(devkit):
    """Whether the app answers: it echoes its input. Opening the port changes nothing."""
    rfc2217.register()
    with serial.serial_for_url(devkit.url, 115200, timeout=0.25) as port:
        for _ in range(4):  # the app may still boot: EN of a chip that is served rises slowly
            port.write(b"hello?")
            if b"hello?" in port.read(6):
                return True
            port.reset_input_buffer()
        return False


@pytest.fixture
def echoing(devkit):
    """A function that makes a devkit of *chip* that waits in its loader, with *keys* in its entry."""

    def make(chip="esp32c3", keys=""):
        board = devkit(chip, app="echo")
        board.rack.write_text(board.rack.read_text() + keys)
        return board

    return make


def test_a_chip_in_its_loader_does_not_echo(echoing):
    assert not is_running(echoing())


@pytest.mark.parametrize("chip", ["esp32", "esp32c3", "esp8266"])
def test_after_a_command(echoing, chip):
    board = echoing(chip)
    op(board, "chip-identify")
    assert is_running(board)
    op(board, "flash-read", "address=0", "size=4KB")
    assert is_running(board)


@pytest.mark.parametrize(
    "arguments",
    [
        ("chip-read-mac",),
        ("chip-info",),
        ("chip-connect",),
        ("chip-check-connection",),
        ("chip-change-baudrate", "baud=230400"),
        ("flash-md5", "address=0", "size=4KB"),
        ("flash-erase", "region=0x1f0000", "size=4096"),
        ("partitions-read",),
        ("efuse-summary",),
        ("security-audit",),
        ("unity-menu",),
    ],
    ids=lambda arguments: arguments[0],
)
def test_after_every_kind_of_operation(echoing, arguments):
    board = echoing()
    command = ["op", "--rack", str(board.rack), arguments[0], "--board", "devkit", *arguments[1:], "--json"]
    answer = json.loads(CliRunner().invoke(cli, command).output)
    assert answer["success"] == (arguments[0] != "unity-menu"), answer
    assert is_running(board)


def test_not_if_the_command_is_to_leave_it_in_its_loader(echoing):
    board = echoing()
    op(board, "chip-identify")
    op(board, "chip-reset", "to=bootloader")
    assert not is_running(board)
    op(board, "chip-identify", "--after", "no-reset")
    assert not is_running(board)
    op(board, "chip-identify")
    assert is_running(board)


@pytest.mark.parametrize(("after", "runs"), [("no-reset", False), ("hard-reset", True), ("watchdog-reset", True)])
def test_as_its_entry_says(echoing, after, runs):
    board = echoing("esp32c3", f'after = "{after}"\n')
    op(board, "flash-md5", "address=0", "size=4KB")  # by the stub
    assert is_running(board) is runs


def test_a_chip_without_watchdog_reset_is_reset_by_en(echoing):
    board = echoing("esp32", 'after = "watchdog-reset"\n')
    op(board, "chip-identify")
    assert is_running(board)


def test_after_an_operation_that_failed(echoing):
    board = echoing()
    with board.link() as link, pytest.raises(EspError):
        Esp(link).flash.read(0, 1 << 30)
    assert is_running(board)
    with pytest.raises(KeyboardInterrupt), board.link() as link, link.session.use("nothing"):
        raise KeyboardInterrupt
    assert is_running(board)


def test_a_program_in_ram_goes_on(echoing):
    board = echoing()
    with board.link() as link:
        with link.session.use("something"):
            pass
        link.note_program()
    assert not is_running(board)


@pytest.mark.parametrize(
    "body", ["esp.chip.identify()", "esp.chip.reset('bootloader')", "esp.chip.identify(); assert 0"]
)
def test_after_a_pytest_run(echoing, tmp_path, body):
    board = echoing()
    test = tmp_path / "test_it.py"
    test.write_text(f"def test_it(esp):\n    {body}\n")
    command = [BIN / "python", "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--esp-rack={board.rack}", test]
    subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=60, check=False)
    assert is_running(board)


def test_a_board_whose_port_is_lost_is_given_back_all_the_same(echoing):
    board = echoing()
    link = board.link()
    Esp(link).chip.identify()
    board.served.process.kill()
    link.close()
    assert not link.is_open


def test_a_wrong_flash_size_in_the_entry_is_noticed(echoing):
    board = echoing(keys='flash_size = "16MB"\n')
    command = ["op", "--rack", str(board.rack), "chip-identify", "--board", "devkit", "--json"]
    answer = json.loads(CliRunner().invoke(cli, command).output)
    assert answer["error"] == "the flash has 2MB, but boards.toml says flash_size = '16MB'"
    assert is_running(board)
