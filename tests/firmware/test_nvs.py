"""The command `nvs`: the real program and the stand-in read the same values and find the same damage."""

import io
import re
import struct
import zlib

import pytest
from esp_idf_nvs_partition_gen import nvs_partition_gen as generator

from pytest_esp.formats.nvs_pages import read_pages

OFFSET, SIZE, PAGE, ENTRY = 0x9000, 0x5000, 0x1000, 32
BLOB = bytes(value * 7 % 251 for value in range(5000))
OLD_BLOB = bytes(range(100, 150))
VALUES = [
    ("app", "namespace", ""),
    ("text", "string", "Größe 3 µm\\n\nnext line \t"),
    ("empty", "string", ""),
    ("u8", "u8", 255),
    ("i8", "i8", -128),
    ("u16", "u16", 65535),
    ("i16", "i16", -32768),
    ("u32", "u32", 4294967295),
    ("i32", "i32", -2147483648),
    ("u64", "u64", 18446744073709551615),
    ("i64", "i64", -9223372036854775808),
    ("i64_small", "i64", -1),
    ("zero", "u64", 0),
    ("other", "namespace", ""),
    ("blob", "hex2bin", BLOB.hex()),
    ("short", "hex2bin", bytes(range(32)).hex()),
    ("u8", "u8", 7),
]
LINES = [
    r"nvs app.text string = Größe 3 µm\x5cn\x0anext line \x09",
    "nvs app.empty string = ",
    "nvs app.u8 u8 = 255",
    "nvs app.i8 i8 = -128",
    "nvs app.u16 u16 = 65535",
    "nvs app.i16 i16 = -32768",
    "nvs app.u32 u32 = 4294967295",
    "nvs app.i32 i32 = -2147483648",
    "nvs app.u64 u64 = 18446744073709551615",
    "nvs app.i64 i64 = -9223372036854775808",
    "nvs app.i64_small i64 = -1",
    "nvs app.zero u64 = 0",
    f"nvs other.blob blob = 5000 bytes, crc32 {zlib.crc32(BLOB):08x}",
    f"nvs other.short blob = {bytes(range(32)).hex()}",
    "nvs other.u8 u8 = 7",
    "nvs: values 15, problems 0",
]


# The code is the same on both chips; what differs is seen with the first tests.
ONE_CHIP = pytest.mark.parametrize("chip", ["esp32c3"])


def image(rows=VALUES, version=generator.Page.VERSION2, key=None):
    """An NVS partition by Espressif's generator."""
    out = io.BytesIO()
    nvs = generator.nvs_open(out, SIZE - PAGE, version, key is not None, key)
    for name, encoding, value in rows:
        if encoding == "namespace":
            nvs.write_namespace(name)
        else:
            nvs.write_entry(name, value, encoding)
    generator.nvs_close(nvs)
    return bytearray(out.getvalue())


def entry_of(nvs, key, nth=0):
    """Where the nth entry of a key begins."""
    places = [at for at in range(64, len(nvs), ENTRY) if nvs[at + 8 : at + 24] == key.encode().ljust(16, b"\0")]
    return places[nth]


def set_states(nvs, entry, state, count=1):
    """Mark entries from the one at *entry* on."""
    page, index = entry // PAGE * PAGE, (entry % PAGE - 64) // ENTRY
    bits = int.from_bytes(nvs[page + 32 : page + 64], "little")
    for at in range(index, index + count):
        bits = bits & ~(3 << 2 * at) | state << 2 * at
    nvs[page + 32 : page + 64] = bits.to_bytes(32, "little")


def seal_header(nvs, page):
    nvs[page + 28 : page + 32] = struct.pack("<I", zlib.crc32(nvs[page + 4 : page + 28], 0xFFFFFFFF))


def assert_the_host_agrees(nvs, said):
    """What the app does not get, the operations on NVS do not give either, and what is damaged is told."""
    found = read_pages(bytes(nvs))
    values = {f"nvs {entry.namespace}.{entry.key} {entry.type} = {in_words(entry)}" for entry in found.entries}
    assert values == {line for line in said if line.startswith("nvs ")}
    has_problems = not said[-1].endswith("problems 0")
    assert bool(found.problems or found.encrypted) == has_problems


def in_words(entry):
    if entry.type == "string":
        return re.sub(r"[\x00-\x1f\x7f\\]", lambda found: f"\\x{ord(found[0]):02x}", entry.value)
    if entry.type == "blob" and len(entry.value) > 64:
        return f"{len(entry.value) // 2} bytes, crc32 {zlib.crc32(bytes.fromhex(entry.value)):08x}"
    return entry.value


@pytest.fixture
def ask(chip, boards, firmware_flash):
    """Put a partition into flash, and return what both say to commands."""

    def ask(nvs, *commands):
        firmware_flash[OFFSET : OFFSET + len(nvs)] = nvs
        answers = []
        for kind in (boards.real, boards.simulated):
            dialogue = kind(chip, firmware_flash)
            dialogue.until("see the list of tests.\r\n")
            said = "".join(dialogue.say(f"{command}\necho end\n", "end\r\n") for command in commands or ["nvs"])
            answers.append(said.encode("latin-1").decode().replace("end\r\n", "").splitlines())
        assert answers[0] == answers[1]
        if not commands:
            assert_the_host_agrees(nvs, answers[0])
        return answers[0]

    return ask


def test_values_of_all_types(ask):
    assert ask(image()) == LINES


def test_one_value(ask):
    said = ask(image(), "nvs other blob", "nvs app u8", "nvs other none", "nvs none u8", "nvs app")
    assert said[0] == f"nvs other.blob blob = {BLOB.hex()}"
    assert said[1:6] == [
        "nvs: values 1, problems 0",
        "nvs app.u8 u8 = 255",
        "nvs: values 1, problems 0",
        "nvs: values 0, problems 0",
        "nvs: values 0, problems 0",
    ]
    assert said[6:] == LINES


def test_blobs_of_the_format_before_esp_idf_4(ask):
    rows = [("app", "namespace", ""), ("old", "hex2bin", OLD_BLOB.hex()), ("n", "i8", -1)]
    said = ask(image(rows, generator.Page.VERSION1), "nvs", "nvs app old")
    assert said[0] == f"nvs app.old blob = 50 bytes, crc32 {zlib.crc32(OLD_BLOB):08x}"
    assert said[3] == f"nvs app.old blob = {OLD_BLOB.hex()}"


def test_the_newest_counts_and_what_is_erased_does_not(ask):
    """As the library leaves values that it wrote anew; it lost power before it marked the older *text* as erased."""
    rows = [
        ("app", "namespace", ""),
        ("n", "u8", 1),
        ("text", "string", "older"),
        ("gone", "u8", 1),
        ("n", "u8", 2),
        ("n", "u16", 3),
        ("text", "string", "newer"),
    ]
    nvs = image(rows)
    set_states(nvs, entry_of(nvs, "n", 0), 0)
    set_states(nvs, entry_of(nvs, "n", 1), 0)
    set_states(nvs, entry_of(nvs, "gone"), 0)
    assert ask(nvs) == ["nvs app.n u16 = 3", "nvs app.text string = newer", "nvs: values 2, problems 0"]


@ONE_CHIP
def test_pages_count_by_their_sequence(ask):
    rows = [("app", "namespace", ""), *((f"key{number}", "u8", number) for number in range(130)), ("key1", "u8", 200)]
    nvs = image(rows)
    nvs[:PAGE], nvs[PAGE : 2 * PAGE] = nvs[PAGE : 2 * PAGE], nvs[:PAGE]
    said = ask(nvs)
    assert said[-2:] == ["nvs app.key1 u8 = 200", "nvs: values 130, problems 0"]
    assert said[0] == "nvs app.key0 u8 = 0"


def flip(nvs, at):
    nvs[at] ^= 1


def corrupt_page(nvs):
    nvs[0:4] = b"\xf0\xff\xff\xff"


def unknown_version(nvs):
    nvs[8] = 0xFD
    seal_header(nvs, 0)


def endless_span(nvs):
    at = entry_of(nvs, "text")
    nvs[at + 2] = 250
    nvs[at + 4 : at + 8] = struct.pack("<I", zlib.crc32(nvs[at : at + 4] + nvs[at + 8 : at + 32], 0xFFFFFFFF))


def lost_namespace(nvs):
    set_states(nvs, entry_of(nvs, "other"), 0)


DAMAGES = {
    "entry": (lambda nvs: flip(nvs, entry_of(nvs, "u16") + 25), "nvs: entry 7 of page 0 is damaged", "app.u16"),
    "text": (lambda nvs: flip(nvs, entry_of(nvs, "text") + 33), "nvs: entry 1 of page 0 is damaged", "app.text"),
    "part of a text": (
        lambda nvs: set_states(nvs, entry_of(nvs, "text") + 32, 0),
        "nvs: entry 1 of page 0 is damaged",
        "app.text",
    ),
    "chunk": (
        lambda nvs: flip(nvs, entry_of(nvs, "blob", 1) + 40),
        "nvs: entry 0 of page 1 is damaged",
        "other.blob",
    ),
}


@ONE_CHIP
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_value_is_told_and_the_others_are_there(ask, damage):
    harm, told, lost = damage
    nvs = image()
    harm(nvs)
    said = ask(nvs)
    assert said[0] == told
    assert {line for line in said if line.startswith("nvs ")} == {
        line for line in LINES if line.startswith("nvs ") and not line.startswith(f"nvs {lost} ")
    }
    assert ("nvs: the blob other.blob is not complete" in said) == (lost == "other.blob")


OF_NOBODY = [f"nvs: {key} is in namespace 2, which has no name" for key in ("blob", "short", "u8")]
HARMFUL = {
    "checksum of the header": (lambda nvs: flip(nvs, 28), "nvs: page 0 is damaged"),
    "page marked as corrupt": (corrupt_page, "nvs: page 0 is damaged"),
    "unknown version": (unknown_version, "nvs: page 0 is of the unknown version 3"),
}


@ONE_CHIP
@pytest.mark.parametrize("harm", HARMFUL.values(), ids=HARMFUL)
def test_a_page_that_cannot_be_read(ask, harm):
    """Its values are gone, and what is on other pages is in a namespace that nobody knows any more."""
    how, told = harm
    nvs = image()
    how(nvs)
    assert ask(nvs) == [told, *OF_NOBODY, "nvs: values 0, problems 4"]


@ONE_CHIP
def test_a_span_beyond_the_page_does_no_harm(ask):
    """What would lie within it is not looked at."""
    nvs = image()
    at = entry_of(nvs, "u32")
    nvs[at + 1 : at + 3] = bytes((0x21, 250))  # a text of 250 entries
    nvs[at + 4 : at + 8] = struct.pack("<I", zlib.crc32(nvs[at : at + 4] + nvs[at + 8 : at + 32], 0xFFFFFFFF))
    said = ask(nvs)
    assert said[:7] == ["nvs: entry 9 of page 0 is damaged", *LINES[:6]]
    assert said[7:] == [*OF_NOBODY, "nvs: values 6, problems 4"]


@ONE_CHIP
def test_a_hole_in_the_page_that_is_written_next(ask):
    """The library takes the first empty entry for the end, as it is in a sound page."""
    nvs = image(VALUES[:7])
    set_states(nvs, entry_of(nvs, "i8"), 3)
    assert ask(nvs) == ["nvs: entry 7 of page 0 is damaged", *LINES[:3], "nvs: values 3, problems 1"]


@ONE_CHIP
def test_a_blank_page_that_is_not_blank(ask):
    nvs = image()
    nvs[-1] = 0
    assert ask(nvs) == ["nvs: page 4 is damaged", *LINES[:-1], "nvs: values 15, problems 1"]


@ONE_CHIP
def test_noise(ask):
    noise = b"".join(zlib.crc32(number.to_bytes(4, "little")).to_bytes(4, "little") for number in range(SIZE // 4))
    assert ask(noise) == [*(f"nvs: page {number} is damaged" for number in range(5)), "nvs: values 0, problems 5"]


@ONE_CHIP
def test_encrypted(ask):
    said = ask(image(VALUES[:5], key=bytes(range(64))))
    assert said == ["nvs: no entry of page 0 can be read: is it encrypted?", "nvs: values 0, problems 1"]


@ONE_CHIP
def test_blank(ask):
    assert ask(b"\xff" * SIZE) == ["nvs: values 0, problems 0"]


@ONE_CHIP
def test_no_partition(ask, firmware_flash):
    table = 0x8000
    firmware_flash[table + 12 : table + 16] = b"data"  # the label of the first
    md5 = firmware_flash.index(b"\xeb\xeb" + b"\xff" * 14, table)
    firmware_flash[md5 : md5 + ENTRY] = b"\xff" * ENTRY
    assert ask(image(), "nvs") == ["nvs: there is no partition nvs", "nvs: values 0, problems 1"]
