"""Partition tables, otadata, NVS, and what is in partitions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from mcp_bridge.components.base import Component
from mcp_bridge.tool import tool
from pytest_esp.formats import partition_layouts
from pytest_esp.formats.files import resolve
from pytest_esp.formats.nvs_pages import NvsContents
from pytest_esp.formats.partition_table import Partition
from pytest_esp.formats.regions import size_argument
from pytest_esp.operations.flash.tables import OtaData, Partitions
from pytest_esp.operations.partitions import nvs
from pytest_esp.operations.partitions.contents import PartitionAnalysis
from pytest_esp.operations.partitions.new_table import OtaSetup, TableWrite, saved
from pytest_esp.operations.registry import Effect


@dataclass(frozen=True)
class TableReport:
    """A new partition table: its partitions, its text, and the file that it was saved to.

    *free* is what it leaves of the flash, in bytes; *warnings* are what is allowed, but probably not meant.
    """

    partitions: list[Partition]
    csv: str
    md5: str
    table_offset: str
    flash_size: int
    free: int
    warnings: list[str]
    output_file: str | None


@dataclass(frozen=True)
class NvsReport:
    """An NVS partition that was made, and the file that it was saved to."""

    output_file: str
    size: int
    encrypted: bool
    namespaces: dict[str, int]


class PartitionManager(Component):
    """Tools for partition tables and for NVS partitions."""

    NAME: ClassVar[str] = "partition_manager"
    SUMMARY: ClassVar[str] = "partition tables, otadata and NVS partitions: made, flashed, read, analyzed"

    @tool(Effect.READ)
    def esp_partition_read(self, port: str | None = None) -> Partitions:
        """Read the partition table from flash, wherever it is, and check its MD5."""
        with self.bridge.boards.use(port) as esp:
            return esp.partitions.read()

    @tool(Effect.READ, timeout=600.0)
    def esp_partition_analyze(self, port: str | None = None) -> PartitionAnalysis:
        """Look into every partition: blank or how full, which app, which one starts; and the gaps of the flash."""
        with self.bridge.boards.use(port) as esp:
            return esp.partitions.analyze()

    @tool(Effect.READ)
    def esp_otadata_read(self, port: str | None = None) -> OtaData:
        """Read otadata: both entries, and which app partition the bootloader tries first."""
        with self.bridge.boards.use(port) as esp:
            return esp.partitions.otadata()

    @tool()
    def esp_partition_create(
        self,
        layout: str | dict[str, Any] | list[dict[str, Any]],
        output_file: str | None = None,
        flash_size: int | str = "4MB",
        overwrite: bool = False,
    ) -> TableReport:
        """Make a partition table, checked for overlaps, alignment, names and the flash's size. Touches no board.

        layout is a usual one by its name (single_factory, single_factory_large, single_factory_all, two_ota,
        two_ota_littlefs, factory_two_ota), the text of a CSV, a CSV file, or rows with name, type, subtype, size, and
        maybe offset and flags. output_file gets the binary, or text if it ends in .csv.
        """
        if isinstance(layout, str) and layout.endswith(".csv") and "\n" not in layout:
            return self._saved(partition_layouts.build(resolve(layout), flash_size), output_file, overwrite)
        return self._saved(partition_layouts.build(layout, flash_size), output_file, overwrite)

    @tool()
    def esp_partition_create_ota(
        self,
        flash_size: int | str = "4MB",
        app_size: int | str | None = None,
        output_file: str | None = None,
        slots: int = 2,
        factory: bool = False,
        storage: str | None = None,
        overwrite: bool = False,
    ) -> TableReport:
        """Make a partition table for updates over the air, with apps as large as there is room for. Touches no board.

        storage adds a file system (littlefs, spiffs, fat) in what is left.
        """
        table = partition_layouts.build_ota(flash_size, app_size, slots=slots, factory=factory, storage=storage)
        return self._saved(table, output_file, overwrite)

    @tool()
    def esp_partition_custom(
        self, config: dict[str, Any], output_file: str | None = None, overwrite: bool = False
    ) -> TableReport:
        """Make a partition table from {"flash_size": "4MB", "partitions": [{"name", "type", "subtype", "size"}, ...]}.

        offset, flags (encrypted, readonly) and the table's own table_offset may be given, too. Touches no board.
        """
        table = partition_layouts.build(
            config, config.get("flash_size", "4MB"), table_offset=config.get("table_offset", 0x8000)
        )
        return self._saved(table, output_file, overwrite)

    @tool(Effect.ERASE, timeout=120.0)
    def esp_partition_flash(
        self, partition_file: str, port: str | None = None, offset: int | str | None = None, discard_data: bool = False
    ) -> TableWrite:
        """Flash a partition table (.bin or .csv). Contents of partitions stay as they are.

        Refused if data in flash would belong to no partition any more, unless discard_data is true.
        """
        path = resolve(partition_file)
        with self.bridge.boards.use(port) as esp:
            return esp.partitions.write(path, table_offset=offset, discard_data=discard_data)

    @tool(Effect.ERASE, timeout=120.0)
    def esp_ota_partition_setup(
        self,
        port: str | None = None,
        app_size: int | str | None = None,
        slots: int = 2,
        factory: bool = False,
        storage: str | None = None,
        discard_data: bool = False,
    ) -> OtaSetup:
        """Make a board ready for updates over the air: table, blank otadata, and a look at bootloader and app."""
        with self.bridge.boards.use(port) as esp:
            return esp.partitions.setup_ota(
                app_size, slots=slots, factory=factory, storage=storage, discard_data=discard_data
            )

    @tool()
    def esp_nvs_partition_create(
        self,
        data: dict[str, dict[str, Any]] | str,
        output_file: str,
        size: int | str = "24KB",
        key_file: str | None = None,
        overwrite: bool = False,
    ) -> NvsReport:
        """Make an NVS partition from {"namespace": {"key": value}}, or from a CSV file of Espressif's generator.

        A value is text, a number (u32, or i32 if negative), or {"type": "u8", "value": 1}; types are u8 to i64, string,
        blob (hex digits) and base64. key_file encrypts it. Touches no board.
        """
        values = resolve(data) if isinstance(data, str) else data
        key = resolve(key_file) if key_file else None
        path = resolve(output_file, "write")
        made = nvs.make(values, size_argument(size, "size"), path, key_file=key, overwrite=overwrite)
        found = nvs.contents(made, key_file=key)
        counts = {name: sum(entry.namespace == name for entry in found.entries) for name in found.namespaces}
        return NvsReport(str(path), made.size, made.encrypted, counts)

    @tool(Effect.READ, shows_secrets=True)
    def esp_nvs_read(self, port: str | None = None, partition: str = "nvs", key_file: str | None = None) -> NvsContents:
        """Read an NVS partition: namespaces, keys, types and values; encrypted pages are named as such.

        With key_file (64 bytes of NVS encryption) those are read, too.
        """
        key = resolve(key_file) if key_file else None
        with self.bridge.boards.use(port) as esp:
            return esp.nvs.read(partition, key_file=key)

    def _saved(self, table: partition_layouts.BuiltTable, output_file: str | None, overwrite: bool) -> TableReport:
        path = resolve(output_file, "write") if output_file else None
        saved(table, path, overwrite)
        return TableReport(
            partitions=list(table.partitions),
            csv=table.csv,
            md5=table.md5,
            table_offset=f"{table.table_offset:#x}",
            flash_size=table.flash_size,
            free=table.free,
            warnings=list(table.warnings),
            output_file=str(path) if path else None,
        )
