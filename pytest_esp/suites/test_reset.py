"""Resets reach the app and the bootloader, again and again."""

from __future__ import annotations

import pytest

from pytest_esp.operations.esp import Esp

pytestmark = pytest.mark.esp(each="board")


def test_reset_into_the_app(esp: Esp) -> None:
    """After a reset to the app the ROM's banner is on the console."""
    result = esp.chip.reset("app")
    assert result.mode == "app"
    assert result.output.strip()


def test_reset_into_the_bootloader(esp: Esp) -> None:
    """After a reset to the bootloader the chip answers."""
    assert esp.chip.reset("bootloader").mode == "bootloader"
    assert esp.chip.identify().chip_type


def test_app_and_bootloader_by_turns(esp: Esp) -> None:
    """Changing sides loses neither the wire nor the chip."""
    for _ in range(3):
        assert esp.chip.reset("app").output.strip()
        assert esp.chip.identify().chip_type
