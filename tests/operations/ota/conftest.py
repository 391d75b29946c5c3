"""Apps in several versions, keys, and boards that run the first version."""

import hashlib
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from pytest_esp.operations.ota import package

BUILDS = Path(__file__).parents[2] / "firmware" / "build"
VERSION_AT, VERSION_SIZE = 32 + 16, 32  # in the image: header, segment header, then esp_app_desc_t


def in_version(image, version):
    """The app with another version in its descriptor; checksum and hash are right again."""
    assert image[23] == 1, "it has a hash"
    changed = bytearray(image)
    changed[VERSION_AT : VERSION_AT + VERSION_SIZE] = version.encode().ljust(VERSION_SIZE, b"\0")
    for old, new in zip(image[:-33], changed[:-33], strict=True):
        changed[-33] ^= old ^ new
    changed[-32:] = hashlib.sha256(changed[:-32]).digest()
    return bytes(changed)


@pytest.fixture
def image_of():
    """The tests' own app for a chip, in a version."""
    return lambda chip, version: in_version((BUILDS / chip / "pytest_esp_test.bin").read_bytes(), version)


@pytest.fixture
def package_of(image_of, tmp_path):
    """A package of that app."""

    def make(chip, version, **options):
        image, path = tmp_path / f"{chip}-{version}.bin", tmp_path / f"{chip}-{version}.espota"
        image.write_bytes(image_of(chip, version))
        return package.create(image, version, path, overwrite=True, **options).path

    return make


@pytest.fixture(params=["ed25519", "p256"])
def keys(request, tmp_path):
    """A private key and its public one, as files."""
    key = (
        ed25519.Ed25519PrivateKey.generate() if request.param == "ed25519" else ec.generate_private_key(ec.SECP256R1())
    )
    return save_keys(key, tmp_path / request.param)


def save_keys(key, path):
    private, public = path.with_suffix(".pem"), path.with_suffix(".pub.pem")
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    public.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return private, public


@pytest.fixture(params=["sim-esp32c3", "sim-esp32", "qemu-esp32c3", "qemu-esp32"])
def board(request, need_qemu, esp_on):
    """A board of each kind; `esp_on` flashes it."""
    backend, _, chip = request.param.partition("-")
    if backend == "qemu":
        need_qemu(chip)
    return esp_on(backend, chip)


@pytest.fixture
def esp_on(make_esp):
    """Return the operations on a new board. The tests' bootloaders have rollback."""
    return lambda backend, chip: make_esp(
        backend=backend, chip=chip, flash_size="2MB", **({"rollback": True} if backend == "sim" else {})
    )
