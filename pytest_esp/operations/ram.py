"""Programs in RAM: loaded by the ROM, started, listened to; the flash stays as it is."""

from __future__ import annotations

import os
import re
import secrets
import struct
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from esptool.targets import CHIP_DEFS
from esptool.util import FatalError

from pytest_esp.errors import FirmwareError, OperationError
from pytest_esp.link.console import ConsoleError, CrashError
from pytest_esp.link.link import Link
from pytest_esp.names import nearest
from pytest_esp.operations.chip import answer_only
from pytest_esp.operations.images import chip_of
from pytest_esp.operations.registry import Effect, file_operation, operation

_ELF = b"\x7fELF"
_IN_FLASH = {"IROM", "DROM"}  # names in the memory maps of esptool's chips: what the cache shows of the flash


# -- files


@dataclass(frozen=True)
class RamImage:
    """A program for RAM.

    Attributes:
        entry: the address at which it begins.
        segments: address and size in bytes of each part.
        path: the file it is in; None if it was given as bytes.
    """

    chip: str
    entry: int
    segments: tuple[tuple[int, int], ...]
    path: Path | None


@file_operation(group="chip")
def elf_to_ram_image(
    elf_file: str | os.PathLike[str], chip: str, output_file: str | os.PathLike[str], *, overwrite: bool = False
) -> RamImage:
    """Make an image for `load_ram` from an ELF file, all of whose segments lie in RAM (``esptool elf2image``).

    Args:
        elf_file: the program as its linker made it.
        chip: a name of ``esptool.CHIP_LIST``.
        output_file: the image.
        overwrite: write over a file that is there.

    Raises:
        FirmwareError: if it is no ELF file, or not for this chip's RAM.
        OperationError: if the file exists, or there is no such chip.
    """
    _check_chip_name(chip)
    target = Path(output_file)
    if target.exists() and not overwrite:
        raise OperationError(f"{target} exists", hint="overwrite it by overwrite=True, or give another name")
    data = _read(Path(elf_file))
    if not data.startswith(_ELF):
        raise FirmwareError(f"{elf_file} is no ELF file")
    image = _converted(data, chip, str(elf_file))
    parsed = _parsed(image, chip, str(elf_file))
    unfinished = target.with_name(target.name + ".part")
    unfinished.write_bytes(image)
    unfinished.replace(target)
    return RamImage(chip, parsed.entrypoint, _places(parsed), target)


def _check_chip_name(chip: str) -> None:
    if chip not in CHIP_DEFS:
        raise OperationError(f"there is no chip {chip!r}", hint=f"nearest: {nearest(chip, CHIP_DEFS)}")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise FirmwareError(f"{path} cannot be read: {error.strerror}") from error


def _converted(elf: bytes, chip: str, source: str) -> bytes:
    from esptool import cmds

    from pytest_esp.link.logs import Transcript, capture

    try:
        with capture(Transcript()):
            image = cmds.elf2image(elf, chip)
    except Exception as error:  # esptool lets errors of struct and of its own out, for files that are cut or strange
        raise FirmwareError(f"{source} cannot be made an image for the {chip}: {error}") from error
    if not isinstance(image, bytes):
        raise FirmwareError(f"{source} makes two images", hint="programs for RAM have no part in flash")
    return image


def _parsed(data: bytes, chip: str, source: str) -> Any:
    """Return an image as esptool sees it (``BaseFirmwareImage``).

    Raises:
        FirmwareError: if it is none, is for another chip, or has parts in flash.
    """
    from esptool.bin_image import LoadFirmwareImage

    made_for = chip_of(data)
    if made_for is not None and chip not in (made_for, "esp8266"):
        raise FirmwareError(f"{source} is an image for the {made_for}, not for the {chip}; nothing was loaded")
    try:
        image: Any = LoadFirmwareImage(chip, data)
    except (FatalError, struct.error, IndexError, TypeError) as error:
        raise FirmwareError(f"{source} is no image for the {chip}: {error}") from error
    if image.checksum != image.calculate_checksum():
        raise FirmwareError(f"{source} is damaged: its checksum is wrong")
    for segment in image.segments:
        kinds = set(segment.get_memory_type(image))
        if not kinds or (kinds & _IN_FLASH and "IRAM" not in kinds):
            raise FirmwareError(
                f"{source} is no program for RAM: {len(segment.data)} bytes belong to {segment.addr:#010x}",
                hint="flash an app, or link it for RAM only",
            )
    return image


def _places(image: Any) -> tuple[tuple[int, int], ...]:
    return tuple((segment.addr, len(segment.data)) for segment in image.segments)


# -- loading


@dataclass(frozen=True)
class RamRun:
    """A program that was loaded into RAM and started.

    Attributes:
        image: what it is.
        bytes_loaded: of all segments.
        output: what it said in the time that it had.
        matched: whether the text that was waited for came; None if none was.
        seconds: for loading and listening.
    """

    image: RamImage
    bytes_loaded: int
    output: str
    matched: bool | None
    seconds: float


@operation(Effect.WRITE, group="chip")
def load_ram(
    link: Link, firmware: str | os.PathLike[str] | bytes, wait: float = 1.0, until: str | None = None
) -> RamRun:
    """Load a program into RAM, start it, and return what it says first. The flash stays as it is.

    It runs until the next reset, with its console on this link. Source: ``esptool.cmds.load_ram``.

    Args:
        firmware: an image whose segments lie in RAM only, or an ELF file of such a program.
        wait: seconds to listen.
        until: text that ends the listening.

    Raises:
        FirmwareError: if it is no program for this chip's RAM.
        OperationError: if the ROM does not take it (secure download mode).
        LinkError: if the chip does not answer.
        CrashError: if the program crashes.
    """
    begun = time.monotonic()
    image, heard = _load(link, firmware)
    matched = _listen(link, until, wait)
    size = sum(size for _, size in image.segments)
    return RamRun(image, size, heard(), matched, time.monotonic() - begun)


def _load(link: Link, firmware: str | os.PathLike[str] | bytes) -> tuple[RamImage, Callable[[], str]]:
    """Load and start; return the image, and a function that returns what the program has said so far."""
    path = None if isinstance(firmware, bytes) else Path(firmware)
    source = str(path) if path else "the program"
    data = firmware if isinstance(firmware, bytes) else _read(Path(firmware))
    session = link.session
    if session.is_stub:
        session.drop()  # programs lie where the stub lies
    with session.use(f"loading {source} into RAM", stub=False) as esp:
        chip = session.chip
        if esp.secure_download_mode:
            raise OperationError("in secure download mode the ROM loads no programs", hint="flash an app instead")
        image = _parsed(_converted(data, chip, source) if data.startswith(_ELF) else data, chip, source)
        places = _places(image)
        for segment in image.segments:
            _send(esp, segment.addr, segment.data)
        said = answer_only(esp, esp.ESP_CMDS["MEM_END"], struct.pack("<II", 0, image.entrypoint))
        console = link.console
        console.skip()
        mark = console.mark()
    session.drop()  # the program has the chip now, and the console the wire
    first = said.decode("utf-8", "replace")
    return RamImage(chip, image.entrypoint, places, path), lambda: first + console.text_since(mark)


def _send(esp: Any, address: int, data: bytes) -> None:
    block = esp.ESP_RAM_BLOCK
    esp.mem_begin(len(data), -(-len(data) // block), block, address)
    for number, start in enumerate(range(0, len(data), block)):
        esp.mem_block(data[start : start + block], number)


def _listen(link: Link, until: str | None, wait: float) -> bool | None:
    if until is None:
        with suppress(_SilenceError):
            _expect(link, "\0\0", wait)  # no text: until the time is over, or it crashes
        return None
    try:
        _expect(link, until, wait)
    except _SilenceError:
        return False
    return True


class _SilenceError(Exception):
    """What was waited for did not come."""


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
    """One test: its name, whether it passed, and its figures as the program gave them."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class SelfTest:
    """What the self-test says of a chip.

    Attributes:
        passed: whether all tests did, and the program said so at its end.
        tests: ram, crc, timer and uart; ``code`` is ours: the program's CRC of itself against what was sent.
        image: the program.
        output: all that it said.
        seconds: for loading and running.
    """

    passed: bool
    tests: tuple[SelfTestItem, ...]
    image: RamImage
    output: str
    seconds: float


SELF_TEST_CHIPS = ("esp32", "esp32c3")
"""The chips that the package has a self-test for."""

_READY = "uart: send a line"
_NOT_RUN = "machine code is not run"
_ITEM = re.compile(r"^(ram|crc|timer|uart): (PASS|FAIL) ?(.*?)\r?$", re.MULTILINE)
_CODE = re.compile(r"code 0x(\w{8})\.\.0x(\w{8}) 0x(\w{8})")
_END = re.compile(rb"^self-test: (PASS|FAIL) \d+ of \d+\r?$", re.MULTILINE)


def self_test_image(chip: str) -> bytes:
    """Return the self-test for *chip*, as it was built from the source beside it.

    Raises:
        OperationError: if there is none.
    """
    if chip not in SELF_TEST_CHIPS:
        raise OperationError(
            f"there is no self-test for the {chip}",
            hint=f"for {', '.join(SELF_TEST_CHIPS)} there is; load a program of your own with load_ram",
        )
    return (files("pytest_esp.operations") / "selftest" / f"{chip}.bin").read_bytes()


@operation(Effect.WRITE, group="chip")
def self_test(link: Link, wait: float = 10.0) -> SelfTest:
    """Load a small program into RAM that tests RAM, CRC, timer and UART (both ways), and return what it found.

    The flash stays as it is. A simulated chip runs no machine code: its app class has to play the program.

    Args:
        wait: seconds that the tests have.

    Raises:
        OperationError: if there is none for this chip, it says nothing, or the board runs no machine code.
        LinkError: if the chip does not answer; CrashError: if the program crashes.
    """
    begun = time.monotonic()
    with link.session.use("self-test", stub=False):
        data = self_test_image(link.session.chip)
    image, heard = _load(link, data)
    try:
        _expect(link, [_READY, _NOT_RUN], wait)
        if _NOT_RUN in heard():
            raise OperationError(
                "this simulated chip runs no machine code",
                hint="run it on QEMU or a real board, or give the chip an app class that plays the program",
            )
        line = secrets.token_hex(32)
        link.console.write(line + "\n")
        _expect(link, _END, wait)
    except _SilenceError:
        output = heard().strip()
        raise OperationError(
            f"the self-test did not end within {wait:g} s",
            details={"output": output},
            hint=f"it said {output[-200:]!r}" if output else "nothing came: is the console on this port?",
        ) from None
    output = heard()
    tests = _tests(output, line, data, image.chip)
    ended_well = re.search(r"^self-test: PASS", output, re.MULTILINE) is not None
    passed = ended_well and all(test.passed for test in tests) and len(tests) == 5
    return SelfTest(passed, tests, image, output, time.monotonic() - begun)


def _tests(output: str, line: str, image: bytes, chip: str) -> tuple[SelfTestItem, ...]:
    """Return what the program says, with what it cannot judge itself looked at here."""
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
    for segment in _parsed(image, chip, "the self-test").segments:
        offset = address - segment.addr
        if offset >= 0 and offset + size <= len(segment.data):
            return segment.data[offset : offset + size]
    return None
