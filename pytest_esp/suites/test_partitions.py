"""The partition table can be read and is consistent."""

from __future__ import annotations

import itertools

import pytest

from pytest_esp.boards.board import Board
from pytest_esp.errors import OperationError
from pytest_esp.formats.partition_table import from_csv
from pytest_esp.operations.esp import Esp
from pytest_esp.operations.flash.tables import Partitions

pytestmark = pytest.mark.esp(each="board")

# Flashed to virtual boards that have no table: ESP-IDF's "single factory app, no OTA".
_SINGLE_APP = """
nvs,      data, nvs,     0x9000,  0x6000,
phy_init, data, phy,     0xf000,  0x1000,
factory,  app,  factory, 0x10000, 1M,
"""


@pytest.fixture
def table(board: Board, esp: Esp) -> Partitions:
    """The board's partition table."""
    try:
        return esp.partitions.read()
    except OperationError:
        if not board.virtual:
            pytest.skip("the board has no partition table")
    esp.flash.write([(0x8000, from_csv(_SINGLE_APP))])
    return esp.partitions.read()


def test_table_has_an_app(table: Partitions) -> None:
    """The table contains an app partition."""
    assert any(partition.type == "app" for partition in table.partitions)


def test_partitions_are_in_flash_and_apart(table: Partitions, esp: Esp) -> None:
    """Partitions do not overlap and lie within the flash."""
    ordered = sorted(table.partitions, key=lambda partition: partition.offset)
    for one, other in itertools.pairwise(ordered):
        assert one.offset + one.size <= other.offset, f"{one.name} overlaps {other.name}"
    size = esp.flash.info().size
    assert size is None or ordered[-1].offset + ordered[-1].size <= size


def test_partitions_are_found_by_name(table: Partitions, esp: Esp) -> None:
    """Each partition is found by its name."""
    for partition in table.partitions:
        assert esp.partitions.find(partition.name) == partition
