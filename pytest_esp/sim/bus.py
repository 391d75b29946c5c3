"""A chip's address space: RAM, registers, the SPI controller and the eFuse controller."""

from __future__ import annotations

import struct
from collections.abc import Callable

from pytest_esp.formats.nor_flash import NorFlash
from pytest_esp.sim.efuse import Efuses
from pytest_esp.sim.model import ChipModel

_PAGE = 0x1000
_SPI_CMD_USR = 1 << 18
_USR_ADDR, _USR_MISO, _USR_MOSI = 1 << 30, 1 << 28, 1 << 27


class Bus:
    """Routes 32-bit accesses. Addresses that are not simulated read back the written value, initially 0.

    Args:
        watchdog: called with the delay in seconds when the RTC watchdog is set to reset the chip.
        clock_divider: returns the UART's clock divider.
        flash_attached: returns whether the SPI controller's pins are connected to the flash.
    """

    def __init__(
        self,
        model: ChipModel,
        flash: NorFlash,
        efuses: Efuses | None,
        fixed: dict[int, int],
        watchdog: Callable[[float], None],
        clock_divider: Callable[[], int],
        flash_attached: Callable[[], bool],
    ) -> None:
        self._model = model
        self._flash = flash
        self._efuses = efuses
        self._fixed = fixed
        self._watchdog = watchdog
        self._clock_divider = clock_divider
        self._flash_attached = flash_attached
        self._pages: dict[int, bytearray] = {}
        rom = model.rom
        self._clock_divider_register: int = rom.UART_CLKDIV_REG
        self._spi_cmd: int = rom.SPI_REG_BASE
        self._wdt_config: int = getattr(rom, "RTC_CNTL_WDTCONFIG0_REG", -1)
        self._wdt_timeout: int = getattr(rom, "RTC_CNTL_WDTCONFIG1_REG", -1)

    def read(self, address: int) -> int:
        """Return the 32-bit word at *address*."""
        if address in self._fixed:
            return self._fixed[address]
        if self._efuses is not None and address in self._efuses:
            return self._efuses.read(address)
        if address == self._clock_divider_register:
            return self._clock_divider()
        return self._word(address)

    def write(self, address: int, value: int, mask: int = 0xFFFFFFFF) -> None:
        """Write the bits of *mask* to the word at *address*, with all side effects."""
        if self._efuses is not None and address in self._efuses:
            self._efuses.write(address, value, mask)
            return
        value = (self._word(address) & ~mask) | (value & mask)
        self.load(address, struct.pack("<I", value & 0xFFFFFFFF))
        if address == self._spi_cmd and value & _SPI_CMD_USR:
            self._run_spi_command()
            self.load(address, struct.pack("<I", value & ~_SPI_CMD_USR))
        elif address == self._wdt_config and value >> 31:
            self._watchdog(self._word(self._wdt_timeout) / 136_000)  # the slow clock runs at about 136 kHz

    def load(self, address: int, data: bytes) -> None:
        """Write *data* to memory."""
        while data:
            offset = address % _PAGE
            page = self._pages.setdefault(address // _PAGE, bytearray(_PAGE))
            part = data[: _PAGE - offset]
            page[offset : offset + len(part)] = part
            address, data = address + len(part), data[len(part) :]

    def clear(self) -> None:
        """Clear all memory, after a loss of power."""
        self._pages.clear()

    def _word(self, address: int) -> int:
        page = self._pages.get(address // _PAGE)
        if page is None or address % _PAGE > _PAGE - 4:
            return 0
        return struct.unpack_from("<I", page, address % _PAGE)[0]

    def _run_spi_command(self) -> None:
        """Run a user command on the SPI controller (``ESPLoader.run_spiflash_command`` sets it up)."""
        rom, base = self._model.rom, self._spi_cmd
        user, user1 = self._word(base + rom.SPI_USR_OFFS), self._word(base + rom.SPI_USR1_OFFS)
        opcode = self._word(base + rom.SPI_USR2_OFFS) & 0xFF
        if rom.SPI_MOSI_DLEN_OFFS is not None:
            mosi_bits = self._word(base + rom.SPI_MOSI_DLEN_OFFS) + 1
            miso_bits = self._word(base + rom.SPI_MISO_DLEN_OFFS) + 1
        else:  # ESP8266: both lengths are in USR1
            mosi_bits, miso_bits = (user1 >> 17 & 0x1FF) + 1, (user1 >> 8 & 0x1FF) + 1
        data = b"".join(struct.pack("<I", self._word(base + rom.SPI_W0_OFFS + offset)) for offset in range(0, 64, 4))
        sent = data[: mosi_bits // 8] if user & _USR_MOSI else b""
        wanted = min(-(-miso_bits // 8), 64) if user & _USR_MISO else 0
        if self._flash_attached():
            answer = self._flash.command(opcode, self._spi_address(user, user1), sent, wanted)
        else:
            answer = b"\xff" * wanted  # the line is not driven
        if wanted:
            self.load(base + rom.SPI_W0_OFFS, answer.ljust(-(-wanted // 4) * 4, b"\x00"))

    def _spi_address(self, user: int, user1: int) -> int:
        if not user & _USR_ADDR:
            return 0
        bits = (user1 >> 26) + 1
        address = self._word(self._spi_cmd + 4)
        return address >> (32 - bits) if self._model.rom.SPI_ADDR_REG_MSB else address & ((1 << bits) - 1)
