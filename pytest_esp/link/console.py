"""The console: reads the app's output as it arrives, stores it with times, and searches it for patterns.

The process's loop thread feeds every console (`source`). A thread that waits in `expect` sleeps until a match, a crash
or the end of the port. Each byte is searched once, however long the log is.
"""

from __future__ import annotations

import codecs
import math
import re
import threading
import time
from array import array
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import serial

from pytest_esp.boards.port import Port
from pytest_esp.errors import EspError, LinkError, PortError
from pytest_esp.link.crash import Crash
from pytest_esp.link.detector import CrashDetector, CrashText
from pytest_esp.link.escapes import EscapeFilter
from pytest_esp.link.journal import Journal
from pytest_esp.link.match import Match, Pattern, Search
from pytest_esp.link.panic import decode, find_elf_sha256
from pytest_esp.link.source import source_of
from pytest_esp.secrets import Stream, hide
from pytest_esp.wire.reset import drive_lines

_TAIL_LINES = 20
_LONGEST_TAIL = 64 * 1024  # bytes to look for them
_QUIET = 0.1  # seconds without a byte
_KEPT = 64 * 1024 * 1024  # bytes of text kept in memory; the journal has everything
_RESOLUTION = 0.001  # seconds
_TICK = 1.0  # seconds
_BOOT_LOG = 256 * 1024  # bytes before a crash to search for the app's hash in the boot log
_ESCAPE = 0.1  # seconds of silence after which the beginning of an escape sequence is text
_SLOW_ESCAPE = 0.5  # seconds after which it is text though output goes on

# The last line of a ROM's boot log, or what bootloader and app print at another baud rate than the port's.
_END_OF_ROM = re.compile(rb"entry 0x[0-9a-f]+\s*\n|\bcsum 0x[0-9a-f]+\s*\n|[\x80-\xff]{8}")
_RESET_REASON = re.compile(rb"rst:0x|rst cause:")
_LONGEST_ROM = 3.0  # seconds; a watchdog needs 1 s to reset the chip
_ROM_PAUSE = 0.06  # seconds; no pause in the ROM's log is as long
_ROM_TICK = 0.005  # seconds


class ConsoleError(LinkError):
    """The expected output did not arrive."""

    is_fault = False


class CrashError(ConsoleError):
    """The app crashed while other output was expected.

    Attributes:
        crash: the decoded crash.
    """

    def __init__(self, message: str, crash: Crash, **context: Any) -> None:
        super().__init__(message, **context)
        self.crash = crash


@dataclass(frozen=True)
class Line:
    """One line of the log: its time in seconds since the console began, and its text without ANSI sequences."""

    time: float
    text: str


@dataclass(frozen=True)
class _Found:
    """A match of one of several searches; its end is in bytes since the beginning."""

    index: int
    match: re.Match[Any]
    start: int
    end: int


@dataclass
class _Wait:
    """A wait for one of *wanted*, which fails if one of *unwanted* arrives first."""

    wanted: list[Search]
    unwanted: list[Search]
    found: _Found | None = None
    refused: _Found | None = None
    is_behind: bool = False
    crash: CrashText | None = None

    def look(self, buffer: bytearray, dropped: int, *, thorough: bool = False) -> bool:
        """Search the new bytes of a buffer without its first *dropped* bytes; return whether the wait has ended."""
        self.found = self.found or _first(self.wanted, buffer, dropped, thorough)
        self.refused = self.refused or _first(self.unwanted, buffer, dropped, thorough)
        self.is_behind = any(search.is_behind for search in (*self.wanted, *self.unwanted))
        return self.found is not None or self.refused is not None

    @property
    def succeeded(self) -> bool:
        """Whether something wanted arrived before anything unwanted."""
        return self.found is not None and (self.refused is None or self.found.start <= self.refused.start)


def _first(searches: list[Search], buffer: bytearray, dropped: int, thorough: bool) -> _Found | None:
    """Return the match that begins first."""
    first = None
    for index, search in enumerate(searches):
        hit = search.look(buffer, thorough=thorough)
        if hit is not None and (first is None or hit.start + dropped < first.start):
            first = _Found(index, hit.match, hit.start + dropped, hit.end + dropped)
    return first


class Console:
    """The console of a board. It reads the port from `attach` to `detach`.

    Args:
        port: the open port.
        board: the board's name, for messages.
        journal: the file for the complete log, see `Journal`; a temporary one if None.
        echo: called with text as it arrives, with its colours (SGR sequences) and with secrets masked.
        elf: the app's ELF file, for decoding crashes; may be set later.
        recover: called with the reason, on a thread of its own, if the port is lost: opens it again, or raises
            PortError. Waits go on meanwhile. None: a loss is an error at once.
        baudrate: the port's baud rate while the console reads it; None leaves it as it is. See `set_baudrate`.

    Attributes:
        returns: the number of times that the port vanished and returned.
    """

    def __init__(
        self,
        port: Port,
        *,
        board: str,
        journal: Path | None = None,
        echo: Callable[[str], None] | None = None,
        elf: Path | None = None,
        recover: Callable[[str], None] | None = None,
        baudrate: int | None = None,
    ) -> None:
        self.elf = elf
        self.returns = 0
        self._recover = recover
        self._away_since: float | None = None
        self._baudrate = baudrate
        self._reset_mark = 0  # where the output after the last announced reset begins
        self._port = port
        self._board = board
        self._echo = echo
        self._begun = time.monotonic()
        self._changed = threading.Condition()
        self._journal = Journal(journal)
        self._text_of = codecs.getincrementaldecoder("utf-8")("replace")
        self._shown = Stream()
        self._plain = bytearray()
        self._dropped = 0  # the number of bytes that are only in the journal
        self._last = 0.0  # when the last byte arrived
        self._escapes = EscapeFilter()
        self._coloured = EscapeFilter(keeps_colours=True)  # of the echo
        self._held_since = 0.0
        # Byte offsets and the times at which they arrived. Arrays, as there may be millions.
        self._mark_offsets = array("Q")
        self._mark_times = array("d")
        self._position = 0  # bytes since the beginning: everything before it was matched or skipped
        self._waits: list[_Wait] = []
        self._crashes = CrashDetector()
        self._known_crash: CrashText | None = None  # a crash that a pattern waited for
        self._loss: PortError | None = None
        self._source = source_of(port, self._feed, self._lose)
        self._attached = False
        self._attaching = threading.Lock()

    # -- reading

    def attach(self) -> None:
        """Start reading the port, if it is not being read."""
        with self._attaching:
            if self._loss is not None and self._recover is not None:  # its port was opened again since
                self._loss, self._attached = None, False
                self._source = source_of(self._port, self._feed, self._lose)
            if not self._attached:
                if not self.is_away:
                    self._apply_baudrate()
                self._attached = True
                if not self.is_away:
                    self._source.start()

    def detach(self) -> None:
        """Stop reading, so that others can use the port. What has arrived by now is in the log."""
        with self._attaching:
            if self._attached:
                self._attached = False
                self._source.stop()

    def close(self) -> None:
        """Stop reading and close the journal. Closing twice has no effect."""
        self.detach()
        with self._changed:
            self._release()
        self._journal.close()
        self._show(self._shown.feed(self._coloured.release()) + self._shown.end())

    def _feed(self, data: bytes) -> None:
        """Handle new bytes. Runs on the loop's thread, or on the caller's if a virtual board answers at once."""
        with self._changed:
            now = time.monotonic() - self._begun
            self._journal.write(data, now)
            was_held = bool(self._escapes.held)
            self._add(self._escapes.feed(data), now)
            if not was_held:
                self._held_since = now
            elif self._escapes.held and now - self._held_since > _SLOW_ESCAPE:
                self._release()
            if self._escapes.held and self._waits:
                self._changed.notify_all()  # they wait for its end
        if self._echo is not None:
            self._show(self._shown.feed(bytes(self._coloured.feed(data))))

    def _release(self) -> None:
        """Take the beginning of an escape sequence for text."""
        if self._escapes.held:
            self._add(self._escapes.release(), self._last)

    def _add(self, plain: bytes | bytearray, now: float) -> None:
        """Handle output without escape sequences, which arrived at *now*."""
        if not self._mark_times or now - self._mark_times[-1] >= _RESOLUTION:
            self._mark_offsets.append(self._end)
            self._mark_times.append(now)
        self._last = now
        self._plain += plain
        self._crashes.feed(plain)
        if self._waits and self._crashes.crash is not None:
            self._changed.notify_all()
        for wait in self._waits:
            behind = wait.is_behind
            if wait.look(self._plain, self._dropped) or wait.is_behind > behind:
                self._changed.notify_all()
        if len(self._plain) > 2 * _KEPT:
            self._forget()

    def _settle(self) -> float:
        """Take the beginning of an escape sequence for text if nothing follows it; return the seconds until then."""
        if not self._escapes.held:
            return threading.TIMEOUT_MAX
        left = self._last + self._begun + _ESCAPE - time.monotonic()
        if left > 0:
            return left
        self._release()
        return threading.TIMEOUT_MAX

    def _show(self, plain: bytes) -> None:
        if self._echo is not None and (text := self._text_of.decode(plain)):
            self._echo(text)

    def _forget(self) -> None:
        """Keep only the last bytes, in a new buffer: matches keep references to the old one."""
        cut = len(self._plain) - _KEPT
        self._plain = self._plain[cut:]
        self._dropped += cut
        self._position = max(self._position, self._dropped)
        for wait in self._waits:
            for search in (*wait.wanted, *wait.unwanted):
                search.shift(cut)
        old = max(bisect_right(self._mark_offsets, self._dropped) - 1, 0)
        del self._mark_offsets[:old], self._mark_times[:old]

    def _lose(self, reason: str) -> None:
        """Handle the loss of the port. May be called with the port's lock held."""
        with self._changed:
            if self._recover is None:
                self._loss = PortError(f"the port was lost: {reason}", board=self._board)
                self._changed.notify_all()
            elif self._away_since is None:
                self._away_since = time.monotonic()
                threading.Thread(target=self._come_back, args=(reason,), name="pytest-esp-return", daemon=True).start()

    def _come_back(self, reason: str) -> None:
        assert self._recover is not None
        loss = None
        try:
            self._recover(reason)
        except EspError as error:
            loss = error if isinstance(error, PortError) else PortError(str(error), board=self._board)
        with self._attaching:
            source = source_of(self._port, self._feed, self._lose) if loss is None else None
            with self._changed:
                self._loss, self._away_since = loss, None
                self.returns += source is not None
                self._source = source or self._source
                self._changed.notify_all()
            if source is not None and self._attached:
                source.start()

    @property
    def is_away(self) -> bool:
        """Whether the port has vanished, and may return."""
        return self._away_since is not None

    def _await_port(self) -> None:
        """Wait while the port is away."""
        with self._changed:
            while self.is_away:
                self._changed.wait()
            if self._loss is not None:
                raise self._lost("writing")

    def _lost(self, attempted: str) -> PortError:
        assert self._loss is not None
        return PortError(self._loss.message, board=self._board, attempted=attempted, hint=self._loss.hint)

    @property
    def _end(self) -> int:
        return self._dropped + len(self._plain)

    # -- what was read

    @property
    def log(self) -> bytes:
        """All output, with its ANSI sequences, the time before each line, and secrets masked.

        Without a file for it, only the last 8 MB or more are kept, after a line with the number of bytes dropped.
        """
        with self._changed:
            return self._journal.read()

    @property
    def log_path(self) -> Path | None:
        """The path of the log file; None if it is temporary."""
        return self._journal.path

    @property
    def text(self) -> str:
        """The output without ANSI sequences (the last 64 MB). Invalid UTF-8 is replaced."""
        with self._changed:
            self._settle()
            return self._plain.decode("utf-8", "replace")

    def mark(self) -> int:
        """Return the current end of the text, for `text_since`."""
        with self._changed:
            return self._end

    @property
    def position(self) -> int:
        """The `mark` from which `expect` searches: the end of the last match, or where `skip` or `rewind` set it."""
        with self._changed:
            return self._position

    def text_since(self, mark: int) -> str:
        """Return the part of `text` after a `mark`."""
        with self._changed:
            self._settle()
            return self._plain[max(mark - self._dropped, 0) :].decode("utf-8", "replace")

    def bytes_since(self, mark: int) -> bytes:
        """Return the part of the output without ANSI sequences after a `mark`, as it came."""
        with self._changed:
            return bytes(self._plain[max(mark - self._dropped, 0) :])

    def lines(self, since: int = 0) -> list[Line]:
        """Return the non-empty lines of `text` after a `mark`; the first and the last one may be incomplete."""
        with self._changed:
            self._settle()
            found: list[Line] = []
            offset = max(since, self._dropped)
            for raw in self._plain[offset - self._dropped :].split(b"\n"):
                text = raw.decode("utf-8", "replace").rstrip("\r")
                if text:
                    found.append(Line(self._time_of(offset), text))
                offset += len(raw) + 1
            return found

    def last_lines(self, count: int) -> list[Line]:
        """Return up to *count* of the last `lines`, from the last 64 KB or more."""
        with self._changed:
            lines = self.lines(self._end - max(_LONGEST_TAIL, 256 * count))
            return lines[max(len(lines) - count, 0) :]

    def line_start(self, mark: int) -> int:
        """Return the first `mark` from the given one on at which a line begins; the end if there is none."""
        with self._changed:
            here = max(mark - self._dropped, 0)
            if here == 0 or self._plain.endswith(b"\n", 0, here):
                return here + self._dropped
            newline = self._plain.find(b"\n", here)
            return newline + 1 + self._dropped if newline >= 0 else self._end

    def _time_of(self, offset: int) -> float:
        mark = bisect_right(self._mark_offsets, offset) - 1
        return self._mark_times[mark] if mark >= 0 else 0.0

    # -- talking

    def write(self, data: str | bytes) -> None:
        """Send *data* to the app (text as UTF-8).

        Raises:
            PortError: if the port was lost.
        """
        self._await_port()
        try:
            self._port.write(data.encode() if isinstance(data, str) else data)
        except (serial.SerialException, OSError) as error:
            raise PortError(f"the port failed: {error}", board=self._board, attempted="writing") from error

    def set_baudrate(self, baudrate: int) -> None:
        """Go on reading and writing at another baud rate, from now until the next reset by `esp`.

        Nothing that has arrived is lost. What arrives at another rate than the port's is noise, as on any UART.

        Raises:
            ValueError: if the rate is invalid.
            PortError: if the port was lost, or does not support the rate.
        """
        if not 300 <= baudrate <= 20_000_000:
            raise ValueError(f"invalid baud rate {baudrate}; use e.g. 74880, 115200 or 921600")
        self._baudrate = baudrate
        if self._attached and not self.is_away:
            self._apply_baudrate()

    def _apply_baudrate(self) -> None:
        if self._baudrate is None or self._port.baudrate == self._baudrate:
            return
        try:
            self._port.baudrate = self._baudrate
        except (serial.SerialException, OSError, ValueError) as error:
            raise PortError(
                f"the port cannot use {self._baudrate} baud: {error}",
                board=self._board,
                attempted="setting the baud rate",
            ) from error

    def set_lines(self, *, dtr: bool, rts: bool) -> None:
        """Drive the port's control lines: True asserts a line, i.e. its pin is low.

        On a board with the auto-reset circuit of Espressif's devkits, RTS without DTR holds the chip in reset (EN is
        low), and DTR without RTS pulls the boot strap pin (GPIO0, or GPIO9 on the C series), which only counts when
        the chip leaves reset. Both or neither leave both pins high: the app runs. To restart the app, hold the chip
        in reset for 0.1 s and release both lines; `expect_reset` first, or its boot may count as a crash. The chip's
        own USB (USB-Serial-JTAG) acts on the same states. On a board without such a circuit, the lines do whatever
        they are wired to.

        Raises:
            PortError: if the port was lost, or does not have these lines.
        """
        try:
            drive_lines(self._port, dtr=dtr, rts=rts)
        except (serial.SerialException, OSError) as error:
            raise PortError(
                f"cannot set DTR and RTS: {error}", board=self._board, attempted="setting the control lines"
            ) from error

    def skip(self) -> None:
        """Let `expect` search only output from now on. Crashes so far are forgotten."""
        with self._changed:
            self._position = self._end
            while self._crashes.take() is not None:
                pass

    def rewind(self, mark: int) -> None:
        """Let `expect` search the output after a `mark` again."""
        with self._changed:
            self._position = max(mark, self._dropped)

    @property
    def reset_mark(self) -> int:
        """The `mark` of the last `expect_reset`."""
        with self._changed:
            return self._reset_mark

    def expect_reset(self) -> None:
        """Announce a reset of the chip from outside: its next boot is not a crash, whatever reason the ROM reports."""
        with self._changed:
            self._crashes.expect_reset()
            self._reset_mark = self._end

    def hear_rom(self) -> None:
        """Read until the ROM has ended its boot log after an announced reset, for at most 3 s.

        The ROM and the app may have different baud rates; the bootloader is loaded between what they print.
        """
        with self._changed:
            begin = max(self._reset_mark - self._dropped, 0)
            search, banner = Search(_END_OF_ROM, begin), Search(_RESET_REASON, begin)
            deadline = time.monotonic() + _LONGEST_ROM
            has_begun = False
            while time.monotonic() < deadline and search.look(self._plain) is None and self._loss is None:
                has_begun = has_begun or banner.look(self._plain) is not None
                if has_begun and time.monotonic() - self._begun - self._last > _ROM_PAUSE:
                    return
                self._changed.wait(_ROM_TICK)

    def expect(
        self,
        pattern: Pattern | Sequence[Pattern],
        timeout: float = 10.0,
        *,
        not_before: float = 0.0,
        unless: Pattern | Sequence[Pattern] = (),
        ignore_crashes: bool = False,
    ) -> Match:
        """Wait for *pattern* in the output after the last match, and return the match.

        A panic, a reset by a watchdog or brownout, a boot loop, flash without a bootable image, and the loss of the
        port (an emulator that ended) end the wait at once. A pattern can also match the text of a crash.

        Args:
            pattern: a string or bytes to find literally; a compiled regular expression; or a list, of which the first
                match counts (`Match.index`). ANSI sequences are removed before the search.
            timeout: in seconds.
            not_before: in seconds from now; an earlier match is an error.
            unless: patterns that end the wait with an error if they match first.
            ignore_crashes: continue to wait if the app crashes.

        Raises:
            CrashError: if the app crashed first; the message has the decoded backtrace.
            ConsoleError: if the pattern did not match in time, matched too early, or *unless* matched first. The
                message has the last lines of the console.
            PortError: if the port was lost; the message has the reason (such as an emulator's last output).
        """
        __tracebackhide__ = True  # let pytest show the line of the test
        with self._changed:
            begun = time.monotonic()
            wanted = _list(pattern)
            if not wanted:
                raise ValueError("no pattern given")
            wait = self._wait_for(wanted, _list(unless), timeout, ignore_crashes)
            found = wait.found
            if wait.crash is not None:
                raise self._crashed(wait, wait.crash)
            if found is None or not wait.succeeded:
                raise self._missed(wait, timeout)
            self._position = found.end
            is_text = wait.wanted[found.index].is_text
            match = Match(found.match, is_text=is_text, index=found.index, time=self._time_of(found.end - 1))
            waited = match.time + self._begun - begun
            if not_before and waited < not_before:
                raise self._error(
                    f"{wait.wanted[match.index].description} came after {max(waited, 0):.3f} s, "
                    f"not before {not_before:g} s"
                )
            return match

    def listen(
        self,
        duration: float,
        until: Pattern | None = None,
        *,
        ignore_crashes: bool = False,
        tick: Callable[[], None] | None = None,
    ) -> Match | None:
        """Collect output for *duration* seconds, or until a pattern matches; return the match, else None.

        Args:
            duration: in seconds.
            until: see `expect`.
            ignore_crashes: continue if the app crashes.
            tick: called every second; an exception from it ends the wait. No console is read while it runs.

        Raises:
            CrashError, PortError: see `expect`.
        """
        with self._changed:
            wait = self._wait_for([] if until is None else [until], [], duration, ignore_crashes, tick)
            if wait.crash is not None:
                raise self._crashed(wait, wait.crash)
            if wait.found is None or not wait.succeeded:
                return None
            self._position = wait.found.end
            is_text = wait.wanted[0].is_text
            return Match(wait.found.match, is_text=is_text, index=0, time=self._time_of(wait.found.end - 1))

    def expect_all(self, patterns: Sequence[Pattern], timeout: float = 10.0) -> list[Match]:
        """Wait for all *patterns*, in any order, and return their matches in the order of *patterns*.

        Raises:
            ConsoleError, PortError: see `expect`; the message names the missing patterns.
        """
        __tracebackhide__ = True
        deadline = time.monotonic() + timeout
        with self._changed:
            begin = self._position
        matches: dict[int, Match] = {}
        end = begin
        for index, pattern in enumerate(patterns):
            with self._changed:
                self._position = max(begin, self._dropped)
            matches[index] = self.expect(pattern, max(deadline - time.monotonic(), 0.0))
            end = max(end, self._position)
        with self._changed:
            self._position = end
        return [matches[index] for index in range(len(patterns))]

    def read_until(self, pattern: Pattern, timeout: float = 10.0) -> str:
        """Return the output up to and including *pattern*.

        Raises:
            ConsoleError, PortError: see `expect`.
        """
        __tracebackhide__ = True
        with self._changed:
            begin = self._position
            self.expect(pattern, timeout)
            whole = slice(max(begin - self._dropped, 0), self._position - self._dropped)
            return self._plain[whole].decode("utf-8", "replace")

    def expect_silence(self, duration: float) -> None:
        """Wait until there was no output for *duration* seconds; return after ten times *duration* in any case."""
        deadline = time.monotonic() + 10 * duration
        with self._changed:
            while time.monotonic() < deadline:
                left = self._last + self._begun + duration - time.monotonic()
                if left <= 0:
                    return
                self._changed.wait(left)

    # -- waiting

    def _wait_for(
        self,
        wanted: list[Pattern],
        unwanted: list[Pattern],
        timeout: float,
        ignore_crashes: bool,
        tick: Callable[[], None] | None = None,
    ) -> _Wait:
        """Wait until a match, a crash or the timeout, and return the wait. *tick* is called every second."""
        deadline = time.monotonic() + timeout
        start = self._position - self._dropped
        wait = _Wait([Search(one, start) for one in wanted], [Search(one, start) for one in unwanted])
        self._crashes.wait_anew()
        self._waits.append(wait)
        thorough = False
        next_tick = math.inf if tick is None else time.monotonic() + _TICK
        try:
            while True:
                until_text = self._settle()
                done = wait.look(self._plain, self._dropped, thorough=thorough)
                left = deadline - time.monotonic()
                pause = min(self._pause(wait, ignore_crashes, is_last=left <= 0), until_text)
                if done or wait.crash is not None or (left <= 0 and thorough):
                    return wait
                if self._loss is not None:
                    raise self._lost("expect")
                seen = self._end
                if tick is not None and time.monotonic() >= next_tick:
                    tick()
                    next_tick = time.monotonic() + _TICK
                until_tick = next_tick - time.monotonic()
                if left > 0:
                    self._changed.wait(max(min(left, pause, until_tick), 0.0))
                thorough = seen == self._end and until_tick >= min(left, pause)
        finally:
            self._waits.remove(wait)

    def _pause(self, wait: _Wait, ignore_crashes: bool, *, is_last: bool) -> float:
        """Handle the current crash, and return how long to sleep if no output arrives."""
        pause = _QUIET if wait.is_behind else threading.TIMEOUT_MAX
        crash = None if ignore_crashes else self._new_crash()
        if crash is None:
            return pause
        if wait.found is not None and (not crash.complete or wait.found.start < crash.begin + len(crash.raw)):
            if wait.found.end > crash.begin:
                self._known_crash = crash
            return pause
        silent = time.monotonic() - self._begun - self._last
        if not crash.complete and (is_last or silent >= self._crashes.patience):
            self._crashes.quiet()
        if crash.complete:
            wait.crash = self._crashes.take()
        return min(pause, max(self._crashes.patience - silent, 0.001))

    def _new_crash(self) -> CrashText | None:
        """Return the current crash if it was not reported yet, else None."""
        while (crash := self._crashes.crash) is not None and crash is self._known_crash:
            if not crash.complete:
                return None
            self._crashes.take()
        return crash

    def _crashed(self, wait: _Wait, found: CrashText) -> CrashError:
        self._position = max(self._position, min(found.begin + len(found.raw), self._end))
        known = find_elf_sha256(self._plain[-_BOOT_LOG:].decode("utf-8", "replace"))
        crash = decode(found.text, self.elf, elf_sha256=known)
        wanted = " or ".join(search.description for search in wait.wanted)
        log = f"\n  log: {self._journal.path}" if self._journal.path else ""
        return CrashError(
            hide(f"the app crashed while waiting for {wanted}\n{crash.describe()}") + log,
            crash,
            board=self._board,
            attempted="expect",
        )

    def _missed(self, wait: _Wait, timeout: float) -> ConsoleError:
        wanted = " or ".join(search.description for search in wait.wanted)
        if wait.refused is not None:
            return self._error(f"{wait.unwanted[wait.refused.index].description} came before {wanted}")
        return self._error(f"timed out after {timeout:g} s waiting for {wanted}")

    def _error(self, message: str) -> ConsoleError:
        now = time.monotonic() - self._begun
        lines = self.last_lines(_TAIL_LINES)
        tail = "\n".join(f"    [{line.time:9.3f}] {line.text}" for line in lines) or "    (nothing)"
        message, tail = hide(message), hide(tail, is_cut=True)
        if self._mark_times:
            tail += f"\n    (nothing more for {now - self._last:.1f} s)"
        if self._away_since is not None:
            tail += f"\n    (the port has been gone for {time.monotonic() - self._away_since:.1f} s)"
        if self._journal.path is not None:
            tail += f"\n  log: {self._journal.path}"
        return ConsoleError(f"{message}; the console said:\n{tail}", board=self._board, attempted="expect")


def _list(patterns: Pattern | Sequence[Pattern]) -> list[Pattern]:
    if isinstance(patterns, (str, bytes, re.Pattern)):
        return [patterns]
    return list(patterns)
