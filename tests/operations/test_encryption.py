"""Flash encryption on simulated chips, which decrypt what they boot as the hardware does."""

import os
import subprocess
import sys

import pytest

from pytest_esp.boards.registry import make_board
from pytest_esp.errors import FirmwareError, OperationError, RefusedError
from pytest_esp.link.link import Link
from pytest_esp.operations.encryption import encrypt_data
from pytest_esp.operations.esp import Esp
from pytest_esp.rack.config import load_rack

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
    assert (status.encrypted, status.mode) == (True, mode)
    assert esp.flash.read(0x10000, 16).data != (build / "hello_world.bin").read_bytes()[:16]
    key = next(block for block in esp.security.posture().key_blocks if block.name == done.key_block)
    assert (key.state, key.writeable) == ("read-protected", False)
    assert not key.purpose_writeable
    assert not any(found.severity == "high" and "flash" in found.what for found in esp.security.posture().findings)
    assert KEY.hex() not in esp.transcript


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
        (b"short", 0, "esp32c3", "5 bytes, not 32 or 64"),
        (bytes(64), 0, "esp32", "64 bytes, not 32"),
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
    assert (status.encrypted, status.mode, status.counter, status.count) == (False, "off", counter, 0)
    assert (status.config is None) == (chip != "esp32")
    assert any(counter in step for step in status.steps)


def test_nothing_is_burnt_if_anything_is_wrong(esp_of, firmware_folder, tmp_path, key_file):
    esp = esp_of("esp32c3")
    before = esp.efuse.read_all()
    build = firmware_folder / "hello_world_esp32c3"
    (tmp_path / "short.bin").write_bytes(b"short")
    with pytest.raises(OperationError, match="has 5 bytes"):
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
    with pytest.raises(OperationError, match="has bits burnt"):
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


def test_not_on_a_real_board(tmp_path, key_file):
    (tmp_path / "real.toml").write_text(
        '[boards.real]\nbackend="serial"\nchip="esp32c3"\nport="/dev/ttyNone"\nallow=["read", "burn"]\n'
    )
    rack = load_rack(tmp_path / "real.toml")
    link = Link(make_board(rack.board("real"), rack))
    with pytest.raises(RefusedError, match="virtual boards only"):
        Esp(link).encryption.enable([(0, b"x")], key_file)
