"""The components: groups of tools, loaded by name."""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from pytest_esp.errors import RackError
from pytest_esp.names import nearest

if TYPE_CHECKING:
    from mcp_bridge.components.base import Component

ENTRY_POINTS = "pytest_esp.mcp_components"
COMPONENT_REGISTRY: dict[str, str] = {
    "chip_control": "mcp_bridge.components.chip_control:ChipControl",
    "flash_manager": "mcp_bridge.components.flash_manager:FlashManager",
    "security_manager": "mcp_bridge.components.security_manager:SecurityManager",
    "partition_manager": "mcp_bridge.components.partition_manager:PartitionManager",
    "firmware_builder": "mcp_bridge.components.firmware_builder:FirmwareBuilder",
    "ota_manager": "mcp_bridge.components.ota_manager:OtaManager",
    "diagnostics": "mcp_bridge.components.diagnostics:Diagnostics",
    "production_tools": "mcp_bridge.components.production_tools:ProductionTools",
    "qemu_manager": "mcp_bridge.components.qemu_manager:QemuManager",
    "idf_integration": "mcp_bridge.components.idf_integration:IdfIntegration",
    "product_catalog": "mcp_bridge.components.product_catalog:ProductCatalog",
    "server": "mcp_bridge.components.server:Server",
}
"""Where the class of each component is. Packages can add more with entry points."""


def plugged_in() -> list[str]:
    """Return the names of the components that other packages add."""
    return sorted(entry_points(group=ENTRY_POINTS).names - COMPONENT_REGISTRY.keys())


def component_class(name: str) -> type[Component]:
    """Return the class of the component *name*.

    Raises:
        RackError: if the component is unknown.
    """
    if name in COMPONENT_REGISTRY:
        module, _, attribute = COMPONENT_REGISTRY[name].partition(":")
        return getattr(importlib.import_module(module), attribute)
    found = entry_points(group=ENTRY_POINTS, name=name)
    if not found:
        known = [*COMPONENT_REGISTRY, *entry_points(group=ENTRY_POINTS).names]
        raise RackError(f"unknown component {name!r}", hint=f"did you mean {nearest(name, known)}?")
    return next(iter(found)).load()
