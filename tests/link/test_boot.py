"""Which banner proves a reset by EN."""

import pytest

from pytest_esp.link import boot

ESP32 = "ets Jul 29 2019 12:21:46\r\n\r\nrst:0x{} ({}),boot:0x13 (SPI_FAST_FLASH_BOOT)\r\n"
NEWER = "ESP-ROM:esp32c3-api1-20210207\r\nBuild:Feb  7 2021\r\nrst:0x{} ({}),boot:0xd (SPI_FAST_FLASH_BOOT)\r\n"


class Text:
    """A console that has said something."""

    def __init__(self, text):
        self.text = text

    def text_since(self, mark):
        return self.text[mark:]


@pytest.mark.parametrize(
    ("banner", "reason"),
    [
        (ESP32.format("1", "POWERON_RESET"), "POWERON_RESET"),
        (NEWER.format("1", "POWERON"), "POWERON"),
        (NEWER.format("15", "USB_UART_CHIP_RESET"), "USB_UART_CHIP_RESET"),
        ("ets Jan  8 2013,rst cause:2, boot mode:(3,6)\r\n", None),
        ("ets Jan  8 2013,rst cause:1, boot mode:(3,6)\r\n", None),
    ],
)
def test_power_on_and_the_reset_pin_prove_it(banner, reason):
    assert boot._PROOF.search(banner.encode())
    before = "tick\r\n" + NEWER.format("c", "RTC_SW_CPU_RST") + "load:0x3fcd5820,len:0x1714\r\n"
    assert boot._banner(Text(before + banner + "load:0x1\r\n"), 0) == (reason, len(banner))


@pytest.mark.parametrize(
    "banner",
    [
        ESP32.format("c", "SW_CPU_RESET"),
        ESP32.format("10", "RTCWDT_RTC_RESET"),
        ESP32.format("f", "RTCWDT_BROWN_OUT_RESET"),
        NEWER.format("3", "RTC_SW_SYS_RST"),
        NEWER.format("5", "DSLEEP"),
        NEWER.format("c", "RTC_SW_CPU_RST"),
        "ets Jan  8 2013,rst cause:4, boot mode:(3,6)\r\n",
    ],
)
def test_software_watchdogs_and_panics_do_not(banner):
    assert not boot._PROOF.search(banner.encode())
