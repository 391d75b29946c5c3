"""The reported security state is consistent."""

from __future__ import annotations

import pytest

from pytest_esp.boards.board import Board
from pytest_esp.operations.esp import Esp

pytestmark = pytest.mark.esp(each="board")


@pytest.fixture(autouse=True)
def _has_efuses(board: Board) -> None:
    if board.chip == "esp8266":
        pytest.skip("the ESP8266 has no security eFuses")


def test_posture_says_on_what_it_rests(esp: Esp) -> None:
    """The posture lists the eFuses that it is based on, with their values."""
    posture = esp.security.posture()
    fields = esp.efuse.read_all().fields
    assert posture.fuses
    assert {name: str(fields[name].value) for name in posture.fuses} == dict(posture.fuses)


def test_posture_agrees_with_the_loader(esp: Esp) -> None:
    """A chip whose loader answers all commands is not in secure download mode, and its download mode is open."""
    identity = esp.chip.identify()
    if identity.secure_download_mode:
        pytest.skip("the eFuses cannot be read in secure download mode")
    assert esp.security.posture().download_mode == "enabled"
