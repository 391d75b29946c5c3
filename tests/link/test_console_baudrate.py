"""The console's baud rate, its lines, and a port of its own; on chips in this process and in another one."""

import json
import os
import sys
import time

import pytest
import serial

from pytest_esp.boards.registry import make_board
from pytest_esp.errors import LeaseError, PortError
from pytest_esp.link.console import Console
from pytest_esp.link.link import Link
from pytest_esp.operations.esp import Esp
from pytest_esp.rack.config import load_rack
from pytest_esp.rack.lease import holder_of
from pytest_esp.sim.chip import SimChip
from pytest_esp.wire.endpoints import serve
from pytest_esp.wire.wire import rom_console_baudrate

APP = """
from pytest_esp import SimApp, call_later


class Talker(SimApp):
    '''Says what rate it has, echoes, and changes to 230400 baud at "faster".'''

    console_baud = 115200

    def start(self):
        self.send(b"talker is ready\\r\\n")

    def receive(self, data):
        self.send(b"heard " + data + b"\\r\\n")
        if b"faster" in data:
            self.send.__self__.set_uart_baudrate(230400)


class Slow(Talker):
    console_baud = 9600
"""


@pytest.fixture(params=["in this process", "served"])
def link_to(request, tmp_path, monkeypatch, start_serving, flash_of, build_of):
    """A function that opens a link to a chip whose app prints at *baud*, with *keys* in its entry."""
    (tmp_path / "talker.py").write_text(APP)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTEST_ESP_LOCK_DIR", str(tmp_path / "locks"))
    monkeypatch.setenv("PYTEST_ESP_STATE_DIR", str(tmp_path / "state"))
    links = []

    def make(chip, app_baud=None, app="Talker", **keys):
        flash = tmp_path / "flash.bin"
        flash.write_bytes(bytes(_image(chip, flash_of, build_of)).ljust(4 << 20, b"\xff"))
        entry = {"chip": chip, **keys}
        if request.param == "served":
            arguments = ["sim", chip, "--listen", "rfc2217://127.0.0.1:0", "--flash", flash, "--app", f"talker:{app}"]
            served = start_serving(*arguments, *(["--console-baud", app_baud] if app_baud else []))
            entry |= {"backend": "serial", "port": served.url("rfc2217")}
        else:
            entry |= {"backend": "sim", "app": f"talker:{app}", "flash_file": str(flash)}
        path = tmp_path / "boards.toml"
        path.write_text("[boards.it]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in entry.items()))
        rack = load_rack(path)
        links.append(Link(make_board(rack.board("it"), rack)))
        if request.param != "served" and app_baud and "console_baud" not in keys:
            links[-1].port  # noqa: B018 - the chip exists once it is open
            links[-1].board.simulated._console_baudrate = app_baud
        return links[-1]

    yield make
    for link in links:
        link.close()


def _image(chip, flash_of, build_of):
    if chip != "esp8266":
        return flash_of(build_of(chip))
    from tests.conftest import _image_of_an_esp8266

    return _image_of_an_esp8266()


def test_the_rates_of_roms():
    assert rom_console_baudrate("esp8266") == rom_console_baudrate("esp32c2", 26) == 74880
    assert rom_console_baudrate("esp32c2", 40) == rom_console_baudrate("esp32c3") == 115200


@pytest.mark.parametrize("baud", [115200, 74880, 921600])
def test_an_esp8266_boots_at_74880_and_goes_on_at_the_rate_of_its_app(link_to, baud):
    link = link_to("esp8266", baud, console_baud=baud)
    for _ in range(2):
        link.boot()
        said = link.console.read_until("talker is ready", timeout=3)
        assert "ets Jan  8 2013,rst cause:" in said
        assert "\ufffd" not in said
        link.console.write("hello")
        link.console.expect("heard hello", timeout=3)
        assert link.port.baudrate == baud


@pytest.mark.parametrize("chip", ["esp32", "esp32c3"])
def test_rom_bootloader_and_app_each_at_its_rate(link_to, chip):
    link = link_to(chip, 9600, app="Slow", console_baud=9600)
    said = link.boot().read_until("talker is ready", timeout=5)
    assert "rst:0x1 (POWERON" in said
    assert "Calling app_main()" in said
    assert "\ufffd" not in said


def test_from_the_loader_back_to_the_console(link_to):
    link = link_to("esp32c3", 9600, app="Slow", console_baud=9600)
    esp = Esp(link)
    for _ in range(2):
        esp.flash.read(0x8000, 4096)
        assert link.port.baudrate != 9600
        assert "ESP-ROM" in esp.chip.reset("app").output
        link.console.expect("talker is ready", timeout=3)
        assert link.port.baudrate == 9600
    assert esp.chip.monitor(0.5, reset=True).lines[0][1].startswith("ESP-ROM")
    # esptool waits for the watchdog: what the app says meanwhile is noise.
    assert "ESP-ROM" in esp.chip.reset("app", reset_mode="watchdog-reset").output
    link.console.write("hello")
    link.console.expect("heard hello", timeout=3)


def test_an_esp8266_restarts_by_its_loader(link_to):
    esp = Esp(link_to("esp8266", 115200))
    esp.chip.identify()
    assert "rst cause" in esp.chip.reset("app", reset_mode="soft-reset").output
    esp.link.console.expect("talker is ready", timeout=3)


def test_another_rate_is_noise(link_to):
    link = link_to("esp32c3", 9600)
    console = link.boot()
    console.listen(0.6)
    assert "talker" not in console.text
    assert "\ufffd" in console.text


@pytest.mark.skipif(sys.platform != "linux", reason="the rate of a pty's client is known on Linux only")
@pytest.mark.parametrize("baud", [115200, 74880, 9600])
def test_a_client_of_a_pty_reads_noise_at_another_rate(baud):
    chip = SimChip("esp32c3", on_close="keep")
    chip.reset(bootloader=False)
    endpoint = serve(chip.wire, "pty:")
    with serial.Serial(endpoint.url.removeprefix("pty:"), baud, timeout=2) as port:
        while endpoint.client_count == 0:
            time.sleep(0.01)
        chip.reset(bootloader=True)
        said = port.read(20)
        assert said.startswith(b"ESP-ROM:") == (baud == 115200)
        port.baudrate = 115200
        chip.reset(bootloader=True)
        assert b"waiting for download" in port.read_until(b"download")
    endpoint.close()
    chip.close()


def test_a_change_in_the_middle(link_to):
    link = link_to("esp32c3")
    console = link.boot()
    console.expect("talker is ready", timeout=3)
    console.write("faster")
    console.expect("heard faster", timeout=3)
    console.set_baudrate(230400)
    console.write("again")
    console.expect("heard again", timeout=3)
    link.reset(bootloader=False)  # the app starts at its own rate again
    console.expect("talker is ready", timeout=3)
    assert link.port.baudrate == 115200
    with pytest.raises(ValueError, match="invalid baud rate 0"):
        console.set_baudrate(0)


def test_the_build_says_the_rate_and_the_entry_comes_first(link_to):
    link = link_to("esp32c3", 9600, app="Slow")
    link.app_baudrate = 9600
    assert link.console_baudrate == 9600
    link.boot().expect("talker is ready", timeout=3)


def test_the_entry_comes_before_the_build(link_to):
    link = link_to("esp32c3", 57600, console_baud=57600)
    link.app_baudrate = 9600
    assert link.console_baudrate == 57600
    link.boot().expect("talker is ready", timeout=3)


@pytest.mark.parametrize("link_to", ["served"], indirect=True)
def test_lines(link_to):
    link = link_to("esp32c3")
    console = link.boot()
    console.expect("talker is ready", timeout=3)
    console.expect_reset()
    console.set_lines(dtr=False, rts=True)  # EN is low
    console.write("anybody?")
    console.expect_silence(0.2)
    assert "anybody" not in console.text
    console.set_lines(dtr=False, rts=False)
    console.expect("talker is ready", timeout=3)
    console.set_lines(dtr=False, rts=True)
    time.sleep(0.05)
    console.set_lines(dtr=True, rts=False)  # the boot strap is low when EN rises
    console.expect("waiting for download", timeout=3, ignore_crashes=True)


def test_a_port_without_lines():
    master, slave = os.openpty()
    console = Console(serial.Serial(os.ttyname(slave)), board="pty")
    with pytest.raises(PortError, match="cannot set DTR and RTS"):
        console.set_lines(dtr=True, rts=True)
    os.close(master)
    os.close(slave)


# -- a port of its own


@pytest.fixture
def two_ports(tmp_path, monkeypatch, start_serving, flash_of, build_of):
    """A rack whose board has its loader on one port and its console on another."""
    monkeypatch.setenv("PYTEST_ESP_LOCK_DIR", str(tmp_path / "locks"))
    monkeypatch.setenv("PYTEST_ESP_STATE_DIR", str(tmp_path / "state"))
    flash = tmp_path / "flash.bin"
    flash.write_bytes(bytes(flash_of(build_of("esp32c3"))).ljust(4 << 20, b"\xff"))
    listen = ("--listen", "rfc2217://127.0.0.1:0", "--listen", "socket://127.0.0.1:0")
    served = start_serving("sim", "esp32c3", *listen, "--flash", flash, "--app", "echo")
    path = tmp_path / "boards.toml"

    def make(console=None):
        console = console or served.url("socket")
        path.write_text(
            f'[boards.it]\nbackend="serial"\nchip="esp32c3"\nport="{served.url("rfc2217")}"\n'
            f'console_port="{console}"\nallow=["read"]\n'
        )
        return load_rack(path)

    return make


def test_the_console_has_its_own_port(two_ports):
    rack = two_ports()
    with Link(make_board(rack.board("it"), rack)) as link:
        esp = Esp(link)
        assert esp.chip.reset("app").reason == "POWERON"
        link.console.expect("ready", timeout=3)
        link.console.write("hello")
        link.console.expect("hello", timeout=3)
        esp.chip.identify()
        assert "waiting for download" in link.console.text  # it is read also while the loader runs
        assert esp.chip.monitor(0.5, reset=True).lines[0][1].startswith("ESP-ROM")


def test_both_ports_are_the_board(two_ports):
    rack = two_ports()
    spec = rack.board("it")
    assert rack.board_at(spec.port) is spec
    assert rack.board_at(spec.console_port) is spec
    path = rack.path.with_name("other.toml")
    path.write_text(f'[boards.other]\nbackend="serial"\nchip="esp32c3"\nport="{spec.console_port}"\n')
    other = load_rack(path)
    with rack.lease("it", purpose="one")[0]:
        assert holder_of(other.board("other"), other).purpose == "one"
        with pytest.raises(LeaseError, match="held"):
            other.lease("other", purpose="other", timeout=0.1)
    assert holder_of(other.board("other"), other) is None
    with other.lease("other", purpose="other")[0]:
        assert holder_of(spec, rack).purpose == "other"


@pytest.mark.parametrize("console", ["/dev/ttyNOTHERE", "socket://127.0.0.1:1", "usb:1234:5678"])
def test_a_missing_console_port_is_named(two_ports, console):
    rack = two_ports(console)
    with pytest.raises(PortError, match="console port") as caught, Link(make_board(rack.board("it"), rack)) as link:
        link.console  # noqa: B018
    assert caught.value.is_fault
    assert console in str(caught.value)
