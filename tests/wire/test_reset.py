"""The auto-reset circuit, driven as esptool drives a devkit."""

import threading
import time

import pytest

from pytest_esp.wire.reset import AutoResetCircuit


class Chip:
    def __init__(self, rise_time=0.0):
        self.seen = []
        self.started = threading.Event()
        self.lock = threading.RLock()
        self.circuit = AutoResetCircuit(lambda: self.seen.append("held"), self.start, rise_time, self.lock)

    def start(self, strap_low):
        self.seen.append("loader" if strap_low else "app")
        self.started.set()

    def drive(self, *states):
        for dtr, rts in states:
            with self.lock:
                self.circuit.set_lines(bool(dtr), bool(rts))


OPEN = [(1, 0), (1, 1)]  # pyserial asserts DTR, then RTS
CLASSIC = [(0, 1), (0, 1), (1, 1), (1, 0), (0, 0)]  # DTR off, RTS on; DTR on; RTS off; DTR off
HARD = [(0, 1), (0, 0)]


def test_opening_a_port_resets_nothing():
    chip = Chip()
    chip.drive(*OPEN)
    assert chip.seen == []


@pytest.mark.parametrize("gap", [0.0, 0.06])
def test_the_classic_sequence_enters_the_loader_however_slow_the_host(gap):
    chip = Chip(rise_time=0.2)
    for state in [*OPEN, *CLASSIC]:
        chip.drive(state)
        time.sleep(gap)
    assert chip.seen == ["held", "loader"]


def test_a_hard_reset_starts_the_app_after_the_rise_time():
    chip = Chip(rise_time=0.05)
    chip.drive(*HARD)
    assert chip.seen == ["held"]
    assert chip.started.wait(2)
    assert chip.seen == ["held", "app"]


def test_without_rise_time_the_strap_counts_at_once():
    chip = Chip()
    chip.drive((0, 1), (1, 0))
    chip.drive(*HARD)
    assert chip.seen == ["held", "loader", "held", "app"]


def test_a_reset_that_begins_while_en_rises_wins():
    chip = Chip(rise_time=0.05)
    chip.drive(*HARD)
    chip.drive((0, 1))
    time.sleep(0.1)
    assert chip.seen == ["held", "held"]
