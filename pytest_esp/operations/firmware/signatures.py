"""Signatures of images for secure boot, in the format of espsecure.

Source: ESP-IDF's guide, "Secure Boot v2" (signature block format) and "Secure Boot" (v1, 68 bytes after the image).
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from pytest_esp.errors import OperationError
from pytest_esp.formats.files import FileName, read_file
from pytest_esp.formats.regions import SECTOR
from pytest_esp.link.logs import Transcript, capture

_BLOCK = 1216
_MOST_BLOCKS = 3
_MAGIC, _RSA, _ECDSA = 0xE7, 2, 3
_SHA384 = 1
_V1_SIZE = 68
_CURVES = {1: 24, 2: 32, 3: 48}  # number of a curve: bytes of a coordinate


@dataclass(frozen=True)
class Signature:
    """The signatures that follow an image.

    Attributes:
        version: of secure boot.
        key_digests: SHA-256 of the public key in each signature block, 64 hex digits, as stored in eFuses (v2).
        valid: whether the signature is valid for the image, by the keys in its own blocks; None if the key is neither
            contained (v1) nor given.
        by_given_key: whether it is signed with the given key; None if none was given.
        problem: why it is not valid.
    """

    version: Literal[1, 2]
    key_digests: tuple[str, ...]
    valid: bool | None
    by_given_key: bool | None
    problem: str | None

    def size(self, image_size: int) -> int:
        """Return the bytes of an image of *image_size* bytes including this signature."""
        return image_size + _V1_SIZE if self.version == 1 else -(-image_size // SECTOR) * SECTOR + SECTOR


def signature_of(data: bytes, image_size: int, key_file: FileName | None = None) -> Signature | None:
    """Return the signature that follows an image; None if there is none.

    Args:
        data: from the first byte of the image.
        image_size: in bytes, including its hash.
        key_file: key in PEM, public or private, that it should be signed with.

    Raises:
        FirmwareError: if the key cannot be read. OperationError: if it is not a key.
    """
    key = read_file(key_file, "key") if key_file is not None else None
    start = -(-image_size // SECTOR) * SECTOR
    if data[start : start + 1] == bytes([_MAGIC]) and data[start + 1 : start + 2] in (bytes([_RSA]), bytes([_ECDSA])):
        return _version_2(data[: start + SECTOR], key)
    if len(data) == image_size + _V1_SIZE and data[image_size : image_size + 4] == bytes(4):
        return _version_1(data, key)
    return None


def _version_2(data: bytes, key: bytes | None) -> Signature:
    import espsecure

    transcript = Transcript()
    problem = _failure(transcript, lambda: espsecure.signature_info_v2(io.BytesIO(data)))
    digests = tuple(
        line.rpartition(":")[2].replace(" ", "")
        for line in transcript.text.splitlines()
        if line.startswith("Public key digest")
    )
    if problem is None and not digests:
        problem = "the signature block is damaged"
    if problem is None:
        problem = next(filter(None, (_why_wrong(data, own) for own in _own_keys(data, len(digests)))), None)
    by_given = None if key is None else _is_key(key) and _why_wrong(data, key) is None
    return Signature(2, digests, problem is None, by_given, problem)


def _version_1(data: bytes, key: bytes | None) -> Signature:
    import espsecure

    if key is None:
        return Signature(1, (), None, None, None)
    _is_key(key)
    problem = _failure(Transcript(), lambda: espsecure.verify_signature_v1(io.BytesIO(key), io.BytesIO(data)))
    return Signature(1, (), problem is None, problem is None, problem)


def _why_wrong(data: bytes, key: bytes) -> str | None:
    """Return why no block of *data* is signed with *key*, or None."""
    import espsecure

    named = io.BytesIO(key)
    named.name = "the key"  # type: ignore[attr-defined]
    return _failure(
        Transcript(), lambda: espsecure.verify_signature_v2(False, None, named, io.BytesIO(data), skip_padding=True)
    )


def _failure(transcript: Transcript, check: Callable[[], Any]) -> str | None:
    try:
        with capture(transcript):
            check()
    except Exception as error:  # espsecure also raises errors of struct and of cryptography
        return str(error) or type(error).__name__
    return None


def _own_keys(data: bytes, count: int) -> Iterable[bytes]:
    """Yield the public keys in the first *count* signature blocks, in PEM; empty if a block has no valid key."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    sector = data[-SECTOR:]
    for number in range(min(count, _MOST_BLOCKS)):
        block = sector[number * _BLOCK : (number + 1) * _BLOCK]
        public = _rsa_key(block) if block[1] == _RSA else _ecdsa_key(block)
        yield public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo) if public is not None else b""


def _rsa_key(block: bytes) -> Any:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicNumbers

    modulus, exponent = struct.unpack_from("<384sI", block, 36)
    try:
        return RSAPublicNumbers(exponent, int.from_bytes(modulus, "little")).public_key()
    except ValueError:
        return None


def _ecdsa_key(block: bytes) -> Any:
    from cryptography.hazmat.primitives.asymmetric import ec

    place = 52 if block[2] == _SHA384 else 36
    curves = {1: ec.SECP192R1, 2: ec.SECP256R1, 3: ec.SECP384R1}
    number = block[place]
    if number not in curves:
        return None
    size = _CURVES[number]
    x, y = (int.from_bytes(block[place + 1 + at : place + 1 + at + size], "little") for at in (0, size))
    try:
        return ec.EllipticCurvePublicNumbers(x, y, curves[number]()).public_key()
    except ValueError:
        return None


def _is_key(key: bytes) -> bool:
    """Check that a file is a key.

    Raises:
        OperationError: if it is not.
    """
    from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

    try:
        if b"PUBLIC KEY" in key:
            load_pem_public_key(key)
        else:
            load_pem_private_key(key, None)
    except (ValueError, TypeError) as error:
        raise OperationError(f"not a key in PEM: {error}", hint="give the key that espsecure signs with") from error
    return True
