"""Verification compares with the flash, and finds a single flipped bit."""

from __future__ import annotations

import hashlib
import random
from typing import TYPE_CHECKING

import pytest

from pytest_esp.operations.esp import Esp

if TYPE_CHECKING:
    from pytest_esp.suites.conftest import Scratch

pytestmark = [pytest.mark.esp(each="board"), pytest.mark.erases]

DATA = random.Random(0).randbytes(10_000)


def test_verify_accepts_what_was_written(esp: Esp, scratch: Scratch) -> None:
    """Flash with the written data matches."""
    esp.flash.write([(scratch.address, DATA)])
    (checked,) = esp.flash.verify([(scratch.address, DATA)])
    assert checked.matches
    assert checked.first_difference is None


@pytest.mark.parametrize("position", [0, 4096, len(DATA) - 1])
def test_verify_finds_a_flipped_bit(esp: Esp, scratch: Scratch, position: int) -> None:
    """A single differing bit is found and located."""
    flipped = bytearray(DATA)
    flipped[position] ^= 0x10
    esp.flash.write([(scratch.address, bytes(flipped))])
    (checked,) = esp.flash.verify([(scratch.address, DATA)])
    assert not checked.matches
    assert checked.first_difference == scratch.address + position


def test_md5_is_that_of_the_data(esp: Esp, scratch: Scratch) -> None:
    """The chip's MD5 of a region is the MD5 of the data written there."""
    esp.flash.write([(scratch.address, DATA)])
    assert esp.flash.md5(scratch.address, len(DATA)).md5 == hashlib.md5(DATA, usedforsecurity=False).hexdigest()
