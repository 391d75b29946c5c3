"""Partition tables."""

from __future__ import annotations

from typing import ClassVar

from mcp_bridge.components.base import Component
from mcp_bridge.tool import tool
from pytest_esp.operations.partitions import OtaData, Partitions
from pytest_esp.operations.registry import Effect


class PartitionManager(Component):
    """Tools for partition tables."""

    NAME: ClassVar[str] = "partition_manager"
    SUMMARY: ClassVar[str] = "partition tables and otadata"

    @tool(Effect.READ)
    def esp_partition_read(self, port: str | None = None) -> Partitions:
        """Read the partition table from flash, wherever it is, and check its MD5."""
        with self.bridge.boards.use(port) as esp:
            return esp.partitions.read()

    @tool(Effect.READ)
    def esp_otadata_read(self, port: str | None = None) -> OtaData:
        """Read otadata: both entries, and which app partition the bootloader tries first."""
        with self.bridge.boards.use(port) as esp:
            return esp.partitions.otadata()
