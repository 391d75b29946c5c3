"""Unwinds a stack without frame pointers, with the ELF's call frame information and the stack dump of a panic.

ESP-IDF on RISC-V prints the registers and the first kilobyte of the stack, but no backtrace (unless the app was built
with frame pointers). Sources: DWARF 4, section 6.4 (call frame information); RISC-V ELF psABI (DWARF register numbers).
"""

from __future__ import annotations

import io
import struct
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_CIE = 0xFFFFFFFF  # marks a CIE in .debug_frame; other entries have their CIE's offset here
_MOST_FRAMES = 64

RA = 1
SP = 2

_NAMES = (
    *("X0", "RA", "SP", "GP", "TP", "T0", "T1", "T2", "S0/FP", "S1", "A0", "A1", "A2", "A3", "A4", "A5"),
    *("A6", "A7", "S2", "S3", "S4", "S5", "S6", "S7", "S8", "S9", "S10", "S11", "T3", "T4", "T5", "T6"),
)
_NUMBERS = {name: number for number, name in enumerate(_NAMES)}


@dataclass(frozen=True)
class _Description:
    """The position of a frame description entry in .debug_frame, and its address range."""

    begin: int
    end: int
    offset: int
    cie: int


class CallFrames:
    """The call frame information of a RISC-V ELF: .debug_frame, and .eh_frame if the app was built with it.

    Only the entries that a crash needs are decoded: pyelftools takes a second or more for all entries of a large app.

    Args:
        dwarf: pyelftools' debug information of the ELF (``ELFFile.get_dwarf_info()``).
    """

    def __init__(self, dwarf: Any) -> None:
        self._structs = dwarf.structs
        section = dwarf.debug_frame_sec
        self._data: bytes = section.stream.getvalue() if section is not None else b""
        self._descriptions = sorted(_index(self._data), key=lambda entry: entry.begin)
        self._begins = [entry.begin for entry in self._descriptions]
        self._eh_entries: list[Any] = dwarf.EH_CFI_entries() if dwarf.has_EH_CFI() else []

    def row(self, pc: int) -> Mapping[Any, Any] | None:
        """Return the rules for the frame of *pc*, one per saved register and one for ``"cfa"``; None if unknown."""
        entry = self._entry(pc)
        if entry is None:
            return None
        rows = [row for row in entry.get_decoded().table if row["pc"] <= pc]
        return rows[-1] if rows else None

    def _entry(self, pc: int) -> Any:
        index = bisect_right(self._begins, pc) - 1
        if index >= 0 and pc < self._descriptions[index].end:
            return self._parse(self._descriptions[index])
        for entry in self._eh_entries:
            begin = entry.header.get("initial_location")
            if begin and begin <= pc < begin + entry.header["address_range"]:
                return entry
        return None

    def _parse(self, description: _Description) -> Any:
        from elftools.dwarf.callframe import CallFrameInfo

        # Build a section with only this entry and its CIE, so that nothing else is parsed.
        cie = _slice(self._data, description.cie)
        fde = bytearray(_slice(self._data, description.offset))
        struct.pack_into("<I", fde, 4, 0)
        data = cie + fde
        return CallFrameInfo(io.BytesIO(data), len(data), 0, self._structs).get_entries()[-1]


def unwind(frames: CallFrames, registers: Mapping[str, int], memory: Mapping[int, int]) -> tuple[tuple[int, int], ...]:
    """Return the frames of a crash, innermost first, as pairs of PC and SP; the PCs of callers are return addresses.

    Unwinding stops at the end of the dump, at a repeated frame, at a function without call frame information, and at
    the start of the task.

    Args:
        frames: the app's call frame information.
        registers: the registers by their names in the panic (MEPC, RA, SP, ``S0/FP`` ...).
        memory: the words of the stack dump by address.
    """
    state = {_NUMBERS[name]: value for name, value in registers.items() if name in _NUMBERS}
    pc = registers.get("MEPC", 0)
    found: list[tuple[int, int]] = []
    while len(found) < _MOST_FRAMES and (pc, state.get(SP, 0)) not in found:
        found.append((pc, state.get(SP, 0)))
        caller = _caller(frames, pc if len(found) == 1 else pc - 1, state, memory)
        if caller is None and len(found) == 1 and state.get(RA):
            # A jump to an invalid address, or a function in ROM: RA still holds the caller, and SP is the caller's.
            caller = state
        if caller is None or not caller.get(RA) or caller.get(SP, 0) < state.get(SP, 0):
            break
        pc = caller[RA]
        # The callee has overwritten RA: from here on it is known only where a function saved it.
        state = {register: value for register, value in caller.items() if register != RA}
    return tuple(found)


def _caller(frames: CallFrames, pc: int, state: Mapping[int, int], memory: Mapping[int, int]) -> dict[int, int] | None:
    """Return the registers of the caller of the frame at *pc*, without RA if it is unknown."""
    row = frames.row(pc)
    if row is None or row["cfa"].reg not in state:
        return None
    cfa = (state[row["cfa"].reg] + row["cfa"].offset) & 0xFFFFFFFF
    caller = {**state, SP: cfa}
    for register, rule in row.items():
        if not isinstance(register, int) or rule.type == "SAME_VALUE":
            continue
        value = _value(rule, cfa, state, memory)
        if value is None:
            caller.pop(register, None)
        else:
            caller[register] = value
    return caller


def _value(rule: Any, cfa: int, state: Mapping[int, int], memory: Mapping[int, int]) -> int | None:
    if rule.type == "OFFSET":
        return memory.get((cfa + rule.arg) & 0xFFFFFFFF)
    if rule.type == "VAL_OFFSET":
        return (cfa + rule.arg) & 0xFFFFFFFF
    if rule.type == "REGISTER":
        return state.get(rule.arg)
    return None  # undefined: there is no caller; expressions are not used by the compilers for these chips


def _index(data: bytes) -> list[_Description]:
    """Return the positions of the entries of .debug_frame, without those of discarded functions (at address 0)."""
    found: list[_Description] = []
    offset = 0
    while offset + 16 <= len(data):
        length, cie, begin, size = struct.unpack_from("<IIII", data, offset)
        if length >= 0xFFFFFFF0:  # 64-bit DWARF, which is not used for 32-bit chips, or damaged data
            break
        if cie != _CIE and begin and cie + 4 <= len(data):
            found.append(_Description(begin, begin + size, offset, cie))
        offset += 4 + length
    return found


def _slice(data: bytes, offset: int) -> bytes:
    (length,) = struct.unpack_from("<I", data, offset)
    return data[offset : offset + 4 + length]
