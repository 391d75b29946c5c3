"""States of flash and eFuses in which a chip boots, or does not: what the real ROM and bootloader make of them decides.

A state is a function that changes a `Board`, whose flash holds an ESP-IDF build.
"""

import functools
import hashlib
import io
import json
import struct
import zlib
from dataclasses import dataclass, field

import espsecure
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

SECTOR = 0x1000
FLASH_SIZE = 2 * 1024 * 1024
OTADATA = 0xD000
FACTORY, OTA_0, OTA_1, OTA_2, TEST = 0x10000, 0x40000, 0x80000, 0xC0000, 0x100000
ROOM = 0x40000  # for an app
NEW, PENDING, VALID, INVALID, ABORTED = range(5)
BLANK = 0xFFFFFFFF

NVS = (1, 2, 0x9000, 0x4000, "nvs")
OTA = (1, 0, OTADATA, 0x2000, "otadata")
APP = (0, 0x00, FACTORY, ROOM, "factory")
SLOT_0, SLOT_1, SLOT_2 = (
    (0, 0x10 + number, offset, ROOM, f"ota_{number}") for number, offset in enumerate((OTA_0, OTA_1, OTA_2))
)
SLOT_3 = (0, 0x13, OTA_2, ROOM, "ota_3")
TEST_APP = (0, 0x20, TEST, ROOM, "test")


@dataclass
class Board:
    """Flash and eFuses. The app is in all slots."""

    chip: str
    flash: bytearray
    app: bytes
    loader: int
    fields: dict[str, int] = field(default_factory=dict)
    blocks: dict[str, bytes] = field(default_factory=dict)

    def put(self, address, data):
        self.flash[address : address + len(data)] = data

    def flip(self, address):
        self.flash[address] ^= 1

    def erase(self, *addresses):
        for address in addresses:
            self.put(address, b"\xff" * SECTOR)

    def table(self, *parts, at=0x8000, md5=True):
        entries = b"".join(
            struct.pack("<HBBII16sI", 0x50AA, kind, subtype, offset, size, name.encode(), 0)
            for kind, subtype, offset, size, name in parts
        )
        if md5:
            entries += b"\xeb\xeb" + b"\xff" * 14 + hashlib.md5(entries).digest()
        self.put(at, entries.ljust(0xC00, b"\xff"))

    def otadata(self, *entries, crc=(0, 0)):
        for number, (sequence, state) in enumerate(entries):
            right = zlib.crc32(struct.pack("<I", sequence), BLANK)
            entry = struct.pack("<I20sII", sequence, b"\xff" * 20, state, right ^ crc[number])
            self.put(OTADATA + number * SECTOR, entry)

    def end(self, image):
        """Return the address after the checksum of *image*."""
        position = image + 24
        for _ in range(self.flash[image + 1]):
            position += 8 + struct.unpack_from("<I", self.flash, position + 4)[0]
        return image + (position - image + 16) // 16 * 16

    def hash(self, image):
        """Make the SHA-256 of *image* right."""
        end = self.end(image)
        self.put(end, hashlib.sha256(self.flash[image:end]).digest())

    def sign(self, *keys, change=None):
        """Sign the bootloader, and return the address of its signature blocks."""
        image = bytes(self.flash[self.loader : self.end(self.loader) + 32])
        image = image.ljust(-(-len(image) // SECTOR) * SECTOR, b"\xff")
        blocks = b"".join(_signature(image, key) for key in keys)
        self.put(self.loader + len(image), blocks.ljust(SECTOR, b"\xff"))
        return self.loader + len(image)

    def secure_boot(self, *keys):
        """Enable secure boot with the digests of *keys*."""
        if self.chip == "esp32":
            self.fields["ABS_DONE_1"] = 1
            for key in keys[:1]:
                self.blocks["BLOCK2"] = _digest(key)
            return
        self.fields["SECURE_BOOT_EN"] = 1
        for number, key in enumerate(keys):
            self.blocks[f"BLOCK_KEY{number + 1}"] = _digest(key)
            self.fields[f"KEY_PURPOSE_{number + 1}"] = 9 + number


@functools.cache
def _key(name):
    key = rsa.generate_private_key(public_exponent=65537, key_size=3072)
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )


def _digest(name):
    key = io.BytesIO(_key(name))
    key.name = name
    return espsecure._digest_sbv2_public_key(key)


def _signature(image, name):
    key = io.BytesIO(_key(name))
    key.name = name
    return espsecure.generate_signature_block_using_private_key([key], image)


def load(chip, folder):
    """Return a `Board` with the build in *folder*, whose app is in all slots."""
    arguments = json.loads((folder / "flasher_args.json").read_text())
    flash = bytearray(b"\xff" * FLASH_SIZE)
    app = (folder / arguments["app"]["file"]).read_bytes()
    loader = int(arguments["bootloader"]["offset"], 16)
    board = Board(chip, flash, app, loader)
    board.put(loader, (folder / arguments["bootloader"]["file"]).read_bytes())
    for slot in (FACTORY, OTA_0, OTA_1, OTA_2, TEST):
        board.put(slot, app)
    board.table(NVS, OTA, APP, SLOT_0, SLOT_1)
    return board


STATES = {}


def state(group):
    def keep(function):
        STATES[f"{group}: {function.__name__.replace('_', ' ')}"] = function
        return function

    return keep


def _states(group, **functions):
    for name, function in functions.items():
        STATES[f"{group}: {name.replace('_', ' ')}"] = function


# -- the bootloader's header and sums


def _set(offset, *values):
    def change(board):
        board.put(board.loader + offset, bytes(values))
        board.hash(board.loader)

    return change


_states(
    "header",
    as_built=lambda board: None,
    blank=lambda board: board.put(0, b"\xff" * len(board.flash)),
    zeros=lambda board: board.put(0, bytes(len(board.flash))),
    magic=_set(0, 0xEA),
    **{f"mode_{mode}": _set(2, mode) for mode in (0, 1, 3, 4, 5)},
    mode_200=_set(2, 200),
    chip_id=_set(12, 2),
    no_segments=lambda board: board.put(board.loader + 1, b"\0"),
    minimum_revision=_set(15, 0xE7, 3),
    maximum_revision=_set(17, 1, 0),
)
for _code in (0x0, 0x1, 0x2, 0x5, 0xF):

    def _frequency(board, code=_code):
        board.flash[board.loader + 3] = board.flash[board.loader + 3] & 0xF0 | code
        board.hash(board.loader)

    STATES[f"header: frequency {_code:#x}"] = _frequency


@state("header")
def unknown_flash_size(board):
    board.flash[board.loader + 3] = board.flash[board.loader + 3] & 0xF | 0xE0
    board.hash(board.loader)


@state("header")
def checksum(board):
    board.flip(board.end(board.loader) - 1)


@state("header")
def sha256(board):
    board.flip(board.end(board.loader))


@state("header")
def odd_segment(board):
    board.put(board.loader + 28, struct.pack("<I", 0x101))


# -- the partition table

_states(
    "table",
    erased=lambda board: board.erase(0x8000),
    zeros=lambda board: board.put(0x8000, bytes(SECTOR)),
    without_md5=lambda board: board.table(NVS, APP, md5=False),
    md5=lambda board: board.flip(0x8000 + 40),
    magic=lambda board: board.flip(0x8000 + 32),
    no_apps=lambda board: board.table(NVS),
    empty=lambda board: board.table(),
    beyond_the_flash=lambda board: board.table(NVS, APP, (1, 0x82, 0x1F0000, 0x20000, "spiffs")),
    outside_the_flash=lambda board: board.table(NVS, APP, (1, 0x82, 0x300000, SECTOR, "spiffs")),
    no_end=lambda board: board.put(0x8000, bytes(board.flash[0x8000:0x8020]) * 96),
    kinds=lambda board: board.table(
        NVS,
        APP,
        *((1, subtype, 0x140000, SECTOR, f"data{subtype}") for subtype in (1, 3, 4, 5, 6, 0x40, 0x80, 0x81, 0x82)),
        *((2, subtype, 0x140000, SECTOR, f"boot{subtype}") for subtype in (0, 1, 2, 3)),
        *((3, subtype, 0x140000, SECTOR, f"table{subtype}") for subtype in (0, 1, 2)),
        (0, 0x30, 0x140000, SECTOR, "app30"),
        (0x40, 0, 0x140000, SECTOR, "sixteen letters!"),
    ),
)


@state("table")
def two_md5(board):
    board.table(NVS, APP)
    board.put(0x8000 + 96, board.flash[0x8000 + 64 : 0x8000 + 96])


# -- otadata

_BOTH = (SLOT_0, SLOT_1)


def _otadata(*entries, factory=True, crc=(0, 0), slots=_BOTH):
    def change(board):
        board.table(NVS, OTA, *([APP] if factory else []), *slots)
        board.otadata(*entries, crc=crc)

    return change


for _name, _entries, _crc in (
    ("first", [(1, VALID)], (0, 0)),
    ("second", [(1, VALID), (2, VALID)], (0, 0)),
    ("new", [(1, VALID), (2, NEW)], (0, 0)),
    ("pending", [(1, VALID), (2, PENDING)], (0, 0)),
    ("aborted", [(1, VALID), (2, ABORTED)], (0, 0)),
    ("both refused", [(1, INVALID), (2, ABORTED)], (0, 0)),
    ("one crc", [(1, VALID), (2, VALID)], (0, 1)),
    ("both crc", [(1, VALID), (2, VALID)], (1, 1)),
    ("refused and crc", [(1, INVALID), (2, VALID)], (0, 1)),
    ("sequence 0", [(0, VALID)], (0, 0)),
    ("sequence 77", [(77, 9)], (0, 0)),
    ("blank", [], (0, 0)),
):
    for _has_factory in (True, False):
        _where = "" if _has_factory else " without factory"
        STATES[f"otadata: {_name}{_where}"] = _otadata(*_entries, factory=_has_factory, crc=_crc)

_states(
    "otadata",
    sequence_0_of_three=_otadata((0, VALID), slots=(SLOT_0, SLOT_1, SLOT_2)),
    slots_1_and_3_first=_otadata((1, VALID), slots=(SLOT_1, SLOT_3)),
    slots_1_and_3_second=_otadata((2, VALID), slots=(SLOT_1, SLOT_3)),
    slots_1_and_3_blank=_otadata(factory=False, slots=(SLOT_1, SLOT_3)),
    without_slots=_otadata((1, VALID), slots=()),
    one_sector=lambda board: board.table(NVS, (1, 0, OTADATA, SECTOR, "otadata"), APP, SLOT_0),
)


# -- apps


@state("app")
def only_the_second_slot(board):
    board.erase(FACTORY, OTA_0)


@state("app")
def only_the_second_slot_without_factory(board):
    board.table(NVS, OTA, SLOT_0, SLOT_1)
    board.erase(OTA_0)


@state("app")
def only_the_test_app(board):
    board.table(NVS, OTA, APP, SLOT_0, TEST_APP)
    board.erase(FACTORY, OTA_0)


def _app(change):
    def of(board):
        board.table(NVS, APP)
        change(board)

    return of


_states(
    "app",
    none=_app(lambda board: board.erase(FACTORY)),
    does_not_fit=lambda board: board.table(NVS, (0, 0, FACTORY, 0x8000, "factory")),
    checksum=_app(lambda board: board.flip(board.end(FACTORY) - 1)),
    sha256=_app(lambda board: board.flip(board.end(FACTORY))),
    chip_id=_app(lambda board: board.put(FACTORY + 12, b"\2")),
    minimum_revision=_app(lambda board: board.put(FACTORY + 15, b"\xe7\3")),
    maximum_revision=_app(lambda board: board.put(FACTORY + 17, b"\1\0")),
    too_many_segments=_app(lambda board: board.put(FACTORY + 1, b"\x28")),
    no_segments=_app(lambda board: board.put(FACTORY + 1, b"\0")),
    long_segment=_app(lambda board: board.put(FACTORY + 28, struct.pack("<I", 0x7FFFFFFF))),
    odd_segment=_app(lambda board: board.put(FACTORY + 28, struct.pack("<I", 0x101))),
)


# -- secure boot


def _signed(*keys, trusted=("A",), change=None):
    def of(board):
        board.erase(*range(0x8000, FACTORY, SECTOR))  # where an ESP32's signature is, with this bootloader
        blocks = board.sign(*keys) if keys else None
        board.secure_boot(*trusted)
        if change is not None:
            change(board, blocks)

    return of


def _crc(board, block):
    board.put(block + 1196, struct.pack("<I", zlib.crc32(board.flash[block : block + 1196])))


def _forge(board, block):
    board.flip(block + 900)
    _crc(board, block)


def _patch(board, _block):
    board.flip(board.loader + 100)


def _rehash(board, _block):
    board.flip(board.loader + 100)
    board.flip(board.end(board.loader) - 1)
    board.hash(board.loader)


def _revoke(number):
    return lambda board, _: board.fields.update({f"SECURE_BOOT_KEY_REVOKE{number}": 1} if board.chip != "esp32" else {})


_states(
    "secure boot",
    unsigned=_signed(),
    signed=_signed("A"),
    wrong_key=_signed("B"),
    second_signature=_signed("B", "A"),
    three_signatures=_signed("B", "C", "A"),
    no_digest=_signed("A", trusted=()),
    second_digest=_signed("B", trusted=("A", "B")),
    signature_crc=_signed("A", change=lambda board, block: board.flip(block + 900)),
    forged=_signed("A", change=_forge),
    block_magic=_signed("A", change=lambda board, block: board.put(block, b"\0")),
    image_changed=_signed("A", change=_patch),
    image_and_sums_changed=_signed("A", change=_rehash),
    revoked=_signed("A", change=_revoke(0)),
    other_revoked=_signed("A", change=_revoke(1)),
)
