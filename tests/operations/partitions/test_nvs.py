"""NVS partitions made by Espressif's generator, and read back from the flash of simulated chips."""

import os
import subprocess
import sys
import zlib

import pytest

from pytest_esp.errors import OperationError, RefusedError
from pytest_esp.formats.files import Confinement, confined
from pytest_esp.formats.nvs_pages import PAGE, make_pages, read_pages

VALUES = {
    "wifi": {"ssid": "Größe", "channel": {"type": "u8", "value": 11}, "hidden": True},
    "numbers": {
        **{f"u{bits}": {"type": f"u{bits}", "value": (1 << bits) - 1} for bits in (8, 16, 32, 64)},
        **{f"i{bits}": {"type": f"i{bits}", "value": -(1 << bits - 1)} for bits in (8, 16, 32, 64)},
        "plain": 7,
        "below": -7,
        "large": 1 << 40,
    },
    "blobs": {"short": b"\x01\x02", "long": bytes(range(256)) * 40, "none": {"type": "blob", "value": ""}},
}


def as_table(contents):
    return {(entry.namespace, entry.key): (entry.type, entry.value) for entry in contents.entries}


def test_every_type_comes_back():
    contents = read_pages(make_pages(VALUES, 0x6000))
    found = as_table(contents)
    assert contents.namespaces == ("blobs", "numbers", "wifi")
    assert found["wifi", "ssid"] == ("string", "Größe")
    assert found["wifi", "channel"] == ("u8", 11)
    assert found["wifi", "hidden"] == ("u8", 1)
    for bits in (8, 16, 32, 64):
        assert found["numbers", f"u{bits}"] == (f"u{bits}", (1 << bits) - 1)
        assert found["numbers", f"i{bits}"] == (f"i{bits}", -(1 << bits - 1))
    assert [found["numbers", key] for key in ("plain", "below", "large")] == [("u32", 7), ("i32", -7), ("u64", 1 << 40)]
    assert found["blobs", "long"] == ("blob", (bytes(range(256)) * 40).hex())
    assert found["blobs", "short"] == ("blob", "0102")
    assert (contents.encrypted, contents.problems) == (False, ())
    assert [page.state for page in contents.pages] == ["full", "full", "active", "empty", "empty", "empty"]
    assert all(page.written + page.erased + page.free == 126 for page in contents.pages)


def test_the_generator_itself_agrees(tmp_path):
    """The same bytes as from Espressif's command line, for the same CSV."""
    text = "key,type,encoding,value\n# a comment\nwifi,namespace,,\nssid,data,string,home\nport,data,u16,0x1f90\n"
    (tmp_path / "values.csv").write_text(text.replace("0x1f90", "8080"))
    command = [sys.executable, "-m", "esp_idf_nvs_partition_gen", "generate", "values.csv", "out.bin", "0x4000"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=60)
    assert make_pages(tmp_path / "values.csv", 0x4000) == (tmp_path / "out.bin").read_bytes()


def test_files_that_a_csv_names(tmp_path):
    (tmp_path / "certificate").write_bytes(b"PEM")
    table = "key,type,encoding,value\na,namespace,,\nc,file,binary,{}\n"
    (tmp_path / "values.csv").write_text(table.format("certificate"))
    assert as_table(read_pages(make_pages(tmp_path / "values.csv", 0x3000)))["a", "c"] == ("blob", b"PEM".hex())
    (tmp_path / "values.csv").write_text(table.format("../secret"))
    with (
        confined(Confinement((tmp_path,))),
        pytest.raises(RefusedError, match=r"\.\./secret, from .*values\.csv, is outside"),
    ):
        make_pages(tmp_path / "values.csv", 0x3000)


def test_encrypted_pages_are_named_and_open_with_their_key():
    key = os.urandom(64)
    data = make_pages(VALUES, 0x6000, key)
    closed = read_pages(data)
    assert closed.encrypted
    assert [page.encrypted for page in closed.pages] == [True, True, True, False, False, False]
    assert (closed.entries, closed.problems) == ((), ())
    assert as_table(read_pages(data, key)) == as_table(read_pages(make_pages(VALUES, 0x6000)))
    assert read_pages(data, os.urandom(64)).encrypted


def test_damage_is_told():
    data = bytearray(make_pages({"a": {"number": 5, "text": "hello"}}, 0x3000))
    data[64 + 2 * 32 + 33] ^= 1  # in the text
    contents = read_pages(bytes(data))
    assert as_table(contents) == {("a", "number"): ("u32", 5)}
    assert "entry 2: wrong checksum" in contents.problems[0]
    data[4] ^= 1
    contents = read_pages(bytes(data))
    assert contents.pages[0].state == "damaged"
    assert contents.entries == ()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_newest_of_two_values_counts(order):
    """As after a power failure, before the library has erased the old one: by sequence, not by place."""
    pages = []
    for sequence in order:
        page = bytearray(make_pages({"a": {"key": sequence}}, 0x3000)[:PAGE])
        page[4] = sequence
        page[28:32] = zlib.crc32(page[4:28], 0xFFFFFFFF).to_bytes(4, "little")
        pages.append(bytes(page))
    contents = read_pages(b"".join(pages))
    assert as_table(contents) == {("a", "key"): ("u32", 1)}
    assert contents.problems == ()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"a": {"key": {"type": "u8", "value": 300}}}, "value of 'key' is invalid"),
        ({"a": {"key": {"type": "u8", "value": "many"}}}, "is not a number"),
        ({"a": {"key": {"type": "u7", "value": 1}}}, "its type u7"),
        ({"a": {"key": None}}, "has an unsupported type"),
        ({"a": {"a key that is too long": 1}}, "invalid key or namespace"),
        ({"a": 5}, "has no keys"),
        ({"a": {"key": {"type": "blob", "value": "xyz"}}}, "value of 'key' is invalid"),
        ({"a": {"key": "x" * 5000}}, "value of 'key' has 5000 bytes"),
        ({"a": {f"key{number}": b"x" * 3000 for number in range(4)}}, "no room"),
    ],
)
def test_values_that_cannot_be_stored(values, words):
    with pytest.raises(OperationError, match=words):
        make_pages(values, 0x3000)


@pytest.mark.parametrize("size", [0, 0x1000, 0x3001])
def test_sizes_that_cannot_be(size):
    with pytest.raises(OperationError, match="invalid size of an NVS partition"):
        make_pages({}, size)


def test_from_values_to_the_flash_and_back(esp_of, tmp_path):
    esp = esp_of("esp32c3")
    esp.partitions.write("single_factory")
    image = esp.nvs.create(VALUES, tmp_path / "nvs.bin")
    assert (image.size, (tmp_path / "nvs.bin").read_bytes()) == (0x6000, image.data)
    esp.flash.write(image.data, esp.partitions.find("nvs").offset)
    assert as_table(esp.nvs.read()) == as_table(read_pages(image.data))
    with pytest.raises(OperationError, match="app/factory, not data/nvs"):
        esp.nvs.read("factory")
    with pytest.raises(OperationError, match="no partition 'nsv'"):
        esp.nvs.read("nsv")


def test_a_blank_partition_has_nothing(esp_of):
    esp = esp_of("esp32c3")
    esp.partitions.write("two_ota")
    contents = esp.nvs.read()
    assert {page.state for page in contents.pages} == {"empty"}
    assert (contents.namespaces, contents.problems) == ((), ())
