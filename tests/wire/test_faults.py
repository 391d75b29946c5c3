"""What faults do to bytes, to the port and to the device, by a clock of their own: nothing here waits."""

import dataclasses
import inspect
from collections import Counter

import pytest

from pytest_esp.wire import faults as module
from pytest_esp.wire.faults import Fault, Faults, restart
from pytest_esp.wire.wire import Wire

MANY = 20_000


def near(count):
    """As likely as *count* of `MANY` bytes: six standard deviations."""
    return pytest.approx(count, abs=6 * (count * (1 - count / MANY)) ** 0.5)


class Clock:
    """Time as the faults see it, and the calls that are due."""

    def __init__(self):
        self.now = 1000.0
        self.due = []

    def monotonic(self):
        return self.now

    def call_later(self, delay, call):
        assert delay >= 0
        self.due.append((self.now + delay, call))
        return object()

    def run(self, until):
        """Let time pass until *until* seconds after the start."""
        while self.due and min(self.due, key=lambda one: one[0])[0] <= 1000 + until:
            first = min(self.due, key=lambda one: one[0])
            self.due.remove(first)
            self.now = first[0]
            first[1]()
        self.now = 1000 + until


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(module, "call_later", clock.call_later)
    monkeypatch.setattr("pytest_esp.wire.wire.call_later", clock.call_later)
    return clock


class Device:
    """Notes what it receives, and why it is restarted."""

    def __init__(self):
        self.got = b""
        self.restarts = []
        self.is_in_loader = False

    def receive(self, data):
        self.got += data

    def restart(self, reason):
        self.restarts.append(reason)


class Line:
    """A wire with a device and one host, on which faults are switched on."""

    def __init__(self, faults):
        self.wire = Wire()
        self.wire.device = self.device = Device()
        self.wire.faults = self.faults = faults
        self.heard = b""
        self.losses = []
        self.host = self.wire.connect(self._hear, control_lines=True, on_loss=self.losses.append)

    def _hear(self, data):
        self.heard += data


# -- bytes


def test_what_can_be_switched_on():
    assert repr(Fault()) == (
        "Fault(lose=0.0, corrupt=0.0, double=0.0, cut=0.0, silent_after=None, latency=0.0, seed=0, passed=0)"
    )
    assert repr(Faults()) == (
        f"Faults(to_device={Fault()}, to_host={Fault()}, vanish_after=None, vanish_seconds=None, reset_after=None, "
        "reset_cause='reset', boot_loop=None, sent=0)"
    )
    for kind in (Fault, Faults):
        assert [*inspect.signature(kind).parameters] == [field.name for field in dataclasses.fields(kind) if field.repr]


def test_without_a_fault_everything_comes_through():
    fault = Fault()
    assert fault.passed == 0
    assert fault.apply(bytes(range(256))) == bytes(range(256))
    assert fault.apply(b"") == b""
    assert fault.passed == 256


def test_bytes_are_lost_corrupted_and_doubled_as_often_as_is_said():
    """Of zeros, what is not zero was corrupted; doubled bytes make up for lost ones."""
    count = Counter(Fault(lose=0.2, corrupt=0.3, double=0.1).apply(bytes(MANY)))
    zeros = count.pop(0)
    assert sum(count.values()) == near(0.3 * MANY)
    assert zeros == near(0.6 * MANY)
    assert len(Fault(lose=0.25).apply(bytes(MANY))) == near(0.75 * MANY)
    assert len(Fault(double=0.25).apply(bytes(MANY))) - MANY == near(0.25 * MANY)


def test_a_corrupted_byte_differs_in_one_bit_which_may_be_any():
    spoilt = Fault(corrupt=1.0).apply(b"\x5a" * 1000)
    assert {byte ^ 0x5A for byte in spoilt} == {1 << bit for bit in range(8)}
    assert len(spoilt) == 1000


def test_a_doubled_byte_comes_twice_and_a_lost_one_not_at_all():
    assert Fault(double=1.0).apply(b"abc") == b"aabbcc"
    assert Fault(lose=1.0).apply(b"abc") == b""


def test_a_cut_takes_the_tail_of_a_chunk():
    fault = Fault(cut=1.0)
    kept = {fault.apply(b"abcd") for _ in range(200)}
    assert kept == {b"", b"a", b"ab", b"abc"}
    assert fault.apply(b"") == b""
    sometimes = Fault(cut=0.25)
    assert sum(sometimes.apply(b"abcd") == b"abcd" for _ in range(MANY)) == near(0.75 * MANY)


def test_the_same_seed_brings_the_same_faults():
    def spoilt(**seed):
        return Fault(lose=0.1, corrupt=0.1, double=0.1, **seed).apply(bytes(1000))

    assert spoilt(seed=7) == spoilt(seed=7)
    assert spoilt(seed=7) != spoilt(seed=8)
    assert spoilt() == spoilt(seed=0)


def test_after_so_many_bytes_it_is_silent():
    fault = Fault(silent_after=10)
    assert [fault.apply(chunk) for chunk in (b"abcd", b"efgh", b"ijkl", b"mnop")] == [b"abcd", b"efgh", b"ij", b""]
    assert fault.passed == 10
    assert Fault(silent_after=0).apply(b"abcd") == b""
    assert Fault(silent_after=4, passed=10).apply(b"abcd") == b""


def test_lost_bytes_are_not_counted_as_passed():
    fault = Fault(lose=1.0, silent_after=4)
    fault.apply(b"abcd")
    fault.lose = 0.0
    assert fault.apply(b"efgh") == b"efgh"


# -- latency


def test_every_byte_comes_later_by_the_latency(clock):
    heard, fault = [], Fault(latency=0.5)
    for at in (0.0, 0.2, 0.4):
        clock.run(at)
        fault.carry(f"{at}".encode(), lambda data: heard.append((round(clock.now - 1000, 6), data)))
        assert not heard
    assert len(clock.due) == 1
    clock.run(9)
    assert heard == [(0.5, b"0.0"), (0.7, b"0.2"), (0.9, b"0.4")]
    fault.carry(b"again", lambda data: heard.append((round(clock.now - 1000, 6), data)))
    clock.run(20)
    assert heard[3:] == [(9.5, b"again")]


def test_without_latency_it_comes_at_once_unless_something_is_on_its_way(clock):
    heard, fault = [], Fault()
    fault.carry(b"now", heard.append)
    assert heard == [b"now"]
    fault.latency = 0.5
    fault.carry(b"late", heard.append)
    fault.latency = 0.0
    fault.carry(b"behind", heard.append)
    assert heard == [b"now"]
    clock.run(0.5)
    assert heard == [b"now", b"late", b"behind"]


def test_latency_to_the_device_and_to_the_host(clock):
    line = Line(Faults(to_device=Fault(latency=0.1), to_host=Fault(latency=0.2)))
    line.host.send(b"ping")
    line.wire.transmit(b"pong")
    clock.run(0.15)
    assert (line.device.got, line.heard) == (b"ping", b"")
    line.host.send(b"lost")
    line.wire.device = None  # closed meanwhile
    clock.run(1)
    assert (line.device.got, line.heard) == (b"ping", b"pong")


# -- the port, and resets


@pytest.mark.parametrize("chunk", [1, 4, 5, 7, 20])
def test_the_port_vanishes_after_exactly_so_many_bytes(clock, chunk):
    line = Line(Faults(vanish_after=10))
    sent = bytes(range(20))
    for place in range(0, 20, chunk):
        line.host.send(sent[place : place + chunk])
    assert line.device.got == sent[:10]
    assert line.losses == ["its cable was pulled"]
    clock.run(1000)
    assert line.wire.gone
    assert line.device.restarts == []


def test_the_port_comes_back_and_stays(clock):
    line = Line(Faults(vanish_after=2, vanish_seconds=3.0))
    line.host.send(b"abcd")
    clock.run(2.9)
    assert line.wire.gone
    clock.run(3.0)
    assert line.wire.gone is None
    assert line.faults.sent == 4
    line.host.send(b"efgh")
    assert (line.device.got, line.faults.sent) == (b"abefgh", 8)
    assert len(line.losses) == 1


@pytest.mark.parametrize("chunk", [1, 4, 5, 7, 20])
@pytest.mark.parametrize(
    ("cause", "reason", "words"), [("reset", "POWERON", b""), ("brownout", "BROWNOUT", b"Brownout detector")]
)
def test_the_chip_is_reset_after_exactly_so_many_bytes(cause, reason, words, chunk):
    line = Line(Faults(reset_after=10, reset_cause=cause))
    got = []
    line.device.restart = lambda why: got.append((line.device.got, why))
    sent = bytes(range(20))
    for place in range(0, 20, chunk):
        line.host.send(sent[place : place + chunk])
    assert got == [(sent[:10], reason)]
    assert bool(line.heard) == bool(words)
    assert words in line.heard
    # What comes in the chunk of the reset is lost, and nothing after it.
    assert line.device.got == sent[:10] + sent[(10 // chunk + 1) * chunk :]
    assert line.faults.sent == 20
    assert line.wire.gone is None


def test_a_reset_without_a_device():
    wire = Wire()
    restart(wire, "brownout")
    assert wire.device is None


# -- a boot loop


def test_a_loop_without_a_pause(clock):
    line = Line(Faults(boot_loop=0.0))
    line.wire.transmit(b"boot")
    line.faults.boot_loop = None
    clock.run(0.0)
    assert line.device.restarts == []


def test_the_chip_is_restarted_again_and_again(clock):
    line = Line(Faults(boot_loop=0.5))
    clock.run(10)
    assert line.device.restarts == []  # it has not started yet: nothing was heard
    for _ in range(3):
        line.wire.transmit(b"boot")
    clock.run(10.4)
    assert line.device.restarts == []
    for bites, until in ((1, 10.5), (1, 10.9), (2, 11.0), (3, 11.5)):
        clock.run(until)
        line.wire.transmit(b"boot")
        assert line.device.restarts == ["TG0WDT_SYS_RST"] * bites
    assert len(clock.due) == 1
    assert line.heard == b"boot" * 7


def test_a_loader_is_not_restarted(clock):
    line = Line(Faults(boot_loop=0.5))
    line.wire.transmit(b"boot")
    line.device.is_in_loader = True
    clock.run(5)
    assert line.device.restarts == []
    line.device.is_in_loader = False
    clock.run(5.6)
    assert line.device.restarts == ["TG0WDT_SYS_RST"]


@pytest.mark.parametrize("end", ["other faults", "no faults", "no boot loop", "no device"])
def test_a_boot_loop_ends(clock, end):
    line = Line(Faults(boot_loop=0.5))
    line.wire.transmit(b"boot")
    if end == "other faults":
        line.wire.faults = Faults(boot_loop=0.5)
    elif end == "no faults":
        line.wire.faults = None
    elif end == "no boot loop":
        line.faults.boot_loop = None
    else:
        line.wire.device = None
    clock.run(5)
    assert (line.device.restarts, clock.due) == ([], [])


def test_without_a_boot_loop_nothing_is_due(clock):
    line = Line(Faults())
    for _ in range(3):
        line.wire.transmit(b"boot")
    assert (line.heard, clock.due) == (b"boot" * 3, [])
