"""Partition tables and otadata that are really in the flash of simulated chips, and what a boot makes of them."""

import hashlib

import pytest
from esp_idf_defs.otadata import OtaDataSelectEntry, OtaImageState

from pytest_esp.errors import OperationError
from pytest_esp.formats.flash_settings import FlashSettings
from pytest_esp.formats.partition_table import from_csv, parse
from pytest_esp.operations.flash.header import with_settings
from pytest_esp.operations.partitions.analysis import Gap

CSV = """
nvs,      data, nvs,     0x9000,  0x6000,
keys,     data, nvs_keys,,        0x1000, encrypted
config,   data, 0x40,    ,        0x1000, readonly
factory,  app,  factory, ,        1M,
"""

OTA_CSV = """
nvs,     data, nvs,   0x9000,  0x4000
otadata, data, ota,   0xd000,  0x2000
factory, app,  factory, 0x10000, 512K
first,   app,  ota_0, ,        512K
second,  app,  ota_1, ,        512K
third,   app,  ota_2, ,        512K
"""


@pytest.mark.parametrize(
    "ask",
    [
        lambda esp: esp.partitions.read(),
        lambda esp: esp.nvs.read(),
        lambda esp: esp.diagnostics.core_dump(source="flash"),
    ],
)
def test_an_encrypted_flash_is_called_that(esp, ask):
    with pytest.raises(OperationError, match="there is no partition table in flash"):
        ask(esp)
    chip = esp.link.board.simulated
    chip.efuses.preset("FLASH_CRYPT_CNT" if chip.model.is_esp32 else "SPI_BOOT_CRYPT_CNT", 1)
    with pytest.raises(OperationError, match="there is no partition table in flash"):
        ask(esp)  # it is erased
    chip.flash.program(0x8000, chip.encrypt(0x8000, from_csv(CSV)))
    with pytest.raises(OperationError, match="the flash is encrypted: its partition table cannot be read from outside"):
        ask(esp)


def test_a_table_that_was_written_is_read(esp):
    esp.flash.write([(0x8000, from_csv(CSV))])
    table = esp.partitions.read()
    assert (table.offset, table.checked) == (0x8000, True)
    assert [(part.name, part.type, part.subtype, part.offset, part.size) for part in table.partitions] == [
        ("nvs", "data", "nvs", 0x9000, 0x6000),
        ("keys", "data", "nvs_keys", 0xF000, 0x1000),
        ("config", "data", "0x40", 0x10000, 0x1000),
        ("factory", "app", "factory", 0x20000, 0x100000),
    ]
    assert [part.name for part in table.partitions if part.encrypted] == ["keys"]
    assert [part.name for part in table.partitions if part.readonly] == ["config"]


@pytest.mark.parametrize("offset", [0x1000, 0x9000, 0x10000, 0x1F000])
def test_a_table_is_found_wherever_it_is(esp_of, offset):
    esp = esp_of("esp32c3")
    esp.flash.write([(offset, from_csv("app, app, factory, 0x100000, 1M"))])
    table = esp.partitions.read()
    assert (table.offset, [part.name for part in table.partitions]) == (offset, ["app"])


def test_there_is_no_table(esp_of):
    with pytest.raises(OperationError, match="there is no partition table") as caught:
        esp_of("esp32c3").partitions.read()
    assert "partition-table.bin" in caught.value.hint


@pytest.mark.parametrize("where", [4, 12, 32 * 4 + 20])
def test_any_flipped_bit_is_found_by_the_md5(esp_of, where):
    esp = esp_of("esp32c3")
    esp.flash.write([(0x8000, from_csv(CSV))])
    esp.link.board.simulated.flash.flip(0x8000 + where, 1)
    with pytest.raises(OperationError, match="is damaged"):
        esp.partitions.read()


def test_a_table_without_md5_says_so(esp_of):
    esp = esp_of("esp32c3")
    entries = from_csv(CSV)[: 4 * 32]
    assert hashlib.md5(entries).digest() in from_csv(CSV)
    esp.flash.write([(0x8000, entries.ljust(0xC00, b"\xff"))])
    assert not esp.partitions.read().checked


def test_one_partition_by_its_name(esp_of):
    esp = esp_of("esp32c3")
    esp.flash.write([(0x8000, from_csv(CSV))])
    assert esp.partitions.find("factory").size == 0x100000
    with pytest.raises(OperationError, match="no partition 'facotry'") as caught:
        esp.partitions.find("facotry")
    assert caught.value.hint.startswith("nearest: factory")


@pytest.mark.parametrize(
    ("csv", "words"),
    [
        ("a, app, factory, 0x10000, 1M\nb, app, ota_0, 0x20000, 1M", "overlap"),
        ("a, app, factory, 0x10001, 1M", "not aligned"),
        ("a, app, nonsense, 0x10000, 1M", "nonsense"),
        ("a, app, factory, 0x10000,", "empty"),
    ],
)
def test_a_wrong_csv(csv, words):
    with pytest.raises(OperationError, match=words):
        from_csv(csv)


# -- otadata


def entry(sequence, state=OtaImageState.VALID):
    return OtaDataSelectEntry(sequence, state).to_bytes()


def ota_board(esp, first=None, second=None, csv=OTA_CSV):
    esp.flash.write([(0x8000, from_csv(csv))])
    for address, data in ((0xD000, first), (0xE000, second)):
        if data:
            esp.flash.write([(address, data)])
    return esp


@pytest.mark.parametrize(
    ("first", "second", "active"),
    [
        (None, None, "factory"),
        (entry(1), None, "first"),
        (entry(1), entry(2), "second"),
        (entry(3), entry(2), "third"),
        (entry(5), entry(4), "second"),
        (entry(3, OtaImageState.INVALID), entry(2), "second"),
        (entry(3, OtaImageState.ABORTED), entry(2, OtaImageState.INVALID), "factory"),
        (entry(3, OtaImageState.UNDEFINED), entry(1), "third"),
        (entry(3)[:28] + b"\0\0\0\0", entry(1), "first"),
    ],
    ids=[
        "blank",
        "one",
        "second newer",
        "first newer",
        "more than slots",
        "invalid",
        "none left",
        "undefined",
        "bad checksum",
    ],
)
def test_the_active_slot(esp_of, first, second, active):
    """Which one is active is what the bootloader tries first."""
    data = ota_board(esp_of("esp32c3"), first, second).partitions.otadata()
    assert data.active == active
    assert data.slots == ("first", "second", "third")


@pytest.mark.parametrize("first", [entry(3), entry(3)[:28] + b"\0\0\0\0"], ids=["good", "bad checksum"])
def test_the_boot_agrees(esp_of, firmware_folder, first):
    """An app in the active slot alone is found by the (simulated) bootloader, without a try elsewhere."""
    esp = esp_of("esp32c3")
    build = firmware_folder / "hello_world_esp32c3"
    loader = (build / "bootloader" / "bootloader.bin").read_bytes()
    esp.flash.write(with_settings(loader, "bootloader.bin", "esp32c3", FlashSettings(size="4MB")), 0)
    ota_board(esp, first, entry(2))
    place = esp.partitions.find(esp.partitions.otadata().active)
    esp.flash.write(build / "hello_world.bin", place.offset)
    output = esp.chip.reset("app").output
    assert f"Loaded app from partition at offset 0x{place.offset:x}" in output
    assert "not bootable" not in output


def test_entries_are_told_one_by_one(esp_of):
    esp = ota_board(esp_of("esp32c3"), entry(4, OtaImageState.PENDING_VERIFY))
    first, second = esp.partitions.otadata().entries
    assert (first.address, first.valid, first.sequence, first.slot, first.state) == (
        0xD000,
        True,
        4,
        "first",
        "PENDING_VERIFY",
    )
    assert (second.address, second.valid, second.sequence) == (0xE000, False, None)


def test_a_table_without_ota(esp_of):
    esp = esp_of("esp32c3")
    esp.flash.write([(0x8000, from_csv(CSV))])
    with pytest.raises(OperationError, match="there is no otadata"):
        esp.partitions.otadata()


def test_a_table_of_bytes_is_parsed_without_a_board():
    assert [part.name for part in parse(from_csv(OTA_CSV))][:2] == ["nvs", "otadata"]


# -- new tables


def test_a_table_is_made_and_flashed(esp, tmp_path):
    table = esp.partitions.create("two_ota", tmp_path / "table.bin")
    assert table.flash_size == 0x400000
    assert (tmp_path / "table.bin").read_bytes() == table.data
    result = esp.partitions.write(tmp_path / "table.bin")
    assert (result.state, result.table_offset, result.orphaned) == ("written", 0x8000, ())
    assert esp.partitions.read().partitions == table.partitions
    assert esp.partitions.write("two_ota").state == "unchanged"


def test_a_table_as_text(esp_of, tmp_path):
    esp = esp_of("esp32c3")
    esp.partitions.create_ota(app_size="1MB", output_file=tmp_path / "table.csv", storage="fat")
    assert (tmp_path / "table.csv").read_text().count("\n") == 8
    with pytest.raises(OperationError, match="exists already"):
        esp.partitions.create_ota(output_file=tmp_path / "table.csv")
    esp.partitions.write(tmp_path / "table.csv")
    assert [part.name for part in esp.partitions.read().partitions][-1] == "storage"


def test_a_table_that_would_orphan_data_is_refused(esp_of):
    esp = esp_of("esp32c3")
    esp.partitions.write("single_factory")
    esp.flash.write(b"settings", 0x9000)
    esp.flash.write(b"\xe9 an app", 0x10000)
    with pytest.raises(OperationError, match=r"no matching partition for the contents of nvs \(") as caught:
        esp.partitions.write("two_ota")  # its NVS is smaller; its first app lies where the factory app does
    assert caught.value.details == {"orphaned": ["nvs"]}
    assert esp.partitions.find("factory").size == 0x100000
    assert esp.partitions.write("two_ota", discard_data=True).orphaned == ("nvs",)
    assert esp.flash.read(0x9000, 8).data == b"settings"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (from_csv("app, app, factory, 0x10000, 8M"), "beyond the flash"),
        (b"no table" * 4, "damaged"),
        (None, "cannot be read"),
    ],
)
def test_a_file_that_does_not_belong_there(esp_of, tmp_path, content, words):
    if content is not None:
        (tmp_path / "table.bin").write_bytes(content)
    with pytest.raises(OperationError, match=words):
        esp_of("esp32c3").partitions.write(tmp_path / "table.bin")


def test_a_table_that_does_not_fit(esp_of):
    with pytest.raises(OperationError, match="does not fit"):
        esp_of("esp32c3").partitions.write("app, app, factory, 0x10000, 8M")


@pytest.mark.in_process
def test_a_table_over_its_own_partition(esp_of, tmp_path):
    table = tmp_path / "table.bin"
    table.write_bytes(from_csv(CSV))
    with pytest.raises(OperationError, match="overlaps the partition table"):
        esp_of("esp32c3").partitions.write(table, table_offset=0x9000)
    with pytest.raises(OperationError, match="invalid partition table offset 0x9010"):
        esp_of("esp32c3").partitions.write(table, table_offset=0x9010)


def test_no_plain_table_for_an_encrypted_flash(esp_of):
    esp = esp_of("esp32c3")
    esp.efuse.burn("SPI_BOOT_CRYPT_CNT", 1)
    with pytest.raises(OperationError, match="flash is encrypted"):
        esp.partitions.write("two_ota")


def test_a_board_is_made_ready_for_updates(esp_of, firmware_folder):
    """What was the factory app is the first slot then, and starts."""
    esp = esp_of("esp32c3")
    esp.flash.write(firmware_folder / "hello_world_esp32c3")
    esp.flash.write([(0xD000, b"in the NVS of old, where otadata is to be")])
    result = esp.partitions.setup_ota(discard_data=True)
    assert (result.bootloader, result.warnings, result.otadata_erased) == ("esp32c3", (), True)
    assert result.app.project == "hello_world"
    assert result.app_size == 0x1F0000
    assert "Loaded app from partition at offset 0x10000" in esp.chip.reset("app").output
    assert esp.partitions.otadata().slots == ("ota_0", "ota_1")


def test_a_blank_board_is_told_what_is_missing(esp_of):
    result = esp_of("esp32").partitions.setup_ota("1MB")
    assert result.warnings == ("there is no bootloader in flash", "there is no app in ota_0 at 0x10000")
    assert not result.otadata_erased


def test_what_is_in_the_partitions(esp_of, firmware_folder):
    esp = esp_of("esp32c3")
    esp.flash.write(firmware_folder / "hello_world_esp32c3")
    esp.flash.write([(0x9000, b"\x01" * 0x1800)])
    found = esp.partitions.analyze()
    nvs, phy, app = found.partitions
    assert (nvs.kind, nvs.used, nvs.fill) == ("data", 0x1800, 0.25)
    assert (phy.kind, phy.used, phy.app) == ("blank", 0, None)
    assert (app.kind, app.app.project, app.active) == ("app", "hello_world", True)
    size = (firmware_folder / "hello_world_esp32c3" / "hello_world.bin").stat().st_size
    assert app.used <= size < app.used + 64
    assert found.gaps == (Gap(0x110000, 0x2F0000),)
