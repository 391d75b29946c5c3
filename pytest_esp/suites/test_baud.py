"""The link works at other baud rates, up to the one in boards.toml."""

from __future__ import annotations

import pytest

from pytest_esp.boards.board import Board
from pytest_esp.operations.esp import Esp

pytestmark = pytest.mark.esp(each="board")


@pytest.mark.parametrize("baudrate", [115200, 230400, 460800, 921600])
def test_flash_reads_the_same_at(board: Board, esp: Esp, baudrate: int) -> None:
    """Flash reads the same before and after a change of the baud rate."""
    if not board.virtual and baudrate > board.spec.baud:
        pytest.skip(f"boards.toml limits the board to {board.spec.baud} baud")
    before = esp.flash.read(0, 2048).data
    assert esp.chip.change_baudrate(baudrate).baud == baudrate
    assert esp.flash.read(0, 2048).data == before
