"""Reads and checks ELF files of Espressif chips.

esptool's reader accepts truncated sections, and reports errors in many ways.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

from esptool.targets import CHIP_DEFS

from pytest_esp.errors import FirmwareError
from pytest_esp.formats.files import FileName, read_file

_XTENSA = ("esp8266", "esp32", "esp32s2", "esp32s3")
_ARCHITECTURES = {"EM_XTENSA": "xtensa", "EM_RISCV": "riscv"}
_ALLOC, _WRITE, _EXECUTE = 2, 1, 4  # SHF_...
_NO_CONTENT = "SHT_NOBITS"
# Entries of esptool's memory maps to ignore: padding of images, and a window over memories and the gaps between them.
_NO_MEMORY = ("PADDING", "MEM_INTERNAL")


@dataclass(frozen=True)
class Section:
    """A section in the chip's memory. Address and size are in bytes.

    Attributes:
        in_image: whether its contents are in the image; other sections (``.bss``) only occupy memory.
    """

    name: str
    address: int
    size: int
    in_image: bool
    writeable: bool
    executable: bool


@dataclass(frozen=True)
class Symbol:
    """A function or a variable. Address and size are in bytes."""

    name: str
    address: int
    size: int
    section: str


@dataclass(frozen=True)
class Elf:
    """A complete ELF file.

    Attributes:
        architecture: "xtensa" or "riscv".
        sections: the sections in memory, ordered by address.
    """

    source: str
    data: bytes
    architecture: str
    entry: int
    sections: tuple[Section, ...]

    @functools.cached_property
    def symbols(self) -> tuple[Symbol, ...]:
        """Functions and variables with a size, the largest first; of several names for one address, the first."""
        try:
            return tuple(_symbols(_open(self.data), {section.name for section in self.sections}))
        except Exception as error:  # see `read_elf`
            raise _damaged(self.source, error) from error

    def fitting_chips(self) -> tuple[str, ...]:
        """Return the chips whose memory fits this file."""
        return tuple(chip for chip in CHIP_DEFS if not self.why_not_for(chip) and not self.homeless(chip))

    def why_not_for(self, chip: str) -> str | None:
        """Return why it cannot run on *chip*; None if it can."""
        wanted = "xtensa" if chip in _XTENSA else "riscv"
        if self.architecture != wanted:
            return f"it contains {self.architecture} code, but the {chip} is {wanted}"
        if not memories_at(chip, self.entry):
            return f"its entry point {self.entry:#x} is outside the memory of the {chip}"
        return None

    def homeless(self, chip: str) -> tuple[str, ...]:
        """Return the names of the sections outside the memory of *chip*, by esptool's memory map."""
        return tuple(one.name for one in self.sections if not memories_at(chip, one.address))


def memories_at(chip: str, address: int) -> tuple[str, ...]:
    """Return esptool's names of a chip's memories at *address* (``MEMORY_MAP``)."""
    spans = cast("list[tuple[int, int, str]]", CHIP_DEFS[chip].MEMORY_MAP)
    return tuple(name for start, end, name in spans if start <= address < end and name not in _NO_MEMORY)


def read_elf(elf_file: FileName) -> Elf:
    """Read an ELF file, and check that it is complete.

    Raises:
        FirmwareError: if it is missing, damaged, truncated, not an ELF file of an Espressif chip, or has nothing to
            load.
    """
    return parse_elf(read_file(elf_file, "ELF file"), str(elf_file))


def is_elf(data: bytes) -> bool:
    """Return whether *data* begins like an ELF file."""
    return data.startswith(b"\x7fELF")


def parse_elf(data: bytes, source: str) -> Elf:
    """Return the ELF file *data*; *source* is its name in messages.

    Raises:
        FirmwareError: see `read_elf`.
    """
    if not is_elf(data):
        raise FirmwareError(f"{source} is not an ELF file", hint="use the linker's output, *.elf in the build folder")
    try:
        return _read(data, source)
    except FirmwareError:
        raise
    except Exception as error:  # not documented by pyelftools: its own, struct.error, KeyError, assertions
        raise _damaged(source, error) from error


def _read(data: bytes, source: str) -> Elf:
    elf = _open(data)
    machine = str(elf["e_machine"])
    if machine not in _ARCHITECTURES or elf.elfclass != 32 or not elf.little_endian:
        kind = f"{machine.removeprefix('EM_')}, {elf.elfclass} bits"
        raise FirmwareError(f"{source} is an ELF file for another processor: {kind}")
    _check_bounds(elf, len(data), source)
    found = [
        Section(
            name=str(one.name),
            address=int(one["sh_addr"]),
            size=int(one["sh_size"]),
            in_image=one["sh_type"] != _NO_CONTENT,
            writeable=bool(one["sh_flags"] & _WRITE),
            executable=bool(one["sh_flags"] & _EXECUTE),
        )
        for one in elf.iter_sections()
        if one["sh_flags"] & _ALLOC and one["sh_size"] and one["sh_addr"]
    ]
    if not any(section.in_image for section in found):
        raise FirmwareError(f"{source} has nothing to load", hint="use the linker's output, not an object file")
    return Elf(
        source=source,
        data=data,
        architecture=_ARCHITECTURES[machine],
        entry=int(elf["e_entry"]),
        sections=tuple(sorted(found, key=lambda section: section.address)),
    )


def _open(data: bytes) -> Any:
    from elftools.elf.elffile import ELFFile

    return ELFFile(io.BytesIO(data))


def _check_bounds(elf: Any, length: int, source: str) -> None:
    parts = [
        (f"section {number} ({section.name})", section["sh_offset"], section["sh_size"])
        for number, section in enumerate(elf.iter_sections())
        if section["sh_type"] not in (_NO_CONTENT, "SHT_NULL")
    ]
    parts += [
        (f"segment {number}", segment["p_offset"], segment["p_filesz"])
        for number, segment in enumerate(elf.iter_segments())
    ]
    for name, offset, size in parts:
        if offset + size > length:
            raise FirmwareError(
                f"{source} is truncated: {name} needs {offset + size:#x} bytes, but the file has {length:#x}",
                hint="build or copy it again",
            )


def _symbols(elf: Any, sections: set[str]) -> Iterable[Symbol]:
    table = elf.get_section_by_name(".symtab")
    if table is None:
        return []
    names: list[str] = [str(section.name) for section in elf.iter_sections()]
    found: dict[tuple[int, int], Symbol] = {}
    for symbol in table.iter_symbols():
        index, size, address = symbol["st_shndx"], int(symbol["st_size"]), int(symbol["st_value"])
        if size and isinstance(index, int) and index < len(names) and names[index] in sections:
            found.setdefault((address, size), Symbol(str(symbol.name), address, size, names[index]))
    return sorted(found.values(), key=lambda symbol: (-symbol.size, symbol.address))


def _damaged(source: str, error: Exception) -> FirmwareError:
    words = str(error) or type(error).__name__
    return FirmwareError(f"{source} is damaged: {words}", hint="build or copy it again")
