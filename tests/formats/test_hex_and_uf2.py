"""Intel HEX and UF2 files: what is in them is found as in the raw image of the same parts."""

import pytest

from pytest_esp.errors import FirmwareError
from pytest_esp.formats.firmware import Firmware
from pytest_esp.formats.hex_and_uf2 import contents_of
from pytest_esp.operations.firmware.image_report import analyze
from pytest_esp.operations.firmware.merging import merge


@pytest.fixture(params=["esp32c3", "esp32"])
def chip(request):
    return request.param


@pytest.fixture
def merged(build_of, chip, tmp_path):
    """A build of the test firmware as a file of a format."""
    return lambda ending: merge(build_of(chip), tmp_path / f"merged.{ending}").output_file


@pytest.mark.parametrize("ending", ["hex", "uf2"])
def test_it_is_analyzed_as_the_raw_image_is(merged, ending):
    raw, packed = analyze(merged("bin")), analyze(merged(ending))
    assert (packed.kind, packed.images, packed.partitions, packed.fits, packed.problems) == (
        raw.kind,
        raw.images,
        raw.partitions,
        raw.fits,
        (),
    )
    assert len(packed.images) == 2
    assert packed.size == packed.binary_file.stat().st_size


@pytest.mark.parametrize("ending", ["hex", "uf2"])
def test_one_that_is_cut_or_damaged(merged, ending, tmp_path):
    data = merged(ending).read_bytes()
    wrong = tmp_path / f"wrong.{ending}"
    middle = len(data) // 2 // 512 * 512  # where a block of UF2 begins
    for content in (data[:-600], data[:-512], data[:1024], data[:middle] + b"x" + data[middle + 1 :]):
        wrong.write_bytes(content)
        with pytest.raises(FirmwareError) as caught:
            analyze(wrong)
        assert caught.value.hint


def test_addresses_where_no_chip_has_flash():
    with pytest.raises(FirmwareError, match="for 0xfffffff0, which is beyond any flash"):
        contents_of(b":02000004FFFFFC\n:01FFF000AA66\n:00000001FF\n", "far.hex")


# -- as firmware


@pytest.mark.parametrize("ending", ["hex", "uf2"])
def test_each_part_is_written_to_its_own_address(esp_of, merged, build_of, chip, ending):
    esp, raw = esp_of(chip), Firmware.open(build_of(chip))
    file = merged(ending)
    packed = Firmware.open(file)
    assert (packed.chip, packed.app, packed.needs_slot) == (chip, raw.app, False)
    assert [region.address for region in packed.regions] == [region.address for region in raw.regions]
    esp.flash.write(b"of the user", 0x200000)
    esp.flash.write(file)
    for region in raw.regions:
        assert esp.flash.read(region.address, region.size).data == region.data
    assert esp.flash.read(0x200000, 11).data == b"of the user"
    assert esp.flash.write(build_of(chip)).bytes_written == 0


def test_parts_of_one_sector_are_one_region(tmp_path):
    (tmp_path / "close.hex").write_text(":0410000001020304E2\n:0210080005FFE2\n:0420000001020304D2\n:00000001FF\n")
    regions = Firmware.open(tmp_path / "close.hex").regions
    assert [(region.address, region.data) for region in regions] == [
        (0x1000, bytes([1, 2, 3, 4, 255, 255, 255, 255, 5, 255])),
        (0x2000, bytes([1, 2, 3, 4])),
    ]


@pytest.mark.parametrize("ending", ["hex", "uf2"])
def test_an_address_beside_those_in_the_file(esp_of, merged, chip, ending):
    with pytest.raises(FirmwareError, match="already contains addresses"):
        esp_of(chip).flash.write(merged(ending), 0x10000)
