"""The scratch region."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import pytest

from pytest_esp.boards.board import Board
from pytest_esp.operations.esp import Esp

_SIZE = 0x20000


@dataclass(frozen=True)
class Scratch:
    """A region of flash that a test may use: *size* bytes from *address*, a multiple of 64 KB."""

    address: int
    size: int


@pytest.fixture
def scratch(board: Board, esp: Esp) -> Generator[Scratch]:
    """The last 128 KB of the flash, put back after the test on a real board."""
    size = board.spec.flash_size or esp.flash.info().size
    if size is None:
        pytest.skip("the size of the flash is unknown: write flash_size into boards.toml")
    region = Scratch(size - _SIZE, _SIZE)
    if board.virtual:
        yield region
        return
    before = esp.flash.read(region.address, region.size).data
    yield region
    esp.flash.write([(region.address, before)])
