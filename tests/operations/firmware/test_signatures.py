"""Signatures of images, as espsecure makes them."""

import struct
import subprocess
import sys
import zlib

import pytest

from pytest_esp.errors import OperationError
from pytest_esp.operations.firmware.image_report import analyze
from pytest_esp.operations.firmware.merging import merge


def espsecure(*arguments):
    subprocess.run(
        [sys.executable, "-m", "espsecure", *map(str, arguments)], check=True, capture_output=True, timeout=100
    )


@pytest.fixture(params=["rsa3072", "ecdsa256"])
def scheme(request):
    return request.param


def make_key(path, scheme, version=2):
    more = ("--scheme", scheme) if version == 2 else ()
    espsecure("generate-signing-key", "--version", version, *more, path)
    return path


def sign(image, key, output, version=2):
    espsecure("sign-data", "--version", version, "--keyfile", key, "--output", output, image)
    return output


def test_a_signed_image(build_of, tmp_path, scheme):
    key, other = make_key(tmp_path / "key.pem", scheme), make_key(tmp_path / "other.pem", "ecdsa256")
    signed = sign(build_of("esp32c3") / "pytest_esp_test.bin", key, tmp_path / "signed.bin")
    signature = analyze(signed).images[0].signature
    espsecure("digest-sbv2-public-key", "--keyfile", key, "--output", tmp_path / "digest")
    assert signature.key_digests == ((tmp_path / "digest").read_bytes().hex(),)
    assert (signature.version, signature.valid, signature.by_given_key) == (2, True, None)
    assert analyze(signed, key_file=key).images[0].signature.by_given_key
    found = analyze(signed, key_file=other)
    assert found.images[0].signature.valid
    assert found.problems == ("it is not signed with the given key",)
    assert analyze(signed, partition_table=build_of("esp32c3") / "partition_table" / "partition-table.bin").fits[
        0
    ].needed == len(signed.read_bytes())


@pytest.mark.parametrize(
    ("from_end", "words"),
    [(0x1001, "doesn't match the image digest"), (0x1000 - 1000, "block is damaged")],
)
def test_a_wrong_signature(build_of, tmp_path, from_end, words):
    """A byte of the padding between image and signature, and one of the signature itself."""
    key = make_key(tmp_path / "key.pem", "ecdsa256")
    signed = sign(build_of("esp32c3") / "pytest_esp_test.bin", key, tmp_path / "signed.bin")
    data = bytearray(signed.read_bytes())
    data[-from_end] ^= 1
    signed.write_bytes(data)
    found = analyze(signed)
    assert not found.images[0].signature.valid
    assert words in found.problems[0]


def test_a_signature_by_another_key_than_that_beside_it(build_of, tmp_path):
    """The key in the block is exchanged, with a checksum that is right."""
    image = build_of("esp32c3") / "pytest_esp_test.bin"
    blocks = []
    for name in ("a", "b"):
        signed = sign(image, make_key(tmp_path / f"{name}.pem", "ecdsa256"), tmp_path / f"{name}.bin")
        blocks.append(bytearray(signed.read_bytes()))
    forged, other = blocks
    start = len(forged) - 0x1000
    forged[start + 36 : start + 101] = other[start + 36 : start + 101]
    struct.pack_into("<I", forged, start + 1196, zlib.crc32(forged[start : start + 1196]))
    (tmp_path / "forged.bin").write_bytes(forged)
    signature = analyze(tmp_path / "forged.bin").images[0].signature
    assert signature.valid is False
    assert len(signature.key_digests) == 1


def test_version_1(build_of, tmp_path):
    key, other = (make_key(tmp_path / f"{name}.pem", None, version=1) for name in ("key", "other"))
    signed = sign(build_of("esp32") / "pytest_esp_test.bin", key, tmp_path / "signed.bin", version=1)
    assert analyze(signed).images[0].signature.valid is None
    assert analyze(signed, key_file=key).images[0].signature.valid
    assert "its signature is wrong: Signature is not valid." in analyze(signed, key_file=other).problems


def test_what_is_no_key(build_of, tmp_path):
    key = make_key(tmp_path / "key.pem", "ecdsa256")
    signed = sign(build_of("esp32c3") / "pytest_esp_test.bin", key, tmp_path / "signed.bin")
    (tmp_path / "no.pem").write_bytes(b"no key")
    with pytest.raises(OperationError, match="not a key in PEM"):
        analyze(signed, key_file=tmp_path / "no.pem")


def test_an_image_that_is_not_signed_at_all(build_of, tmp_path):
    """Nothing is said of it unless a key is named that should have signed it."""
    key = make_key(tmp_path / "key.pem", "ecdsa256")
    app = build_of("esp32c3") / "pytest_esp_test.bin"
    assert analyze(app).problems == ()
    assert analyze(app, key_file=key).problems == ("it is not signed",)
    merged = merge(build_of("esp32c3"), tmp_path / "merged.bin").output_file
    assert analyze(merged, key_file=key).problems == (
        "image at 0x0: it is not signed",
        "image at 0x10000: it is not signed",
    )
