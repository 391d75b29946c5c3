"""Secure boot on simulated chips, with images that espsecure has signed."""

import hashlib
import subprocess
import sys

import pytest

from pytest_esp.errors import FirmwareError, OperationError, RefusedError
from pytest_esp.operations.esp import Esp
from pytest_esp.operations.security.secure_boot import digest_of


def espsecure(*arguments):
    command = [sys.executable, "-m", "espsecure", *map(str, arguments)]
    subprocess.run(command, check=True, capture_output=True, timeout=100)


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """Two RSA keys, and an ECDSA key."""
    folder = tmp_path_factory.mktemp("keys")
    for name, scheme in (("good", "rsa3072"), ("other", "rsa3072"), ("ecdsa", "ecdsa256")):
        espsecure("generate-signing-key", "--version", 2, "--scheme", scheme, folder / f"{name}.pem")
    return folder


@pytest.fixture
def signed(keys, tmp_path, firmware_folder):
    """A build whose bootloader and app are signed."""
    build = firmware_folder / "hello_world_esp32c3"
    pairs = [(0x8000, (build / "partition_table" / "partition-table.bin").read_bytes())]
    for address, name in ((0, "bootloader/bootloader.bin"), (0x10000, "hello_world.bin")):
        out = tmp_path / f"{address}.bin"
        espsecure("sign-data", "--version", 2, "--keyfile", keys / "good.pem", "--output", out, build / name)
        pairs.append((address, out.read_bytes()))
    return pairs


def test_the_whole_procedure(esp_of, keys, signed):
    esp = esp_of("esp32c3")
    done = esp.security.enable_secure_boot(signed, keys / "good.pem")
    assert done.signed == (0, 0x10000)
    assert "Loaded app from partition" in done.boot_output
    posture = esp.security.posture()
    assert (posture.secure_boot, posture.secure_boot_version) == (True, "v2")
    block = next(item for item in posture.key_blocks if item.name == done.key_block)
    assert (block.purpose, block.state, block.readable, block.writeable) == (
        "SECURE_BOOT_DIGEST0",
        "burnt",
        True,
        False,
    )
    assert esp.efuse.read(done.key_block).value.replace(" ", "") == done.digest
    assert not any(
        "digest" in found.what or "slot" in found.what for found in posture.findings if found.severity == "high"
    )
    with pytest.raises(OperationError, match="enabled already"):
        esp.security.enable_secure_boot(signed, keys / "good.pem")


def test_nothing_is_done_if_a_signature_is_wrong(esp_of, keys, signed, firmware_folder):
    esp = esp_of("esp32c3")
    before = esp.efuse.read_all()
    (address, image) = signed[-1]
    spoilt = image[:-5000] + bytes([image[-5000] ^ 1]) + image[-4999:]
    for firmware, key, words in [
        (signed, "other.pem", "is not signed with this key"),
        (firmware_folder / "hello_world_esp32c3", "good.pem", "is not signed with this key"),
        ([*signed[:-1], (address, spoilt)], "good.pem", "is not signed with this key"),
        (signed[:1], "good.pem", "not a whole build"),
    ]:
        with pytest.raises(FirmwareError, match=words):
            esp.security.enable_secure_boot(firmware, keys / key)
    assert esp.efuse.read_all() == before
    assert esp.flash.md5(0, 0x1000).md5 == hashlib.md5(b"\xff" * 0x1000).hexdigest()


def test_keys_that_do_not_fit(esp_of, keys, signed, tmp_path):
    esp = esp_of("esp32c3")
    (tmp_path / "no.pem").write_text("no key")
    for key, words in [
        (keys / "ecdsa.pem", "RSA signatures only"),
        (tmp_path / "no.pem", "not a key in PEM"),
        (tmp_path / "missing.pem", "cannot be read"),
    ]:
        with pytest.raises(OperationError, match=words):
            esp.security.enable_secure_boot(signed, key)


def test_the_digest_is_espsecures(keys, tmp_path):
    espsecure("digest-sbv2-public-key", "--keyfile", keys / "good.pem", "--output", tmp_path / "digest")
    assert digest_of((keys / "good.pem").read_bytes()) == (tmp_path / "digest").read_bytes()


def test_a_board_that_does_not_allow_it(esp_of, keys):
    with pytest.raises(RefusedError, match="requires 'burn'"):
        esp_of("careful").security.enable_secure_boot([(0, b"x")], keys / "good.pem")


@pytest.mark.in_process
@pytest.mark.parametrize("chip", ["esp32c2", "esp32c61", "esp32h2"])
def test_ecdsa_where_the_rom_checks_it(esp_of, build_for, sign, keys, chip):
    esp = esp_of(chip)
    signed, pem = sign(build_for(chip), "ecdsa256")
    done = esp.security.enable_secure_boot(signed, pem)
    assert esp.security.posture().secure_boot_version == "v2"
    block = esp.efuse.read(done.key_block).value.replace(" ", "")
    assert done.digest.startswith(block)  # an ESP32-C2 keeps half of it
    if chip != "esp32h2":
        with pytest.raises(OperationError, match="ECDSA signatures only"):
            esp_of(chip).security.plan_secure_boot(signed, keys / "good.pem")


# -- v1


@pytest.fixture
def signed_v1(firmware_folder, tmp_path):
    """A build for the ESP32 whose partition table and app are signed for secure boot v1, and the key."""
    build, key = firmware_folder / "hello_world_esp32", tmp_path / "v1.pem"
    espsecure("generate-signing-key", "--version", 1, key)
    pairs = [(0x1000, (build / "bootloader" / "bootloader.bin").read_bytes())]
    for address, name in ((0x8000, "partition_table/partition-table.bin"), (0x10000, "hello_world.bin")):
        espsecure("sign-data", "--version", 1, "--keyfile", key, "--output", tmp_path / "out", build / name)
        pairs.append((address, (tmp_path / "out").read_bytes()))
    return pairs, key


def test_v1_on_an_esp32_before_v3(esp_of, signed_v1, tmp_path):
    esp = esp_of("old")
    signed, key = signed_v1
    plan = esp.security.plan_secure_boot(signed, key)
    assert (plan.version, plan.key_block, plan.digest) == ("v1", "BLOCK2", None)
    done = esp.security.enable_secure_boot(signed, key)
    assert done.burnt == ("BLOCK2", "RD_DIS", "WR_DIS", "ABS_DONE_0")
    assert done.signed == (0x8000, 0x10000)
    assert "Loaded app from partition" in done.boot_output
    posture = esp.security.posture()
    assert posture.secure_boot_version == "v1"
    block = next(item for item in posture.key_blocks if item.name == "BLOCK2")
    assert (block.state, block.writeable) == ("read-protected", False)

    # What lies at 0 is what espsecure computes with the same random number and the key that was burnt.
    chip = esp.link.board.simulated
    there = chip.flash.read(0, 192)
    espsecure("digest-private-key", "--keyfile", key, tmp_path / "secret")
    (tmp_path / "iv").write_bytes(there[:128])
    (tmp_path / "bootloader").write_bytes(signed[0][1])
    espsecure("digest-secure-bootloader", "--keyfile", tmp_path / "secret", "--iv", tmp_path / "iv",
              "--output", tmp_path / "digest", tmp_path / "bootloader")  # fmt: skip
    assert (tmp_path / "digest").read_bytes()[:192] == there


def test_v1_that_does_not_fit(esp_of, signed_v1, keys, firmware_folder):
    esp = esp_of("old")
    before = esp.efuse.read_all()
    signed, key = signed_v1
    spoilt = [*signed[:2], (0x10000, signed[2][1][:-1] + b"x")]
    for firmware, pem, error, words in [
        (spoilt, key, FirmwareError, "not signed with this key"),
        (firmware_folder / "hello_world_esp32", key, FirmwareError, "not signed with this key"),
        (signed[1:], key, FirmwareError, "not a whole build"),
        (signed, keys / "good.pem", OperationError, "NIST P-256"),
    ]:
        with pytest.raises(error, match=words):
            esp.security.enable_secure_boot(firmware, pem)
    assert esp.efuse.read_all() == before


# -- real boards


def test_a_real_board(real, keys, signed):
    link, chip = real("esp32c3", allow_burn=["SECURE_BOOT_EN"], burns_enabled=True)
    plan = Esp(link).security.plan_secure_boot(signed, keys / "good.pem")
    names = [burn.efuse_name for burn in plan.burns]
    assert "allow_burn" in plan.refused
    with pytest.raises(RefusedError) as caught:
        Esp(link).security.enable_secure_boot(signed, keys / "good.pem")
    assert caught.value.details["allow_burn"] == names[:-1]
    assert set(chip.flash.read(0, 0x20000)) == {0xFF}
    link.close()
    link, chip = real("esp32c3", allow_burn=names, burns_enabled=True)
    done = Esp(link).security.enable_secure_boot(signed, keys / "good.pem")
    assert list(done.burnt) == names
    assert chip.efuses.field("SECURE_BOOT_EN")
    assert "Loaded app from partition" in done.boot_output
