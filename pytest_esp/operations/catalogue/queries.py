"""Queries of the catalogue: search, look up, compare, recommend, and lifecycle."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from pytest_esp.errors import OperationError
from pytest_esp.formats.regions import size_argument
from pytest_esp.names import ChipName
from pytest_esp.operations.catalogue.products import Catalogue, Kind, Part, Product, Status, catalogue
from pytest_esp.operations.catalogue.refresh import refresh, refreshed
from pytest_esp.operations.registry import file_operation
from pytest_esp.units import format_size

Radio = Literal["classic", "le"]
Usb = Literal["any", "otg", "serial-jtag"]
Antenna = Literal["PCB", "connector"]

_NOT_COMPARED = ("name", "kind", "chip_type", "parts", "sources", "antenna", "size_mm")
_DISTRIBUTORS = "stock and prices are unknown here: ask a distributor"


@dataclass(frozen=True)
class Found:
    """A product found by a search; *parts* are its matching parts."""

    name: str
    kind: Kind
    chip_type: str
    status: Status
    summary: str
    parts: tuple[str, ...]


@dataclass(frozen=True)
class SearchResult:
    """The results of a search, in the order of the catalogue, and the date of their lifecycle."""

    products: tuple[Found, ...]
    count: int
    as_of: str


@file_operation(group="products")
def search(
    query: str = "",
    *,
    kind: Kind | None = None,
    chip_type: ChipName | None = None,
    status: Status | None = None,
    min_flash: int | str | None = None,
    min_psram: int | str | None = None,
) -> SearchResult:
    """Search chips and modules by words and by memory.

    Args:
        query: words that must all occur in name, chip, core, radios, memory, antenna or part numbers; hyphens may be
            omitted.
        kind: only chips, or only modules.
        chip_type: chip name as in esptool or of the vendor.
        status: only parts with this lifecycle status; nrnd means not recommended for new designs.
        min_flash: minimum flash in the part, e.g. "8MB".
        min_psram: minimum PSRAM in the part, e.g. "2MB".

    Raises:
        OperationError: if a size is invalid or the chip is unknown.
    """
    least_flash = 0 if min_flash is None else size_argument(min_flash, "flash")
    least_psram = 0 if min_psram is None else size_argument(min_psram, "PSRAM")
    known = catalogue()
    wanted_chip = known.chip(chip_type) if chip_type is not None else None
    found: list[Found] = []
    for product in known.products.values():
        if kind not in (None, product.kind) or wanted_chip not in (None, product.chip_type):
            continue
        parts = [
            part
            for part in product.parts
            if status in (None, part.status)
            and (part.flash or 0) >= least_flash
            and (part.psram or 0) >= least_psram
            and _has_words(query, product, part)
        ]
        if parts:
            found.append(_found(product, parts))
    return SearchResult(tuple(found), len(found), known.as_of)


def _has_words(text: str, product: Product, part: Part) -> bool:
    there = f"{_description(product)} {' '.join(_more_words(product, part))} {part.part}".casefold()
    compact = there.replace("-", "")
    return all(word in there or word.replace("-", "") in compact for word in text.casefold().split())


def _more_words(product: Product, part: Part) -> Iterator[str]:
    """Yield search words that differ from the summary, or are missing in it."""
    yield {1: "single-core", 2: "dual-core"}.get(_cores(product, part) or 0, "")
    yield from (f"{band:g}GHz" for band in product.bands)
    yield from ("BLE" for radio in product.bluetooth if radio == "le")
    yield from ("CAN TWAI" for _ in range(product.can or 0))
    yield f"flash {format_size(part.flash)}" if part.flash else ""
    yield f"PSRAM {format_size(part.psram)}" if part.psram else ""


def _cores(product: Product, part: Part) -> int | None:
    return part.cores or product.cores


def _found(product: Product, parts: Sequence[Part]) -> Found:
    names = tuple(part.part for part in parts)
    return Found(product.name, product.kind, product.chip_type, product.status, _summary(product), names)


def _summary(product: Product) -> str:
    """Return the features of a product in one line."""
    clock = f" {product.max_mhz} MHz" if product.max_mhz else ""
    words = [f"{product.cores or '?'}x {product.core or 'core unknown'}{clock}"]
    if product.sram:
        words.append(f"{format_size(product.sram)} SRAM")
    words += _radios(product)
    words += [f"USB {name}" for name in product.usb] + (["Ethernet"] if product.ethernet else [])
    if product.gpio is not None:
        words.append(f"{product.gpio} GPIO")
    if product.antenna is not None:
        words.append(f"antenna: {product.antenna}")
    return ", ".join(words)


def _radios(product: Product) -> list[str]:
    words: list[str] = []
    if product.wifi:
        bands = "/".join(f"{band:g}" for band in product.bands)
        words.append(f"Wi-Fi {product.wifi} ({bands} GHz)")
    if product.bluetooth:
        version = f" {product.bluetooth_version}" if product.bluetooth_version else ""
        words.append(f"Bluetooth{version} {'+'.join(product.bluetooth)}")
    return [*words, "802.15.4 Thread Zigbee"] if product.ieee802154 else words


def _description(product: Product) -> str:
    return f"{product.name} {product.kind} {product.chip_type} {_summary(product)}"


# -- one product


@dataclass(frozen=True)
class ProductInfo:
    """A product with all known data.

    Attributes:
        product: its features and parts.
        not_known: names of features that are unknown.
        asked_part: the part, if a part number was given.
        modules: of a chip: the modules with it; empty for a module.
        as_of: the date of the lifecycle.
    """

    product: Product
    not_known: tuple[str, ...]
    asked_part: Part | None
    modules: tuple[str, ...]
    as_of: str


@file_operation(group="products")
def info(product: str) -> ProductInfo:
    """Return the features of a chip, a module or a part number: memory, radios, GPIO, size, parts, sources.

    Unknown features are listed, never guessed. Sizes are in bytes.

    Args:
        product: name, chip or part number, e.g. "ESP32-C6", "esp32c6", "ESP32-C6-MINI-1" or "ESP32-C6-MINI-1-N4".

    Raises:
        OperationError: if the name is unknown; gives the nearest names.
    """
    known = catalogue()
    found = known.find(product)
    others = (other for other in known.products.values() if other.chip_type == found.chip_type)
    modules = tuple(other.name for other in others if other.kind == "module") if found.kind == "chip" else ()
    return ProductInfo(found, _unknown(found), known.part(product), modules, known.as_of)


def _unknown(product: Product) -> tuple[str, ...]:
    """Return the unknown features of a product; without Wi-Fi it has no Wi-Fi version, and a chip has no antenna."""
    absent = set[str]() if product.wifi else {"wifi"}
    absent |= set[str]() if product.bluetooth else {"bluetooth_version"}
    absent |= {"low_power_core", *(("antenna", "size_mm") if product.kind == "chip" else ())}
    return tuple(
        field.name for field in fields(product) if getattr(product, field.name) is None and field.name not in absent
    )


# -- comparing


@dataclass(frozen=True)
class Comparison:
    """Products side by side.

    Attributes:
        names: of the products.
        rows: per feature, the values in the order of *names*; None if unknown or not present.
        differences: the features that differ.
        as_of: the date of the lifecycle.
    """

    names: tuple[str, ...]
    rows: dict[str, tuple[Any, ...]]
    differences: tuple[str, ...]
    as_of: str


@file_operation(group="products")
def compare(chips: list[str]) -> Comparison:
    """Compare chips or modules feature by feature, and list the differences.

    Args:
        chips: two or more names of chips or modules.

    Raises:
        OperationError: if a name is unknown, or only one is given.
    """
    known = catalogue()
    products = list({product.name: product for product in map(known.find, chips)}.values())
    if len(products) < 2:
        raise OperationError("comparing requires two or more names", hint="give e.g. esp32c3 and esp32c6")
    rows: dict[str, tuple[Any, ...]] = {
        field.name: tuple(getattr(product, field.name) for product in products)
        for field in fields(Product)
        if field.name not in _NOT_COMPARED or any(product.kind == "module" for product in products)
    }
    for name in ("name", "parts", "sources"):
        rows.pop(name, None)
    rows["status"] = tuple(product.status for product in products)
    rows["flash_sizes"] = tuple(_sizes(product, "flash") for product in products)
    rows["psram_sizes"] = tuple(_sizes(product, "psram") for product in products)
    different = tuple(name for name, values in rows.items() if any(value != values[0] for value in values))
    return Comparison(tuple(product.name for product in products), rows, different, known.as_of)


def _sizes(product: Product, what: str) -> tuple[int, ...]:
    return tuple(sorted({size for part in product.parts if (size := getattr(part, what))}))


# -- recommending


@dataclass(frozen=True)
class Recommended:
    """A matching product.

    Attributes:
        name: of the product.
        kind: chip or module.
        chip_type: chip name as in esptool.
        parts: its matching parts, best (smallest) first.
        reasons: the requirements that it meets, and how.
        not_known: requirements for which this is unknown.
        remarks: other points to consider.
    """

    name: str
    kind: Kind
    chip_type: str
    parts: tuple[str, ...]
    reasons: tuple[str, ...]
    not_known: tuple[str, ...]
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class Recommendation:
    """Matching products, best first; *rejected* counts, per requirement, the products that do not meet it."""

    products: tuple[Recommended, ...]
    rejected: dict[str, int]
    as_of: str


Check = Callable[[Product, Part], "bool | None"]
"""Whether a part meets a requirement; None if unknown."""


@dataclass(frozen=True)
class _Need:
    """One requirement: in words, the check, and the feature of a product that answers it."""

    words: str
    check: Check
    shown: Callable[[Product, Part], str]


@file_operation(group="products")
def recommend(
    *,
    kind: Kind = "module",
    wifi: bool | None = None,
    wifi_6: bool = False,
    band_5ghz: bool = False,
    bluetooth: Radio | None = None,
    thread_or_zigbee: bool = False,
    usb: Usb | None = None,
    ethernet: bool = False,
    min_cores: int | None = None,
    min_sram: int | str | None = None,
    min_flash: int | str | None = None,
    min_psram: int | str | None = None,
    min_gpio: int | None = None,
    max_temperature: int | None = None,
    antenna: Antenna | None = None,
    active_only: bool = True,
    count: int = 5,
) -> Recommendation:
    """Recommend modules or chips for the given requirements, with reasons; the smallest that meet them come first.

    If nothing matches, the result counts how many products failed each requirement.

    Args:
        kind: a module (certified, with crystal and antenna) or a chip.
        wifi: require Wi-Fi; false requires that there is none.
        wifi_6: require Wi-Fi 6 or later.
        band_5ghz: require Wi-Fi at 5 GHz.
        bluetooth: required kind of Bluetooth.
        thread_or_zigbee: require IEEE 802.15.4.
        usb: required USB: any, OTG (the chip can be a device or host), or serial port and JTAG.
        ethernet: require an Ethernet MAC.
        min_cores: minimum number of cores of the main processor.
        min_sram: minimum SRAM on the chip, e.g. "512KB".
        min_flash: minimum flash in the part, e.g. "8MB".
        min_psram: minimum PSRAM in the part, e.g. "2MB".
        min_gpio: minimum number of GPIOs of the chip, or on the pins of the module.
        max_temperature: required maximum ambient temperature in °C.
        antenna: required antenna of a module.
        active_only: only parts in mass production.
        count: maximum number of products, at least 1.

    Raises:
        OperationError: if a size is invalid, or *count* is less than 1.
    """
    if count < 1:
        raise OperationError(f"count must be at least 1, not {count}", hint="use 1 or more")
    needs: list[_Need] = []
    if active_only:
        needs.append(_Need("in mass production", lambda _, part: part.status == "active", lambda _, part: part.status))
    needs += _radio_needs(wifi, wifi_6, band_5ghz, bluetooth, thread_or_zigbee)
    needs += _wired_needs(usb, ethernet, min_cores, min_gpio)
    needs += _memory_needs(min_sram, min_flash, min_psram)
    needs += _place_needs(max_temperature, antenna if kind == "module" else None)
    return _ranked(catalogue(), kind, needs, count)


def _radio_needs(
    wifi: bool | None, wifi_6: bool, band_5ghz: bool, bluetooth: Radio | None, thread_or_zigbee: bool
) -> list[_Need]:
    needs: list[_Need] = []

    def radios(product: Product, _: Part) -> str:
        return ", ".join(_radios(product)) or "no radio"

    if wifi is not None:
        needs.append(_Need("Wi-Fi" if wifi else "no Wi-Fi", lambda product, _: bool(product.wifi) == wifi, radios))
    if wifi_6:
        needs.append(_Need("Wi-Fi 6", lambda product, _: (product.wifi or "") >= "6", radios))
    if band_5ghz:
        needs.append(_Need("Wi-Fi at 5 GHz", lambda product, _: 5 in product.bands, radios))
    if bluetooth is not None:
        needs.append(_Need(f"Bluetooth {bluetooth}", lambda product, _: bluetooth in product.bluetooth, radios))
    if thread_or_zigbee:
        needs.append(_Need("Thread or Zigbee", lambda product, _: product.ieee802154, radios))
    return needs


def _wired_needs(usb: Usb | None, ethernet: bool, min_cores: int | None, min_gpio: int | None) -> list[_Need]:
    needs: list[_Need] = []
    if usb is not None:
        needs.append(
            _Need(
                "USB" if usb == "any" else f"USB {usb}",
                lambda product, _: any(usb == "any" or name.startswith(usb) for name in product.usb),
                lambda product, _: ", ".join(product.usb) or "none",
            )
        )
    if ethernet:
        needs.append(
            _Need("Ethernet", lambda product, _: product.ethernet, lambda _product, _part: "has a MAC; a PHY is needed")
        )
    if min_cores is not None:
        needs.append(_at_least("cores", min_cores, _cores, str))
    if min_gpio is not None:
        needs.append(_at_least("GPIO", min_gpio, lambda product, _: product.gpio, str))
    return needs


def _memory_needs(min_sram: int | str | None, min_flash: int | str | None, min_psram: int | str | None) -> list[_Need]:
    needs: list[_Need] = []
    if min_sram is not None:
        size = size_argument(min_sram, "SRAM")
        needs.append(_at_least("SRAM", size, lambda product, _: product.sram, format_size))
    if min_flash is not None:
        size = size_argument(min_flash, "flash")
        needs.append(_at_least("flash", size, lambda _, part: _in_part(part, part.flash), format_size))
    if min_psram is not None:
        size = size_argument(min_psram, "PSRAM")
        needs.append(_at_least("PSRAM", size, lambda _, part: _in_part(part, part.psram), format_size))
    return needs


def _in_part(part: Part, size: int | None) -> int | None:
    """Return the memory in a part; unknown for a part that comes only from a refresh."""
    described = part.flash or part.psram or part.package
    return size or (0 if described else None)


def _place_needs(max_temperature: int | None, antenna: Antenna | None) -> list[_Need]:
    needs: list[_Need] = []
    if max_temperature is not None:

        def highest(_: Product, part: Part) -> int | None:
            return part.temperature[1] if part.temperature else None

        needs.append(_at_least("highest temperature", max_temperature, highest, lambda value: f"{value} °C"))
    if antenna is not None:
        needs.append(
            _Need(
                f"antenna: {antenna}",
                lambda product, _: product.antenna == antenna if product.antenna else None,
                lambda product, _: product.antenna or "not known",
            )
        )
    return needs


def _at_least(
    what: str, least: int, value: Callable[[Product, Part], int | None], written: Callable[[int], str]
) -> _Need:
    def check(product: Product, part: Part) -> bool | None:
        found = value(product, part)
        return None if found is None else found >= least

    def shown(product: Product, part: Part) -> str:
        found = value(product, part)
        return "not known" if found is None else written(found)

    return _Need(f"{what} of at least {written(least)}", check, shown)


def _ranked(known: Catalogue, kind: Kind, needs: Sequence[_Need], count: int) -> Recommendation:
    fitting: list[tuple[tuple[float, ...], Recommended]] = []
    rejected: dict[str, int] = {}
    for product in known.products.values():
        if product.kind != kind:
            continue
        parts = sorted(
            (part for part in product.parts if all(need.check(product, part) is not False for need in needs)),
            key=lambda part: (part.psram or 0, part.flash or 0),
        )
        if parts:
            fitting.append((_cost(product, parts[0], needs), _recommended(product, parts, needs)))
            continue
        for need in needs:
            if all(need.check(product, part) is False for part in product.parts):
                rejected[need.words] = rejected.get(need.words, 0) + 1
    fitting.sort(key=lambda pair: pair[0])
    return Recommendation(tuple(entry for _, entry in fitting[:count]), rejected, known.as_of)


def _cost(product: Product, part: Part, needs: Sequence[_Need]) -> tuple[float, ...]:
    """Return the sort key: what is unknown, then how much memory exceeds the requirements, then the size."""
    unknown = sum(need.check(product, part) is None for need in needs)
    extra = len(_radios(product)) + len(product.usb) + (product.cores or 1) + product.ethernet
    width, length = (product.size_mm or (30.0, 30.0))[:2]
    memory = (part.psram or 0) + (part.flash or 0)
    return (unknown, extra, product.sram or 0, memory, width * length)


def _recommended(product: Product, parts: Sequence[Part], needs: Sequence[_Need]) -> Recommended:
    best = parts[0]
    reasons = tuple(f"{need.words}: {need.shown(product, best)}" for need in needs if need.check(product, best))
    unknown = tuple(need.words for need in needs if need.check(product, best) is None)
    names = tuple(part.part for part in parts)
    return Recommended(product.name, product.kind, product.chip_type, names, reasons, unknown, _remarks(product, best))


def _remarks(product: Product, part: Part) -> tuple[str, ...]:
    remarks: list[str] = []
    if product.idf is not None and product.idf != "supported":
        remarks.append(f"ESP-IDF support: {product.idf}")
    if part.status != "active":
        remarks.append(f"lifecycle of {part.part}: {part.status}")
    return tuple(remarks)


# -- lifecycle


@dataclass(frozen=True)
class PartLife:
    """The lifecycle of a part, and the replacement named by the vendor."""

    part: str
    status: Status
    replaced_by: str | None


@dataclass(frozen=True)
class Availability:
    """The lifecycle of a product's parts.

    Attributes:
        name: of the product.
        status: the best status of its parts.
        parts: lifecycle of each part.
        as_of: the date or time of this data (ISO 8601).
        source: source of this data.
        stock: a note that stock is unknown.
    """

    name: str
    status: Status
    parts: tuple[PartLife, ...]
    as_of: str
    source: str
    stock: str = _DISTRIBUTORS


@file_operation(group="products")
def availability(product: str, *, refresh_from_vendor: bool = False) -> Availability:
    """Return the lifecycle of a product or a part number, the date of this data, and replacements.

    Stock and prices are unknown.

    Args:
        product: a chip, a module or a part number; after a refresh also one that only the vendor lists.
        refresh_from_vendor: fetch the lifecycle of all parts from Espressif first.

    Raises:
        OperationError: if the name is unknown, or the vendor's list cannot be fetched.
    """
    if refresh_from_vendor:
        refresh()
    known = catalogue()
    try:
        found = known.find(product)
    except OperationError:
        of_vendor = _of_vendor(product.strip().casefold())
        if of_vendor is None:
            raise
        return of_vendor
    asked = known.part(product)
    parts = (asked,) if asked else found.parts
    lives = tuple(PartLife(part.part, part.status, part.replaced_by) for part in parts)
    return Availability(found.name, asked.status if asked else found.status, lives, known.as_of, known.source)


def _of_vendor(asked: str) -> Availability | None:
    """Return the last refresh's data for a part that the catalogue does not describe."""
    news = refreshed()
    for number, part in news.parts.items() if news else ():
        if number.casefold() == asked:
            life = PartLife(number, part.status, part.replaced_by)
            return Availability(
                part.family, part.status, (life,), news.fetched if news else "", news.url if news else ""
            )
    return None
