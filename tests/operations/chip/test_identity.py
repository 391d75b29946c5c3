"""Identity, baud rate and registers of simulated chips."""

import re
import subprocess
import sys

import pytest

from pytest_esp.errors import OperationError
from pytest_esp.sim.chip import SimChip
from pytest_esp.wire.port import VirtualPort

CHIPS = ["esp8266", "esp32", "esp32s2", "esp32s3", "esp32c2", "esp32c3", "esp32c6", "esp32h2", "esp32p4"]


def chip_of(esp) -> SimChip:
    return esp.link.board.simulated


@pytest.mark.parametrize("chip", CHIPS)
def test_identity(esp_of, chip):
    esp = esp_of(chip)
    identity = esp.chip.identify()
    assert identity.chip_type == chip
    assert identity.mac_address == chip_of(esp).mac
    assert identity.flash_size_bytes == 4 * 1024 * 1024
    assert identity.crystal_mhz in {26, 32, 40, 48}
    assert identity.features
    assert identity.package in identity.description
    assert "revision" not in identity.package
    assert identity.connection_time_seconds > 0
    assert identity.revision == (None if chip == "esp8266" else chip_of(esp).revision)
    assert identity.chip_revision == (
        None if chip == "esp8266" else f"v{identity.revision // 100}.{identity.revision % 100}"
    )


def test_a_second_look_is_warm(esp_of):
    esp = esp_of("esp32c6")
    first = esp.chip.identify()
    second = esp.chip.identify()
    assert second.connection_time_seconds == 0
    assert (second.mac_address, second.flash_id) == (first.mac_address, first.flash_id)


@pytest.mark.parametrize("chip", ["esp8266", "esp32", "esp32s3", "esp32c3", "esp32c6"])
def test_info_agrees_with_esptool_on_the_same_board(esp_of, chip):
    esp = esp_of(chip)
    found = esp.chip.info()
    esp.chip.reset("bootloader")  # a socket has no lines for that
    endpoint = esp.link.board.serve("socket://127.0.0.1:0")
    command = [sys.executable, "-m", "esptool", "--port", endpoint.url, "--no-stub", "flash-id"]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    endpoint.close()
    told = dict(re.findall(r"^([\w ]+): +(.*?) *$", said, re.MULTILINE))
    assert told["Chip type"] == found.description
    assert told["Features"].split(", ") == list(found.features)
    assert told["Crystal frequency"] == found.crystal_frequency == f"{found.crystal_mhz}MHz"
    assert told.get("BASE MAC", told["MAC"]) == found.mac_address
    assert told["Detected flash size"] == found.flash_size == f"{found.flash_size_bytes >> 20}MB"


def test_info_of_locks(esp_of):
    esp = esp_of("esp32c3")
    before = esp.chip.info()
    assert (before.secure_boot, before.flash_encryption, before.security_flags) == ("disabled", False, ())
    assert (before.efuse_block_version, before.package_version, before.usb_mode) == ("v0.0", 0, None)
    esp.efuse.burn("SECURE_BOOT_EN", 1)
    esp.efuse.burn("SPI_BOOT_CRYPT_CNT", 1)
    after = esp.chip.info()
    assert (after.secure_boot, after.flash_encryption) == ("v2", True)
    assert "SECURE_BOOT_EN" in after.security_flags
    assert "SECURE_BOOT_EN" in esp.security.info().flag_names


def test_info_of_a_chip_in_secure_download_mode(esp_of):
    found = esp_of("locked").chip.info()
    assert found.secure_download_mode
    assert (found.efuse_block_version, found.mac_address, found.package_version) == (None, None, None)
    assert "SECURE_DOWNLOAD_ENABLE" in found.security_flags


def test_info_of_an_esp8266(esp_of):
    found = esp_of("esp8266").chip.info()
    assert (found.secure_boot, found.flash_encryption, found.security_flags) == (None, None, None)
    assert found.efuse_block_version is None


def test_the_baud_rate_changes_under_a_warm_link(esp):
    for baudrate in (230400, 921600, 115200):
        assert esp.chip.change_baudrate(baudrate).baud == baudrate
        assert chip_of(esp).baudrate == pytest.approx(baudrate, rel=0.01)
        assert esp.flash.read(0, 16).data == b"\xff" * 16
    for nonsense in (-1, 0, 1 << 32):
        with pytest.raises(OperationError, match=f"invalid baud rate {nonsense}"):
            esp.chip.change_baudrate(nonsense)


def test_registers(esp):
    register = esp.chip.read_register(0x40001000)
    assert register.address == 0x40001000
    assert 0 <= register.value < 1 << 32
    for address in (0x40001001, 1 << 32, -4, "here"):
        with pytest.raises(OperationError, match="address"):
            esp.chip.read_register(address)


def test_a_board_that_another_program_has_used_is_connected_to_anew(esp_of):
    """A warm connection does not know the state that the other one left: half a packet, another stub, an app."""
    esp = esp_of("esp32c3")
    first = esp.chip.identify()
    assert esp.chip.identify().connection_time_seconds == 0.0  # warm
    other = VirtualPort(esp.link.board.wire, "somebody else's")
    other.open()
    other.write(b"\xc0\x00\x0a\x04\x00half of a packet")
    other.close()
    again = esp.chip.identify()
    assert again.mac_address == first.mac_address
    assert again.connection_time_seconds > 0
    assert esp.chip.identify().connection_time_seconds == 0.0
