"""Updates over the wire: the boot log proves which slot starts, and every power cut leaves a bootable app."""

import re

import pytest
from esp_idf_defs.otadata import OtaDataSelectEntry, OtaImageState

from pytest_esp.errors import EspError, FirmwareError, OperationError, RefusedError
from pytest_esp.formats.partition_table import from_csv
from pytest_esp.link.fast import FastLoader
from pytest_esp.operations.ota import slots
from pytest_esp.wire.faults import Fault, Faults

from .conftest import BUILDS

OTADATA, SLOTS = 0xE000, {"factory": 0x10000, "ota_0": 0x50000, "ota_1": 0x90000}
VERSION = re.compile(rb"App version: +(\S+)\s")


def started(esp):
    """The slot and the version that the board itself says it starts."""
    console = esp.link.boot()
    offset = int(console.expect(re.compile(rb"Loaded app from partition at offset 0x([0-9a-f]+)\s"), 20)[1], 16)
    version = console.expect(VERSION, 20)[1].decode()
    return {place: name for name, place in SLOTS.items()}[offset], version


@pytest.fixture
def esp(board):
    """A board with the tests' own app, version 1.0.0, in its factory partition."""
    board.flash.write(BUILDS / board.link.board.chip)
    return board


@pytest.fixture(autouse=True)
def _apps_crash_at_once_or_never(monkeypatch):
    """Nobody has to wait long for a crash here."""
    monkeypatch.setattr(slots, "_SETTLING", 0.05)


@pytest.fixture
def chip(esp):
    return esp.link.board.chip


@pytest.fixture
def sim(esp_on):
    esp = esp_on("sim", "esp32c3")
    esp.flash.write(BUILDS / "esp32c3")
    return esp


def test_updates_take_turns_and_the_way_back(esp, chip, package_of):
    first = esp.ota.deploy(package_of(chip, "2.0"))
    assert (first.previous, first.slot, first.sequence, first.app.version) == ("factory", "ota_0", 1, "2.0")
    assert "Loaded app from partition at offset 0x50000" in first.output
    assert first.started
    assert started(esp) == ("ota_0", "2.0")
    second = esp.ota.deploy(package_of(chip, "3.0"))
    assert (second.previous, second.slot, second.sequence, second.started) == ("ota_0", "ota_1", 2, True)
    assert started(esp) == ("ota_1", "3.0")
    back = esp.ota.rollback()
    assert (back.previous, back.slot, back.sequence, back.app.version) == ("ota_1", "ota_0", 1, "2.0")
    assert started(esp) == ("ota_0", "2.0")
    assert (esp.ota.rollback().slot, started(esp)) == ("factory", ("factory", "1.0.0"))
    with pytest.raises(OperationError, match="cannot roll back: otadata"):
        esp.ota.rollback()
    assert started(esp) == ("factory", "1.0.0")


def test_the_third_update_goes_where_the_first_was(sim, package_of):
    for version, slot, sequence in (("2", "ota_0", 1), ("3", "ota_1", 2), ("4", "ota_0", 3), ("5", "ota_1", 4)):
        update = sim.ota.deploy(package_of("esp32c3", version))
        assert (update.slot, update.sequence) == (slot, sequence)
        assert started(sim) == (slot, version)


def test_an_update_that_panics_has_not_started(sim, package_of, apps_panic):
    with pytest.raises(OperationError, match=r"crashes instead of starting ota_0: .*Store access fault"):
        sim.ota.deploy(package_of("esp32c3", "2"))


def test_an_update_that_is_there_already_is_not_written_again(sim, package_of):
    package = package_of("esp32c3", "2.0")
    first = sim.ota.deploy(package)
    sim.ota.rollback()
    again = sim.ota.deploy(package)
    assert (first.bytes_written, again.bytes_written, again.bytes_skipped) == (
        first.bytes_written,
        0,
        first.bytes_written,
    )
    assert started(sim) == ("ota_0", "2.0")


def test_an_app_on_trial_that_does_not_say_that_it_is_well(esp, chip, package_of):
    """The tests' bootloaders have rollback: the second start is one of the old app."""
    update = esp.ota.deploy(package_of(chip, "2.0"), on_trial=True)
    assert update.started
    assert started(esp) == ("factory", "1.0.0")
    assert esp.partitions.otadata().entries[0].state == "ABORTED"


def test_what_does_not_start_is_no_update(sim, package_of, monkeypatch):
    """A bit that flips in flash after it was verified."""
    flash = sim.link.board.simulated.flash
    boot = sim.link.boot

    def flip_and_boot():
        flash.flip(SLOTS["ota_0"] + 0x400, 1)
        return boot()

    monkeypatch.setattr(sim.link, "boot", flip_and_boot)
    with pytest.raises(OperationError, match="starts the app at 0x10000 instead of ota_0") as caught:
        sim.ota.deploy(package_of("esp32c3", "2.0"))
    assert "rejects the image" in caught.value.hint


@pytest.mark.parametrize("way", ["update", "second update", "rollback"])
def test_power_cut_at_every_write_to_flash(esp_on, package_of, monkeypatch, way):
    """Whenever the power fails, the board starts the old app or the new one, and the next attempt succeeds."""
    monkeypatch.setattr(FastLoader, "longest_wait", 0.05)
    new = package_of("esp32c3", "3.0")
    esp = esp_on("sim", "esp32c3")
    esp.flash.write(BUILDS / "esp32c3")
    if way != "update":
        esp.ota.deploy(package_of("esp32c3", "2.0"))
    if way == "rollback":
        esp.ota.deploy(new)
    old, wanted = {
        "update": ("1.0.0", "3.0"),
        "second update": ("2.0", "3.0"),
        "rollback": ("3.0", "2.0"),
    }[way]
    flash = esp.link.board.simulated.flash
    before = flash.read(0, flash.size)
    outcomes = []
    for cut_at in range(1000):
        _restore(flash, before)
        power = PowerCut(esp, cut_at, monkeypatch)
        try:
            esp.ota.rollback() if way == "rollback" else esp.ota.deploy(new)
        except EspError:
            assert power.is_cut
        power.restore()
        outcomes.append(started(esp)[1])
        assert outcomes[-1] in (old, wanted)
        esp.ota.rollback() if way == "rollback" and outcomes[-1] == old else None
        if way != "rollback" and outcomes[-1] == old:
            assert esp.ota.deploy(new).started
        assert started(esp)[1] == wanted
        if not power.is_cut:
            break
    changed = outcomes.index(wanted)
    assert outcomes == [old] * changed + [wanted] * (len(outcomes) - changed)
    assert changed >= (0 if way == "rollback" else 3)  # an entry that is erased already means the way back
    assert len(outcomes) >= (3 if way == "rollback" else 5)  # cuts, and one try without any


class PowerCut:
    """Takes the power away within the write or erase number *at* of a simulated flash."""

    def __init__(self, esp, at, monkeypatch):
        self._esp, self._left, self._patch = esp, at, monkeypatch
        self.is_cut = False
        self._flash = esp.link.board.simulated.flash
        self._program, self._erase = self._flash.program, self._flash.erase
        monkeypatch.setattr(self._flash, "program", self.program)
        monkeypatch.setattr(self._flash, "erase", self.erase)

    def _cut(self):
        self._left -= 1
        if self._left < 0 and not self.is_cut:
            self.is_cut = True
            self._esp.link.board.wire.faults = Faults(to_host=Fault(silent_after=0))
            return True
        return False

    def program(self, address, data):
        if self._cut():
            self._program(address, data[: len(data) // 2])
        elif not self.is_cut:
            self._program(address, data)

    def erase(self, address, size):
        if self._cut():
            self._erase(address, 0x1000)
        elif not self.is_cut:
            self._erase(address, size)

    def restore(self):
        self._patch.setattr(self._flash, "program", self._program)
        self._patch.setattr(self._flash, "erase", self._erase)
        self._esp.link.board.wire.faults = None


def _restore(flash, contents):
    flash.erase(0, flash.size)
    flash.program(0, contents)


# -- what is refused


def test_an_update_for_another_chip(sim, package_of):
    with pytest.raises(FirmwareError, match="for esp32, not for the ESP32-C3"):
        sim.ota.deploy(package_of("esp32", "2.0"))
    assert started(sim) == ("factory", "1.0.0")


def test_an_update_without_the_signature_that_is_wanted(sim, package_of, keys):
    private, public = keys
    with pytest.raises(RefusedError, match="is not signed"):
        sim.ota.deploy(package_of("esp32c3", "2.0"), public_key_file=public)
    assert started(sim) == ("factory", "1.0.0")
    assert sim.ota.deploy(package_of("esp32c3", "2.0", key_file=private), public_key_file=public).started


def test_an_update_that_is_older_than_the_efuses_allow(sim, package_of):
    """With anti-rollback the bootloader counts the bits of SECURE_VERSION, and starts nothing older."""
    sim.efuse.burn("SECURE_VERSION", "0x3")
    with pytest.raises(FirmwareError, match="has secure version 0, but the eFuses of this chip require 2"):
        sim.ota.deploy(package_of("esp32c3", "2.0"))
    assert started(sim) == ("factory", "1.0.0")
    assert sim.partitions.otadata().entries[0].sequence is None


def table(csv):
    return from_csv(csv).ljust(0x1000, b"\xff")


@pytest.mark.parametrize(
    ("csv", "words"),
    [
        ("app, app, factory, 0x10000, 1M", "there is no otadata"),
        (
            "otadata, data, ota, 0xe000, 0x2000\nonly, app, ota_0, 0x10000, 1M",
            "an update would overwrite the running app",
        ),
        (
            "otadata, data, ota, 0xe000, 0x2000\na, app, ota_0, 0x50000, 0x10000\nb, app, ota_1, 0x60000, 0x10000",
            None,
        ),
    ],
)
def test_tables_for_updates(sim, package_of, csv, words):
    sim.flash.write(table(csv), 0x8000)
    if words:
        with pytest.raises(OperationError, match=words):
            sim.ota.deploy(package_of("esp32c3", "2.0"))
    else:
        assert sim.ota.deploy(package_of("esp32c3", "2.0")).slot == "a"  # nothing runs yet


def test_an_app_that_is_too_large(sim, package_of, image_of, tmp_path):
    csv = "otadata, data, ota, 0xe000, 0x2000\na, app, ota_0, 0x50000, 0x1000\nb, app, ota_1, 0x60000, 0x1000"
    sim.flash.write(table(csv), 0x8000)
    size = len(image_of("esp32c3", "2.0"))
    with pytest.raises(FirmwareError, match=f"{size:#x} bytes, but a has only 0x1000"):
        sim.ota.deploy(package_of("esp32c3", "2.0"))


def test_a_board_that_may_only_be_read(sim, package_of, monkeypatch):
    monkeypatch.setattr(type(sim.link.board), "allow", frozenset({"read"}), raising=False)
    object.__setattr__(sim.link.board.spec, "allow", frozenset({"read"}))
    with pytest.raises(RefusedError, match="allow"):
        sim.ota.deploy(package_of("esp32c3", "2.0"))


# -- prepare


def test_a_board_is_ready(esp):
    ready = esp.ota.prepare()
    assert (ready.running, ready.next_slot, ready.room) == ("factory", "ota_0", 0x40000)
    assert (ready.otadata, ready.bootloader, ready.warnings) == ("ready", esp.link.board.chip, ())


def test_damaged_otadata_is_mended(sim, package_of):
    sim.ota.deploy(package_of("esp32c3", "2.0"))
    sim.flash.write(b"garbage that is no entry of any kind" * 4, OTADATA)
    sim.flash.write(b"\0" * 32, OTADATA + 0x1000)
    ready = sim.ota.prepare()
    assert (ready.running, ready.otadata) == ("factory", "repaired")
    assert sim.ota.prepare().otadata == "ready"
    assert "ota data partition invalid" not in sim.ota.deploy(package_of("esp32c3", "3.0")).output


def test_an_entry_that_counts_is_kept(sim):
    entry = OtaDataSelectEntry(1, OtaImageState.VALID).to_bytes()
    sim.flash.write(b"garbage", OTADATA + 0x1000)
    sim.flash.write(entry, OTADATA)
    sim.ota.prepare()
    assert sim.flash.read(OTADATA, 32).data == entry


def test_a_blank_board_is_told_what_is_missing(esp_on):
    esp = esp_on("sim", "esp32c3")
    esp.flash.write((BUILDS / "esp32c3" / "partition_table" / "partition-table.bin").read_bytes(), 0x8000)
    ready = esp.ota.prepare()
    assert ready.running is None
    assert ready.warnings == (
        "there is no bootloader in flash",
        "no partition has an app: nothing starts until an update is installed",
    )
