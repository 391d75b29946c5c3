"""Weaknesses found on simulated chips: new, partly locked and locked ones."""

import os

import pytest
from espefuse.efuse_interface import SUPPORTED_CHIPS
from esptool.targets import CHIP_LIST

FAMILIES = [chip for chip in CHIP_LIST if chip in SUPPORTED_CHIPS]


def words(esp, severity=None):
    return [found.what for found in esp.security.posture().findings if severity in (None, found.severity)]


def preset(esp, **values):
    """Burn as at the factory, past espefuse and its checks."""
    assert esp.link.port.is_open
    for name, value in values.items():
        esp.link.board.simulated.efuses.preset(name, value)


@pytest.mark.parametrize("chip", FAMILIES)
def test_a_virgin_chip_of_every_family(esp_of, chip):
    posture = esp_of(chip).security.posture()
    high = [found.what for found in posture.findings if found.severity == "high"]
    assert any("flash is not encrypted" in what for what in high) == (chip != "esp32e22")
    assert any("secure boot is off" in what for what in high)
    assert any("JTAG pins" in what for what in high)
    assert any("USB-Serial-JTAG" in what for what in high) == (posture.jtag_usb == "open")
    assert any("download mode is open" in found.what for found in posture.findings)
    assert all(found.what_to_do for found in posture.findings)
    assert {key.state for key in posture.key_blocks} == {"empty"}
    expected = {"esp32": 3, "esp32c2": 2, "esp32s31": 5}.get(chip, 6)
    assert len(posture.key_blocks) == expected


def test_findings_come_with_the_worst_first(esp_of):
    order = [found.severity for found in esp_of("esp32c3").security.posture().findings]
    assert order == sorted(order, key=["high", "medium", "low", "info"].index)


def test_a_chip_that_is_locked_as_it_should_be_has_no_serious_finding(esp_of):
    """ESP-IDF's release mode with secure boot v2: what is left are the free slots, which are revoked here, too."""
    esp = esp_of("esp32c3")
    names = ["DIS_DOWNLOAD_ICACHE", "DIS_DOWNLOAD_MANUAL_ENCRYPT", "DIS_PAD_JTAG", "DIS_USB_JTAG", "DIS_DIRECT_BOOT",
             "SECURE_BOOT_EN", "SECURE_BOOT_KEY_REVOKE1", "SECURE_BOOT_KEY_REVOKE2"]  # fmt: skip
    preset(esp, SPI_BOOT_CRYPT_CNT=7, KEY_PURPOSE_0=4, KEY_PURPOSE_1=9, RD_DIS=1, **dict.fromkeys(names, 1))
    esp.efuse.burn("BLOCK_KEY1", os.urandom(32))
    preset(esp, WR_DIS=1 | 1 << 8 | 1 << 9 | 1 << 23 | 1 << 24)  # RD_DIS, both purposes, both blocks
    posture = esp.security.posture()
    assert [found for found in posture.findings if found.severity in ("high", "low")] == []
    assert words(esp, "medium") == [
        "download mode is open: it reads and writes flash, memory and eFuses",
    ]
    key, digest, *rest = posture.key_blocks
    assert (key.purpose, key.state, key.writeable) == ("XTS_AES_128_KEY", "read-protected", False)
    assert (digest.purpose, digest.state, digest.readable) == ("SECURE_BOOT_DIGEST0", "burnt", True)
    assert {block.state for block in rest} == {"empty"}


def test_an_esp32_whose_encryption_is_half_done(esp_of):
    esp = esp_of("esp32")
    preset(esp, FLASH_CRYPT_CNT=1)
    assert any("no key is burnt" in what for what in words(esp, "high"))
    assert {what.split(": ")[1].split()[0] for what in words(esp, "high") if "download mode can read" in what} == {
        "DISABLE_DL_DECRYPT",
        "DISABLE_DL_CACHE",
    }
    medium = words(esp, "medium")
    assert any("FLASH_CRYPT_CONFIG is not 0xF" in what for what in medium)
    assert any("FLASH_CRYPT_CNT has unburnt bits" in what for what in medium)
    esp.efuse.burn("BLOCK1", os.urandom(32))
    assert any("key in BLOCK1 can be read" in what for what in words(esp, "high"))


def test_the_halves_of_the_block_of_an_esp32c2(esp_of):
    """The key's half is read-protected, the digest's is not: neither is wrong."""
    esp = esp_of("esp32c2")
    esp.efuse.burn("BLOCK_KEY0", os.urandom(32))
    preset(esp, SPI_BOOT_CRYPT_CNT=7, SECURE_BOOT_EN=1, RD_DIS=1)
    low, high = esp.security.posture().key_blocks
    assert (low.name, low.state) == ("BLOCK_KEY0_LOW_128", "read-protected")
    assert (high.purpose, high.state) == ("SECURE_BOOT_DIGEST", "burnt")
    assert not any("digest" in what or "can be read" in what for what in words(esp, "high"))
    preset(esp, RD_DIS=3)
    assert any("BLOCK_KEY0_HI_128 is read-protected" in what for what in words(esp, "high"))


def test_secure_boot_without_a_digest_and_with_all_keys_revoked(esp_of):
    esp = esp_of("esp32s3")
    preset(esp, SECURE_BOOT_EN=1)
    assert any("no digest" in what for what in words(esp, "high"))
    assert sum("is free" in what for what in words(esp, "medium")) == 3
    preset(esp, **{f"SECURE_BOOT_KEY_REVOKE{number}": 1 for number in range(3)})
    assert any("all public keys are revoked" in what for what in words(esp, "high"))


def test_the_first_secure_boot_is_no_good_any_more(esp_of):
    esp = esp_of("esp32")
    preset(esp, ABS_DONE_0=1)
    assert any("secure boot v1" in what for what in words(esp, "medium"))
    assert not any("secure boot is off" in what for what in words(esp))


def test_secure_download_mode_says_what_it_cannot_see(esp_of):
    posture = esp_of("locked").security.posture()
    assert posture.key_blocks == ()
    assert {found.severity for found in posture.findings} >= {"high", "info"}
    assert any("cannot be read in secure download mode" in found.what for found in posture.findings)
