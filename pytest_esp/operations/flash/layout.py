"""The layout of a flash: bootloader, partition table, partitions, and the gaps between them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from esptool.targets import CHIP_DEFS

from pytest_esp.errors import OperationError
from pytest_esp.formats.partition_table import Partition
from pytest_esp.formats.regions import SECTOR
from pytest_esp.link.link import Link
from pytest_esp.operations.chip.identity import identify
from pytest_esp.operations.flash import tables
from pytest_esp.operations.flash.access import ADDRESS_SPACE, Over, reach

Kind = Literal["bootloader", "table", "partition", "gap", "flash"]
"""What a span is; *flash* is the whole flash, if it cannot be divided."""

CHUNK = 0x10000
"""Bytes to read, compare and keep at a time: one large erase block of usual flash chips."""


@dataclass(frozen=True)
class Span:
    """A named part of the flash; *partition* is its entry in the table, if it has one."""

    name: str
    kind: Kind
    address: int
    size: int
    partition: Partition | None = None

    @property
    def end(self) -> int:
        """The address after its last byte."""
        return self.address + self.size


@dataclass(frozen=True)
class Layout:
    """Spans that cover the flash from its first byte to its last; *note* says why there is only one."""

    spans: tuple[Span, ...]
    note: str | None = None


def layout_of(link: Link, flash_size: int, chip: str) -> Layout:
    """Return how the flash is divided, according to its partition table.

    Without a usable table (missing, damaged, encrypted, or overlapping partitions) it is one span, and a note says so.
    """
    try:
        table = tables.read(link)
    except OperationError as error:
        return _undivided(flash_size, error.message)
    spans = [_own_span(part) for part in table.partitions]
    taken = {span.address for span in spans}
    bootloader = CHIP_DEFS[chip].BOOTLOADER_FLASH_OFFSET
    first = min((span.address for span in spans), default=table.offset)
    if bootloader < min(table.offset, first) and bootloader not in taken:
        spans.append(Span("bootloader", "bootloader", bootloader, min(table.offset, first) - bootloader))
    if table.offset not in taken:
        spans.append(Span("partition-table", "table", table.offset, SECTOR))
    spans.sort(key=lambda span: span.address)
    problem = _problem(spans, flash_size)
    return _undivided(flash_size, problem) if problem else Layout(tuple(_with_gaps(spans, flash_size)))


def chunks(address: int, size: int) -> Iterable[tuple[int, int]]:
    """Yield address and size of the pieces of a region, cut at multiples of `CHUNK`."""
    end = address + size
    while address < end:
        following = min((address // CHUNK + 1) * CHUNK, end)
        yield address, following - address
        address = following


def _own_span(part: Partition) -> Span:
    kinds: dict[str, Kind] = {"bootloader": "bootloader", "partition_table": "table"}
    return Span(part.name, kinds.get(part.type, "partition"), part.offset, part.size, part)


def _undivided(flash_size: int, reason: str) -> Layout:
    return Layout((Span("flash", "flash", 0, flash_size),), f"not divided into partitions: {reason}")


def _problem(spans: Sequence[Span], flash_size: int) -> str | None:
    """Return why the table cannot be used, or None."""
    for span in spans:
        if span.end > flash_size:
            return f"{span.name} ends at {span.end:#x}, beyond the flash"
        if span.address % SECTOR or span.size % SECTOR:
            return f"{span.name} at {span.address:#x} is not aligned to whole sectors"
    for span, following in itertools.pairwise(spans):
        if span.end > following.address:
            return f"{span.name} and {following.name} overlap"
    return None


def _with_gaps(spans: Sequence[Span], flash_size: int) -> Iterable[Span]:
    position = 0
    for span in spans:
        if span.address > position:
            yield _gap(position, span.address)
        yield span
        position = span.end
    if position < flash_size:
        yield _gap(position, flash_size)


def _gap(start: int, end: int) -> Span:
    return Span(f"gap-{start:#x}", "gap", start, end - start)


@dataclass(frozen=True)
class FlashOwner:
    """The properties that must match between the board of a backup and the board of its restore."""

    chip: str
    mac: str | None
    flash_encryption: bool
    flash_size: int


def owner_of(link: Link, over: Over) -> FlashOwner:
    """Return the identity of the flash: chip, size, encryption.

    Raises:
        OperationError: if the flash cannot be read as a whole.
    """
    chip = identify(link)
    if chip.secure_download_mode:
        raise OperationError(
            "the chip is in secure download mode: its flash cannot be read", hint="keep the build's files instead"
        )
    with link.session.use("reading whether flash is encrypted", stub=False) as esp:
        encrypted = bool(esp.get_flash_encryption_enabled())
    with reach(link, over, "reading the size of the flash") as access:
        size = access.size
    if size >= ADDRESS_SPACE:
        raise OperationError("the size of the flash is unknown", hint="set flash_size in boards.toml")
    return FlashOwner(chip.chip_type, chip.mac_address, encrypted, size)
