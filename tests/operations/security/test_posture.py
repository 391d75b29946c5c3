"""Security info and posture on simulated chips; tests of every family are in test_security_families.py."""

import pytest

from pytest_esp.errors import LinkError, OperationError


def test_the_first_secure_boot_of_the_esp32(esp_of):
    esp = esp_of("esp32")
    esp.efuse.burn("ABS_DONE_0", 1)
    assert esp.security.posture().secure_boot_version == "v1"


def test_jtag_over_usb_counts_as_open(esp_of):
    esp = esp_of("esp32c3")
    esp.efuse.burn("DIS_PAD_JTAG", 1)
    posture = esp.security.posture()
    assert (posture.jtag, posture.jtag_pads, posture.jtag_usb) == (True, "disabled", "open")


def test_a_soft_disabled_jtag_counts_by_odd_bits(esp_of):
    esp = esp_of("esp32s3")
    esp.efuse.burn("DIS_USB_JTAG", 1)
    for value, pads in ((1, "soft-disabled"), (3, "open"), (7, "soft-disabled")):
        esp.efuse.burn("SOFT_DIS_JTAG", value)
        posture = esp.security.posture()
        assert (posture.jtag_pads, posture.jtag) == (pads, pads == "open")


def test_a_chip_in_secure_download_mode_tells_what_it_can(esp_of):
    esp = esp_of("esp32c3")
    for name in ("SECURE_BOOT_EN", "DIS_PAD_JTAG", "SPI_BOOT_CRYPT_CNT", "ENABLE_SECURITY_DOWNLOAD"):
        esp.efuse.burn(name, 1)
    posture = esp.security.posture()
    assert (posture.download_mode, posture.source) == ("secure", "security info")
    assert (posture.flash_encryption, posture.secure_boot) == (True, True)
    assert (posture.jtag_pads, posture.jtag_usb, posture.jtag) == ("disabled", "unknown", None)


def test_an_unreachable_board_has_no_posture(esp_of):
    esp = esp_of("esp32c3")
    esp.efuse.burn("DIS_DOWNLOAD_MODE", 1)
    with pytest.raises(LinkError):
        esp.security.posture()


def test_the_esp8266_has_none_of_this(esp_of):
    esp = esp_of("esp8266")
    with pytest.raises(OperationError, match="no eFuse definitions for the ESP8266"):
        esp.security.posture()


@pytest.mark.parametrize("chip", ["esp32s2", "esp32s3", "esp32c3", "esp32c6"])
def test_security_info(esp_of, chip):
    esp = esp_of(chip)
    assert esp.security.info().flag_names == ()
    esp.efuse.burn("SECURE_BOOT_EN", 1)
    esp.efuse.burn("SPI_BOOT_CRYPT_CNT", 1)
    info = esp.security.info()
    assert "SECURE_BOOT_EN" in info.flag_names
    assert info.flash_crypt_count == 1
    assert (info.chip_id is None) == (chip == "esp32s2")


def test_the_esp32_has_no_security_info(esp_of):
    with pytest.raises(OperationError, match="does not support GET_SECURITY_INFO"):
        esp_of("esp32").security.info()
