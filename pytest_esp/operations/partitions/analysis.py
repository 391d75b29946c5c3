"""Analyzes the partitions of a board."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pytest_esp.formats.images import App, app_of, chip_of
from pytest_esp.formats.partition_table import Partition, default_app
from pytest_esp.formats.regions import SECTOR
from pytest_esp.link.link import Link
from pytest_esp.operations.flash import reading, tables
from pytest_esp.operations.registry import Effect, operation
from pytest_esp.operations.results import Address


@dataclass(frozen=True)
class PartitionContents:
    """The contents of a partition.

    Attributes:
        kind: ``"blank"``; ``"app"`` (an image with a descriptor); ``"image"`` (one without); ``"data"``.
        used: bytes up to the last one that is not 0xFF; *fill* is *used* divided by the size, 0 to 1.
        app: the descriptor of the app.
        active: whether the bootloader tries it first.
    """

    partition: Partition
    kind: Literal["blank", "app", "image", "data"]
    used: int
    fill: float
    app: App | None
    active: bool


@dataclass(frozen=True)
class Gap:
    """A part of the flash that belongs to no partition; size in bytes."""

    address: Address
    size: int


@dataclass(frozen=True)
class PartitionAnalysis:
    """The table, the contents of its partitions, and the parts of the flash that belong to none. Sizes in bytes."""

    table_offset: Address
    checked: bool
    flash_size: int
    partitions: tuple[PartitionContents, ...]
    gaps: tuple[Gap, ...]


@operation(Effect.READ, group="partitions")
def analyze(link: Link) -> PartitionAnalysis:
    """Analyze every partition (blank or how full, which app, which one starts) and the unused parts of the flash.

    Blank partitions are detected by the chip's MD5; others are read, which takes time for large ones on a real board.

    Raises:
        OperationError: if there is no table, or it is damaged.
    """
    table = tables.read(link)
    size = reading.flash_size(link)
    slot = tables.app_slot(link, table).name if default_app(table.partitions) else None
    contents = tuple(_contents(link, part, part.name == slot) for part in table.partitions)
    return PartitionAnalysis(table.offset, table.checked, size, contents, _gaps(table, size))


def _contents(link: Link, part: Partition, active: bool) -> PartitionContents:
    if reading.is_blank(link, part.offset, part.size):
        return PartitionContents(part, "blank", 0, 0.0, None, active)
    data = reading.read(link, part.offset, part.size).data
    used = len(data.rstrip(b"\xff"))
    found = app_of(data)
    kind = "app" if found else "image" if chip_of(data) else "data"
    return PartitionContents(part, kind, used, round(used / part.size, 4), found, active)


def _gaps(table: tables.Partitions, flash_size: int) -> tuple[Gap, ...]:
    """Return the parts of the flash after the table that belong to no partition; before it is the bootloader."""
    gaps: list[Gap] = []
    end = table.offset + SECTOR
    for part in sorted(table.partitions, key=lambda item: item.offset):
        if part.offset > end:
            gaps.append(Gap(end, part.offset - end))
        end = max(end, part.offset + part.size)
    if end < flash_size:
        gaps.append(Gap(end, flash_size - end))
    return tuple(gaps)
