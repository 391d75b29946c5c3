"""The posture of every family that espefuse knows, virgin and locked, beside what unmodified espefuse and esptool say.

Both tools run against the same simulated chip, which is served on a socket.
"""

import contextlib
import io
import json
import re
import tempfile
from pathlib import Path

import esptool
import pytest
from espefuse.efuse_interface import SUPPORTED_CHIPS, init_commands
from esptool.targets import CHIP_LIST

from pytest_esp.errors import LinkError
from pytest_esp.sim.chip import SimChip

FAMILIES = [chip for chip in CHIP_LIST if chip in SUPPORTED_CHIPS]
UNTOLD = {"esp32e22"}  # espefuse's definitions of this chip name no flash encryption counter

# What closes a chip; each takes what it has.
FUSES = {"FLASH_CRYPT_CNT": 0x7F, "SPI_BOOT_CRYPT_CNT": 7, "FLASH_CRYPT_CONFIG": 15} | dict.fromkeys(
    ("DISABLE_DL_ENCRYPT", "DISABLE_DL_DECRYPT", "DISABLE_DL_CACHE", "DIS_DOWNLOAD_ICACHE", "DIS_DOWNLOAD_DCACHE",
     "DIS_DOWNLOAD_MANUAL_ENCRYPT", "DIS_DIRECT_BOOT", "DIS_LEGACY_SPI_BOOT", "JTAG_DISABLE", "HARD_DIS_JTAG",
     "DIS_PAD_JTAG", "DIS_USB_JTAG", "ABS_DONE_1", "SECURE_BOOT_EN", "SECURE_BOOT_KEY_REVOKE1",
     "SECURE_BOOT_KEY_REVOKE2"),
    1,
)  # fmt: skip
JTAG = ("JTAG_DISABLE", "HARD_DIS_JTAG", "DIS_PAD_JTAG", "DIS_USB_JTAG", "DIS_USB_SERIAL_JTAG")
# espefuse burns keys with their purposes, and protects them.
KEYS = {
    "esp32c2": (
        ["BLOCK_KEY0", "BLOCK_KEY0"],
        ["XTS_AES_128_KEY_DERIVED_FROM_128_EFUSE_BITS", "SECURE_BOOT_DIGEST"],
    )
}
PURPOSES = (["BLOCK_KEY0", "BLOCK_KEY1"], ["XTS_AES_128_KEY", "SECURE_BOOT_DIGEST0"])


class Tools:
    """Unmodified espefuse and esptool, on a socket at which the chip behind *esp* is served."""

    def __init__(self, esp):
        self.esp = esp

    @contextlib.contextmanager
    def served(self):
        self.esp.chip.identify()
        board = self.esp.link.board
        with contextlib.closing(board.serve("socket://127.0.0.1:0")) as endpoint:
            board.reset(bootloader=True)
            yield endpoint.url
        self.esp.link.session.drop()

    @contextlib.contextmanager
    def espefuse(self):
        with (
            self.served() as url,
            contextlib.redirect_stdout(io.StringIO()),
            init_commands(port=url, before="no-reset", do_not_confirm=True) as commands,
        ):
            yield commands

    def summary(self):
        with self.espefuse() as commands, tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "summary.json"
            with path.open("w") as file:
                commands.summary(format="json", file=file)
            return json.loads(path.read_text())

    def security_info(self):
        printed = io.StringIO()
        with self.served() as url, contextlib.redirect_stdout(printed):
            esptool.main(["--port", url, "--before", "no-reset", "--no-stub", "get-security-info"])
        return printed.getvalue()

    def lock(self, chip, have):
        """Lock the chip as for shipping, except download mode, which is needed to read it; return the key blocks."""
        key, digest = io.BytesIO(bytes(range(16 if chip == "esp32c2" else 32))), io.BytesIO(bytes(range(100, 132)))
        with self.espefuse() as commands:
            commands.use_batch_mode()
            if chip == "esp32":
                commands.burn_key(["flash_encryption"], [key])
                commands.burn_key(["secure_boot_v2"], [digest], no_protect_key=True)
                commands.write_protect_efuse(["BLOCK2"])
            else:
                blocks, purposes = KEYS.get(chip, PURPOSES)
                commands.burn_key(blocks, [key, digest], purposes)
            commands.burn_efuse({name: value for name, value in FUSES.items() if name in have})
            commands.burn_all()
        if chip == "esp32c2":
            return "BLOCK_KEY0_LOW_128", "BLOCK_KEY0_HI_128"
        return ("BLOCK1", "BLOCK2") if chip == "esp32" else ("BLOCK_KEY0", "BLOCK_KEY1")


def agree(fields, posture, summary):
    """Compare all eFuses and the key blocks with what espefuse says."""
    # Of a custom MAC address on a port the ESP32's espefuse tells only where one is burnt.
    assert {name: (one.meaning, one.readable, one.writeable) for name, one in fields.items()} == {
        name: (one["value"], one["readable"], one["writeable"])
        for name, one in summary.items()
        if not name.startswith("CUSTOM_MAC") or name in fields
    }
    for block in posture.key_blocks:
        assert (block.readable, block.writeable) == (summary[block.name]["readable"], summary[block.name]["writeable"])
        number = re.fullmatch(r"BLOCK_KEY(\d)", block.name)
        if number and f"KEY_PURPOSE_{number[1]}" in summary:
            assert block.purpose == summary[f"KEY_PURPOSE_{number[1]}"]["value"]
            assert block.purpose_writeable == summary[f"KEY_PURPOSE_{number[1]}"]["writeable"]


def agree_with_info(esp, posture, printed):
    """Compare the posture, and our own security info, with what esptool prints."""
    words = {True: "Enabled", False: "Disabled"}
    assert f"Secure Boot: {words[posture.secure_boot]}\n" in printed
    assert f"Flash Encryption: {words[bool(posture.flash_encryption)]}\n" in printed
    assert ("JTAG: Permanently Disabled" in printed) == (posture.jtag_pads == "disabled")
    told = esp.security.info()
    assert f"Flags: {told.flags:#010x}" in printed
    assert f"CRYPT_CNT): {told.flash_crypt_count:#x}" in printed


@pytest.mark.parametrize("chip", FAMILIES)
def test_a_virgin_and_a_locked_chip(esp_of, chip):
    esp = esp_of(chip)
    tools = Tools(esp)
    fields, virgin = esp.efuse.read_all().fields, esp.security.posture()
    assert (virgin.flash_encryption, virgin.secure_boot, virgin.secure_boot_version, virgin.jtag) == (
        None if chip in UNTOLD else False,
        False,
        None,
        True,
    )
    assert (virgin.jtag_pads, virgin.download_mode) == ("open", "enabled")
    assert {block.state for block in virgin.key_blocks} == {"empty"}

    agree(fields, virgin, tools.summary())
    blocks = tools.lock(chip, fields)
    locked = esp.security.posture()
    agree(esp.efuse.read_all().fields, locked, tools.summary())
    assert (locked.secure_boot, locked.secure_boot_version, locked.jtag_pads) == (True, "v2", "disabled")
    assert locked.flash_encryption is (None if chip in UNTOLD else True)
    assert locked.jtag_usb == {"open": "disabled"}.get(virgin.jtag_usb, virgin.jtag_usb)
    assert locked.jtag is (None if chip in UNTOLD else False)
    key, digest = (next(one for one in locked.key_blocks if one.name == name) for name in blocks)
    assert (key.state, key.readable, key.writeable) == ("read-protected", False, False)
    assert (digest.state, digest.readable, digest.writeable) == ("burnt", True, False)
    assert key.purpose in ("FLASH_ENCRYPTION", "XTS_AES_128_KEY", "XTS_AES_128_KEY_DERIVED_FROM_128_EFUSE_BITS")
    assert digest.purpose in ("SECURE_BOOT", "SECURE_BOOT_DIGEST", "SECURE_BOOT_DIGEST0")
    assert (key.purpose_writeable, digest.purpose_writeable) in ((False, False), (None, None))
    assert [found for found in locked.findings if found.severity == "high"] == []

    if chip != "esp32":
        agree_with_info(esp, locked, tools.security_info())
        esp.efuse.burn("ENABLE_SECURITY_DOWNLOAD", 1)
        secure = esp.security.posture()
        agree_with_info(esp, secure, tools.security_info())
        assert (secure.source, secure.download_mode) == ("security info", "secure")
        assert (secure.secure_boot, secure.flash_encryption) == (True, chip not in UNTOLD)
        assert (secure.jtag_pads, secure.jtag) == ("disabled", None)


@pytest.mark.parametrize("chip", FAMILIES)
def test_flash_is_encrypted_while_an_odd_number_of_bits_is_burnt(esp_of, chip):
    esp = esp_of(chip)
    fields = esp.efuse.read_all().fields
    counter = next((name for name in ("FLASH_CRYPT_CNT", "SPI_BOOT_CRYPT_CNT") if name in fields), None)
    assert (counter is None) == (chip in UNTOLD)
    for value in (1, 3, 7) if counter else ():
        esp.link.board.simulated.efuses.preset(counter, value)
        assert esp.security.posture().flash_encryption is (value != 3)


def jtag_fuses():
    return [(chip, name) for chip in FAMILIES for name in JTAG if SimChip(chip).efuses.has_field(name)]


@pytest.mark.parametrize(("chip", "name"), jtag_fuses())
def test_each_lock_of_jtag_closes_its_way_only(esp_of, chip, name):
    esp = esp_of(chip)
    before = esp.security.posture()
    esp.link.board.simulated.efuses.preset(name, 1)
    after = esp.security.posture()
    changed = {way for way in ("jtag_pads", "jtag_usb") if getattr(before, way) != getattr(after, way)}
    assert changed == {"jtag_usb" if "USB" in name else "jtag_pads"}
    assert after.jtag == (before.jtag_usb == "open") if changed == {"jtag_pads"} and chip not in UNTOLD else True


@pytest.mark.parametrize("chip", ["esp32", "esp32s2", "esp32p4"])
def test_a_closed_download_mode_is_no_clean_report(esp_of, chip):
    esp = esp_of(chip)
    esp.efuse.burn("UART_DOWNLOAD_DIS" if chip == "esp32" else "DIS_DOWNLOAD_MODE", 1)
    with pytest.raises(LinkError):
        esp.security.posture()


def test_an_old_esp32_does_not_know_what_came_with_v3(esp_of, rack):
    """ABS_DONE_1 has no effect before v3.0; esptool says the same (``ESP32ROM.get_secure_boot_enabled``)."""
    esp = esp_of("old")
    esp.efuse.burn("ABS_DONE_1", 1)
    assert not esp.security.posture().secure_boot
    with esp.link.session.use("asking esptool", stub=False) as loader:
        assert not loader.get_secure_boot_enabled()
    esp.efuse.burn("ABS_DONE_0", 1)
    assert esp.security.posture().secure_boot_version == "v1"
