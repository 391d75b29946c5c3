"""The board is the one described in boards.toml."""

from __future__ import annotations

import re

import pytest

from pytest_esp.boards.board import Board
from pytest_esp.operations.esp import Esp

pytestmark = pytest.mark.esp(each="board")


def test_chip_is_the_promised_one(board: Board, esp: Esp) -> None:
    """The detected chip is the one in boards.toml."""
    if board.spec.chip == "auto":
        pytest.skip("boards.toml does not give the board's chip")
    assert esp.chip.identify().chip_type == board.spec.chip


def test_mac_address_is_valid(esp: Esp) -> None:
    """The MAC address has six bytes, is not blank, and is not a multicast address."""
    identity = esp.chip.identify()
    if identity.secure_download_mode:
        pytest.skip("the MAC address cannot be read in secure download mode")
    assert re.fullmatch(r"([0-9a-f]{2}:){5}[0-9a-f]{2}", identity.mac_address or "")
    assert identity.mac_address not in {"00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff"}
    assert not int((identity.mac_address or "01")[:2], 16) & 1


def test_flash_has_the_promised_size(board: Board, esp: Esp) -> None:
    """The detected flash size is the one in boards.toml."""
    if board.spec.flash_size is None:
        pytest.skip("boards.toml does not give the board's flash_size")
    assert esp.flash.info().size == board.spec.flash_size


def test_identity_stays_the_same(esp: Esp) -> None:
    """The chip has the same identity after a reset."""
    first = esp.chip.identify()
    esp.chip.reset("bootloader")
    second = esp.chip.identify()
    for name in ("chip_type", "mac_address", "flash_id"):
        assert getattr(first, name) == getattr(second, name)
