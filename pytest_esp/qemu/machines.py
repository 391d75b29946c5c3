"""The chips that Espressif's QEMU emulates, and the command line parameters of each machine.

Sources: the names of machines and drivers, the memory and the straps of the download mode are from ESP-IDF
(``tools/idf_py_actions/qemu_ext.py``); the straps of a boot from flash are from the chips' technical reference manuals
(chapter "Boot Control"); the sizes of the eFuse files are those that ESP-IDF writes. All straps were verified in the
boot line of QEMU 9.2.2 (``boot:0x12 (SPI_FAST_FLASH_BOOT)``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pytest_esp.errors import BackendError

Architecture = Literal["xtensa", "riscv32"]
ARCHITECTURES: tuple[Architecture, ...] = ("xtensa", "riscv32")


@dataclass(frozen=True)
class Machine:
    """An emulated chip.

    Attributes:
        chip: esptool's name of the chip.
        name: the name for QEMU's ``-machine``.
        strap_flash: GPIO_STRAP register for a boot from flash.
        strap_download: GPIO_STRAP register for the ROM's download mode over UART.
        strap_driver: the device whose property ``strap_mode`` is the strap; it cannot be changed at run time.
        efuse_drivers: names of the eFuse device in different builds, newest first; property ``drive``.
        efuse_size: the size of an eFuse file in bytes.
        watchdog_driver: the timer group; its property ``wdt_disable`` disables the watchdog.
        memory: QEMU's ``-m``, the size of the PSRAM; None if the machine has no PSRAM.
        needs_pace: whether the ROM loses data that arrives faster than the baud rate (see `pace`).
    """

    chip: str
    name: str
    architecture: Architecture
    strap_flash: int
    strap_download: int
    strap_driver: str
    efuse_drivers: tuple[str, ...]
    efuse_size: int
    watchdog_driver: str
    memory: str | None
    needs_pace: bool


MACHINES = {
    machine.chip: machine
    for machine in (
        Machine(
            chip="esp32",
            name="esp32",
            architecture="xtensa",
            strap_flash=0x12,
            strap_download=0x0F,
            strap_driver="esp32.gpio",
            efuse_drivers=("nvram.esp32.efuse",),
            efuse_size=124,
            watchdog_driver="timer.esp32.timg",
            memory="4M",
            needs_pace=True,
        ),
        Machine(
            chip="esp32s3",
            name="esp32s3",
            architecture="xtensa",
            strap_flash=0x04,
            strap_download=0x07,
            strap_driver="esp32s3.gpio",
            # Before 9.2.2 of August 2025 the machine had the eFuses of an ESP32-C3 (ESP-IDF's note: QEMU-201).
            efuse_drivers=("nvram.esp32s3.efuse", "nvram.esp32c3.efuse"),
            efuse_size=984,
            watchdog_driver="timer.esp32s3.timg",
            memory="32M",
            needs_pace=True,
        ),
        Machine(
            chip="esp32c3",
            name="esp32c3",
            architecture="riscv32",
            strap_flash=0x08,
            strap_download=0x02,
            strap_driver="esp32c3.gpio",
            efuse_drivers=("nvram.esp32c3.efuse",),
            efuse_size=984,
            watchdog_driver="timer.esp32c3.timg",
            memory=None,
            needs_pace=False,
        ),
    )
}
"""The machines by chip. Espressif's QEMU does not support other chips, including the ESP32-S2."""


def machine_for(chip: str) -> Machine:
    """Return the machine for *chip*.

    Raises:
        BackendError: if there is none; the message lists the supported chips.
    """
    if chip not in MACHINES:
        raise BackendError(
            f"QEMU has no machine for {chip}; it has {', '.join(MACHINES)}",
            hint='use a real board, or a simulated chip (backend "sim"), which runs no machine code',
        )
    return MACHINES[chip]
