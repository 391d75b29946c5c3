"""Writing (counts, reports, refusals), erasing and comparing flash."""

import hashlib
import os
from types import SimpleNamespace

import pytest

from pytest_esp.errors import FirmwareError, OperationError
from pytest_esp.formats.partition_table import from_csv
from pytest_esp.operations.flash import writing


@pytest.fixture
def esp(esp_of):
    return esp_of("esp32c3")


def flash_of(esp):
    return esp.link.board.simulated.flash


def clock(*times):
    left = list(times)
    return SimpleNamespace(monotonic=lambda: left.pop(0))


def test_bytes_are_counted_over_all_writes_of_a_link(esp):
    first, second = (0x10000, b"a" * 300), (0x20000, b"b" * 400)
    counts = []
    for contents in ([first], [first], [first, second]):
        esp.flash.write(contents)
        counts.append((esp.link.written_bytes, esp.link.skipped_bytes))
    assert counts == [(300, 0), (300, 300), (700, 600)]


def test_how_long_a_write_took(esp, monkeypatch):
    monkeypatch.setattr(writing, "time", clock(100.0, 103.5))
    assert esp.flash.write(b"x", 0).elapsed_seconds == 3.5


def test_progress_counts_the_regions_before_and_never_goes_beyond(esp):
    sizes = (40_000, 30_000, 20_000)
    regions = [(0x10000 * number, os.urandom(size)) for number, size in enumerate(sizes, 1)]
    told = []
    esp.flash.write(regions, progress=lambda done, total: told.append((done, total)))
    done = [done for done, _ in told]
    assert done == sorted(done)
    assert {total for _, total in told} == {90_000}
    for end, region in ((40_000, range(1, 40_000)), (70_000, range(40_001, 70_000)), (90_000, range(70_001, 90_000))):
        assert end in done
        assert any(between in region for between in done)
    assert done[-1] == 90_000


def test_an_app_alone_goes_where_the_table_says(esp, firmware_folder):
    app = firmware_folder / "hello_world_esp32c3" / "hello_world.bin"
    (region,) = esp.flash.write(app).regions
    assert region.address == 0x10000  # the usual place: there is no table
    esp.flash.write(from_csv("factory, app, factory, 0x20000, 1M\n"), 0x8000)
    (region,) = esp.flash.write(app).regions
    assert region.address == 0x20000
    assert esp.flash.verify(app).regions[0].address == 0x20000


def test_a_build_for_another_chip_can_be_forced(esp, firmware_folder):
    build = firmware_folder / "hello_world_esp32"
    if not build.is_dir():
        pytest.skip("no build for the ESP32")
    with pytest.raises(FirmwareError, match="this is a build for esp32, not for the ESP32-C3"):
        esp.flash.write(build)
    assert esp.flash.write(build, force=True).verified


def test_what_was_attempted_is_said(esp):
    with pytest.raises(FirmwareError, match=r"during writing 2 region\(s\), 302 bytes"):
        esp.flash.write([(0, b"x" * 300), (0x3FFFFF, b"xy")])


# -- erasing


@pytest.mark.parametrize(("start", "size"), [(0x1001, 0x1000), (0x1000, 0x1001), (0x800, 0x1000), (0x1000, 0x800)])
def test_parts_of_sectors_are_not_erased(esp, start, size):
    esp.flash.write(b"\0" * 0x4000, 0)
    with pytest.raises(
        OperationError, match=f"address {start:#x} and size {size:#x} must be multiples of the sector size"
    ):
        esp.flash.erase(start, size)
    assert flash_of(esp).read(0, 0x4000) == b"\0" * 0x4000


def test_the_last_sector_can_be_erased_and_nothing_at_all(esp):
    esp.flash.write(b"\0" * 0x2000, 0x3FE000)
    erased = esp.flash.erase(0x3FF000, 0)
    assert (erased.address, erased.size) == (0x3FF000, 0)
    assert flash_of(esp).read(0x3FE000, 0x2000) == b"\0" * 0x2000
    erased = esp.flash.erase(0x3FF000, 0x1000)
    assert (erased.address, erased.size) == (0x3FF000, 0x1000)
    assert flash_of(esp).read(0x3FE000, 0x2000) == b"\0" * 0x1000 + b"\xff" * 0x1000
    with pytest.raises(OperationError, match="beyond the flash"):
        esp.flash.erase(0x3FF000, 0x2000)


def test_all_has_no_size(esp):
    with pytest.raises(OperationError, match="size"):
        esp.flash.erase("all", 0x1000)
    erased = esp.flash.erase("all")
    assert (erased.address, erased.size) == (0, 4 << 20)


def test_a_partition_is_erased_whole(esp):
    esp.flash.write(from_csv("nvs, data, nvs, 0x9000, 0x4000\n"), 0x8000)
    erased = esp.flash.erase("nvs")
    assert (erased.address, erased.size) == (0x9000, 0x4000)
    for start in (0x1000, "0x1000", "4KB"):
        with pytest.raises(OperationError, match="size"):
            esp.flash.erase(start)


# -- verifying


@pytest.mark.parametrize("place", [0, 1, 4998, 4999])
def test_a_difference_is_found_wherever_it_is(esp, place):
    data = os.urandom(5000)
    esp.flash.write([(0x10000, data), (0x20000, b"same")])
    other = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
    found = esp.flash.verify([(0x10000, other), (0x20000, b"same")])
    assert found.matches is False
    assert [(one.address, one.size, one.matches, one.first_difference) for one in found] == [
        (0x10000, 5000, False, 0x10000 + place),
        (0x20000, 4, True, None),
    ]


def test_a_region_that_matches_is_not_read(esp, monkeypatch):
    """Its MD5 is proof enough."""
    esp.flash.write(b"abc", 0x10000)
    monkeypatch.setattr("pytest_esp.operations.flash.access._Wire.read", None)
    assert esp.flash.verify(b"abc", 0x10000).matches


def test_without_an_md5_a_region_is_read(esp, monkeypatch):
    esp.flash.write(b"abc", 0x10000)
    monkeypatch.setattr("pytest_esp.operations.flash.access._Wire.has_md5", False)
    monkeypatch.setattr("pytest_esp.operations.flash.access._Wire.md5", None)
    (found,) = esp.flash.verify(b"abc", 0x10000)
    assert (found.matches, found.first_difference) == (True, None)
    (found,) = esp.flash.verify(b"abd", 0x10000)
    assert (found.matches, found.first_difference) == (False, 0x10002)


def test_without_an_md5_everything_is_written(esp, monkeypatch):
    assert esp.flash.write(b"abc", 0x10000).verified
    monkeypatch.setattr("pytest_esp.operations.flash.access._Wire.has_md5", False)
    result = esp.flash.write(b"abc", 0x10000)
    assert (result.verified, result.bytes_written, result.bytes_skipped) == (False, 3, 0)


def test_the_last_region_does_not_decide_whether_all_are_verified(esp, monkeypatch):
    proofs = iter([False, True])
    monkeypatch.setattr("pytest_esp.operations.flash.access._Wire.has_md5", property(lambda _: next(proofs)))
    assert esp.flash.write([(0x10000, b"abc"), (0x20000, b"def")]).verified is False


def test_a_region_is_verified_where_md5_is_not_allowed_for_security(esp, monkeypatch):
    """Where FIPS is enforced, hashlib refuses any other use of it."""
    md5 = hashlib.md5

    def refuse(data=b"", *, usedforsecurity=True):
        if usedforsecurity:
            raise ValueError("disabled for FIPS")
        return md5(data, usedforsecurity=False)

    esp.flash.write(b"abc", 0x10000)
    monkeypatch.setattr(hashlib, "md5", refuse)
    assert esp.flash.verify(b"abc", 0x10000).matches


def test_the_end_of_the_flash_can_be_verified(esp):
    data = os.urandom(100)
    address = (4 << 20) - 100
    esp.flash.write(data, address)
    assert esp.flash.verify(data, address).matches
    assert esp.flash.md5(address, 100).md5 == hashlib.md5(data).hexdigest()
    with pytest.raises(OperationError, match="beyond the flash"):
        esp.flash.verify(data + b"x", address)
