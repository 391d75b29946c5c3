"""Reads Intel HEX and UF2 files.

Source: Intel, "Hexadecimal Object File Format Specification", read by intelhex; Microsoft's UF2 specification
(github.com/microsoft/uf2), whose blocks esptool writes.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator

from pytest_esp.errors import FirmwareError

_HEX = b":"
_UF2 = b"UF2\n"
_BLOCK = struct.Struct("<8I476sI")  # magics, flags, address, size, number, count, family; data; magic
_SECOND_MAGIC, _LAST_MAGIC = 0x9E5D5157, 0x0AB16F30
_NOT_FLASH = 0x1  # flag: the block is a comment
_LARGEST_FLASH = 128 << 20
_LARGEST_HEX = 32 << 20  # bytes of text; intelhex keeps every byte as an object
_HINT = "create it again, or use the raw image (.bin)"


def contents_of(data: bytes, source: str) -> bytes:
    """Return a file's flash contents from address 0, with gaps filled with 0xFF; a raw file is returned unchanged.

    Raises:
        FirmwareError: if it is a damaged Intel HEX or UF2 file.
    """
    return _flat(parts_of(data, source), source) if is_container(data) else data


def is_container(data: bytes) -> bool:
    """Return whether *data* begins like an Intel HEX or UF2 file."""
    return data.startswith((_UF2, _HEX))


def parts_of(data: bytes, source: str) -> Iterator[tuple[int, bytes]]:
    """Yield address and bytes of each part of an Intel HEX or UF2 file, in the order of the file.

    Raises:
        FirmwareError: if it is damaged.
    """
    return _uf2_blocks(data, source) if data.startswith(_UF2) else _hex_segments(data, source)


def _flat(parts: Iterator[tuple[int, bytes]], source: str) -> bytes:
    flash = bytearray()
    for address, part in parts:
        end = address + len(part)
        if end > _LARGEST_FLASH:
            raise FirmwareError(f"{source} has data for {address:#x}, which is beyond any flash", hint=_HINT)
        flash.extend(b"\xff" * (end - len(flash)))
        flash[address:end] = part
    return bytes(flash)


def _hex_segments(data: bytes, source: str) -> Iterator[tuple[int, bytes]]:
    from intelhex import IntelHex, IntelHexError

    if len(data) > _LARGEST_HEX:
        raise FirmwareError(f"{source} is too large: {len(data)} bytes of Intel HEX", hint="use the raw image (.bin)")
    found = IntelHex()
    try:
        found.loadhex(io.StringIO(data.decode("ascii")))
        whole = b":00000001FF" in data.upper()
    except (IntelHexError, ValueError) as error:
        raise FirmwareError(f"{source} is not a valid Intel HEX file: {error}", hint=_HINT) from error
    if not whole:
        raise FirmwareError(f"{source} is truncated: the end-of-file record is missing", hint=_HINT)
    for begin, end in found.segments():
        yield begin, bytes(found.gets(begin, end - begin))


def _uf2_blocks(data: bytes, source: str) -> Iterator[tuple[int, bytes]]:
    if len(data) % _BLOCK.size:
        raise FirmwareError(f"{source} is truncated: UF2 has blocks of {_BLOCK.size} bytes", hint=_HINT)
    left = 0  # missing blocks of the current sequence: esptool numbers the blocks of each image separately
    for place, block in enumerate(_BLOCK.iter_unpack(data)):
        first, second, flags, address, size, number, total, _, payload, last = block
        if (first.to_bytes(4, "little"), second, last) != (_UF2, _SECOND_MAGIC, _LAST_MAGIC) or size > len(payload):
            raise FirmwareError(f"{source} is damaged: invalid UF2 block {place}", hint=_HINT)
        expected = total - left if left else 0
        if number != expected:
            raise FirmwareError(
                f"{source} is damaged: UF2 block {place} has number {number}, expected {expected}", hint=_HINT
            )
        left = total - number - 1
        if not flags & _NOT_FLASH:
            yield address, payload[:size]
    if left:
        raise FirmwareError(f"{source} is truncated: {left} UF2 blocks are missing", hint=_HINT)
