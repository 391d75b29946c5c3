"""Secure boot v2: the trusted keys in the eFuses, and the check of the signature blocks after an image.

Source: chapter "Secure Boot V2" of ESP-IDF's guide; the messages are those of the ROMs of ESP32 v3 and ESP32-C3.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils

from pytest_esp.formats.boot_image import Read
from pytest_esp.formats.nor_flash import SECTOR

_BLOCK = 1216
_BLOCKS = 3
_MAGIC = 0xE7
_RSA, _ECDSA = 2, 3
_CRC = 1196  # of the bytes before it
_CURVES: dict[int, tuple[type[ec.EllipticCurve], int]] = {1: (ec.SECP192R1, 24), 2: (ec.SECP256R1, 32)}
_CURVE_P384 = 3


@dataclass(frozen=True)
class SecureBoot:
    """Secure boot v2, as the eFuses enable it.

    Attributes:
        digests: number of a key -> SHA-256 of the public key, as far as the chip stores it; without revoked keys.
        is_esp32: whether the ROM is an ESP32's, which has one key and prints other words.
    """

    digests: dict[int, bytes]
    is_esp32: bool = False

    def trusts(self, digest: bytes) -> bool:
        """Return whether the public key with this SHA-256 is one of the chip's."""
        return any(digest.startswith(known) for known in self.digests.values())

    def check(self, read: Read, offset: int, size: int, say: Callable[[str], None]) -> bool:
        """Check the signature of the image of *size* bytes at *offset* as the ROM does; *say* gets the ROM's messages.

        The signature blocks are in the sector after the image.
        """
        signed = -(-size // SECTOR) * SECTOR
        data = read(offset, signed)
        for number in range(_BLOCKS):
            block = read(offset + signed + number * _BLOCK, _BLOCK)
            if len(block) < _BLOCK or block[0] != _MAGIC:
                if number == 0:
                    found = block[0] if block else 0xFF
                    say(
                        f"No signature block magic byte found at signature sector (found 0x{found:x} not 0x{_MAGIC:x})."
                        " Image not V2 signed?"
                    )
                break
            problem = self._problem(block, data, say)
            if problem is None:
                return True
            say(f"Sig block {number} {problem}")
        return False

    def _problem(self, block: bytes, data: bytes, say: Callable[[str], None]) -> str | None:
        """Return what is wrong with a signature block of *data*, in the order of the ROM's checks; None if nothing."""
        stored, calculated = struct.unpack_from("<I", block, _CRC)[0], zlib.crc32(block[:_CRC])
        if stored != calculated:
            if self.is_esp32:
                return f"invalid: Stored CRC 0x{stored:08x} calculated 0x{calculated:08x}"
            return f"invalid: Stored CRC ends 0x{stored & 0xFFFF:04x} calculated ends 0x{calculated & 0xFFFF:04x}"
        algorithm = hashlib.sha384 if _is_p384(block) else hashlib.sha256
        digest = algorithm(data).digest()
        if block[4 : 4 + len(digest)] != digest:
            return "invalid: Image digest does not match"
        if not self.trusts(hashlib.sha256(_public_key(block)).digest()):
            return "signed with untrusted key"
        if not _is_signed(block, digest):
            say("Signature Check Failed")
            return "signature verification failed"
        return None


def _is_p384(block: bytes) -> bool:
    return block[1] == _ECDSA and block[2] == 1


def _public_key(block: bytes) -> bytes:
    """Return the bytes of the public key that are hashed for the eFuses (``espsecure digest-sbv2-public-key``)."""
    if block[1] == _RSA:
        return block[36:812]
    return block[52:149] if _is_p384(block) else block[36:101]


def _is_signed(block: bytes, digest: bytes) -> bool:
    try:
        if block[1] == _RSA:
            return _is_rsa_signed(block, digest)
        return block[1] == _ECDSA and _is_ecdsa_signed(block, digest)
    except (InvalidSignature, ValueError):  # ValueError: numbers that are not a key
        return False


def _is_rsa_signed(block: bytes, digest: bytes) -> bool:
    modulus, exponent = int.from_bytes(block[36:420], "little"), int.from_bytes(block[420:424], "little")
    rsa.RSAPublicNumbers(exponent, modulus).public_key().verify(
        block[812:1196][::-1],
        digest,
        padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=32),
        utils.Prehashed(hashes.SHA256()),
    )
    return True


def _is_ecdsa_signed(block: bytes, digest: bytes) -> bool:
    start = 52 if _is_p384(block) else 36
    curve, length = (ec.SECP384R1, 48) if block[start] == _CURVE_P384 else _CURVES[block[start]]
    point = 96 if _is_p384(block) else 64
    x, y, r, s = (
        int.from_bytes(block[first : first + length], "little")
        for part in (start + 1, start + 1 + point)
        for first in (part, part + length)
    )
    hash_type = hashes.SHA384() if _is_p384(block) else hashes.SHA256()
    ec.EllipticCurvePublicNumbers(x, y, curve()).public_key().verify(
        utils.encode_dss_signature(r, s), digest, ec.ECDSA(utils.Prehashed(hash_type))
    )
    return True
