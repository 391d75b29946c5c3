"""The auto-reset circuit, driven as esptool drives a devkit."""

import itertools
import threading
import time

import pytest

from pytest_esp.wire.proxy import PortProxy
from pytest_esp.wire.reset import AutoResetCircuit, UsbOtg, UsbSerialJtag, drive_lines, hard_reset


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
EVERY = list(itertools.product([False, True], repeat=2))
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


@pytest.mark.parametrize(("delay", "starts"), [(0.02, "app"), (0.2, "loader")])
def test_a_strict_circuit_reads_the_strap_at_the_end_of_the_rise_time(delay, starts):
    chip = Chip(rise_time=0.1)
    chip.circuit = AutoResetCircuit(lambda: chip.seen.append("held"), chip.start, 0.1, chip.lock, is_strict=True)
    chip.drive(*OPEN, *CLASSIC[:-1])
    time.sleep(delay)
    chip.drive(CLASSIC[-1])
    assert chip.started.wait(2)
    assert chip.seen == ["held", starts]


# -- the chip's own USB

# esptool's USBJTAGSerialReset: idle; the download flag; over (1, 1) to reset; out of reset
USB_JTAG = [(1, 0), (0, 0), (1, 0), (1, 1), (0, 1), (0, 1), (0, 0)]


class Jtag(Chip):
    def __init__(self):
        super().__init__()
        self.circuit = UsbSerialJtag(lambda: self.seen.append("held"), self.start)


@pytest.mark.parametrize("before", EVERY)
def test_usb_serial_jtag(before):
    chip = Jtag()
    chip.drive(before)
    chip.seen.clear()
    chip.drive(*USB_JTAG)
    assert chip.seen[-2:] == ["held", "loader"]
    chip.seen.clear()
    chip.drive(*HARD)
    assert chip.seen == ["held", "app"]


def test_usb_serial_jtag_does_nothing_when_its_port_is_opened_or_closed():
    chip = Jtag()
    chip.drive((1, 1), (0, 0), (1, 1), (0, 0))
    assert chip.seen == []


@pytest.mark.parametrize("before", EVERY)
def test_a_hard_reset_of_usb_serial_jtag_starts_the_app_from_any_state(before):
    lines = Lines(Jtag(), *before)
    hard_reset(lines)
    assert lines.chip.seen[-1] == "app"


def test_the_classic_sequence_starts_the_app_of_usb_serial_jtag():
    chip = Jtag()
    chip.drive((1, 1), *CLASSIC)
    assert chip.seen[-1] == "app"


class Otg(Chip):
    def __init__(self, in_loader):
        super().__init__()
        self.circuit = UsbOtg(self.start, lambda: in_loader, 0.05, self.lock)


@pytest.mark.parametrize("in_loader", [False, True])
@pytest.mark.parametrize(("end", "starts"), [([(1, 1), (1, 0), (0, 0)], "loader"), ([(0, 0)], "app")])
def test_usb_otg(in_loader, end, starts):
    chip = Otg(in_loader)
    chip.drive(*OPEN, (0, 1))
    time.sleep(0.1)
    chip.drive(*end)
    assert chip.started.wait(2)
    assert chip.seen == [starts]


def test_usb_otg_does_nothing_when_its_port_is_opened_or_closed():
    chip = Otg(in_loader=False)
    chip.drive((1, 1), (0, 0), *OPEN, (0, 1), (0, 0))  # a client that changes one line after the other
    time.sleep(0.15)
    assert chip.seen == []


class Lines:
    """A port's lines, wired to a chip: every write acts at once. It remembers a wrong state, as pyserial may."""

    def __init__(self, chip, dtr, rts):
        vars(self).update(chip=chip, state={"dtr": dtr, "rts": rts})
        chip.drive((dtr, rts))
        chip.seen.clear()

    dtr = rts = property(lambda self: False, lambda self, value: None)

    def __setattr__(self, name, value):
        self.state[name] = value
        self.chip.drive((self.state["dtr"], self.state["rts"]))


@pytest.mark.parametrize(("before", "after"), list(itertools.product(EVERY, EVERY)))
def test_lines_that_change_pull_en_only_if_they_end_so(before, after):
    lines = Lines(Chip(), *before)
    drive_lines(lines, *after)
    assert lines.state == {"dtr": after[0], "rts": after[1]}
    assert ("held" in lines.chip.seen) == (after == (False, True) != before)


@pytest.mark.parametrize("before", EVERY)
def test_a_hard_reset_works_from_any_state(before):
    lines = Lines(Chip(), *before)
    begun = time.monotonic()
    hard_reset(lines)
    assert time.monotonic() - begun >= 0.1
    assert lines.chip.seen == (["app"] if before == (False, True) else ["held", "app"])
    assert lines.state == {"dtr": False, "rts": False}


class OpenPort:
    """What a proxy needs of a port, beside its lines."""

    in_waiting = 0
    timeout = None

    def __init__(self, chip):
        self.lines = Lines(chip, True, True)

    def read(self, size):
        time.sleep(0.01)
        return b""

    def close(self):
        pass

    dtr = property(lambda self: True, lambda self, value: setattr(self.lines, "dtr", value))
    rts = property(lambda self: True, lambda self, value: setattr(self.lines, "rts", value))


def test_a_host_that_leaves_a_proxy_resets_nothing_and_a_restart_does():
    chip = Chip()
    proxy = PortProxy(OpenPort(chip))
    try:
        host = proxy.wire.connect(lambda data: None, control_lines=True)
        host.set_lines(True, True)
        host.set_lines(False, False)
        assert chip.seen == []
        host.set_lines(True, True)
        proxy.restart("reset")
        assert chip.seen == ["held", "app"]
    finally:
        proxy.close()
