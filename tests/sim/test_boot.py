"""The boot from flash where QEMU cannot decide: see tests/differential for where it does."""

import hashlib
import importlib
import io
import json
import struct
import zlib
from pathlib import Path

import espsecure
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from esp_idf_defs.otadata import OtaDataSelectEntry, OtaImageState
from esptool.targets import CHIP_DEFS

from pytest_esp.formats.checksum import checksum
from pytest_esp.formats.nor_flash import NorFlash
from pytest_esp.sim.chip import SimChip
from pytest_esp.sim.secure_boot import SecureBoot

BUILDS = Path(__file__).parents[1] / "firmware" / "build"
SECTOR = 0x1000
OTADATA, FACTORY, OTA_0 = 0xE000, 0x10000, 0x50000


def build(chip):
    """The flash with the test firmware, whose bootloader is ESP-IDF's in what it prints."""
    flash = bytearray(b"\xff" * 0x200000)
    for offset, name in json.loads((BUILDS / chip / "flasher_args.json").read_text())["flash_files"].items():
        data = (BUILDS / chip / name).read_bytes()
        flash[int(offset, 16) : int(offset, 16) + len(data)] = data
    return flash


def image(*segments, chip_id=5, revision=0):
    """An image with these contents."""
    header = struct.pack("<BBBBI", 0xE9, len(segments), 2, 0x10, 0x403CC000)
    header += struct.pack("<B3xHBHH4xB", 0xEE, chip_id, 0, revision, 0xFFFF, 1)
    body = header + b"".join(struct.pack("<II", 0x3FCD0000, len(data)) + data for data in segments)
    body = body.ljust(len(body) + 15 - len(body) % 16, b"\0") + bytes([checksum(b"".join(segments))])
    return body + hashlib.sha256(body).digest()


@pytest.fixture
def boot(bench, tmp_path):
    """A function that boots a chip from a flash; it returns the chip, which is kept running."""

    def start(flash, chip="esp32c3", *, prepare=lambda chip: None, **settings):
        path = tmp_path / "flash.bin"
        path.write_bytes(flash)
        simulated = bench.chip(chip, flash=NorFlash(len(flash), path), **settings)
        prepare(simulated)
        simulated.reset(bootloader=False)
        return simulated

    return start


def log(chip):
    return chip.last_boot.log.decode()


@pytest.mark.parametrize("offset", [0x9000, 0xB000, 0x20000])
def test_the_partition_table_is_found_where_it_is(boot, offset):
    flash = build("esp32c3")
    table = flash[0x8000:0x8C00]
    flash[0x8000:0x9000] = b"\xff" * SECTOR
    flash[offset : offset + len(table)] = table
    assert "factory app" in log(boot(flash))


def test_a_bootloader_may_be_larger_than_the_room_before_0x8000(boot):
    flash = build("esp32c3")
    table = flash[0x8000:0x8C00]
    flash[:0xB000] = image(b"2nd stage bootloader".ljust(37440, b"\0")).ljust(0xB000, b"\xff")
    flash[0xB000:0xBC00] = table
    chip = boot(flash)
    assert chip.last_boot.slot.name == "factory"


@pytest.mark.parametrize("chip", ["esp32", "esp32c3"])
def test_the_words_of_another_bootloader_are_not_made_up(boot, chip):
    flash = build(chip)
    offset = CHIP_DEFS[chip].BOOTLOADER_FLASH_OFFSET
    other = image(b"*** Booting MCUboot ***".ljust(64, b"\0"), chip_id=CHIP_DEFS[chip].IMAGE_CHIP_ID)
    flash[offset : offset + len(other)] = other
    simulated = boot(flash, chip)
    assert log(simulated).splitlines()[-1] == "entry 0x403cc000"
    assert simulated.last_boot.is_foreign
    assert simulated.mode == "app"


@pytest.mark.parametrize("rollback", [False, True])
def test_rollback_is_as_the_bootloader_was_built(boot, rollback):
    flash = build("esp32c3")
    flash[OTA_0 : OTA_0 + 0x10000] = flash[FACTORY : FACTORY + 0x10000]
    entry = OtaDataSelectEntry(1, OtaImageState.NEW).to_bytes()
    flash[OTADATA : OTADATA + len(entry)] = entry
    chip = boot(flash, rollback=rollback)
    slots, states = [], []
    for _ in range(3):
        slots.append(chip.last_boot.slot.name)
        states.append(int.from_bytes(chip.flash.read(OTADATA + 24, 4), "little"))
        chip.reset(bootloader=False)
    new, pending, aborted = OtaImageState.NEW, OtaImageState.PENDING_VERIFY, OtaImageState.ABORTED
    if rollback:
        assert (slots, states) == (["ota_0", "factory", "factory"], [pending, aborted, aborted])
    else:
        assert (slots, states) == (["ota_0"] * 3, [new] * 3)


def test_a_bootloader_with_debug_messages_shows_that_it_has_rollback(boot):
    flash = build("esp32c3")
    other = image(b"2nd stage bootloader\0otadata[%d] is marking as ABORTED\0".ljust(64, b"\0"))
    flash[: len(other)] = other
    entry = OtaDataSelectEntry(1, OtaImageState.PENDING_VERIFY).to_bytes()
    flash[OTADATA : OTADATA + len(entry)] = entry
    assert boot(flash).last_boot.slot.name == "factory"


def test_otadata_is_written_encrypted_if_the_flash_is(boot):
    def encrypt(chip):
        chip.efuses.preset("SPI_BOOT_CRYPT_CNT", 1)
        chip.efuses.preset_block("BLOCK_KEY0", bytes(range(32)))
        chip.efuses.preset("KEY_PURPOSE_0", 4)
        data = chip.flash.read(0, chip.flash.size)
        chip.flash.erase(0, chip.flash.size)
        chip.flash.program(0, chip.encrypt(0, data))

    flash = build("esp32c3")
    entry = OtaDataSelectEntry(1, OtaImageState.NEW).to_bytes()
    flash[OTADATA : OTADATA + len(entry)] = entry
    flash[OTA_0 : OTA_0 + 0x10000] = flash[FACTORY : FACTORY + 0x10000]
    chip = boot(flash, prepare=encrypt, rollback=True)
    assert chip.last_boot.slot.name == "ota_0"
    chip.reset(bootloader=False)
    assert chip.last_boot.slot.name == "factory"


def test_a_reproducible_build_has_no_compile_time(boot):
    flash = build("esp32c3")
    end = FACTORY + 0x10000
    start = flash.index(b"Jan  1 2026", FACTORY, end)
    time = flash.index(b"00:00:00", FACTORY, end)
    flash[start : start + 16] = bytes(16)
    flash[time : time + 16] = bytes(16)
    fixed = _with_right_sums(flash, FACTORY)
    text = log(boot(fixed))
    assert "Project name" in text
    assert "Compile time" not in text


def _with_right_sums(flash, start):
    position, contents = start + 24, []
    for _ in range(flash[start + 1]):
        size = struct.unpack_from("<I", flash, position + 4)[0]
        contents.append(bytes(flash[position + 8 : position + 8 + size]))
        position += 8 + size
    end = start + (position - start + 16) // 16 * 16
    flash[end - 1] = checksum(b"".join(contents))
    flash[end : end + 32] = hashlib.sha256(flash[start:end]).digest()
    return flash


# -- secure boot


class KeyFile(io.BytesIO):
    name = "key"


@pytest.fixture(scope="module", params=[ec.SECP192R1, ec.SECP256R1, ec.SECP384R1])
def key(request):
    private = ec.generate_private_key(request.param())
    return private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )


def signed(data, key):
    data = data.ljust(-(-len(data) // SECTOR) * SECTOR, b"\xff")
    block = espsecure.generate_signature_block_using_private_key([KeyFile(key)], data)
    return data + block.ljust(SECTOR, b"\xff")


def test_signatures_of_elliptic_curves_are_those_of_espsecure(key):
    data = signed(b"\xe9" + bytes(5000), key)
    digest = espsecure._digest_sbv2_public_key(KeyFile(key))

    def check(data, digest):
        return SecureBoot({0: digest}).check(
            lambda start, size: bytes(data[start : start + size]), 0, 5001, said.append
        )

    said = []
    assert check(data, digest)
    assert check(data, digest[:16])
    assert not check(data, bytes(32))
    forged = bytearray(data)
    block = len(data) - SECTOR
    forged[block + (160 if data[block + 2] else 110)] ^= 1  # P-384 has a longer key before the signature
    forged[block + 1196 : block + 1200] = struct.pack("<I", zlib.crc32(forged[block : block + 1196]))
    assert not check(forged, digest)
    assert said[-2:] == ["Signature Check Failed", "Sig block 0 signature verification failed"]


@pytest.mark.parametrize("name", [name for name in CHIP_DEFS if name not in ("esp8266", "esp32", "esp32c2")])
def test_every_chip_has_the_key_purposes_of_secure_boot(name):
    purposes = importlib.import_module(f"espefuse.efuse.{name}.fields").EfuseKeyPurposeField.KEY_PURPOSES
    numbers = {purpose[0]: purpose[1] for purpose in purposes}
    efuses = SimChip(name).efuses
    efuses.preset("SECURE_BOOT_EN", 1)
    for number in range(3):
        efuses.preset(f"KEY_PURPOSE_{number}", numbers[f"SECURE_BOOT_DIGEST{number}"])
        efuses.preset_block(f"BLOCK_KEY{number}", bytes([number + 1]) * 32)
    efuses.preset("SECURE_BOOT_KEY_REVOKE1", 1)
    assert efuses.secure_boot().digests == {0: b"\1" * 32, 2: b"\3" * 32}


def test_an_esp32c2_has_half_a_digest():
    efuses = SimChip("esp32c2").efuses
    assert efuses.secure_boot() is None
    efuses.preset("SECURE_BOOT_EN", 1)
    efuses.preset_block("BLOCK_KEY0", bytes(16) + bytes(range(16)))
    assert efuses.secure_boot().digests == {0: bytes(range(16))}


@pytest.mark.parametrize("app_is_signed", [False, True])
@pytest.mark.parametrize("loader_checks", [False, True])
def test_a_bootloader_checks_the_app_if_it_was_built_to(boot, key, loader_checks, app_is_signed):
    flash = build("esp32c3")
    table = flash[0x8000:0x8C00]
    texts = b"2nd stage bootloader\0" + (b"secure_boot_v2\0" if loader_checks else b"")
    loader = signed(image(texts.ljust(64, b"\0")), key)
    flash[: len(loader)] = loader
    flash[0x8000:0x8C00] = table
    if app_is_signed:
        app = signed(image(bytes(256)), key)
        flash[FACTORY : FACTORY + len(app)] = app

    def enable(chip):
        chip.efuses.preset("SECURE_BOOT_EN", 1)
        chip.efuses.preset("KEY_PURPOSE_0", 9)
        chip.efuses.preset_block("BLOCK_KEY0", espsecure._digest_sbv2_public_key(KeyFile(key)))

    chip = boot(flash, prepare=enable)
    assert "secure boot verification succeeded" in log(chip)
    assert chip.last_boot.started is (app_is_signed or not loader_checks)
    assert ("esp_image: Secure boot signature verification failed" in log(chip)) is not chip.last_boot.started


def test_an_efuse_file_of_qemu_serves_a_simulated_chip(tmp_path):
    for name, size in (("esp32", 124), ("esp32c3", 984), ("esp32s3", 984)):
        path = tmp_path / name
        first = SimChip(name, mac="7c:df:a1:00:00:01")
        path.write_bytes(first.efuses.qemu_file())
        assert path.stat().st_size == size
        chip = SimChip(name, efuse_file=path)
        assert (chip.mac, chip.revision) == ("7c:df:a1:00:00:01", first.revision)
        chip.efuses.preset("WR_DIS", 1)
        chip.close()
        assert path.stat().st_size == size
        assert SimChip(name, efuse_file=path).efuses.field("WR_DIS") == 1
