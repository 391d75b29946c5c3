"""What is said to the loaders, packet by packet: mostly what no host should say."""

import struct
import zlib

from pytest_esp.formats.checksum import checksum

FLASH_SIZE = 2 * 1024 * 1024
RAM = {"esp32": 0x3FFB8000, "esp32c3": 0x3FC90000, "esp32s3": 0x3FCB0000}
_BLOCK = 64  # bytes: more at once and the ROMs in QEMU lose some on a busy host
_SYNC_DATA = b"\x07\x07\x12\x20" + 32 * b"\x55"


def words(*numbers):
    return struct.pack(f"<{len(numbers)}I", *numbers)


def command(op, data=b"", check=0, *, size=None):
    return struct.pack("<BBHI", 0, op, len(data) if size is None else size, check) + data


def block(op, content, sequence=0, *, check=None, size=None):
    header = words(len(content) if size is None else size, sequence, 0, 0)
    return command(op, header + content, checksum(content) if check is None else check)


SYNC = command(0x08, _SYNC_DATA)
_PACKED = zlib.compress(b"Z" * _BLOCK)


def conversations(chip, *, stub):
    """Return name -> packets that are sent one after the other."""
    ram = RAM[chip]

    def begin(size, address, op=0x02, *, blocks=1, block_size=_BLOCK):
        extra = () if chip == "esp32" and not stub else (0,)
        return command(op, words(size, blocks, block_size, address, *extra))

    def md5(address, size):
        return command(0x13, words(address, size, 0, 0))

    both = {
        "sync": [SYNC],
        "short sync": [command(0x08, _SYNC_DATA[:-1])],
        **{f"command {op:#04x}": [command(op, bytes(16))] for op in (0x00, 0x01, 0x16, 0x7F, 0xD4, 0xD5, 0xDF, 0xFF)},
        "a response": [b"\x01" + command(0x0A, words(ram))[1:]],
        "write register": [command(0x09, words(ram, 0x12345678, 0xFFFFFFFF, 0)), command(0x0A, words(ram))],
        "write bits": [command(0x09, words(ram, 0xABCDEF01, 0xFF00FF00, 0)), command(0x0A, words(ram))],
        "write two": [
            command(0x09, words(ram, 1, 0xFFFFFFFF, 0, ram + 4, 2, 0xFFFFFFFF, 0)),
            *(command(0x0A, words(ram + offset)) for offset in (0, 4)),
        ],
        "write nothing": [command(0x09)],
        "half a register": [command(0x09, words(ram, 1, 0xFFFFFFFF, 0)[:15])],
        "two addresses": [command(0x0A, words(ram, ram))],
        "packet longer than said": [command(0x0A, words(ram), size=2)],
        "packet shorter than said": [command(0x0A, words(ram), size=200)],
        "ram": [
            command(0x05, words(16, 2, 8, ram)),
            block(0x07, b"12345678"),
            block(0x07, b"abcdefgh", 1),
            command(0x0A, words(ram)),
            command(0x0A, words(ram + 12)),
            command(0x06, words(1, 0)),
        ],
        "ram: bad checksum": [command(0x05, words(8, 1, 8, ram)), block(0x07, b"12345678", check=1)],
        "ram: too long": [command(0x05, words(8, 1, 8, ram)), block(0x07, b"123456789012")],
        "ram: short begin": [command(0x05, words(8, 1, 8))],
        "ram: short end": [command(0x05, words(8, 1, 8, ram)), command(0x06, words(1))],
        "attach": [command(0x0D, words(0) if stub else words(0, 0))],
        "parameters": [command(0x0B, words(0, FLASH_SIZE, 0x10000, 0x1000, 0x100, 0xFFFF))],
        "two parameters": [command(0x0B, words(0, FLASH_SIZE))],
        "md5 of nothing": [md5(0, 0)],
        "md5 beyond the end": [md5(FLASH_SIZE - 16, 32)],
        "md5 behind the end": [md5(FLASH_SIZE, 16)],
        "begin of three words": [command(0x02, words(_BLOCK, 1, _BLOCK))],
        "write": [begin(_BLOCK, 0x1000), block(0x03, b"A" * _BLOCK)],
        "bad checksum": [begin(_BLOCK, 0x1000), block(0x03, b"A" * _BLOCK, check=1)],
        "bad checksum, again": [begin(_BLOCK, 0x1000), block(0x03, b"A" * _BLOCK, check=1), block(0x03, b"A" * _BLOCK)],
        "block that comes twice": [begin(128, 0x1000, blocks=2), *[block(0x03, b"A" * _BLOCK)] * 2],
        "wrong number first": [begin(128, 0x1000, blocks=2), *(block(0x03, b"A" * _BLOCK, n) for n in (1, 0, 1))],
        "block too long": [begin(_BLOCK, 0x1000), block(0x03, b"A" * 80)],
        "size that lies": [begin(_BLOCK, 0x1000), block(0x03, b"A" * _BLOCK, size=128)],
        "one more than announced": [begin(_BLOCK, 0x1000), *(block(0x03, b"A" * _BLOCK, n) for n in (0, 1))],
        "unaligned": [begin(_BLOCK, 0x3010)],
        "across the end": [begin(0x2000, FLASH_SIZE - 0x1000)],
        "behind the end": [begin(0x1000, FLASH_SIZE)],
        "last sector": [begin(0x1000, FLASH_SIZE - 0x1000)],
        "compressed": [begin(_BLOCK, 0x2000, 0x10), block(0x11, _PACKED)],
        "compressed: nonsense": [begin(_BLOCK, 0x2000, 0x10), block(0x11, b"not deflated"), command(0x0A, words(ram))],
        "compressed: bad checksum": [begin(_BLOCK, 0x2000, 0x10), block(0x11, _PACKED, check=1)],
        "compressed: size that lies": [begin(_BLOCK, 0x2000, 0x10), block(0x11, _PACKED, size=5)],
        "compressed: end too early": [begin(_BLOCK, 0x2000, 0x10), command(0x12, words(1))],
        "compressed: end": [begin(_BLOCK, 0x2000, 0x10), block(0x11, _PACKED), command(0x12, words(1))],
        "compressed: more than announced": [begin(32, 0x2000, 0x10), block(0x11, _PACKED), command(0x12, words(1))],
        "security info": [command(0x14)],
    }
    if not stub:
        return both | {
            "bad checksum, next": [
                begin(128, 0x1000, blocks=2),
                block(0x03, b"A" * _BLOCK, check=1),
                block(0x03, b"B" * _BLOCK, 1),
            ],
            "read slowly": [command(0x0E, words(0x10000, 64))],
            "read slowly: too much": [command(0x0E, words(0x10000, 65))],
            "read slowly: beyond the end": [command(0x0E, words(FLASH_SIZE - 32, 64))],
            "end too early": [begin(_BLOCK, 0x1000), command(0x04, words(1))],
            "end": [begin(_BLOCK, 0x1000), block(0x03, b"A" * _BLOCK), command(0x04, words(1))],
        }
    return both | {
        "md5": [md5(0x100000, 0x1000)],
        "md5 of odd bytes": [md5(0x100003, 5)],
        "md5 of two words": [command(0x13, words(0, 16))],
        "end too early": [begin(_BLOCK, 0x1000), command(0x04, words(1))],
        "end": [begin(0, 0), command(0x04, words(1)), command(0x04, words(1))],
        "short header": [begin(_BLOCK, 0x1000), command(0x03, b"abcd"), command(0x11, b"abcd")],
        "data across the end": [
            begin(0x2000, FLASH_SIZE - 0x1000),
            *(block(0x03, b"A" * 0x1000, number) for number in (0, 1)),
            SYNC,
            command(0x04, words(1)),
        ],
        "erase": [command(0xD1, words(0x1000, 0x2000)), md5(0x1000, 0x2000)],
        "erase: unaligned": [command(0xD1, words(1, 0x1000))],
        "erase: half a sector": [command(0xD1, words(0x1000, 0x800))],
        "erase: nothing": [command(0xD1, words(0, 0))],
        "erase: across the end": [command(0xD1, words(FLASH_SIZE - 0x1000, 0x2000))],
        "erase: behind the end": [command(0xD1, words(FLASH_SIZE, 0x1000))],
        "erase: one word": [command(0xD1, words(0))],
        "read": [command(0xD2, words(0x100000, 0x3000, 0x1000, 64)), *(words(n * 0x1000) for n in (1, 2, 3))],
        "read: given up": [command(0xD2, words(0x100000, 0x4000, 0x1000, 1)), SYNC, SYNC],
        "read: beyond the end": [command(0xD2, words(FLASH_SIZE - 16, 32, 0x1000, 1)), SYNC, SYNC],
        "read: frames too long": [command(0xD2, words(0, 16, 0x2000, 1)), SYNC, SYNC],
        "read: nothing": [command(0xD2, words(0, 0, 0x1000, 1))],
        "read: three words": [command(0xD2, words(0, 16, 16))],
        "security info with a word": [command(0x14, words(1))],
        "run user code": [command(0xD3)],
        "end of ram without begin": [command(0x06, words(1, 0))],
    }
