"""Serial Flash Discoverable Parameters (JEDEC standard JESD216), which flash chips provide."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

from pytest_esp.errors import OperationError

Read = Callable[[int, int], bytes]
"""Reads *size* bytes at an address of the SFDP space."""

_SIGNATURE = b"SFDP"
_HEADER_SIZE = 8
_BASIC_TABLE = 0xFF00
_MOST_DWORDS = 23  # of the basic table in JESD216F
_ADDRESSING = {0: "3", 1: "3 or 4", 2: "4"}
_QUAD_ENABLE = {
    0: "none: the chip does not have such a bit",
    1: "bit 1 of status register 2, written with register 1 by 0x01",
    2: "bit 6 of status register 1",
    3: "bit 7 of status register 2, by 0x3E",
    4: "bit 1 of status register 2, written with register 1 by 0x01; writing one byte does not change it",
    5: "bit 1 of status register 2, read by 0x35 and written by 0x01",
    6: "bit 1 of status register 2, read by 0x35 and written by 0x31",
}


@dataclass(frozen=True)
class SfdpTable:
    """A parameter table: its ID (0xFF00 is JEDEC's basic table), revision, address and size in bytes."""

    id: int
    revision: str
    address: int
    size: int


@dataclass(frozen=True)
class EraseType:
    """An erase size in bytes, and its opcode."""

    size: int
    opcode: int


@dataclass(frozen=True)
class FastRead:
    """A fast read: lines for command, address and data (``"1-4-4"``), opcode, and wait clocks before the data."""

    lines: str
    opcode: int
    wait_states: int
    mode_clocks: int


@dataclass(frozen=True)
class Sfdp:
    """The values from the header and the basic table.

    Attributes:
        revision: the header's revision.
        size: the flash size in bytes.
        address_bytes: ``"3"``, ``"3 or 4"`` or ``"4"``.
        page_size: the size of a program command in bytes; None if the table does not contain it.
        quad_enable: the bit that enables four-line reads; None if the table does not contain it.
    """

    revision: str
    size: int
    address_bytes: str
    erase_types: tuple[EraseType, ...]
    fast_reads: tuple[FastRead, ...]
    page_size: int | None
    quad_enable: str | None
    tables: tuple[SfdpTable, ...]


def parse(read: Read) -> Sfdp:
    """Parse the parameters that *read* returns.

    Raises:
        OperationError: if there are no parameters, or they are invalid.
    """
    header = read(0, _HEADER_SIZE)
    if not header.startswith(_SIGNATURE):
        raise OperationError(
            "the flash has no SFDP parameters",
            hint="older chips do not have them; detect the flash size by its ID instead",
        )
    tables = tuple(_table(read(_HEADER_SIZE * number, _HEADER_SIZE)) for number in range(1, header[6] + 2))
    basic = next((table for table in tables if table.id == _BASIC_TABLE), None)
    if basic is None or basic.size < 9 * 4:
        raise OperationError("the SFDP parameters have no basic table", hint="they are damaged, or not from JESD216")
    count = min(basic.size // 4, _MOST_DWORDS)
    words = struct.unpack(f"<{count}I", read(basic.address, count * 4))
    return Sfdp(
        revision=f"{header[5]}.{header[4]}",
        size=_size(words[1]),
        address_bytes=_ADDRESSING.get(words[0] >> 17 & 3, "unknown"),
        erase_types=_erase_types(words),
        fast_reads=tuple(_fast_reads(words)),
        page_size=_page_size(words),
        quad_enable=_QUAD_ENABLE.get(words[14] >> 20 & 7) if _tells(words, 14) else None,
        tables=tables,
    )


def _table(header: bytes) -> SfdpTable:
    low, minor, major, dwords = header[:4]
    return SfdpTable(header[7] << 8 | low, f"{major}.{minor}", int.from_bytes(header[4:7], "little"), dwords * 4)


def _tells(words: tuple[int, ...], index: int) -> bool:
    """Return whether a table has a non-zero word at *index*: tables of revision 1.0 end after nine words."""
    return len(words) > index and words[index] not in (0, 0xFFFFFFFF)


def _size(word: int) -> int:
    """Return the size in bytes for a density word: the number of bits minus one, or a power of two of bits."""
    if word & 1 << 31:
        exponent = word & 0x7FFFFFFF
        if not 3 <= exponent < 64:
            raise OperationError(f"invalid SFDP density {word:#x}")
        return 1 << exponent - 3
    return (word + 1) // 8


def _erase_types(words: tuple[int, ...]) -> tuple[EraseType, ...]:
    pairs = [(word >> shift & 0xFF, word >> shift + 8 & 0xFF) for word in words[7:9] for shift in (0, 16)]
    return tuple(EraseType(1 << exponent, opcode) for exponent, opcode in pairs if 0 < exponent < 32)


def _fast_reads(words: tuple[int, ...]) -> list[FastRead]:
    first, fifth = words[0], words[4]
    modes = (
        ("1-1-2", first >> 16 & 1, words[3] & 0xFFFF),
        ("1-2-2", first >> 20 & 1, words[3] >> 16),
        ("1-1-4", first >> 22 & 1, words[2] >> 16),
        ("1-4-4", first >> 21 & 1, words[2] & 0xFFFF),
        ("2-2-2", fifth & 1, words[5] >> 16),
        ("4-4-4", fifth >> 4 & 1, words[6] >> 16),
    )
    return [FastRead(lines, half >> 8, half & 0x1F, half >> 5 & 7) for lines, there, half in modes if there]


def _page_size(words: tuple[int, ...]) -> int | None:
    return 1 << (words[10] >> 4 & 0xF) if _tells(words, 10) else None
