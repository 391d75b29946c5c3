"""Operations on the flash chip behind the chip: what it says of itself, and what is true of that."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from esptool.targets import CHIP_DEFS
from esptool.util import NotSupportedError

from pytest_esp.errors import OperationError
from pytest_esp.formats.sfdp import Sfdp, parse
from pytest_esp.link.link import Link
from pytest_esp.link.logs import Transcript, capture
from pytest_esp.operations.chip.identity import flash_size_of
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
    """The status registers of the flash chip, and what they mean.

    Source: the datasheets of GigaDevice GD25Q and Winbond W25Q, and, where they differ, Macronix MX25L.

    Attributes:
        registers: 1 to 3 (RDSR 0x05, RDSR2 0x35, RDSR3 0x15); a chip without the later ones gives 0 or 0xFF.
        busy: whether a write or an erase is under way.
        write_enabled: whether the next write or erase would be obeyed.
        block_protection: the bits BP0 and up of register 1.
        protection: of the array against writes and erases.
        registers_locked: whether the registers themselves are protected (SRP0).
        quad_enabled: whether the four-line modes are switched on (QE).
        voltage: of the flash's supply, as far as the chip tells; *voltage_source* is what sets it.
        lines: ``"quad"`` or ``"octal"`` by eFuse, where the chip has both.
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
    """Return the flash chip's status registers, its protection, and its voltage (``ESPLoader.read_status``).

    Raises:
        OperationError: in secure download mode, where the flash's bus cannot be reached.
    """
    with link.session.use("reading the flash's status", stub=not link.board.uploads_slowly, flash=True) as esp:
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
    """Return the voltage that esptool tells, and what sets it; it only prints them."""
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
    """Return what the flash chip says of itself: its SFDP parameters, parsed (``ESPLoader.read_spiflash_sfdp``).

    Raises:
        OperationError: if it has none, or they make no sense.
    """
    with link.session.use("reading SFDP", stub=not link.board.uploads_slowly, flash=True) as esp:
        return parse(lambda address, size: _sfdp_bytes(esp, address, size))


def _sfdp_bytes(esp: Any, address: int, size: int) -> bytes:
    words = (int(esp.read_spiflash_sfdp(place, 32)) for place in range(address, address + size, 4))
    return b"".join(word.to_bytes(4, "little") for word in words)[:size]


# -- the size

_SIZES = tuple(1 << exponent for exponent in range(18, 24))  # 256 KB to 8 MB: 16 MB is all that 3 bytes address
_MARKER = 16
_READ = 0x03
_SAMPLES = 32


@dataclass(frozen=True)
class SizeDetection:
    """How large the flash is, by several witnesses. Sizes are bytes; None is what a witness does not tell.

    Attributes:
        by_id: by the capacity byte of its id, as esptool reads it.
        by_sfdp: by its SFDP density.
        by_wrap: by where addresses begin anew: a chip of 2 MB gives at 2 MB + n what it gives at n.
        at_least: by addresses that do not begin anew.
        wrap_note: what that was seen by, or why it was not.
        configured: what boards.toml says.
        size: the size to believe: by addresses where they tell, else by SFDP, else by id.
        agree: whether no two witnesses contradict each other; a relabelled chip does.
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
    """Return how large the flash really is: by its id, by SFDP, and by where reads wrap around.

    Nothing is written: where the flash is blank, a wrap cannot be seen. Flash beyond 16 MB is not looked at.

    Raises:
        OperationError: in secure download mode, where the flash's bus cannot be reached.
    """
    with link.session.use("detecting the flash's size", stub=not link.board.uploads_slowly, flash=True) as esp:
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
    """Return the size where addresses begin anew, a size that is exceeded for certain, and a note."""
    places = (bootloader, 0x8000, 0x9000, 0xE000, 0x10000, 0x20000)
    markers = {place: data for place in places if len(set(data := _bus_read(esp, place, _MARKER))) > 2}
    if not markers:
        return None, None, "the flash is blank where a bootloader, a table or an app would be: a wrap cannot be seen"
    where = ", ".join(f"{place:#x}" for place in markers)
    for size in _SIZES:
        if all(_bus_read(esp, size + place, _MARKER) == data for place, data in markers.items()) and all(
            _bus_read(esp, place, 4) == _bus_read(esp, size + place, 4)
            for place in range(0x100, size, size // _SAMPLES)
        ):
            return size, None, f"what is at {where} is {format_size(size)} further on, too"
    return None, 2 * _SIZES[-1], f"what is at {where} does not come again up to {format_size(2 * _SIZES[-1])}"


def _bus_read(esp: Any, address: int, size: int) -> bytes:
    """Return bytes by the flash's own read command: the loader's would stop at the size that it believes in."""
    words = (
        int(esp.run_spiflash_command(_READ, read_bits=32, addr=place, addr_len=24))
        for place in range(address, address + size, 4)
    )
    return b"".join(word.to_bytes(4, "little") for word in words)
