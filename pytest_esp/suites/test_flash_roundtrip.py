"""Written flash reads back, and erased flash is blank: in the scratch region (see the package)."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from pytest_esp.operations.esp import Esp
from pytest_esp.operations.flash.writing import SECTOR

if TYPE_CHECKING:
    from pytest_esp.suites.conftest import Scratch

pytestmark = [pytest.mark.esp(each="board"), pytest.mark.erases]


@pytest.mark.parametrize("size", [1, 3, 255, 4095, 4097, 16385, 65537])
def test_random_data_comes_back(esp: Esp, scratch: Scratch, size: int) -> None:
    """Data of odd sizes reads back as written."""
    data = random.Random(size).randbytes(size)
    result = esp.flash.write([(scratch.address, data)], skip_unchanged=False)
    assert result.bytes_written == size
    assert esp.flash.read(scratch.address, size).data == data


def test_odd_length_read_at_odd_address(esp: Esp, scratch: Scratch) -> None:
    """A read can start and end at any address."""
    data = random.Random(1).randbytes(2 * SECTOR)
    esp.flash.write([(scratch.address, data)])
    assert esp.flash.read(scratch.address + 13, 5001).data == data[13:5014]


def test_two_regions_in_one_write(esp: Esp, scratch: Scratch) -> None:
    """One operation writes several regions, and the flash between them does not change."""
    between = random.Random(2).randbytes(SECTOR)
    esp.flash.write([(scratch.address + SECTOR, between)])
    first, last = random.Random(3).randbytes(100), bytes(SECTOR)
    esp.flash.write([(scratch.address, first), (scratch.address + 2 * SECTOR, last)])
    found = esp.flash.read(scratch.address, 3 * SECTOR).data
    assert found[:100] == first
    assert found[SECTOR:] == between + last


def test_unchanged_data_is_not_written_again(esp: Esp, scratch: Scratch) -> None:
    """A second write of the same data is skipped because the chip's MD5 matches."""
    data = random.Random(4).randbytes(3 * SECTOR)
    esp.flash.write([(scratch.address, data)])
    again = esp.flash.write([(scratch.address, data)])
    assert (again.bytes_written, again.bytes_skipped) == (0, len(data))


@pytest.mark.parametrize("size", [SECTOR, 2 * SECTOR, 0x8000, 0x10000, 0x11000], ids=hex)
def test_erase_blanks_its_region_and_nothing_else(esp: Esp, scratch: Scratch, size: int) -> None:
    """Sectors, blocks of 32 KB and 64 KB, and combinations of them are erased exactly."""
    length = size + 2 * SECTOR
    data = random.Random(size).randbytes(length)
    esp.flash.write([(scratch.address, data)])
    esp.flash.erase(scratch.address + SECTOR, size)
    found = esp.flash.read(scratch.address, length).data
    assert found[:SECTOR] == data[:SECTOR]
    assert found[SECTOR : SECTOR + size] == b"\xff" * size
    assert found[SECTOR + size :] == data[SECTOR + size :]
