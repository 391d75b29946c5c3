"""The catalogue: a data file in this package, updated by the last refresh from the vendor."""

from __future__ import annotations

import datetime
import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any, Literal, cast

from pytest_esp.errors import OperationError
from pytest_esp.names import nearest
from pytest_esp.operations.catalogue.refresh import Refreshed, Status, refreshed
from pytest_esp.units import parse_size

Kind = Literal["chip", "module"]
_SIZES = ("sram", "rom", "low_power_sram", "flash", "psram")


@dataclass(frozen=True)
class Part:
    """A part that can be ordered.

    Attributes:
        part: the part number.
        status: its lifecycle status.
        flash: bytes of flash in it; None if there is none, or it is unknown.
        psram: bytes of PSRAM in it; likewise.
        temperature: lowest and highest ambient temperature (°C); None if unknown.
        cores: of its main processor, if it has fewer than the others of its family; else None.
        package: of a chip, with its size in mm.
        replaced_by: replacement named by the vendor.
    """

    part: str
    status: Status
    flash: int | None = None
    psram: int | None = None
    temperature: tuple[int, int] | None = None
    cores: int | None = None
    package: str | None = None
    replaced_by: str | None = None


@dataclass(frozen=True)
class Product:
    """A chip, or a module with the features of its chip. None means unknown; sizes are in bytes.

    Attributes:
        name: of the family, e.g. ``"ESP32-C6-MINI-1"``.
        kind: whether it is a chip or a module.
        chip_type: chip name as in esptool.
        core: of the main processor.
        cores: number of cores.
        low_power_core: a second processor that runs in sleep modes.
        max_mhz: the highest clock.
        sram: on the chip.
        rom: on the chip.
        low_power_sram: SRAM retained in deep sleep.
        wifi: generation, e.g. ``"6"``; None without Wi-Fi.
        bands: of Wi-Fi, in GHz.
        bluetooth: ``"classic"``, ``"le"``.
        bluetooth_version: of the standard.
        ieee802154: whether Thread and Zigbee are possible.
        usb: its controllers: ``"otg..."``, ``"serial-jtag"``.
        ethernet: whether it has a MAC.
        can: TWAI controllers.
        touch: touch sensors.
        gpio: number of GPIOs; of a module, those on its pins.
        external_psram: whether the chip supports PSRAM outside its package.
        antenna: of a module: ``"PCB"``, ``"connector"``.
        size_mm: of a module: width, length, height.
        idf: whether ESP-IDF supports the chip.
        sources: sources of this data (see the data file).
        parts: the parts that can be ordered.
    """

    name: str
    kind: Kind
    chip_type: str
    parts: tuple[Part, ...]
    sources: tuple[str, ...]
    core: str | None = None
    cores: int | None = None
    low_power_core: str | None = None
    max_mhz: int | None = None
    sram: int | None = None
    rom: int | None = None
    low_power_sram: int | None = None
    wifi: str | None = None
    bands: tuple[float, ...] = ()
    bluetooth: tuple[str, ...] = ()
    bluetooth_version: str | None = None
    ieee802154: bool = False
    usb: tuple[str, ...] = ()
    ethernet: bool = False
    can: int | None = None
    touch: int | None = None
    gpio: int | None = None
    external_psram: bool | None = None
    antenna: str | None = None
    size_mm: tuple[float, ...] | None = None
    idf: str | None = None

    @property
    def status(self) -> Status:
        """The best status of its parts."""
        there = {part.status for part in self.parts}
        order: tuple[Status, ...] = ("active", "sample", "nrnd", "replaced", "eol")
        for status in order:
            if status in there:
                return status
        return "unknown"


@dataclass(frozen=True)
class Catalogue:
    """All products by name; *as_of* is the date of their lifecycle (ISO 8601), *source* its source."""

    products: Mapping[str, Product]
    as_of: str
    source: str

    def part(self, name: str) -> Part | None:
        """Return the part with the part number *name*; None if it is a product's name, or unknown."""
        wanted = name.strip().casefold()
        if any(wanted == product.name.casefold() for product in self.products.values()):
            return None
        parts = (part for product in self.products.values() for part in product.parts)
        return next((part for part in parts if part.part.casefold() == wanted), None)

    def chip(self, name: str) -> str:
        """Return the name in esptool of a chip given by that name or the vendor's (``"ESP32-C6"``).

        Raises:
            OperationError: if it is unknown; gives the nearest names.
        """
        chips = {product.chip_type: product.name for product in self.products.values() if product.kind == "chip"}
        wanted = name.strip().casefold()
        found = next((chip for chip, known in chips.items() if wanted in (chip, known.casefold())), None)
        if found is None:
            raise OperationError(f"the catalogue has no chip {name!r}", hint=f"nearest: {nearest(wanted, chips)}")
        return found

    def find(self, name: str) -> Product:
        """Return a product by its name, one of its part numbers, or (a chip) its name in esptool.

        Raises:
            OperationError: if it is unknown; gives the nearest names.
        """
        wanted = name.strip().casefold()
        for product in self.products.values():
            if wanted in (product.name.casefold(), *(part.part.casefold() for part in product.parts)):
                return product
        for product in self.products.values():
            if product.kind == "chip" and wanted == product.chip_type:
                return product
        known = [*self.products, *(part.part for product in self.products.values() for part in product.parts)]
        raise OperationError(f"the catalogue has no {name!r}", hint=f"nearest: {nearest(name, known)}")


def catalogue() -> Catalogue:
    """Return the catalogue, with the lifecycle of the last refresh if there is a newer one.

    Raises:
        OperationError: if the file saved by a refresh is damaged.
    """
    own = _packaged()
    news = refreshed()
    if news is None or news.fetched[:10] < own.as_of:
        return own
    products = {name: _updated(product, news) for name, product in own.products.items()}
    return Catalogue(products, news.fetched, news.url)


def _updated(product: Product, news: Refreshed) -> Product:
    """Return *product* with the vendor's current data, including new parts of the family."""
    parts: list[Part] = []
    for part in product.parts:
        entry = news.parts.get(part.part)
        parts.append(replace(part, status=entry.status, replaced_by=entry.replaced_by) if entry else part)
    known = {part.part for part in parts}
    for name, entry in news.parts.items():
        if name not in known and entry.family == product.name:
            parts.append(Part(name, entry.status, replaced_by=entry.replaced_by))
    return replace(product, parts=tuple(parts))


@functools.cache
def _packaged() -> Catalogue:
    data = tomllib.loads(files(__package__ or "").joinpath("products.toml").read_text("utf-8"))
    chips = {entry["chip_type"]: entry for entry in data["chip"]}
    products = [_product("chip", entry, {}) for entry in data["chip"]]
    products += [_product("module", entry, chips[entry["chip_type"]]) for entry in data["module"]]
    day: datetime.date = data["as_of"]
    return Catalogue({product.name: product for product in products}, day.isoformat(), "the data file of pytest-esp")


def _product(kind: Kind, entry: Mapping[str, Any], chip: Mapping[str, Any]) -> Product:
    inherited = {key: value for key, value in chip.items() if key not in ("gpio", "parts", "sources", "name")}
    fields = {
        key: _value(key, value) for key, value in {**inherited, **entry}.items() if key not in ("parts", "sources")
    }
    sources = tuple(dict.fromkeys([*entry["sources"], *chip.get("sources", ())]))
    return Product(kind=kind, parts=tuple(_part(part) for part in entry["parts"]), sources=sources, **fields)


def _part(entry: Mapping[str, Any]) -> Part:
    fields: dict[str, Any] = {key: _value(key, value) for key, value in entry.items()}
    return Part(**fields)


def _value(key: str, value: Any) -> Any:
    if key in _SIZES:
        return parse_size(value)
    return tuple(cast("list[Any]", value)) if isinstance(value, list) else value
