"""Simulates the boot by the ROM and ESP-IDF's second-stage bootloader, from the contents of the flash."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from esp_idf_defs.app_description import AppDescription
from esp_idf_defs.otadata import OtaDataSelectEntry, OtaImageState
from esp_idf_defs.partitions import APP_TYPE, DATA_TYPE, PartitionTable

from pytest_esp.formats.boot_image import MAGIC, Image, ImageError, Read, read_image
from pytest_esp.formats.nor_flash import SECTOR, NorFlash
from pytest_esp.sim.boot_log import (
    FIRST_OTA,
    SUBTYPE_FACTORY,
    SUBTYPE_TEST,
    BootLog,
    Partition,
    flash_banner,
    is_ota,
    print_bootloader,
    print_loading,
    print_start,
    print_table,
    version,
)
from pytest_esp.sim.model import ChipModel

PARTITION_TABLE_OFFSET = 0x8000
_TABLE_SIZE = 0xC00
_SUBTYPE_OTADATA = 0x00


@dataclass(frozen=True)
class BootResult:
    """The result of a boot.

    Attributes:
        log: the UART's output before the app's.
        started: whether an app was started.
        app: the app's descriptor, if it has one.
        slot: the partition that it was started from; None on an ESP8266, or if none was started.
        rom_size: the number of bytes at the beginning of *log* that the ROM prints, at a baud rate of its own.
    """

    log: bytes
    started: bool
    app: AppDescription | None = None
    slot: Partition | None = None
    rom_size: int = 0


def boot(
    model: ChipModel,
    flash: NorFlash,
    reason: str,
    revision: int,
    read: Callable[[int, int], bytes] | None = None,
    *,
    rom_is_muted: bool = False,
) -> BootResult:
    """Boot from *flash* like a chip of *revision* (major * 100 + minor) after a reset with *reason*.

    *read* reads the flash as the CPU does (decrypted); by default without decryption. The bootloader's only write is
    also simulated: an OTA image that was started once but not confirmed (PENDING_VERIFY) is marked ABORTED. A ROM that
    *is muted* prints nothing (UART_PRINT_CONTROL); the bootloader does.
    """
    read = read or flash.read
    if model.is_8266:
        return _boot_8266(flash)
    out = BootLog(flash_banner(model, reason), rom_is_muted=rom_is_muted)
    offset: int = model.rom.BOOTLOADER_FLASH_OFFSET
    first = int.from_bytes(read(offset, 4), "little")
    if first & 0xFF != MAGIC:
        for _ in range(8):  # the ROM repeats this until its watchdog resets it; eight lines are enough
            out.plain(f"invalid header: 0x{first:08x}")
        return BootResult(out.data(), rom_size=out.rom_size, started=False)
    try:
        loader = read_image(read, offset, PARTITION_TABLE_OFFSET - offset)
        _check_chip(model, loader, revision)
    except ImageError as error:
        out.plain(f"{error}")
        out.plain("ets_main.c 384 ")
        return BootResult(out.data(), rom_size=out.rom_size, started=False)
    return _second_stage(model, flash, read, out, loader, revision)


def _check_chip(model: ChipModel, image: Image, revision: int) -> None:
    if model.image_chip_id is not None and image.chip_id != model.image_chip_id:
        raise ImageError(f"mismatch chip ID, expected {model.image_chip_id}, found {image.chip_id}")
    if image.min_revision > revision:
        raise ImageError(
            f"chip revision check failed. Required >= {version(image.min_revision)}, found {version(revision)}."
        )
    if image.max_revision not in (0, 0xFFFF) and image.max_revision < revision:
        raise ImageError(
            f"chip revision check failed. Required <= {version(image.max_revision)}, found {version(revision)}."
        )


def _second_stage(
    model: ChipModel, flash: NorFlash, read: Read, out: BootLog, loader: Image, revision: int
) -> BootResult:
    print_loading(out, model, loader)
    print_bootloader(out, model, loader, revision)
    try:
        table = _read_table(read)
    except ImageError as error:
        out.error("flash_parts", str(error))
        out.error("boot", "Failed to verify partition table")
        out.error("boot", "load partition table error!")
        return BootResult(out.data(), rom_size=out.rom_size, started=False)
    print_table(out, table)
    for slot in _order(flash, read, table, out):
        try:
            image = read_image(read, slot.offset, slot.size)
            _check_chip(model, image, revision)
        except ImageError as error:
            out.error("boot_comm" if "chip" in str(error) else "esp_image", str(error))
            out.error("boot", f"{_describe(slot)} is not bootable")
            continue
        print_start(out, model, slot, image, revision)
        return BootResult(out.data(), rom_size=out.rom_size, started=True, app=image.app, slot=slot)
    out.error("boot", "No bootable app partitions in the partition table")
    return BootResult(out.data(), rom_size=out.rom_size, started=False)


def _read_table(read: Read) -> list[Partition]:
    try:
        table = PartitionTable.from_binary(read(PARTITION_TABLE_OFFSET, _TABLE_SIZE))
    except Exception as error:  # esp-idf-defs raises several kinds, including Exception, for invalid tables
        text = str(error)
        raise ImageError("Incorrect MD5 checksum" if "MD5" in text else f"partition 0 invalid ({text})") from None
    if not table:
        raise ImageError("partition 0 invalid magic number 0xffff")
    return list(table)


def _describe(slot: Partition) -> str:
    if is_ota(slot):
        return f"OTA app partition slot {slot.subtype - FIRST_OTA}"
    return "Factory app partition" if slot.subtype == SUBTYPE_FACTORY else "Factory test app partition"


def _order(flash: NorFlash, read: Read, table: list[Partition], out: BootLog) -> list[Partition]:
    """Return the slots in the order in which the bootloader tries them."""
    factory = [part for part in table if part.type == APP_TYPE and part.subtype == SUBTYPE_FACTORY]
    slots = sorted((part for part in table if is_ota(part)), key=lambda part: part.subtype)
    test = [part for part in table if part.type == APP_TYPE and part.subtype == SUBTYPE_TEST]
    otadata = [part for part in table if part.type == DATA_TYPE and part.subtype == _SUBTYPE_OTADATA]
    if not otadata or not slots:
        return factory + slots + test
    chosen = _chosen_slot(flash, read, otadata[0].offset, len(slots))
    if chosen is not None:
        # From the selected one downwards, then the factory app, then upwards (bootloader_utility_load_boot_image).
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
    """Return the number of the slot that otadata selects, and update the states of unconfirmed images."""
    entries: dict[int, OtaDataSelectEntry] = {}
    for sector in (0, 1):
        address = otadata + sector * SECTOR
        stored = read(address, OtaDataSelectEntry.SIZE)
        entry = OtaDataSelectEntry.from_bytes(stored)
        # esp-idf-defs 0.1.7 computes the checksum, but compares it with itself.
        if entry is None or entry.to_bytes()[-4:] != stored[-4:]:
            continue
        if entry.ota_state == OtaImageState.PENDING_VERIFY:
            # It was started once and did not call esp_ota_mark_app_valid, so it is not started again.
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


def _boot_8266(flash: NorFlash) -> BootResult:
    out = BootLog("\r\n ets Jan  8 2013,rst cause:2, boot mode:(3,6)\r\n\r\n")
    try:
        image = read_image(flash.read, 0, flash.size, extended=False)
    except ImageError:
        out.plain(f"ets_main.c 178 \r\ncsum err, header 0x{int.from_bytes(flash.read(0, 4), 'little'):08x}")
        return BootResult(out.data(), rom_size=out.rom_size, started=False)
    for segment in image.segments:
        out.plain(f"load 0x{segment.address:08x}, len {segment.size}, room 16 ")
    return BootResult(out.data(), rom_size=out.rom_size, started=True)
