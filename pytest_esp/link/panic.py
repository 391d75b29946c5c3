"""Decodes the text of a crash: registers and frames, with functions and lines if the app's ELF is available.

It needs no toolchain and starts no process. Espressif's esp-idf-panic-decoder is not used: it parses RISC-V dumps
only, with a grammar that fails completely if the console lost a byte, and it needs gdb.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pytest_esp.errors import FirmwareError
from pytest_esp.link.crash import CoreState, Crash, Frame, Kind, Verdict, classify
from pytest_esp.link.escapes import without_escapes
from pytest_esp.link.symbols import Symbols

_CORE = re.compile(r"Core +(\d+) register dump:")
_REGISTER = re.compile(r"\b([A-Z][A-Z0-9/]{0,7}) *: 0x([0-9a-fA-F]{8})\b")
_REGISTERS_8266 = re.compile(r"epc1=0x[0-9a-f]{8}")
_REGISTER_8266 = re.compile(r"([a-z0-9]+)=0x([0-9a-f]{8})")
_STACK_ROW = re.compile(r"^([0-9a-f]{8}):((?: 0x[0-9a-f]{8})+)")
_PC_SP = re.compile(r"0x([0-9a-fA-F]{8}):0x([0-9a-fA-F]{8})")
_SAVED_PC = re.compile(r"Saved PC:0x([0-9a-fA-F]+)")
_ABORTED_AT = re.compile(r"abort\(\) was called at PC 0x([0-9a-fA-F]{8})")
_SHA256 = re.compile(r"ELF file SHA256: +([0-9a-fA-F]{4,64})")
_FAULT = re.compile(r"Load|Store|Fetch|[Aa]ccess fault|page fault|address misaligned")


def find_elf_sha256(text: str) -> str | None:
    """Return the beginning of the ELF's SHA-256, in hex, that a boot log or panic shows last; None if it shows none."""
    found = [match for match in _SHA256.findall(text) if set(match) != {"0"}]  # zeros: the build has no hash
    return found[-1].lower() if found else None


def decode(crash_text: str | bytes, elf: Path | None = None, *, elf_sha256: str | None = None) -> Crash:
    """Decode the text of a crash, with functions and lines if the app's ELF is available.

    A dump with missing bytes is decoded as far as possible. If the ELF is not the crashed firmware's, or cannot be
    read, the frames have addresses only, and the crash's note says why.

    Args:
        crash_text: the text from the crash's first line (`CrashText.text`); ANSI sequences are ignored.
        elf: the ELF file of the firmware that ran.
        elf_sha256: the beginning of the SHA-256 of that firmware's ELF, in hex, for dumps that do not show it (from
            the boot log: `find_elf_sha256`).
    """
    text = _readable(crash_text)
    verdict = classify(text) or Verdict(Kind.PANIC, "the cause is missing from the console output")
    dumps = _dumps(text)
    printed = find_elf_sha256(text) or elf_sha256
    symbols, matches, note = _symbols(elf, printed)
    try:
        states = [_state(dump, symbols) for dump in dumps]
    except FirmwareError as error:
        note = f"no names: {error.message}"
        states = [_state(dump, None) for dump in dumps]
    state, others = states[0], tuple(states[1:])
    return Crash(
        kind=verdict.kind,
        reason=_with_address(verdict, state),
        core=verdict.core if verdict.core is not None else state.core,
        registers=state.registers,
        backtrace=state.backtrace,
        task=verdict.task,
        elf_matches=matches,
        elf=elf,
        elf_sha256=printed,
        is_cut=state.is_cut,
        others=others,
        note=note,
    )


@dataclass
class _Dump:
    """The part of a dump for one core, as printed."""

    core: int | None = None
    registers: dict[str, int] = field(default_factory=dict[str, int])
    stack: dict[int, int] = field(default_factory=dict[int, int])
    backtrace: list[tuple[int, int | None]] = field(default_factory=list[tuple[int, int | None]])
    is_cut: bool = False


def _readable(text: str | bytes) -> str:
    if isinstance(text, str):
        text = text.encode("utf-8", "replace")
    return without_escapes(text).decode("utf-8", "replace").replace("\r", "")


def _dumps(text: str) -> list[_Dump]:
    """Return the cores of a dump, the crashed one first; at least one."""
    dumps = [_Dump()]
    for line in _outside_core_dump(text):
        if match := _CORE.search(line):
            if dumps[-1].core is not None or dumps[-1].registers or dumps[-1].backtrace:
                dumps.append(_Dump())
            dumps[-1].core = int(match[1])
        dump = dumps[-1]
        if "Backtrace:" in line:
            if dump.backtrace:
                dumps.append(dump := _Dump())
            dump.backtrace = [(int(pc, 16), int(sp, 16)) for pc, sp in _PC_SP.findall(line)]
            dump.is_cut = "|<-" in line
        elif match := _STACK_ROW.match(line):
            words = match[2].split()
            dump.stack.update({int(match[1], 16) + 4 * index: int(word, 16) for index, word in enumerate(words)})
        elif match := _SAVED_PC.search(line):
            dump.backtrace = [(int(match[1], 16), None)]
        elif match := _REGISTERS_8266.match(line):
            dump.registers.update({name.upper(): int(value, 16) for name, value in _REGISTER_8266.findall(line)})
            dump.backtrace = [(pc, None) for pc in [dump.registers["EPC1"]] if pc]
        elif dump.core is not None:
            dump.registers.update({name: int(value, 16) for name, value in _REGISTER.findall(line)})
    if not dumps[0].backtrace and not dumps[0].registers and (match := _ABORTED_AT.search(text)):
        dumps[0].backtrace = [(int(match[1], 16), None)]
    return dumps


def _outside_core_dump(text: str) -> Iterator[str]:
    is_inside = False
    for line in text.split("\n"):
        is_inside = is_inside or "CORE DUMP START" in line
        if not is_inside:
            yield line
        is_inside = is_inside and "CORE DUMP END" not in line


def _symbols(elf: Path | None, printed: str | None) -> tuple[Symbols | None, bool | None, str | None]:
    """Return the symbols to use, whether they match the crashed firmware, and why there are none."""
    if elf is None:
        return None, None, None
    try:
        symbols = Symbols.of(elf)
    except FirmwareError as error:
        return None, None, f"no names: {error.message}"
    if printed is None:
        return symbols, None, None
    if symbols.matches(printed):
        return symbols, True, None
    size = len(printed)
    note = (
        f"no names: {elf} is not the ELF of the firmware that crashed. Its SHA-256 begins with "
        f"{symbols.app_elf_sha256[:size]}, that of the firmware's ELF with {printed}"
    )
    return None, False, note


def _state(dump: _Dump, symbols: Symbols | None) -> CoreState:
    frames: list[Frame] = []
    for number, (pc, sp) in enumerate(_program_counters(dump, symbols)):
        is_return = number > 0 and symbols is not None and symbols.architecture == "riscv"
        # A return address points after the call, which may be the next line or even the next function.
        places = symbols.inlined(pc - 1 if is_return else pc) if symbols is not None else ()
        for index, place in enumerate(places):
            frames.append(Frame(pc, sp, place.function, place.file, place.line, inlined=index + 1 < len(places)))
        if not places:
            frames.append(Frame(pc, sp))
    return CoreState(dump.core, dump.registers, tuple(frames), dump.is_cut)


def _program_counters(dump: _Dump, symbols: Symbols | None) -> list[tuple[int, int | None]]:
    registers = dump.registers
    if "MEPC" in registers and not dump.backtrace:
        unwound = symbols.unwind(registers, dump.stack) if symbols is not None else ()
        return list(unwound) or [(registers["MEPC"], registers.get("SP"))]
    is_xtensa = "PC" in registers or (symbols is not None and symbols.architecture == "xtensa")
    if "PC" in registers and not dump.backtrace:
        callers = [(registers["A0"], None)] if registers.get("A0") else []
        return [(registers["PC"], registers.get("A1")), *((_call(pc), sp) for pc, sp in callers)]
    found = [(_call(pc), sp) if is_xtensa else (pc, sp) for pc, sp in dump.backtrace]
    if is_xtensa and found and 0 < registers.get("PC", 0) - found[0][0] <= 3:
        found[0] = (registers["PC"], found[0][1])  # printed like a return address
    return found


def _call(address: int) -> int:
    """Return the address of the call for a return address on Xtensa, as esp_cpu_process_stack_pc() does.

    The two highest bits hold the rotation of the register window, and replace 01, the region of all code. An address
    without them comes from a backtrace, and already is that of the call.
    """
    return ((address & 0x3FFFFFFF) | 0x40000000) - 3 if address & 0x80000000 else address


def _with_address(verdict: Verdict, state: CoreState) -> str:
    """Return the reason, with the address of a faulty access."""
    address = state.registers.get("MTVAL", state.registers.get("EXCVADDR"))
    if verdict.kind is not Kind.PANIC or address is None or not _FAULT.search(verdict.reason):
        return verdict.reason
    return f"{verdict.reason} at address 0x{address:08x}"
