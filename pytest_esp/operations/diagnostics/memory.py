"""Memory and registers of a chip, read through its loader."""

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

_MOST = 1 << 20  # bytes; at a register a millisecond that is more than four minutes
_ADDRESSES = 1 << 32
_MOST_SHOWN = 4096  # bytes
_ROW = 16


@dataclass(frozen=True)
class MemoryDump:
    """Memory of a chip.

    Attributes:
        size: bytes.
        areas: where it lies, by the names of esptool and of ESP-IDF.
        hexdump: the first 4 KB as text: address, bytes and printable characters, 16 to a line.
        output_file: where all of it was saved, if it was.
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
    """Read RAM, ROM or registers of the chip by address, as its loader sees them; what is not mapped is refused.

    RAM holds what the app left there only where ROM and stub have not used it since.

    Args:
        address: of the first byte: a number, or text like 0x3fc90000.
        size: in bytes, or like 4KB; up to 1 MB.
        output_file: saves all of it.
        overwrite: whether *output_file* may exist already.
        progress: called with bytes done and to do.

    Raises:
        OperationError: before the wire is touched if nothing is mapped there, or it cannot be read in the loader (the
            chip would crash); in secure download mode.
    """
    start, length = size_argument(address, "address"), size_argument(size, "size")
    if not 0 < length <= _MOST or start + length > _ADDRESSES:
        raise OperationError(
            f"{length} bytes at {start:#x} cannot be read", hint=f"ask for 1 byte to {format_size(_MOST)}"
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
    """Return what is known of the chip that answers.

    Raises:
        OperationError: in secure download mode, where no address can be read.
    """
    if esp.secure_download_mode:
        raise OperationError(
            "the chip is in secure download mode: no memory and no register can be read",
            hint="nothing opens it again; its security info is all that can be read",
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
    """One register: its value, and that of its fields."""

    name: str
    address: Address
    value: Address
    fields: Mapping[str, int]


@dataclass(frozen=True)
class RegisterDump:
    """Registers of a chip.

    Attributes:
        reset_reason: why the chip was reset last, by its register; None where it has no such register. The reset into
            the loader counts: ask the console what came before.
        source: where names and addresses come from.
    """

    chip_type: str
    reset_reason: str | None
    registers: tuple[RegisterState, ...]
    source: str

    def __getitem__(self, name: str) -> RegisterState:
        """Return a register by its name."""
        return next(state for state in self.registers if state.name == name)


@operation(Effect.READ, group="diagnostics")
def register_dump(link: Link, module: str | None = None) -> RegisterDump:
    """Read the chip's registers by name, with their fields: resets, boot pins, clocks, supply, watchdogs, pins, UART.

    Reading them changes nothing.

    Args:
        module: what their names begin with, e.g. RTC_CNTL or UART; by default all (some 60) are read.

    Raises:
        OperationError: if nothing is known of the chip's registers, none has such a name, or in secure download mode.
    """
    with link.session.use("reading registers", stub=False) as esp:
        soc = known_soc(link, esp)
        wanted = _wanted(soc, module)
        states = tuple(_state(register, int(esp.read_reg(register.address)) & 0xFFFFFFFF) for register in wanted)
    return RegisterDump(soc.chip, _reset_reason(soc, states), states, soc.source)


def _wanted(soc: Soc, module: str | None) -> list[Register]:
    if not soc.registers:
        raise OperationError(
            f"nothing is known of the registers of the {soc.chip}", hint="read them by their addresses"
        )
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
