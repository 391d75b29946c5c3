"""Boards whose port is a bridge, USB-Serial-JTAG or USB-OTG: resets, and ports that vanish and return at them."""

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
import tty
from pathlib import Path
from types import SimpleNamespace

import pytest
import serial
from click.testing import CliRunner
from serial.tools import list_ports

from pytest_esp.boards import serial as serial_board
from pytest_esp.boards.registry import make_board
from pytest_esp.cli.main import cli
from pytest_esp.errors import PortError
from pytest_esp.link.console import ConsoleError
from pytest_esp.link.link import Link
from pytest_esp.operations.esp import Esp
from pytest_esp.rack.config import load_rack
from pytest_esp.wire import rfc2217
from pytest_esp.wire.reset import hard_reset

BIN = Path(sys.executable).parent
CHIP_ID = {"esp32c3": 5, "esp32s3": 9, "esp32s2": 2}
KINDS = [
    ("esp32c3", "bridge", "default-reset"),
    ("esp32c3", "serial-jtag", "usb-reset"),
    ("esp32s3", "otg", "default-reset"),
]
NATIVE = KINDS[1:]

every_kind = pytest.mark.parametrize(("chip", "usb", "before"), KINDS, ids=lambda value: value)
every_native_kind = pytest.mark.parametrize(("chip", "usb", "before"), NATIVE, ids=lambda value: value)


class Board:
    """A served chip with an echoing app, that a rack names as a real board, on the port of *scheme*."""

    def __init__(self, folder, served, chip, before, scheme):
        self.served = served
        self.lines = served.url("rfc2217")
        self.port = served.url(scheme)
        self.rack = folder / "boards.toml"
        entry = f'[boards.b]\nbackend = "serial"\nchip = "{chip}"\nport = "{self.port}"\nbefore = "{before}"\n'
        self.rack.write_text(entry)

    def op(self, *arguments):
        command = ["op", "--rack", str(self.rack), arguments[0], "--board", "b", *map(str, arguments[1:]), "--json"]
        answer = json.loads(CliRunner().invoke(cli, command).output)
        assert answer["success"], answer
        return answer

    def link(self):
        rack = load_rack(self.rack)
        return Link(make_board(rack.board("b"), rack))

    @contextlib.contextmanager
    def other_client(self):
        """Somebody else's client with control lines, beside the port of the rack."""
        rfc2217.register()
        with serial.serial_for_url(self.lines, 115200) as port:
            yield port


def is_running(board):
    """Whether the app answers: it echoes its input."""
    with board.other_client() as port:
        port.timeout = 1
        for _ in range(3):
            port.write(b"echo")
            if port.read_until(b"echo").endswith(b"echo"):
                return True
    return False


@pytest.fixture
def board(tmp_path, start_serving, flash_of, build_of, monkeypatch):
    monkeypatch.setenv("PYTEST_ESP_LOCK_DIR", str(tmp_path / "locks"))
    monkeypatch.setenv("PYTEST_ESP_STATE_DIR", str(tmp_path / "state"))

    def make(chip, usb, before, scheme="rfc2217", *options):
        flash = tmp_path / "flash.bin"
        flash.write_bytes(_for_chip(flash_of(build_of("esp32c3")), CHIP_ID[chip]))
        listen = ("--listen", "rfc2217://127.0.0.1:0", "--listen", f"pty:{tmp_path / 'port'}")
        kept = ("--flash", flash, "--flash-size", "2MB", "--app", "echo")
        served = start_serving("sim", chip, "--usb", usb, *listen, *kept, *options)
        return Board(tmp_path, served, chip, before, scheme)

    return make


def _for_chip(flash, chip_id):
    """The same flash with bootloader and app for another chip, as far as the simulated boot looks."""
    for start in (0, 0x10000):
        image = flash[start : start + 0x100000]
        end = len(bytes(image).rstrip(b"\xff")) if start else 0x8000
        end = len(bytes(image[:end]).rstrip(b"\xff"))
        image[12:14] = chip_id.to_bytes(2, "little")
        image[end - 32 : end] = hashlib.sha256(image[: end - 32]).digest()
        flash[start : start + end] = image[:end]
    return bytes(flash)


# -- operations


@every_kind
@pytest.mark.slow
@pytest.mark.parametrize("start", ["bootloader", "app"])
def test_operations_twice_in_a_row(board, tmp_path, chip, usb, before, start):
    b = board(chip, usb, before)
    (tmp_path / "data").write_bytes(os.urandom(20_000))
    b.op("chip-reset", f"to={start}")
    for _ in range(2):
        assert b.op("chip-identify")["chip_type"] == chip
        assert b.op("flash-write", "address=0x110000", f"firmware={tmp_path / 'data'}", "skip_unchanged=false")[
            "verified"
        ]
        assert b.op("flash-verify", "address=0x110000", f"firmware={tmp_path / 'data'}")["matches"]
        assert b.op("chip-reset", "to=app")["mode"] == "app"
        assert b.op("chip-run-firmware", "until=ready")["state"] == "running"
        assert b.op("chip-monitor", "reset=true", "until=ready")["matched"] == "ready"


@every_native_kind
def test_operations_over_a_pty_which_has_no_lines(board, tmp_path, chip, usb, before):
    """The watchdog resets the chip; its node vanishes and returns."""
    b = board(chip, usb, before, "pty", "--on-close", "keep")
    (tmp_path / "data").write_bytes(os.urandom(20_000))
    for _ in range(2):
        assert b.op("chip-identify")["chip_type"] == chip
        assert b.op("flash-write", "address=0x110000", f"firmware={tmp_path / 'data'}", "skip_unchanged=false")[
            "verified"
        ]
    if chip == "esp32s3":  # an ESP32-C3 cannot be told to stay in its loader
        assert b.op("chip-reset", "reset_mode=watchdog-reset", "to=bootloader")["mode"] == "bootloader"
        assert b.op("chip-identify")["chip_type"] == chip
    assert b.op("chip-reset", "reset_mode=watchdog-reset")["mode"] == "app"


@every_kind
@pytest.mark.slow
def test_a_process_finds_what_the_one_before_has_left(board, chip, usb, before):
    """At once: a port that an app takes over has returned when a command ends."""
    b = board(chip, usb, before)
    command = [BIN / "pytest-esp", "op", "--rack", b.rack, "chip-identify", "--board", "b", "--json"]
    for _ in range(3):
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        assert json.loads(done.stdout)["success"], done.stdout
        assert is_running(b)


@pytest.mark.parametrize(("kind", "reason"), list(zip(KINDS, ["POWERON", "USB_UART_CHIP_RESET", None], strict=True)))
def test_the_reset_reason_is_that_of_the_chips_usb(board, kind, reason):
    assert board(*kind).op("chip-reset")["reason"] == reason


# -- the console


@every_kind
@pytest.mark.parametrize("scheme", ["rfc2217", "pty"])
def test_a_wait_goes_on_over_a_reset(board, chip, usb, before, scheme):
    b = board(chip, usb, before, scheme, "--on-close", "keep")
    with b.link() as link:
        console = link.console
        if scheme == "rfc2217":
            link.reset(bootloader=False)
            console.expect("ready")
        elif usb != "bridge":
            Esp(link).chip.reset("app", reset_mode="watchdog-reset")
            console.expect_silence(0.3)
        returns = console.returns
        console.skip()
        if scheme == "pty":
            threading.Timer(0.2, lambda: _reset_by(b)).start()
        else:
            threading.Timer(0.2, lambda: link.reset(bootloader=False)).start()
        console.expect("ready", timeout=8, ignore_crashes=True)
        assert console.returns == returns + (usb == "otg")
        console.write("still here?")
        console.expect("still here?", timeout=3)
        assert console.text.count("still here?") == 1


def _reset_by(board):
    with board.other_client() as port:
        hard_reset(port)
        time.sleep(0.5)


def test_what_was_said_before_stays_in_the_log(board):
    with board(*KINDS[2]).link() as link:
        Esp(link).chip.reset("app")
        link.console.write("first")
        link.console.expect("first")
        link.console.skip()
        link.reset(bootloader=False)
        link.console.expect("ready")
        link.console.write("second")
        link.console.expect("second")
        assert "first" in link.console.text
        assert link.console.returns == 2


@pytest.mark.parametrize("scheme", ["rfc2217", "pty"])
def test_a_port_that_does_not_return(board, monkeypatch, scheme):
    monkeypatch.setattr(serial_board, "RETURN_TIMEOUT", 1.0)
    b = board(*KINDS[1], scheme)
    with b.link() as link:
        Esp(link).chip.identify()
        link.session.drop()
        threading.Timer(0.2, b.served.process.kill).start()
        begun = time.monotonic()
        with pytest.raises(PortError, match=r"the port was lost: .*; it did not return within 1 s"):
            link.console.expect("nothing", timeout=30)
        assert 1 < time.monotonic() - begun < 4
        begun = time.monotonic()
        for use in (link.console.write, lambda _: Esp(link).chip.identify()):
            with pytest.raises(PortError, match="lost"):
                use("x")
    assert time.monotonic() - begun < 1  # it was waited for once


def test_a_port_that_returns_too_late_is_used_again(board, monkeypatch, start_serving, tmp_path):
    monkeypatch.setattr(serial_board, "RETURN_TIMEOUT", 0.2)
    b = board(*KINDS[1], "pty", "--on-close", "app")
    with b.link() as link:
        console = link.console
        b.served.process.kill()
        with pytest.raises(PortError, match="did not return"):
            console.expect("nothing")
        b.served.process.wait()
        Path(b.port).unlink()
        start_serving("sim", "esp32c3", "--listen", f"pty:{b.port}")
        assert Esp(link).chip.identify().chip_type == "esp32c3"
        link.session.drop()
        assert link.console is console
        with pytest.raises(ConsoleError):
            console.expect("nothing", timeout=0.1)


def test_a_device_that_is_found_under_another_name(tmp_path, monkeypatch):
    """Linux may number a device anew; its serial number stays."""
    nodes = [os.openpty() for _ in range(2)]
    for _, slave in nodes:
        tty.setraw(slave)
    present = [os.ttyname(nodes[0][1])]

    def comports():
        return [SimpleNamespace(device=name, vid=0x303A, pid=0x1001, serial_number="7C:DF") for name in present]

    monkeypatch.setattr(list_ports, "comports", comports)
    monkeypatch.setenv("PYTEST_ESP_STATE_DIR", str(tmp_path / "state"))
    rack_file = tmp_path / "boards.toml"
    rack_file.write_text('[boards.b]\nbackend="serial"\nchip="esp32c3"\nport="usb:303a:1001:serial=7C:DF"\n')
    rack = load_rack(rack_file)
    with Link(make_board(rack.board("b"), rack)) as link:
        console = link.console
        os.write(nodes[0][0], b"before\n")
        console.expect("before")
        present.clear()
        for descriptor in nodes[0]:
            os.close(descriptor)

        def plug_in():
            present.append(os.ttyname(nodes[1][1]))
            while not console.returns:
                time.sleep(0.01)
            os.write(nodes[1][0], b"after\n")

        threading.Timer(0.3, plug_in).start()
        console.expect("after", timeout=5)
        assert "before" in console.text
    for descriptor in nodes[1]:
        os.close(descriptor)


# -- other people's programs


def esptool(port, *arguments):
    command = [BIN / "esptool", "--port", port, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@every_native_kind
@pytest.mark.slow
@pytest.mark.parametrize("start", ["bootloader", "app"])
def test_esptool_itself(board, chip, usb, before, start):
    b = board(chip, usb, before)
    b.op("chip-reset", f"to={start}")
    done = esptool(b.lines, "--before", before, "--no-stub", "--connect-attempts", "2", "read-mac")
    assert done.returncode == 0, done.stdout + done.stderr
    assert b.served.ready["mac"] in done.stdout
    time.sleep(1)  # the port may vanish after the program has ended
    assert b.op("chip-identify")["chip_type"] == chip


@pytest.mark.slow
@every_native_kind
def test_esptool_writes_and_resets_twice(board, tmp_path, chip, usb, before):
    b = board(chip, usb, before)
    (tmp_path / "data").write_bytes(os.urandom(20_000))
    for command in (["flash-id"], ["write-flash", "0x110000", tmp_path / "data"]) * 2:
        done = esptool(b.lines, "--before", before, "--after", "hard-reset", *command)
        assert done.returncode == 0, done.stdout + done.stderr
        time.sleep(1)
        assert is_running(b)


@pytest.mark.parametrize(("attempts", "works"), [(1, False), (2, True)])
def test_a_slow_capacitor_needs_esptools_second_strategy(start_serving, attempts, works):
    """Which releases the strap 0.55 s after EN, not 0.05 s; pyserial's client adds about 0.15 s to both."""
    served = start_serving("sim", "esp32", "--rise-time", "0.4")
    done = esptool(served.url("rfc2217"), "--no-stub", "--connect-attempts", str(attempts), "read-mac")
    assert (done.returncode == 0) is works, done.stdout


def test_ours_tries_both(start_serving, tmp_path):
    served = start_serving("sim", "esp32", "--rise-time", "0.3")
    rack = tmp_path / "boards.toml"
    rack.write_text(f'[boards.b]\nbackend = "serial"\nchip = "esp32"\nport = "{served.url("rfc2217")}"\n')
    command = ["op", "--rack", str(rack), "chip-identify", "--board", "b", "--json"]
    assert json.loads(CliRunner().invoke(cli, command).output)["success"]


@pytest.mark.parametrize(
    ("chip", "options", "message"),
    [
        ("esp32", ["--usb", "serial-jtag"], "the ESP32 has no USB-Serial-JTAG"),
        ("esp8266", ["--usb", "serial-jtag"], "the ESP8266 has no USB-Serial-JTAG"),
        ("esp32s2", ["--usb", "serial-jtag"], "the ESP32-S2 has no USB-Serial-JTAG"),
        ("esp32c3", ["--usb", "otg"], "the ESP32-C3 cannot be flashed over USB-OTG"),
        ("esp32", ["--usb", "otg"], "the ESP32 cannot be flashed over USB-OTG"),
        ("esp32c3", ["--usb", "serial-jtag", "--rise-time", "1"], "--rise-time requires --usb bridge"),
        ("esp32c3", ["--rise-time", "-1"], "-1.0 is not in the range"),
    ],
)
def test_what_a_chip_does_not_have_is_refused(chip, options, message):
    result = subprocess.run([BIN / "pytest-esp", "sim", chip, *options], capture_output=True, text=True, check=False)
    assert result.returncode in (1, 2)
    assert message in " ".join(result.stderr.replace("│", "").split())
    assert "Traceback" not in result.stderr
