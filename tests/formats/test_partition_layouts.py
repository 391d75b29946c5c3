"""New partition tables, which need no board."""

import hashlib

import pytest
from esp_idf_defs.partitions import PartitionTable

from pytest_esp.errors import OperationError
from pytest_esp.formats.partition_layouts import LAYOUTS, build, build_ota


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
        ([row(), row("b")], "2 app partitions factory"),
        ([row(), row()], "unique"),
        ([row("a", subtype="ota_0"), row("b", subtype="ota_1")], "no otadata"),
        ([row("o", "data", "ota", "0x2000"), row("b", subtype="ota_1")], "number them from ota_0"),
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
    assert "nothing to start" in build("nvs, data, nvs, , 0x3000", "4MB").warnings[0]


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
