"""Backups of simulated chips: contents, resuming, and incomplete ones never look complete."""

import gzip
import hashlib
import json
import os
import signal
import subprocess
import sys

import pytest

from pytest_esp.errors import EspError, OperationError
from pytest_esp.formats.partition_table import from_csv

CSV = "nvs, data, nvs, 0x9000, 0x4000\nfactory, app, factory, 0x10000, 0x30000\nstore, data, spiffs, 0x50000, 0x20000\n"
SIZE = 512 * 1024


@pytest.fixture
def esp(esp_of):
    """A board with 512 KB: a table, something in nvs and in the app, and some bytes where no partition is."""
    esp = esp_of("small")
    esp.flash.write(
        [(0, os.urandom(5000)), (0x8000, from_csv(CSV)), (0x9000, os.urandom(64)), (0x10000, os.urandom(70_000))]
    )
    esp.flash.write(b"a note of the factory", 0x78000)
    return esp


def contents(esp):
    return esp.link.board.simulated.flash.read(0, SIZE)


def joined(folder):
    """Unpack a full backup without this project's code."""
    return b"".join(gzip.decompress(path.read_bytes()) for path in sorted(folder.glob("0x*.bin.gz")))


def test_a_backup_is_the_flash(esp, tmp_path):
    result = esp.flash.backup(tmp_path / "saved")
    assert joined(tmp_path / "saved") == contents(esp)
    assert result.sha256 == hashlib.sha256(contents(esp)).hexdigest()
    assert (result.bytes_read, result.bytes_kept, result.bytes_blank) == (SIZE, 0, 0)
    assert (result.chip, result.mac) == ("esp32c3", esp.chip.identify().mac_address)
    assert result.bytes_stored < SIZE // 2


def test_every_byte_belongs_to_a_region_with_a_name(esp, tmp_path):
    result = esp.flash.backup(tmp_path / "saved")
    assert [(region.name, region.kind, region.address, region.used) for region in result.regions] == [
        ("bootloader", "bootloader", 0, True),
        ("partition-table", "table", 0x8000, True),
        ("nvs", "partition", 0x9000, True),
        ("gap-0xd000", "gap", 0xD000, False),
        ("factory", "partition", 0x10000, True),
        ("gap-0x40000", "gap", 0x40000, False),
        ("store", "partition", 0x50000, False),
        ("gap-0x70000", "gap", 0x70000, True),
    ]
    assert sum(region.size for region in result.regions) == SIZE
    flash = contents(esp)
    for region in result.regions:
        assert region.sha256 == hashlib.sha256(flash[region.address : region.address + region.size]).hexdigest()


def test_the_manifest_tells_whose_it_is(esp, tmp_path):
    esp.flash.backup(tmp_path / "saved")
    manifest = json.loads((tmp_path / "saved" / "manifest.json").read_text())
    assert manifest["chip"] == "esp32c3"
    assert manifest["mac"] == esp.chip.identify().mac_address
    assert manifest["flash_size"] == SIZE
    assert manifest["created"].endswith("+00:00")
    assert manifest["tool"].startswith("pytest-esp ")


def test_a_smart_backup_reads_what_is_used(esp, tmp_path):
    result = esp.flash.smart_backup(tmp_path / "saved")
    used = 0x8000 + 0x1000 + 0x4000 + 0x20000 + 0x10000  # bootloader, table, nvs, two pieces of the app, the last gap
    assert result.bytes_read == used
    assert result.bytes_blank == SIZE - used
    assert result.sha256 == hashlib.sha256(contents(esp)).hexdigest()
    assert [region.name for region in result.regions] == [
        region.name for region in esp.flash.backup(tmp_path / "full").regions
    ]


@pytest.mark.parametrize("name", ["esp32", "esp8266"])
def test_other_chips(esp_of, tmp_path, name):
    """The bootloader of an ESP32 lies at 0x1000; an ESP8266 may have no partition table."""
    esp = esp_of(name)
    esp.flash.write(b"x" * 100, 0x1000)
    if name == "esp32":
        esp.flash.write(from_csv(CSV), 0x8000)
    result = esp.flash.smart_backup(tmp_path / "saved")
    names = [region.name for region in result.regions]
    if name == "esp32":
        assert names[:3] == ["gap-0x0", "bootloader", "partition-table"]
        assert result.note is None
    else:
        assert names == ["flash"]
        assert "no partition table" in result.note
    assert result.sha256 == hashlib.sha256(esp.link.board.simulated.flash.read(0, 4 << 20)).hexdigest()


@pytest.mark.parametrize(
    ("csv", "why"),
    [
        ("big, app, factory, 0x10000, 1M\n", "big ends at 0x110000, beyond the flash"),
        ("one, data, nvs, 0x9000, 0x4000\n", None),
    ],
)
def test_a_table_that_does_not_fit_divides_nothing(esp_of, tmp_path, csv, why):
    esp = esp_of("small")
    esp.flash.write(from_csv(csv), 0x8000)
    result = esp.flash.smart_backup(tmp_path / "saved")
    assert len(result.regions) == (1 if why else 4)
    assert why in result.note if why else result.note is None


@pytest.mark.parametrize("how", ["backup", "smart_backup"])
def test_a_chip_without_a_stub(esp_of, tmp_path, how):
    """An ESP8266's ROM can neither read its flash nor compute an MD5 of it."""
    esp = esp_of("esp8266")
    with esp.link.session.use("no stub", stub=False) as loader:
        loader.stub_is_disabled = True
    with pytest.raises(OperationError, match="not supported by this chip"):
        getattr(esp.flash, how)(tmp_path / "saved")
    assert not (tmp_path / "saved" / "manifest.json").exists()


def test_progress(esp, tmp_path):
    seen = []
    esp.flash.backup(tmp_path / "saved", progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1] == (SIZE, SIZE)


# -- interrupted


class StoppedError(Exception):
    pass


def stop_at(place):
    def progress(done, _total):
        if done >= place:
            raise StoppedError

    return progress


def test_an_interrupted_backup_goes_on(esp, tmp_path):
    folder = tmp_path / "saved"
    with pytest.raises(StoppedError):
        esp.flash.backup(folder, progress=stop_at(0x30000))
    assert not (folder / "manifest.json").exists()
    left = sum(len(gzip.decompress(path.read_bytes())) for path in folder.glob("*.gz"))
    assert left >= 0x20000
    result = esp.flash.backup(folder)
    assert (result.bytes_kept, result.bytes_read) == (left, SIZE - left)
    assert joined(folder) == contents(esp)


def test_what_changed_meanwhile_is_read_again(esp, tmp_path):
    """Saved data is kept only if the chip's MD5 confirms it, not because the file exists."""
    folder = tmp_path / "saved"
    with pytest.raises(StoppedError):
        esp.flash.backup(folder, progress=stop_at(0x30000))
    esp.flash.write(b"new", 0x9000)
    damaged = folder / "0x00000000.bin.gz"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    esp.flash.backup(folder)
    assert joined(folder) == contents(esp)


def test_a_kill_in_the_middle_leaves_nothing_that_looks_complete(rack, esp, tmp_path):
    folder = tmp_path / "saved"
    wanted = contents(esp)
    esp.link.close()
    code = f"""
import sys, time
from pathlib import Path
from pytest_esp.boards.registry import make_board
from pytest_esp.link.link import Link
from pytest_esp.operations.esp import Esp
from pytest_esp.rack.config import load_rack
rack = load_rack(Path({str(tmp_path / "boards.toml")!r}))
def progress(done, total):
    print(done, flush=True)
    time.sleep(0.01)
Esp(Link(make_board(rack.board("small"), rack))).flash.backup({str(folder)!r}, progress=progress)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        while int(process.stdout.readline()) < 0x20000:
            pass
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not (folder / "manifest.json").exists()
    assert list(folder.iterdir())
    result = esp.flash.backup(folder)
    assert result.bytes_kept > 0
    assert joined(folder) == wanted
    assert not list(folder.glob(".*"))


# -- refused


def test_a_complete_backup_is_not_replaced_unasked(esp, tmp_path):
    folder = tmp_path / "saved"
    esp.flash.backup(folder)
    before = (folder / "manifest.json").read_bytes()
    with pytest.raises(OperationError, match="already contains a backup"):
        esp.flash.backup(folder)
    assert (folder / "manifest.json").read_bytes() == before
    esp.flash.write(b"new", 0x9000)
    with pytest.raises(StoppedError):
        esp.flash.backup(folder, overwrite=True, progress=stop_at(1))
    assert not (folder / "manifest.json").exists()
    esp.flash.smart_backup(folder, overwrite=True)
    assert len(list(folder.glob("*.gz"))) == 6  # none is left of the full one


def test_a_folder_with_other_files_is_refused(esp, tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(OperationError, match=r"contains other files: .*thesis.txt"):
        esp.flash.backup(tmp_path)
    with pytest.raises(OperationError, match="cannot be used"):
        esp.flash.backup(tmp_path / "thesis.txt")


def test_a_locked_chip_says_why(esp_of, tmp_path):
    with pytest.raises(EspError, match="secure download mode"):
        esp_of("locked").flash.backup(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
