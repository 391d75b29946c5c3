"""Operations on the flash chip: its status registers, its SFDP parameters, its real size."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from esptool.targets import CHIP_DEFS
from esptool.util import NotSupportedError

from pytest_esp.errors import OperationError
from pytest_esp.formats.sfdp import Sfdp, parse
from pytest_esp.link.facts import flash_size_of
from pytest_esp.link.link import Link
from pytest_esp.link.logs import Transcript, capture
from pytest_esp.operations.registry import Effect, operation
from pytest_esp.units import format_size

Protection = Literal["none", "some", "all"]

_BUSY, _WRITE_ENABLED, _LOCKED = 0x01, 0x02, 0x80
_QE_IN_1, _QE_IN_2, _COMPLEMENT = 0x40, 0x02, 0x40
_FOUR_PROTECT_BITS = (0xC2, 0x9D)  # Macronix and ISSI: BP3 beside BP0 to BP2, QE in register 1, no complement bit
_VOLTAGE = re.compile(r"Flash voltage set by (?P<source>.+): (?P<voltage>\S+)")
_LINES = {0: "quad", 1: "octal"}


@dataclass(frozen=True)
class FlashStatus:
    """The flash chip's status registers, and what they mean.

    Source: the datasheets of GigaDevice GD25Q and Winbond W25Q, and, where they differ, Macronix MX25L.

    Attributes:
        registers: 1 to 3 (RDSR 0x05, RDSR2 0x35, RDSR3 0x15); a chip without the later ones returns 0 or 0xFF.
        busy: whether a write or an erase is under way.
        write_enabled: whether the next write or erase command would be executed (WEL).
        block_protection: the bits BP0 and above of register 1.
        protection: which part of the array is protected against writes and erases.
        registers_locked: whether the registers themselves are protected (SRP0).
        quad_enabled: whether the four-line modes are enabled (QE).
        voltage: of the flash's supply, if the chip reports it; *voltage_source* is what sets it.
        lines: ``"quad"`` or ``"octal"`` according to eFuse, on chips that support both.
    """

    flash_id: int
    registers: tuple[int, int, int]
    busy: bool
    write_enabled: bool
    block_protection: int
    protection: Protection
    registers_locked: bool
    quad_enabled: bool
    voltage: str | None
    voltage_source: str | None
    lines: str | None


@operation(Effect.READ, group="flash")
def status(link: Link) -> FlashStatus:
    """Return the flash chip's status registers, protection and supply voltage (``ESPLoader.read_status``).

    Raises:
        OperationError: in secure download mode, where the flash bus cannot be accessed.
    """
    with link.session.use("reading the flash status", stub=not link.board.uploads_slowly, flash=True) as esp:
        number = int(esp.flash_id(cache=False))
        packed = int(esp.read_status(3))
        voltage, source = _voltage(esp)
        lines = _LINES.get(esp.flash_type())
    first, second, third = packed.to_bytes(3, "little")
    four_bits = number & 0xFF in _FOUR_PROTECT_BITS
    mask = 0x0F if four_bits else 0x07
    bits = first >> 2 & mask
    return FlashStatus(
        flash_id=number,
        registers=(first, second, third),
        busy=bool(first & _BUSY),
        write_enabled=bool(first & _WRITE_ENABLED),
        block_protection=bits,
        protection=_protection(bits, mask, complement=bool(second & _COMPLEMENT) and not four_bits),
        registers_locked=bool(first & _LOCKED),
        quad_enabled=bool(first & _QE_IN_1 if four_bits else second & _QE_IN_2),
        voltage=voltage,
        voltage_source=source,
        lines=lines,
    )


def _protection(bits: int, mask: int, *, complement: bool) -> Protection:
    if bits == 0:
        return "all" if complement else "none"
    if bits == mask:
        return "none" if complement else "all"
    return "some"


def _voltage(esp: Any) -> tuple[str | None, str | None]:
    """Return the voltage that esptool reports, and what sets it; esptool only prints them."""
    said = Transcript()
    with capture(said):
        try:
            esp.get_flash_voltage()
        except NotSupportedError:
            return None, None
    found = _VOLTAGE.search(said.text)
    return (found["voltage"], found["source"]) if found else (None, None)


@operation(Effect.READ, group="flash")
def sfdp_read(link: Link) -> Sfdp:
    """Return the flash chip's SFDP parameters, parsed (``ESPLoader.read_spiflash_sfdp``).

    Raises:
        OperationError: if it has none, or they are invalid.
    """
    with link.session.use("reading SFDP", stub=not link.board.uploads_slowly, flash=True) as esp:
        return parse(lambda address, size: _sfdp_bytes(esp, address, size))


def _sfdp_bytes(esp: Any, address: int, size: int) -> bytes:
    words = (int(esp.read_spiflash_sfdp(place, 32)) for place in range(address, address + size, 4))
    return b"".join(word.to_bytes(4, "little") for word in words)[:size]


# -- the size

_SIZES = tuple(1 << exponent for exponent in range(18, 24))  # 256 KB to 8 MB: 3 address bytes reach 16 MB
_MARKER = 16
_READ = 0x03
_SAMPLES = 32


@dataclass(frozen=True)
class SizeDetection:
    """The size of the flash according to several sources. Sizes are in bytes; None if a source does not give one.

    Attributes:
        by_id: by the capacity byte of its id, as esptool reads it.
        by_sfdp: by its SFDP density.
        by_wrap: by address wrap-around: a 2 MB chip returns at 2 MB + n the contents of n.
        at_least: lower bound from addresses that do not wrap around.
        wrap_note: how the wrap-around was detected, or why it was not.
        configured: flash_size of boards.toml.
        size: the most reliable of these: by wrap-around if known, else by SFDP, else by id.
        agree: whether the sources agree; those of a relabelled chip do not.
    """

    by_id: int | None
    by_sfdp: int | None
    by_wrap: int | None
    at_least: int | None
    wrap_note: str
    configured: int | None
    size: int | None
    agree: bool


@operation(Effect.READ, group="flash")
def size_detect(link: Link) -> SizeDetection:
    """Return the real size of the flash: by its id, by SFDP, and by where reads wrap around.

    Nothing is written: if the flash is blank, a wrap-around cannot be detected. Flash beyond 16 MB is not checked.

    Raises:
        OperationError: in secure download mode, where the flash bus cannot be accessed.
    """
    with link.session.use("detecting the flash size", stub=not link.board.uploads_slowly, flash=True) as esp:
        by_id = flash_size_of(int(esp.flash_id(cache=False)))
        by_sfdp = _size_by_sfdp(esp)
        by_wrap, at_least, note = _size_by_wrap(esp, CHIP_DEFS[link.session.chip].BOOTLOADER_FLASH_OFFSET)
    exact = {size for size in (by_id, by_sfdp, by_wrap) if size is not None}
    configured = link.board.spec.flash_size
    told = exact | ({configured} if configured else set())
    agree = len(told) <= 1 and all(size >= (at_least or 0) for size in told)
    return SizeDetection(by_id, by_sfdp, by_wrap, at_least, note, configured, by_wrap or by_sfdp or by_id, agree)


def _size_by_sfdp(esp: Any) -> int | None:
    try:
        return parse(lambda address, size: _sfdp_bytes(esp, address, size)).size
    except OperationError:
        return None


def _size_by_wrap(esp: Any, bootloader: int) -> tuple[int | None, int | None, str]:
    """Return the size at which addresses wrap around, a size that is certainly exceeded, and a note."""
    places = (bootloader, 0x8000, 0x9000, 0xE000, 0x10000, 0x20000)
    markers = {place: data for place in places if len(set(data := _bus_read(esp, place, _MARKER))) > 2}
    if not markers:
        return None, None, "bootloader, partition table and app areas are blank: a wrap-around cannot be detected"
    where = ", ".join(f"{place:#x}" for place in markers)
    for size in _SIZES:
        if all(_bus_read(esp, size + place, _MARKER) == data for place, data in markers.items()) and all(
            _bus_read(esp, place, 4) == _bus_read(esp, size + place, 4)
            for place in range(0x100, size, size // _SAMPLES)
        ):
            return size, None, f"the contents of {where} repeat {format_size(size)} further on"
    return None, 2 * _SIZES[-1], f"the contents of {where} do not repeat up to {format_size(2 * _SIZES[-1])}"


def _bus_read(esp: Any, address: int, size: int) -> bytes:
    """Read bytes by the flash's own read command: the loader's command stops at the size that it assumes."""
    words = (
        int(esp.run_spiflash_command(_READ, read_bits=32, addr=place, addr_len=24))
        for place in range(address, address + size, 4)
    )
    return b"".join(word.to_bytes(4, "little") for word in words)
