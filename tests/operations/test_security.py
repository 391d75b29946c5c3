"""Security info and posture, on virgin and on locked simulated chips of every family that espefuse knows."""

import pytest
from espefuse.efuse_interface import SUPPORTED_CHIPS
from esptool.targets import CHIP_LIST

from pytest_esp.errors import LinkError, OperationError

FAMILIES = [chip for chip in CHIP_LIST if chip in SUPPORTED_CHIPS]
LOCKS = {"esp32": ("ABS_DONE_1", "JTAG_DISABLE", "FLASH_CRYPT_CNT"), "esp32s2": ("SECURE_BOOT_EN", "HARD_DIS_JTAG")}
# espefuse's definitions of this chip name no flash encryption counter.
UNTOLD = {"esp32e22"}


@pytest.mark.parametrize("chip", FAMILIES)
def test_a_virgin_chip_is_open_and_a_locked_one_is_not(esp_of, chip):
    esp = esp_of(chip)
    virgin = esp.security.posture()
    assert (virgin.flash_encryption or False, virgin.secure_boot, virgin.jtag) == (False, False, True)
    assert (virgin.secure_boot_version, virgin.jtag_pads, virgin.download_mode) == (None, "open", "enabled")
    assert (virgin.flash_encryption is None) == (chip in UNTOLD)

    names = LOCKS.get(chip, ("SECURE_BOOT_EN", "DIS_PAD_JTAG", "DIS_USB_JTAG"))
    for name in (*names, "SPI_BOOT_CRYPT_CNT"):
        if name in esp.efuse.read_all().fields:
            esp.efuse.burn(name, 1)
    locked = esp.security.posture()
    assert (locked.secure_boot, locked.secure_boot_version) == (True, "v2")
    assert (locked.jtag, locked.jtag_pads) == (False, "disabled")
    assert locked.jtag_usb == ("absent" if virgin.jtag_usb == "absent" else "disabled")
    assert locked.flash_encryption is (None if chip in UNTOLD else True)


@pytest.mark.parametrize(("chip", "counter"), [("esp32", "FLASH_CRYPT_CNT"), ("esp32c3", "SPI_BOOT_CRYPT_CNT")])
def test_flash_is_encrypted_while_an_odd_number_of_bits_is_burnt(esp_of, chip, counter):
    esp = esp_of(chip)
    for value, encrypted in ((1, True), (3, False), (7, True)):
        esp.efuse.burn(counter, value)
        assert esp.security.posture().flash_encryption is encrypted


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
    with pytest.raises(OperationError, match="has no security info"):
        esp_of("esp32").security.info()
