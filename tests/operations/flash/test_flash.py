"""Flash operations on simulated chips."""

import json
import os

import pytest

from pytest_esp.errors import FirmwareError, OperationError, RefusedError
from pytest_esp.formats.partition_table import from_csv
from pytest_esp.sim.model import ChipModel

CSV = "nvs, data, nvs, 0x9000, 0x6000\nfactory, app, factory, 0x10000, 1M\n"


def chip_of(esp):
    return esp.link.board.simulated


def image(chip, size=4096, least=0, most=0):
    """Return bytes that begin as an image for *chip* does, for revisions from *least* to *most*."""
    header = bytearray(size)
    header[:4] = b"\xe9\x01\x02\x20"
    header[12:14] = (ChipModel(chip).image_chip_id or 0).to_bytes(2, "little")
    header[15:19] = least.to_bytes(2, "little") + most.to_bytes(2, "little")
    return bytes(header)


@pytest.mark.parametrize("size", [1, 3, 4095, 4096, 4097, 65537])
def test_what_is_written_is_read(esp, size):
    data = os.urandom(size)
    result = esp.flash.write([(0x10000, data)])
    assert (result.bytes_written, result.bytes_skipped, result.verified) == (size, 0, True)
    assert esp.flash.read(0x10000, size).data == data
    assert chip_of(esp).flash.read(0x10000, size) == data


def test_what_is_there_already_is_not_written_again(esp):
    data = os.urandom(20_000)
    esp.flash.write([(0x1000, data), ("0x20000", b"x" * 5000)])
    again = esp.flash.write([(0x1000, data), ("0x20000", b"y" * 5000)])
    assert (again.bytes_written, again.bytes_skipped) == (5000, 20_000)
    assert [region.state for region in again.regions] == ["unchanged", "written"]
    assert esp.flash.write([(0x1000, data)], skip_unchanged=False).bytes_written == 20_000


def test_what_to_write_can_be_said_in_many_ways(esp_of, tmp_path):
    """Bytes or a file at an address, pairs, a mapping; sizes and addresses as numbers or text."""
    esp = esp_of("esp32c3")
    file = tmp_path / "app.bin"
    file.write_bytes(b"app" * 1000)
    for firmware, address in (
        (b"app" * 1000, 0x10000),
        (file, "64KB"),
        (str(file), "0x10000"),
        ([(0x10000, file)], None),
        ({"0x10000": str(file)}, None),
    ):
        esp.flash.erase("0x10000", "4K")
        (region,) = esp.flash.write(firmware, address).regions
        assert (region.address, region.size, region.state) == (0x10000, 3000, "written")
        assert esp.flash.verify(firmware, address).matches


@pytest.mark.parametrize("address", [0x10001, 0x10FFE, 0x3FFFFF])  # esptool writes whole words
def test_an_odd_address(esp_of, address):
    esp = esp_of("esp32c3")
    data = os.urandom(min(5001, 0x400000 - address))
    esp.flash.write(data, address)
    assert esp.flash.read(address, len(data)).data == data


@pytest.mark.parametrize("size", [0x1000, 0x8000, 0x10000, 0x13000])
def test_an_erase_takes_its_sectors_and_no_more(esp, size):
    esp.flash.write([(0, b"\x00" * 0x30000)])
    esp.flash.erase(0x10000, size)
    assert esp.flash.read(0, 0x10000).data == b"\x00" * 0x10000
    assert esp.flash.read(0x10000, size).data == b"\xff" * size
    assert esp.flash.read(0x10000 + size, 16).data == b"\x00" * 16


def test_all_is_erased_only_by_that_word(esp_of):
    esp = esp_of("esp32c3")
    esp.flash.write([(0x1000, b"x"), (0x300000, b"y")])
    with pytest.raises(OperationError, match="needs a size"):
        esp.flash.erase(0x1000)
    assert esp.flash.read(0x1000, 1).data == b"x"
    assert esp.flash.erase("all").size == 4 * 1024 * 1024
    assert esp.flash.read(0x300000, 1).data == b"\xff"


def test_a_partition_is_erased_by_its_name(esp_of):
    esp = esp_of("esp32c3")
    esp.flash.write([(0x8000, from_csv(CSV)), (0x9000, b"secret" * 100), (0x10000, b"app" * 100)])
    esp.flash.erase("nvs")
    assert esp.flash.read(0x9000, 600).data == b"\xff" * 600
    assert esp.flash.read(0x10000, 3).data == b"app"
    with pytest.raises(OperationError, match="no partition 'nvz'") as caught:
        esp.flash.erase("nvz")
    assert "nvs, factory" in caught.value.hint


@pytest.mark.parametrize("arguments", [(0x1001, 0x1000), (0x1000, 100), (0x3FF000, 0x2000), ("-1", 4096), (0, "lots")])
def test_an_impossible_erase_is_refused(esp_of, arguments):
    with pytest.raises(OperationError):
        esp_of("esp32c3").flash.erase(*arguments)


def test_verify_finds_the_first_differing_byte(esp):
    data = os.urandom(9000)
    esp.flash.write([(0x10000, data)])
    assert esp.flash.verify([(0x10000, data)]).matches
    chip_of(esp).flash.flip(0x10000 + 4321, 0x10)
    (check,) = esp.flash.verify([(0x10000, data)])
    assert (check.matches, check.first_difference) == (False, 0x10000 + 4321)


def test_md5_comes_from_the_chip(esp):
    esp.flash.write([(0, b"123456789")])
    assert esp.flash.md5(0, 9).md5 == "25f9e794323b453885f5181f1b624d0b"


def test_a_read_is_saved_whole(esp_of, tmp_path):
    esp = esp_of("esp32c3")
    esp.flash.write([(0, b"abc" * 1000)])
    result = esp.flash.read(0, 3000, tmp_path / "out.bin")
    assert result.output_file.read_bytes() == b"abc" * 1000
    with pytest.raises(OperationError, match="cannot be written"):
        esp.flash.read(0, 16, tmp_path / "no" / "out.bin")
    assert not list(tmp_path.glob(".*.part"))


def test_a_file_is_overwritten_only_if_asked(esp_of, tmp_path):
    esp = esp_of("esp32c3")
    path = tmp_path / "out.bin"
    path.write_bytes(b"precious")
    with pytest.raises(OperationError, match="exists already"):
        esp.flash.read(0, 4, path)
    assert path.read_bytes() == b"precious"
    esp.flash.read(0, 4, path, overwrite=True)
    assert path.read_bytes() == b"\xff" * 4


@pytest.mark.parametrize(
    ("address", "size"),
    [(0x400000, 1), (0x3FFFFF, 2), (-1, 4), (0, -4), ("here", 4), (0, "4XB"), (0, 1 << 33), (True, 4)],
)
def test_an_impossible_read_is_refused(esp_of, address, size):
    esp = esp_of("esp32c3")
    for operation in (esp.flash.read, esp.flash.md5):
        with pytest.raises(OperationError, match=r"beyond the flash of 4MB|invalid (address|size)"):
            operation(address, size)


def test_progress_is_told(esp_of):
    """In bytes of content, over all regions, those that are skipped included."""
    esp = esp_of("esp32c3")
    regions = [(0, os.urandom(50_000)), (0x20000, b"x" * 30_000), (0x40000, os.urandom(20_000))]
    esp.flash.write(regions[1:2])
    told = []
    esp.flash.write(regions, progress=lambda done, total: told.append((done, total)))
    assert {total for _, total in told} == {100_000}
    done = [done for done, _ in told]
    assert done == sorted(done)
    assert {50_000, 80_000, 100_000} <= set(done)
    assert len(done) > 5
    told.clear()
    esp.flash.read(0, 0x5000, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (0x5000, 0x5000)


# -- bad images: nothing is touched


def untouched(esp):
    return chip_of(esp).flash.read(0, 0x20000) == b"\xff" * 0x20000


def test_an_image_of_another_chip_is_refused(esp_of):
    esp = esp_of("esp32c3")
    with pytest.raises(FirmwareError, match=r"is an image for the ESP32-S3 \(esp32s3\), not for the ESP32-C3"):
        esp.flash.write([(0, b"first"), (0x10000, image("esp32s3"))])
    assert untouched(esp)
    esp.flash.write([(0x10000, image("esp32c3"))])


@pytest.mark.parametrize("place", [0, 0x1000, 0x10000])
def test_an_image_of_another_chip_inside_a_merged_one_is_refused(esp_of, place):
    esp = esp_of("esp32c3")
    merged = bytearray(b"\xff" * 0x20000)
    merged[place : place + 4096] = image("esp32c6")
    with pytest.raises(FirmwareError, match=r"is an image for the ESP32-C6 \(esp32c6\)"):
        esp.flash.write(bytes(merged), 0)
    assert untouched(esp)


@pytest.mark.parametrize(
    ("least", "most", "words"),
    [(9900, 0xFFFF, "v99.0 or later"), (0, 1, "v0.1 at most"), (0, 0, None), (3, 0xFFFF, None)],
)
def test_an_image_for_other_revisions_is_refused(esp_of, least, most, words):
    esp = esp_of("esp32c3")
    data = image("esp32c3", least=least, most=most)
    if words is None:
        assert esp.flash.write(data, 0).bytes_written == 4096
        return
    with pytest.raises(FirmwareError, match=f"needs chip revision {words}"):
        esp.flash.write(data, 0)
    assert untouched(esp)


@pytest.mark.parametrize(("place", "value"), [(0, 0xE8), (1, 0), (1, 17), (2, 6), (12, 0xA5), (13, 0x7F), (23, 2)])
def test_data_that_looks_like_an_image_is_written_as_data(esp_of, place, value):
    """Random bytes begin with the magic number of an image now and then: their "chip" and "revision" mean nothing."""
    esp = esp_of("esp32c3")
    data = bytearray(image("esp32s3", least=9900, most=0xFFFF))
    data[place] = value
    assert esp.flash.write(bytes(data), 0x10000).verified


def test_force_writes_what_is_not_for_this_chip(esp_of):
    esp = esp_of("esp32c3")
    assert esp.flash.write(image("esp32s3"), 0, force=True).bytes_written == 4096


def test_an_image_that_is_larger_than_the_flash(esp_of):
    esp = esp_of("esp32c3")
    with pytest.raises(FirmwareError, match=r"needs flash up to 0x400001, but the board has 4MB"):
        esp.flash.write([(0, b"first"), (0x3FFFFF, b"12")])
    assert untouched(esp)


def test_files_that_cannot_be_flashed(esp_of, tmp_path):
    esp = esp_of("esp32c3")
    esp.chip.identify()
    (tmp_path / "empty.bin").touch()
    for source, message in (
        (tmp_path / "empty.bin", "is empty"),
        (tmp_path / "missing.bin", "cannot be read: No such file"),
        (tmp_path, "cannot be read: Is a directory"),
        (b"", "is empty"),
        ("/dev/zero", "is not a regular file"),
        ("nul\0byte", "cannot be read"),
    ):
        with pytest.raises(FirmwareError, match=message):
            esp.flash.write([(0, b"first"), (0x10000, source)])
    assert untouched(esp)


@pytest.mark.parametrize(
    ("regions", "words"),
    [
        ([(0x1000, b"x" * 5000), (0x2000, b"y")], "overlaps"),
        ([(0x1000, b"x" * 10), (0x1800, b"y")], "share a sector"),
        ([], "nothing to write"),
        ([("nowhere", b"x")], "invalid address"),
        ([(-1, b"x")], "invalid address"),
    ],
)
def test_regions_that_cannot_be(esp_of, regions, words):
    with pytest.raises(FirmwareError, match=words):
        esp_of("esp32c3").flash.write(regions)


def test_an_address_that_is_missing_or_too_many(esp_of):
    esp = esp_of("esp32c3")
    with pytest.raises(FirmwareError, match="the address is missing"):
        esp.flash.write(b"x")
    with pytest.raises(FirmwareError, match="already have addresses"):
        esp.flash.write([(0, b"x")], 0x1000)


def test_a_build_folder(esp_of, tmp_path):
    esp = esp_of("esp32c3")
    (tmp_path / "app.bin").write_bytes(image("esp32c3"))
    (tmp_path / "flasher_args.json").write_text(json.dumps({"flash_files": {"0x10000": "app.bin"}}))
    assert esp.flash.write(tmp_path).bytes_written == 4096
    listing = {"flash_files": {"0x10000": "app.bin"}, "extra_esptool_args": {"chip": "esp32s3"}}
    (tmp_path / "flasher_args.json").write_text(json.dumps(listing))
    with pytest.raises(FirmwareError, match="this is a build for esp32s3, not for the ESP32-C3"):
        esp.flash.write(tmp_path)
    (tmp_path / "flasher_args.json").write_text("{")
    with pytest.raises(FirmwareError, match="is damaged"):
        esp.flash.write(tmp_path)
    for nowhere in (tmp_path / "elsewhere", "x" * 5000):
        with pytest.raises(FirmwareError, match="does not exist"):
            esp.flash.write(nowhere)


def test_what_boards_toml_does_not_allow_is_refused_before_the_port_is_opened(esp_of):
    esp = esp_of("careful")
    with pytest.raises(RefusedError) as caught:
        esp.flash.write([(0, b"x")])
    assert 'add "write" to `allow` of [boards.careful]' in caught.value.hint
    with pytest.raises(RefusedError):
        esp.flash.erase("all")
    with pytest.raises(RefusedError):
        esp.efuse.burn("CUSTOM_MAC", "00:11:22:33:44:55")
    assert not esp.link.is_open
    assert esp.flash.read(0, 4).data == b"\xff" * 4


# -- chips that can do less


def test_a_chip_in_secure_download_mode_is_written_without_proof(esp_of):
    esp = esp_of("locked")
    data = os.urandom(5000)
    result = esp.flash.write(data, 0x10000)
    assert (result.bytes_written, result.verified) == (5000, False)
    assert chip_of(esp).flash.read(0x10000, 5000) == data
    esp.flash.erase(0x10000, 0x2000)
    assert chip_of(esp).flash.read(0x10000, 0x2000) == b"\xff" * 0x2000
    with pytest.raises(OperationError) as caught:
        esp.flash.read(0, 16)
    assert "secure download mode" in caught.value.hint


def test_an_esp32c3_with_secure_boot_is_written_by_its_rom(esp_of):
    """Its ROM lets no stub run."""
    esp = esp_of("esp32c3")
    esp.efuse.burn("SECURE_BOOT_EN", 1)
    esp.chip.reset("bootloader")
    data = os.urandom(5001)
    assert esp.flash.write(data, 0x10000).verified
    assert esp.flash.verify(data, 0x10000).matches
    assert not esp.chip.identify().stub_loaded
    assert esp.transcript.count("Stub flasher is not supported") == 1
    with pytest.raises(OperationError, match="Active security features"):
        esp.flash.erase(0x10000, 0x2000)
    esp.flash.erase(0x10000, 0x2000, force=True)
    assert esp.flash.read(0x10000, 16).data == b"\xff" * 16


@pytest.mark.parametrize("chip", ["esp8266", "esp32s2", "esp32h2", "esp32p4"])
def test_other_chips(esp_of, chip):
    esp = esp_of(chip)
    data = os.urandom(9001)
    assert esp.flash.write(data, 0x20000).verified
    assert esp.flash.verify(data, 0x20000).matches
    assert esp.flash.erase("all").size == 4 * 1024 * 1024


# -- real firmware


def test_a_real_build_boots_with_the_descriptor_that_is_in_it(esp_of, firmware_folder):
    esp = esp_of("esp32c3")
    esp.flash.write(firmware_folder / "hello_world_esp32c3")
    output = esp.chip.reset("app").output
    assert "Loaded app from partition at offset 0x10000" in output
    assert "Project name:     hello_world" in output
    assert [part.name for part in esp.partitions.read().partitions] == ["nvs", "phy_init", "factory"]


def test_a_real_build_for_another_chip_is_refused(esp_of, firmware_folder):
    esp, build = esp_of("esp32c6"), firmware_folder / "hello_world_esp32c3"
    with pytest.raises(FirmwareError, match="not for the ESP32-C6"):
        esp.flash.write(build)
    with pytest.raises(FirmwareError, match=r"is an image for the ESP32-C3 .* not for the ESP32-C6"):
        esp.flash.write(build / "hello_world.bin", 0x10000)


@pytest.mark.parametrize("name", ["hello_world_esp32", "hello_world_esp32c3", "unit_test_esp32", "unit_test_esp32c3"])
def test_a_real_build_is_written_once(esp_of, firmware_folder, name):
    esp = esp_of(name.rpartition("_")[2])
    first = esp.flash.write(firmware_folder / name)
    assert (len(first.regions), first.bytes_skipped) == (3, 0)
    again = esp.flash.write(firmware_folder / name)
    assert (again.bytes_written, again.bytes_skipped) == (0, first.bytes_written)
    assert esp.flash.verify(firmware_folder / name).matches
    assert "Calling app_main()" in esp.chip.reset("app").output
