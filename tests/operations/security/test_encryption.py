"""Flash encryption on simulated chips, which decrypt what they boot as the hardware does."""

import json
import os
import subprocess
import sys

import pytest

from pytest_esp.errors import FirmwareError, LinkError, OperationError, RefusedError
from pytest_esp.link.fast import FastLoader
from pytest_esp.operations.esp import Esp
from pytest_esp.operations.security.encryption import encrypt_data
from pytest_esp.wire.faults import Fault, Faults

KEY = bytes(range(32))


@pytest.fixture
def key_file(tmp_path):
    (tmp_path / "key.bin").write_bytes(KEY)
    return tmp_path / "key.bin"


@pytest.mark.parametrize(
    ("chip", "mode"), [("esp32", "development"), ("esp32c3", "development"), ("esp32c3", "release")]
)
def test_the_whole_procedure(esp_of, firmware_folder, key_file, chip, mode):
    esp = esp_of(chip)
    build = firmware_folder / f"hello_world_{chip}"
    done = esp.encryption.enable(build, key_file, mode)
    assert "Loaded app from partition" in done.boot_output
    assert (len(done.encrypted), done.plain) == (3, ())
    status = esp.encryption.status()
    assert (status.flash_encryption_enabled, status.mode) == (True, mode)
    assert esp.flash.read(0x10000, 16).data != (build / "hello_world.bin").read_bytes()[:16]
    key = next(block for block in esp.security.posture().key_blocks if block.name == done.key_blocks[0])
    assert (key.state, key.writeable) == ("read-protected", False)
    assert not key.purpose_writeable
    assert not any(found.severity == "high" and "flash" in found.what for found in esp.security.posture().findings)
    assert KEY.hex() not in esp.transcript


@pytest.mark.qemu
@pytest.mark.slow
@pytest.mark.parametrize("chip", ["esp32", "esp32c3"])
def test_the_whole_procedure_on_qemu(make_esp, need_qemu, firmware_folder, key_file, chip):
    """Also after what has run the stub, or read the eFuses."""
    need_qemu(chip)
    esp = make_esp(backend="qemu", chip=chip)
    esp.efuse.read_all()
    esp.flash.md5(0, 0x1000, over="wire")
    done = esp.encryption.enable(firmware_folder / f"hello_world_{chip}", key_file)
    assert "Loaded app from partition" in done.boot_output
    assert "Hello world!" in done.boot_output


@pytest.mark.parametrize("chip", ["esp32", "esp32c3"])
def test_an_app_that_panics_does_not_run(esp_of, firmware_folder, key_file, apps_panic, chip):
    esp = esp_of(chip)
    with pytest.raises(OperationError, match=r"is enabled, but the app does not run: .*Store access fault") as caught:
        esp.encryption.enable(firmware_folder / f"hello_world_{chip}", key_file)
    assert "Guru Meditation Error" in caught.value.details["boot_output"]


@pytest.mark.parametrize(
    ("chip", "size", "blocks"),
    [
        ("esp32s2", 64, ("BLOCK_KEY0", "BLOCK_KEY1")),
        ("esp32s3", 64, ("BLOCK_KEY0", "BLOCK_KEY1")),
        ("esp32p4", 64, ("BLOCK_KEY0", "BLOCK_KEY1")),
        ("esp32c2", 32, ("BLOCK_KEY0",)),
        ("esp32c2", 16, ("BLOCK_KEY0_LOW_128",)),
    ],
)
def test_keys_of_other_sizes(esp_of, build_for, tmp_path, chip, size, blocks):
    """XTS-AES-256 in two blocks, and the ESP32-C2's block: the chip boots what espsecure has encrypted."""
    esp = esp_of(chip)
    (tmp_path / "key").write_bytes(os.urandom(size))
    done = esp.encryption.enable(build_for(chip), tmp_path / "key", "release")
    assert done.key_blocks == blocks
    assert "Loaded app from partition" in done.boot_output
    assert esp.encryption.status().mode == "release"
    keys = [block for block in esp.security.posture().key_blocks if block.state != "empty"]
    assert {block.state for block in keys} == {"read-protected"}
    if size == 64:
        assert [block.purpose for block in keys] == ["XTS_AES_256_KEY_1", "XTS_AES_256_KEY_2"]


@pytest.mark.parametrize(
    ("chip", "size", "words"),
    [
        ("esp32c3", 64, "must have 32 bytes, not 64"),
        ("esp32s3", 16, "must have 32 or 64 bytes, not 16"),
        ("esp32c2", 64, "must have 16 or 32 bytes, not 64"),
    ],
)
def test_keys_that_a_chip_does_not_take(esp_of, build_for, tmp_path, chip, size, words):
    (tmp_path / "key").write_bytes(bytes(size))
    with pytest.raises(OperationError, match=words):
        esp_of(chip).encryption.plan(build_for(chip), tmp_path / "key")


def test_the_same_bytes_as_from_espsecure(tmp_path, key_file):
    data = os.urandom(1000)
    (tmp_path / "plain.bin").write_bytes(data + b"\xff" * 8)
    command = [sys.executable, "-m", "espsecure", "encrypt-flash-data", "--aes-xts", "--keyfile", key_file,
               "--address", "0x10000", "--output", "out.bin", "plain.bin"]  # fmt: skip
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=60)
    assert encrypt_data(data, KEY, 0x10000, "esp32c3") == (tmp_path / "out.bin").read_bytes()


@pytest.mark.parametrize(
    ("key", "address", "chip", "words"),
    [
        (b"short", 0, "esp32c3", "must have 32 or 64 bytes, not 5"),
        (bytes(64), 0, "esp32", "must have 32 bytes, not 64"),
        (KEY, 8, "esp32c3", "multiple of 16"),
        (KEY, 16, "esp32", "multiple of 32"),
    ],
)
def test_what_cannot_be_encrypted(key, address, chip, words):
    with pytest.raises(OperationError, match=words):
        encrypt_data(b"data", key, address, chip)


@pytest.mark.parametrize(("chip", "counter"), [("esp32", "FLASH_CRYPT_CNT"), ("esp32c6", "SPI_BOOT_CRYPT_CNT")])
def test_what_it_would_take(esp_of, chip, counter):
    status = esp_of(chip).encryption.status()
    assert (status.flash_encryption_enabled, status.mode, status.counter, status.count) == (False, "off", counter, 0)
    assert (status.config is None) == (chip != "esp32")
    assert any(counter in step for step in status.steps)


def test_nothing_is_burnt_if_anything_is_wrong(esp_of, firmware_folder, tmp_path, key_file):
    esp = esp_of("esp32c3")
    before = esp.efuse.read_all()
    build = firmware_folder / "hello_world_esp32c3"
    (tmp_path / "short.bin").write_bytes(b"short")
    with pytest.raises(OperationError, match="must have 32 bytes, not 5"):
        esp.encryption.enable(build, tmp_path / "short.bin")
    with pytest.raises(FirmwareError, match="not a whole build"):
        esp.encryption.enable([(0x10000, b"app")], key_file)
    with pytest.raises(OperationError, match="cannot be read"):
        esp.encryption.enable(build, tmp_path / "missing.bin")
    with pytest.raises(FirmwareError, match="a build for esp32, not for esp32c3"):
        esp.encryption.enable(firmware_folder / "hello_world_esp32", key_file)
    assert esp.efuse.read_all() == before


def test_a_chip_that_is_not_virgin(esp_of, firmware_folder, key_file):
    esp = esp_of("esp32c3")
    esp.efuse.burn("SPI_BOOT_CRYPT_CNT", 3)
    with pytest.raises(OperationError, match="has burnt bits"):
        esp.encryption.enable(firmware_folder / "hello_world_esp32c3", key_file)


def test_from_development_to_release(esp_of):
    esp = esp_of("esp32c3")
    with pytest.raises(OperationError, match="not encrypted"):
        esp.encryption.configure()
    esp.efuse.burn("SPI_BOOT_CRYPT_CNT", 1)
    assert esp.encryption.configure("development").mode == "development"
    done = esp.encryption.configure("release")
    assert done.mode == "release"
    assert {"SPI_BOOT_CRYPT_CNT", "DIS_DOWNLOAD_MANUAL_ENCRYPT"} <= set(done.burnt)
    assert esp.encryption.configure("release").burnt == ()


# -- real boards


def test_a_plan_names_what_a_real_board_must_allow(real, firmware_folder, key_file):
    build = firmware_folder / "hello_world_esp32c3"
    link, chip = real("esp32c3", allow_burn=["BLOCK_KEY0"])
    esp = Esp(link)
    plan = esp.encryption.plan(build, key_file)
    names = [burn.efuse_name for burn in plan.burns]
    assert names == ["BLOCK_KEY0", "KEY_PURPOSE_0", "RD_DIS", "WR_DIS", "SPI_BOOT_CRYPT_CNT", "DIS_DOWNLOAD_ICACHE"]
    assert plan.burns[0].after is None  # no plan shows a key
    assert '"SPI_BOOT_CRYPT_CNT"' in plan.refused
    assert "`allow_burn`" in plan.refused
    with pytest.raises(RefusedError) as caught:
        esp.encryption.enable(build, key_file)
    assert caught.value.details["allow_burn"] == names[1:]
    assert not any(chip.efuses.field(name) for name in names[1:])
    assert set(chip.flash.read(0, 0x20000)) == {0xFF}


@pytest.mark.in_process
def test_every_refusal_names_the_setting(real, firmware_folder, key_file):
    build = firmware_folder / "hello_world_esp32c3"
    burns = ["BLOCK_KEY0", "KEY_PURPOSE_0", "RD_DIS", "WR_DIS", "SPI_BOOT_CRYPT_CNT", "DIS_DOWNLOAD_ICACHE"]
    for allow, allow_burn, words in [
        ("read,write", (), 'add "burn" to `allow`'),
        ("read,burn", burns, 'add "write" to `allow`'),
        ("read,write,burn", burns, "--esp-allow-burn"),
    ]:
        link, chip = real("esp32c3", allow, allow_burn)
        with pytest.raises(RefusedError) as caught:
            Esp(link).encryption.enable(build, key_file)
        assert words in caught.value.hint
        assert not chip.efuses.field("SPI_BOOT_CRYPT_CNT")
        assert words in Esp(link).encryption.plan(build, key_file).refused
        link.close()


def test_a_real_board_that_allows_it(real, firmware_folder, key_file):
    build = firmware_folder / "hello_world_esp32c3"
    names = ["BLOCK_KEY0", "KEY_PURPOSE_0", "RD_DIS", "WR_DIS", "SPI_BOOT_CRYPT_CNT", "DIS_DOWNLOAD_ICACHE"]
    link, chip = real("esp32c3", allow_burn=names, burns_enabled=True)
    esp = Esp(link)
    assert esp.encryption.plan(build, key_file).refused is None
    done = esp.encryption.enable(build, key_file)
    assert list(done.burnt) == names
    assert "Loaded app from partition" in done.boot_output
    assert chip.flash_is_encrypted
    log = [json.loads(line) for line in link.burns.audit_file.read_text().splitlines()]
    assert [entry["efuses"] for entry in log if entry["stage"] == "done"] == [[name] for name in names]
    assert KEY.hex() not in link.burns.audit_file.read_text()


def test_a_chip_that_falls_silent_between_two_burns_says_what_is_burnt(real, firmware_folder, key_file, monkeypatch):
    names = ["BLOCK_KEY0", "KEY_PURPOSE_0", "RD_DIS", "WR_DIS", "SPI_BOOT_CRYPT_CNT", "DIS_DOWNLOAD_ICACHE"]
    monkeypatch.setattr(FastLoader, "longest_wait", 0.05)
    link, chip = real("esp32c3", allow_burn=names, burns_enabled=True)
    esp = Esp(link)
    write = chip.efuses.write

    def go_silent(*arguments):
        write(*arguments)
        if chip.efuses.field("KEY_PURPOSE_0"):
            chip.wire.faults = Faults(to_host=Fault(silent_after=0))

    monkeypatch.setattr(chip.efuses, "write", go_silent)
    with pytest.raises(LinkError) as caught:
        esp.encryption.enable(firmware_folder / "hello_world_esp32c3", key_file)
    assert caught.value.details["burnt"] == ["BLOCK_KEY0"]
    assert "still to be burnt: KEY_PURPOSE_0, RD_DIS" in caught.value.hint


# -- with secure boot


@pytest.mark.parametrize(("chip", "scheme", "size"), [("esp32c2", "ecdsa256", 16), ("esp32c3", "rsa3072", 32)])
def test_with_secure_boot_in_one_go(esp_of, build_for, sign, tmp_path, chip, scheme, size):
    esp = esp_of(chip)
    (tmp_path / "key").write_bytes(os.urandom(size))
    signed, pem = sign(build_for(chip), scheme)
    done = esp.encryption.enable(signed, tmp_path / "key", "development", pem)
    assert done.burnt[-1] == "SECURE_BOOT_EN"
    posture = esp.security.posture()
    assert (posture.flash_encryption, posture.secure_boot) == (True, True)
    key, digest = (next(one for one in posture.key_blocks if one.name == name) for name in done.key_blocks)
    assert (key.state, digest.state) == ("read-protected", "burnt")
    assert not any(found.severity == "high" and "JTAG" not in found.what for found in posture.findings)


def test_a_long_key_leaves_no_room_on_the_esp32c2(esp_of, build_for, sign, key_file):
    signed, pem = sign(build_for("esp32c2"), "ecdsa256")
    with pytest.raises(OperationError, match="no room for a digest") as caught:
        esp_of("esp32c2").encryption.plan(signed, key_file, secure_boot_key=pem)
    assert "16 bytes" in caught.value.hint
