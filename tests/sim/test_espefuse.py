"""Unmodified espefuse, and what the chips do with the fuses that it burns."""

import io
import json
import random

import espsecure
import pytest
from espefuse.efuse_interface import init_commands
from esptool import cmds
from esptool.targets import CHIP_DEFS, CHIP_LIST
from esptool.util import FatalError

from pytest_esp.errors import BackendError
from pytest_esp.sim.chip import SimChip

WITH_EFUSES = [chip for chip in CHIP_LIST if chip != "esp8266"]
KEY = random.Random(3).randbytes(32)
DATA = random.Random(4).randbytes(64) * 70


def espefuse(bench, chip):
    return init_commands(esp=bench.esptool(chip), do_not_confirm=True)


def summary(commands, tmp_path):
    path = tmp_path / "summary.json"
    with path.open("w") as file:
        commands.summary(format="json", file=file)
    return json.loads(path.read_text())


@pytest.mark.parametrize("chip", WITH_EFUSES)
def test_summary_and_one_burn(chip, bench, tmp_path):
    simulated = bench.chip(chip, mac="7C:DF:A1:00:00:01")
    commands = espefuse(bench, simulated)
    before = summary(commands, tmp_path)
    assert before["MAC"]["value"].lower().startswith("7c:df:a1:00:00:01")
    fuse = "DISABLE_DL_CACHE" if chip == "esp32" else "SECURE_BOOT_AGGRESSIVE_REVOKE"
    fuse = next(name for name in (fuse, "DIS_PAD_JTAG", "DIS_DOWNLOAD_MANUAL_ENCRYPT") if name in before)
    assert before[fuse]["value"] is False
    commands.burn_efuse({fuse: 1})
    # A new connection, after a reset, finds it burnt.
    simulated.reset(bootloader=True)
    assert summary(espefuse(bench, simulated), tmp_path)[fuse]["value"] is True
    assert simulated.efuses.field(fuse)


@pytest.mark.parametrize("chip", WITH_EFUSES)
def test_a_chip_keeps_its_fuses_in_a_file(chip, tmp_path):
    path = tmp_path / "efuses.bin"
    first = SimChip(chip, efuse_file=path, mac="7C:DF:A1:00:00:02")
    first.close()
    again = SimChip(chip, efuse_file=path)
    assert again.mac == "7c:df:a1:00:00:02"
    again.close()
    assert len(path.read_bytes()) == again.efuses.size


def test_the_file_is_one_that_espefuse_reads(tmp_path):
    path = tmp_path / "efuses.bin"
    SimChip("esp32c3", efuse_file=path, mac="7C:DF:A1:00:00:02", revision=4).close()
    commands = init_commands(chip="esp32c3", virt=True, virt_efuse_file=str(path))
    found = summary(commands, tmp_path)
    assert found["MAC"]["value"].startswith("7c:df:a1:00:00:02")
    assert found["WAFER_VERSION_MINOR_LO"]["value"] == 4


def test_a_file_of_another_chip_is_refused(tmp_path):
    path = tmp_path / "efuses.bin"
    SimChip("esp32", efuse_file=path).close()
    with pytest.raises(BackendError, match=r"not the \d+ of espefuse.s emulator of the ESP32-C3"):
        SimChip("esp32c3", efuse_file=path)


@pytest.mark.parametrize("mac", ["7C:DF:A1:00:00:01", "24:0a:c4:fe:dc:ba"])
def test_the_esp32s_mac_has_its_crc(mac, bench):
    text = espefuse(bench, bench.chip("esp32", mac=mac)).efuses["MAC"].get()
    assert text.startswith(mac.lower())
    assert text.endswith("OK)")


@pytest.mark.parametrize(
    ("chip", "revision"), [("esp32", 100), ("esp32", 301), ("esp32c3", 3), ("esp32p4", 103), ("esp32c6", 1)]
)
def test_revision(chip, revision, bench):
    assert bench.esptool(bench.chip(chip, revision=revision)).get_chip_revision() == revision


def test_a_burnt_bit_stays_burnt(bench):
    simulated = bench.chip("esp32c3")
    espefuse(bench, simulated).burn_bit("BLOCK_SYS_DATA2", [5])
    # Nothing that a host writes there takes it back.
    esp = bench.esptool(simulated)
    address = CHIP_DEFS["esp32c3"].EFUSE_BASE + 0x15C
    assert esp.read_reg(address) == 1 << 5
    esp.write_reg(address, 0)
    assert esp.read_reg(address) == 1 << 5


def test_a_write_protected_fuse_cannot_be_burnt(bench):
    simulated = bench.chip("esp32c3")
    commands = espefuse(bench, simulated)
    commands.write_protect_efuse(["DIS_PAD_JTAG"])
    with pytest.raises(FatalError, match="write-protected"):
        commands.burn_efuse({"DIS_PAD_JTAG": 1})
    assert not simulated.efuses.field("DIS_PAD_JTAG")


def burn_key(bench, simulated, block, purpose):
    commands = espefuse(bench, simulated)
    key = io.BytesIO(KEY)
    key.name = "key.bin"
    commands.burn_key([block], [key], [purpose]) if purpose else commands.burn_key([block], [key])


def encrypted(address, config, *, aes_xts):
    output = io.BytesIO()
    espsecure.encrypt_flash_data(io.BytesIO(KEY), output, address, config, aes_xts, io.BytesIO(DATA))
    return output.getvalue()


@pytest.mark.parametrize("chip", ["esp32c3", "esp32s3", "esp32c6", "esp32s2"])
@pytest.mark.parametrize("compress", [False, True], ids=["plain", "compressed"])
def test_an_encrypted_write_uses_the_burnt_key_though_nobody_can_read_it(chip, compress, bench):
    simulated = bench.chip(chip)
    burn_key(bench, simulated, "BLOCK_KEY0", "XTS_AES_128_KEY")
    assert simulated.efuses.read(CHIP_DEFS[chip].EFUSE_BASE + 0x9C) == 0  # BLOCK_KEY0 is read-protected
    simulated.reset(bootloader=True)
    esp = bench.esptool(simulated)
    cmds.attach_flash(esp)
    cmds.write_flash(esp, [(0x20000, DATA)], encrypt=True, compress=compress, no_compress=not compress)
    assert simulated.flash.read(0x20000, len(DATA)) == encrypted(0x20000, 0, aes_xts=True)


def test_the_esp32_encrypts_with_its_own_cipher(bench):
    simulated = bench.chip("esp32")
    burn_key(bench, simulated, "flash_encryption", None)
    espefuse(bench, simulated).burn_efuse({"FLASH_CRYPT_CONFIG": 0xF})
    esp = bench.esptool(simulated, stub=True)
    cmds.attach_flash(esp)
    cmds.write_flash(esp, [(0x20000, DATA)], encrypt=True)
    assert simulated.flash.read(0x20000, len(DATA)) == encrypted(0x20000, 0xF, aes_xts=False)


def test_keys_that_nobody_can_read_outlive_the_process(bench, tmp_path):
    path = tmp_path / "efuses.bin"
    simulated = bench.chip("esp32c3", efuse_file=path)
    burn_key(bench, simulated, "BLOCK_KEY0", "XTS_AES_128_KEY")
    simulated.close()
    again = bench.chip("esp32c3", efuse_file=path)
    assert again.encrypt(0, DATA) == encrypted(0, 0, aes_xts=True)


def test_a_512_bit_key_in_two_blocks(bench):
    simulated = bench.chip("esp32s3")
    whole = random.Random(6).randbytes(64)
    commands = espefuse(bench, simulated)
    key = io.BytesIO(whole)
    key.name = "key.bin"
    commands.burn_key(["BLOCK_KEY0"], [key], ["XTS_AES_256_KEY"])
    assert simulated.efuses.encryption_key() == whole


@pytest.mark.parametrize("chip", ["esp32", "esp32c3"])
def test_a_batch_with_a_key_and_its_protection(chip, bench):
    simulated = bench.chip(chip)
    commands = espefuse(bench, simulated)
    commands.use_batch_mode()
    key = io.BytesIO(KEY)
    key.name = "key.bin"
    if chip == "esp32":
        commands.burn_key(["flash_encryption"], [key])
    else:
        commands.burn_key(["BLOCK_KEY0"], [key], ["XTS_AES_128_KEY"])
    commands.burn_all()
    assert simulated.efuses.encryption_key() == KEY


def test_burnt_secure_download_holds_from_the_next_reset(bench):
    simulated = bench.chip("esp32c3")
    espefuse(bench, simulated).burn_efuse({"ENABLE_SECURITY_DOWNLOAD": 1})
    simulated.reset(bootloader=True)
    assert bench.esptool(simulated).secure_download_mode


def test_a_disabled_download_mode_answers_nobody(bench):
    simulated = bench.chip("esp32c3")
    simulated.efuses.preset("DIS_DOWNLOAD_MODE", 1)
    simulated.reset(bootloader=True)
    assert simulated.mode == "locked"
    with pytest.raises(FatalError, match="No serial data received"):
        bench.esptool(simulated)


@pytest.mark.parametrize(("revision", "mode"), [(100, "bootloader"), (300, "locked")])
def test_the_first_esp32s_do_not_know_that_their_download_mode_is_disabled(bench, revision, mode):
    simulated = bench.chip("esp32", revision=revision)
    simulated.efuses.preset("UART_DOWNLOAD_DIS", 1)
    simulated.reset(bootloader=True)
    assert simulated.mode == mode


@pytest.mark.parametrize("chip", ["esp32", "esp32s2"])
def test_a_burn_timed_for_another_clock_is_not_taken(chip, bench):
    """The stub clocks these chips with 80 MHz, and espefuse writes its timing for 40 MHz."""
    simulated = bench.chip(chip)
    esp = bench.esptool(simulated, stub=True)
    commands = init_commands(esp=esp, do_not_confirm=True)
    fuse = "JTAG_DISABLE" if chip == "esp32" else "SOFT_DIS_JTAG"
    with pytest.raises(FatalError):
        commands.burn_efuse({fuse: 1})
    assert not simulated.efuses.field(fuse)


def test_espefuse_made_before_the_stub_ran_finds_a_clock_that_it_does_not_know(bench):
    simulated = bench.chip("esp32")
    rom = bench.esptool(simulated)
    commands = init_commands(esp=rom, do_not_confirm=True)
    rom.run_stub()
    with pytest.raises(KeyError, match="48"):
        commands.burn_efuse({"JTAG_DISABLE": 1})
