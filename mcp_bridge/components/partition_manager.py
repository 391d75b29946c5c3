"""Tools for partition tables, otadata and NVS partitions."""

from __future__ import annotations

from typing import ClassVar

from mcp_bridge.components.base import Component
from mcp_bridge.tool import offer
from pytest_esp.operations.flash import tables
from pytest_esp.operations.partitions import analysis, new_table, nvs


class PartitionManager(Component):
    """Tools for partition tables, otadata and NVS partitions."""

    NAME: ClassVar[str] = "partition_manager"
    SUMMARY: ClassVar[str] = "create, flash, read and analyze partition tables, otadata and NVS partitions"

    esp_partition_read = offer(tables.read)
    esp_partition_analyze = offer(analysis.analyze, timeout=600.0)
    esp_otadata_read = offer(tables.otadata)
    esp_partition_create = offer(new_table.create)
    esp_partition_create_ota = offer(new_table.create_ota)
    esp_partition_custom = offer(new_table.create, rename={"layout": "config"})
    esp_partition_flash = offer(new_table.write, rename={"table": "partition_file"}, timeout=120.0)
    esp_ota_partition_setup = offer(new_table.setup_ota, timeout=120.0)
    esp_nvs_partition_create = offer(nvs.create)
    esp_nvs_read = offer(nvs.read, shows_secrets=True, long=True)
