"""The properties of a chip, from esptool's description of it."""

from __future__ import annotations

import functools
from typing import Any

from esptool.targets import CHIP_DEFS

from pytest_esp.errors import BackendError
from pytest_esp.formats.stubs import stub_entries
from pytest_esp.names import nearest

# A current revision of each chip (major * 100 + minor); v0.0 if it is the only one, or none is published.
# Source: the chips' errata documents. Images built with current ESP-IDF refuse the first samples of several chips.
_CURRENT_REVISION = {
    "esp32": 301, "esp32s2": 100, "esp32s3": 2, "esp32c3": 4, "esp32c2": 200, "esp32c6": 2, "esp32h2": 102,
    "esp32c5": 100, "esp32c61": 100, "esp32p4": 103,
}  # fmt: skip

# The crystal frequency of the usual module in MHz (chip datasheets), for chips on which esptool measures it.
_CRYSTAL_MHZ = {"esp8266": 26, "esp32c2": 26, "esp32c5": 48}

# The APB frequency in MHz while the stub runs, from the PLL; the ROM's loader uses the crystal's frequency.
# Source: esp-flasher-stub's ``main.c``, and ``clock.c`` of these chips in esp-stub-lib.
_APB_MHZ_OF_STUB = {"esp32": 80, "esp32s2": 80}

# The API version (formerly ECO version) in the ROM's security info, if it is not 0.
_ROM_API_VERSION = {"esp32c3": 3}

_NO_USB_SERIAL_JTAG = ("esp8266", "esp32", "esp32s2", "esp32c2")

# The ROMs of these chips attach the flash before they wait for a host (esptool's test_attach_flash).
_ATTACHED_BY_ROM = ("esp32s2", "esp32p4")


class ChipModel:
    """The properties of *chip* (a name from ``esptool.CHIP_LIST``).

    Raises:
        BackendError: if the installed esptool does not support the chip.
    """

    def __init__(self, chip: str) -> None:
        if chip not in CHIP_DEFS:
            raise BackendError(
                f"unknown chip {chip!r}",
                hint=f"nearest: {nearest(chip, CHIP_DEFS)}; the installed esptool supports {', '.join(CHIP_DEFS)}",
            )
        self.chip = chip
        self.rom: Any = CHIP_DEFS[chip]
        self.name: str = self.rom.CHIP_NAME
        self.is_8266 = chip == "esp8266"
        self.is_esp32 = chip == "esp32"
        self.has_efuses = not self.is_8266
        self.magic: int | None = self.rom.MAGIC_VALUE if self.rom.USES_MAGIC_VALUE else None
        self.image_chip_id: int | None = self.rom.IMAGE_CHIP_ID
        self.crystal_mhz = _crystal_mhz(chip, self.rom)
        self.flash_is_attached_by_rom = chip in _ATTACHED_BY_ROM
        self.rom_api_version = _ROM_API_VERSION.get(chip, 0)
        self.default_revision = _CURRENT_REVISION.get(chip, 0)
        self.has_usb_otg: bool = self.rom.USB_OTG_SUPPORTED
        self.has_usb_serial_jtag = chip not in _NO_USB_SERIAL_JTAG

    @property
    def security_info_size(self) -> int:
        """The size of the response to GET_SECURITY_INFO in bytes; 0 if the ROM does not support the command."""
        if not self.rom.SECURITY_INFO_SUPPORTED:
            return 0
        return 12 if self.chip == "esp32s2" else 20

    def uart_clock_mhz(self, *, stub: bool) -> int:
        """Return the UART's clock while the ROM or the *stub* runs: the APB on the ESP32 and the ESP32-S2."""
        of_rom = self.crystal_mhz * getattr(self.rom, "XTAL_CLK_DIVIDER", 1)
        return _APB_MHZ_OF_STUB.get(self.chip, of_rom) if stub else of_rom

    def uart_clock_divider(self, clock_mhz: int, baudrate: int) -> int:
        """Return the value of the UART's divider register at *baudrate* (see ``ESPLoader.get_crystal_freq``)."""
        return round(clock_mhz * 1e6 / baudrate) & self.rom.UART_CLKDIV_MASK

    def rom_baudrate(self, requested: int) -> int:
        """Return the actual baud rate after a change to *requested* by the ROM.

        The ESP32-C2's ROM assumes a crystal of 40 MHz (``ESP32C2ROM.change_baud`` works around it).
        """
        return requested * self.crystal_mhz // 40 if self.chip == "esp32c2" else requested

    @functools.cached_property
    def stub_entries(self) -> frozenset[int]:
        """The entry points of all stub flashers that the installed esptool has for this chip."""
        return stub_entries(self.rom.CHIP_NAME)

    def registers(self, revision: int) -> dict[int, int]:
        """Return the registers that esptool reads, with their reset values for *revision* (major * 100 + minor)."""
        values: dict[int, int] = {}
        if self.magic is not None:
            values[self.rom.CHIP_DETECT_MAGIC_REG_ADDR] = self.magic
        if self.is_esp32:
            # Bit 31 of the APB controller's date is bit 2 of the revision (ESP32 v3).
            third_bit = self.rom.APB_CTL_DATE_V if revision >= 300 else 0
            values[self.rom.APB_CTL_DATE_ADDR] = third_bit << self.rom.APB_CTL_DATE_S
            # Calibrated so that the ROM computes 40 MHz with CK8M_FREQ = 128: value * 15625 * 128 / 40.
            values[self.rom.RTCCALICFG1] = 800 << self.rom.TIMERS_RTC_CALI_VALUE_S
        if hasattr(self.rom, "PCR_SYSCLK_CONF_REG"):
            # The crystal frequency that the ROM assumes (``ESP32C5ROM.change_baud`` compares it with the real one).
            values[self.rom.PCR_SYSCLK_CONF_REG] = self.crystal_mhz << self.rom.PCR_SYSCLK_XTAL_FREQ_S
        return values


ESP32_CK8M_FREQ = 128
"""The eFuse CK8M_FREQ of a simulated ESP32: 8.5 MHz nominal in the unit that ``get_rom_cal_crystal_freq`` reads."""


def _crystal_mhz(chip: str, rom: Any) -> int:
    try:
        return rom.get_crystal_freq(None)  # constant if the chip supports one crystal only
    except AttributeError:
        return _CRYSTAL_MHZ.get(chip, 40)
