"""Loads programs into RAM, starts them and captures their output; the flash is not changed."""

from __future__ import annotations

import os
import re
import secrets
import struct
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_esp.errors import OperationError
from pytest_esp.formats.elf import is_elf, parse_elf
from pytest_esp.formats.files import ReadPath, read_file
from pytest_esp.link.console import ConsoleError, CrashError
from pytest_esp.link.link import Link
from pytest_esp.link.logs import Progress
from pytest_esp.names import ChipName
from pytest_esp.operations.chip.reset import answer_only
from pytest_esp.operations.chip.running import ticks
from pytest_esp.operations.firmware.ram_image import RamImage, loadable, ram_image_of
from pytest_esp.operations.registry import Effect, operation

# -- loading


@dataclass(frozen=True)
class RamRun:
    """A program that was loaded into RAM and started.

    Attributes:
        image: the program image.
        bytes_loaded: total size of the segments.
        output: what it printed while listening.
        matched: whether the expected text was seen; None if none was expected.
        seconds: time for loading and listening.
    """

    image: RamImage
    bytes_loaded: int
    output: str
    matched: bool | None
    seconds: float


@operation(Effect.WRITE, group="chip")
def load_ram(
    link: Link,
    firmware: ReadPath | bytes,
    wait_seconds: float = 1.0,
    until: str | None = None,
    *,
    progress: Progress | None = None,
) -> RamRun:
    """Load a program into RAM, start it, and return its first output. The flash is not changed.

    It runs until the next reset, with its console on this port. Source: ``esptool.cmds.load_ram``.

    Args:
        firmware: an image with segments in RAM only, or an ELF file of such a program.
        wait_seconds: how long to listen.
        until: stop listening at this text.
        progress: called every second with seconds done and total.

    Raises:
        FirmwareError: if it is not a program for this chip's RAM.
        OperationError: if the ROM does not accept it (secure download mode).
        LinkError: if the chip does not answer.
        CrashError: if the program crashes.
    """
    begun = time.monotonic()
    image, heard = _load(link, firmware)
    found = link.console.listen(wait_seconds, until, tick=ticks(progress, wait_seconds))
    matched = None if until is None else found is not None
    return RamRun(
        image=image,
        bytes_loaded=sum(segment.size for segment in image.segments),
        output=heard(),
        matched=matched,
        seconds=round(time.monotonic() - begun, 3),
    )


def _load(link: Link, firmware: str | os.PathLike[str] | bytes) -> tuple[RamImage, Callable[[], str]]:
    """Load and start; return the image, and a function that returns the program's output so far."""
    path = None if isinstance(firmware, bytes) else Path(firmware)
    source = str(path) if path else "the program"
    data = firmware if isinstance(firmware, bytes) else read_file(firmware, "program")
    session = link.session
    if session.is_stub:
        session.drop()  # programs use the memory of the stub
    with session.use(f"loading {source} into RAM", stub=False) as esp:
        chip = session.chip
        if esp.secure_download_mode:
            raise OperationError("programs cannot be loaded in secure download mode", hint="flash an app instead")
        image = loadable(ram_image_of(parse_elf(data, source), chip) if is_elf(data) else data, chip, source)
        for segment in image.segments:
            _send(esp, segment.addr, segment.data)
        said = answer_only(esp, esp.ESP_CMDS["MEM_END"], struct.pack("<II", 0, image.entrypoint))
        console = link.console
        console.skip()
        mark = console.mark()
    session.drop()  # the program runs now, and the console reads the port
    link.note_program()
    first = said.decode("utf-8", "replace")
    return RamImage.of(image, chip, path), lambda: first + console.text_since(mark)


def _send(esp: Any, address: int, data: bytes) -> None:
    block = esp.ESP_RAM_BLOCK
    esp.mem_begin(len(data), -(-len(data) // block), block, address)
    for number, start in enumerate(range(0, len(data), block)):
        esp.mem_block(data[start : start + block], number)


class _SilenceError(Exception):
    """The expected text was not received."""


def _expect(link: Link, pattern: Any, wait: float) -> Any:
    try:
        return link.console.expect(pattern, wait)
    except CrashError:
        raise
    except ConsoleError as error:
        raise _SilenceError from error


# -- the self-test


@dataclass(frozen=True)
class SelfTestItem:
    """One test: its name, whether it passed, and its figures as printed by the program."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class SelfTest:
    """The result of the self-test.

    Attributes:
        passed: whether all tests passed, and the program reported so at its end.
        tests: ram, crc, timer and uart; ``code`` compares the program's CRC of its own code with what was sent.
        image: the program.
        output: everything it printed.
        seconds: time for loading and running.
    """

    passed: bool
    tests: tuple[SelfTestItem, ...]
    image: RamImage
    output: str
    seconds: float


SELF_TEST_CHIPS = ("esp32", "esp32c3")
"""The chips that the package contains a self-test for."""

_READY = "uart: send a line"
_NOT_RUN = "machine code is not run"
_ITEM = re.compile(r"^(ram|crc|timer|uart): (PASS|FAIL) ?(.*?)\r?$", re.MULTILINE)
_CODE = re.compile(r"code 0x(\w{8})\.\.0x(\w{8}) 0x(\w{8})")
_END = re.compile(rb"^self-test: (PASS|FAIL) \d+ of \d+\r?$", re.MULTILINE)


def self_test_image(chip: str) -> bytes:
    """Return the self-test for *chip*, built from the source beside it.

    Raises:
        OperationError: if there is none.
    """
    if chip not in SELF_TEST_CHIPS:
        raise OperationError(
            f"there is no self-test for the {chip}",
            hint=f"use a supported chip ({', '.join(SELF_TEST_CHIPS)}), or load a program of your own into RAM",
        )
    return (Path(__file__).with_name("selftest") / f"{chip}.bin").read_bytes()


@operation(Effect.WRITE, group="chip")
def self_test(link: Link, wait_seconds: float = 10.0, chip_type: ChipName | None = None) -> SelfTest:
    """Load a small program into RAM that tests RAM, CRC, timer and UART (both directions), and return the results.

    The flash is not changed. A simulated chip does not run machine code: its app class must emulate the program.

    Args:
        wait_seconds: maximum duration of the tests in seconds.
        chip_type: fail if the board is another chip.

    Raises:
        OperationError: if there is no self-test for this chip, it is not *chip_type*, it prints nothing, or the board
            does not run machine code.
        LinkError: if the chip does not answer. CrashError: if the program crashes.
    """
    begun = time.monotonic()
    if chip_type is not None:
        self_test_image(chip_type)  # raises if there is none
        _check_is(chip_type, link.board.spec.chip)
    with link.session.use("self-test", stub=False):
        _check_is(chip_type, link.session.chip)
        data = self_test_image(link.session.chip)
    image, heard = _load(link, data)
    try:
        _expect(link, [_READY, _NOT_RUN], wait_seconds)
        if _NOT_RUN in heard():
            raise OperationError(
                "this simulated chip does not run machine code",
                hint="use QEMU or a real board, or give the chip an app class that emulates the program",
            )
        line = secrets.token_hex(32)
        link.console.write(line + "\n")
        _expect(link, _END, wait_seconds)
    except _SilenceError:
        output = heard().strip()
        raise OperationError(
            f"self-test timed out after {wait_seconds:g} s",
            details={"output": output},
            hint=f"last output: {output[-200:]!r}" if output else "check that the console is on this port",
        ) from None
    output = heard()
    tests = _tests(output, line, data, image.chip_type)
    ended_well = re.search(r"^self-test: PASS", output, re.MULTILINE) is not None
    passed = ended_well and all(test.passed for test in tests) and len(tests) == 5
    return SelfTest(passed, tests, image, output, time.monotonic() - begun)


def _check_is(chip_type: str | None, found: str) -> None:
    if chip_type is not None and found not in ("auto", chip_type):
        raise OperationError(f"this board is an {found}, not an {chip_type}")


def _tests(output: str, line: str, image: bytes, chip: str) -> tuple[SelfTestItem, ...]:
    """Return the program's results, plus those that only the host can judge."""
    found = {name: (verdict == "PASS", detail) for name, verdict, detail in _ITEM.findall(output)}
    tests: list[SelfTestItem] = []
    for name, (passed, detail) in found.items():
        expected = f"{len(line)} bytes {zlib.crc32(line.encode()):#010x}"
        right = passed and (name != "uart" or detail == expected)
        tests.append(SelfTestItem(name, right, detail if right or name != "uart" else f"{detail}, sent {expected}"))
    if code := _CODE.search(found["crc"][1] if "crc" in found else ""):
        start, end, said = (int(number, 16) for number in code.groups())
        sent = _memory(image, chip, start, end - start)
        right = sent is not None and zlib.crc32(sent) == said
        tests.append(SelfTestItem("code", right, f"{end - start} bytes from {start:#010x}"))
    return tuple(tests)


def _memory(image: bytes, chip: str, address: int, size: int) -> bytes | None:
    for segment in loadable(image, chip, "the self-test").segments:
        offset = address - segment.addr
        if offset >= 0 and offset + size <= len(segment.data):
            return segment.data[offset : offset + size]
    return None
