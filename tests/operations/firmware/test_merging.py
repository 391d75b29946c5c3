"""Merged files: the bytes of ``esptool merge-bin`` in all its formats."""

import json

import pytest

from pytest_esp.errors import FirmwareError, OperationError
from pytest_esp.formats.regions import Placed
from pytest_esp.operations.firmware.merging import merge


def pairs_of(build):
    listing = json.loads((build / "flasher_args.json").read_text(encoding="utf-8"))["flash_files"]
    return [(address, build / name) for address, name in listing.items()]


@pytest.mark.parametrize(("ending", "format"), [(".bin", "raw"), (".hex", "hex"), (".uf2", "uf2")])
def test_the_bytes_are_those_of_esptool(esptool, build_of, chip, tmp_path, ending, format):
    pairs, ours, theirs = pairs_of(build_of(chip)), tmp_path / f"ours{ending}", tmp_path / f"theirs{ending}"
    result = merge([Placed(address, file) for address, file in pairs], ours)
    words = [word for address, file in pairs for word in (address, file)]
    esptool("--chip", chip, "merge-bin", "--format", format, "-o", theirs, *words)
    assert ours.read_bytes() == theirs.read_bytes()
    assert (result.format, result.chip_type, result.size) == (format, chip, theirs.stat().st_size)
    assert sorted((one.address, one.source) for one in result.parts) == sorted((int(a, 0), str(f)) for a, f in pairs)


@pytest.mark.parametrize(("ending", "format"), [(".bin", "raw"), (".hex", "hex"), (".uf2", "uf2")])
def test_the_bootloader_gets_other_flash_settings(esptool, firmware_folder, tmp_path, ending, format):
    build, ours, theirs = firmware_folder / "hello_world_esp32c3", tmp_path / f"ours{ending}", tmp_path / f"t{ending}"
    result = merge(build, ours, flash_mode="qio", flash_freq="40m", flash_size="16MB")
    words = [word for address, file in pairs_of(build) for word in (address, file)]
    changes = ("--flash-mode", "qio", "--flash-freq", "40m", "--flash-size", "16MB")
    esptool("--chip", "esp32c3", "merge-bin", "--format", format, *changes, "-o", theirs, *words)
    assert ours.read_bytes() == theirs.read_bytes()
    assert "SHA digest in image updated." in result.notes


def test_a_raw_file_for_another_place_padded_to_the_whole_flash(esptool, build_of, tmp_path):
    pairs, ours, theirs = pairs_of(build_of("esp32")), tmp_path / "ours.bin", tmp_path / "theirs.bin"
    result = merge(build_of("esp32"), ours, target_offset="4KB", pad_to_size="2MB")
    words = [word for address, file in pairs for word in (address, file)]
    more = ("--target-offset", "0x1000", "--pad-to-size", "2MB")
    esptool("--chip", "esp32", "merge-bin", "-o", theirs, *more, *words)
    assert ours.read_bytes() == theirs.read_bytes()
    assert (result.address, result.size) == (0x1000, 0x200000 - 0x1000)
    assert result.padding == result.size - sum(one.size for one in result.parts)


def test_parts_may_share_a_sector(tmp_path):
    """Unlike what is flashed part by part: the merged file is written at once."""
    (tmp_path / "a").write_bytes(b"a" * 16)
    (tmp_path / "b").write_bytes(b"b" * 16)
    merge({0: tmp_path / "a", "0x20": tmp_path / "b"}, tmp_path / "ab", chip_type="esp32")
    assert (tmp_path / "ab").read_bytes() == b"a" * 16 + b"\xff" * 16 + b"b" * 16


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"files": {0: "a", 8: "b"}}, FirmwareError, r"a \(0x0 to 0x10\) overlaps .*b \(from 0x8\)"),
        ({"files": {0: "a"}}, FirmwareError, "no file names its chip"),
        ({"files": {}}, FirmwareError, "nothing to merge"),
        ({"files": {0: "missing"}}, FirmwareError, "missing cannot be read"),
        ({"files": {"much": "a"}}, FirmwareError, "invalid address"),
        (
            {"files": {0: "hex"}, "chip_type": "esp32"},
            FirmwareError,
            "hex is Intel HEX, which contains addresses",
        ),
        ({"files": {0x8000000: "a"}, "chip_type": "esp32"}, FirmwareError, "beyond the largest flash"),
        ({"files": {0: "a"}, "chip_type": "esp33"}, OperationError, "no chip 'esp33'"),
        ({"files": {0: "a"}, "chip_type": "esp32", "target_offset": 8}, OperationError, "before the target offset 0x8"),
        ({"files": {0: "a"}, "chip_type": "esp32", "target_offset": "far"}, OperationError, "invalid target offset"),
        ({"files": {0: "a"}, "chip_type": "esp32", "pad_to_size": "3MB"}, OperationError, "no flash size '3MB'"),
        ({"files": {0x100000: "a"}, "chip_type": "esp32", "pad_to_size": "1MB"}, FirmwareError, "beyond 1MB"),
        (
            {"files": {0: "a"}, "chip_type": "esp32", "pad_to_size": "1MB", "format": "hex"},
            OperationError,
            "only raw files",
        ),
        ({"files": {0: "a"}, "chip_type": "esp32", "flash_freq": "1m"}, OperationError, "no flash frequency '1m'"),
        ({"files": {0: "a"}, "chip_type": "esp32", "flash_mode": "x"}, OperationError, "no flash mode 'x'"),
        ({"files": {0: "a"}, "chip_type": "esp32", "output_file": "a"}, OperationError, "exists already"),
    ],
)
def test_what_cannot_be_merged(tmp_path, arguments, error, words):
    (tmp_path / "a").write_bytes(bytes(16))
    (tmp_path / "b").write_bytes(bytes(16))
    (tmp_path / "hex").write_text(":020000040000FA\n:00000001FF\n")
    given = {"output_file": "out.bin"} | arguments
    given["files"] = {address: tmp_path / name for address, name in given["files"].items()}
    given["output_file"] = tmp_path / given["output_file"]
    with pytest.raises(error, match=words):
        merge(**given)
    assert not (tmp_path / "out.bin").exists()


def test_images_of_different_chips(build_of, tmp_path):
    files = {
        0x1000: build_of("esp32") / "bootloader" / "bootloader.bin",
        0x10000: build_of("esp32c3") / "pytest_esp_test.bin",
    }
    with pytest.raises(FirmwareError, match=r"bootloader.bin is for the esp32, .*test.bin is for the esp32c3"):
        merge(files, tmp_path / "x.bin")
