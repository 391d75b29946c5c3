"""Whether the app in flash runs: what only the ROM or the bootloader prints is no proof."""

import pytest

from pytest_esp.operations.chip.running import ConsoleText, _run

ROM = """ESP-ROM:esp32c3-api1-20210207
Build:Feb  7 2021
rst:0x1 (POWERON),boot:0xc (SPI_FAST_FLASH_BOOT)
SPIWP:0xee
mode:DIO, clock div:2
load:0x3fcd5830,len:0x116c
entry 0x403cc710
"""
ROM_ESP32 = """ets Jul 29 2019 12:21:46

rst:0x1 (POWERON_RESET),boot:0x13 (SPI_FAST_FLASH_BOOT)
configsip: 0, SPIWP:0xee
clk_drv:0x00,q_drv:0x00,d_drv:0x00,cs0_drv:0x00,hd_drv:0x00,wp_drv:0x00
mode:DIO, clock div:2
load:0x3fff0030,len:7176
entry 0x400805e4
"""
ROM_8266 = """
 ets Jan  8 2013,rst cause:2, boot mode:(3,6)

load 0x40100000, len 2408, room 16
tail 8
chksum 0xe5
load 0x3ffe8000, len 776, room 0
csum 0x46
v3d128e5c
~ld
"""
BOOTLOADER = "I (24) boot: ESP-IDF v5.5 2nd stage bootloader\nI (31) esp_image: segment 0: paddr=00010020\n"


class Console:
    def __init__(self, text):
        self.text = text

    def text_since(self, start):
        return self.text


class Link:
    def __init__(self, text):
        self.console = Console(text)


def state_after(text):
    said = ConsoleText(lines=(), matched=None, crash=None, duration_seconds=1.0, dropped_bytes=0)
    return _run(Link(text), said, None, 0, None).state


@pytest.mark.parametrize("rom", [ROM, ROM_ESP32, ROM_8266])
def test_the_banner_of_the_rom_is_no_app(rom):
    assert state_after(rom) == "silent"
    assert state_after(rom + "hello\n") == "running"
    assert state_after(rom.replace("\n", "\r\n")) == "silent"


def test_a_bootloader_that_has_not_loaded_the_app():
    assert state_after(ROM + BOOTLOADER) == "silent"
    assert state_after(ROM + BOOTLOADER + "I (80) boot: Loaded app from partition at offset 0x10000\n") == "running"
    assert state_after(ROM + BOOTLOADER + "I (90) cpu_start: Unicore app\n") == "running"


def test_a_rom_at_another_baud_rate():
    assert state_after("\ufffd\x02\ufffdl\n") == "silent"
    assert state_after("") == "silent"
