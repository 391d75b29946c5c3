"""The boot log of the ROM and ESP-IDF's second-stage bootloader, as far as it follows from the contents of the flash.

What only running code knows is left out: clocks, heaps, and an app's actions before ``app_main``.
"""

from __future__ import annotations

import io
import re
from datetime import datetime
from typing import Any

from esp_idf_defs.partitions import APP_TYPE, DATA_TYPE

from pytest_esp.formats.boot_image import Image
from pytest_esp.sim.model import ChipModel

Partition = Any
"""esp-idf-defs' PartitionDefinition, whose class declares all its fields as None."""

SUBTYPE_FACTORY, SUBTYPE_TEST = 0x00, 0x20
FIRST_OTA, _OTA_SLOTS = 0x10, 16

# Build labels and strap values as the chips print them; for chips without a known label, only the name is printed.
_ROM_LABEL = {
    "esp32s2": "esp32s2-rc4-20191025",
    "esp32s3": "esp32s3-20210327",
    "esp32c3": "esp32c3-api1-20210207",
    "esp32c2": "esp8684-api2-20220127",
    "esp32c5": "esp32c5-eco2-20250121",
    "esp32c6": "esp32c6-20220919",
    "esp32h2": "esp32h2-20221101",
    "esp32p4": "esp32p4-eco1-20240205",
}
_FLASH_STRAP = {"esp32": 0x13, "esp32c3": 0xD}
_RESET_CODE = {
    "POWERON": 0x1,
    "RTC_SW_SYS_RST": 0x3,
    "RTC_SW_CPU_RST": 0xC,
    "RTCWDT_RTC_RST": 0x10,
    "BROWNOUT": 0xF,
    "TG0WDT_SYS_RST": 0x7,
    "USB_UART_CHIP_RESET": 0x15,
    "USB_UART_HPSYS": 0x15,
}
_NAME_ON_ESP32 = {
    "POWERON": "POWERON_RESET",
    "RTC_SW_SYS_RST": "SW_RESET",
    "RTC_SW_CPU_RST": "SW_CPU_RESET",
    "BROWNOUT": "RTCWDT_BROWN_OUT_RESET",
}
_FLASH_MODES = ("QIO", "QOUT", "DIO", "DOUT", "FAST READ", "SLOW READ")
_CLOCK_DIVIDERS = {0xF: 1, 0x0: 2, 0x1: 3, 0x2: 4}  # of 80 MHz, by the header's code
_NO_SPIWP = ("esp32c5", "esp32c61", "esp32p4")  # their ROMs do not print the write-protection pin
_APP_INIT_SINCE = (5, 2)  # the first ESP-IDF version whose apps use this tag


class BootLog:
    """Collects lines in the format of ESP-IDF's log, each with a plausible time in milliseconds."""

    def __init__(self, banner: str, *, rom_is_muted: bool = False) -> None:
        self._out = io.StringIO()
        self._rom_is_muted = rom_is_muted
        self.rom_size = 0  # the number of characters (ASCII) from the ROM, which come first
        self._write_from_rom(banner)
        self._time = 24

    def plain(self, line: str) -> None:
        """Add a line from the ROM."""
        self._write_from_rom(line + "\r\n")

    def _write_from_rom(self, text: str) -> None:
        if not self._rom_is_muted:
            self._out.write(text)
            self.rom_size = self._out.tell()

    def line(self, level: str, tag: str, text: str) -> None:
        """Add a line of ESP-IDF's log: *level* is I, W or E."""
        color = {"I": 32, "W": 33, "E": 31}[level]
        self._out.write(f"\x1b[0;{color}m{level} ({self._time}) {tag}: {text}\x1b[0m\r\n")
        self._time += 4

    def info(self, tag: str, text: str) -> None:
        """Add a line of level I."""
        self.line("I", tag, text)

    def error(self, tag: str, text: str) -> None:
        """Add a line of level E."""
        self.line("E", tag, text)

    def data(self) -> bytes:
        """Return the complete log."""
        return self._out.getvalue().encode("utf-8", "replace")


def download_banner(model: ChipModel, reason: str) -> bytes:
    """Return the ROM's output in download mode."""
    if model.is_8266:
        return b"\r\n ets Jan  8 2013,rst cause:2, boot mode:(1,7)\r\n\r\n"
    strap = 0x3 if model.is_esp32 else 0x5
    mode = "DOWNLOAD_BOOT(UART0/UART1/SDIO_REI_REO_V2)" if model.is_esp32 else "DOWNLOAD(USB/UART0)"
    return (_rom_banner(model, reason, strap, mode) + "waiting for download\r\n").encode()


def flash_banner(model: ChipModel, reason: str) -> str:
    """Return the ROM's output before it reads the flash."""
    return _rom_banner(model, reason, _FLASH_STRAP.get(model.chip, 0x8), "SPI_FAST_FLASH_BOOT")


def _rom_banner(model: ChipModel, reason: str, strap: int, mode: str) -> str:
    code = _RESET_CODE.get(reason, 1)
    if model.is_esp32:
        name = _NAME_ON_ESP32.get(reason, reason.replace("_RST", "_RESET"))
        return f"ets Jul 29 2019 12:21:46\r\n\r\nrst:0x{code:x} ({name}),boot:0x{strap:x} ({mode})\r\n"
    label = _ROM_LABEL.get(model.chip, model.chip)
    return f"ESP-ROM:{label}\r\n{_build_date(label)}rst:0x{code:x} ({reason}),boot:0x{strap:x} ({mode})\r\n"


def _build_date(label: str) -> str:
    """Return the line with the build date, which is the end of the label."""
    found = re.search(r"\d{8}$", label)
    if found is None:
        return ""
    date = datetime.strptime(found[0], "%Y%m%d")
    return f"Build:{date:%b} {date.day:2d} {date.year}\r\n"


def version(revision: int) -> str:
    """Return a revision (major * 100 + minor) in ESP-IDF's format."""
    return f"v{revision // 100}.{revision % 100}"


def print_loading(out: BootLog, model: ChipModel, loader: Image) -> None:
    """Print the ROM's flash settings, and the load addresses of the bootloader."""
    mode = f"mode:{_flash_mode(loader)}, clock div:{_CLOCK_DIVIDERS.get(loader.flash_frequency, 2)}"
    if model.is_esp32:
        out.plain("configsip: 0, SPIWP:0xee")
        out.plain("clk_drv:0x00,q_drv:0x00,d_drv:0x00,cs0_drv:0x00,hd_drv:0x00,wp_drv:0x00")
    elif model.chip in _NO_SPIWP:
        mode = f"SPI {mode}"
    else:
        out.plain("SPIWP:0xee")
    out.plain(mode)
    for segment in loader.segments:
        size = segment.size if model.is_esp32 else hex(segment.size)
        out.plain(f"load:0x{segment.address:08x},len:{size}")
    out.plain(f"entry 0x{loader.entry:08x}")


def print_bootloader(out: BootLog, model: ChipModel, loader: Image, revision: int) -> None:
    """Print the bootloader's version, the chip's revision, and the flash settings from its header."""
    itself = loader.bootloader  # None for bootloaders before ESP-IDF 5.1
    out.info("boot", f"ESP-IDF {itself.idf_version} 2nd stage bootloader" if itself else "ESP-IDF 2nd stage bootloader")
    if itself is not None and itself.compiled:
        out.info("boot", f"compile time {itself.compiled}")
    out.info("boot", f"chip revision: {version(revision)}")
    tag = f"boot.{model.chip}"
    if frequency := _named(model.rom.FLASH_FREQUENCY, loader.flash_frequency):
        out.info(tag, f"SPI Speed      : {frequency.removesuffix('m')}MHz")
    out.info(tag, f"SPI Mode       : {_flash_mode(loader)}")
    if size := _named(model.rom.FLASH_SIZES, loader.flash_size << 4):
        out.info(tag, f"SPI Flash Size : {size}")
    out.info("boot", "Enabling RNG early entropy source...")


def _flash_mode(image: Image) -> str:
    return _FLASH_MODES[image.flash_mode] if image.flash_mode < len(_FLASH_MODES) else "QIO"


def _named(codes: dict[str, int], code: int) -> str | None:
    return next((name for name, value in codes.items() if value == code), None)


def print_table(out: BootLog, table: list[Partition]) -> None:
    """Print the partition table."""
    out.info("boot", "Partition Table:")
    out.info("boot", "## Label            Usage          Type ST Offset   Length")
    for number, part in enumerate(table):
        out.info(
            "boot",
            f"{number:2d} {part.name:<16} {_usage(part):<16} {part.type:02x} {part.subtype:02x} "
            f"{part.offset:08x} {part.size:08x}",
        )
    out.info("boot", "End of partition table")


def _usage(part: Partition) -> str:
    if part.type == APP_TYPE:
        known = {SUBTYPE_FACTORY: "factory app", SUBTYPE_TEST: "test app"}
        return known.get(part.subtype, "OTA app" if is_ota(part) else "Unknown app")
    known = {0x00: "OTA data", 0x01: "RF data", 0x02: "WiFi data", 0x04: "NVS keys", 0x03: "Core dump"}
    return known.get(part.subtype, "Unknown data") if part.type == DATA_TYPE else "unknown"


def is_ota(part: Partition) -> bool:
    """Return whether a partition is an OTA slot."""
    return part.type == APP_TYPE and FIRST_OTA <= part.subtype < FIRST_OTA + _OTA_SLOTS


def print_start(out: BootLog, model: ChipModel, slot: Partition, image: Image, revision: int) -> None:
    """Print the app's segments, and the app's description up to the call of ``app_main``."""
    for number, part in enumerate(image.segments):
        out.info(
            "esp_image",
            f"segment {number}: paddr={part.offset:08x} vaddr={part.address:08x} size={part.size:05x}h "
            f"({part.size:6d}) {'map' if _is_mapped(model, part.address) else 'load'}",
        )
    out.info("boot", f"Loaded app from partition at offset 0x{slot.offset:x}")
    out.info("boot", "Disabling RNG early entropy source...")
    app = image.app
    if app is not None:
        is_new = _idf_release(app.idf_version) >= _APP_INIT_SINCE
        tag = "app_init" if is_new else "cpu_start"
        out.info(tag, "Application information:")
        out.info(tag, f"Project name:     {app.project_name}")
        out.info(tag, f"App version:      {app.version}")
        out.info(tag, f"Compile time:     {app.compiled}")
        out.info(tag, f"ELF file SHA256:  {app.elf_sha256.hex()[: 9 if is_new else 16]}...")
        out.info(tag, f"ESP-IDF:          {app.idf_version}")
        tag = "efuse_init" if is_new else "cpu_start"
        out.info(tag, f"Min chip rev:     {version(image.min_revision)}")
        if image.max_revision not in (0, 0xFFFF):
            out.info(tag, f"Max chip rev:     {version(image.max_revision)} ")
        out.info(tag, f"Chip rev:         {version(revision)}")
    out.info("main_task", "Calling app_main()")


def _is_mapped(model: ChipModel, address: int) -> bool:
    """Return whether *address* is in memory-mapped flash, by esptool's memory map."""
    return any(start <= address < end and name in ("IROM", "DROM") for start, end, name in model.rom.MEMORY_MAP)


def _idf_release(text: str) -> tuple[int, int]:
    """Return major and minor of an ESP-IDF version; branches without a number count as new."""
    found = re.match(r"v?(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else _APP_INIT_SINCE
