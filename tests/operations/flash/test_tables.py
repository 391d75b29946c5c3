"""Which partition table in flash is used, and which app it selects."""

import pytest
from esp_idf_defs.otadata import OtaDataSelectEntry, OtaImageState

from pytest_esp.errors import OperationError
from pytest_esp.formats.partition_table import from_csv
from pytest_esp.operations.flash import tables

OTA = "otadata, data, ota, 0xd000, 0x2000\nfirst, app, ota_0, 0x10000, 512K\nsecond, app, ota_1, , 512K\n"


@pytest.fixture
def esp(esp_of):
    return esp_of("esp32c3")


def named(name):
    """A table whose only partition has this name."""
    return from_csv(f"{name}, app, factory, 0x100000, 1M")


def entry(sequence, state=OtaImageState.VALID):
    return OtaDataSelectEntry(sequence, state).to_bytes()


@pytest.mark.parametrize(
    ("offsets", "found"),
    [
        ((0x8000, 0x1000), 0x8000),
        ((0x9000, 0x2000), 0x2000),
        ((0x1F000,), 0x1F000),
        ((0x1000,), 0x1000),
        ((0x0,), None),
        ((0x20000,), None),
        ((0x9800,), None),
    ],
)
def test_where_a_table_counts(esp, offsets, found):
    for offset in offsets:
        esp.flash.write(named(f"at_{offset:x}"), offset)
    if found is None:
        with pytest.raises(OperationError, match="no partition table"):
            esp.partitions.read()
    else:
        table = esp.partitions.read()
        assert (table.offset, table.partitions[0].name) == (found, f"at_{found:x}")


def test_a_table_at_the_usual_place_is_one_short_read(esp, monkeypatch):
    esp.flash.write(named("app"), 0x8000)
    reads, read = [], tables.reading.read
    monkeypatch.setattr(tables.reading, "read", lambda link, *place: (reads.append(place), read(link, *place))[1])
    esp.partitions.read()
    assert reads == [(0x8000, 0xC00)]


def test_a_partition_is_found_by_its_whole_name(esp):
    esp.flash.write(from_csv(OTA), 0x8000)
    assert esp.partitions.find("second").offset == 0x90000
    with pytest.raises(OperationError, match="no partition 'firs'") as caught:
        esp.partitions.find("firs")
    assert caught.value.hint.startswith("nearest: first")
    assert caught.value.hint.endswith("otadata, first, second")


@pytest.mark.parametrize(
    ("csv", "words"),
    [
        ("app, app, factory, 0x10000, 1M", "there is no otadata"),
        ("first, app, ota_0, 0x10000, 1M", "there is no otadata"),
        ("otadata, data, ota, 0xd000, 0x2000", "no OTA partition"),
    ],
)
def test_what_otadata_needs(esp, csv, words):
    esp.flash.write(from_csv(csv), 0x8000)
    with pytest.raises(OperationError, match=words):
        esp.partitions.otadata()


def test_both_entries_of_otadata(esp):
    esp.flash.write(from_csv(OTA), 0x8000)
    esp.flash.write(entry(6), 0xD000)
    esp.flash.write(entry(7, OtaImageState.NEW), 0xE000)
    data = esp.partitions.otadata()
    assert [(one.address, one.valid, one.sequence, one.slot, one.state) for one in data.entries] == [
        (0xD000, True, 6, "second", "VALID"),
        (0xE000, True, 7, "first", "NEW"),
    ]
    assert (data.active, data.slots, data.partition.name) == ("first", ("first", "second"), "otadata")


def test_an_entry_with_another_checksum_is_none(esp):
    esp.flash.write(from_csv(OTA), 0x8000)
    esp.flash.write(entry(1)[:-4] + entry(2)[-4:], 0xD000)
    data = esp.partitions.otadata()
    first = data.entries[0]
    assert (first.valid, first.sequence, first.slot, first.state) == (False, None, None, None)
    assert data.active == "first"  # by default


@pytest.mark.parametrize(
    ("csv", "otadata", "slot"),
    [
        (OTA, entry(2), "second"),
        (OTA, None, "first"),
        (OTA + "factory, app, factory, , 512K\n", None, "factory"),
        ("first, app, ota_0, 0x10000, 1M\nsecond, app, ota_1, , 1M\n", entry(2), "first"),
        ("otadata, data, ota, 0xd000, 0x2000\nonly, app, factory, 0x10000, 1M\n", entry(2), "only"),
    ],
    ids=["chosen", "blank", "factory", "no otadata", "no slots"],
)
def test_the_app_that_starts(esp, firmware_folder, csv, otadata, slot):
    esp.flash.write(from_csv(csv), 0x8000)
    if otadata:
        esp.flash.write(otadata, 0xD000)
    found = esp.partitions.app()
    assert (found.slot.name, found.app) == (slot, None)
    esp.flash.write(firmware_folder / "hello_world_esp32c3" / "hello_world.bin", found.slot.offset)
    assert esp.partitions.app().app.project == "hello_world"


def test_a_table_without_an_app(esp):
    esp.flash.write(from_csv("nvs, data, nvs, 0x9000, 0x4000"), 0x8000)
    with pytest.raises(OperationError, match="has no app partition"):
        esp.partitions.app()


def test_a_table_that_is_known_is_not_read(esp, monkeypatch):
    esp.flash.write(from_csv("app, app, factory, 0x10000, 1M"), 0x8000)
    table = esp.partitions.read()
    monkeypatch.setattr(tables, "read", None)
    assert tables.app_slot(esp.link, table).name == "app"
