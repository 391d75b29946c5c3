"""A failed write reports the state of each region; with faults on the wire, not with mocks."""

import os

import pytest

from pytest_esp.errors import EspError, FirmwareError, LinkError, PortError
from pytest_esp.link.fast import FastLoader
from pytest_esp.wire.faults import Fault, Faults

REGIONS = [(0x10000, 60_000), (0x30000, 60_000), (0x50000, 60_000)]


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(FastLoader, "longest_wait", 0.05)


def contents():
    return [(address, os.urandom(size)) for address, size in REGIONS]


def flash_of(esp):
    return esp.link.board.simulated.flash


def states(error):
    return [region["state"] for region in error.details["regions"]]


@pytest.mark.parametrize(
    ("silent_after", "expected"),
    [
        (20_000, ["partly", "untouched", "untouched"]),
        (90_000, ["written", "partly", "untouched"]),
        (150_000, ["written", "written", "partly"]),
    ],
)
def test_a_board_that_falls_silent(esp, silent_after, expected):
    esp.chip.identify()
    data = contents()
    esp.link.board.wire.faults = Faults(to_device=Fault(silent_after=silent_after))
    with pytest.raises(LinkError, match="does not answer") as caught:
        esp.flash.write(data)
    assert states(caught.value) == expected
    for (address, region), state in zip(data, expected, strict=True):
        word = "partly written" if state == "partly" else state
        assert f"{address:#x} {word}" in caught.value.hint
        there = flash_of(esp).read(address, len(region))
        # The chip itself is the witness: nothing that is called written or untouched is anything else.
        assert {"written": there == region, "untouched": set(there) == {0xFF}, "partly": there != region}[state]
    esp.link.board.wire.faults = None
    again = esp.flash.write(data)
    assert again.bytes_skipped == sum(len(data[n][1]) for n, state in enumerate(expected) if state == "written")
    assert esp.flash.verify(data).matches


def test_a_board_that_falls_silent_before_it_is_touched(esp_of):
    esp = esp_of("esp32c3")
    esp.flash.write([(0x10000, b"old" * 1000)])
    esp.link.board.wire.faults = Faults(to_host=Fault(silent_after=0))
    with pytest.raises(LinkError):
        esp.flash.write(contents())
    assert flash_of(esp).read(0x10000, 3000) == b"old" * 1000


def test_a_port_that_vanishes(esp_of):
    esp = esp_of("esp32c3")

    def pull(done, total):
        if done > 70_000:
            esp.link.port.lose("the cable was pulled")

    with pytest.raises(PortError, match="the cable was pulled") as caught:
        esp.flash.write(contents(), progress=pull)
    assert states(caught.value) == ["written", "partly", "untouched"]
    assert "0x30000 partly written" in str(caught.value)


def test_corrupted_bytes_never_pass_for_written(esp_of):
    """Every seed ends in an error or in the right bytes."""
    esp = esp_of("esp32c3")
    failed = 0
    for seed in range(8):
        data = os.urandom(30_000)
        esp.chip.identify()
        esp.link.board.wire.faults = Faults(to_device=Fault(corrupt=0.00005, seed=seed))
        try:
            esp.flash.write([(0x10000, data)])
            assert flash_of(esp).read(0x10000, len(data)) == data
        except EspError:
            failed += 1
        esp.link.board.wire.faults = None
    assert failed


def test_ctrl_c_tells_the_states_too(esp_of):
    esp = esp_of("esp32c3")

    def interrupt(done, total):
        if done > 70_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        esp.flash.write(contents(), progress=interrupt)
    assert caught.value.__notes__ == ["regions: 0x10000 written, 0x30000 partly written, 0x50000 untouched"]


def test_a_bad_region_is_found_before_a_good_one_is_written(esp_of, tmp_path):
    esp = esp_of("esp32c3")
    with pytest.raises(FirmwareError, match="cannot be read"):
        esp.flash.write([(0x10000, b"good" * 1000), (0x30000, tmp_path / "missing.bin")])
    assert not esp.link.is_open
