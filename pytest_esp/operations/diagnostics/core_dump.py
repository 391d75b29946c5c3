"""Decodes core dumps: the crashed task, and the backtrace of every task, with functions if the ELF file is given."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pytest_esp.errors import FirmwareError, OperationError
from pytest_esp.formats.files import FileName, ReadPath, resolve
from pytest_esp.link.crash import Frame
from pytest_esp.link.link import Link
from pytest_esp.link.symbols import Symbols
from pytest_esp.operations.diagnostics.core_image import HEADER_SIZE, CoreImage, TaskImage, from_file, from_text
from pytest_esp.operations.diagnostics.core_image import length_of as length_of_dump
from pytest_esp.operations.diagnostics.core_image import read as read_image
from pytest_esp.operations.flash import reading, tables
from pytest_esp.operations.registry import Effect, file_operation, operation
from pytest_esp.operations.results import Address

_MOST_FRAMES = 64
_INVALID_CAUSE = 0xFFFF


@dataclass(frozen=True)
class Task:
    """One task in a dump.

    Attributes:
        name: None if the dump does not have it.
        tcb: address of its control block.
        crashed: whether this task crashed.
        registers: by name, as printed by a panic.
        backtrace: innermost frame first.
    """

    name: str | None
    tcb: Address
    crashed: bool
    registers: Mapping[str, int]
    backtrace: tuple[Frame, ...]


@dataclass(frozen=True)
class MemoryRange:
    """A region of memory contained in a dump."""

    address: Address
    size: int


@dataclass(frozen=True)
class CoreDump:
    """A core dump, decoded as far as the dump and the ELF allow.

    Attributes:
        source: where the dump was: ``"flash"``, ``"console"``, or the name of a file.
        chip_type: the chip that wrote it; None for a bare ELF core file.
        chip_revision: e.g. ``"v0.4"``; *revision* is the same as a number, major * 100 + minor; None if the format
            lacks it.
        version: version of the dump format.
        checksum: the checksum that was verified; None if it has none.
        size: of the dump, in bytes.
        reason: reason of the crash: the chip's message, or the name of the exception; None if the dump lacks it.
        exception: special registers of the crashed task (Xtensa).
        in_interrupt: whether it crashed in an interrupt; None if unknown.
        crashed_task: the task that crashed; None if unknown.
        tasks: all tasks, the crashed one first.
        memory: regions of memory contained in the dump.
        elf_file: the ELF file given for names.
        elf_matches: whether it is that of the firmware; None without one, or if unknown.
        elf_sha256: first digits of the SHA-256 of the firmware's ELF file, if the dump has it.
        note: why there are no names although an ELF file was given; otherwise None.
    """

    source: str
    chip_type: str | None
    chip_revision: str | None
    revision: int | None
    version: str | None
    checksum: str | None
    size: int
    reason: str | None
    exception: Mapping[str, int]
    in_interrupt: bool | None
    crashed_task: Task | None
    tasks: tuple[Task, ...]
    memory: tuple[MemoryRange, ...]
    elf_file: Path | None
    elf_matches: bool | None
    elf_sha256: str | None
    note: str | None

    def describe(self) -> str:
        """Return it as text: what crashed and where, then the other tasks."""
        lines = [self.reason or "the dump does not contain the reason of the crash"]
        for task in self.tasks:
            lines.append(f"{'crashed: ' if task.crashed else ''}task {task.name or hex(task.tcb)}")
            lines += [f"  #{number} {frame}" for number, frame in enumerate(task.backtrace)]
        return "\n".join([*lines, self.note] if self.note else lines)


@operation(Effect.READ, group="diagnostics")
def core_dump(
    link: Link,
    elf_file: ReadPath | None = None,
    source: Literal["auto", "flash", "console"] = "auto",
    partition: str | None = None,
) -> CoreDump:
    """Return the board's core dump: from its core dump partition, or from its console output.

    Args:
        elf_file: ELF file of the crashed firmware, for functions and lines; without it there are only addresses.
        source: where to look; "auto" uses flash if the table has a core dump partition, else the console.
        partition: name of the partition; by default the first one of type data/coredump.

    Raises:
        FirmwareError: if there is no dump, it is damaged, or the ELF file cannot be read.
        OperationError: if there is no such partition, or flash is encrypted and cannot be read from outside.
    """
    if source == "console":
        return analyze(from_text(link.console.text), elf_file, source="console")
    text = link.console.text if source == "auto" else ""
    try:
        return analyze(_from_flash(link, partition), elf_file, source="flash")
    except OperationError:
        if "CORE DUMP START" not in text:
            raise
    return analyze(from_text(text), elf_file, source="console")


@file_operation(group="diagnostics")
def core_dump_of(
    dump_file: ReadPath | None = None, elf_file: ReadPath | None = None, log: str | None = None
) -> CoreDump:
    """Decode a core dump in a file or a console log; needs no board.

    Args:
        dump_file: as written by the chip (raw or base64), an ELF core file, or a log that contains one.
        elf_file: ELF file of the crashed firmware, for functions and lines; without it there are only addresses.
        log: instead of dump_file, console text with CORE DUMP START ... END; the last dump in it is used.

    Raises:
        FirmwareError: see `core_dump`.
        OperationError: if not exactly one of *dump_file* and *log* is given.
    """
    if (dump_file is None) == (log is None):
        raise OperationError("exactly one source of a core dump is required", hint="give either dump_file or log")
    data = from_file(Path(dump_file)) if dump_file is not None else from_text(log or "")
    return analyze(data, elf_file, source="log" if dump_file is None else os.fspath(dump_file))


def analyze(data: bytes, elf_file: FileName | None, *, source: str) -> CoreDump:
    """Return the decoded dump; *data* in the form that `core_image.read` takes.

    Raises:
        FirmwareError: see `core_dump`.
    """
    image = read_image(data)
    path = resolve(elf_file) if elf_file is not None else None
    symbols, matches, note = _symbols(path, image)
    number = image.chip_revision
    tasks = sorted((_task(task, image, symbols) for task in image.tasks), key=lambda task: not task.crashed)
    return CoreDump(
        source=source,
        chip_type=image.chip,
        chip_revision=None if number is None else f"v{number // 100}.{number % 100}",
        revision=number,
        version=image.version,
        checksum=image.checksum,
        size=length_of_dump(data) or len(data),
        reason=_reason(image),
        exception=image.exception,
        in_interrupt=image.in_interrupt,
        crashed_task=tasks[0] if tasks and tasks[0].crashed else None,
        tasks=tuple(tasks),
        memory=tuple(MemoryRange(begin, len(contents)) for begin, contents in image.memory),
        elf_file=path,
        elf_matches=matches,
        elf_sha256=image.elf_sha256,
        note=note,
    )


def _from_flash(link: Link, name: str | None) -> bytes:
    table = tables.read(link).partitions
    places = [part for part in table if (part.type, part.subtype) == ("data", "coredump")]
    place = tables.find(link, name) if name is not None else places[0] if places else None
    if place is None:
        raise OperationError(
            "the partition table has no core dump partition",
            attempted="reading a core dump",
            hint="add one of type data, subtype coredump; a dump to the UART is in the console log",
        )
    length = length_of_dump(reading.read(link, place.offset, HEADER_SIZE).data)
    if length is None:
        head = reading.read(link, place.offset, HEADER_SIZE).data
        if place.encrypted and head != b"\xff" * HEADER_SIZE:
            raise OperationError(
                f"the partition {place.name!r} is encrypted: its dump cannot be read from outside",
                hint="read it in the app, or dump to the UART",
            )
        length = HEADER_SIZE
    return reading.read(link, place.offset, min(length, place.size)).data


def _symbols(elf: Path | None, image: CoreImage) -> tuple[Symbols | None, bool | None, str | None]:
    """Return the symbols to use, whether they match the crashed firmware, and why there are none."""
    if elf is None:
        hint = f" (its SHA-256 begins with {image.elf_sha256})" if image.elf_sha256 else ""
        return None, None, f"give the ELF file of this build{hint} to decode addresses into functions and lines"
    symbols = Symbols.of(elf)
    if symbols.architecture != image.architecture:
        raise FirmwareError(
            f"{elf} is for {symbols.architecture}, but the core dump is from {image.architecture}",
            hint="give the ELF file of the crashed firmware, or none",
        )
    if image.elf_sha256 is None or set(image.elf_sha256) == {"0"}:
        return symbols, None, None
    if symbols.matches(image.elf_sha256):
        return symbols, True, None
    return (
        None,
        False,
        (
            f"no names: {elf} is not the ELF of the firmware that crashed. Its SHA-256 begins with "
            f"{symbols.app_elf_sha256[: len(image.elf_sha256)]}, that of the firmware's ELF with {image.elf_sha256}"
        ),
    )


def _reason(image: CoreImage) -> str | None:
    cause = image.exception.get("EXCCAUSE")
    if image.reason or cause is None or cause == _INVALID_CAUSE:
        return image.reason
    from esp_coredump.corefile.xtensa import XTENSA_EXCEPTION_CAUSE_DICT

    name = XTENSA_EXCEPTION_CAUSE_DICT.get(cause, (f"exception {cause}", ""))[0].removesuffix("Cause")
    return f"{name} at address 0x{image.exception.get('EXCVADDR', 0):08x}"


def _task(task: TaskImage, image: CoreImage, symbols: Symbols | None) -> Task:
    counters = _xtensa_frames(task, image) if image.architecture == "xtensa" else _riscv_frames(task, image, symbols)
    frames = tuple(frame for number, (pc, sp) in enumerate(counters) for frame in _frames(pc, sp, number, symbols))
    return Task(task.name, task.tcb, task.tcb == image.crashed, task.registers, frames)


def _frames(pc: int, sp: int, number: int, symbols: Symbols | None) -> Iterator[Frame]:
    """Yield the frames at a PC: more than one if functions were inlined."""
    if symbols is None:
        yield Frame(pc, sp)
        return
    # A RISC-V return address is after the call, and may belong to the next line.
    places = symbols.inlined(pc - 1 if number and symbols.architecture == "riscv" else pc)
    for index, place in enumerate(places):
        yield Frame(pc, sp, place.function, place.file, place.line, inlined=index + 1 < len(places))
    if not places:
        yield Frame(pc, sp)


def _xtensa_frames(task: TaskImage, image: CoreImage) -> Iterator[tuple[int, int]]:
    """Yield PC and SP of the frames of a task whose register windows are on its stack.

    The caller's A0 and A1 are 16 and 12 bytes below the callee's stack pointer (Xtensa windowed ABI; the chip spills
    all windows before it dumps). The two highest bits of a return address give the window rotation of the call.
    """
    registers = task.registers
    pc, sp, back = registers.get("PC", 0), registers.get("A1", 0), registers.get("A0", 0)
    for _ in range(_MOST_FRAMES):
        yield pc, sp
        caller_back, caller_sp = image.word(sp - 16), image.word(sp - 12)
        if not back & 0x3FFFFFFF or caller_back is None or caller_sp is None or caller_sp <= sp:
            return
        pc = ((back & 0x3FFFFFFF) | 0x40000000) - 3
        sp, back = caller_sp, caller_back


def _riscv_frames(task: TaskImage, image: CoreImage, symbols: Symbols | None) -> tuple[tuple[int, int], ...]:
    registers = dict(task.registers)
    pc, sp = registers.pop("PC", 0), registers.get("SP", 0)
    if symbols is None:
        return ((pc, sp),)
    return symbols.unwind({"MEPC": pc, **registers}, image.words_from(sp)) or ((pc, sp),)
