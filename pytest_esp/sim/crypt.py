"""Flash encryption, as done by the chips' hardware.

Source: chapter "Flash encryption" of ESP-IDF's guide and the technical reference manuals. `espsecure` computes
the same for files, but logs to the process's logger.
"""

from __future__ import annotations

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

_XTS_UNIT = 128
_TWEAKED_BLOCK = 32  # bytes with the same key on the ESP32
BLOCK = 16

# The bits of FLASH_CRYPT_CONFIG, low to high, select the ranges of key bits that are XORed with the address, high
# to low. Each range has bits 23 to 5 of the address three times, and then the lowest of them once more.
_RANGE_BITS = (67, 65, 63, 61)
_FIELD = 19


def xts(key: bytes, address: int, data: bytes, *, decrypt: bool = False) -> bytes:
    """Encrypt *data* for *address* with XTS-AES (all chips but the ESP32).

    Args:
        key: 32 or 64 bytes, in the order of a key file.
        address: the flash address, a multiple of 16. The length of *data* must also be a multiple of 16.
        decrypt: decrypt instead.
    """
    lead = address % _XTS_UNIT
    padded = bytes(lead) + data + bytes(-(lead + len(data)) % _XTS_UNIT)
    half = len(key) // 2
    # Not `modes.XTS`: OpenSSL refuses keys with two equal halves, such as a chip's key before it is burned.
    context = Cipher(algorithms.AES(key[:half]), modes.ECB())
    mask = _xts_mask(key[half:], address - lead, len(padded))
    masked = _xor(_reverse_units(padded), mask)
    cipher = context.decryptor() if decrypt else context.encryptor()
    result = _reverse_units(_xor(cipher.update(masked), mask))
    return result[lead : lead + len(data)]


def _xts_mask(key: bytes, address: int, size: int) -> bytes:
    """Return the tweaks that are XORed into the blocks before and after the cipher (IEEE 1619)."""
    starts = b"".join((address + offset).to_bytes(16, "little") for offset in range(0, size, _XTS_UNIT))
    starts = Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(starts)
    mask = bytearray()
    for offset in range(0, len(starts), BLOCK):
        value = int.from_bytes(starts[offset : offset + BLOCK], "little")
        for _ in range(_XTS_UNIT // BLOCK):
            mask += value.to_bytes(BLOCK, "little")
            value <<= 1
            if value >> 128:
                value ^= 1 << 128 | 0x87
    return bytes(mask)


def _xor(left: bytes, right: bytes) -> bytes:
    return (int.from_bytes(left, "little") ^ int.from_bytes(right, "little")).to_bytes(len(left), "little")


def _reverse_units(data: bytes) -> bytes:
    """Reverse the bytes of every unit: the hardware treats it as one number."""
    return b"".join(data[offset : offset + _XTS_UNIT][::-1] for offset in range(0, len(data), _XTS_UNIT))


def esp32(key: bytes, address: int, data: bytes, config: int, *, decrypt: bool = False) -> bytes:
    """Encrypt *data* for *address* like an ESP32: AES-256 with a key that changes every 32 bytes.

    Args:
        key: 32 bytes, in the order of a key file.
        address: the flash address, a multiple of 16. The length of *data* must also be a multiple of 16.
        config: the eFuse FLASH_CRYPT_CONFIG: the ranges of the key that depend on the address.
        decrypt: decrypt instead.
    """
    number = int.from_bytes(key, "big")
    parts: list[bytes] = []
    position = 0
    while position < len(data):
        start = address + position
        size = _TWEAKED_BLOCK - start % _TWEAKED_BLOCK
        block_key = (number ^ _tweak(start, config)).to_bytes(32, "big")
        cipher = Cipher(algorithms.AES(block_key), modes.ECB())
        # Encryption uses AES decryption, so that the cache, which reads, only needs the encryption circuit.
        context = cipher.encryptor() if decrypt else cipher.decryptor()
        parts.extend(
            context.update(data[offset : offset + BLOCK][::-1])[::-1]
            for offset in range(position, min(position + size, len(data)), BLOCK)
        )
        position += size
    return b"".join(parts)


def _tweak(address: int, config: int) -> int:
    """Return the 256 bits that are XORed into the key for the 32 bytes at *address*."""
    field = address >> 5 & ((1 << _FIELD) - 1)
    tweak = 0
    for number, bits in enumerate(_RANGE_BITS):
        rest = bits - 3 * _FIELD
        whole = (field << 2 * _FIELD | field << _FIELD | field) << rest | field & ((1 << rest) - 1)
        tweak = tweak << bits | (whole if config >> number & 1 else 0)
    return tweak
