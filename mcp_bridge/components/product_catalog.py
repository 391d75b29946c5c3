"""Which chips and modules there are, what they have, and which fit a need."""

from __future__ import annotations

from typing import Any, ClassVar

from mcp_bridge.components.base import Component
from mcp_bridge.tool import tool
from pytest_esp.operations.catalogue import queries
from pytest_esp.operations.catalogue.products import Kind, catalogue
from pytest_esp.operations.catalogue.queries import (
    Antenna,
    Availability,
    Comparison,
    ProductInfo,
    Radio,
    Recommendation,
    SearchResult,
    Usb,
)
from pytest_esp.operations.catalogue.refresh import Status, refresh


class ProductCatalog(Component):
    """Tools for the catalogue; none of them touches a board."""

    NAME: ClassVar[str] = "product_catalog"
    SUMMARY: ClassVar[str] = "Espressif's chips and modules: searched, compared, recommended, their lifecycle"

    @tool()
    def esp_product_search(
        self,
        query: str = "",
        kind: Kind | None = None,
        chip: str | None = None,
        status: Status | None = None,
        min_flash: int | str | None = None,
        min_psram: int | str | None = None,
    ) -> SearchResult:
        """Search chips and modules by words that must all occur (names, radios, core, antenna) and by memory.

        status is of the lifecycle: active, sample, nrnd (not for new designs), replaced, eol. min_flash is e.g. "8MB".
        """
        return queries.search(query, kind=kind, chip=chip, status=status, flash=min_flash, psram=min_psram)

    @tool()
    def esp_product_info(self, product: str) -> ProductInfo:
        """Return all that is known of a chip, a module or a part number: memory, radios, GPIO, size, parts, sources.

        What is not known is listed, and never guessed. Sizes are bytes.
        """
        return queries.info(product)

    @tool()
    def esp_chip_compare(self, chips: list[str]) -> Comparison:
        """Compare two chips or modules, or more, feature by feature; says which features differ."""
        return queries.compare(chips)

    @tool()
    def esp_product_recommend(
        self,
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
        """Recommend modules or chips for what is needed, with reasons: the smallest that do it come first.

        max_temperature is in °C. Where nothing fits, rejected says how many products failed at which need.
        """
        return queries.recommend(
            kind=kind,
            wifi=wifi,
            wifi_6=wifi_6,
            band_5ghz=band_5ghz,
            bluetooth=bluetooth,
            thread_or_zigbee=thread_or_zigbee,
            usb=usb,
            ethernet=ethernet,
            min_cores=min_cores,
            min_sram=min_sram,
            min_flash=min_flash,
            min_psram=min_psram,
            min_gpio=min_gpio,
            max_temperature=max_temperature,
            antenna=antenna,
            active_only=active_only,
            count=count,
        )

    @tool(timeout=120.0)
    def esp_product_availability(self, product: str, refresh_from_vendor: bool = False) -> Availability:
        """Return the lifecycle of a product or part number, of which day that is, and what replaces it.

        refresh_from_vendor fetches the lifecycle of all parts from Espressif first. Stock and prices are not known.
        """
        if refresh_from_vendor:
            refresh()
        return queries.availability(product)

    def health_check(self) -> dict[str, Any]:
        """Read the catalogue."""
        known = catalogue()
        return {"status": "healthy", "products": len(known.products), "as_of": known.as_of}
