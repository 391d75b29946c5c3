"""Resets reach the app and the bootloader repeatedly."""

from __future__ import annotations

import pytest

from pytest_esp.operations.esp import Esp

pytestmark = pytest.mark.esp(each="board")


def test_reset_into_the_app(esp: Esp) -> None:
    """After a reset to the app, the console shows the ROM's banner."""
    result = esp.chip.reset("app")
    assert result.mode == "app"
    assert result.output.strip()


def test_reset_into_the_bootloader(esp: Esp) -> None:
    """After a reset to the bootloader, the chip responds."""
    assert esp.chip.reset("bootloader").mode == "bootloader"
    assert esp.chip.identify().chip_type


def test_app_and_bootloader_by_turns(esp: Esp) -> None:
    """Switching between app and bootloader keeps the link working."""
    for _ in range(3):
        assert esp.chip.reset("app").output.strip()
        assert esp.chip.identify().chip_type
