"""Chooses key blocks for keys and digests, and what to burn to fill and protect them.

Source: espefuse's ``burn-key`` of each chip: byte order, protection, and eFuses burnt along.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pytest_esp.errors import OperationError
from pytest_esp.link.link import Link
from pytest_esp.operations.security import efuse
from pytest_esp.operations.security.efuse import Efuse, EfuseValue
from pytest_esp.operations.security.findings import KeyBlock, is_encryption_key, key_blocks_of
from pytest_esp.secrets import remember

_HALF = 32  # bytes of an XTS-AES-256 key in each of its two blocks
_C2_KEY, _C2_HALF = 32, 16
_XTS_128, _XTS_256 = ("XTS_AES_128_KEY",), ("XTS_AES_256_KEY_1", "XTS_AES_256_KEY_2")
_DIGEST = "SECURE_BOOT_DIGEST0"
_NO_XTS = "BLOCK_KEY5"  # a bug of several chips; espefuse also rejects a flash encryption key there
_SHARED = "the ESP32-C2 has one key block, which can be burnt once: burn key and digest together"


@dataclass(frozen=True)
class KeyBurns:
    """What to burn to put keys into their blocks.

    Attributes:
        blocks: their names.
        burns: the keys and their purposes, in order.
        read_protection, write_protection: bits of RD_DIS and WR_DIS to burn afterwards.
    """

    blocks: tuple[str, ...]
    burns: tuple[tuple[str, EfuseValue], ...]
    read_protection: int
    write_protection: int

    def __add__(self, other: KeyBurns) -> KeyBurns:
        """Return both combined; burns of the two halves of the ESP32-C2's block become one.

        Raises:
            OperationError: if the key fills the whole block.
        """
        burns = (*self.burns, *other.burns)
        names = {name for name, _ in burns}
        if names >= {"BLOCK_KEY0", "BLOCK_KEY0_HI_128"}:
            raise OperationError("the key leaves no room for a digest", hint=f"use a key of 16 bytes: {_SHARED}")
        halves = {name: value for name, value in burns if name in ("BLOCK_KEY0_LOW_128", "BLOCK_KEY0_HI_128")}
        if len(halves) == 2:
            low, high = (value for _, value in sorted(halves.items(), reverse=True))
            assert isinstance(low, bytes)
            assert isinstance(high, bytes)
            rest = tuple(burn for burn in burns if burn[0] not in halves)
            burns = (("BLOCK_KEY0", low + high), *rest)
        return KeyBurns(
            (*self.blocks, *other.blocks),
            burns,
            self.read_protection | other.read_protection,
            self.write_protection | other.write_protection,
        )

    def all_burns(self) -> list[tuple[str, EfuseValue]]:
        """Return the burns, followed by those that protect the blocks."""
        protection = (("RD_DIS", self.read_protection), ("WR_DIS", self.write_protection))
        return [*self.burns, *((name, bits) for name, bits in protection if bits)]


def for_flash_key(link: Link, fields: Mapping[str, Efuse], key: bytes) -> KeyBurns:
    """Return what to burn to put a flash encryption key into free blocks.

    Args:
        fields: the eFuses of the chip.
        key: 32 bytes; 64 for XTS-AES-256; 16 or 32 on an ESP32-C2 (16 leave room for a digest in its block).

    Raises:
        OperationError: if the chip does not support this key size, has a key already, or has no free block.
    """
    blocks = key_blocks_of(fields)
    if any(is_encryption_key(item) and item.state != "empty" for item in blocks):
        raise OperationError("a flash encryption key is burnt already", hint="use a new chip")
    if "BLOCK_KEY0_LOW_128" in fields:
        return _of_the_c2(link, blocks, key)
    if "BLOCK1" in fields:
        return _of_the_esp32(link, fields, key)
    purposes = {len(_XTS_128) * _HALF: _XTS_128, len(_XTS_256) * _HALF: _XTS_256}.get(len(key), ())
    numbers = efuse.key_purposes(link)
    if not purposes or not numbers.keys() >= set(purposes):
        sizes = "32" if _XTS_256[0] not in numbers else "32 or 64"
        raise OperationError(
            f"the key must have {sizes} bytes, not {len(key)}",
            hint="use 32 bytes for XTS-AES-128, or 64 for XTS-AES-256 on chips that have it (ESP32-S2, S3, P4 ...)",
        )
    free = [item.name for item in _free(blocks) if item.name != _NO_XTS]
    if len(free) < len(purposes):
        raise OperationError(f"{len(purposes)} key block(s) needed, but only {len(free)} free")
    parts = [key[at : at + _HALF][::-1] for at in range(0, len(key), _HALF)]  # the hardware expects the last byte first
    burns = KeyBurns((), (), 0, 0)
    for block, part, purpose in zip(free, parts, purposes, strict=False):
        burns += _with_purpose(link, block, part, numbers[purpose], secret=True)
    return burns


def for_digest(link: Link, fields: Mapping[str, Efuse], digest: bytes, *, with_key: bool = False) -> KeyBurns:
    """Return what to burn to put the digest of a public key (secure boot v2) into a free block, readable.

    Args:
        fields: the eFuses of the chip.
        digest: 32 bytes, of which an ESP32-C2 keeps the first 16.
        with_key: whether a flash encryption key is burnt as well.

    Raises:
        OperationError: if no block is free.
    """
    blocks = key_blocks_of(fields)
    if "BLOCK_KEY0_LOW_128" in fields:
        if any(item.state != "empty" for item in blocks):
            raise OperationError("the key block is burnt already", hint=_SHARED)
        return _block(link, "BLOCK_KEY0_HI_128", digest[:_C2_HALF], secret=False)
    if "BLOCK2" in fields:
        _check_whole(fields)
        if not any(item.name == "BLOCK2" and item.state == "empty" and item.writeable for item in blocks):
            raise OperationError("BLOCK2 is burnt already", hint="use a new chip")
        return _block(link, "BLOCK2", digest, secret=False)
    free = _free(blocks)
    if len(free) < 1 + with_key:
        raise OperationError("no key block is free")
    # The last one: flash encryption takes the first ones.
    return _with_purpose(link, free[-1].name, digest, efuse.key_purposes(link)[_DIGEST], secret=False)


def for_secure_boot_v1(link: Link, fields: Mapping[str, Efuse], key: bytes) -> KeyBurns:
    """Return what to burn to put the key of secure boot v1 into the ESP32's BLOCK2, read-protected.

    Raises:
        OperationError: if the block is not free.
    """
    _check_whole(fields)
    if not any(item.name == "BLOCK2" and item.state == "empty" and item.writeable for item in key_blocks_of(fields)):
        raise OperationError("BLOCK2 is burnt already", hint="use a new chip")
    return _block(link, "BLOCK2", key[::-1], secret=True)


# -- inside


def _free(blocks: tuple[KeyBlock, ...]) -> list[KeyBlock]:
    return [
        item
        for item in blocks
        if item.state == "empty" and item.writeable and item.purpose == "USER" and item.purpose_writeable
    ]


def _check_whole(fields: Mapping[str, Efuse]) -> None:
    if int(fields["CODING_SCHEME"].bits or "0", 2):
        raise OperationError(
            "the coding scheme of this ESP32 leaves no room for a whole key",
            hint="use espefuse burn-key; keys of 192 bits are not supported here",
        )


def _of_the_esp32(link: Link, fields: Mapping[str, Efuse], key: bytes) -> KeyBurns:
    if len(key) != _HALF:
        raise OperationError(f"the key must have {_HALF} bytes, not {len(key)}", hint="the ESP32 supports AES-256 only")
    _check_whole(fields)
    if not fields["BLOCK1"].writeable:
        raise OperationError("BLOCK1 is write-protected", hint="use a new chip")
    return _block(link, "BLOCK1", key[::-1], secret=True)


def _of_the_c2(link: Link, blocks: tuple[KeyBlock, ...], key: bytes) -> KeyBurns:
    if any(item.state != "empty" for item in blocks):
        raise OperationError("the key block is burnt already", hint=_SHARED)
    if len(key) == _C2_HALF:
        return _block(link, "BLOCK_KEY0_LOW_128", key[::-1], secret=True)
    if len(key) != _C2_KEY:
        raise OperationError(
            f"the key must have {_C2_HALF} or {_C2_KEY} bytes, not {len(key)}",
            hint="use 16 bytes to leave room for a digest of secure boot",
        )
    whole = _block(link, "BLOCK_KEY0", key[::-1], secret=True)
    return KeyBurns(
        whole.blocks, (*whole.burns, ("XTS_KEY_LENGTH_256", 1)), whole.read_protection, whole.write_protection
    )


def _block(link: Link, block: str, content: bytes, *, secret: bool) -> KeyBurns:
    if secret:
        remember(content, content[::-1])
    read, write = efuse.protection_masks(link, block)
    return KeyBurns((block,), ((block, content),), read if secret else 0, write)


def _with_purpose(link: Link, block: str, content: bytes, number: int, *, secret: bool) -> KeyBurns:
    purpose = f"KEY_PURPOSE_{block[-1]}"
    _, write = efuse.protection_masks(link, purpose)
    return _block(link, block, content, secret=secret) + KeyBurns((), ((purpose, number),), 0, write)
