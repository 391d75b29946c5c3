"""The eFuse file of a QEMU machine."""

from __future__ import annotations

import struct
from typing import Any

from pytest_esp.qemu.machines import Machine
from pytest_esp.sim.efuse import Efuses, qemu_offsets
from pytest_esp.sim.efuse_map import efuse_map
from pytest_esp.sim.model import ChipModel

_APB_DATE = 0x96042000  # of QEMU's ESP32; bit 31 is the third bit of the major version
_GUARDS = (
    *("ABS_DONE_0", "ABS_DONE_1", "FLASH_CRYPT_CNT", "UART_DOWNLOAD_DIS"),
    *("SECURE_BOOT_EN", "SPI_BOOT_CRYPT_CNT", "ENABLE_SECURITY_DOWNLOAD", "DIS_DOWNLOAD_MODE"),
)


def new_efuses(machine: Machine, mac: bytes, revision: int | None = None) -> bytes:
    """Return the eFuse file of a new *machine*, with a MAC address and a revision (major * 100 + minor).

    The registers have the values that espefuse would read on such a chip (`sim.efuse`).
    """
    model = ChipModel(machine.chip)
    efuses = Efuses(model, mac, model.default_revision if revision is None else revision)
    return efuses.qemu_file()


class EfuseFile:
    """The contents *data* of the eFuse file of *machine*."""

    def __init__(self, machine: Machine, data: bytes) -> None:
        self._chip = machine.chip
        model = ChipModel(machine.chip)
        self._map = efuse_map(machine.chip, model.default_revision)
        offsets = qemu_offsets(machine.chip)
        words = struct.unpack_from(f"<{len(offsets)}I", data)
        self._words = {self._map.base + offset: word for offset, word in zip(offsets, words, strict=True)}
        if model.is_esp32:
            self._words[model.rom.APB_CTL_DATE_ADDR] = _APB_DATE
        self._rom = model.rom

    @property
    def revision(self) -> int:
        """The chip revision, major * 100 + minor, as from ``ESPLoader.get_chip_revision``."""
        return int(self._reader().get_chip_revision())

    @property
    def mac(self) -> bytes:
        """The base MAC address, as from ``ESPLoader.read_mac``."""
        return bytes(self._reader().read_mac("BASE_MAC"))

    def _reader(self) -> Any:
        """Return esptool's class for the chip, reading these registers."""
        words = self._words

        class Reader(self._rom):
            def __init__(self) -> None: ...

            def read_reg(self, addr: int, timeout: float = 0.0) -> int:
                return words[addr]

        return Reader()

    @property
    def guards_flash(self) -> bool:
        """Whether secure boot, flash encryption or a restriction of the download mode is enabled."""
        return any(self._field(name) for name in _GUARDS if name in self._map.fields)

    def _field(self, name: str) -> int:
        address, bit, length = self._map.fields[name]
        return self._words[address] >> bit & (1 << length) - 1
