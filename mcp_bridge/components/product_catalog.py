"""Tools for the catalogue of Espressif's chips and modules."""

from __future__ import annotations

from typing import Any, ClassVar

from mcp_bridge.components.base import Component
from mcp_bridge.tool import offer
from pytest_esp.operations.catalogue import queries
from pytest_esp.operations.catalogue.products import catalogue


class ProductCatalog(Component):
    """Tools for the catalogue. They do not touch boards."""

    NAME: ClassVar[str] = "product_catalog"
    SUMMARY: ClassVar[str] = "search, compare and recommend Espressif's chips and modules, and look up their lifecycle"

    esp_product_search = offer(queries.search, long=True)
    esp_product_info = offer(queries.info)
    esp_chip_compare = offer(queries.compare)
    esp_product_recommend = offer(queries.recommend, long=True)
    esp_product_availability = offer(queries.availability, timeout=120.0)

    def health_check(self) -> dict[str, Any]:
        """Check that the catalogue can be read."""
        known = catalogue()
        return {"status": "healthy", "products": len(known.products), "as_of": known.as_of}
