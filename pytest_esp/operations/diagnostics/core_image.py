"""Core dumps as written by the chip: found in a log, a file or flash, checked, and parsed into tasks and memory.

esp-coredump's loader handles the headers, checksums and both kinds of contents (ELF, and the binary one of old versions
of ESP-IDF); it needs no debugger. Source for the notes: core_dump_elf.c and port/*/core_dump_port.c in
components/espcoredump/src of ESP-IDF.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import re
import struct
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_esp.errors import FirmwareError
from pytest_esp.formats.files import resolve

_START, _END = "CORE DUMP START", "CORE DUMP END"
_BASE64_LINE = re.compile(r"[A-Za-z0-9+/]{4,}={0,2}")
_BASE64_AT_END = re.compile(_BASE64_LINE.pattern + r"\Z")
_LONGEST_LINE = 400  # characters, with the prefix; the chip writes lines of 64
_ESCAPE = re.compile(r"\x1b\[[0-9;]*m")
_VARYING = re.compile(r"[\d\s]+")  # in a prefix: numbers of time stamps, and their padding
_ELF_MAGIC = b"\x7fELF"
_XTENSA, _RISCV = 0x5E, 0xF3  # e_machine
HEADER_SIZE = 24
_LARGEST = 16 << 20  # bytes; no core dump partition is larger
_ERASED = 0xFFFFFFFF
_NO_TASK = 0xDEADBEEF  # COREDUMP_CURR_TASK_MARKER: there was no task to blame

# Types of the notes.
_PRSTATUS, _EXTRA_INFO, _TASK_INFO, _PANIC_DETAILS, _VERSION = 1, 677, 678, 679, 8266
_REGISTERS_OFFSET, _PID_OFFSET = 72, 24  # in a note of registers

_RISCV_NAMES: tuple[str, ...] = (
    "PC", "RA", "SP", "GP", "TP", "T0", "T1", "T2", "S0/FP", "S1", "A0", "A1", "A2", "A3", "A4", "A5", "A6", "A7",
    "S2", "S3", "S4", "S5", "S6", "S7", "S8", "S9", "S10", "S11", "T3", "T4", "T5", "T6",
)  # fmt: skip
_XTENSA_NAMES: dict[int, str] = {0: "PC", 1: "PS", 2: "LBEG", 3: "LEND", 4: "LCOUNT", 5: "SAR"} | {
    64 + number: f"A{number}" for number in range(16)
}
# Numbers of special registers in the extra information (Xtensa ISA reference, section 5.3); the binary kind of dump
# uses its own numbers for the first two.
_SPECIAL_NAMES = (
    {0: "EXCCAUSE", 1: "EXCVADDR", 232: "EXCCAUSE", 238: "EXCVADDR"}
    | {176 + level: f"EPC{level}" for level in range(1, 8)}
    | {192 + level: f"EPS{level}" for level in range(2, 8)}
)
_NAME_OFFSET = 52  # of pcTaskName in a TCB (FreeRTOS, tasks.c), as ESP-IDF builds it
_NAME_SIZE = 16


@dataclass(frozen=True)
class TaskImage:
    """One task in a dump.

    Attributes:
        tcb: address of its control block, which identifies it.
        name: None if the dump does not have it.
        registers: by name, as printed by a panic.
    """

    tcb: int
    name: str | None
    registers: Mapping[str, int]


@dataclass(frozen=True)
class CoreImage:
    """The contents of a dump. Sizes and addresses are bytes.

    Attributes:
        architecture: ``"xtensa"`` or ``"riscv"``.
        chip: the chip that wrote it, as esptool names it; None for a bare ELF core file.
        version: version of the dump format, e.g. ``"1.4"``.
        checksum: the verified checksum: ``"CRC32"``, ``"SHA-256"``, or None if it has none (a bare ELF core file).
        chip_revision: major * 100 + minor; None if the format does not have it.
        elf_sha256: first digits of the SHA-256 of the app's ELF file; None if the format does not have it.
        reason: the chip's own message; None if the format does not have it.
        crashed: TCB of the task that crashed; None if unknown.
        exception: special registers of the crashed task by name (Xtensa).
        in_interrupt: whether it crashed in an interrupt; None if unknown.
        tasks: in the order of the dump.
        memory: regions of memory in the dump, by address.
    """

    architecture: str
    chip: str | None
    version: str | None
    checksum: str | None
    chip_revision: int | None
    elf_sha256: str | None
    reason: str | None
    crashed: int | None
    exception: Mapping[str, int]
    in_interrupt: bool | None
    tasks: tuple[TaskImage, ...]
    memory: tuple[tuple[int, bytes], ...]

    def word(self, address: int) -> int | None:
        """Return the 32-bit word at *address*; None if it is not in the dump."""
        for begin, data in self.memory:
            if begin <= address and address + 4 <= begin + len(data):
                return struct.unpack_from("<I", data, address - begin)[0]
        return None

    def words_from(self, address: int) -> dict[int, int]:
        """Return the words from *address* to the end of the region in the dump, by address."""
        for begin, data in self.memory:
            if begin <= address < begin + len(data):
                start = address - begin
                count = (len(data) - start) // 4
                words = struct.unpack_from(f"<{count}I", data, start)
                return {address + 4 * index: word for index, word in enumerate(words)}
        return {}


# -- sources of dumps


def from_text(text: str) -> bytes:
    """Return the last whole dump in a console log, as bytes; its lines may have a prefix, such as a time stamp.

    Raises:
        FirmwareError: if there is none, or none is whole.
    """
    parts = text.split(_START)[1:]
    if not parts:
        raise FirmwareError(
            "the log does not contain a core dump",
            hint=f'give a log with the lines "{_START}" and "{_END}"; the app must be configured to dump to the UART',
        )
    problem = FirmwareError("the core dump in this log is incomplete", hint="capture the console until its end")
    damaged: bytes | None = None
    for part in reversed(parts):
        body, end, _ = part.partition(_END)
        if not end:
            continue
        try:
            data = _decoded(iter(_base64_lines(body)))
        except FirmwareError as error:
            problem = error
            continue
        if (length := length_of(data)) is not None and length <= len(data):
            return data
        damaged = data if damaged is None else damaged
    if damaged is None:
        raise problem
    return damaged


def _base64_lines(body: str) -> list[str]:
    """Return the base64 in the lines of a dump, without their prefix.

    Other lines between them, such as log messages, have another prefix than most.
    """
    groups: dict[str, list[str]] = {}
    for line in _ESCAPE.sub("", body).splitlines():
        end = line.rstrip()[-_LONGEST_LINE:]
        found = _BASE64_AT_END.search(end)
        if found is not None and len(found[0]) % 4 == 0:
            groups.setdefault(_VARYING.sub("", end[: found.start()]), []).append(found[0])
    return max(groups.values(), key=lambda lines: sum(map(len, lines)), default=[])


def _decoded(lines: Iterator[str]) -> bytes:
    try:
        return b"".join(base64.b64decode(line, validate=True) for line in lines)
    except binascii.Error as error:
        raise FirmwareError(f"the core dump is damaged: {error}", hint="capture it again") from error


def from_file(path: Path) -> bytes:
    """Return the dump in a file: as written by the chip, an ELF core file, base64, or contained in a log.

    Raises:
        FirmwareError: if there is none.
    """
    try:
        data = resolve(path).read_bytes()
    except OSError as error:
        raise FirmwareError(f"{path} cannot be read: {error.strerror}") from error
    if data.startswith(_ELF_MAGIC) or length_of(data) is not None:
        return data
    is_wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = data.decode("utf-16" if is_wide else "utf-8", "replace")
    if _START in text:
        return from_text(text)
    lines = text.split()
    if lines and all(_BASE64_LINE.fullmatch(line) for line in lines):
        return _decoded(iter(lines))
    raise FirmwareError(
        f"{path} is not a core dump",
        hint="give a dump as written by the chip (raw or base64), a core file, or a log that contains one",
    )


def length_of(head: bytes) -> int | None:
    """Return the size of the dump that begins with *head* (`HEADER_SIZE` bytes or more); None if none does."""
    if len(head) < 8:
        return None
    length, version = struct.unpack_from("<II", head)
    major, minor = version >> 8 & 0xFF, version & 0xFF
    is_dump = (major, minor) in {(0, 1), (0, 2), (0, 3), *((1, number) for number in range(5))}
    return length if is_dump and HEADER_SIZE < length <= _LARGEST else None


# -- parsing


def read(data: bytes) -> CoreImage:
    """Return the contents of a dump.

    Args:
        data: as written by the chip (bytes after its end are ignored), or an ELF core file.

    Raises:
        FirmwareError: if it is not a dump, its checksum is wrong, or esp-coredump does not support its format.
    """
    if data.startswith(_ELF_MAGIC):
        return _core_file(data)
    length = length_of(data)
    if length is None:
        is_blank = data[:4] == struct.pack("<I", _ERASED)
        raise FirmwareError(
            "there is no core dump: the flash is blank" if is_blank else "not a core dump",
            hint="make the app crash first; it must be configured to dump to flash",
        )
    if length > len(data):
        raise FirmwareError(
            f"the core dump is truncated: it should have {length} bytes, but has {len(data)}",
            hint="copy or capture it again to its end",
        )
    return _loaded(data[:length])


def _loaded(data: bytes) -> CoreImage:
    from esp_coredump.corefile import ESPCoreDumpLoaderError
    from esp_coredump.corefile.loader import SHA256, ESPCoreDumpFileLoader

    with tempfile.TemporaryDirectory(prefix="pytest-esp-") as folder:
        path = Path(folder) / "dump"
        path.write_bytes(data)
        try:
            loader: Any = ESPCoreDumpFileLoader(str(path))
            core = _extracted(loader)
        except ESPCoreDumpLoaderError as error:
            raise FirmwareError(f"the core dump is damaged: {error}", hint="capture it again") from error
        except Exception as error:  # `construct` raises many kinds of errors for damaged data
            raise FirmwareError(f"the core dump is damaged: {type(error).__name__}: {error}") from error
    checksum = "SHA-256" if loader.checksum_struct is SHA256 else "CRC32"
    return _core_file(core, chip=loader.target, version=f"{loader.major}.{loader.minor}", checksum=checksum)


def _extracted(loader: Any) -> bytes:
    """Return the dump as an ELF core file, after verifying its checksum; the loader's temporary files are removed."""
    try:
        loader.create_corefile(None, _XTENSA if loader.chip_ver in loader.XTENSA_CHIPS else _RISCV)
        return Path(loader.core_elf_file).read_bytes()
    finally:
        for name in loader.temp_files:
            Path(name).unlink(missing_ok=True)


def _core_file(
    data: bytes, *, chip: str | None = None, version: str | None = None, checksum: str | None = None
) -> CoreImage:
    from esp_coredump.corefile.elf import ESPCoreDumpElfFile

    with tempfile.TemporaryDirectory(prefix="pytest-esp-") as folder:
        path = Path(folder) / "core"
        path.write_bytes(data)
        try:
            elf: Any = ESPCoreDumpElfFile(str(path))
        except Exception as error:  # as above
            raise FirmwareError(f"the core file is damaged: {type(error).__name__}: {error}") from error
    architecture = {_XTENSA: "xtensa", _RISCV: "riscv"}.get(elf.e_machine)
    if architecture is None:
        raise FirmwareError(f"unsupported processor of the core file (machine {elf.e_machine})")
    memory = tuple((int(segment.addr), bytes(segment.data)) for segment in elf.load_segments)
    notes = [note for segment in elf.note_segments for note in segment.note_secs]
    names = {tcb: name for tcb, name in map(_task_info, _of_type(notes, _TASK_INFO)) if name}
    tasks = tuple(_task(bytes(note.desc), architecture, names, memory) for note in _of_type(notes, _PRSTATUS))
    crashed, exception, in_interrupt = _extra(notes, architecture)
    return CoreImage(
        architecture=architecture,
        chip=chip,
        version=version,
        checksum=checksum,
        chip_revision=_revision(notes),
        elf_sha256=_elf_sha256(notes),
        reason=next((_text(bytes(note.desc)) for note in _of_type(notes, _PANIC_DETAILS)), None),
        crashed=crashed,
        exception=exception,
        in_interrupt=in_interrupt,
        tasks=tasks,
        memory=memory,
    )


def _of_type(notes: list[Any], kind: int) -> list[Any]:
    return [note for note in notes if note.type == kind]


def _task_info(note: Any) -> tuple[int, str]:
    """Return TCB and name in a note about a task (``EspTaskStatus`` of esp-coredump)."""
    desc = bytes(note.desc)
    return struct.unpack_from("<I", desc, 8)[0], _text(desc[20:36])


def _text(data: bytes) -> str:
    return data.partition(b"\0")[0].decode("utf-8", "replace").strip()


def _task(desc: bytes, architecture: str, names: Mapping[int, str], memory: tuple[tuple[int, bytes], ...]) -> TaskImage:
    (tcb,) = struct.unpack_from("<I", desc, _PID_OFFSET)
    count = (len(desc) - _REGISTERS_OFFSET) // 4
    words = struct.unpack_from(f"<{count}I", desc, _REGISTERS_OFFSET)
    if architecture == "riscv":
        registers = dict(zip(_RISCV_NAMES, words, strict=False))
    else:
        registers = {name: words[index] for index, name in _XTENSA_NAMES.items() if index < count}
    return TaskImage(tcb, names.get(tcb) or _name_in(tcb, memory), registers)


def _name_in(tcb: int, memory: tuple[tuple[int, bytes], ...]) -> str | None:
    """Return the name in a TCB, if there is text at ESP-IDF's offset."""
    for begin, data in memory:
        if begin <= tcb and tcb + _NAME_OFFSET + _NAME_SIZE <= begin + len(data):
            place = tcb - begin + _NAME_OFFSET
            name, end, _ = data[place : place + _NAME_SIZE].partition(b"\0")
            if end and name and all(0x20 <= byte < 0x7F for byte in name):
                return name.decode("ascii")
    return None


def _extra(notes: list[Any], architecture: str) -> tuple[int | None, dict[str, int], bool | None]:
    """Return the crashed task, its special registers, and whether it was in an interrupt."""
    found = _of_type(notes, _EXTRA_INFO)
    if not found or len(found[0].desc) < 4:
        return None, {}, None
    desc = bytes(found[0].desc)
    crashed, *rest = struct.unpack_from(f"<{len(desc) // 4}I", desc)
    known = None if crashed == _NO_TASK else crashed
    # Pairs of register and value (Xtensa only), then a word that old versions do not write.
    in_interrupt = bool(rest[-1]) if len(rest) % 2 else None
    exception: dict[str, int] = {}
    for number, value in zip(rest[::2], rest[1::2], strict=False) if architecture == "xtensa" else ():
        if number in _SPECIAL_NAMES:  # the first one counts: the rest of the list is filled with zeros
            exception.setdefault(_SPECIAL_NAMES[number], value)
    return known, exception, in_interrupt


def _revision(notes: list[Any]) -> int | None:
    for note in _of_type(notes, _VERSION):
        if bytes(note.name) == b"ESP_CHIP_REV":
            return struct.unpack_from("<I", bytes(note.desc))[0]
    return None


def _elf_sha256(notes: list[Any]) -> str | None:
    for note in _of_type(notes, _VERSION):
        if bytes(note.name) == b"ESP_CORE_DUMP_INFO" and len(note.desc) > 4:
            return _text(bytes(note.desc)[4:]) or None
    return None
