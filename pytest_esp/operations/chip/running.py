"""Starts the app in flash and captures its output."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pytest_esp.errors import OperationError
from pytest_esp.formats.files import ReadPath, resolve
from pytest_esp.link.boot import start_app
from pytest_esp.link.console import CrashError
from pytest_esp.link.crash import Crash, Kind
from pytest_esp.link.link import Link
from pytest_esp.link.logs import Progress
from pytest_esp.link.match import Pattern
from pytest_esp.operations.chip.reset import reset_reason
from pytest_esp.operations.registry import Effect, operation
from pytest_esp.operations.results import Address

State = Literal["running", "crashed", "boot loop", "not bootable", "silent"]

_PROJECT = re.compile(r"Project name: +(\S.*?)\s*$", re.MULTILINE)
_VERSION = re.compile(r"App version: +(\S.*?)\s*$", re.MULTILINE)
_OFFSET = re.compile(r"Loaded app from partition at offset (0x[0-9a-f]+)")
_BAD_8266 = re.compile(r"^csum err", re.MULTILINE)  # its ROM stops there
# What ROM and bootloader print before the app runs (also at another baud rate, which makes it unreadable).
_BEFORE_THE_APP = re.compile(
    r"(ESP-ROM:|Build:|rst:|ets |SPIWP:|Saved PC:|Core\d Saved PC:|mode:|load:|load 0x|entry |configsip:|clk_drv:"
    r"|boot:|waiting for download|SHA-256 |Valid secure boot|Secure boot|Calculated hash|chksum |tail |csum |~ld"
    r"|v[0-9a-f]{8}$|.*\ufffd"
    r"|[IWEDV] \([^)]*\) (boot|esp_image|bootloader_\w+|qio_mode|secure_boot\w*|flash_encrypt|flash_parts)\b)"
)
_LONGEST = 300.0
_MOST_OUTPUT = 4 * 1024 * 1024  # bytes; more than arrives in the longest time at 115200 baud
PROOF_TIMEOUT = 60.0
_SETTLING = 1.0  # seconds, after which an app that crashes at its start has crashed
_STARTED = re.compile(rb"Loaded app from partition at offset 0x[0-9a-f]+\s|\(\d+\) (?:cpu_start|app_init|main_task): ")


@dataclass(frozen=True)
class FirmwareRun:
    """What the app did after a reset.

    Attributes:
        state: ``running`` if the app printed something, or its bootloader said that it loaded it, and no crash was seen
            while listening; ``silent`` if only ROM and bootloader printed something, or nothing did.
        crash: the crash, decoded as far as possible; None if there was none.
        reason: the reset reason printed by the ROM.
        project, version, offset: of the app, from the boot log; *offset* is that of its partition.
        output: console output since the reset, without ANSI sequences.
        lines: the same, each line with the seconds since the first.
        matched: whether the expected text was seen; None if none was expected.
        seconds: from the reset to the end of listening.
        dropped_bytes: the number of bytes that *output* and *lines* lack at their beginning: they have the last 4 MB.
    """

    state: State
    crash: str | None
    reason: str | None
    project: str | None
    version: str | None
    offset: Address | None
    output: str
    lines: tuple[tuple[float, str], ...]
    matched: bool | None
    seconds: float
    dropped_bytes: int


@operation(Effect.READ, group="chip")
def run_firmware(
    link: Link, wait_seconds: float = 3.0, until: str | None = None, *, progress: Progress | None = None
) -> FirmwareRun:
    """Reset the chip, and return the first output of the app in flash and whether it crashed.

    Args:
        wait_seconds: how long to listen, at most 300 s; a crash ends it earlier.
        until: stop listening at this text.
        progress: called every second with seconds done and total.

    Raises:
        PortError: if the port is lost. LinkError: if the chip could not be reset.
    """
    said, crash, start = _listen(link, wait_seconds, until, reset=True, progress=progress)
    matched = None if until is None or crash is not None else said.matched is not None
    return _run(link, said, crash, start, matched)


def prove_start(link: Link, wait: float = PROOF_TIMEOUT) -> FirmwareRun:
    """Start the app in flash, wait until it was loaded, and listen a moment longer: it may crash at once.

    What an ESP-IDF app prints first is also a proof, as its bootloader may be built without a log.

    Args:
        wait: the timeout for the start, in seconds. A bootloader first hashes the app, and may have to encrypt the
            flash.

    Returns:
        The run; *matched* says whether the app was loaded, *state* what became of it.

    Raises:
        PortError: if the port is lost. LinkError: if the chip was not reset.
    """
    said, crash, start = _listen(link, wait, _STARTED, reset=True)
    matched = crash is None and said.matched is not None
    if matched:
        try:
            link.console.listen(_SETTLING)
        except CrashError as error:
            crash = error.crash
    return _run(link, said, crash, start, matched)


def _run(link: Link, said: ConsoleText, crash: Crash | None, start: int, matched: bool | None) -> FirmwareRun:
    output = link.console.text_since(start)
    state: State = "running" if crash is None else _state(crash.kind)
    if state == "running" and _BAD_8266.search(output):
        state = "not bootable"
    offset = _OFFSET.findall(output)
    return FirmwareRun(
        state="silent" if state == "running" and not (offset or _is_from_an_app(output)) else state,
        crash=crash.describe() if crash is not None else None,
        reason=reset_reason(output),
        project=_last(_PROJECT, output),
        version=_last(_VERSION, output),
        offset=int(offset[-1], 16) if offset else None,
        output=link.console.text_since(start + said.dropped_bytes),
        lines=said.lines,
        matched=matched,
        seconds=said.duration_seconds,
        dropped_bytes=said.dropped_bytes,
    )


@dataclass(frozen=True)
class ConsoleText:
    """Output of an app.

    Attributes:
        lines: without ANSI sequences, each with the seconds since the first.
        matched: the expected text; None if none was expected, or it was not seen.
        crash: the crash, decoded as far as possible; None if there was none.
        duration_seconds: how long the console was read.
        dropped_bytes: the number of bytes that *lines* lack at their beginning: they have the last 4 MB.
    """

    lines: tuple[tuple[float, str], ...]
    matched: str | None
    crash: str | None
    duration_seconds: float
    dropped_bytes: int


@operation(Effect.READ, group="chip")
def monitor(
    link: Link,
    duration_seconds: float = 5.0,
    until: str | None = None,
    *,
    reset: bool = False,
    elf_file: ReadPath | None = None,
    progress: Progress | None = None,
) -> ConsoleText:
    """Return what the app prints for some time, until a text appears, or until a crash.

    Args:
        duration_seconds: how long to listen, at most 300 s.
        until: stop listening at this text.
        reset: restart the app first.
        elf_file: the app's ELF file, to decode a crash; it is remembered for the next crash.
        progress: called every second with seconds done and total.

    Raises:
        PortError: if the port is lost. LinkError: if the chip could not be reset. OperationError: if the duration is
            invalid.
    """
    link.console.elf = resolve(elf_file) if elf_file is not None else link.console.elf
    said, _, _ = _listen(link, duration_seconds, until, reset=reset, progress=progress)
    return said


def _listen(
    link: Link, duration: float, until: Pattern | None, *, reset: bool, progress: Progress | None = None
) -> tuple[ConsoleText, Crash | None, int]:
    """Listen, and return the output, the crash, and the position in the console where it begins."""
    if not 0 < duration <= _LONGEST:
        raise OperationError(f"invalid duration: {duration:g} s", hint=f"use more than 0 and at most {_LONGEST:g} s")
    console = link.console
    begun = time.monotonic()
    if reset:
        start_app(link)
    else:
        console.skip()
    begin = console.position
    matched: str | None = None
    crash: Crash | None = None
    try:
        found = console.listen(duration, until, tick=ticks(progress, duration))
        matched = found.text if found is not None else None
    except CrashError as error:
        crash = error.crash
    if not reset:
        begin = console.line_start(begin)
    kept = max(begin, console.mark() - _MOST_OUTPUT)
    lines = console.lines(since=kept)
    start = lines[0].time if lines else 0.0
    said = tuple((round(line.time - start, 3), line.text) for line in lines)
    description = crash.describe() if crash is not None else None
    seconds = round(time.monotonic() - begun, 3)
    return ConsoleText(said, matched, description, seconds, dropped_bytes=kept - begin), crash, begin


def _is_from_an_app(output: str) -> bool:
    lines = filter(None, map(str.strip, output.splitlines()))
    return any(not _BEFORE_THE_APP.match(line) for line in lines)


def ticks(progress: Progress | None, duration: float) -> Callable[[], None] | None:
    """Return a function that reports to *progress* how many of *duration* seconds have passed."""
    if progress is None:
        return None
    begun, total = time.monotonic(), max(round(duration), 1)

    def tick() -> None:
        progress(min(round(time.monotonic() - begun), total), total)

    return tick


def _state(kind: Kind) -> State:
    if kind is Kind.BOOT_LOOP:
        return "boot loop"
    return "not bootable" if kind in (Kind.NOT_BOOTABLE, Kind.DOWNLOAD_MODE) else "crashed"


def _last(pattern: re.Pattern[str], text: str) -> str | None:
    found = pattern.findall(text)
    return found[-1] if found else None
