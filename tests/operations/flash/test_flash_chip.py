"""The flash chip behind the chip: status, SFDP, and its true size."""

import random

import pytest

from pytest_esp.errors import OperationError
from pytest_esp.formats.nor_flash import NorFlash
from pytest_esp.formats.sfdp import EraseType, FastRead, parse

# Of a Winbond W25Q128JV, as its datasheet prints it.
W25Q128JV_HEADER = bytes.fromhex("53464450 050100FF 00050110 800000FF")
W25Q128JV_TABLE = bytes.fromhex(
    "E520F9FF FFFFFF07 44EB086B 083B42BB FEFFFFFF FFFF0000 FFFF40EB 0C200F52 10D80000 3602A600 82EA14C9 E9637633"
    "7A757A75 F7A2D55C 19F74DFF E930F880"
)


def chip_flash(esp):
    return esp.link.board.simulated.flash


def reader(space):
    return lambda address, size: space[address : address + size].ljust(size, b"\xff")


# -- SFDP


def test_sfdp_of_a_datasheet():
    sfdp = parse(reader(W25Q128JV_HEADER.ljust(0x80, b"\xff") + W25Q128JV_TABLE))
    assert (sfdp.revision, sfdp.size, sfdp.address_bytes, sfdp.page_size) == ("1.5", 16 << 20, "3", 256)
    assert sfdp.erase_types == (EraseType(4096, 0x20), EraseType(32768, 0x52), EraseType(65536, 0xD8))
    assert sfdp.fast_reads == (
        FastRead("1-1-2", 0x3B, 8, 0),
        FastRead("1-2-2", 0xBB, 2, 2),
        FastRead("1-1-4", 0x6B, 8, 0),
        FastRead("1-4-4", 0xEB, 4, 2),
        FastRead("4-4-4", 0xEB, 0, 2),
    )
    assert sfdp.quad_enable.startswith("bit 1 of status register 2")
    assert [(table.id, table.address, table.size) for table in sfdp.tables] == [(0xFF00, 0x80, 64)]


def test_a_short_table_tells_less():
    """Revision 1.0 of the standard has nine words: no page size, no quad enable."""
    header = bytearray(W25Q128JV_HEADER)
    header[11] = 9
    sfdp = parse(reader(bytes(header).ljust(0x80, b"\xff") + W25Q128JV_TABLE[:36]))
    assert (sfdp.size, sfdp.page_size, sfdp.quad_enable) == (16 << 20, None, None)


@pytest.mark.parametrize(
    "space", [b"", bytes(256), W25Q128JV_HEADER[:8] + b"\x81" * 8, W25Q128JV_HEADER[:11] + b"\x02\x80\x00\x00\xff"]
)
def test_no_sfdp(space):
    with pytest.raises(OperationError, match="SFDP"):
        parse(reader(space))


@pytest.mark.parametrize("name", ["esp32", "esp32c3", "esp8266"])
def test_sfdp_comes_over_the_wire(esp_of, name):
    esp = esp_of(name)
    sfdp = esp.flash.sfdp_read()
    assert sfdp == parse(reader(NorFlash(4 << 20).sfdp()))
    assert sfdp.size == 4 << 20


# -- status


@pytest.mark.parametrize("name", ["esp32", "esp32c3", "esp8266"])
def test_status_of_a_fresh_flash(esp_of, name):
    status = esp_of(name).flash.status()
    assert status.registers == (0, 0, 0)
    assert (status.protection, status.busy, status.registers_locked, status.quad_enabled) == (
        "none",
        False,
        False,
        False,
    )
    # esptool tells the voltage of an ESP32 only
    assert (status.voltage, status.voltage_source) == (("3.3V", "a strapping pin") if name == "esp32" else (None, None))


@pytest.mark.parametrize(
    ("registers", "protection", "locked", "quad"),
    [
        (b"\x1c\x00\x00", "all", False, False),
        (b"\x04\x02\x00", "some", False, True),
        (b"\x9c\x42\x00", "none", True, True),  # all, complemented
        (b"\x00\x40\x00", "all", False, False),
    ],
)
def test_protection_is_decoded(esp_of, registers, protection, locked, quad):
    esp = esp_of("esp32c3")
    esp.flash.info()
    chip_flash(esp).status[:] = registers
    status = esp.flash.status()
    assert status.registers == tuple(registers)
    assert (status.protection, status.registers_locked, status.quad_enabled) == (protection, locked, quad)


def test_macronix_has_its_bits_elsewhere(esp_of, monkeypatch):
    esp = esp_of("esp32c3")
    monkeypatch.setattr(NorFlash, "jedec_id", property(lambda flash: b"\xc2\x20\x16"))
    esp.flash.info()
    chip_flash(esp).status[:] = b"\x60\x40\x00"
    status = esp.flash.status()
    assert (status.block_protection, status.protection, status.quad_enabled) == (8, "some", True)


# -- the size


@pytest.mark.parametrize("name", ["esp32", "esp32c3", "esp8266"])
def test_all_witnesses_agree(esp_of, name):
    esp = esp_of(name)
    esp.flash.write(random.Random(1).randbytes(4096), 0x8000)
    size = esp.flash.size_detect()
    assert (size.by_id, size.by_sfdp, size.by_wrap, size.configured, size.size) == (4 << 20,) * 5
    assert size.agree
    assert "0x8000" in size.wrap_note


@pytest.mark.in_process
def test_a_relabelled_flash_is_found_out(esp_of, monkeypatch):
    """Id and SFDP promise 4 MB; addresses wrap around at 512 KB."""
    esp = esp_of("small")
    esp.flash.write(random.Random(1).randbytes(4096), 0x8000)
    esp.link.session.drop()
    genuine = NorFlash(4 << 20)
    label, promise = genuine.jedec_id, genuine.sfdp()
    monkeypatch.setattr(NorFlash, "jedec_id", label)
    monkeypatch.setattr(NorFlash, "sfdp", lambda _flash: promise)
    size = esp.flash.size_detect()
    assert (size.by_id, size.by_sfdp, size.by_wrap, size.size) == (4 << 20, 4 << 20, 512 << 10, 512 << 10)
    assert not size.agree


def test_a_copy_further_on_is_no_wrap(esp_of):
    """The same table and app at 1 MB again: the rest of the flash is not repeated."""
    esp = esp_of("esp32c3")
    data = random.Random(1).randbytes(100)
    esp.flash.write([(0x8000, data), (0x108000, data), (0x20000, b"abc" * 5000)])
    assert esp.flash.size_detect().by_wrap == 4 << 20


def test_all_that_three_bytes_address(esp_of):
    """A flash of 16 MB or more does not wrap within the range that is checked."""
    esp = esp_of("large")
    esp.flash.write(random.Random(1).randbytes(4096), 0x8000)
    size = esp.flash.size_detect()
    assert (size.by_wrap, size.at_least, size.size, size.agree) == (None, 16 << 20, 16 << 20, True)


def test_a_blank_flash_shows_no_wrap(esp_of):
    size = esp_of("esp32c3").flash.size_detect()
    assert (size.by_wrap, size.size, size.agree) == (None, 4 << 20, True)
    assert "blank" in size.wrap_note
