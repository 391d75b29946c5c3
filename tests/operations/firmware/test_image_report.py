"""Reports on firmware files: the same as ``esptool image-info``, and the problems of damaged ones."""

import contextlib
import hashlib
import re
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pytest_esp.errors import FirmwareError, OperationError
from pytest_esp.operations.firmware.image_report import analyze
from pytest_esp.operations.firmware.merging import merge


def told_by(text):
    """Return what the text of ``esptool image-info`` says, line by line."""
    lines = dict(re.findall(r"^([A-Z][\w /-]+?): (.*)$", text, re.MULTILINE))
    segments = re.findall(r"^ +\d+ +(0x\w+) +(0x\w+) +(0x\w+) +(.*)$", text, re.MULTILINE)
    return lines, segments


def check_against_esptool(esptool, file):
    (image,) = analyze(file).images
    lines, segments = told_by(esptool("image-info", file))
    assert int(lines["Entry point"], 16) == image.entry
    assert (lines["Flash size"], lines["Flash freq"], lines["Flash mode"].lower()) == (
        image.flash_size,
        image.flash_freq,
        image.flash_mode,
    )
    assert [
        (int(size, 16), int(address, 16), int(offset, 16), kinds.strip()) for size, address, offset, kinds in segments
    ] == [(one.size, one.address, one.offset, ", ".join(one.memory)) for one in image.segments]
    assert lines["Checksum"] == f"{image.checksum:#04x} ({'valid' if image.checksum_valid else 'invalid'})"
    assert lines["Validation hash"] == f"{image.hash} ({'valid' if image.hash_valid else 'invalid'})"
    assert lines["Chip ID"].startswith(f"{image.chip_id} ")
    assert int(lines["WP pin"].split()[0], 16) == image.write_protect_pin
    assert lines["Minimal chip revision"].startswith(image.min_revision or "v0.0")
    assert lines["Maximal chip revision"] == (image.max_revision or lines["Maximal chip revision"])
    if "App version" in lines:
        assert (lines["Project name"], lines["App version"], lines["ESP-IDF"], lines["ELF file SHA256"]) == (
            image.app.project,
            image.app.version,
            image.app.idf_version,
            image.app.elf_sha256,
        )
        assert (lines["Minimal eFuse block revision"], lines["Maximal eFuse block revision"]) == (
            image.app_details.min_efuse_revision.removeprefix("v"),
            image.app_details.max_efuse_revision.removeprefix("v"),
        )
        assert int(lines["Secure version"]) == image.app_details.secure_version
    if "Bootloader version" in lines:
        assert (lines["Bootloader version"], lines["ESP-IDF"], lines["Compile time"] or None) == (
            str(image.bootloader.version),
            image.bootloader.idf_version,
            image.bootloader.compiled,
        )
    assert image.problem is None
    return image


def test_the_report_is_what_esptool_says(esptool, build_of, chip):
    app = check_against_esptool(esptool, build_of(chip) / "pytest_esp_test.bin")
    assert (app.kind, app.chip_type, app.app.project) == ("app", chip, "pytest_esp_test")
    loader = check_against_esptool(esptool, build_of(chip) / "bootloader" / "bootloader.bin")
    assert (loader.kind, loader.app) == ("image", None)


@pytest.mark.parametrize(
    "build",
    [f"{app}_{chip}" for chip in ("esp32", "esp32c3") for app in ("hello_world", "unit_test")]
    + ["coredump_uart_esp32", "panic_esp32c3"],
)
def test_the_report_is_what_esptool_says_of_real_images(esptool, firmware_folder, build):
    app = check_against_esptool(esptool, next((firmware_folder / build).glob("*.bin")))
    assert app.kind == "app"
    check_against_esptool(esptool, firmware_folder / build / "bootloader" / "bootloader.bin")
    table = analyze(firmware_folder / build / "partition_table" / "partition-table.bin")
    assert (table.kind, [part.name for part in table.partitions]) == ("partition-table", ["nvs", "phy_init", "factory"])


def test_a_whole_file_has_its_hashes(build_of):
    path = build_of("esp32c3") / "pytest_esp_test.bin"
    found = analyze(path)
    assert (found.kind, found.size, found.problems) == ("app", path.stat().st_size, ())
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_where_an_app_fits(build_of, tmp_path):
    """By the table of its build folder, or by a given one."""
    app = build_of("esp32c3") / "pytest_esp_test.bin"
    fits = analyze(app).fits
    assert [(fit.place, fit.fits) for fit in fits] == [("factory", True), ("ota_0", True), ("ota_1", True)]
    assert all(fit.free == fit.room - app.stat().st_size for fit in fits)
    (tmp_path / "tiny.csv").write_text("small, app, factory, 0x10000, 4K\n")
    found = analyze(app, partition_table=tmp_path / "tiny.csv")
    surplus = app.stat().st_size - 4096
    assert [(fit.room, fit.free, fit.fits) for fit in found.fits] == [(4096, -surplus, False)]
    assert found.problems == (f"it does not fit into small: {surplus} bytes too large",)
    shutil.copy(app, tmp_path / "alone.bin")
    assert analyze(tmp_path / "alone.bin").fits == ()


def test_a_merged_image(build_of, chip, tmp_path):
    merged = merge(build_of(chip), tmp_path / "all.bin").output_file
    found = analyze(merged)
    assert found.kind == "merged"
    offsets = {"esp32": [0x1000, 0x10000], "esp32c3": [0, 0x10000]}[chip]
    assert [image.offset for image in found.images] == offsets
    assert len(found.partitions) == 6
    assert {fit.place: fit.fits for fit in found.fits} == {f"bootloader at {offsets[0]:#x}": True, "factory": True}
    assert found.images[1].segments[0].offset == 0x10000 + 24
    assert found.problems == ()

    data = bytearray(merged.read_bytes())
    data[0x10000 + 2000] ^= 1
    merged.write_bytes(data)
    assert [words.partition(": ")[0] for words in analyze(merged).problems] == ["image at 0x10000"]


@pytest.mark.parametrize(
    ("place", "words"),
    [
        (0x400, "Checksum failed"),
        (-1, "Image hash failed"),
        (-33, "Checksum failed"),
        (9, "Image hash failed"),
    ],
)
def test_a_damaged_image_says_what_the_bootloader_would(build_of, tmp_path, place, words):
    data = bytearray((build_of("esp32") / "pytest_esp_test.bin").read_bytes())
    data[place] ^= 0x10
    (tmp_path / "x.bin").write_bytes(data)
    found = analyze(tmp_path / "x.bin")
    assert words in found.problems[0]
    assert not found.images[0].hash_valid


def test_bytes_that_belong_to_nothing(build_of, tmp_path):
    """Padding may follow an image, but not what a lost flag makes of its hash."""
    data = (build_of("esp32") / "pytest_esp_test.bin").read_bytes()
    (tmp_path / "padded.bin").write_bytes(data.ljust(0x3000, b"\xff"))
    assert analyze(tmp_path / "padded.bin").problems == ()
    (tmp_path / "x.bin").write_bytes(data[:23] + b"\0" + data[24:])
    found = analyze(tmp_path / "x.bin")
    assert found.images[0].hash is None
    assert found.problems == (f"32 unexpected bytes at {len(data) - 32:#x}, after the image",)


def test_an_image_that_is_cut_anywhere(build_of, tmp_path, chip):
    data = (build_of(chip) / "pytest_esp_test.bin").read_bytes()
    segments = analyze(build_of(chip) / "pytest_esp_test.bin").images[0].segments
    boundaries = {*range(40), len(data) - 33, len(data) - 32, len(data) - 31, len(data) - 1}
    boundaries |= {one.offset + delta for one in segments for delta in (-1, 0, 7, 8, 9, one.size, one.size + 8)}
    for length in sorted(boundaries):
        (tmp_path / "cut.bin").write_bytes(data[:length])
        problems = ()
        with contextlib.suppress(FirmwareError):  # any other error fails the test
            problems = analyze(tmp_path / "cut.bin").problems
            assert problems, length


@given(flips=st.lists(st.tuples(st.integers(0, 300), st.integers(0, 7)), min_size=1, max_size=3, unique=True))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_flipped_bits_are_found_out(build_of, tmp_path, chip, flips):
    data = bytearray((build_of(chip) / "pytest_esp_test.bin").read_bytes())
    for place, bit in flips:
        data[place] ^= 1 << bit
    (tmp_path / "flipped.bin").write_bytes(data)
    with contextlib.suppress(FirmwareError):
        found = analyze(tmp_path / "flipped.bin", chip)
        assert found.problems


@given(data=st.binary(min_size=1, max_size=9000))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes(tmp_path, data):
    (tmp_path / "any.bin").write_bytes(b"\xe9" + data)
    with contextlib.suppress(FirmwareError, OperationError):
        assert analyze(tmp_path / "any.bin").size == len(data) + 1


def test_what_is_no_firmware(tmp_path, build_of):
    for content, words in [
        (b"\x7fELF" + bytes(60), "is not an image: it begins with 7f 45 4c 46"),
        (b"\xff" * 0x3000, "not firmware"),
    ]:
        (tmp_path / "x.bin").write_bytes(content)
        with pytest.raises(FirmwareError, match=words):
            analyze(tmp_path / "x.bin")
    with pytest.raises(OperationError, match="no chip 'esp33'"):
        analyze(build_of("esp32") / "pytest_esp_test.bin", "esp33")


def test_an_app_for_another_chip(build_of):
    found = analyze(build_of("esp32") / "pytest_esp_test.bin", "esp32c3")
    assert found.problems == ("it is for the esp32, not for the esp32c3",)
