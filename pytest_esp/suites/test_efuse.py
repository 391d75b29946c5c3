"""eFuses can be read, and one is burned on boards that allow it."""

from __future__ import annotations

import pytest

from pytest_esp.boards.board import Board
from pytest_esp.operations.esp import Esp

pytestmark = pytest.mark.esp(each="board")

# Fields that no firmware relies on, with the value to burn. Every chip with eFuses has at least one of them.
_BURNT_HERE = {"CUSTOM_MAC": "AA:CD:EF:01:02:03", "JTAG_DISABLE": 1}


@pytest.fixture(autouse=True)
def _efuses(board: Board) -> None:
    if board.chip == "esp8266":
        pytest.skip("espefuse does not support the ESP8266")


def test_summary_names_every_field(esp: Esp) -> None:
    """The summary contains the fields that all chips have, each with a value."""
    summary = esp.efuse.read_all()
    assert {"MAC", "WR_DIS"} <= summary.fields.keys()
    assert all(field.value is not None for field in summary.fields.values() if field.readable)


def test_mac_in_efuses_is_that_of_the_chip(esp: Esp) -> None:
    """The loader reports the MAC address that is in the eFuses."""
    mac = esp.chip.identify().mac_address
    assert mac is not None
    assert mac in str(esp.efuse.read("MAC").value)


def test_plan_of_a_burn_touches_nothing(esp: Esp) -> None:
    """A plan says what would be burned, and burns nothing."""
    before = esp.efuse.read("WR_DIS")
    plan = esp.efuse.plan("WR_DIS", int(before.bits or "0", 2) or 1)
    assert plan.before == before.bits
    assert esp.efuse.read("WR_DIS") == before


@pytest.mark.burns
def test_burn_reads_back(board: Board, esp: Esp) -> None:
    """A burned eFuse reads back with its new value. On real boards, only eFuses in allow_burn are burned."""
    fields = esp.efuse.read_all().fields
    name = next(name for name in _BURNT_HERE if name in fields)
    if not board.virtual and name not in board.spec.allow_burn:
        pytest.skip(f"{name} is not in the board's allow_burn in boards.toml")
    plan = esp.efuse.plan(name, _BURNT_HERE[name])
    result = esp.efuse.burn(name, _BURNT_HERE[name])
    assert result.burnt_bits == plan.new_bits
    assert esp.efuse.read(name).bits == plan.after
