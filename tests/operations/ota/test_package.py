"""Update packages: their contents are exactly what was put in, or they are rejected."""

import json
import random
import subprocess
import zipfile

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

from pytest_esp.errors import EspError, FirmwareError, OperationError, RefusedError
from pytest_esp.operations.ota import package

from .conftest import BUILDS, save_keys


def test_a_package_says_what_it_holds(package_of, image_of):
    found, image = package.unpack(package_of("esp32c3", "2.0"), None)
    assert image == image_of("esp32c3", "2.0")
    manifest = found.manifest
    assert (manifest.version, manifest.app_version, manifest.chip_type) == ("2.0", "2.0", "esp32c3")
    assert (manifest.project, manifest.size) == ("pytest_esp_test", len(image))
    assert found.signature is None
    assert found.signed_by is None


def test_the_app_of_a_build_folder_is_taken(tmp_path):
    made = package.create(BUILDS / "esp32", "1.2", tmp_path / "update.espota")
    assert package.unpack(made.path, None)[1] == (BUILDS / "esp32" / "pytest_esp_test.bin").read_bytes()


def test_a_signature_is_checked_with_the_public_key(package_of, keys):
    private, public = keys
    path = package_of("esp32c3", "2.0", key_file=private)
    found = package.read(path, public_key_file=public)
    assert len(found.signed_by) == 64
    assert found.signature == {"ed25519": "Ed25519", "p256": "ECDSA-P256"}[private.stem]
    assert package.read(path).signed_by is None  # nobody said which key it has to be


def test_openssl_agrees_on_the_signature(package_of, keys, tmp_path):
    private, public = keys
    with zipfile.ZipFile(package_of("esp32c3", "2.0", key_file=private)) as archive:
        archive.extractall(tmp_path / "out")
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", public, "-rawin"]
    command += ["-in", tmp_path / "out/manifest.json", "-sigfile", tmp_path / "out/manifest.sig"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no openssl command here")
    assert "Signature Verified Successfully" in result.stdout, result.stderr


def test_without_a_signature_where_a_key_is_set(package_of, keys):
    with pytest.raises(RefusedError, match="is not signed, but a key is set"):
        package.read(package_of("esp32c3", "2.0"), public_key_file=keys[1])


def test_signed_by_somebody_else(package_of, keys, tmp_path):
    other, _ = save_keys(ed25519.Ed25519PrivateKey.generate(), tmp_path / "other")
    with pytest.raises(RefusedError, match="not signed with this key"):
        package.read(package_of("esp32c3", "2.0", key_file=other), public_key_file=keys[1])


@pytest.mark.parametrize("name", ["manifest.json", "app.bin", "manifest.sig"])
def test_any_changed_bit_is_found(package_of, keys, name, tmp_path):
    private, public = keys
    with zipfile.ZipFile(package_of("esp32c3", "2.0", key_file=private)) as archive:
        parts = {member: archive.read(member) for member in archive.namelist()}
    chosen = random.Random(1)
    for _ in range(40):
        changed = bytearray(parts[name])
        changed[chosen.randrange(len(changed))] ^= 1 << chosen.randrange(8)
        path = tmp_path / "changed.espota"
        with zipfile.ZipFile(path, "w") as out:
            for member, data in (parts | {name: bytes(changed)}).items():
                out.writestr(member, data)
        with pytest.raises(EspError):
            package.read(path, public_key_file=public)


def test_a_package_that_was_cut_off(package_of):
    path = package_of("esp32c3", "2.0")
    data = path.read_bytes()
    for size in (0, 1, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(OperationError, match="not an update package"):
            package.read(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"size": "1"}, "manifest does not have the format"),
        ({"version": "1.0\r\nX-Evil: 1"}, "is not one line of text"),
        ({"format": "another 1"}, "manifest does not have the format"),
        ({"more": 1}, "unknown"),
        ({"chip_type": "esp32"}, "is not for the esp32"),
        ({"sha256": "0" * 64}, "does not match its manifest"),
    ],
)
def test_a_manifest_that_lies(package_of, change, words):
    path = package_of("esp32c3", "2.0")
    with zipfile.ZipFile(path) as archive:
        manifest, image = json.loads(archive.read("manifest.json")), archive.read("app.bin")
    with zipfile.ZipFile(path, "w") as out:
        out.writestr("manifest.json", json.dumps(manifest | change))
        out.writestr("app.bin", image)
    with pytest.raises(OperationError, match=words):
        package.read(path)


def test_more_than_belongs_into_a_package(package_of):
    path = package_of("esp32c3", "2.0")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("../evil", b"x")
    with pytest.raises(OperationError, match=r"it contains \.\./evil"):
        package.read(path)


def test_a_bomb_is_not_unpacked(tmp_path):
    path = tmp_path / "bomb.espota"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("manifest.json", "{}")
        out.writestr("app.bin", b"\0" * (33 * 1024 * 1024))
    with pytest.raises(OperationError, match="larger than 33554432 bytes"):
        package.read(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\xff" * 4096, "neither an app image nor"),
        (lambda image: image[:2000], "is truncated: its image at 0x0"),
        (lambda image: image[:1000] + b"?" + image[1001:], "checksum or hash is wrong"),
    ],
)
def test_what_is_no_app(content, words, image_of, tmp_path):
    path = tmp_path / "app.bin"
    path.write_bytes(content(image_of("esp32c3", "1")) if callable(content) else content)
    with pytest.raises(EspError, match=words):
        package.create(path, "1", tmp_path / "update.espota")
    assert not (tmp_path / "update.espota").exists()


@pytest.mark.parametrize("version", ["", " ", "1\n2", "1" * 200])
def test_what_is_no_version(version, tmp_path):
    with pytest.raises(OperationError, match="invalid version"):
        package.create(BUILDS / "esp32", version, tmp_path / "update.espota")


def test_a_package_is_not_overwritten_unasked(package_of, tmp_path):
    path = package_of("esp32", "1")
    with pytest.raises(OperationError, match="exists already"):
        package.create(BUILDS / "esp32", "2", path)
    assert package.read(path).manifest.version == "1"


def test_keys_that_will_not_do(tmp_path):
    wrong = tmp_path / "wrong.pem"
    wrong.write_text("-----BEGIN SECRET-----\nhunter2\n")
    with pytest.raises(OperationError, match="is not a private key") as caught:
        package.create(BUILDS / "esp32", "1", tmp_path / "update.espota", key_file=wrong)
    assert "hunter2" not in str(caught.value)
    private, _ = save_keys(rsa.generate_private_key(65537, 2048), tmp_path / "rsa")
    with pytest.raises(OperationError, match="neither Ed25519 nor P-256"):
        package.create(BUILDS / "esp32", "1", tmp_path / "update.espota", key_file=private)
    with pytest.raises(FirmwareError, match=r"no such|does not exist|there is no"):
        package.create(tmp_path / "nothing", "1", tmp_path / "update.espota")


@pytest.mark.parametrize("chip", ["esp32", "esp32c3"])
def test_a_merged_image_or_a_bootloader_is_no_update(chip, tmp_path):
    """A slot that has a bootloader in it is started, too: the board would be lost."""
    bootloader = (BUILDS / chip / "bootloader/bootloader.bin").read_bytes()
    app = (BUILDS / chip / "pytest_esp_test.bin").read_bytes()
    image = tmp_path / "image.bin"
    for content in (bootloader.ljust(0x10000, b"\xff") + app, bootloader, app.ljust(0x10000, b"\xff") + app):
        image.write_bytes(content)
        with pytest.raises(FirmwareError):
            package.create(image, "1", tmp_path / "update.espota")
        assert not (tmp_path / "update.espota").exists()
    image.write_bytes(app.ljust(0x10000, b"\xff"))
    assert package.create(image, "1", tmp_path / "update.espota").manifest.size == 0x10000
