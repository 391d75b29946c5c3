"""Which slot starts, and what becomes of otadata: the real second-stage bootloader and the simulated one agree."""

import re

import pytest
from esp_idf_defs.otadata import OtaDataSelectEntry, OtaImageState

OTADATA, SECTOR = 0xE000, 0x1000
FACTORY, OTA_0, OTA_1 = 0x10000, 0x50000, 0x90000
IMAGE_SIZE = 0x10000  # more than an image has

NEW, PENDING, VALID = OtaImageState.NEW, OtaImageState.PENDING_VERIFY, OtaImageState.VALID
INVALID, ABORTED, UNDEFINED = OtaImageState.INVALID, OtaImageState.ABORTED, OtaImageState.UNDEFINED


def write_otadata(flash, *entries):
    for sector, (sequence, state) in enumerate(entries):
        entry = OtaDataSelectEntry(sequence, state).to_bytes()
        address = OTADATA + sector * SECTOR
        flash[address : address + len(entry)] = entry


def states(flash):
    return tuple(
        int.from_bytes(flash[address + 24 : address + 28], "little") for address in (OTADATA, OTADATA + SECTOR)
    )


@pytest.fixture
def flash(firmware_flash):
    """The app in all three slots, and otadata as blank as a factory leaves it."""
    for slot in (OTA_0, OTA_1):
        firmware_flash[slot : slot + IMAGE_SIZE] = firmware_flash[FACTORY : FACTORY + IMAGE_SIZE]
    return firmware_flash


@pytest.fixture
def boot_both(chip, boards, essence):
    """Boot a flash both ways; return the label of the slot, and the states in otadata afterwards."""

    def boot(flash):
        logs, flashes = [], []
        for kind in (boards.real, boards.simulated):
            dialogue = kind(chip, flash)
            logs.append(essence(dialogue.until("see the list of tests.\r\n")))
            flashes.append(dialogue.flash_now())
        assert logs[1] == logs[0]
        assert flashes[1] == flashes[0]
        return re.search(r"slot (\S+)\n", logs[0])[1], states(flashes[0])

    return boot


CHOICES = [
    ([], "factory", ()),
    ([(1, VALID)], "ota_0", (VALID,)),
    ([(2, VALID)], "ota_1", (VALID,)),
    ([(1, VALID), (2, VALID)], "ota_1", (VALID, VALID)),
    ([(3, VALID), (2, VALID)], "ota_0", (VALID, VALID)),
    ([(1, VALID), (2, NEW)], "ota_1", (VALID, PENDING)),
    ([(1, VALID), (2, PENDING)], "ota_0", (VALID, ABORTED)),
    ([(1, VALID), (2, INVALID)], "ota_0", (VALID, INVALID)),
    ([(1, PENDING)], "factory", (ABORTED,)),
    ([(1, UNDEFINED)], "ota_0", (UNDEFINED,)),
]


def name(value):
    if not isinstance(value, list):
        return ""
    return " ".join(f"{sequence}-{state.name}" for sequence, state in value) or "blank"


@pytest.mark.parametrize("chip", ["esp32c3"])  # the code is the same on both
@pytest.mark.parametrize(("entries", "slot", "after"), CHOICES, ids=name)
def test_otadata_chooses(flash, boot_both, entries, slot, after):
    write_otadata(flash, *entries)
    started, states_after = boot_both(flash)
    assert started == slot
    assert states_after[: len(after)] == after


def test_an_image_on_trial_is_given_one_chance(flash, boot_both):
    write_otadata(flash, (1, VALID), (2, NEW))
    assert boot_both(flash) == ("ota_1", (VALID, PENDING))
    write_otadata(flash, (1, VALID), (2, PENDING))
    assert boot_both(flash) == ("ota_0", (VALID, ABORTED))


def test_an_entry_with_a_wrong_checksum_does_not_count(flash, boot_both):
    write_otadata(flash, (2, VALID))
    flash[OTADATA + 28] ^= 1
    assert boot_both(flash)[0] == "factory"


@pytest.mark.parametrize("place", [0x300, IMAGE_SIZE], ids=["content", "hash"])
def test_a_damaged_image_is_not_started(flash, boot_both, place):
    write_otadata(flash, (2, VALID))
    end = OTA_1 + len(flash[OTA_1 : OTA_1 + IMAGE_SIZE].rstrip(b"\xff"))
    flash[min(OTA_1 + place, end - 1)] ^= 0x10
    assert boot_both(flash)[0] == "ota_0"


def test_an_erased_slot_is_passed_over(flash, boot_both):
    write_otadata(flash, (1, VALID))
    flash[OTA_0 : OTA_0 + SECTOR] = b"\xff" * SECTOR
    assert boot_both(flash)[0] == "factory"


def test_a_damaged_partition_table_starts_nothing(chip, boards, flash):
    flash[0x8000 + 40] ^= 1
    for kind in (boards.real, boards.simulated):
        log = kind(chip, flash).until("load partition table error!")
        assert "Incorrect MD5 checksum" in log
