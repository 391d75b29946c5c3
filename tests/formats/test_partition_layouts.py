"""New partition tables, which need no board."""

import hashlib
import random
import struct

import pytest
from esp_idf_defs.partitions import SUBTYPES, PartitionTable
from esptool.targets import CHIP_DEFS

from pytest_esp.errors import OperationError
from pytest_esp.formats.partition_layouts import LAYOUTS, build, build_ota
from pytest_esp.formats.partition_table import from_csv


@pytest.mark.parametrize("size", ["2MB", "4MB", "8MB", "16MB"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_every_usual_layout_fits_every_usual_flash(name, size):
    table = build(name, size)
    assert table.warnings == ()
    assert table.free >= 0
    assert all(part.offset % 0x10000 == 0 for part in table.partitions if part.type == "app")
    again = build(table.csv, size)
    assert (again.data, again.csv) == (table.data, table.csv)


def test_the_binary_is_as_esp_idf_reads_it():
    table = build("two_ota", "4MB")
    entries = table.data[: 32 * len(table.partitions)]
    assert table.data[len(entries) :].startswith(b"\xeb\xeb" + b"\xff" * 14 + hashlib.md5(entries).digest() + b"\xff")
    assert [part.name for part in PartitionTable.from_binary(table.data)] == [part.name for part in table.partitions]
    assert (len(table.data), table.md5) == (0xC00, hashlib.md5(table.data).hexdigest())


ROWS = [
    {"name": "nvs", "type": "data", "subtype": "nvs", "size": "16KB", "offset": "0x9000"},
    {"name": "keys", "type": "data", "subtype": "nvs_keys", "size": 0x1000, "flags": ["encrypted"]},
    {"name": "app", "type": "app", "subtype": "factory", "size": "1MB"},
]


@pytest.mark.parametrize("layout", [ROWS, {"partitions": ROWS}])
def test_rows(layout):
    table = build(layout, "2MB")
    assert [(part.offset, part.size) for part in table.partitions] == [
        (0x9000, 0x4000),
        (0xD000, 0x1000),
        (0x10000, 0x100000),
    ]
    assert [part.name for part in table.partitions if part.encrypted] == ["keys"]


def test_a_csv_file(tmp_path):
    (tmp_path / "partitions.csv").write_text(build("factory_two_ota", "4MB").csv)
    assert build(tmp_path / "partitions.csv", "4MB") == build("factory_two_ota", "4MB")
    with pytest.raises(OperationError, match="cannot be read"):
        build(tmp_path / "other.csv", "4MB")


def row(name="app", kind="app", subtype="factory", size="1MB", **more):
    return {"name": name, "type": kind, "subtype": subtype, "size": size} | more


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        ([row(offset="0x11000")], "not aligned to 0x10000"),
        ([row(offset="0x10000"), row("b", subtype="test", offset="0x20000")], "overlap"),
        ([row(name="a name that is far too long")], "has 27 bytes"),
        ([row(name="")], "has no name"),
        ([row(size="5MB")], "does not fit"),
        ([row(offset="0x8000")], "overlap"),
        ([row(), row()], "unique"),
        ([row("o", "data", "ota", "0x1000")], "0x2000"),
        ([row("tiny", "data", "nvs", "0x2000")], "readonly"),
        ([row(sise=3)], "unknown key 'sise'"),
        ([row(name="a,b")], "comma"),
        ([row(size="much")], "invalid size"),
        ([row(flags="secret")], "unknown flag"),
        (["app"], "is not a row"),
        ([], "empty"),
        ({"rows": []}, "no list 'partitions'"),
        ("two_otas", "no layout 'two_otas'"),
        ("$HOME, app, factory, , 1M", r"contains a '\$'"),
    ],
)
def test_what_is_wrong_is_said(layout, words):
    with pytest.raises(OperationError, match=words):
        build(layout, "4MB")


def test_what_is_odd_is_said():
    table = build("nvs, data, nvs, , 0x3000\no, data, ota, , 0x2000\na, app, ota_0, , 1M\nb, app, ota_1, , 512K", "4MB")
    assert ["different sizes" in words for words in table.warnings] == [True]
    for rows, words in (
        ([row(), row("b")], "more than one app partition factory"),
        ([row("a", subtype="ota_0"), row("b", subtype="ota_1")], "no otadata partition"),
        ([row("o", "data", "ota", "0x2000"), row("b", subtype="ota_1")], "not numbered from ota_0"),
    ):
        assert any(words in warning for warning in build(rows, "4MB").warnings)
    assert "nothing to start" in build("nvs, data, nvs, , 0x3000", "4MB").warnings[0]


# -- as gen_esp32part.py, of which esp_idf_defs is an extract


def by_espressif(csv, offset=0x8000, bootloader=0x1000):
    table = PartitionTable.from_csv(csv, offset, bootloader)
    table.verify(offset)
    return table.to_binary()


BOOTLOADER = "bootloader,bootloader,primary,N/A,N/A,"


@pytest.mark.parametrize(
    ("csv", "chip", "offset"),
    [
        (f"{BOOTLOADER}\npt,partition_table,primary,N/A,N/A,\na,app,factory,,1M", "esp32", 0x8000),
        (f"{BOOTLOADER}\npt,partition_table,primary,,,\na,app,factory,,1M", "esp32c3", 0xB000),
        (f"{BOOTLOADER}\na,app,factory,,1M\nb2,bootloader,ota,,N/A", "esp32p4", 0x10000),
        ("# costs $5, or ${HOME}\n  # $HOME\na,app,factory,,1M,,# $HOME in a surplus cell", None, 0x8000),
        ("a,app,ota_0,,1M\nb,app,ota_1,,1M", None, 0x8000),
        ("a,app,ota_1,,1M\nb,app,ota_3,,1M\no,data,ota,,8K", None, 0x8000),
        ("a,app,factory,,1M\nb,app,factory,,1M", None, 0x8000),
        ("a,0,0x10,,1m\nb,1,0x40,,4k\nc,0x40,0x01,,0x1000\nd,data,,,0x400", None, 0x8000),
        ("a,app,factory,,-0x200000\nb,data,fat,,-4M,encrypted:readonly", None, 0x8000),
        ("a,app,factory,,1M\r\n\r\n\x0cb,data,nvs,,12K", None, 0x8000),
        ("t,app,tee_0,0x10000,64K\nt1,app,tee_1,,64K\no,data,tee_ota,,8K\na,app,ota_0,,1M", None, 0x8000),
    ],
)  # fmt: skip
def test_tables_of_esp_idf(csv, chip, offset):
    bootloader = CHIP_DEFS[chip].BOOTLOADER_FLASH_OFFSET if chip else 0x1000
    table = build(csv, "16MB", table_offset=offset, chip=chip)
    assert table.data == by_espressif(csv, offset, bootloader) == from_csv(csv, offset, chip)


def test_a_bootloader_row_needs_the_chip():
    with pytest.raises(OperationError, match="Primary bootloader offset is not provided") as caught:
        build("b,bootloader,primary,N/A,N/A,\na,app,factory,,1M", "4MB")
    assert "specify the chip" in caught.value.hint


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings(tmp_path, encoding):
    csv = "größe,app,factory,0x10000,1M"
    (tmp_path / "t.csv").write_bytes(csv.encode(encoding))
    assert build(tmp_path / "t.csv", "4MB").data == by_espressif(csv)
    (tmp_path / "t.csv").write_bytes(csv.encode("latin-1"))
    with pytest.raises(OperationError, match="it is not a text file"):
        build(tmp_path / "t.csv", "4MB")


def random_table(source):
    """Rows in CSV, with and without offsets, and what the binary has by the rules of ESP-IDF's guide."""
    rows, entries, end = [], [], 0x9000
    subtypes = {name: code for name, code in SUBTYPES[1].items() if name not in ("ota", "tee_ota", "nvs")}
    for number in range(source.randrange(1, 20)):
        is_app = source.random() < 0.3
        size = source.randrange(1, 40) * 0x1000
        align = 0x10000 if is_app else 0x1000
        gap = source.choice([None, 0, 1, 5])
        offset = -(-end // align) * align + (gap or 0) * align
        kind = ("app", f"ota_{number % 16}") if is_app else ("data", source.choice(sorted(subtypes)))
        code = 0x10 + number % 16 if is_app else subtypes[kind[1]]
        flags = source.choice(["", "encrypted"])
        cells = [f"p{number}", *kind, "" if gap is None else hex(offset)]
        cells += [source.choice([hex(size), f"{size // 1024}K", str(size)]), flags]
        rows.append(source.choice([",", " , ", ",\t"]).join(cells))
        entries.append((f"p{number}", not is_app, code, offset, size, bool(flags)))
        end = offset + size
        if source.random() < 0.2:
            rows.append(source.choice(["", "# $comment, here", "   "]))
    return "\n".join(rows), entries


def test_200_random_tables():
    source = random.Random(3)
    for _ in range(200):
        csv, wanted = random_table(source)
        data = build(csv, "128MB").data
        assert data == by_espressif("\n".join(line for line in csv.splitlines() if "$" not in line))
        rows = (struct.unpack("<2sBBLL16sL", data[32 * at : 32 * at + 32]) for at in range(len(wanted)))
        assert [
            (name.rstrip(b"\0").decode(), bool(kind), subtype, offset, size, bool(flags & 1))
            for _, kind, subtype, offset, size, name, flags in rows
        ] == wanted


def test_updates_with_everything():
    table = build_ota("8MB", "1536KB", slots=3, factory=True, storage="littlefs")
    assert [part.name for part in table.partitions] == [
        "nvs", "otadata", "phy_init", "factory", "ota_0", "ota_1", "ota_2", "storage",
    ]  # fmt: skip
    assert table.free == 0
    assert build_ota("8MB", "1536KB").free > 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"app_size": "3MB"}, "do not fit"),
        ({"app_size": 0}, "do not fit"),
        ({"slots": 1}, "OTA partitions: 1"),
        ({"slots": 17}, "OTA partitions: 17"),
        ({"storage": "ntfs"}, "unknown file system 'ntfs'"),
        ({"nvs_size": "4MB"}, "do not fit"),
    ],
)
def test_updates_that_cannot_be(arguments, words):
    with pytest.raises(OperationError, match=words):
        build_ota("4MB", **arguments)
