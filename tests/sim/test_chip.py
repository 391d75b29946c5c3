"""A chip as a whole: resets, modes, speeds, what it does when its host leaves, and its boot."""

import pytest
from esptool.targets import CHIP_LIST

from pytest_esp.errors import BackendError
from pytest_esp.sim import chip as chip_module
from pytest_esp.sim.app import EchoApp
from pytest_esp.sim.chip import SimChip


class Raw:
    """A host on a transport without lines: a socket, a pty."""

    def __init__(self, chip):
        self.received = bytearray()
        self.host = chip.wire.connect(self.received.extend, control_lines=False)


@pytest.fixture
def echo_chip(bench, monkeypatch):
    """A chip that boots into the app `EchoApp`, whatever is in its flash."""
    chip = bench.chip("esp32c3", app=EchoApp)
    monkeypatch.setattr(chip_module, "boot", lambda *_, **__: chip_module.BootResult(b"booting\r\n", started=True))
    return chip


@pytest.mark.parametrize("name", CHIP_LIST)
def test_every_chip_has_modes(name):
    chip = SimChip(name)
    assert chip.mode == "off"
    chip.reset(bootloader=True)
    assert chip.mode == "bootloader"
    chip.hold()
    assert chip.mode == "held"
    chip.reset(bootloader=False)
    assert chip.mode == "app"
    assert b"invalid header: 0xffffffff" in chip.last_boot.log or name == "esp8266"
    chip.close()
    chip.close()
    assert chip.mode == "off"


def test_an_unknown_chip_is_refused_with_the_nearest():
    with pytest.raises(BackendError, match="esp32c33") as error:
        SimChip("esp32c33")
    assert "esp32c3" in (error.value.hint or "")


@pytest.mark.parametrize("mac", ["", "7C:DF:A1:00:00", "7C:DF:A1:00:00:GG", "01:00:5E:00:00:01"])
def test_a_bad_mac_is_refused(mac):
    if not mac:
        assert SimChip("esp32", mac=mac).mac == SimChip("esp32").mac
        return
    with pytest.raises(BackendError, match=mac):
        SimChip("esp32", mac=mac)


def test_a_made_up_mac_is_the_same_for_the_same_name():
    first, again, other = (SimChip("esp32c3", name=name).mac for name in ("a", "a", "b"))
    assert first == again != other


@pytest.mark.parametrize("chip", ["esp8266", "esp32"])
def test_no_secure_download_mode_on_the_first_chips(chip):
    with pytest.raises(BackendError, match="no secure download mode"):
        SimChip(chip, secure_download=True)


def test_the_lines_reset_it(echo_chip, bench):
    port = bench.port(echo_chip)
    port.setDTR(False)
    port.setRTS(True)
    assert echo_chip.mode == "held"
    port.write(b"nobody hears this")
    port.setRTS(False)
    assert echo_chip.mode == "app"
    assert port.read(port.in_waiting) == b"booting\r\nready\r\n"
    port.write(b"hello")
    assert port.read(5) == b"hello"


def test_an_app_can_restart_the_chip(echo_chip, bench):
    port = bench.port(echo_chip)
    echo_chip.reset(bootloader=False)
    port.reset_input_buffer()
    echo_chip._app.restart("RTC_SW_CPU_RST")
    assert port.read(port.in_waiting) == b"booting\r\nready\r\n"


def test_a_blank_chip_loops(bench, monkeypatch):
    monkeypatch.setattr(chip_module, "_BOOT_LOOP_PERIOD", 0.01)
    chip = bench.chip("esp32c3")
    port = bench.port(chip)
    port.timeout = 5
    chip.reset(bootloader=False)
    log = port.read_until(b"rst:0x7 (TG0WDT_SYS_RST)")
    assert b"rst:0x1 (POWERON)" in log
    assert log.count(b"invalid header: 0xffffffff\r\n") == 8
    chip.reset(bootloader=True)
    assert chip.mode == "bootloader"


# -- speeds


def test_a_host_at_another_speed_sees_noise(bench):
    chip = bench.chip("esp32c3")
    esp = bench.esptool(chip, stub=True)
    esp.change_baud(921600)
    port = esp._port
    port.baudrate = 115200
    port.reset_input_buffer()
    port.write(b"\xc0\x00\x0a\x04\x00\x00\x00\x00\x00\x00\x00\x00\x3f\xc0")
    assert port.in_waiting == 0
    port.baudrate = 921600
    assert esp.read_reg(esp.UART_CLKDIV_REG) & 0xFFFFF == round(40e6 / 921600)


def test_text_at_another_speed_is_noise(echo_chip, bench):
    port = bench.port(echo_chip)
    port.baudrate = 921600
    echo_chip.reset(bootloader=False)
    noise = port.read(port.in_waiting)
    assert len(noise) == len(b"booting\r\nready\r\n")
    assert all(byte & 0x80 and byte != 0xC0 for byte in noise)
    port.write(b"hello")
    assert port.in_waiting == 0


def test_the_rom_finds_the_hosts_speed_once(bench):
    chip = bench.chip("esp32c3")
    port = bench.port(chip)
    port.baudrate = 57600
    sync = b"\xc0\x00\x08\x24\x00\x00\x00\x00\x00\x07\x07\x12\x20" + 32 * b"\x55" + b"\xc0"
    port.write(sync)
    assert port.read(port.in_waiting).count(b"\xc0\x01\x08") == 8
    assert chip.baudrate == 57600
    port.baudrate = 115200
    port.write(sync)
    assert port.in_waiting == 0
    chip.reset(bootloader=True)
    port.reset_input_buffer()
    port.write(sync)
    assert port.read(port.in_waiting).count(b"\xc0\x01\x08") == 8


# -- a host without reset lines leaves


@pytest.mark.parametrize(("on_close", "mode"), [("bootloader", "bootloader"), ("app", "app"), ("keep", "stub")])
def test_a_loader_after_its_host_left(on_close, mode, bench):
    chip = bench.chip("esp32c3", on_close=on_close)
    bench.esptool(chip, stub=True)
    assert chip.mode == "stub"
    Raw(chip).host.close()
    assert chip.mode == mode


def test_a_host_with_lines_leaves_everything_as_it_is(bench):
    chip = bench.chip("esp32c3")
    esp = bench.esptool(chip, stub=True)
    esp._port.close()
    assert chip.mode == "stub"


def test_a_program_in_ram_outlives_the_host_that_loaded_it(bench):
    chip = bench.chip("esp32c3")
    loader, reader = Raw(chip), Raw(chip)
    chip.run_ram(0x40380000)
    loader.host.close()
    assert chip.mode == "ram-app"
    reader.host.close()
    assert chip.mode == "bootloader"


def test_an_app_in_flash_is_left_alone(echo_chip):
    echo_chip.reset(bootloader=False)
    for _ in range(2):
        Raw(echo_chip).host.close()
        assert echo_chip.mode == "app"


def test_a_failed_boot_ends_with_the_next_host(bench):
    chip = bench.chip("esp32c3")
    chip.reset(bootloader=False)
    Raw(chip).host.close()
    assert chip.mode == "bootloader"


def test_nothing_is_lost_on_close(tmp_path, bench):
    from pytest_esp.formats.nor_flash import NorFlash

    flash = NorFlash(1024 * 1024, tmp_path / "flash.bin")
    chip = SimChip("esp32c3", flash=flash, efuse_file=tmp_path / "efuses.bin")
    flash.program(0x100, b"kept")
    chip.efuses.preset("DIS_PAD_JTAG", 1)
    chip.close()
    assert (tmp_path / "flash.bin").read_bytes()[0x100:0x104] == b"kept"
    assert SimChip("esp32c3", efuse_file=tmp_path / "efuses.bin").efuses.field("DIS_PAD_JTAG") == 1
