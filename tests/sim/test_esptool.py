"""Unmodified esptool, through its Python API, on every chip that it knows."""

import random

import pytest
from esptool import cmds
from esptool.reset import ClassicReset
from esptool.targets import CHIP_DEFS, CHIP_LIST
from esptool.util import FatalError, UnsupportedCommandError

from pytest_esp.sim.chip import SimChip

WITHOUT_STUB = ("esp32e22",)  # the installed esptool has no stub flasher for it
SOURCE = random.Random(1)
NOISE = SOURCE.randbytes(5001)
TEXT = b"the quick brown fox jumps over the lazy dog. " * 200


def loaders():
    for chip in CHIP_LIST:
        yield pytest.param((chip, False), id=f"{chip}-rom")
        if chip not in WITHOUT_STUB:
            yield pytest.param((chip, True), id=f"{chip}-stub")


@pytest.fixture(params=loaders())
def session(request, bench):
    name, stub = request.param
    chip = bench.chip(name, mac="7C:DF:A1:00:00:01")
    return chip, bench.esptool(chip, stub=stub)


def test_the_chips_without_a_stub_are_still_those():
    with_stub = [chip for chip in CHIP_LIST if SimChip(chip).model.stub_entries]
    assert set(CHIP_LIST) - set(with_stub) == set(WITHOUT_STUB)


def test_identity(session):
    chip, esp = session
    assert bytes(esp.read_mac("BASE_MAC")).hex(":") == chip.mac == "7c:df:a1:00:00:01"
    description = esp.get_chip_description()
    assert "unknown" not in description.lower()
    assert CHIP_DEFS[chip.chip].CHIP_NAME.replace("ESP8266", "ESP8266EX") in description
    assert esp.get_crystal_freq() == chip.model.crystal_mhz
    if chip.chip != "esp8266":
        assert esp.get_chip_revision() == chip.revision
    assert esp.get_chip_features()


@pytest.mark.parametrize("chip", [chip for chip in CHIP_LIST if chip != "esp32h4"])
def test_detection(chip, bench):
    simulated = bench.chip(chip)
    esp = cmds.detect_chip(bench.port(simulated), connect_mode="no-reset")
    assert type(esp) is CHIP_DEFS[chip]


def test_flash_id(session):
    _, esp = session
    cmds.attach_flash(esp)
    assert esp.flash_id() == 0x1640C8
    assert cmds.detect_flash_size(esp) == "4MB"


@pytest.mark.parametrize("compress", [False, True], ids=["plain", "compressed"])
def test_write_read_verify(session, compress, tmp_path):
    chip, esp = session
    if compress and chip.chip == "esp8266" and not esp.IS_STUB:
        pytest.skip("the ESP8266's ROM has no compressed writes")
    cmds.attach_flash(esp)
    cmds.write_flash(esp, [(0x20000, TEXT)], compress=compress, no_compress=not compress)
    assert chip.flash.read(0x20000, len(TEXT)) == TEXT
    if chip.chip == "esp8266" and not esp.IS_STUB:
        return  # nor can it read, or count an MD5
    assert cmds.read_flash(esp, 0x20000, 300) == TEXT[:300]
    cmds.verify_flash(esp, [(0x20000, TEXT)])
    with pytest.raises(FatalError, match="Verification failed"):
        cmds.verify_flash(esp, [(0x20000, TEXT[:-1] + b"!")])


def test_erase(session):
    chip, esp = session
    cmds.attach_flash(esp)
    chip.flash.program(0x1F000, b"\0" * 0x4000)
    if chip.chip == "esp8266" and not esp.IS_STUB:
        esp.flash_begin(0x2000, 0x20000)
    else:
        cmds.erase_region(esp, 0x20000, 0x2000)
    assert chip.flash.read(0x1FFFF, 0x2002) == b"\0" + b"\xff" * 0x2000 + b"\0"
    if esp.IS_STUB:
        cmds.erase_flash(esp)
        assert chip.flash.read(0, chip.flash.size) == b"\xff" * chip.flash.size


def test_baud_rate(session):
    chip, esp = session
    if chip.chip == "esp8266" and not esp.IS_STUB:
        pytest.skip("the ESP8266's ROM cannot change its baud rate")
    esp.change_baud(460800)
    assert abs(chip.baudrate - 460800) < 460800 * 0.01
    assert esp.get_crystal_freq() == chip.model.crystal_mhz
    cmds.attach_flash(esp)
    assert esp.flash_id() == 0x1640C8


def test_the_divider_is_that_of_the_clock_that_runs(session):
    """The stub runs the APB of the ESP32 and the ESP32-S2 from the PLL; esptool knows it of the ESP32 alone."""
    chip, esp = session
    of_rom = chip.model.crystal_mhz * getattr(esp, "XTAL_CLK_DIVIDER", 1)
    wanted = 80 if esp.IS_STUB and chip.chip in ("esp32", "esp32s2") else of_rom

    def clock():
        return chip.baudrate * (esp.read_reg(esp.UART_CLKDIV_REG) & esp.UART_CLKDIV_MASK) / 1e6

    assert clock() == pytest.approx(wanted, rel=0.01)
    if chip.chip != "esp8266" or esp.IS_STUB:
        esp.change_baud(460800)
        assert clock() == pytest.approx(wanted, rel=0.01)
    if chip.chip == "esp32" and esp.IS_STUB:
        assert CHIP_DEFS["esp32"].get_crystal_freq(esp) == 48  # what the ROM's class makes of it


def test_registers_hold_what_was_written(session):
    _, esp = session
    address = next(start for start, _, name in type(esp).MEMORY_MAP if "DRAM" in name or "DATA" in name) + 0x8000
    esp.write_reg(address, 0x12345678)
    esp.write_reg(address, 0x0000FF00, mask=0xFF00)
    assert esp.read_reg(address) == 0x1234FF78


@pytest.mark.parametrize("chip", [chip for chip in CHIP_LIST if chip not in WITHOUT_STUB])
def test_odd_sizes_and_reads(chip, bench):
    simulated = bench.chip(chip)
    esp = bench.esptool(simulated, stub=True)
    cmds.attach_flash(esp)
    simulated.flash.program(0x3000, NOISE)
    for offset, size in ((0, 1), (1, 4095), (3, 4096), (5, 4097), (0, 5001)):
        assert esp.read_flash(0x3000 + offset, size) == NOISE[offset:][:size].ljust(size, b"\xff")
    cmds.write_flash(esp, [(0x10000, NOISE[:1])])
    assert simulated.flash.read(0x10000, 2) == NOISE[:1] + b"\xff"


@pytest.mark.parametrize("chip", ["esp32s3", "esp32c5", "esp32p4"])
def test_flash_above_16_megabytes(chip, bench):
    simulated = bench.chip(chip, flash_size=32 * 1024 * 1024)
    esp = bench.esptool(simulated, stub=True)
    cmds.attach_flash(esp)
    assert cmds.detect_flash_size(esp) == "32MB"
    cmds.write_flash(esp, [(0x1800000, TEXT)], flash_size="keep")
    assert simulated.flash.read(0x1800000, len(TEXT)) == TEXT
    assert simulated.flash.read(0x800000, len(TEXT)) == b"\xff" * len(TEXT)
    assert esp.read_flash(0x1800000, 100) == TEXT[:100]


def test_flash_status(bench):
    simulated = bench.chip("esp32")
    esp = bench.esptool(simulated, stub=True)
    cmds.attach_flash(esp)
    esp.write_status(0x0240, 2, set_non_volatile=True)
    assert esp.read_status(2) == 0x0240


def test_flash_answers_once_it_is_attached(bench):
    esp = bench.esptool(bench.chip("esp32c3"))
    assert esp.flash_id() == 0xFFFFFF
    esp.flash_spi_attach(0)
    assert esp.flash_id(cache=False) == 0x1640C8


def test_sfdp(bench):
    esp = bench.esptool(bench.chip("esp32c3"), stub=True)
    cmds.attach_flash(esp)
    assert esp.read_spiflash_sfdp(0, 32) == int.from_bytes(b"SFDP", "little")
    density = esp.read_spiflash_sfdp(0x34, 32)
    assert density + 1 == 4 * 1024 * 1024 * 8


@pytest.mark.parametrize("chip", ["esp8266", "esp32", "esp32c6"])
def test_a_program_in_ram(chip, bench):
    simulated = bench.chip(chip)
    esp = bench.esptool(simulated)
    start = next(start for start, _, name in esp.MEMORY_MAP if name == "IRAM") + 0x400
    esp.mem_begin(len(TEXT), 3, esp.ESP_RAM_BLOCK, start)
    for number in range(0, 2):
        esp.mem_block(TEXT[number * esp.ESP_RAM_BLOCK :][: esp.ESP_RAM_BLOCK], number)
    assert esp.read_reg(start) == int.from_bytes(TEXT[:4], "little")
    esp.mem_finish(start)
    assert simulated.mode == "ram-app"


@pytest.mark.parametrize("chip", ["esp32s2", "esp32s3", "esp32c3", "esp32c5", "esp32c61", "esp32p4"])
def test_watchdog_reset(chip, bench):
    simulated = bench.chip(chip)
    esp = bench.esptool(simulated, stub=True)
    esp._port.timeout = 2
    esp.watchdog_reset()
    assert b"invalid header: 0xffffffff" in esp._port.read(esp._port.in_waiting)
    assert simulated.mode == "app"


@pytest.mark.parametrize("chip", ["esp32s2", "esp32c3", "esp32c6"])
def test_security_info(chip, bench):
    simulated = bench.chip(chip)
    info = bench.esptool(simulated).get_security_info()
    assert info["parsed_flags"]["SECURE_DOWNLOAD_ENABLE"] is False
    assert info["chip_id"] == (None if chip == "esp32s2" else CHIP_DEFS[chip].IMAGE_CHIP_ID)


@pytest.mark.parametrize("chip", ["esp8266", "esp32"])
def test_security_info_is_unknown_to_the_first_chips(chip, bench):
    with pytest.raises(UnsupportedCommandError):
        bench.esptool(bench.chip(chip)).get_security_info()


@pytest.mark.parametrize("chip", ["esp32s2", "esp32s3", "esp32c3", "esp32p4"])
def test_secure_download_mode(chip, bench):
    simulated = bench.chip(chip, secure_download=True)
    esp = bench.esptool(simulated)
    assert esp.secure_download_mode
    assert esp.get_security_info()["parsed_flags"]["SECURE_DOWNLOAD_ENABLE"] is True
    with pytest.raises(FatalError):
        esp.read_reg(esp.UART_CLKDIV_REG)
    with pytest.raises(FatalError):
        esp.flash_md5sum(0, 16)
    cmds.attach_flash(esp)
    cmds.write_flash(esp, [(0x1000, TEXT)])
    assert simulated.flash.read(0x1000, len(TEXT)) == TEXT


def test_the_esp32s3_starts_its_stub_under_secure_boot(bench):
    simulated = bench.chip("esp32s3")
    simulated.efuses.preset("SECURE_BOOT_EN", 1)
    esp = bench.esptool(simulated)
    assert esp.get_secure_boot_enabled()
    assert esp.run_stub().IS_STUB
    assert simulated.mode == "stub"


def test_the_wrong_chip_is_told_apart(bench):
    esp = CHIP_DEFS["esp32s3"](bench.port(bench.chip("esp32c3")))
    with pytest.raises(FatalError, match=r"This chip is ESP32-C3, not ESP32-S3"):
        esp.connect("no-reset")


def test_a_reset_through_the_lines_enters_the_bootloader(bench):
    simulated = bench.chip("esp32c3", rise_time=0.25)
    simulated.reset(bootloader=False)
    port = bench.port(simulated)
    ClassicReset(port, 0.05)()
    assert simulated.mode == "bootloader"
    assert port.read(port.in_waiting).endswith(b"waiting for download\r\n")
