"""Looks up addresses in an app's ELF file: function, source file and line; and checks which firmware the ELF is from.

pyelftools reads the file; neither a toolchain nor gdb is needed. What is slow for a large app is done only for the
requested addresses: the line table of one unit (through .debug_aranges), the inlined calls of one function.
"""

from __future__ import annotations

import hashlib
import io
import re
import struct
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, ClassVar, Concatenate, ParamSpec, TypeVar

from pytest_esp.errors import FirmwareError
from pytest_esp.link.unwind import CallFrames, unwind

_MACHINES = {94: "xtensa", 243: "riscv"}  # e_machine: EM_XTENSA, EM_RISCV
_EXECUTABLE = 0x4  # SHF_EXECINSTR
_SYMBOL = struct.Struct("<IIIBBH")  # Elf32_Sym
_NO_TYPE, _FUNCTION = 0, 2  # STT_NOTYPE (labels in assembler), STT_FUNC
_ABSOLUTE = 0xFFF1  # SHN_ABS and the reserved indices above: no address of the app
_MOST_CACHED = 4  # ELFs whose debug information is kept in memory

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Location:
    """The location of an address; unknown parts are None."""

    function: str | None
    file: str | None
    line: int | None


@dataclass(frozen=True)
class _Function:
    begin: int
    end: int
    names: tuple[str, ...]  # more than one for aliases


@dataclass(frozen=True)
class _Sequence:
    """A sequence in the line table: the addresses at which lines begin, and those lines."""

    begin: int
    end: int
    addresses: tuple[int, ...]
    lines: tuple[tuple[int, int], ...]  # number of the file, line


@dataclass(frozen=True)
class _Unit:
    sequences: tuple[_Sequence, ...]
    files: Mapping[int, str]
    compilation: Any  # pyelftools' CompileUnit


def _checked(method: Callable[Concatenate[Symbols, P], R]) -> Callable[Concatenate[Symbols, P], R]:
    """Serialize threads, since pyelftools reads through one stream, and report its exceptions as a damaged file."""

    @wraps(method)
    def call(self: Symbols, *args: P.args, **kwargs: P.kwargs) -> R:
        with self.lock:
            try:
                return method(self, *args, **kwargs)
            except FirmwareError:
                raise
            except Exception as error:  # not documented by pyelftools: struct.error, KeyError, assertions and others
                raise _damaged(self.path, error) from error

    return call


class Symbols:
    """The symbols and debug information of one ELF file of an Espressif chip.

    Use `Symbols.of`, which parses each file once. Several threads may look up addresses.

    Args:
        path: the ELF file, e.g. ``build/hello_world.elf``.

    Attributes:
        architecture: ``"xtensa"`` or ``"riscv"``.
        app_elf_sha256: SHA-256 of the file, in hex: the value that elf2image writes to the app descriptor
            (``app_elf_sha256`` in esp_app_desc_t). Boot logs and panics print its beginning.

    Raises:
        FirmwareError: if the file is missing, damaged, or not an ELF file for an Espressif chip. Lookups raise it, too.
    """

    _cache: ClassVar[OrderedDict[tuple[Path, int, int], Symbols]] = OrderedDict()
    _cache_lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = threading.RLock()
        try:
            data = path.read_bytes()
        except OSError as error:
            raise FirmwareError(
                f"the ELF file {path} cannot be read: {error.strerror}", hint="use the .elf file in the build folder"
            ) from error
        self.app_elf_sha256 = hashlib.sha256(data).hexdigest()
        self._open(data)
        self._units: dict[int, _Unit] = {}
        self._call_frames: CallFrames | None = None

    @classmethod
    def of(cls, path: Path) -> Symbols:
        """Return the symbols of *path*, from a cache if the file has not changed."""
        try:
            status = path.stat()
            key = (path.resolve(), status.st_mtime_ns, status.st_size)
        except OSError:
            return cls(path)  # raises the error
        with cls._cache_lock:
            if key not in cls._cache:
                cls._cache[key] = cls(path)
                if len(cls._cache) > _MOST_CACHED:
                    cls._cache.popitem(last=False)
            cls._cache.move_to_end(key)
            return cls._cache[key]

    @_checked
    def _open(self, data: bytes) -> None:
        from elftools.elf.elffile import ELFFile

        if data[:7] != b"\x7fELF\x01\x01\x01":
            raise FirmwareError(
                f"{self.path} is not a 32-bit ELF file",
                hint="use the build's .elf file, not an image (.bin) made from it",
            )
        elf: Any = ELFFile(io.BytesIO(data))
        machine = struct.unpack_from("<H", data, 18)[0]
        if machine not in _MACHINES:
            raise FirmwareError(f"{self.path} is an ELF file for another processor (machine {machine})")
        self.architecture = _MACHINES[machine]
        self._code = [
            (section["sh_addr"], section["sh_addr"] + section["sh_size"])
            for section in elf.iter_sections()
            if section["sh_flags"] & _EXECUTABLE
        ]
        self._functions = _functions(elf)
        self._function_begins = [function.begin for function in self._functions]
        self._dwarf = elf.get_dwarf_info() if elf.has_dwarf_info() else None
        self._ranges = _unit_ranges(self._dwarf) if self._dwarf is not None else []
        self._range_begins = [begin for begin, _, _ in self._ranges]

    def matches(self, sha256: str) -> bool:
        """Return whether *sha256*, or its beginning from a log, is this file's."""
        return self.app_elf_sha256.startswith(sha256.lower())

    def is_code(self, address: int) -> bool:
        """Return whether the app has code at *address*. The ROM's code is not in the ELF."""
        return any(begin <= address < end for begin, end in self._code)

    @_checked
    def locate(self, address: int) -> Location | None:
        """Return the function and source line at *address*; None if the ELF has neither.

        The line may be in another function that is inlined there; see `inlined`.
        """
        names = self._names(address)
        file, line = self._line(address)
        if not names and line is None:
            return None
        return Location(demangle(names[0]) if names else None, file, line)

    @_checked
    def inlined(self, address: int) -> tuple[Location, ...]:
        """Return the locations of *address* with inlined functions: innermost first, the real function last."""
        place = self.locate(address)
        if place is None:
            return ()
        unit = self._unit(address)
        entries = list(_entries(unit, self._dwarf, address)) if unit is not None else []
        found: list[Location] = []
        file, line = place.file, place.line
        for call in reversed(entries[1:]):
            found.append(Location(_name(call), file, line))
            file, line = _call_site(call, unit)
        # Of a function's aliases, use the one in the source; but a symbol's name has more information than a method's.
        name = _name(entries[0]) if entries else None
        function = name if name in self._names(address) or place.function is None else place.function
        return (*found, Location(function, file, line))

    @_checked
    def unwind(self, registers: Mapping[str, int], memory: Mapping[int, int]) -> tuple[tuple[int, int], ...]:
        """Return the frames of a RISC-V panic, innermost first, as pairs of PC and SP.

        Args:
            registers: the registers by their names in the panic (MEPC, RA, SP, ...).
            memory: the words of its stack dump by address.
        """
        if self._dwarf is None or self.architecture != "riscv":
            return ((registers["MEPC"], registers.get("SP", 0)),) if "MEPC" in registers else ()
        if self._call_frames is None:
            self._call_frames = CallFrames(self._dwarf)
        return unwind(self._call_frames, registers, memory)

    def _names(self, address: int) -> tuple[str, ...]:
        index = bisect_right(self._function_begins, address) - 1
        if index < 0 or not address < self._functions[index].end or not self.is_code(address):
            return ()
        return self._functions[index].names

    def _line(self, address: int) -> tuple[str | None, int | None]:
        unit = self._unit(address)
        for sequence in unit.sequences if unit is not None else ():
            if unit is not None and sequence.begin <= address < sequence.end:
                file, line = sequence.lines[bisect_right(sequence.addresses, address) - 1]
                return unit.files.get(file), line or None
        return None, None

    def _unit(self, address: int) -> _Unit | None:
        index = bisect_right(self._range_begins, address) - 1
        if index < 0 or not address < self._ranges[index][1]:
            return None
        offset = self._ranges[index][2]
        if offset not in self._units:
            self._units[offset] = _read_unit(self._dwarf, offset)
        return self._units[offset]


def demangle(name: str) -> str:
    """Return the name of a C++ function or method as in the source; *name* unchanged for C and for templates.

    Source: Itanium C++ ABI, section 5.1 (mangling).
    """
    match = re.match(r"_ZN[rVK]*|_ZL?(?=\d)", name)
    if match is None:
        return name
    parts: list[str] = []
    position = match.end()
    while match := re.compile(r"[CD][0-9]|\d+").match(name, position):
        token, position = match.group(), match.end()
        if token[0] in "CD":
            parts += [("~" if token[0] == "D" else "") + parts[-1]] if parts else [token]
            continue
        part = name[position : position + int(token)]
        parts.append("(anonymous namespace)" if part.startswith("_GLOBAL__N") else part)
        position += int(token)
        if not name.startswith("_ZN"):
            break
    rest = name[position : position + 1]
    if not parts or (name.startswith("_ZN") and rest != "E") or rest == "I":
        return name
    return "::".join(parts)


def _functions(elf: Any) -> list[_Function]:
    """Return the functions in the symbol table by address, including code that only has labels.

    pyelftools is not used: it takes 0.1 ms per symbol, which is seconds for a large app.
    """
    section = elf.get_section_by_name(".symtab")
    if section is None:
        return []
    names: bytes = elf.get_section(section["sh_link"]).data()
    data: bytes = section.data()
    sizes: dict[tuple[int, int], int] = {}  # by kind and address
    texts: dict[tuple[int, int], list[str]] = {}
    for name, value, size, info, _other, index in _SYMBOL.iter_unpack(data[: len(data) // _SYMBOL.size * _SYMBOL.size]):
        if info & 0xF not in (_FUNCTION, _NO_TYPE) or index == 0 or index >= _ABSOLUTE or not value:
            continue
        text = names[name : names.find(b"\0", name)].decode("utf-8", "replace")
        if info & 0xF == _NO_TYPE and (not text or text.startswith((".", "$", "_L"))):
            continue  # local labels and mapping symbols
        key = (info & 0xF, value)
        sizes[key] = max(size, sizes.get(key, 0))
        texts.setdefault(key, []).append(text)
    functions = _extents({value: size for (kind, value), size in sizes.items() if kind == _FUNCTION})
    labels = _extents({value: 0 for kind, value in sizes if kind == _NO_TYPE and not _within(value, functions)})
    kinds = ((_FUNCTION, functions), (_NO_TYPE, labels))
    found = [_Function(begin, end, tuple(texts[kind, begin])) for kind, extents in kinds for begin, end in extents]
    return sorted(found, key=lambda function: function.begin)


def _extents(sizes: Mapping[int, int]) -> list[tuple[int, int]]:
    """Return begin and end of functions by address. Functions without a size (assembler) end at the next one."""
    begins = sorted(sizes)
    nexts = [*begins[1:], 1 << 32]
    return [(begin, min(end, begin + (sizes[begin] or end))) for begin, end in zip(begins, nexts, strict=True)]


def _within(address: int, extents: list[tuple[int, int]]) -> bool:
    index = bisect_right(extents, (address, 1 << 32)) - 1
    return index >= 0 and address < extents[index][1]


def _unit_ranges(dwarf: Any) -> list[tuple[int, int, int]]:
    """Return begin, end and unit (its offset in .debug_info) of every range of code with debug information.

    GCC lists them in .debug_aranges; units of other compilers (Rust) are read one by one.
    """
    section = dwarf.debug_aranges_sec
    found = list(_aranges(section.stream.getvalue())) if section is not None else []
    listed = {unit for _, _, unit in found}
    for unit in dwarf.iter_CUs():
        if unit.cu_offset not in listed:
            found += [(begin, end, unit.cu_offset) for begin, end in _spans(unit.get_top_DIE(), dwarf)]
    # Linkers leave discarded functions at address 0 or 1.
    return sorted(entry for entry in found if entry[0] > 1 and entry[1] > entry[0])


def _aranges(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield begin, end and unit of the entries of .debug_aranges (DWARF 4, section 6.1.2).

    pyelftools ends a unit's list at the first pair of zeros. This follows the standard, but the linker leaves such
    pairs for discarded functions, so half of an app's functions would be missing.
    """
    offset = 0
    while offset + 16 <= len(data):
        length, _version, unit = struct.unpack_from("<IHI", data, offset)
        end = min(offset + 4 + length, len(data))
        for begin, size in struct.iter_unpack("<II", data[offset + 16 : end - (end - offset) % 8]):
            yield begin, begin + size, unit
        offset = max(end, offset + 16)


def _read_unit(dwarf: Any, offset: int) -> _Unit:
    unit = dwarf.get_CU_at(offset)
    program = dwarf.line_program_for_CU(unit)
    if program is None:
        return _Unit((), {}, unit)
    return _Unit(tuple(_sequences(program)), _files(program, unit), unit)


def _sequences(program: Any) -> Iterator[_Sequence]:
    addresses: list[int] = []
    lines: list[tuple[int, int]] = []
    for entry in program.get_entries():
        state = entry.state
        if state is None:
            continue
        if not state.end_sequence:
            addresses.append(state.address)
            lines.append((state.file, state.line))
            continue
        if addresses and addresses[0]:
            yield _Sequence(addresses[0], state.address, tuple(addresses), tuple(lines))
        addresses, lines = [], []


def _files(program: Any, unit: Any) -> dict[int, str]:
    """Return the paths of a line table's files by number (from 1; in DWARF 5 from 0)."""
    header = program.header
    top = unit.get_top_DIE().attributes.get("DW_AT_comp_dir")
    base = _text(top.value) if top is not None else ""
    old = header["version"] < 5
    folders = [_text(folder) for folder in header["include_directory"]]
    if old:
        folders.insert(0, base)
    found: dict[int, str] = {}
    for number, entry in enumerate(header["file_entry"], start=1 if old else 0):
        index = entry.dir_index
        folder = folders[index] if 0 <= index < len(folders) else ""
        found[number] = _join(_join(base, folder), _text(entry.name))
    return found


def _join(folder: str, name: str) -> str:
    absolute = name.startswith(("/", "\\")) or name[1:2] == ":"  # the app may have been built on Windows
    return name if absolute or not folder else f"{folder}/{name}" if name else folder


def _entries(unit: _Unit, dwarf: Any, address: int) -> Iterator[Any]:
    """Yield the entry of the function at *address*, then those of its inlined calls there, outermost first."""
    top = unit.compilation.get_top_DIE()
    here = [die for die in top.iter_children() if die.tag == "DW_TAG_subprogram" and _covers(die, dwarf, address)]
    while here:
        inner = here[0]
        if inner.tag != "DW_TAG_lexical_block":
            yield inner
        here = [
            die
            for die in inner.iter_children()
            if die.tag in ("DW_TAG_inlined_subroutine", "DW_TAG_lexical_block") and _covers(die, dwarf, address)
        ]


def _covers(die: Any, dwarf: Any, address: int) -> bool:
    return any(begin <= address < end for begin, end in _spans(die, dwarf))


def _spans(die: Any, dwarf: Any) -> Iterator[tuple[int, int]]:
    """Yield the address ranges of an entry (DW_AT_low_pc and DW_AT_high_pc, or DW_AT_ranges)."""
    attributes = die.attributes
    if "DW_AT_ranges" in attributes:
        yield from _range_list(die, dwarf)
    elif "DW_AT_low_pc" in attributes and "DW_AT_high_pc" in attributes:
        low, high = attributes["DW_AT_low_pc"].value, attributes["DW_AT_high_pc"]
        yield low, high.value if high.form == "DW_FORM_addr" else low + high.value


def _range_list(die: Any, dwarf: Any) -> Iterator[tuple[int, int]]:
    lists = dwarf.range_lists()
    if lists is None:
        return
    unit = die.cu
    low = unit.get_top_DIE().attributes.get("DW_AT_low_pc")
    base = low.value if low is not None else 0
    for entry in lists.get_range_list_at_offset(die.attributes["DW_AT_ranges"].value, cu=unit):
        if hasattr(entry, "base_address"):
            base = entry.base_address
            continue
        shift = 0 if getattr(entry, "is_absolute", False) else base
        yield entry.begin_offset + shift, entry.end_offset + shift


def _name(die: Any) -> str | None:
    """Return the name of a function; for inlined calls and method bodies it is in another entry."""
    while "DW_AT_name" not in die.attributes:
        reference = next(
            (key for key in ("DW_AT_abstract_origin", "DW_AT_specification") if key in die.attributes), None
        )
        if reference is None:
            return None
        die = die.get_DIE_from_attribute(reference)
    return _text(die.attributes["DW_AT_name"].value)


def _call_site(call: Any, unit: _Unit | None) -> tuple[str | None, int | None]:
    file, line = call.attributes.get("DW_AT_call_file"), call.attributes.get("DW_AT_call_line")
    name = unit.files.get(file.value) if unit is not None and file is not None else None
    return name, line.value if line is not None else None


def _text(value: bytes | str) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _damaged(path: Path, error: Exception) -> FirmwareError:
    return FirmwareError(
        f"the ELF file {path} is damaged: {type(error).__name__}: {error}", hint="build or copy the app again"
    )
