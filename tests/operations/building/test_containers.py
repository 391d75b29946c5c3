"""Intel HEX and UF2 files: what is in them is found as in the raw image of the same parts."""

import pytest

from pytest_esp.errors import FirmwareError
from pytest_esp.operations.building.containers import contents_of
from pytest_esp.operations.building.image_report import analyze
from pytest_esp.operations.building.merging import merge


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
    assert packed.size == packed.file.stat().st_size


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
    with pytest.raises(FirmwareError, match="for 0xfffffff0, where no chip has flash"):
        contents_of(b":02000004FFFFFC\n:01FFF000AA66\n:00000001FF\n", "far.hex")
