"""Apps made ready to be flashed."""

import shutil

import pytest

from pytest_esp.errors import EspError, OperationError
from pytest_esp.operations.firmware.preparing import prepare


def test_the_image_is_that_of_the_build(build_of, chip, tmp_path):
    """Flash settings come from the build folder, and the ELF file's hash goes into a descriptor in RAM, too."""
    build = build_of(chip)
    result = prepare(build / "pytest_esp_test.elf", chip, tmp_path / "app.bin", flash_mode="dio")
    assert result.output_file.read_bytes() == (build / "pytest_esp_test.bin").read_bytes()
    (image,) = result.image.images
    assert (image.app.project, image.hash_valid, image.problem) == ("pytest_esp_test", True, None)
    assert result.sizes.image_size < result.image.size
    assert result.warnings == ()


def test_an_app_of_esp_idf_and_where_it_fits(real_elf, chip, tmp_path):
    result = prepare(
        real_elf,
        chip,
        tmp_path / "app.bin",
        partition_table=real_elf.parent / "partition_table" / "partition-table.bin",
    )
    (image,) = result.image.images
    assert (image.app.project, image.flash_mode, image.flash_size) == ("hello_world", "dio", "2MB")
    assert [(fit.place, fit.fits) for fit in result.image.fits] == [("factory", True)]
    assert result.warnings == ()
    original = (real_elf.parent / "hello_world.bin").read_bytes()
    # All but the limits of revisions in the header, which the build knows alone, and so the hash.
    assert result.output_file.read_bytes()[24:-32] == original[24:-32]


def test_what_does_not_fit_is_a_warning(build_of, tmp_path):
    (tmp_path / "tiny.csv").write_text("small, app, factory, 0x10000, 4K\n")
    elf = build_of("esp32") / "pytest_esp_test.elf"
    result = prepare(elf, "esp32", tmp_path / "app.bin", partition_table=tmp_path / "tiny.csv")
    assert ["does not fit into small" in words for words in result.warnings] == [True]


def test_settings(build_of, tmp_path):
    elf = shutil.copy(build_of("esp32") / "pytest_esp_test.elf", tmp_path / "app.elf")
    result = prepare(elf, "esp32", flash_mode="dout", flash_freq="26m", flash_size="16MB", min_revision=301, top=3)
    (image,) = result.image.images
    assert (image.flash_mode, image.flash_freq, image.flash_size, image.min_revision) == (
        "dout",
        "26m",
        "16MB",
        "v3.1",
    )
    assert result.output_file == tmp_path / "app.bin"
    assert len(result.sizes.symbols) == 3
    with pytest.raises(OperationError, match="exists already"):
        prepare(elf, "esp32")


@pytest.mark.parametrize(
    "wrong", [{"partition_table": "wrong.bin"}, {"top": -1}, {"min_revision": 300, "max_revision": 100}]
)
def test_where_anything_is_wrong_nothing_is_written(build_of, tmp_path, monkeypatch, wrong):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wrong.bin").write_bytes(b"no table")
    with pytest.raises(EspError):
        prepare(build_of("esp32") / "pytest_esp_test.elf", "esp32", tmp_path / "app.bin", **wrong)
    assert not (tmp_path / "app.bin").exists()
