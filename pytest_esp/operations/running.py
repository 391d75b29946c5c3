"""The app in flash: started, and listened to."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Literal

from pytest_esp.errors import OperationError
from pytest_esp.link.console import ConsoleError, CrashError
from pytest_esp.link.crash import Kind
from pytest_esp.link.link import Link
from pytest_esp.operations.chip import reset_reason
from pytest_esp.operations.registry import Effect, operation

State = Literal["running", "crashed", "boot loop", "not bootable", "silent"]

_PROJECT = re.compile(r"Project name: +(\S.*?)\s*$", re.MULTILINE)
_VERSION = re.compile(r"App version: +(\S.*?)\s*$", re.MULTILINE)
_OFFSET = re.compile(r"Loaded app from partition at offset (0x[0-9a-f]+)")
_BAD_8266 = re.compile(r"^csum err", re.MULTILINE)  # its ROM stops there
_LONGEST = 300.0


@dataclass(frozen=True)
class FirmwareRun:
    """What the app did after a reset.

    Attributes:
        state: ``running`` if it said something and nothing went wrong in the time that it had.
        crash: what went wrong, decoded as far as can be; None if nothing did.
        reason: the reset reason that the ROM printed.
        project, version, offset: of the app, from the boot log; *offset* is that of its partition.
        output: the console, from the reset on, without ANSI sequences.
        lines: the same, each with the seconds since the first of them.
        matched: whether the text that was waited for came; None if none was.
        seconds: from the reset to the end of listening.
    """

    state: State
    crash: str | None
    reason: str | None
    project: str | None
    version: str | None
    offset: int | None
    output: str
    lines: tuple[tuple[float, str], ...]
    matched: bool | None
    seconds: float


@operation(Effect.READ, group="chip")
def run_firmware(link: Link, wait: float = 3.0, until: str | None = None) -> FirmwareRun:
    """Start the app in flash by a reset and return its first output, and whether it crashed.

    Args:
        wait: seconds to listen, 300 at most; a crash ends it.
        until: text that ends it.

    Raises:
        PortError: if the port is lost. LinkError: if its lines cannot be driven.
    """
    if not 0 < wait <= _LONGEST:
        raise OperationError(f"{wait:g} s are too short or too long", hint=f"up to {_LONGEST:g} s")
    console = link.console
    console.skip()
    mark, first = console.mark(), len(console.lines())
    begun = time.monotonic()
    link.reset(bootloader=False)
    crash: str | None = None
    matched: bool | None = None
    state: State = "running"
    try:
        console.expect(until if until is not None else "\0\0", wait)
        matched = True
    except CrashError as error:
        crash, state = error.crash.describe(), _state(error.crash.kind)
    except ConsoleError:
        matched = None if until is None else False
    output = console.text_since(mark)
    lines = console.lines()[first:]
    start = lines[0].time if lines else 0.0
    if state == "running" and _BAD_8266.search(output):
        state = "not bootable"
    offset = _OFFSET.findall(output)
    return FirmwareRun(
        state if output.strip() else "silent",
        crash,
        reset_reason(output),
        _last(_PROJECT, output),
        _last(_VERSION, output),
        int(offset[-1], 16) if offset else None,
        output,
        tuple((round(line.time - start, 3), line.text) for line in lines),
        matched,
        time.monotonic() - begun,
    )


def _state(kind: Kind) -> State:
    if kind is Kind.BOOT_LOOP:
        return "boot loop"
    return "not bootable" if kind is Kind.NOT_BOOTABLE else "crashed"


def _last(pattern: re.Pattern[str], text: str) -> str | None:
    found = pattern.findall(text)
    return found[-1] if found else None
