"""Finds faster or larger settings: the baud rate, and the flash settings in the bootloader's header."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from esptool.targets import CHIP_DEFS

from pytest_esp.errors import FirmwareError, LinkError, OperationError, PortError
from pytest_esp.formats.boot_image import HEADER_SIZE, ImageError, read_image
from pytest_esp.formats.images import chip_of, is_of_8266
from pytest_esp.formats.regions import SECTOR
from pytest_esp.link.link import Link
from pytest_esp.operations.chip.identity import change_baudrate
from pytest_esp.operations.flash import reading, writing
from pytest_esp.operations.flash.access import Over
from pytest_esp.operations.flash.flash_chip import sfdp_read, size_detect
from pytest_esp.operations.flash.layout import FlashOwner, owner_of
from pytest_esp.operations.registry import Effect, operation
from pytest_esp.units import format_size, parse_size

_SAMPLE = 0x10000
RATES = (115200, 460800, 921600)
_MODES = ("qio", "qout", "dio", "dout")  # by the number in the header
_FASTEST = 80  # MHz; higher frequencies need more than a number in the header
_LARGEST_BOOTLOADER = 0x20000
_HASH_FLAG, _HASH_SIZE = 23, 32

How = Literal["apply", "rebuild"]
"""How to make a change: by *apply* here, or in the configuration of the build."""


@dataclass(frozen=True)
class RateMeasure:
    """The read speed at a baud rate in bytes per second; None, and the reason, if the chip did not answer at it."""

    baudrate: int
    bytes_per_second: float | None
    error: str | None


@dataclass(frozen=True)
class BootHeader:
    """The flash settings in the bootloader's header. *size* is in bytes; None if a number has no meaning."""

    address: int
    mode: str | None
    frequency: str | None
    size: int | None


@dataclass(frozen=True)
class Change:
    """A suggested change: the setting, its value, a better value, the reason, and how to change it."""

    setting: Literal["baud", "size", "frequency", "mode"]
    now: str
    better: str
    why: str
    how: How


@dataclass(frozen=True)
class Optimization:
    """Measurements, and the changes they suggest.

    Attributes:
        best_baudrate: the fastest of those at which the chip answered.
        header: of the bootloader; None if there is no bootloader, or it cannot be read (encrypted).
        flash_size: in bytes, see `flash_chip.size_detect`.
        applied: the settings that were changed.
    """

    rates: tuple[RateMeasure, ...]
    best_baudrate: int | None
    header: BootHeader | None
    flash_size: int | None
    changes: tuple[Change, ...]
    applied: tuple[str, ...]


@operation(Effect.WRITE, group="flash", without={"apply": Effect.READ})
def optimize(link: Link, baudrates: Sequence[int] = RATES, *, apply: bool = False, over: Over = "auto") -> Optimization:
    """Measure how fast flash is read, check the bootloader's flash settings, and suggest changes.

    Args:
        baudrates: baud rates to read 64 KB at; afterwards the previous rate is restored.
        apply: rewrite the bootloader with the better size, frequency and mode, and a new hash. The baud rate is only
            suggested: set it in boards.toml.
        over: "wire" reads and writes through the chip even if its flash file could be used (QEMU).

    Raises:
        RefusedError: with *apply*, if the board does not allow "write".
        FirmwareError: with *apply*, if the bootloader is damaged, or secure boot or flash encryption is enabled.
        OperationError: if a baud rate is invalid.
    """
    board = owner_of(link, over)
    rates = _measure(link, baudrates)
    size = size_detect(link).size
    offset = CHIP_DEFS[board.chip].BOOTLOADER_FLASH_OFFSET
    header = _header(reading.read(link, offset, HEADER_SIZE, over=over).data, board.chip, offset)
    changes = (*_better_rate(link, rates), *(_better_header(link, header, size) if header else ()))
    mine = [change for change in changes if change.how == "apply"]
    if apply and mine:
        _apply(link, mine, board, offset, over)
    return Optimization(
        rates=rates,
        best_baudrate=_best(rates),
        header=header,
        flash_size=size,
        changes=changes,
        applied=tuple(change.setting for change in mine) if apply else (),
    )


# -- the wire


def _measure(link: Link, baudrates: Sequence[int]) -> tuple[RateMeasure, ...]:
    session = link.session
    with session.use("measuring reads") as esp:
        if not esp.IS_STUB:
            return ()  # the ROM reads 64 bytes at a time: no baud rate makes that fast
        before = int(session.port.baudrate)
    try:
        return tuple(_measure_one(link, rate) for rate in baudrates)
    finally:
        session.change_baudrate(before)


def _measure_one(link: Link, rate: int) -> RateMeasure:
    try:
        change_baudrate(link, rate)
        with link.session.use(f"reading at {rate} baud", flash=True) as esp:
            begun = time.perf_counter()
            esp.read_flash(0, _SAMPLE)  # verified by the MD5 that the stub sends
            return RateMeasure(rate, round(_SAMPLE / (time.perf_counter() - begun), 1), None)
    except (LinkError, PortError) as error:
        return RateMeasure(rate, None, error.message)


def _best(rates: Sequence[RateMeasure]) -> int | None:
    speeds = {rate.baudrate: rate.bytes_per_second for rate in rates if rate.bytes_per_second is not None}
    return max(speeds, key=lambda rate: speeds[rate]) if speeds else None


def _better_rate(link: Link, rates: Sequence[RateMeasure]) -> Sequence[Change]:
    """Suggest a baud rate if it is at least a tenth faster than that of boards.toml; less may be chance."""
    speeds = {rate.baudrate: rate.bytes_per_second for rate in rates if rate.bytes_per_second is not None}
    best, configured = _best(rates), link.board.spec.baud
    if best is None or link.board.virtual or speeds[best] < 1.1 * speeds.get(configured, 0.0):
        return ()
    why = f"it reads 64 KB at {speeds[best] / 1024:.0f} KB/s"
    return (Change("baud", str(configured), str(best), why, "rebuild"),) if best != configured else ()


# -- the bootloader's header


def _header(head: bytes, chip: str, address: int) -> BootHeader | None:
    if not (is_of_8266(head) if chip == "esp8266" else chip_of(head)):
        return None
    rom = CHIP_DEFS[chip]
    sizes = {number: name for name, number in rom.FLASH_SIZES.items()}
    # One number may have two meanings: the one for 40 MHz gives 80 MHz on the ESP32-C6.
    frequencies = {number: name for name, number in reversed(rom.FLASH_FREQUENCY.items())}
    size = sizes.get(head[3] & 0xF0)
    return BootHeader(
        address=address,
        mode=_MODES[head[2]] if head[2] < len(_MODES) else None,
        frequency=frequencies.get(head[3] & 0x0F),
        size=_bytes_of(size) if size else None,
    )


def _bytes_of(name: str) -> int:
    """Return the size in bytes for one of esptool's names: ``"4MB"``, or ``"2MB-c1"`` of an ESP8266."""
    return parse_size(name.partition("-")[0])


def _better_header(link: Link, header: BootHeader, size: int | None) -> Sequence[Change]:
    rom = CHIP_DEFS[link.session.chip]
    found: list[Change] = []
    now = format_size(header.size) if header.size else "unknown"
    if size and size != header.size:
        why = (
            "the bootloader does not start if the header states more than the real size"
            if header.size and header.size > size
            else "the flash beyond the stated size is not used"
        )
        how: How = "apply" if format_size(size) in rom.FLASH_SIZES else "rebuild"
        found.append(Change("size", now, format_size(size), why, how))
    fastest = max((name for name in rom.FLASH_FREQUENCY if _mhz(name) <= _FASTEST), key=_mhz)
    if header.frequency and _mhz(header.frequency) < _mhz(fastest):
        why = "code and data are read from flash faster; boards with long traces to the flash may need the lower one"
        found.append(Change("frequency", header.frequency, fastest, why, "apply"))
    found += _better_mode(link, header)
    return found


def _mhz(frequency: str) -> int:
    """Return the frequency in MHz for one of esptool's names: ``"40m"``, ``"26m"``."""
    number = re.match(r"\d+", frequency)
    return int(number[0]) if number else 0


def _better_mode(link: Link, header: BootHeader) -> Sequence[Change]:
    try:
        lines = {read.lines for read in sfdp_read(link).fast_reads}
    except OperationError:
        return ()
    found: list[Change] = []
    if header.mode == "dout" and "1-2-2" in lines:
        found.append(Change("mode", "dout", "dio", "the flash also accepts addresses on two lines", "apply"))
    if header.mode in ("dio", "dout") and "1-4-4" in lines:
        why = (
            "the flash reads on four lines; if they are wired, set CONFIG_ESPTOOLPY_FLASHMODE_QIO: the bootloader "
            "then enables them itself, and its header stays dio"
        )
        found.append(Change("mode", header.mode, "qio", why, "rebuild"))
    return found


# -- applying


def _apply(link: Link, changes: Sequence[Change], board: FlashOwner, offset: int, over: Over) -> None:
    with link.session.use("reading whether secure boot is on", stub=False) as esp:
        signed = bool(esp.get_secure_boot_enabled())
    if signed or board.flash_encryption:
        raise FirmwareError(
            "secure boot or flash encryption is enabled: a modified bootloader would not start",
            hint="nothing was written; build the bootloader with these settings and sign it",
        )
    room = reading.read(link, offset, min(_LARGEST_BOOTLOADER, board.flash_size - offset), over=over).data
    writing.write(link, _changed(room, changes, board.chip), offset, over=over)


def _changed(room: bytes, changes: Sequence[Change], chip: str) -> bytes:
    """Return the bootloader at the start of *room* with new flash settings and hash, in whole sectors.

    Raises:
        FirmwareError: if it is damaged.
    """
    extended = chip != "esp8266"
    try:
        image = read_image(lambda place, size: room[place : place + size], 0, len(room), extended=extended)
    except ImageError as error:
        raise FirmwareError(
            f"the bootloader is damaged: {error}", hint="nothing was written; flash it again"
        ) from error
    data = bytearray(room[: -(-image.size // SECTOR) * SECTOR])
    rom = CHIP_DEFS[chip]
    for change in changes:
        if change.setting == "mode":
            data[2] = _MODES.index(change.better)
        elif change.setting == "size":
            data[3] = data[3] & 0x0F | rom.FLASH_SIZES[change.better]
        elif change.setting == "frequency":
            data[3] = data[3] & 0xF0 | rom.FLASH_FREQUENCY[change.better]
    if extended and data[_HASH_FLAG]:
        end = image.size - _HASH_SIZE
        data[end : image.size] = hashlib.sha256(data[:end]).digest()
    return bytes(data)
