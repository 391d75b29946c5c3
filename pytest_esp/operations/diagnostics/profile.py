"""Profiles a boot and an app's first seconds on the console, with times, and the speed of the link."""

from __future__ import annotations

import re
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from pytest_esp.errors import OperationError
from pytest_esp.link.console import Line
from pytest_esp.link.crash import RESET, reset_kind
from pytest_esp.link.detector import CrashDetector
from pytest_esp.link.link import Link
from pytest_esp.link.logs import Progress
from pytest_esp.link.panic import decode
from pytest_esp.operations.chip.running import ticks
from pytest_esp.operations.registry import Effect, operation
from pytest_esp.operations.results import Address

_LONGEST = 600.0  # seconds
_LOG = re.compile(r"(?P<level>[EWIDV]) \((?P<time>\d+|[\d:.]+)\) (?P<tag>[^:\s][^:]*): ")
_LEVELS = {"E": "error", "W": "warning", "I": "info", "D": "debug", "V": "verbose"}
_HEAP_REGION = re.compile(r"heap_init: At (?P<at>[0-9A-Fa-f]{8}) len (?P<size>[0-9A-Fa-f]{8}) \([^)]*\): (?P<kind>.+)")
_HEAP_TOLD = re.compile(
    r"(?i)(?P<what>(?:minimum |largest )?free[ _](?:heap|block|internal)[ _a-z]*?)[ :=]+(?P<size>\d{3,})"
)
_ROM = re.compile(r"ESP-ROM:|^ets [A-Z][a-z]{2} +\d")
_WINDOW = 0.1  # seconds
_MOST_TAGS = 10
_ROUND_TRIPS = 21
_STUB_READ, _ROM_READ = 64 * 1024, 1024  # bytes
_BITS_PER_BYTE = 10  # on a UART: start, 8, stop

# The first log line of each phase of a boot, in order, from ESP-IDF's bootloader and startup code.
_PHASES = (
    ("bootloader", re.compile(r" boot: ESP-IDF .*bootloader| boot: ESP-IDF ")),
    ("partition table", re.compile(r" boot: Partition Table:")),
    ("loading the app", re.compile(r" esp_image: segment 0:")),
    ("app loaded", re.compile(r" boot: Loaded app from partition")),
    ("startup", re.compile(r" cpu_start: ")),
    ("heap", re.compile(r" heap_init: Initializing")),
    ("scheduler", re.compile(r" main_task: Started on CPU| cpu_start: Starting scheduler")),
    ("app_main", re.compile(r" main_task: Calling app_main\(\)|^Calling app_main\(\)")),
)


@dataclass(frozen=True)
class Phase:
    """One phase of a boot.

    Attributes:
        begin: seconds after the first sign of the boot, by the clock of this machine.
        seconds: until the next phase; None for the last one.
        chip_ms: the chip's own clock at its beginning, if the line has it (milliseconds after the reset).
    """

    name: str
    begin: float
    seconds: float | None
    chip_ms: int | None


@dataclass(frozen=True)
class Boot:
    """One boot.

    Attributes:
        at: seconds after the beginning of the profile.
        reason: reset reason printed by the ROM: ``"rst:0x1 (POWERON)"``.
        after_crash: whether it follows a crash: by its reason (a watchdog, a brown-out), or by the output before it.
        to_app: seconds to app_main, or to the scheduler if app_main is not logged (ESP-IDF before v5.1); None if it
            did not get there.
    """

    at: float
    reason: str | None
    after_crash: bool
    phases: tuple[Phase, ...]
    to_app: float | None


@dataclass(frozen=True)
class HeapRegion:
    """Memory for the heap, as logged by the startup code; bytes."""

    address: Address
    size: int
    kind: str


@dataclass(frozen=True)
class HeapLine:
    """Heap sizes logged by the app; bytes."""

    at: float
    what: str
    size: int


@dataclass(frozen=True)
class LogRate:
    """The amount of console output.

    Attributes:
        lines, bytes: total.
        lines_per_second, bytes_per_second: over the whole profile.
        peak_bytes_per_second: in the busiest tenth of a second.
        uart_load: share of the UART's capacity at its baud rate, 0 to 1 (an emulator's may exceed 1).
        levels: number of lines by log level.
        tags: number of lines by tag, for the most frequent tags.
    """

    lines: int
    bytes: int
    lines_per_second: float
    bytes_per_second: float
    peak_bytes_per_second: float
    uart_load: float
    levels: Mapping[str, int]
    tags: Mapping[str, int]


@dataclass(frozen=True)
class Throughput:
    """The speed of the link to the loader.

    Attributes:
        round_trip: median seconds for one command and its answer.
        read_bytes: bytes of flash that were read.
        read_bytes_per_second: speed of reading them.
        stub: whether esptool's stub flasher was used, rather than the ROM.
    """

    round_trip: float
    read_bytes: int
    read_bytes_per_second: float
    stub: bool


@dataclass(frozen=True)
class PerformanceProfile:
    """The first seconds of a board.

    Attributes:
        seconds: how long the console was read.
        boots: all boots that were seen; the first one was requested.
        resets: number of boots beyond the requested one.
        crashes: descriptions of the crashes.
        heap_regions, heap_lines: heap information logged by startup code and app.
        link: None if it was not measured.
    """

    seconds: float
    boots: tuple[Boot, ...]
    resets: int
    crashes: tuple[str, ...]
    log: LogRate
    heap_regions: tuple[HeapRegion, ...]
    heap_lines: tuple[HeapLine, ...]
    link: Throughput | None


@operation(Effect.READ, group="diagnostics")
def performance_profile(
    link: Link,
    duration: float = 10.0,
    *,
    boot: bool = True,
    throughput: bool = True,
    until: str | None = None,
    progress: Progress | None = None,
) -> PerformanceProfile:
    """Start the app and measure: phases of the boot, time to app_main, resets, crashes, log rate, heap; and the link.

    Args:
        duration: seconds to read the console, at most 600.
        boot: restart the app first; otherwise only read the console.
        throughput: measure the link to the loader afterwards, which stops the app.
        until: stop earlier at this text.
        progress: called every second with seconds done and total.

    Raises:
        OperationError: if the duration is invalid.
        PortError: if the port is lost. LinkError: if the chip could not be reset.
    """
    check_duration(duration)
    console = link.boot() if boot else link.console
    if not boot:
        console.skip()
    begin = console.position
    begun = time.monotonic()
    console.listen(duration, until, ignore_crashes=True, tick=ticks(progress, duration))
    seconds = time.monotonic() - begun
    lines = console.lines(since=begin if boot else console.line_start(begin))
    profile = _profile(lines, seconds, link.console_baudrate, asked_for=boot)
    return replace(profile, link=_measure_link(link)) if throughput else profile


def check_duration(duration: float) -> None:
    """Raise OperationError for an invalid duration in seconds."""
    if not 0 < duration <= _LONGEST:
        raise OperationError(f"invalid duration: {duration:g} s", hint=f"use more than 0 and at most {_LONGEST:g} s")


def profile_of(lines: Sequence[Line], seconds: float, *, baudrate: int = 115200) -> PerformanceProfile:
    """Return the profile of a console log, without a board; its first boot counts as requested."""
    return _profile(lines, seconds, baudrate, asked_for=True)


def _profile(lines: Sequence[Line], seconds: float, baudrate: int, *, asked_for: bool) -> PerformanceProfile:
    boots = tuple(_boots(lines))
    return PerformanceProfile(
        seconds=round(seconds, 3),
        boots=boots,
        resets=max(len(boots) - asked_for, 0),
        crashes=tuple(_crashes(lines)),
        log=_log_rate(lines, seconds, baudrate),
        heap_regions=tuple(
            HeapRegion(int(match["at"], 16), int(match["size"], 16), match["kind"].strip())
            for line in lines
            if (match := _HEAP_REGION.search(line.text))
        ),
        heap_lines=tuple(
            HeapLine(round(line.time, 3), match["what"].strip().lower(), int(match["size"]))
            for line in lines
            if (match := _HEAP_TOLD.search(line.text))
        ),
        link=None,
    )


# -- boots


def _boots(lines: Sequence[Line]) -> Iterator[Boot]:
    """Yield the boots: each begins with the ROM's banner, or with the reset reason if there is no banner."""
    begins: list[int] = []
    reasons: dict[int, re.Match[str]] = {}
    for number, line in enumerate(lines):
        reason = RESET.search(line.text)
        is_banner = bool(_ROM.search(line.text))
        # A banner and its reset reason, with lines between them, are one boot; so are banners without a reason.
        if is_banner and (not begins or begins[-1] in reasons):
            begins.append(number)
        if reason is not None:
            if not begins or begins[-1] in reasons:
                begins.append(number)
            reasons[begins[-1]] = reason
    for before, begin, end in zip([0, *begins], begins, [*begins[1:], len(lines)], strict=False):
        crashed = next(_crashes(lines[before:begin]), None) is not None
        yield _boot(lines[begin:end], reasons.get(begin), crashed)


def _boot(lines: Sequence[Line], reason: re.Match[str] | None, crashed: bool) -> Boot:
    start = lines[0].time
    found = [("ROM", start, None), *_phase_begins(lines)]
    ends = [begin for _, begin, _ in found[1:]]
    phases = tuple(
        Phase(name, round(begin - start, 4), round(end - begin, 4) if end is not None else None, chip_ms)
        for (name, begin, chip_ms), end in zip(found, [*ends, None], strict=True)
    )
    by_name = {phase.name: phase.begin for phase in phases}
    to_app = by_name.get("app_main", by_name.get("scheduler"))
    after_crash = crashed or (reason is not None and reset_kind(reason) is not None)
    return Boot(round(start, 4), reason[0] if reason else None, after_crash, phases, to_app)


def _phase_begins(lines: Sequence[Line]) -> Iterator[tuple[str, float, int | None]]:
    place = 0
    for name, pattern in _PHASES:
        for number in range(place, len(lines)):
            if pattern.search(lines[number].text):
                stamp = _LOG.search(lines[number].text)
                chip_ms = int(stamp["time"]) if stamp and stamp["time"].isdigit() else None
                yield name, lines[number].time, chip_ms
                place = number
                break


def _crashes(lines: Sequence[Line]) -> Iterator[str]:
    """Yield descriptions of the crashes, one line each."""
    detector = CrashDetector(boot_limit=None)
    for line in lines:
        detector.feed(line.text.encode() + b"\n")
    detector.quiet()
    while (crash := detector.take()) is not None:
        told = decode(crash.text)
        yield f"{told.kind}: {told.reason}"


# -- the log


def _log_rate(lines: Sequence[Line], seconds: float, baudrate: int) -> LogRate:
    sizes = [len(line.text.encode()) + 2 for line in lines]  # including CR and LF
    total = sum(sizes)
    logged = [match for line in lines if (match := _LOG.search(line.text))]
    peak = _peak([line.time for line in lines], sizes)
    return LogRate(
        lines=len(lines),
        bytes=total,
        lines_per_second=round(len(lines) / seconds, 2),
        bytes_per_second=round(total / seconds, 1),
        peak_bytes_per_second=round(peak, 1),
        uart_load=round(peak / (baudrate / _BITS_PER_BYTE), 3),
        levels={_LEVELS[level]: count for level, count in Counter(match["level"] for match in logged).most_common()},
        tags=dict(Counter(match["tag"] for match in logged).most_common(_MOST_TAGS)),
    )


def _peak(times: Sequence[float], sizes: Sequence[int]) -> float:
    """Return bytes per second in the busiest window."""
    most, inside, first = 0, 0, 0
    for number, now in enumerate(times):
        inside += sizes[number]
        while times[first] < now - _WINDOW:
            inside -= sizes[first]
            first += 1
        most = max(most, inside)
    return most / _WINDOW


# -- the link


def _measure_link(link: Link) -> Throughput:
    with_stub = not link.board.uploads_slowly
    with link.session.use("measuring the link", stub=with_stub, flash=True) as esp:
        stub = bool(esp.IS_STUB)
        register = esp.CHIP_DETECT_MAGIC_REG_ADDR
        ask = esp.sync if esp.secure_download_mode else lambda: esp.read_reg(register)
        times: list[float] = []
        for _ in range(_ROUND_TRIPS):
            begun = time.perf_counter()
            ask()
            times.append(time.perf_counter() - begun)
        size = 0 if esp.secure_download_mode else _STUB_READ if stub else _ROM_READ
        begun = time.perf_counter()
        read = len(esp.read_flash(0, size)) if size else 0
        seconds = time.perf_counter() - begun
    return Throughput(round(statistics.median(times), 6), read, round(read / seconds, 1) if read else 0.0, stub)
