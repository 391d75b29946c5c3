"""The boot log of the ROM and ESP-IDF's second-stage bootloader, as far as it follows from the contents of the flash.

What only running code knows is left out: clocks, heaps, and an app's actions before ``app_main``.
"""

from __future__ import annotations

import io
import re
import struct
from dataclasses import dataclass
from datetime import datetime

from esp_idf_defs.partitions import APP_TYPE, DATA_TYPE

from pytest_esp.formats.boot_image import Image, Segment
from pytest_esp.sim.model import ChipModel

_SUBTYPE_FACTORY, _SUBTYPE_TEST = 0x00, 0x20
_FIRST_OTA, _OTA_SLOTS = 0x10, 16
# What ESP-IDF's bootloader takes for unknown codes; the size is in bytes.
_DEFAULT_FREQUENCY, _DEFAULT_FLASH_SIZE = "20m", 2 << 20
_BOOTLOADER_TYPE, _TABLE_TYPE = 0x02, 0x03
_USAGES = {
    (APP_TYPE, _SUBTYPE_FACTORY): "factory app",
    (APP_TYPE, _SUBTYPE_TEST): "test app",
    (DATA_TYPE, 0x00): "OTA data",
    (DATA_TYPE, 0x01): "RF data",
    (DATA_TYPE, 0x02): "WiFi data",
    (DATA_TYPE, 0x04): "NVS keys",
    (DATA_TYPE, 0x05): "efuse",
    (_BOOTLOADER_TYPE, 0): "primary bootloader",
    (_BOOTLOADER_TYPE, 1): "ota bootloader",
    (_BOOTLOADER_TYPE, 2): "recovery bootloader",
    (_TABLE_TYPE, 0): "primary partition_table",
    (_TABLE_TYPE, 1): "ota partition_table",
}
_UNKNOWN = {APP_TYPE: "Unknown app", DATA_TYPE: "Unknown data"}

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
    "TG1WDT_SYS_RST": 0x8,
    "DEEPSLEEP_RST": 0x5,
    "RTCWDT_SYS_RST": 0x9,
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
_ROM_FLASH_MODES = (
    *("QIO", "QOUT", "DIO", "DOUT", "FAST_RD", "SLOW_RD"),
    *("OPI_STR", "OPI_DTR", "OOUT", "OIO_STR", "OIO_DTR"),
)
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

    def bare(self, line: str) -> None:
        """Add a line without a time, from a function of the ROM that the bootloader calls."""
        if not self._rom_is_muted:
            self._out.write(line + "\r\n")

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


@dataclass(frozen=True)
class Partition:
    """An entry of the partition table; offset and size are in bytes."""

    type: int
    subtype: int
    offset: int
    size: int
    name: str

    @classmethod
    def from_entry(cls, entry: bytes) -> Partition:
        """Return the partition of an entry of 32 bytes."""
        kind, subtype, offset, size, name = struct.unpack_from("<2xBBII16s", entry)
        return cls(kind, subtype, offset, size, name.partition(b"\0")[0].decode("utf-8", "replace"))

    @property
    def is_factory(self) -> bool:
        """Whether it is the factory app's."""
        return (self.type, self.subtype) == (APP_TYPE, _SUBTYPE_FACTORY)

    @property
    def is_test(self) -> bool:
        """Whether it is the factory test app's."""
        return (self.type, self.subtype) == (APP_TYPE, _SUBTYPE_TEST)

    @property
    def ota_number(self) -> int | None:
        """The number of the OTA slot; None if it is not one."""
        number = self.subtype - _FIRST_OTA
        return number if self.type == APP_TYPE and 0 <= number < _OTA_SLOTS else None


@dataclass(frozen=True)
class Loader:
    """The second-stage bootloader: its image, and the bytes of it. What it was built with shows in its texts."""

    image: Image
    data: bytes

    def has(self, text: bytes) -> bool:
        """Return whether the bootloader contains *text*."""
        return text in self.data


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
    name = "BROWNOUT_RST" if reason == "BROWNOUT" else reason
    return f"ESP-ROM:{label}\r\n{_build_date(label)}rst:0x{code:x} ({name}),boot:0x{strap:x} ({mode})\r\n"


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


def print_flash_settings(out: BootLog, model: ChipModel, mode: int, frequency: int, *, is_secure: bool = False) -> None:
    """Print the ROM's flash settings: *mode* and *frequency* are the codes in the bootloader's header.

    The part of an ESP32's ROM that boots with secure boot has another format.
    """
    shown = mode if model.is_esp32 and is_secure else _ROM_FLASH_MODES[mode]
    settings = f"mode:{shown}, clock div:{_CLOCK_DIVIDERS.get(frequency, 1)}"
    if model.is_esp32:
        out.plain("configsip: 0, SPIWP:0xee")
        out.plain("clk_drv:0x00,q_drv:0x00,d_drv:0x00,cs0_drv:0x00,hd_drv:0x00,wp_drv:0x00")
    elif model.chip in _NO_SPIWP:
        settings = f"SPI {settings}"
    else:
        out.plain("SPIWP:0xee")
    out.plain(settings)


def print_load(out: BootLog, model: ChipModel, address: int, size: int, *, is_secure: bool = False) -> None:
    """Print the load address and the size of a segment of the bootloader."""
    if model.is_esp32 and is_secure:
        out.plain(f"load:0x{address:08x} len:{size:#x}")
    else:
        shown = str(size - (size >> 31 << 32)) if model.is_esp32 else hex(size)
        out.plain(f"load:0x{address:08x},len:{shown}")


def print_entry(out: BootLog, entry: int) -> None:
    """Print the entry point of the bootloader."""
    out.plain(f"entry 0x{entry:08x}")


def print_bootloader(out: BootLog, loader: Loader, revision: int) -> None:
    """Print the bootloader's version, and the chip's revision."""
    itself = loader.image.bootloader  # None for bootloaders before ESP-IDF 5.1
    out.info("boot", f"ESP-IDF {itself.idf_version} 2nd stage bootloader" if itself else "ESP-IDF 2nd stage bootloader")
    if itself is not None and itself.compiled:
        out.info("boot", f"compile time {itself.compiled}")
    out.info("boot", f"chip revision: {version(revision)}")


def print_flash_size(out: BootLog, model: ChipModel, loader: Loader) -> None:
    """Print the flash settings from the bootloader's header."""
    image = loader.image
    tag = f"boot.{model.chip}"
    megahertz = (_named(model.rom.FLASH_FREQUENCY, image.flash_frequency) or _DEFAULT_FREQUENCY).removesuffix("m")
    if megahertz == "26" and loader.has(b"26.7MHz"):
        megahertz = "26.7"
    out.info(tag, f"SPI Speed      : {megahertz}MHz")
    out.info(tag, f"SPI Mode       : {_flash_mode(image)}")
    out.info(tag, f"SPI Flash Size : {flash_size_of(model, image) >> 20}MB")
    out.info("boot", "Enabling RNG early entropy source...")


def flash_size_of(model: ChipModel, loader: Image) -> int:
    """Return the size of the flash in bytes by the bootloader's header."""
    name = _named(model.rom.FLASH_SIZES, loader.flash_size << 4)
    return int(name.removesuffix("MB")) << 20 if name else _DEFAULT_FLASH_SIZE


def _flash_mode(image: Image) -> str:
    return _FLASH_MODES[image.flash_mode] if image.flash_mode < len(_FLASH_MODES) else "QIO"


def _named(codes: dict[str, int], code: int) -> str | None:
    return next((name for name, value in codes.items() if value == code), None)


def print_table(out: BootLog, loader: Loader, table: list[Partition]) -> None:
    """Print the partition table."""
    out.info("boot", "Partition Table:")
    out.info("boot", "## Label            Usage          Type ST Offset   Length")
    for number, part in enumerate(table):
        usage = _usage(part)
        if part.type in (_BOOTLOADER_TYPE, _TABLE_TYPE) and not loader.has(usage.encode()):
            usage = "unknown"  # before ESP-IDF 5.5
        out.info(
            "boot",
            f"{number:2d} {part.name:<16} {usage:<16} {part.type:02x} {part.subtype:02x} "
            f"{part.offset:08x} {part.size:08x}",
        )
    out.info("boot", "End of partition table")


def _usage(part: Partition) -> str:
    if part.ota_number is not None:
        return "OTA app"
    return _USAGES.get((part.type, part.subtype), _UNKNOWN.get(part.type, "unknown"))


def print_segments(out: BootLog, model: ChipModel, segments: tuple[Segment, ...]) -> None:
    """Print the app's segments."""
    for number, part in enumerate(segments):
        out.info(
            "esp_image",
            f"segment {number}: paddr={part.offset:08x} vaddr={part.address:08x} size={part.size:05x}h "
            f"({part.size:6d}) {'map' if _is_mapped(model, part.address) else 'load'}",
        )


def print_app(out: BootLog, image: Image, revision: int) -> None:
    """Print the app's description up to the call of ``app_main``."""
    out.info("boot", "Disabling RNG early entropy source...")
    app = image.app
    if app is not None:
        is_new = _idf_release(app.idf_version) >= _APP_INIT_SINCE
        tag = "app_init" if is_new else "cpu_start"
        out.info(tag, "Application information:")
        out.info(tag, f"Project name:     {app.project_name}")
        out.info(tag, f"App version:      {app.version}")
        if app.compiled is not None:  # not in a reproducible build
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
