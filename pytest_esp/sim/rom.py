"""The boot by the ROM: its checks of the second-stage bootloader, and its messages.

Source: the ROMs of ESP32 v3, ESP32-C3 and ESP32-S3, run by QEMU with damaged and signed bootloaders. The ROMs of the
other chips are assumed to behave like the ESP32-C3's.
"""

from __future__ import annotations

import hashlib
import struct

from pytest_esp.formats.boot_image import HEADER_SIZE, MAGIC, MAX_SEGMENTS, Image, ImageError, Read, Sums, parse_image
from pytest_esp.sim.boot_log import BootLog, print_entry, print_flash_settings, print_load
from pytest_esp.sim.model import ChipModel
from pytest_esp.sim.secure_boot import SecureBoot

_REPEATS = 8  # of a message that a ROM repeats until its watchdog resets it
_ERASED = 0xFFFFFFFF
_LARGEST_SEGMENT = 0x100000  # bytes; larger than any RAM
_FREQUENCIES = (0x0, 0x1, 0x2, 0xF)
_MODES, _MODES_ESP32 = 11, 6
_MAIN_LINE = {"esp32c3": 333, "esp32s3": 329}  # where these ROMs give up, as they print it


def load_bootloader(
    model: ChipModel, read: Read, limit: int, out: BootLog, secure_boot: SecureBoot | None
) -> Image | None:
    """Check and load the second-stage bootloader like the ROM; return None if the ROM does not start it.

    At most *limit* bytes can be read from its offset. *secure_boot* is None if it is not enabled.
    """
    offset: int = model.rom.BOOTLOADER_FLASH_OFFSET
    header = read(offset, HEADER_SIZE)
    chip_id: int = struct.unpack_from("<H", header, 12)[0]
    if not _is_header(model, header):
        for _ in range(_REPEATS):
            out.plain(f"invalid header: 0x{int.from_bytes(header[:4], 'little'):08x}")
        return None
    if model.is_esp32 and chip_id != model.image_chip_id:
        for _ in range(_REPEATS):
            out.plain(f"wrong chip id 0x{chip_id:04x}")
        return None
    if model.image_chip_id is not None and chip_id != model.image_chip_id:
        out.plain(f"Invalid chip id. Expected {model.image_chip_id} read {chip_id}. Bootloader for wrong chip?")
        return _give_up(model, out)
    if header[1] > MAX_SEGMENTS:
        out.plain(f"Invalid image block count: {header[1]} (max {MAX_SEGMENTS})")
        return _give_up(model, out)
    print_flash_settings(out, model, header[2], header[3] & 0xF, is_secure=secure_boot is not None)
    if secure_boot is not None and not _is_trusted(read, offset, limit, out, secure_boot):
        return _give_up(model, out)
    return _load(model, read, offset, limit, out, secure_boot)


def _is_header(model: ChipModel, header: bytes) -> bool:
    magic, count, mode, frequency = header[0], header[1], header[2], header[3] & 0xF
    if model.is_esp32:
        return magic == MAGIC and mode < _MODES_ESP32 and count <= MAX_SEGMENTS
    return magic == MAGIC and mode < _MODES and frequency in _FREQUENCIES and count != 0xFF


def _give_up(model: ChipModel, out: BootLog) -> None:
    if model.chip in _MAIN_LINE:
        out.plain(f"ets_main.c {_MAIN_LINE[model.chip]} ")


def _load(
    model: ChipModel, read: Read, offset: int, limit: int, out: BootLog, secure_boot: SecureBoot | None
) -> Image | None:
    try:
        image, sums = parse_image(read, offset, limit)
    except ImageError:
        _print_loads_up_to_the_damage(model, read, offset, limit, out)
        return _give_up(model, out)
    for segment in image.segments:
        print_load(out, model, segment.address, segment.size, is_secure=secure_boot is not None)
    if sums.calculated != sums.stored:
        if model.is_esp32:
            out.plain(f"csum err:0x{sums.calculated:02x}!=0x{sums.stored:02x}")
            out.plain("Falling back to built-in command interpreter.")
            return None
        out.plain(f"Checksum failure. Calculated 0x{sums.calculated:02x} stored 0x{sums.stored:02x}")
        return _give_up(model, out)
    if secure_boot is None and not model.is_esp32:
        _compare_hash(read, offset, image, sums, out)
    print_entry(out, image.entry)
    return image


def _print_loads_up_to_the_damage(model: ChipModel, read: Read, offset: int, limit: int, out: BootLog) -> None:
    position = offset + HEADER_SIZE
    while position + 8 <= offset + limit:
        address, size = struct.unpack("<II", read(position, 8))
        if address == _ERASED and not model.is_esp32:
            out.plain("ets_loader.c 78 ")
            return
        print_load(out, model, address, size)
        if size % 4 or size > _LARGEST_SEGMENT:
            break
        position += 8 + size
    if not model.is_esp32:
        out.plain("Invalid image block, can't boot.")


def _compare_hash(read: Read, offset: int, image: Image, sums: Sums, out: BootLog) -> None:
    """Compare the SHA-256, also if the header says that the image has none."""
    calculated, stored = sums.digests or (
        hashlib.sha256(read(offset, image.size)).digest(),
        read(offset + image.size, 32),
    )
    if calculated != stored:
        out.plain("SHA-256 comparison failed:")
        out.plain(f"Calculated: {calculated.hex()}")
        out.plain(f"Expected: {stored.hex()}")
        out.plain("Attempting to boot anyway...")


def _is_trusted(read: Read, offset: int, limit: int, out: BootLog, secure_boot: SecureBoot) -> bool:
    """Check the signature, before the image is loaded."""
    is_trusted = _has_trusted_signature(read, offset, limit, out, secure_boot)
    out.plain(f"secure boot verification {'succeeded' if is_trusted else 'failed'}")
    return is_trusted


def _has_trusted_signature(read: Read, offset: int, limit: int, out: BootLog, secure_boot: SecureBoot) -> bool:
    if secure_boot.is_esp32:
        out.plain("secure boot v2 enabled")
    elif not secure_boot.digests:
        return False
    else:
        out.plain(f"Valid secure boot key blocks: {' '.join(map(str, secure_boot.digests))}")
    try:
        image, sums = parse_image(read, offset, limit)
    except ImageError:
        out.plain("Invalid image block, can't verify.")
        return False
    if not secure_boot.is_esp32 and sums.digests is not None and sums.digests[0] != sums.digests[1]:
        out.plain("SHA-256 simple hash comparison failed.")
        return False
    return secure_boot.check(read, offset, image.size, out.plain)
