"""What the ROM and ESP-IDF's second-stage bootloader do with the bytes in flash, and what they print about it."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from esp_idf_defs.app_description import AppDescription
from esp_idf_defs.otadata import OtaDataSelectEntry, OtaImageState
from esp_idf_defs.partitions import APP_TYPE, DATA_TYPE, PartitionTable

from pytest_esp.sim.flash import SECTOR, NorFlash
from pytest_esp.sim.image import Image, ImageError, Read, read_image
from pytest_esp.sim.model import ChipModel

Partition = Any
"""esp-idf-defs's PartitionDefinition, whose class declares all its fields as None."""

PARTITION_TABLE_OFFSET = 0x8000
_TABLE_SIZE = 0xC00
_SUBTYPE_FACTORY, _SUBTYPE_TEST = 0x00, 0x20
_FIRST_OTA, _OTA_SLOTS = 0x10, 16
_SUBTYPE_OTADATA = 0x00

# Build labels and strap values as the chips print them; a chip without a known label prints its name alone.
_ROM_LABEL = {
    "esp32s2": "esp32s2-rc4-20191025",
    "esp32s3": "esp32s3-20210327",
    "esp32c3": "esp32c3-api1-20210207",
    "esp32c2": "esp8684-api2-20220127",
    "esp32c6": "esp32c6-20220919",
    "esp32h2": "esp32h2-20221101",
    "esp32p4": "esp32p4-eco1-20240205",
}
_FLASH_STRAP = {"esp32": (0x13, 0x3), "esp32c3": (0xD, 0x5)}
_RESET_CODE = {
    "POWERON": 0x1,
    "RTC_SW_SYS_RST": 0x3,
    "RTC_SW_CPU_RST": 0xC,
    "RTCWDT_RTC_RST": 0x10,
    "BROWNOUT": 0xF,
    "TG0WDT_SYS_RST": 0x7,
}


@dataclass(frozen=True)
class BootResult:
    """How a boot went.

    Attributes:
        log: what the UART said, until the app's own output.
        started: whether an app was started.
        app: its descriptor, where it has one.
        slot: the partition it was started from (None on an ESP8266, or if none could be).
    """

    log: bytes
    started: bool
    app: AppDescription | None = None
    slot: Partition | None = None


class _Log:
    """Collects lines in the format of ESP-IDF's log, with a plausible time (ms) before each."""

    def __init__(self, banner: str) -> None:
        self._out = io.StringIO()
        self._out.write(banner)
        self._time = 24

    def plain(self, line: str) -> None:
        self._out.write(line + "\r\n")

    def line(self, level: str, tag: str, text: str) -> None:
        color = {"I": 32, "W": 33, "E": 31}[level]
        self._out.write(f"\x1b[0;{color}m{level} ({self._time}) {tag}: {text}\x1b[0m\r\n")
        self._time += 4

    def info(self, tag: str, text: str) -> None:
        self.line("I", tag, text)

    def error(self, tag: str, text: str) -> None:
        self.line("E", tag, text)

    def data(self) -> bytes:
        return self._out.getvalue().encode("utf-8", "replace")


def download_banner(model: ChipModel, reason: str) -> bytes:
    """Return what the ROM prints before it waits for a host."""
    if model.is_8266:
        return b"\r\n ets Jan  8 2013,rst cause:2, boot mode:(1,7)\r\n\r\n"
    strap = 0x3 if model.is_esp32 else 0x5
    mode = "DOWNLOAD_BOOT(UART0/UART1/SDIO_REI_REO_V2)" if model.is_esp32 else "DOWNLOAD(USB/UART0)"
    return (_rom_banner(model, reason, strap, mode) + "waiting for download\r\n").encode()


def boot(
    model: ChipModel,
    flash: NorFlash,
    reason: str,
    revision: int,
    read: Callable[[int, int], bytes] | None = None,
) -> BootResult:
    """Boot from *flash* as a chip of *revision* (major * 100 + minor) does after a reset for *reason*.

    *read* reads the flash as the CPU sees it (decrypted); by default as it is. The bootloader's one write is made,
    too: an OTA image that was to prove itself and did not (PENDING_VERIFY) is marked ABORTED.
    """
    read = read or flash.read
    if model.is_8266:
        return _boot_8266(flash)
    strap, _ = _FLASH_STRAP.get(model.chip, (0x8, 0))
    out = _Log(_rom_banner(model, reason, strap, "SPI_FAST_FLASH_BOOT"))
    offset: int = model.rom.BOOTLOADER_FLASH_OFFSET
    first = int.from_bytes(read(offset, 4), "little")
    if first & 0xFF != 0xE9:
        for _ in range(8):  # the ROM goes on until its watchdog bites; eight lines say it
            out.plain(f"invalid header: 0x{first:08x}")
        return BootResult(out.data(), started=False)
    try:
        loader = read_image(read, offset, PARTITION_TABLE_OFFSET - offset)
        _check_chip(model, loader, revision)
    except ImageError as error:
        out.plain(f"{error}")
        out.plain("ets_main.c 384 ")
        return BootResult(out.data(), started=False)
    return _second_stage(model, flash, read, out, loader, revision)


def _rom_banner(model: ChipModel, reason: str, strap: int, mode: str) -> str:
    code = _RESET_CODE.get(reason, 1)
    if model.is_esp32:
        name = "POWERON_RESET" if reason == "POWERON" else reason.replace("_RST", "_RESET")
        return f"ets Jul 29 2019 12:21:46\r\n\r\nrst:0x{code:x} ({name}),boot:0x{strap:x} ({mode})\r\n"
    label = _ROM_LABEL.get(model.chip, model.chip)
    return f"ESP-ROM:{label}\r\nrst:0x{code:x} ({reason}),boot:0x{strap:x} ({mode})\r\n"


def _check_chip(model: ChipModel, image: Image, revision: int) -> None:
    if model.image_chip_id is not None and image.chip_id != model.image_chip_id:
        raise ImageError(f"mismatch chip ID, expected {model.image_chip_id}, found {image.chip_id}")
    if image.min_revision > revision:
        raise ImageError(
            f"chip revision check failed. Required >= {_version(image.min_revision)}, found {_version(revision)}."
        )
    if image.max_revision not in (0, 0xFFFF) and image.max_revision < revision:
        raise ImageError(
            f"chip revision check failed. Required <= {_version(image.max_revision)}, found {_version(revision)}."
        )


def _version(revision: int) -> str:
    return f"v{revision // 100}.{revision % 100}"


def _second_stage(model: ChipModel, flash: NorFlash, read: Read, out: _Log, loader: Image, revision: int) -> BootResult:
    for segment in loader.segments:
        out.plain(f"load:0x{segment.address:08x},len:0x{segment.size:x}")
    out.plain(f"entry 0x{loader.entry:08x}")
    out.info("boot", "ESP-IDF 2nd stage bootloader")
    out.info("boot", f"chip revision: {_version(revision)}")
    try:
        table = _read_table(read)
    except ImageError as error:
        out.error("flash_parts", str(error))
        out.error("boot", "Failed to verify partition table")
        out.error("boot", "load partition table error!")
        return BootResult(out.data(), started=False)
    _print_table(out, table)
    for slot in _order(flash, read, table, out):
        try:
            image = read_image(read, slot.offset, slot.size)
            _check_chip(model, image, revision)
        except ImageError as error:
            out.error("boot_comm" if "chip" in str(error) else "esp_image", str(error))
            out.error("boot", f"{_describe(slot)} is not bootable")
            continue
        _print_start(out, slot, image)
        return BootResult(out.data(), started=True, app=image.app, slot=slot)
    out.error("boot", "No bootable app partitions in the partition table")
    return BootResult(out.data(), started=False)


def _read_table(read: Read) -> list[Partition]:
    try:
        table = PartitionTable.from_binary(read(PARTITION_TABLE_OFFSET, _TABLE_SIZE))
    except Exception as error:  # esp-idf-defs raises errors of several kinds, some bare, for bytes that are no table
        text = str(error)
        raise ImageError("Incorrect MD5 checksum" if "MD5" in text else f"partition 0 invalid ({text})") from None
    if not table:
        raise ImageError("partition 0 invalid magic number 0xffff")
    return list(table)


def _print_table(out: _Log, table: list[Partition]) -> None:
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
        known = {_SUBTYPE_FACTORY: "factory app", _SUBTYPE_TEST: "test app"}
        return known.get(part.subtype, "OTA app" if _is_ota(part) else "Unknown app")
    known = {0x00: "OTA data", 0x01: "RF data", 0x02: "WiFi data", 0x04: "NVS keys", 0x03: "Core dump"}
    return known.get(part.subtype, "Unknown data") if part.type == DATA_TYPE else "unknown"


def _describe(slot: Partition) -> str:
    if _is_ota(slot):
        return f"OTA app partition slot {slot.subtype - _FIRST_OTA}"
    return "Factory app partition" if slot.subtype == _SUBTYPE_FACTORY else "Factory test app partition"


def _is_ota(part: Partition) -> bool:
    return part.type == APP_TYPE and _FIRST_OTA <= part.subtype < _FIRST_OTA + _OTA_SLOTS


def _order(flash: NorFlash, read: Read, table: list[Partition], out: _Log) -> list[Partition]:
    """Return the slots in the order in which the bootloader tries them."""
    factory = [part for part in table if part.type == APP_TYPE and part.subtype == _SUBTYPE_FACTORY]
    slots = sorted((part for part in table if _is_ota(part)), key=lambda part: part.subtype)
    test = [part for part in table if part.type == APP_TYPE and part.subtype == _SUBTYPE_TEST]
    otadata = [part for part in table if part.type == DATA_TYPE and part.subtype == _SUBTYPE_OTADATA]
    if not otadata or not slots:
        return factory + slots + test
    chosen = _chosen_slot(flash, read, otadata[0].offset, len(slots))
    if chosen is not None:
        # From the chosen one downwards, then the factory app, then upwards (bootloader_utility_load_boot_image).
        return slots[chosen::-1] + factory + slots[chosen + 1 :] + test
    if read(otadata[0].offset, 32) != b"\xff" * 32 or read(otadata[0].offset + SECTOR, 32) != b"\xff" * 32:
        fallback = "falling back to factory" if factory else "and no factory, will try all partitions"
        out.error("boot", f"ota data partition invalid{',' if factory else ''} {fallback}")
    elif factory:
        out.info("boot", "Defaulting to factory image")
    else:
        out.info("boot", "No factory image, trying OTA 0")
    return factory + slots + test


def _chosen_slot(flash: NorFlash, read: Read, otadata: int, count: int) -> int | None:
    """Return the number of the slot that otadata names, and keep the book of images that are on trial."""
    entries: dict[int, OtaDataSelectEntry] = {}
    for sector in (0, 1):
        address = otadata + sector * SECTOR
        stored = read(address, OtaDataSelectEntry.SIZE)
        entry = OtaDataSelectEntry.from_bytes(stored)
        # esp-idf-defs 0.1.7 computes the checksum, and compares it with itself.
        if entry is None or entry.to_bytes()[-4:] != stored[-4:]:
            continue
        if entry.ota_state == OtaImageState.PENDING_VERIFY:
            # It was started once and did not call esp_ota_mark_app_valid: never again.
            entry.ota_state = OtaImageState.ABORTED
            _rewrite(flash, address, entry)
        if entry.ota_state not in (OtaImageState.INVALID, OtaImageState.ABORTED):
            entries[sector] = entry
    if not entries:
        return None
    sector = max(entries, key=lambda number: entries[number].seq)
    if entries[sector].ota_state == OtaImageState.NEW:
        entries[sector].ota_state = OtaImageState.PENDING_VERIFY
        _rewrite(flash, otadata + sector * SECTOR, entries[sector])
    return entries[sector].ota_slot(count)


def _rewrite(flash: NorFlash, address: int, entry: OtaDataSelectEntry) -> None:
    flash.erase(address, SECTOR)
    flash.program(address, entry.to_bytes())


def _print_start(out: _Log, slot: Partition, image: Image) -> None:
    for number, part in enumerate(image.segments):
        out.info(
            "esp_image",
            f"segment {number}: paddr={part.offset:08x} vaddr={part.address:08x} size={part.size:05x}h",
        )
    out.info("boot", f"Loaded app from partition at offset 0x{slot.offset:x}")
    app = image.app
    if app is not None:
        out.info("app_init", "Application information:")
        out.info("app_init", f"Project name:     {app.project_name}")
        out.info("app_init", f"App version:      {app.version}")
        out.info("app_init", f"Compile time:     {app.compiled}")
        out.info("app_init", f"ELF file SHA256:  {app.elf_sha256.hex()[:9]}...")
        out.info("app_init", f"ESP-IDF:          {app.idf_version}")
    out.info("main_task", "Calling app_main()")


def _boot_8266(flash: NorFlash) -> BootResult:
    out = _Log("\r\n ets Jan  8 2013,rst cause:2, boot mode:(3,6)\r\n\r\n")
    try:
        image = read_image(flash.read, 0, flash.size, extended=False)
    except ImageError:
        out.plain(f"ets_main.c 178 \r\ncsum err, header 0x{int.from_bytes(flash.read(0, 4), 'little'):08x}")
        return BootResult(out.data(), started=False)
    for segment in image.segments:
        out.plain(f"load 0x{segment.address:08x}, len {segment.size}, room 16 ")
    return BootResult(out.data(), started=True)
