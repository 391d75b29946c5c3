"""Restores: exact, of the right board only, and never from a backup that anything is wrong with."""

import json
import os
import shutil

import pytest

from pytest_esp.errors import FirmwareError, LinkError, OperationError, RefusedError
from pytest_esp.formats.partition_table import from_csv
from pytest_esp.operations.backup.archive import Archive

CSV = "nvs, data, nvs, 0x9000, 0x4000\nfactory, app, factory, 0x10000, 0x30000\n"
SIZE = 512 * 1024


@pytest.fixture
def esp(esp_of):
    esp = esp_of("small")
    esp.flash.write(
        [(0, os.urandom(3000)), (0x8000, from_csv(CSV)), (0x9000, os.urandom(64)), (0x10000, os.urandom(70_000))]
    )
    return esp


@pytest.fixture(params=["backup", "smart_backup"])
def saved(request, esp, tmp_path):
    return getattr(esp.flash, request.param)(tmp_path / "saved").output_dir


@pytest.fixture
def smart(esp, tmp_path):
    return esp.flash.smart_backup(tmp_path / "saved").output_dir


def contents(esp):
    return esp.link.board.simulated.flash.read(0, SIZE)


def test_the_flash_is_what_it_was(esp, saved):
    before = contents(esp)
    esp.flash.write([(0x8000, os.urandom(0x9000)), (0x60000, b"where it was blank")])
    result = esp.flash.restore(saved)
    assert contents(esp) == before
    assert result.verified
    assert {region.name: region.outcome for region in result.regions} == {
        "bootloader": "unchanged",
        "partition-table": "written",
        "nvs": "written",
        "gap-0xd000": "written",
        "factory": "written",
        "gap-0x40000": "written",
    }
    assert result.bytes_written + result.bytes_erased + result.bytes_unchanged == SIZE
    assert result.bytes_erased == 0x3000 + 0x10000


def test_what_is_there_already_is_not_written(esp, saved):
    chip = esp.link.board.simulated.flash
    programmed, erased = chip.bytes_programmed, chip.sectors_erased
    assert esp.flash.restore(saved).bytes_unchanged == SIZE
    assert (chip.bytes_programmed, chip.sectors_erased) == (programmed, erased)


def test_onto_an_erased_flash(esp, saved):
    before = contents(esp)
    esp.flash.erase("all")
    esp.flash.restore(saved)
    assert contents(esp) == before


@pytest.mark.parametrize("name", ["esp32", "esp8266"])
def test_other_chips(esp_of, tmp_path, name):
    esp = esp_of(name)
    esp.flash.write([(0x1000, os.urandom(5000)), (0x200000, os.urandom(70_000))])
    before = esp.link.board.simulated.flash.read(0, 4 << 20)
    esp.flash.smart_backup(tmp_path / "saved")
    esp.flash.write([(0, os.urandom(5000)), (0x210000, os.urandom(7000))])
    esp.flash.restore(tmp_path / "saved")
    assert esp.link.board.simulated.flash.read(0, 4 << 20) == before


def test_whatever_was_in_it_comes_back(esp, build_of, tmp_path):
    """A partition may hold firmware for another chip, which a write refuses: it is data to this one."""
    other = (build_of("esp32") / "pytest_esp_test.bin").read_bytes()[:0x20000]
    with pytest.raises(FirmwareError, match="for the ESP32"):
        esp.flash.write(other, 0x10000)
    esp.flash.write(other, 0x10000, force=True)
    esp.flash.smart_backup(tmp_path / "saved")
    esp.flash.erase("factory")
    esp.flash.restore(tmp_path / "saved")
    assert contents(esp)[0x10000 : 0x10000 + len(other)] == other


def test_an_encrypted_flash_takes_its_own_ciphertext_back(esp, tmp_path):
    esp.flash.info()
    esp.efuse.burn("SPI_BOOT_CRYPT_CNT", 1)
    esp.efuse.burn("DIS_DOWNLOAD_MANUAL_ENCRYPT", 1)
    esp.link.session.drop()
    before = contents(esp)
    esp.flash.smart_backup(tmp_path / "saved")
    esp.flash.erase(0x10000, "64K", force=True)
    with pytest.raises(OperationError, match="flash encryption enabled"):
        esp.flash.restore(tmp_path / "saved")
    esp.flash.restore(tmp_path / "saved", force=True)
    assert contents(esp) == before


def test_a_cut_in_the_middle_says_what_is_where_and_can_be_repeated(esp, smart):
    before = contents(esp)
    esp.flash.erase("all")

    def vanish(done, _total):
        if done > 0x10000:
            raise LinkError("the chip does not answer")

    with pytest.raises(LinkError) as caught:
        esp.flash.restore(smart, progress=vanish)
    states = {region["source"]: region["state"] for region in caught.value.details["regions"]}
    assert (states["bootloader"], states["factory"]) == ("written", "partly")
    esp.flash.restore(smart)
    assert contents(esp) == before


def test_one_region_by_its_name(esp, smart):
    before = contents(esp)
    esp.flash.write([(0x9000, b"x" * 100), (0x10000, b"y" * 100)])
    result = esp.flash.smart_restore(smart, ["nvs"])
    assert contents(esp)[0x9000:0xD000] == before[0x9000:0xD000]
    assert contents(esp)[0x10000:0x10064] == b"y" * 100
    outcomes = {region.name: region.outcome for region in result.regions}
    assert outcomes.pop("nvs") == "written"
    assert set(outcomes.values()) == {"left"}


def test_all_regions_by_default(esp, smart):
    before = contents(esp)
    esp.flash.erase("all")
    assert {region.outcome for region in esp.flash.smart_restore(smart).regions} == {"written", "unchanged"}
    assert contents(esp) == before


def test_a_region_that_is_not_there(esp, smart):
    with pytest.raises(OperationError, match="no region 'nvz'") as caught:
        esp.flash.smart_restore(smart, ["nvz"])
    assert "nearest: nvs" in caught.value.hint
    for nothing in ("nvs", []):
        with pytest.raises(OperationError, match="must be a list of names"):
            esp.flash.smart_restore(smart, nothing)


# -- another board


def test_the_backup_of_another_board(esp_of, smart):
    twin = esp_of("twin")
    twin.flash.write(b"its own", 0x9000)
    before = contents(twin)
    with pytest.raises(FirmwareError, match="is from the chip with MAC"):
        twin.flash.restore(smart)
    with pytest.raises(FirmwareError, match="of an esp32c3, not of an esp32"):
        esp_of("esp32").flash.restore(smart, any_mac=True)
    with pytest.raises(FirmwareError, match="flash of 512KB, but this board has 4MB"):
        esp_of("esp32c3").flash.restore(smart, any_mac=True)
    assert contents(twin) == before


def test_a_clone_is_made_if_asked(esp_of, esp, smart):
    twin = esp_of("twin")
    twin.flash.restore(smart, any_mac=True)
    assert contents(twin) == contents(esp)


def test_an_encrypted_flash_is_of_one_chip_only(esp_of, esp, tmp_path):
    twin = esp_of("twin")
    for board in (esp, twin):
        board.flash.info()
        board.efuse.burn("SPI_BOOT_CRYPT_CNT", 1)
        board.link.session.drop()
    esp.flash.smart_backup(tmp_path / "encrypted")
    with pytest.raises(FirmwareError, match="encrypted with the key of"):
        twin.flash.restore(tmp_path / "encrypted", any_mac=True)


def test_a_board_that_is_not_to_be_erased(esp_of, smart):
    with pytest.raises(RefusedError, match="'erase'"):
        esp_of("careful").flash.restore(smart)


# -- damaged backups


def test_any_changed_byte_is_refused_and_nothing_is_written(esp, smart):
    """Every file, and bytes all over it: the gzip headers, the manifest's white space and its own digest, too."""
    esp.flash.write(b"must stay", 0x9000)
    before = contents(esp)
    tried = 0
    for path in sorted(smart.iterdir()):
        whole = path.read_bytes()
        step = max(len(whole) // 40, 1)
        for place in {*range(0, len(whole), step), *range(min(12, len(whole))), len(whole) - 1, len(whole) - 2}:
            for mask in (0x01, 0x20):
                path.write_bytes(whole[:place] + bytes([whole[place] ^ mask]) + whole[place + 1 :])
                with pytest.raises(FirmwareError):
                    Archive(smart)
                tried += 1
        path.write_bytes(whole[:-1])
        with pytest.raises(FirmwareError, match=r"damaged"):
            esp.flash.restore(smart)
        path.write_bytes(whole + b"\n")
        with pytest.raises(FirmwareError, match=r"damaged"):
            esp.flash.restore(smart)
        path.write_bytes(whole)
    assert tried > 400
    assert contents(esp) == before
    esp.flash.restore(smart)


def test_a_missing_file_is_refused(esp, smart):
    chunk = next(iter(sorted(smart.glob("*.gz"))))
    chunk.rename(chunk.with_suffix(".away"))
    with pytest.raises(FirmwareError, match=f"{chunk.name} cannot be read"):
        esp.flash.restore(smart)
    with pytest.raises(FirmwareError, match="not a complete backup"):
        esp.flash.restore(smart.parent)


def test_two_chunks_that_changed_places_are_refused(esp, saved):
    first, second = saved / "0x00010000.bin.gz", saved / "0x00020000.bin.gz"
    shutil.copy(second, first)
    with pytest.raises(FirmwareError, match="differs from what was"):
        esp.flash.restore(saved)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"mac": "00:00:00:00:00:00"}, "was changed"),
        ({"flash_size": 1 << 40}, "was changed"),
        ({"format": "pytest-esp flash backup 9"}, "unsupported format"),
        ({"chip": 7}, "valid string"),
    ],
)
def test_a_manifest_that_somebody_has_edited(esp, smart, change, error):
    path = smart / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change, indent=1) + "\n")
    with pytest.raises(FirmwareError, match=error):
        esp.flash.restore(smart)


def test_cells_that_do_not_hold_are_found(esp, smart):
    """On a worn flash the restore fails and reports where."""
    esp.flash.write(b"x" * 100, 0x9000)
    esp.link.board.simulated.flash.stuck[0x9010] = 0xFF
    with pytest.raises(OperationError) as caught:
        esp.flash.restore(smart)
    assert "0x9000" in str(caught.value)
