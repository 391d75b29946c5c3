"""Which app ESP-IDF's bootloader starts, from otadata and the partition table, and what it writes to otadata.

Source: ESP-IDF's bootloader_utility.c and bootloader_common_loader.c.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from esp_idf_defs.otadata import OtaImageState
from esp_idf_defs.partitions import DATA_TYPE

from pytest_esp.formats.boot_image import Read
from pytest_esp.formats.nor_flash import SECTOR
from pytest_esp.sim.boot_log import BootLog, Partition

Write = Callable[[int, bytes], None]
"""Erases the sector at a flash address, and writes data there."""

_OTADATA = 0x00  # the subtype
_ENTRY = struct.Struct("<I20sII")  # esp_ota_select_entry_t: number, label, state, CRC
_BLANK = 0xFFFFFFFF
_FACTORY = -1


@dataclass(frozen=True)
class Choice:
    """The slot to try first: its number, or -1 for the factory app.

    Attributes:
        otadata_is_blank: whether the bootloader writes the number of the slot that boots.
    """

    index: int
    otadata_is_blank: bool = False


@dataclass
class _Entry:
    address: int
    sequence: int
    label: bytes
    state: int
    crc: int

    @property
    def has_crc(self) -> bool:
        return self.crc == _crc(self.sequence)

    @property
    def is_invalid(self) -> bool:
        return self.sequence == _BLANK or self.state in (OtaImageState.INVALID, OtaImageState.ABORTED)

    @property
    def is_blank(self) -> bool:
        return self.sequence == _BLANK or not self.has_crc

    def change_state(self, state: int, write: Write) -> None:
        self.state = state
        write(self.address, _ENTRY.pack(self.sequence, self.label, state, self.crc))


def _crc(sequence: int) -> int:
    return zlib.crc32(struct.pack("<I", sequence), 0xFFFFFFFF)


def choose_slot(table: list[Partition], read: Read, write: Write, out: BootLog, *, rollback: bool) -> Choice | None:
    """Return the slot to try first; None if the bootloader gives up.

    With *rollback*, update the states: an image that was started once and did not confirm itself (PENDING_VERIFY) is
    marked as ABORTED, and a NEW one as PENDING_VERIFY.
    """
    otadata = _otadata(table)
    has_factory = any(part.is_factory for part in table)
    if otadata is None:
        return Choice(_FACTORY)
    if otadata.size < 2 * SECTOR:
        out.error("boot", f"ota_info partition size {otadata.size} is too small (minimum {2 * SECTOR} bytes)")
        # The bootloader goes on with an invalid index, prints nothing more, and resets.
        return None
    entries = [_read_entry(read, otadata.offset + number * SECTOR) for number in (0, 1)]
    if rollback:
        for entry in entries:
            if entry.state == OtaImageState.PENDING_VERIFY:
                entry.change_state(OtaImageState.ABORTED, write)
    count = sum(part.ota_number is not None for part in table)
    if all(entry.is_invalid for entry in entries) or not count:
        if has_factory:
            out.info("boot", "Defaulting to factory image")
            return Choice(_FACTORY)
        out.info("boot", "No factory image, trying OTA 0")
        return Choice(0, otadata_is_blank=all(entry.is_blank for entry in entries))
    valid = [entry for entry in entries if not entry.is_invalid and entry.has_crc]
    if not valid:
        fallback = ", falling back to factory" if has_factory else " and no factory, will try all partitions"
        out.error("boot", f"ota data partition invalid{fallback}")
        return Choice(_FACTORY)
    active = max(valid, key=lambda entry: entry.sequence)  # the first of equal ones
    if rollback and active.state == OtaImageState.NEW:
        active.change_state(OtaImageState.PENDING_VERIFY, write)
    return Choice((active.sequence - 1 & 0xFFFFFFFF) % count)


def slots_to_try(table: list[Partition], start: int) -> Iterator[tuple[int | None, Partition, str | None]]:
    """Return the slots in the order in which the bootloader tries them: number, partition, and its name in an error.

    From *start* downwards to the factory app, then upwards, then the test app. Slots are found by their numbers: of two
    slots ota_1 and ota_3, the bootloader can only start ota_1.
    """
    apps: dict[int, Partition] = {}
    for part in table:  # of two with one number, the last one counts
        if part.ota_number is not None:
            apps[part.ota_number] = part
        elif part.is_factory:
            apps[_FACTORY] = part
    count = sum(part.ota_number is not None for part in table)
    for index in (*range(start, _FACTORY - 1, -1), *range(start + 1, count)):
        part = apps.get(index)
        if part is not None and part.size and index < count:
            name = "Factory app partition" if index == _FACTORY else f"OTA app partition slot {index}"
            yield index, part, name
    yield from ((None, part, None) for part in [part for part in table if part.is_test][-1:])


def set_first_sequence(table: list[Partition], index: int, write: Write, out: BootLog) -> None:
    """Write the slot that was started to blank otadata."""
    otadata = _otadata(table)
    assert otadata is not None
    entry = _ENTRY.pack(index + 1, b"\xff" * 20, OtaImageState.VALID, _crc(index + 1))
    write(otadata.offset, entry)
    out.info("boot", f"Set actual ota_seq={index + 1} in otadata[0]")


def _otadata(table: list[Partition]) -> Partition | None:
    found = [part for part in table if part.type == DATA_TYPE and part.subtype == _OTADATA]
    return found[-1] if found else None


def _read_entry(read: Read, address: int) -> _Entry:
    return _Entry(address, *_ENTRY.unpack(read(address, _ENTRY.size)))
