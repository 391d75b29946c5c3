"""Detects crashes in console output as it arrives."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field, TypeAdapter

from pytest_esp.link.crash import RESET, Kind, classify, is_in_download_mode, is_wake_up, reset_kind
from pytest_esp.link.escapes import EscapeFilter

# Every crash has a line with one of these.
_SIGNS = (
    b"Guru Meditation Error: Core ",
    b"abort() was called at PC 0x",
    b"assert failed: ",
    b'assertion "',
    b"***ERROR*** A stack overflow in task ",
    b"Stack smashing protect failure",
    b"CORRUPT HEAP: ",
    b"ESP_ERROR_CHECK failed: esp_err_t ",
    b"Undefined behavior of type ",
    b"task_wdt: Aborting.",
    b"Brownout detector was triggered",
    b"),boot:0x",
    b",rst cause:",
    b"invalid header: 0x",
    b"flash read err, ",
    b"csum err:0x",
    b"Invalid image block, can't boot",
    b"Invalid image block count: ",
    b"ota_info partition size ",
    b"secure boot verification failed",
    b"No bootable ",
    b"load partition table error!",
    b"Checksum failure. Calculated 0x",
    b"Invalid chip id. Expected ",
    b"wrong chip id 0x",
    b"Secure boot check fail",
    b"Download mode is disabled",
    b"Download boot modes disabled",
    b"Invalid mode for secure boot download",
    b"waiting for download",
    b"wait uart download(secure mode)",
    b"Soft WDT reset",
    b">>>stack>>>",
)
_OVERLAP = max(map(len, _SIGNS)) - 1
_EXCEPTION = rb"xception \(?[0-9]"  # of the ESP8266
_SIGN = re.compile(b"|".join([*map(re.escape, _SIGNS), _EXCEPTION]))
# Every byte of every console is searched for all signs. `re` needs 12 ns per byte for that, one find per sign 5 to 10,
# and Rust's regular expressions, which pydantic uses to validate text, 0.3 to 1. They are used as a first check.
_HAS_SIGN = TypeAdapter(Annotated[str, Field(pattern=_SIGN.pattern.decode())]).validator.isinstance_python

_REFUSED_BY_ROM = (
    rb"Checksum failure\. Calculated|Invalid chip id\. Expected|wrong chip id 0x|Secure boot check fail"
    rb"|Download mode is disabled|Download boot modes disabled|Invalid mode for secure boot download"
)
_NOT_BOOTABLE = re.compile(
    rb"invalid header: 0x|flash read err, |csum err:0x|Invalid image block|secure boot verification failed"
    rb"|No bootable |load partition table error!|ota_info partition size |" + _REFUSED_BY_ROM
)
_DOWNLOAD = rb"waiting for download\s*\Z|wait uart download\(secure mode\)\s*\Z"
# These signs count only in lines that begin so, as an app may log the words.
_COMMON = re.compile(
    rb'assert failed: |assertion "|waiting for|wait uart|xception |Soft WDT|>>>stack|' + _REFUSED_BY_ROM
)
_WHOLE_LINE = re.compile(
    rb'assert failed: |assertion "|(?:Fatal e|E)xception \(?\d+[:)(]|Soft WDT reset\s*\Z|>>>stack>>>|'
    + _DOWNLOAD
    + rb"|"
    + _REFUSED_BY_ROM
)
_BOOT_MODE = re.compile(rb"\),boot:0x|,rst cause:")
_ONE_LINE = re.compile(rb"Brownout detector|" + _DOWNLOAD + rb"|" + _NOT_BOOTABLE.pattern)
_LEAD = re.compile(  # lines before the crash's first sign that give its reason
    rb"task_wdt: |terminate called after throwing|what\(\): "
    rb"|CUT HERE FOR EXCEPTION DECODER|^(?:Panic |Abort called|Unhandled C\+\+ exception|User exception )"
    rb"|^Stack (?:smashing|overflow) detected"
    rb"|E \(\d+\) (?:esp_image|boot|boot_comm|flash_parts|secure_boot)"
    rb"|No signature block magic byte|Sig block \d|SHA-256 simple hash|Invalid image block, can't verify"
)
_BOOT = re.compile(rb"ESP-ROM:|ets [A-Z][a-z]{2} [ \d]\d \d{4}|rst:0x[0-9a-f]+ \(")
_END = re.compile(rb"Rebooting\.\.\.|CPU halted\.|Abort panic handling|Entering gdb stub now|<<<stack<<<")
_PART = re.compile(  # lines of a dump, as opposed to output of an app that continues
    _SIGN.pattern + rb"|register dump:|Backtrace:|Stack memory:|ELF file SHA256:|CORE DUMP|: 0x[0-9a-fA-F]{8}"
    rb"|epc1=0x|ctx: |[0-9a-f]{8}:  [0-9a-f]{8} "
)
_COMPLETE_BUT_FOR_THE_END = re.compile(rb"ELF file SHA256:|CORE DUMP END|Saved PC:|depc=0x")

_LONGEST_LINE = 1024  # bytes; longer lines are noise
_LEAD_LINES = 16
_KEPT = 4096  # bytes kept before the new ones: the longest line and the lines that lead to it
_MOST_BETWEEN = 16 * 1024  # bytes that are not part of a dump after which a crash has ended
_MOST_CORE_DUMP = 1024 * 1024
_MOST_CRASHES = 16


@dataclass(eq=False)
class CrashText:
    """The console output of a crash.

    Attributes:
        begin: offset of its first byte in all input of the detector, without ANSI sequences.
        raw: its bytes so far.
        complete: whether it is complete.
    """

    begin: int
    raw: bytearray = field(default_factory=bytearray)
    complete: bool = False

    @property
    def text(self) -> str:
        """Its text so far. Invalid UTF-8 is replaced."""
        return self.raw.decode("utf-8", "replace")

    @property
    def kind(self) -> Kind:
        """Its kind according to the text so far: a panic may turn out to be a stack overflow."""
        verdict = classify(self.text)
        return verdict.kind if verdict is not None else Kind.PANIC


class CrashDetector:
    """Finds crashes in console output, which may arrive in pieces of any size.

    `crash` is the current crash; `take` removes it, so that the next one can follow. The reset that follows a crash
    belongs to it. The detector does not use a clock: the caller calls `quiet` when the console is silent.

    Args:
        boot_limit: the number of boots, without a crash or `wait_anew` between them, that are a boot loop; None for no
            limit.
        ignored: kinds of crashes to ignore.
    """

    def __init__(self, *, boot_limit: int | None = 3, ignored: Collection[Kind] = ()) -> None:
        self._boot_limit = boot_limit
        self._ignored = frozenset(ignored)
        self._buffer = bytearray()
        self._base = 0  # offset of the buffer's first byte
        self._position = 0  # offset up to which everything was searched
        self._escapes = EscapeFilter()
        self._crashes: deque[CrashText] = deque()
        self._open: CrashText | None = None
        self._floor = 0  # end of the last crash
        self._part = 0  # end of the last line that was part of the open crash's dump
        self._is_reset = False  # the open crash is a ROM's report of a reset
        self._in_core_dump = False
        self._boots: list[bytes] = []
        self._is_reset_explained = False
        self._is_reset_expected = False
        self._has_boot_failed = False

    @property
    def crash(self) -> CrashText | None:
        """The oldest crash that was not taken; it may be incomplete (`CrashText.complete`)."""
        if not self._crashes or (self._ignored and self._crashes[0].kind in self._ignored):
            return None
        return self._crashes[0]

    @property
    def patience(self) -> float:
        """Seconds of silence after which the open crash can be considered complete (`quiet`)."""
        if self._open is not None and not _COMPLETE_BUT_FOR_THE_END.search(self._open.raw):
            return 1.0  # a busy emulator may pause in the middle of a dump
        return 0.1

    def feed(self, data: bytes | bytearray) -> None:
        """Search new console output."""
        self._buffer += self._escapes.feed(data)
        self._advance(is_final=False)

    def quiet(self) -> None:
        """Complete the open crash and the last line: the console is silent."""
        self._buffer += self._escapes.release()
        self._advance(is_final=True)
        if self._open is not None:
            self._close()

    def take(self) -> CrashText | None:
        """Remove `crash` and return it."""
        crash = self.crash
        if crash is not None:
            self._crashes.popleft()
            if crash is self._open:
                self._close()
        return crash

    def expect_reset(self) -> None:
        """Announce that the caller resets the chip: its next boot is not a crash, whatever the reason."""
        self._is_reset_expected = True

    def wait_anew(self) -> None:
        """Announce that the caller starts a new wait: boots are counted from here."""
        self._boots.clear()

    def _advance(self, *, is_final: bool) -> None:
        while self._follow(is_final=is_final) if self._open is not None else self._seek(is_final=is_final):
            pass
        if len(self._buffer) > 16 * _KEPT:
            spent = max(0, self._position - self._base - _KEPT)
            del self._buffer[:spent]
            self._base += spent

    def _seek(self, *, is_final: bool) -> bool:
        """Search for the next line that belongs to a crash; return whether there was one."""
        buffer, start = self._buffer, self._position - self._base
        if not _HAS_SIGN(str(buffer[start:], "latin-1")) or not (hit := _SIGN.search(buffer, start)):
            self._position = max(self._position, self._base + len(buffer) - _OVERLAP)
            return False
        end = self._line_end(hit.start(), is_final=is_final)
        if end is None:
            self._position = self._base + hit.start()
            return False
        self._position = self._base + end
        begin = self._line_begin(hit.start())
        line = bytes(buffer[begin:end])
        reset = RESET.search(line.decode("utf-8", "replace"))
        if reset is not None:
            self._boot(reset, begin, line)
        elif self._is_crash(line, hit.start() - begin):
            self._begin(begin, line)
        return True

    def _line_begin(self, hit: int) -> int:
        """Return where the line of *hit* begins in the buffer; *hit* if that is too far away."""
        newline = self._buffer.rfind(b"\n", max(0, hit - _LONGEST_LINE), hit)
        if newline < 0 and self._base + hit >= _LONGEST_LINE:
            return hit
        return max(newline + 1, self._floor - self._base)

    def _line_end(self, start: int, *, is_final: bool) -> int | None:
        """Return where the line of *start* ends in the buffer; None if the end has not arrived yet."""
        end = self._buffer.find(b"\n", start, start + _LONGEST_LINE)
        if end >= 0:
            return end + 1
        if len(self._buffer) - start >= _LONGEST_LINE:
            return start + _LONGEST_LINE
        return len(self._buffer) if is_final and len(self._buffer) > start else None

    def _is_crash(self, line: bytes, hit: int) -> bool:
        if _COMMON.match(line, hit) and not _WHOLE_LINE.match(line):
            return False
        if _NOT_BOOTABLE.match(line, hit):
            had_failed, self._has_boot_failed = self._has_boot_failed, True
            return not had_failed  # the ROM repeats it
        return not _BOOT_MODE.match(line, hit)

    def _boot(self, reset: re.Match[str], begin: int, line: bytes) -> None:
        """Handle a boot's line from the ROM."""
        is_explained, self._is_reset_explained = self._is_reset_explained, False
        self._has_boot_failed = False
        is_expected, self._is_reset_expected = self._is_reset_expected, False
        if is_in_download_mode(reset, line):
            self._begin(begin, line, is_reset=True)
        elif is_expected or is_wake_up(reset):
            self._boots.clear()
        elif is_explained:
            pass
        elif reset_kind(reset) is not None:
            self._begin(begin, line, is_reset=True)
        else:
            self._boots.append(line)
            if self._boot_limit is not None and len(self._boots) >= self._boot_limit:
                self._add(CrashText(self._base + begin, bytearray(b"".join(self._boots)), complete=True))
                self._boots.clear()

    def _begin(self, begin: int, line: bytes, *, is_reset: bool = False) -> None:
        """Open a crash with the *line* at *begin* in the buffer and the lines that lead to it."""
        first = begin if is_reset else self._lead(begin)
        self._open = CrashText(self._base + first, self._buffer[first:begin] + line)
        self._is_reset, self._in_core_dump = is_reset, False
        self._part = self._position
        self._add(self._open)
        if _ONE_LINE.search(line):
            self._close()

    def _lead(self, begin: int) -> int:
        """Return the start of the lines that lead to the one at *begin*."""
        floor = max(0, self._floor - self._base, begin - (_KEPT - _LONGEST_LINE))
        first = end = begin
        for _ in range(_LEAD_LINES):
            if end <= floor:
                break
            before = self._buffer.rfind(b"\n", floor, end - 1) + 1 or floor
            line = self._buffer[before:end]
            if line.strip():
                if not _LEAD.search(line):
                    break
                first = before
            end = before
        return first

    def _follow(self, *, is_final: bool) -> bool:
        """Add the next line to the open crash, or end it; return whether there was one."""
        crash, start = self._open, self._position - self._base
        end = self._line_end(start, is_final=is_final)
        if crash is None or end is None:
            return False
        line = bytes(self._buffer[start:end])
        if _BOOT.search(line) or (self._is_reset and not line.startswith(b"Saved PC:")):
            self._close()
            return True
        crash.raw += line
        self._position = self._base + end
        if self._is_reset or _END.search(line) or self._is_over(line):
            self._close()
        return True

    def _is_over(self, line: bytes) -> bool:
        """Return whether the open crash has ended without an end marker, as when the app continues after it."""
        self._in_core_dump = (self._in_core_dump or b"CORE DUMP START" in line) and b"CORE DUMP END" not in line
        if _PART.search(line):
            self._part = self._position
        return self._position - self._part > (_MOST_CORE_DUMP if self._in_core_dump else _MOST_BETWEEN)

    def _add(self, crash: CrashText) -> None:
        if len(self._crashes) < _MOST_CRASHES:
            self._crashes.append(crash)

    def _close(self) -> None:
        crash, self._open = self._open, None
        if crash is None:
            return
        crash.complete = True
        self._floor = self._position
        self._is_reset_explained = not self._is_reset
        self._boots.clear()
        if crash.kind in self._ignored and crash in self._crashes:
            self._crashes.remove(crash)
