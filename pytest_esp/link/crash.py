"""Crashes: their kinds, the text of each on the console, and the report of a crash.

Sources of the wording, ESP-IDF v4.4 to v6: components/esp_system (panic.c, port/arch/*/panic_arch.c, task_wdt,
stack_check.c, ubsan.c), freertos/*/port.c, heap/multi_heap*, esp_libc (abort.c, assert.c), esp_hw_support/power_supply
(brownout.c), bootloader_support/src; reset names: esp_rom/*/rom/rtc.h. The source of the ROMs is not public: their
messages are those in the ROMs of ESP32 v3, ESP32-C3 and ESP32-S3 that come with QEMU, and of logs in Espressif's issue
trackers. ESP8266: core_esp8266_postmortem.cpp of the Arduino core, and logs of the NONOS SDK.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path, PureWindowsPath

from pytest_esp.units import Address


class Kind(StrEnum):
    """The kind of crash: what ended the app or kept it from starting."""

    PANIC = "panic"
    ABORT = "abort"
    ASSERT = "assert"
    STACK_OVERFLOW = "stack overflow"
    STACK_SMASHING = "stack smashing"
    HEAP_CORRUPTION = "heap corruption"
    UNDEFINED_BEHAVIOR = "undefined behavior"
    TASK_WATCHDOG = "task watchdog"
    INTERRUPT_WATCHDOG = "interrupt watchdog"
    BROWNOUT = "brownout"
    WATCHDOG_RESET = "watchdog reset"
    LOCKUP = "CPU lockup"
    BOOT_LOOP = "boot loop"
    NOT_BOOTABLE = "not bootable"
    DOWNLOAD_MODE = "download mode"


@dataclass(frozen=True)
class Frame:
    """A stack frame.

    Attributes:
        pc: the program counter. In callers, the return address (RISC-V) or the call (Xtensa), as printed.
        sp: the stack pointer, if known.
        function: the function's name; None without an ELF, or if the ELF does not contain it (code in ROM).
        file: the source file as it was given to the compiler.
        line: the line in the file.
        inlined: whether the function is inlined into that of the next frame, which has the same PC.
    """

    pc: Address
    sp: Address | None = None
    function: str | None = None
    file: str | None = None
    line: int | None = None
    inlined: bool = False

    def __str__(self) -> str:
        text = f"0x{self.pc:08x}"
        if self.function is not None:
            text += f" in {self.function}"
        if self.file is not None:
            name = PureWindowsPath(self.file).name  # splits at both kinds of slashes
            text += f" ({name}:{self.line})" if self.line else f" ({name})"
        return text + (" (inlined)" if self.inlined else "")


@dataclass(frozen=True)
class CoreState:
    """The state of one core in a dump.

    Attributes:
        core: the core's number; None if the dump does not contain it.
        registers: the registers by their names in the dump (MEPC, RA, ``S0/FP``; PC, A0, EXCCAUSE).
        backtrace: the frames, innermost first.
        is_cut: whether outer frames are missing: the stack was damaged, or deeper than the chip prints.
    """

    core: int | None
    registers: Mapping[str, int] = field(default_factory=dict[str, int])
    backtrace: tuple[Frame, ...] = ()
    is_cut: bool = False


@dataclass(frozen=True)
class Crash:
    """A crash, decoded as far as the dump and the ELF allow.

    Attributes:
        kind: the kind of crash.
        reason: the reason in one line, with details.
        core: the core that crashed, if the dump contains it.
        registers: that core's registers by their names in the dump.
        backtrace: that core's frames, innermost first.
        task: the running task, if the dump contains it.
        elf_matches: whether the ELF is the crashed firmware's; None without an ELF, or if the dump has no hash.
        elf: the ELF file that the names are from.
        elf_sha256: the beginning of the SHA-256 of the crashed firmware's ELF, in hex, as the chip printed it.
        is_cut: whether outer frames are missing from the backtrace.
        others: the states of the other cores in the dump.
        note: why there are no names although an ELF was given, else None.
    """

    kind: Kind
    reason: str
    core: int | None = None
    registers: Mapping[str, int] = field(default_factory=dict[str, int])
    backtrace: tuple[Frame, ...] = ()
    task: str | None = None
    elf_matches: bool | None = None
    elf: Path | None = None
    elf_sha256: str | None = None
    is_cut: bool = False
    others: tuple[CoreState, ...] = ()
    note: str | None = None

    def describe(self) -> str:
        """Return the text for an error message: the reason, then the backtrace with one frame per line."""
        where = f", on core {self.core}" if self.core is not None else ""
        if self.task is not None and self.task not in self.reason:
            where += f", in task {self.task}"
        lines = [f"{self.kind}: {self.reason}{where}", *_describe_frames(self.backtrace, is_cut=self.is_cut)]
        for other in self.others:
            lines.append("also:" if other.core is None else f"also on core {other.core}:")
            lines += _describe_frames(other.backtrace, is_cut=other.is_cut)
        if self.note:
            lines.append(self.note)
        elif self.elf is not None and self.elf_matches is None and self.backtrace:
            lines.append(f"(names are from {self.elf}; the dump does not show whether it is the firmware's ELF)")
        elif self.elf is None and self.backtrace:
            build = f" (its SHA-256 begins with {self.elf_sha256})" if self.elf_sha256 else ""
            lines.append(f"hint: provide the ELF file of this build{build} to see functions and lines")
        return "\n".join(lines)


def _describe_frames(frames: tuple[Frame, ...], *, is_cut: bool) -> list[str]:
    lines = [f"#{number} {frame}" for number, frame in enumerate(frames)]
    return [*lines, "(outer frames are missing: the stack is damaged, or too deep)"] if is_cut else lines


@dataclass(frozen=True)
class Verdict:
    """The result of `classify`: kind and reason of a crash, before its dump is decoded."""

    kind: Kind
    reason: str
    core: int | None = None
    task: str | None = None


Say = Callable[[re.Match[str], str], Verdict]


def classify(text: str) -> Verdict | None:
    """Return kind and reason of a crash's text, of several causes the root cause; None if it is not a crash."""
    for pattern, say in _RULES:
        match = pattern.search(text)
        if match is not None:
            return say(match, text)
    return None


RESET = re.compile(r"rst:0x(?P<code>[0-9a-f]+) \((?P<name>[^)\r\n]*)\)|rst cause:(?P<cause>\d+)")

_RESET_CODES = {
    **dict.fromkeys((0x4, 0x7, 0x8, 0x9, 0xB, 0xD, 0x10, 0x11, 0x12), Kind.WATCHDOG_RESET),
    0xF: Kind.BROWNOUT,
    0x1A: Kind.LOCKUP,
}


def is_wake_up(reset: re.Match[str]) -> bool:
    """Return whether a ROM's reset reason (a match of `RESET`) is the end of deep sleep."""
    if reset["cause"] is not None:
        return reset["cause"] == "5"
    return "SLEEP" in reset["name"] or int(reset["code"], 16) == 0x5


def is_in_download_mode(reset: re.Match[str], line: bytes) -> bool:
    """Return whether the boot's *line* is of an ESP8266 that waits in its loader, which says so nowhere else."""
    return reset["cause"] is not None and b"boot mode:(1," in line


def reset_kind(reset: re.Match[str]) -> Kind | None:
    """Return the kind of crash for a ROM's reset reason (a match of `RESET`); None if it is not a crash."""
    if reset["cause"] is not None:  # ESP8266
        return Kind.WATCHDOG_RESET if reset["cause"] == "4" else None
    # ROMs have many names for one reason (TG0WDT_SYS_RST, TG0WDT_SYS_RESET, HP_SYS_HP_WDT_RESET), so look for parts.
    name = reset["name"]
    if "BROWN" in name or "BOD" in name:  # before WDT: RTCWDT_BROWN_OUT_RESET
        return Kind.BROWNOUT
    if "WDT" in name:
        return Kind.WATCHDOG_RESET
    return _RESET_CODES.get(int(reset["code"], 16))


def _plain(kind: Kind, reason: str) -> Say:
    """Return a function that makes a verdict: the match's groups are inserted into *reason*."""

    def say(match: re.Match[str], _text: str) -> Verdict:
        groups = match.groupdict()
        core = groups.get("core")
        return Verdict(kind, reason.format(**groups), int(core) if core is not None else None, groups.get("task"))

    return say


def _abort(match: re.Match[str], _text: str) -> Verdict:
    core = match["core"]
    return Verdict(Kind.ABORT, f"abort() was called at PC {match['pc']}", int(core) if core is not None else None)


def _panic(match: re.Match[str], _text: str) -> Verdict:
    details = "; ".join(
        line.strip() for line in match["details"].splitlines() if line.strip() and not line.startswith("Memory dump")
    )
    return Verdict(Kind.PANIC, f"{match['cause']}: {details}" if details else match["cause"], int(match["core"]))


def _error_check(match: re.Match[str], text: str) -> Verdict:
    """Combine the lines of ESP_ERROR_CHECK, which prints its location on separate lines and then calls abort()."""
    place = re.search(r'file: "(?P<file>[^"\r\n]*)" line (?P<line>\d+)', text)
    function = re.search(r"(?m)^func: (?P<function>[^\r\n]*)", text)
    expression = re.search(r"(?m)^expression: (?P<expression>[^\r\n]*)", text)
    reason = f"ESP_ERROR_CHECK failed: {match['error'].strip()}"
    if expression is not None:
        reason += f" from {expression['expression']}"
    if function is not None and place is not None:
        reason += f", {function['function']} {place['file']}:{place['line']}"
    return Verdict(Kind.ABORT, reason)


def _exception_8266(match: re.Match[str], _text: str) -> Verdict:
    number = int(match["number"])
    name = f": {_XTENSA_EXCEPTIONS[number]}" if number in _XTENSA_EXCEPTIONS else ""
    return Verdict(Kind.PANIC, f"Exception ({number}){name}")


def _task_watchdog(_match: re.Match[str], text: str) -> Verdict:
    late: list[str] = re.findall(r"task_wdt: +- ([^\r\n]*\S)", text)
    running: list[tuple[str, str]] = re.findall(r"task_wdt: CPU (\d+): ([^\r\n]*\S)", text)
    cores: list[str] = re.findall(r"\(CPU (\d+)\)", " ".join(late))
    task = dict(running).get(cores[0]) if cores else None
    reason = f"{', '.join(late) or 'a task'} did not reset the watchdog in time"
    if running:
        reason += "; running: " + ", ".join(f"{name} (CPU {core})" for core, name in running)
    return Verdict(Kind.TASK_WATCHDOG, reason, int(cores[0]) if cores else None, task)


_UNTRUSTED = re.compile(  # the ROM's words for it
    r"No signature block magic byte found[^\r\n(]*\S|Sig block \d[^\r\n]*\S|SHA-256 simple hash comparison failed"
    r"|Invalid image block, can't verify"
)


def _not_bootable(match: re.Match[str], text: str) -> Verdict:
    said = match[0].strip()
    first = re.search(
        r"E \(\d+\) (?:esp_image|flash_parts|secure_boot\w*|boot_comm|bootloader_\w+): ([^\r\n]*\S)", text
    )
    if said.startswith("invalid header"):
        what = "the flash is blank" if set(match["header"]) == {"f"} else "no bootloader where the ROM looks for it"
    elif said.startswith("flash read err"):
        what = "the ROM cannot read the flash"
    elif said.startswith(("csum err", "Checksum failure", "Invalid image block")):
        what = "the bootloader in flash is damaged"
    elif said.startswith(("Invalid chip id", "wrong chip id")):
        what = "the bootloader in flash is for another chip"
    elif said.startswith("secure boot") and (why := _UNTRUSTED.search(text)):
        what = f"the bootloader is not trusted: {why[0]}"
    elif first is not None:
        what = first[1]
    else:
        return Verdict(Kind.NOT_BOOTABLE, said)
    return Verdict(Kind.NOT_BOOTABLE, f"{what} ({said})")


def _reset(match: re.Match[str], text: str) -> Verdict:
    resets = list(RESET.finditer(text))
    names = [f"rst:0x{reset['code']} ({reset['name']})" if reset["code"] else reset[0] for reset in resets]
    if len(resets) > 1:
        return Verdict(Kind.BOOT_LOOP, f"{len(resets)} boots in a row: {', '.join(names)}")
    kind = reset_kind(match)
    return Verdict(kind or Kind.BOOT_LOOP, f"the chip was reset by {names[0]}")


def _rules(*rules: tuple[str, Say]) -> tuple[tuple[re.Pattern[str], Say], ...]:
    return tuple((re.compile(pattern, re.MULTILINE), say) for pattern, say in rules)


_XTENSA_EXCEPTIONS = {
    0: "IllegalInstruction", 1: "Syscall", 2: "InstructionFetchError", 3: "LoadStoreError", 4: "Level1Interrupt",
    5: "Alloca", 6: "IntegerDivideByZero", 8: "Privileged", 9: "LoadStoreAlignment", 12: "InstrPIFDataError",
    13: "LoadStorePIFDataError", 14: "InstrPIFAddrError", 15: "LoadStorePIFAddrError", 20: "InstrFetchProhibited",
    28: "LoadProhibited", 29: "StoreProhibited",
}  # fmt: skip
"""Causes of exceptions on Xtensa (EXCCAUSE; Xtensa ISA Reference Manual, table 4-64)."""

_GURU = r"Guru Meditation Error: Core +(?P<core>\d+) panic'ed "

# The most fundamental cause first: a damaged heap or stack before the exception that it leads to.
_RULES = _rules(
    (
        r"\*\*\*ERROR\*\*\* A stack overflow in task (?P<task>[^\r\n]*?) has been detected",
        _plain(Kind.STACK_OVERFLOW, "stack overflow in task {task}"),
    ),
    (
        r"Stack canary watchpoint triggered \((?P<task>[^)\r\n]*)\)",
        _plain(Kind.STACK_OVERFLOW, "task {task} wrote to the end of its stack"),
    ),
    (
        _GURU
        + r"\(Stack protection fault\)[^\n]*\n(?:(?!Core )[^\n]*\n){0,4}?Detected in task \"(?P<task>[^\"\r\n]*)\"",
        _plain(Kind.STACK_OVERFLOW, "Stack protection fault: the stack pointer of task {task} is outside its stack"),
    ),
    (
        _GURU + r"\(Stack protection fault\)",
        _plain(Kind.STACK_OVERFLOW, "Stack protection fault: the stack pointer is outside the task's stack"),
    ),
    (
        r"Stack smashing protect failure",
        _plain(Kind.STACK_SMASHING, "a function wrote past its local variables (Stack smashing protect failure!)"),
    ),
    (r"CORRUPT HEAP: (?P<what>[^\r\n]*)", _plain(Kind.HEAP_CORRUPTION, "{what}")),
    (r"Undefined behavior of type (?P<what>\w+)", _plain(Kind.UNDEFINED_BEHAVIOR, "{what}")),
    (_GURU + r"\((?P<what>Interrupt wdt timeout on CPU\d)", _plain(Kind.INTERRUPT_WATCHDOG, "{what}")),
    (r"task_wdt: Aborting", _task_watchdog),
    (r"^assert failed: (?P<what>[^\r\n]*)", _plain(Kind.ASSERT, "{what}")),
    (
        r"^assertion \"(?P<what>[^\r\n]*)\" failed: file \"(?P<file>[^\"\r\n]*)\", line (?P<line>\d+)"
        r"(?:, function: (?P<function>[^\r\n]*))?",
        _plain(Kind.ASSERT, "{function} {file}:{line} ({what})"),
    ),
    (r"ESP_ERROR_CHECK failed: esp_err_t (?P<error>[^\r\n]*?)(?: at 0x[0-9a-f]+)?\s*$", _error_check),
    (_GURU + r"\((?P<cause>[^\r\n]*?)\)[^\n]*\n?(?P<details>(?:(?!Core )[^\r\n]+\r?\n)*)", _panic),
    (r"abort\(\) was called at PC (?P<pc>0x[0-9a-fA-F]+)(?: on core (?P<core>\d+))?", _abort),
    (
        r"Brownout detector was triggered",
        _plain(Kind.BROWNOUT, "the supply voltage fell (Brownout detector was triggered)"),
    ),
    (r"invalid header: 0x(?P<header>[0-9a-f]+)", _not_bootable),
    (
        r"flash read err, \d+|csum err:0x\S*|Invalid image block, can't boot|Invalid image block count: \d+"
        r"|secure boot verification failed|ota_info partition size [^\r\n]*"
        r"|No bootable [^\r\n]*|load partition table error!",
        _not_bootable,
    ),
    (r"^Stack smashing detected", _plain(Kind.STACK_SMASHING, "a function wrote past its local variables")),
    (r"^Stack overflow detected", _plain(Kind.STACK_OVERFLOW, "stack overflow")),
    (r"^Unhandled C\+\+ exception: (?P<what>[^\r\n]*)", _plain(Kind.ABORT, "unhandled C++ exception: {what}")),
    (r"^Panic (?P<what>[^\r\n]*)", _plain(Kind.ABORT, "panic at {what}")),
    (r"^Abort called", _plain(Kind.ABORT, "abort() was called")),
    (r"^User exception (?P<what>[^\r\n]*)", _plain(Kind.ABORT, "user exception {what}")),
    (
        r"^Soft WDT reset",
        _plain(Kind.WATCHDOG_RESET, "the app did not yield to the system in time (Soft WDT reset)"),
    ),
    (r"^(?:Fatal e|E)xception \(?(?P<number>\d+)[:)(]", _exception_8266),
    (
        r"^Checksum failure\.[^\r\n]*|^Invalid chip id\.[^\r\n]*|^wrong chip id 0x\w+|^Secure boot check fail"
        r"|^Download mode is disabled[^\r\n]*|^Download boot modes disabled|^Invalid mode for secure boot download",
        _not_bootable,
    ),
    (
        r"^wait[^\r\n]* download[^\r\n]*|boot mode:\(1,\d+\)",
        _plain(Kind.DOWNLOAD_MODE, "the ROM waits for a download: the boot strap pin was low at the reset"),
    ),
    (RESET.pattern, _reset),
    (
        r">>>stack>>>|Guru Meditation Error|register dump:|Backtrace:|Stack memory:",
        _plain(Kind.PANIC, "the cause is missing from the console output"),
    ),
)
