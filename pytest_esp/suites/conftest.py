"""The scratch region."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from hashlib import md5

import pytest

from pytest_esp.boards.board import Board
from pytest_esp.operations.esp import Esp
from pytest_esp.operations.flash.writing import SECTOR

_SIZE = 0x20000


@dataclass(frozen=True)
class Scratch:
    """A region of flash that a test may use: *size* bytes from *address*, a multiple of 64 KB."""

    address: int
    size: int


@pytest.fixture(scope="session")
def known_contents() -> dict[str, bytes]:
    """The contents of each real board's scratch region when it was last read."""
    return {}


@pytest.fixture
def scratch(board: Board, esp: Esp, known_contents: dict[str, bytes]) -> Generator[Scratch]:
    """The last 128 KB of the flash; restored after the test on real boards."""
    size = board.spec.flash_size or esp.flash.info().size
    if size is None:
        pytest.skip("the flash size is unknown: add flash_size to the board's entry in boards.toml")
    region = Scratch(size - _SIZE, _SIZE)
    if board.virtual:
        yield region
        return
    # Reading 128 KB takes seconds on a real port. Compare the MD5 first, and read only if the contents changed.
    before = known_contents.get(board.name)
    if before is None or esp.flash.md5(region.address, region.size).md5 != md5(before).hexdigest():
        before = known_contents[board.name] = esp.flash.read(region.address, region.size).data
    yield region
    sectors = range(0, region.size, SECTOR)
    esp.flash.write([(region.address + start, before[start : start + SECTOR]) for start in sectors])
