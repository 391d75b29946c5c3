"""Identity and resets of simulated chips."""

import re

import pytest

from pytest_esp.errors import LinkError, OperationError
from pytest_esp.sim.chip import SimChip

CHIPS = ["esp8266", "esp32", "esp32s2", "esp32s3", "esp32c2", "esp32c3", "esp32c6", "esp32h2", "esp32p4"]


def chip_of(esp) -> SimChip:
    return esp.link.board.simulated


@pytest.mark.parametrize("chip", CHIPS)
def test_identity(esp_of, chip):
    esp = esp_of(chip)
    identity = esp.chip.identify()
    assert identity.chip == chip
    assert identity.mac == chip_of(esp).mac
    assert identity.flash_size == 4 * 1024 * 1024
    assert identity.crystal_mhz in {26, 32, 40, 48}
    assert identity.features
    assert identity.package in identity.description
    assert "revision" not in identity.package
    assert identity.connect_seconds > 0
    assert identity.revision == (None if chip == "esp8266" else chip_of(esp).revision)


def test_a_second_look_is_warm(esp_of):
    esp = esp_of("esp32c6")
    first = esp.chip.identify()
    second = esp.chip.identify()
    assert second.connect_seconds == 0
    assert (second.mac, second.flash_id) == (first.mac, first.flash_id)


def test_a_reset_into_the_bootloader_is_proven(esp):
    assert esp.chip.reset("bootloader").mode == "bootloader"
    assert chip_of(esp).mode == "bootloader"


def test_a_reset_into_the_app_is_proven_by_its_banner(esp):
    result = esp.chip.reset()
    assert result.mode == "app"
    assert re.search(r"rst:0x1 \(POWERON", result.output)
    assert "invalid header: 0xffffffff" in result.output  # blank flash
    assert chip_of(esp).mode == "app"


def test_a_chip_that_says_nothing_after_a_reset_is_an_error(esp_of, monkeypatch):
    esp = esp_of("esp32c3")
    esp.chip.identify()
    monkeypatch.setattr(chip_of(esp), "transmit", lambda data: None)
    with pytest.raises(LinkError, match="no boot banner came") as caught:
        esp.chip.reset("app", wait=0.05)
    assert caught.value.board == "esp32c3"


def test_there_are_two_resets(esp_of):
    with pytest.raises(OperationError, match="there is no reset to 'mars'") as caught:
        esp_of("esp32c3").chip.reset("mars")
    assert "'app' or 'bootloader'" in caught.value.hint


def test_the_baud_rate_changes_under_a_warm_link(esp):
    for baudrate in (230400, 921600, 115200):
        assert esp.chip.change_baudrate(baudrate).baudrate == baudrate
        assert chip_of(esp).baudrate == pytest.approx(baudrate, rel=0.01)
        assert esp.flash.read(0, 16).data == b"\xff" * 16
    for nonsense in (-1, 0, 1 << 32):
        with pytest.raises(OperationError, match=f"{nonsense} is no baud rate"):
            esp.chip.change_baudrate(nonsense)


def test_registers(esp):
    register = esp.chip.read_register(0x40001000)
    assert register.address == 0x40001000
    assert 0 <= register.value < 1 << 32
    for address in (0x40001001, 1 << 32, -4, "here"):
        with pytest.raises(OperationError, match="address"):
            esp.chip.read_register(address)
