"""Where a new table goes, protection of the old table's data, and what a board needs for updates."""

import pytest
from esptool import cmds
from esptool.targets import CHIP_DEFS

from pytest_esp.errors import OperationError
from pytest_esp.formats.partition_table import from_csv

OLD = "nvs, data, nvs, 0x9000, 0x4000\notadata, data, ota, 0xd000, 0x2000\nphy, data, phy, 0xf000, 0x1000\n"


@pytest.fixture
def esp(esp_of):
    return esp_of("esp32c3")


def flash_of(esp):
    return esp.link.board.simulated.flash


# -- making one


def test_the_size_of_the_flash_is_4_mb_unless_it_is_given(esp, tmp_path):
    assert esp.partitions.create("two_ota").flash_size == 4 << 20
    assert esp.partitions.create("two_ota", flash_size="8MB").flash_size == 8 << 20
    assert esp.partitions.create_ota(flash_size=8 << 20).flash_size == 8 << 20
    assert esp.partitions.create_ota().flash_size == 4 << 20
    with pytest.raises(OperationError, match="flash size"):
        esp.partitions.create("two_ota", flash_size="much")
    assert not list(tmp_path.glob("*.bin"))


def test_the_name_of_the_file_says_how_it_is_saved(esp, tmp_path):
    for name in ("t.csv", "t.bin", "t.txt", "t"):
        table = esp.partitions.create("two_ota", tmp_path / name)
        wanted = table.csv.encode() if name == "t.csv" else table.data
        assert (tmp_path / name).read_bytes() == wanted
        with pytest.raises(OperationError, match="exists already"):
            esp.partitions.create("two_ota", tmp_path / name)
        with pytest.raises(OperationError, match="exists already"):
            esp.partitions.create_ota(output_file=tmp_path / name)
        ota = esp.partitions.create_ota("4MB", "1MB", tmp_path / name, overwrite=True)
        assert (tmp_path / name).read_bytes() == (ota.csv.encode() if name == "t.csv" else ota.data)


def test_what_a_table_for_updates_has(esp):
    plain = [part.name for part in esp.partitions.create_ota(app_size="512K").partitions]
    more = esp.partitions.create_ota(app_size="512K", slots=3, factory=True, storage="fat").partitions
    assert ("factory" in plain, [name for name in plain if name.startswith("ota_")]) == (False, ["ota_0", "ota_1"])
    assert {"factory", "ota_2"} < {part.name for part in more}
    assert (more[-1].type, more[-1].subtype) == ("data", "fat")


# -- where it goes


def test_a_table_goes_where_the_old_one_lies(esp):
    csv = from_csv("app, app, factory, 0x20000, 1M")
    assert esp.partitions.write(csv).table_offset == 0x8000
    flash_of(esp).erase(0x8000, 0x1000)
    esp.flash.write(csv, 0xA000)
    again = esp.partitions.write(from_csv("other, app, factory, 0x20000, 1M"))
    assert (again.table_offset, again.state, [part.name for part in again.partitions]) == (0xA000, "written", ["other"])
    assert esp.partitions.write(csv, table_offset="0xC000").table_offset == 0xC000


def test_a_table_fills_its_sector(esp):
    esp.flash.write(b"\0" * 0x3000, 0x7000)
    table = from_csv("app, app, factory, 0x20000, 1M")
    assert esp.partitions.write(table).state == "written"
    assert flash_of(esp).read(0x7000, 0x3000) == b"\0" * 0x1000 + table.ljust(0x1000, b"\xff") + b"\0" * 0x1000
    assert esp.partitions.write(table).state == "unchanged"


AROUND = "below, data, 0x40, 0x9000, 0x2000\nabove, data, 0x41, 0xc000, 0x2000\n"
"""Between them there is room for one table, at 0xb000."""


@pytest.mark.parametrize(
    ("csv", "offset"),
    [(AROUND, 0xB000), (AROUND, 0xE000), (AROUND, 0x8000), ("last, data, 0x40, 0x3ff000, 0x1000\n", 0x8000)],
)
def test_a_table_that_just_fits(esp, csv, offset):
    assert esp.partitions.write(from_csv(csv), table_offset=offset).table_offset == offset


@pytest.mark.parametrize(
    ("csv", "offset", "words"),
    [
        (AROUND, 0x9000, "below at 0x9000 overlaps the partition table at 0x9000"),
        (AROUND, 0xA000, "below at 0x9000 overlaps the partition table at 0xa000"),
        (AROUND, 0xC000, "above at 0xc000 overlaps the partition table at 0xc000"),
        (AROUND, 0xD000, "above at 0xc000 overlaps the partition table at 0xd000"),
        ("long, data, 0x40, 0x9000, 0x3000\n", 0xB000, "long at 0x9000 overlaps the partition table at 0xb000"),
        (
            AROUND + "last, data, 0x40, 0x3ff000, 0x2000\n",
            0x8000,
            "last ends at 0x401000, beyond the flash",
        ),
        (AROUND + "app, app, factory, 0x10000, 8M\n", 0x8000, "app ends at 0x810000"),
        ("", 0x8000, "empty"),
    ],
)
def test_a_table_that_does_not_fit(esp, csv, offset, words):
    with pytest.raises(OperationError, match=words):
        esp.partitions.write(from_csv(csv), table_offset=offset)
    assert flash_of(esp).read(0x8000, 0x8000) == b"\xff" * 0x8000


def test_a_table_lies_at_a_sector(esp):
    with pytest.raises(OperationError, match="invalid partition table offset 0x8800"):
        esp.partitions.write(from_csv("app, app, factory, 0x20000, 1M"), table_offset=0x8800)


def test_a_damaged_old_table_is_none(esp):
    esp.partitions.write(from_csv(OLD))
    esp.flash.write(b"settings", 0x9000)
    flash_of(esp).flip(0x8004)
    assert esp.partitions.write(from_csv("app, app, factory, 0x20000, 1M")).orphaned == ()


def test_an_esp8266_has_a_table_too(esp_of):
    assert esp_of("esp8266").partitions.write(from_csv("app, app, factory, 0x20000, 1M")).state == "written"


# -- the data of the old one


@pytest.mark.parametrize(
    ("new", "orphaned"),
    [
        ("nvs, data, nvs, 0x9000, 0x4000", ()),
        ("nvs, data, nvs, 0x9000, 0x5000", ()),
        ("nvs, data, nvs, 0x9000, 0x3000", ("nvs",)),
        ("nvs, data, nvs, 0xa000, 0x4000", ("nvs",)),
        ("other, data, nvs, 0x9000, 0x4000", ("nvs",)),
        ("nvs, data, 0x40, 0x9000, 0x4000", ("nvs",)),
        ("nvs, 0x40, 0x02, 0x9000, 0x4000", ("nvs",)),
    ],
)
def test_data_stays_in_a_partition_that_is_the_same(esp, new, orphaned):
    app = "\napp, app, factory, 0x20000, 1M"
    esp.partitions.write(from_csv(OLD + app))
    esp.flash.write(b"settings", 0x9000)
    for offset in (0xD000, 0xF000):  # otadata and the radio's calibration are made anew
        esp.flash.write(b"made anew", offset)
    if orphaned:
        with pytest.raises(OperationError, match=r"no matching partition for the contents of nvs \(") as caught:
            esp.partitions.write(from_csv(new + app))
        assert caught.value.details == {"orphaned": ["nvs"]}
        assert esp.partitions.read().partitions[0].subtype == "nvs"
    assert esp.partitions.write(from_csv(new + app), discard_data=bool(orphaned)).orphaned == orphaned


def test_an_app_may_get_another_name_but_no_less_room(esp):
    esp.partitions.write(from_csv("app, app, factory, 0x20000, 1M"))
    esp.flash.write(b"\xe9app", 0x20000)
    assert esp.partitions.write(from_csv("first, app, ota_0, 0x20000, 1M")).orphaned == ()
    for new in ("app, app, factory, 0x20000, 512K", "app, data, 0x40, 0x20000, 1M", "app, app, factory, 0x30000, 1M"):
        with pytest.raises(OperationError, match="no matching partition for the contents of first"):
            esp.partitions.write(from_csv(new))


def test_a_partition_without_contents_is_not_missed(esp):
    esp.partitions.write(from_csv(OLD))
    assert esp.partitions.write(from_csv("app, app, factory, 0x20000, 1M")).orphaned == ()


def test_every_partition_with_data_is_named(esp):
    esp.partitions.write(from_csv("a, data, 0x40, 0x9000, 0x1000\nb, data, 0x41, , 0x1000\nc, data, 0x42, , 0x1000\n"))
    for offset in (0x9000, 0xBFFF):
        esp.flash.write(b"\0", offset)
    with pytest.raises(OperationError, match="the contents of a, c"):
        esp.partitions.write(from_csv("app, app, factory, 0x20000, 1M"))


# -- ready for updates


def test_what_a_board_for_updates_still_needs(esp_of, firmware_folder):
    esp = esp_of("esp32c3")
    build = firmware_folder / "hello_world_esp32c3"
    result = esp.partitions.setup_ota("1MB", factory=True)
    assert result.warnings == ("there is no bootloader in flash", "there is no app in factory at 0x10000")
    assert (result.app_size, result.otadata_erased, result.bootloader, result.app) == (1 << 20, False, None, None)
    esp.flash.write(build / "hello_world.bin", 0x10000)
    result = esp.partitions.setup_ota("1MB", factory=True)
    assert (result.warnings, result.app.project) == (("there is no bootloader in flash",), "hello_world")
    assert result.table.state == "unchanged"
    esp.flash.write(build / "bootloader" / "bootloader.bin", 0)
    assert esp.partitions.setup_ota("1MB", factory=True).warnings == ()
    other = bytearray((build / "bootloader" / "bootloader.bin").read_bytes())
    other[12:14] = b"\x09\0"
    esp.flash.write(bytes(other), 0, force=True)
    result = esp.partitions.setup_ota("1MB", factory=True)
    assert (result.bootloader, result.warnings) == ("esp32s3", ("the bootloader is for esp32s3",))


SMALL = "header has 2MB of flash, but ota_1 ends at 0x3f0000: the bootloader will reject the table"


@pytest.mark.parametrize("chip", ["esp32", "esp32c3"])
def test_a_table_beyond_the_size_in_the_header(esp_of, firmware_folder, chip):
    """ESP-IDF builds for 2 MB by default. What the header becomes is what esptool makes of it."""
    esp, start = esp_of(chip), CHIP_DEFS[chip].BOOTLOADER_FLASH_OFFSET
    build = firmware_folder / f"hello_world_{chip}"
    image = (build / "bootloader" / "bootloader.bin").read_bytes()
    esp.flash.write(build)
    assert esp.partitions.write(esp.partitions.create_ota("2MB").data, discard_data=True).warnings == ()
    assert SMALL in esp.partitions.write(esp.partitions.create_ota("4MB").data, discard_data=True).warnings[0]
    assert SMALL in esp.ota.prepare().warnings[-1]
    result = esp.partitions.setup_ota(discard_data=True)
    assert (result.header_changed, result.warnings) == (True, ())
    wanted = cmds._update_image_flash_params(CHIP_DEFS[chip], start, "keep", "keep", "4MB", image)
    assert esp.flash.read(start, len(wanted)).data == wanted
    assert not any("header" in warning for warning in esp.ota.prepare().warnings)
    assert not esp.partitions.setup_ota(discard_data=True).header_changed


def test_a_signed_bootloader_is_not_changed(esp_of, firmware_folder):
    image = (firmware_folder / "hello_world_esp32c3" / "bootloader" / "bootloader.bin").read_bytes()
    esp = esp_of("esp32c3")
    esp.flash.write(image.ljust(-(-len(image) // 4096) * 4096, b"\xff") + b"\xe7\x02" + bytes(1214), 0)
    result = esp.partitions.setup_ota()
    assert not result.header_changed
    assert SMALL in result.warnings[-1]
    assert esp.flash.read(0, len(image)).data == image


def test_only_otadata_with_contents_is_erased(esp):
    place = next(part for part in esp.partitions.create_ota("1MB").partitions if part.subtype == "ota")
    assert not esp.partitions.setup_ota("1MB").otadata_erased
    esp.flash.write(b"\0" * (place.size + 0x2000), place.offset - 0x1000)
    assert esp.partitions.setup_ota("1MB", discard_data=True).otadata_erased
    assert flash_of(esp).read(place.offset - 1, place.size + 2) == b"\0" + b"\xff" * place.size + b"\0"
