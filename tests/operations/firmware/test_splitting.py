"""Smaller builds: what is left out, and that the flash holds the same."""

import hashlib
import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_esp.errors import FirmwareError, OperationError
from pytest_esp.formats.firmware import Firmware
from pytest_esp.formats.regions import Region
from pytest_esp.operations.firmware import splitting
from pytest_esp.operations.firmware.merging import merge
from pytest_esp.operations.firmware.splitting import optimize

FLASH = 512 * 1024


@pytest.fixture
def whole(build_of, tmp_path):
    """An image of a whole flash: bootloader, table, app, data far behind it, and padding."""
    data = merge(build_of("esp32c3"), tmp_path / "all.bin").output_file
    (tmp_path / "data.bin").write_bytes(b"settings" * 100)
    path = merge({0: data, 0x50000: tmp_path / "data.bin"}, tmp_path / "whole.bin").output_file
    path.write_bytes(path.read_bytes().ljust(0x70000, b"\xff"))
    return path


@pytest.mark.parametrize("prefer", ["bytes", "time"])
def test_flashed_to_two_chips_the_content_is_the_same(esp_of, whole, tmp_path, prefer):
    """One board gets the whole image, the other one the parts; both flashes had other contents before."""
    result = optimize(whole, tmp_path / "parts", prefer=prefer)
    plain, split = esp_of("small").flash, esp_of("twin").flash
    noise = random.Random(1).randbytes(FLASH)
    for flash in (plain, split):
        flash.write(noise, 0)
    plain.write(whole)
    for blank in result.blank:
        split.erase(blank.address, blank.size)
    split.write(result.output_dir)
    for content in result.contents:
        assert plain.md5(content.address, content.size).md5 == content.md5
        assert split.md5(content.address, content.size).md5 == content.md5
    assert plain.read(0, FLASH).data == split.read(0, FLASH).data


def test_what_is_left_out(whole, tmp_path):
    result = optimize(whole, tmp_path / "parts")
    assert [part.address for part in result.parts] == [0, 0x8000, 0x10000, 0x50000]
    assert result.blank[-1] == splitting.Blank(0x51000, 0x70000 - 0x51000)
    assert (result.size_before, result.size) == (0x70000, sum(part.file.stat().st_size for part in result.parts))
    assert result.compressed_size < result.compressed_size_before
    assert result.seconds_saved == round(result.seconds_before - result.seconds, 3)
    assert result.seconds_saved > 0.5
    assert "erase `blank` first" in result.notes[0]
    assert result.contents[0].md5 == hashlib.md5(whole.read_bytes()).hexdigest()


def test_the_folder_is_a_build(whole, tmp_path):
    result = optimize(whole, tmp_path / "parts")
    build = Firmware.open(result.output_dir)
    assert (build.chip, build.app.project) == ("esp32c3", "pytest_esp_test")
    assert [(region.address, region.size) for region in build.regions] == [
        (part.address, part.size) for part in result.parts
    ]
    listing = json.loads((result.output_dir / "flasher_args.json").read_text())
    assert listing["flash_files"]["0x10000"] == "0x10000.bin"


def test_an_app_alone_goes_where_apps_go(build_of, tmp_path):
    app = build_of("esp32") / "pytest_esp_test.bin"
    (tmp_path / "app.bin").write_bytes(app.read_bytes().ljust(0x8000, b"\xff"))
    result = optimize(tmp_path / "app.bin", tmp_path / "parts")
    ((part,), (blank,)) = result.parts, result.blank
    assert (part.address, part.size) == (0x10000, app.stat().st_size)
    assert blank.address == part.address + -(-part.size // 0x1000) * 0x1000
    assert blank.address + blank.size == 0x18000


def test_where_it_costs_time_it_says_so(build_of, tmp_path):
    """Blocks of 64 KB are erased at once: a gap of some sectors in one saves bytes, but no time."""
    image = merge(build_of("esp32c3"), tmp_path / "all.bin").output_file
    result = optimize(image, tmp_path / "bytes")
    assert result.seconds_saved < 0
    assert "prefer time" in result.notes[1]
    result = optimize(image, tmp_path / "time", prefer="time")
    assert result.seconds_saved >= 0
    assert len(result.parts) == 1


sectors = st.lists(st.sampled_from([b"\xff", b"\0", b"\xff\0", b"\0\xff"]), min_size=1, max_size=40)


@given(sectors=sectors, address=st.integers(0, 0x3000), cut=st.integers(0, 5000), gap=st.sampled_from([1, 3, 8]))
@settings(max_examples=100, deadline=None)
@pytest.mark.parametrize("quickest", [False, True])
def test_parts_and_erased_flash_are_the_whole(quickest, sectors, address, cut, gap):
    data = b"".join((one * 4096)[:4096] for one in sectors)[cut:] or b"x"
    region = Region(address, data, "an image")
    size = gap * 4096
    pieces = splitting._quickest(region, size, 115200) if quickest else list(splitting._pieces(region, size))
    rebuilt = bytearray(b"\xff" * len(data))
    for piece in pieces:
        start = piece.address - address
        rebuilt[start : start + piece.size] = piece.data
    assert bytes(rebuilt) == data
    touched = {sector for one in pieces for sector in range(one.address // 4096, (one.end - 1) // 4096 + 1)}
    blank = splitting._blank([region], pieces)
    erased = {sector for one in blank for sector in range(one.address // 4096, (one.address + one.size) // 4096)}
    assert not touched & erased
    assert touched | erased == set(range(address // 4096, (region.end - 1) // 4096 + 1))


def test_what_cannot_be_made_smaller(build_of, tmp_path):
    (tmp_path / "blank.bin").write_bytes(b"\xff" * 0x2000)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.bin").write_text("mine")
    app = build_of("esp32") / "pytest_esp_test.bin"
    for arguments, error, words in [
        ((tmp_path / "blank.bin", tmp_path / "x"), FirmwareError, "needs an address"),
        ((tmp_path / "missing.bin", tmp_path / "x"), FirmwareError, "does not exist"),
        ((app, tmp_path / "mine"), OperationError, "exists already"),
    ]:
        with pytest.raises(error, match=words):
            optimize(*arguments)
    with pytest.raises(FirmwareError, match="is blank"):
        optimize(tmp_path / "blank.bin", tmp_path / "x", address=0)
    with pytest.raises(OperationError, match="invalid baud rate 0"):
        optimize(app, tmp_path / "x", baud=0)
    with pytest.raises(OperationError, match="invalid gap"):
        optimize(app, tmp_path / "x", min_gap="wide")
    assert not (tmp_path / "x").exists()


def test_the_parts_lie_beside_the_image(build_of, tmp_path):
    (tmp_path / "app.bin").write_bytes((build_of("esp32") / "pytest_esp_test.bin").read_bytes())
    assert optimize(tmp_path / "app.bin").output_dir == tmp_path / "app-parts"


def test_only_its_own_folders_are_replaced(build_of, tmp_path):
    app = build_of("esp32") / "pytest_esp_test.bin"
    optimize(app, tmp_path / "parts")
    with pytest.raises(OperationError, match="exists already"):
        optimize(app, tmp_path / "parts")
    assert optimize(app, tmp_path / "parts", overwrite=True).parts[0].file.is_file()
    (tmp_path / "parts" / "notes.bin").write_text("mine")
    with pytest.raises(OperationError, match="exists already") as caught:
        optimize(app, tmp_path / "parts", overwrite=True)
    assert "other files" in caught.value.hint
    assert (tmp_path / "parts" / "notes.bin").is_file()
