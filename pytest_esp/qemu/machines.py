"""The chips that Espressif's QEMU emulates, and what each machine is told on the command line.

Sources: the names of machines and drivers, the memory and the straps of the download mode are those of ESP-IDF
(``tools/idf_py_actions/qemu_ext.py``); the straps of a boot from flash are in the chips' technical reference manuals
(chapter "Boot Control"); the sizes of the eFuse files are those that ESP-IDF writes. All straps were seen in the boot
line of QEMU 9.2.2 (``boot:0x12 (SPI_FAST_FLASH_BOOT)``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pytest_esp.errors import BackendError

Architecture = Literal["xtensa", "riscv32"]
ARCHITECTURES: tuple[Architecture, ...] = ("xtensa", "riscv32")


@dataclass(frozen=True)
class Machine:
    """One emulated chip.

    Attributes:
        chip: as esptool names it.
        name: of QEMU's ``-machine``.
        strap_flash: GPIO_STRAP register for a boot from flash.
        strap_download: GPIO_STRAP register for the ROM's download mode over UART.
        strap_driver: device whose property ``strap_mode`` holds the strap; it cannot be changed while the machine runs.
        efuse_drivers: names that the eFuse device goes by in different builds, newest first; property ``drive``.
        efuse_size: bytes of an eFuse file.
        watchdog_driver: timer group; its property ``wdt_disable`` keeps the watchdog from biting on a slow host.
        memory: QEMU's ``-m``: the size of the PSRAM; None where the machine has none.
        needs_pace: whether its ROM loses what the UART is given faster than at its baud rate (see `pace`).
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
"""By chip. Espressif's QEMU has no machine for the other chips, the ESP32-S2 included."""


def machine_for(chip: str) -> Machine:
    """Return the machine of *chip*.

    Raises:
        BackendError: if there is none; it names the chips that have one.
    """
    if chip not in MACHINES:
        raise BackendError(
            f"QEMU has no machine for {chip}; it has {', '.join(MACHINES)}",
            hint='use a real board, or a simulated chip (backend "sim"), which runs no machine code',
        )
    return MACHINES[chip]
