"""The address space of a chip: memory, register modules, and selected registers.

Source: for memory, the MEMORY_MAP of esptool's target classes; for modules and registers, ESP-IDF's headers
(components/soc), from which tools/soc_registers.py makes soc.json. See also Espressif's technical reference manuals,
chapter "System and Memory" and the chapter of each module.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from esptool.targets import CHIP_DEFS

from pytest_esp.errors import OperationError

_FACTS = Path(__file__).with_name("soc.json")
_MODULE = 0x1000  # maximum size of a register module in bytes
_P4_REVISED = 300  # from ESP32-P4 v3.0 on, some registers have other addresses

Kind = Literal["RAM", "ROM", "registers", "cache", "radio", "gated"]
"""*cache* shows flash or external RAM, only while an app runs; *radio* and *gated* have no clock in the loader."""

_NOT_MEMORY = ("PADDING", "BYTE_ACCESSIBLE", "MEM_INTERNAL", "MEM_INTERNAL2", "DPORT")
_RADIO = ("FE", "FE2", "BB", "NRX", "BT", "WIFI", "MODEM")
_GATED = ("EMAC", "SDMMC", "SDHOST")  # on a bus that waits forever for a module without a clock
_ESP32_FLASH = 0x400C0000  # below this address, esptool's IROM is ROM

_WHY_NOT = {
    "cache": "it shows flash or external RAM through the cache, which is off in the loader",
    "radio": "it belongs to the radio, which has no clock in the loader",
    "gated": "its module has no clock in the loader, and the chip would wait for it forever",
}
_WHAT_ELSE = {"cache": "read the flash itself, by its own address"}


@dataclass(frozen=True)
class Area:
    """A part of the address space; *end* is the address after it."""

    name: str
    begin: int
    end: int
    kind: Kind


@dataclass(frozen=True)
class Field:
    """Bits of a register: the lowest one, and their number."""

    name: str
    lsb: int
    width: int

    def of(self, value: int) -> int:
        """Return the field in a register's *value*."""
        return value >> self.lsb & ((1 << self.width) - 1)

    @property
    def mask(self) -> int:
        """Its bits in the register."""
        return ((1 << self.width) - 1) << self.lsb


@dataclass(frozen=True)
class Register:
    """One register; reading it has no side effects."""

    name: str
    address: int
    fields: tuple[Field, ...]

    def field(self, *endings: str) -> Field | None:
        """Return the first field whose name ends with one of *endings*, tried in order; None if there is none."""
        for ending in endings:
            for field in self.fields:
                if field.name.endswith(ending):
                    return field
        return None


@dataclass(frozen=True)
class Soc:
    """The address space of one chip.

    Attributes:
        areas: by address; they may overlap.
        registers: by address; empty if ESP-IDF does not support the chip.
        reset_reasons: names by number, as in the reset state registers and the ROM's boot message.
    """

    chip: str
    source: str
    areas: tuple[Area, ...]
    registers: tuple[Register, ...]
    reset_reasons: Mapping[int, str]

    def register(self, *endings: str) -> Register | None:
        """Return the first register whose name ends with one of *endings*, tried in order."""
        for ending in endings:
            for register in self.registers:
                if register.name.endswith(ending):
                    return register
        return None

    def areas_of(self, begin: int, end: int) -> tuple[Area, ...]:
        """Return the areas that contain the bytes from *begin* up to, but not including, *end*, if they can be read.

        Raises:
            OperationError: if some of the bytes are in none, or cannot be read; gives the reason, and what is near.
        """
        found: list[Area] = []
        place = begin
        while place < end:
            here = [area for area in self.areas if area.begin <= place < area.end]
            area = next((area for area in here if area.kind not in _WHY_NOT), here[0] if here else None)
            if area is None:
                raise OperationError(
                    f"nothing is mapped at {place:#x}: reading it would crash the chip",
                    hint=f"nearest mapped areas: {self._around(place)}",
                )
            if area.kind in _WHY_NOT:
                raise OperationError(
                    f"{place:#x} is in {area.name}, which cannot be read now: {_WHY_NOT[area.kind]}",
                    hint=_WHAT_ELSE.get(area.kind),
                )
            found.append(area)
            place = area.end
        return tuple(found)

    def _around(self, address: int) -> str:
        usable = [area for area in self.areas if area.kind not in _WHY_NOT]
        before = max((area for area in usable if area.end <= address), key=lambda area: area.end, default=None)
        after = min((area for area in usable if area.begin > address), key=lambda area: area.begin, default=None)
        return ", ".join(f"{area.name} ({area.begin:#x} to {area.end:#x})" for area in (before, after) if area)


def soc_of(chip: str, revision: int | None = None) -> Soc:
    """Return the address space of *chip* (a name of ``esptool.CHIP_LIST``) of *revision* (major * 100 + minor)."""
    return _soc(chip, "esp32p4-v3" if chip == "esp32p4" and (revision or 0) >= _P4_REVISED else chip)


@functools.cache
def _soc(chip: str, name: str) -> Soc:
    facts = _facts()
    known = facts.get(name, {"modules": [], "reset_reasons": {}, "registers": []})
    rom: Any = CHIP_DEFS[chip]
    registers = tuple(
        Register(name, address, tuple(Field(*field) for field in fields))
        for name, address, fields in known["registers"]
    )
    areas = [*_memory(chip, rom.MEMORY_MAP), *_modules(known["modules"])]
    source = facts["source"]
    if chip == "esp8266":
        registers, areas = _registers_of_8266(rom), [*areas, *_areas_of_8266()]
        source = "esptool, targets/esp8266.py"
    return Soc(
        chip=chip,
        source=f"memory: esptool; registers: {source}",
        areas=tuple(sorted(areas, key=lambda area: (area.begin, area.end))),
        registers=registers,
        reset_reasons={int(number): name for number, name in known["reset_reasons"].items()},
    )


@functools.cache
def _facts() -> dict[str, Any]:
    return json.loads(_FACTS.read_text(encoding="utf-8"))


def _memory(chip: str, memory_map: Sequence[tuple[int, int, str]]) -> Iterator[Area]:
    for begin, end, name in memory_map:
        if name not in _NOT_MEMORY:
            yield Area(name, begin, end, _kind(chip, name, begin))


def _kind(chip: str, name: str, begin: int) -> Kind:
    if name.endswith("_MASK") or (chip == "esp32" and name == "IROM" and begin < _ESP32_FLASH):
        return "ROM"
    return "cache" if name in ("DROM", "IROM", "EXTRAM_DATA") else "RAM"


def _modules(modules: Sequence[tuple[str, int]]) -> Iterator[Area]:
    for number, (name, begin) in enumerate(modules):
        following = modules[number + 1][1] if number + 1 < len(modules) else begin + _MODULE
        kind: Kind = "radio" if name.startswith(_RADIO) else "gated" if name.startswith(_GATED) else "registers"
        yield Area(name, begin, min(following, begin + _MODULE), kind)


def _registers_of_8266(rom: Any) -> tuple[Register, ...]:
    """Return esptool's registers of an ESP8266, which ESP-IDF does not support."""
    named = {
        "UART_CLKDIV": rom.UART_CLKDIV_REG,
        "SPI_USR": rom.SPI_REG_BASE + rom.SPI_USR_OFFS,
        "SPI_USR1": rom.SPI_REG_BASE + rom.SPI_USR1_OFFS,
        "SPI_USR2": rom.SPI_REG_BASE + rom.SPI_USR2_OFFS,
        **{f"OTP_MAC{number}": 0x3FF00050 + 4 * number for number in range(4)},
    }
    rows = sorted(named.items(), key=lambda item: item[1])
    return tuple(Register(name, address, ()) for name, address in rows)


def _areas_of_8266() -> Iterator[Area]:
    """Yield areas missing in esptool's map of the ESP8266 (its memory map is in no manual)."""
    yield Area("DPORT", 0x3FF00000, 0x3FF01000, "registers")
    yield Area("ROM", 0x40000000, 0x40010000, "ROM")
    yield Area("PERIPHERALS", 0x60000000, 0x60001000, "registers")
