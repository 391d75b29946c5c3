"""Reads memory and registers of a chip through its loader."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytest_esp.errors import OperationError
from pytest_esp.formats import files
from pytest_esp.formats.files import WritePath, new_file
from pytest_esp.formats.regions import size_argument
from pytest_esp.link.link import Link
from pytest_esp.link.logs import Progress
from pytest_esp.names import nearest
from pytest_esp.operations.diagnostics.soc import Register, Soc, soc_of
from pytest_esp.operations.registry import Effect, operation
from pytest_esp.operations.results import Address
from pytest_esp.units import Contents, format_size

_MOST = 1 << 20  # bytes; at one register per millisecond this takes more than four minutes
_ADDRESSES = 1 << 32
_MOST_SHOWN = 4096  # bytes
_ROW = 16


@dataclass(frozen=True)
class MemoryDump:
    """Memory of a chip.

    Attributes:
        size: in bytes.
        areas: memory areas that it belongs to, by the names of esptool and of ESP-IDF.
        hexdump: the first 4 KB as text: address, bytes and printable characters, 16 per line.
        output_file: the file it was saved to, if any.
    """

    chip_type: str
    address: Address
    size: int
    areas: tuple[str, ...]
    source: str
    hexdump: str
    data: Contents = field(repr=False)
    output_file: Path | None = None


@operation(Effect.READ, group="diagnostics")
def memory_dump(
    link: Link,
    address: int | str,
    size: int | str,
    output_file: WritePath | None = None,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> MemoryDump:
    """Read RAM, ROM or registers of the chip by address, through its loader; unmapped addresses are refused.

    RAM has the app's data only where ROM and stub have not overwritten it.

    Args:
        address: of the first byte: a number, or text, e.g. 0x3fc90000.
        size: in bytes, or e.g. 4KB; at most 1 MB.
        output_file: save everything to this file.
        overwrite: replace *output_file* if it exists.
        progress: called with bytes done and total.

    Raises:
        OperationError: in secure download mode; or, before the chip is accessed, if nothing is mapped there or it
            cannot be read in the loader (the chip would crash).
    """
    start, length = size_argument(address, "address"), size_argument(size, "size")
    if not 0 < length <= _MOST or start + length > _ADDRESSES:
        raise OperationError(
            f"cannot read {length} bytes at {start:#x}",
            hint=f"use 1 byte to {format_size(_MOST)}, within 32-bit addresses",
        )
    path = new_file(output_file, overwrite) if output_file is not None else None
    if link.board.chip != "auto":
        soc_of(link.board.chip, link.board.revision).areas_of(start, start + length)
    with link.session.use(f"reading {length} bytes at {start:#x}", stub=False) as esp:
        soc = known_soc(link, esp)
        areas = soc.areas_of(start, start + length)
        data = _read(esp, start, length, progress)
    if path is not None:
        files.save(path, data)
    names = tuple(area.name for area in areas)
    return MemoryDump(soc.chip, start, length, names, soc.source, _hexdump(start, data[:_MOST_SHOWN]), data, path)


def known_soc(link: Link, esp: Any) -> Soc:
    """Return the address space of the chip that answers.

    Raises:
        OperationError: in secure download mode, where no address can be read.
    """
    if esp.secure_download_mode:
        raise OperationError(
            "memory and registers cannot be read in secure download mode",
            hint="read its security info instead; secure download mode cannot be left",
        )
    chip = link.session.chip
    return soc_of(chip, None if chip == "esp8266" else int(esp.get_chip_revision()))


def _read(esp: Any, start: int, length: int, progress: Progress | None) -> bytes:
    first, last = start & ~3, -(-(start + length) // 4) * 4
    words: list[bytes] = []
    for place in range(first, last, 4):
        words.append(struct.pack("<I", int(esp.read_reg(place)) & 0xFFFFFFFF))
        if progress is not None and place % 1024 == 0:
            progress(place - first, last - first)
    if progress is not None:
        progress(last - first, last - first)
    return b"".join(words)[start - first : start - first + length]


def _hexdump(address: int, data: bytes) -> str:
    return "\n".join(_row(address + place, data[place : place + _ROW]) for place in range(0, len(data), _ROW))


def _row(address: int, data: bytes) -> str:
    text = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in data)
    return f"{address:08x}  {data.hex(' ', 1):{3 * _ROW - 1}}  {text}"


@dataclass(frozen=True)
class RegisterState:
    """One register: its value, and the values of its fields."""

    name: str
    address: Address
    value: Address
    fields: Mapping[str, int]


@dataclass(frozen=True)
class RegisterDump:
    """Registers of a chip.

    Attributes:
        reset_reason: reason of the last reset, by register; None if the chip has no such register. This may be the
            reset into the loader: see the console for earlier ones.
        source: source of names and addresses.
    """

    chip_type: str
    reset_reason: str | None
    registers: tuple[RegisterState, ...]
    source: str

    def __getitem__(self, name: str) -> RegisterState:
        """Return a register by name."""
        return next(state for state in self.registers if state.name == name)


@operation(Effect.READ, group="diagnostics")
def register_dump(link: Link, module: str | None = None) -> RegisterDump:
    """Read the chip's registers by name, with their fields: resets, boot pins, clocks, supply, watchdogs, pins, UART.

    Reading them has no side effects.

    Args:
        module: prefix of the register names, e.g. RTC_CNTL or UART; by default all (about 60) are read.

    Raises:
        OperationError: if the chip's registers are unknown, none has this prefix, or in secure download mode.
    """
    with link.session.use("reading registers", stub=False) as esp:
        soc = known_soc(link, esp)
        wanted = _wanted(soc, module)
        states = tuple(_state(register, int(esp.read_reg(register.address)) & 0xFFFFFFFF) for register in wanted)
    return RegisterDump(soc.chip, _reset_reason(soc, states), states, soc.source)


def _wanted(soc: Soc, module: str | None) -> list[Register]:
    if not soc.registers:
        raise OperationError(f"the registers of the {soc.chip} are unknown", hint="read them by address")
    found = [register for register in soc.registers if register.name.startswith((module or "").upper())]
    if not found:
        names = sorted({register.name.partition("_")[0] for register in soc.registers})
        raise OperationError(f"no register begins with {module!r}", hint=f"nearest: {nearest(module or '', names)}")
    return found


def _state(register: Register, value: int) -> RegisterState:
    return RegisterState(
        register.name, register.address, value, {field.name: field.of(value) for field in register.fields}
    )


def _reset_reason(soc: Soc, states: tuple[RegisterState, ...]) -> str | None:
    for state in states:
        for name, value in state.fields.items():
            if name.endswith(("RESET_CAUSE_PROCPU", "HPCORE0_RESET_CAUSE", "LP_CLKRST_RESET_CAUSE")):
                return soc.reset_reasons.get(value, f"reason {value:#x}") if value else None
    return None
