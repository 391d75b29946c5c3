"""Simulates the boot by the ROM and ESP-IDF's second-stage bootloader, from the contents of the flash.

Source: ESP-IDF's component bootloader_support, and its bootloaders run by QEMU.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from esp_idf_defs.app_description import AppDescription

from pytest_esp.formats.boot_image import (
    HEADER_SIZE,
    MAGIC,
    Image,
    ImageError,
    Read,
    check_image,
    parse_image,
    read_image,
)
from pytest_esp.formats.nor_flash import SECTOR, NorFlash
from pytest_esp.sim.boot_log import (
    BootLog,
    Loader,
    Partition,
    flash_banner,
    flash_size_of,
    print_app,
    print_bootloader,
    print_flash_size,
    print_segments,
    print_table,
    version,
)
from pytest_esp.sim.boot_slots import Write, choose_slot, set_first_sequence, slots_to_try
from pytest_esp.sim.model import ChipModel
from pytest_esp.sim.rom import load_bootloader
from pytest_esp.sim.secure_boot import SecureBoot

PARTITION_TABLE_OFFSET = 0x8000
_LAST_TABLE_OFFSET = 0x20000
_TABLE_SIZE, _ENTRY_SIZE = 0xC00, 32
_ENTRY_MAGIC, _MD5_MAGIC = 0x50AA, 0xEBEB
_MD5_OFFSET = 16  # of the sum in its entry
_IDF_LOADER = b"2nd stage bootloader"  # in all bootloaders of ESP-IDF with log level Info
_CHECKS_SIGNATURES = b"secure_boot_v2"  # the tag of that part of the bootloader
_ROLLBACK_TEXTS = (b"is marking as ABORTED", b"check secure version of app for anti rollback")


class _BootError(Exception):
    """The bootloader resets the chip."""


@dataclass(frozen=True)
class BootResult:
    """The result of a boot.

    Attributes:
        log: the UART's output before the app's.
        started: whether an app was started, or a bootloader that is not ESP-IDF's.
        app: the app's descriptor, if it has one.
        slot: the partition that it was started from; None on an ESP8266, or if none was started.
        rom_size: the number of bytes at the beginning of *log* that the ROM prints, at a baud rate of its own.
        resets_itself: whether ESP-IDF's bootloader resets the chip because it has nothing to start.
        is_foreign: whether a bootloader that is not ESP-IDF's was started: what it does is not simulated.
    """

    log: bytes
    started: bool
    app: AppDescription | None = None
    slot: Partition | None = None
    rom_size: int = 0
    resets_itself: bool = False
    is_foreign: bool = False


def boot(
    model: ChipModel,
    flash: NorFlash,
    reason: str,
    revision: int,
    read: Read | None = None,
    write: Write | None = None,
    *,
    rom_is_muted: bool = False,
    secure_boot: SecureBoot | None = None,
    rollback: bool = False,
) -> BootResult:
    """Boot from *flash* like a chip of *revision* (major * 100 + minor) after a reset with *reason*.

    *read* and *write* access the flash as the CPU does (with encryption, if that is enabled); by default without. Only
    otadata is written, whose sector *write* erases first. A ROM that *is muted* prints nothing (UART_PRINT_CONTROL);
    the bootloader does. *secure_boot* is None if the eFuses do not enable it. *rollback* is whether the bootloader was
    built with app rollback (CONFIG_BOOTLOADER_APP_ROLLBACK_ENABLE), which only shows in one with debug messages.
    """
    if model.is_8266:
        return _boot_8266(flash)
    read = read or flash.read
    out = BootLog(flash_banner(model, reason), rom_is_muted=rom_is_muted)
    offset: int = model.rom.BOOTLOADER_FLASH_OFFSET
    image = load_bootloader(model, read, flash.size - offset, out, secure_boot)
    if image is None:
        return BootResult(out.data(), rom_size=out.rom_size, started=False)
    loader = Loader(image, read(offset, image.size))
    if not loader.has(_IDF_LOADER):
        return BootResult(out.data(), rom_size=out.rom_size, started=True, is_foreign=True)
    rollback = rollback or any(map(loader.has, _ROLLBACK_TEXTS))
    stage = _SecondStage(model, flash, read, write or _writer(flash), out, loader, revision, secure_boot)
    try:
        return stage.run(rollback)
    except _BootError:
        return BootResult(out.data(), rom_size=out.rom_size, started=False, resets_itself=True)


def _writer(flash: NorFlash) -> Callable[[int, bytes], None]:
    def write(address: int, data: bytes) -> None:
        flash.erase(address, SECTOR)
        flash.program(address, data)

    return write


@dataclass(frozen=True)
class _SecondStage:
    """ESP-IDF's bootloader *loader*, running."""

    model: ChipModel
    flash: NorFlash
    read: Read
    write: Write
    out: BootLog
    loader: Loader
    revision: int
    secure_boot: SecureBoot | None

    def run(self, rollback: bool) -> BootResult:
        """Start an app.

        Raises:
            _BootError: if there is none to start.
        """
        print_bootloader(self.out, self.loader, self.revision)
        if not self._runs_on_revision(self.loader.image.min_revision, 0):
            raise _BootError
        print_flash_size(self.out, self.model, self.loader)
        table = self._table()
        print_table(self.out, self.loader, table)
        choice = choose_slot(table, self.read, self.write, self.out, rollback=rollback)
        if choice is None:
            raise _BootError
        for index, slot, name in slots_to_try(table, choice.index):
            image = self._load(slot)
            if image is not None:
                if choice.otadata_is_blank and index is not None and index >= 0:
                    set_first_sequence(table, index, self.write, self.out)
                if slot.is_test:
                    self.out.line("W", "boot", "Falling back to test app as only bootable partition")
                print_app(self.out, image, self.revision)
                return BootResult(self.out.data(), rom_size=self.out.rom_size, started=True, app=image.app, slot=slot)
            if name is not None:
                self.out.error("boot", f"{name} is not bootable")
        self.out.error("boot", "No bootable app partitions in the partition table")
        raise _BootError

    # -- the partition table

    def _table(self) -> list[Partition]:
        raw = self.read(self._table_offset(), _TABLE_SIZE)
        try:
            return read_table(raw, flash_size_of(self.model, self.loader.image))
        except ImageError as error:
            self.out.error("flash_parts", str(error))
        self.out.error("boot", "Failed to verify partition table")
        self.out.error("boot", "load partition table error!")
        raise _BootError

    def _table_offset(self) -> int:
        """Return the offset of the table: it is compiled into the bootloader, but only the flash shows it."""
        start = self.model.rom.BOOTLOADER_FLASH_OFFSET + self.loader.image.size
        magic = _ENTRY_MAGIC.to_bytes(2, "little")
        if self.read(PARTITION_TABLE_OFFSET, 2) == magic:
            return PARTITION_TABLE_OFFSET
        sectors = range(-(-start // SECTOR) * SECTOR, _LAST_TABLE_OFFSET + 1, SECTOR)
        return next((offset for offset in sectors if self.read(offset, 2) == magic), PARTITION_TABLE_OFFSET)

    # -- apps

    def _load(self, slot: Partition) -> Image | None:
        """Check the app in *slot*, and print what the bootloader prints; return None if it is not bootable."""
        header = self.read(slot.offset, HEADER_SIZE)
        if header[0] == MAGIC and not self._is_for_this_chip(header):
            return None
        try:
            image, sums = parse_image(self.read, slot.offset, self.flash.size - slot.offset)
            print_segments(self.out, self.model, image.segments)
            check_image(image, sums, slot.size)
        except ImageError as error:
            print_segments(self.out, self.model, error.segments)
            self.out.error("esp_image", str(error))
            return None
        if not self._is_trusted(slot, image):
            return None
        self.out.info("boot", f"Loaded app from partition at offset 0x{slot.offset:x}")
        return image

    def _is_for_this_chip(self, header: bytes) -> bool:
        chip_id, least, most = (int.from_bytes(header[first : first + 2], "little") for first in (12, 15, 17))
        if self.model.image_chip_id is not None and chip_id != self.model.image_chip_id:
            self.out.error("boot_comm", f"mismatch chip ID, expected {self.model.image_chip_id}, found {chip_id}")
            return False
        return self._runs_on_revision(least, most)

    def _runs_on_revision(self, least: int, most: int) -> bool:
        """Compare the chip's revision with an image's limits; a *most* of 0 or 0xFFFF is none."""
        for relation, limit, is_wrong in (
            (">=", least, least > self.revision),
            ("<=", most, most not in (0, 0xFFFF) and most < self.revision),
        ):
            if is_wrong:
                self.out.error(
                    "boot_comm",
                    f"chip revision check failed. Required {relation} {version(limit)}, found "
                    f"{version(self.revision)}.",
                )
                return False
        return True

    def _is_trusted(self, slot: Partition, image: Image) -> bool:
        """Check the app's signature, if the bootloader was built to."""
        if self.secure_boot is None or not self.loader.has(_CHECKS_SIGNATURES):
            return True
        self.out.info("esp_image", "Verifying image signature...")
        if self.secure_boot.check(self.read, slot.offset, image.size, self.out.bare):
            self.out.info("secure_boot_v2", "Signature verified successfully!")
            return True
        self.out.error("esp_image", "Secure boot signature verification failed")
        self.out.info("esp_image", "Calculating simple hash to check for corruption...")
        self.out.line("W", "esp_image", "image valid, signature bad")
        return False


def read_table(raw: bytes, flash_size: int) -> list[Partition]:
    """Return the partitions of the table *raw* of a flash of *flash_size* bytes, as the bootloader's header has it.

    Raises:
        ImageError: if the bootloader refuses the table (``esp_partition_table_verify``), with its message.
    """
    table: list[Partition] = []
    has_md5 = False
    for number in range(len(raw) // _ENTRY_SIZE):
        entry = raw[number * _ENTRY_SIZE : (number + 1) * _ENTRY_SIZE]
        magic = int.from_bytes(entry[:2], "little")
        if magic == _ENTRY_MAGIC:
            part = Partition.from_entry(entry)
            if part.offset > flash_size or part.offset + part.size > flash_size:
                raise ImageError(
                    f"partition {number} invalid - offset 0x{part.offset:x} size 0x{part.size:x} exceeds flash chip "
                    f"size 0x{flash_size:x}"
                )
            table.append(part)
        elif magic == _MD5_MAGIC:
            if has_md5:
                raise ImageError("Only one MD5 checksum is allowed")
            has_md5 = True
            if hashlib.md5(raw[: number * _ENTRY_SIZE], usedforsecurity=False).digest() != entry[_MD5_OFFSET:]:
                raise ImageError("Incorrect MD5 checksum")
        elif number and entry[:4] == b"\xff\xff\xff\xff":
            return table
        else:
            raise ImageError(f"partition {number} invalid magic number 0x{magic:x}")
    raise ImageError("partition table has no terminating entry, not valid")


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
