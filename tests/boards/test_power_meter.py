"""Power meters: the simulated one, and a PPK2, whose own library talks to a model of it on a pty."""

import os
import struct
import threading
import time

import pytest

from pytest_esp.boards.power_meter import meter_of
from pytest_esp.errors import BackendError, PortError
from pytest_esp.rack.spec import PowerMeterSpec

pty = pytest.importorskip("pty", reason="ptys are for POSIX")

RESISTOR = 10.15  # ohms, of the range that the model measures in
ADC = 8000  # what the model shows
AMPERES = 4 * ADC * (1.8 / 163840) / RESISTOR


LENGTHS = {0x0C: 2, 0x0D: 3, 0x11: 2}  # of commands with arguments


class FakePpk2:
    """Answers as a PPK2 does: metadata when asked, samples while it measures."""

    def __init__(self, metadata=True):
        self.master, slave = pty.openpty()
        self.port = os.ttyname(slave)
        self._slave = slave
        self._metadata = metadata
        self.commands = []
        self._measures = self._ends = False
        self._threads = [threading.Thread(target=target, daemon=True) for target in (self._listen, self._send)]
        for thread in self._threads:
            thread.start()

    def _listen(self):
        pending = b""
        while not self._ends:
            try:
                pending += os.read(self.master, 64)
            except OSError:
                return
            while pending and len(pending) >= LENGTHS.get(pending[0], 1):
                size = LENGTHS.get(pending[0], 1)
                command, pending = pending[:size], pending[size:]
                self.commands.append(command)
                if command == b"\x19" and self._metadata:
                    os.write(self.master, self._calibration())
                self._measures = {b"\x06": True, b"\x07": False}.get(command, self._measures)

    def _send(self):
        sample = struct.pack("<I", ADC | 2 << 14)
        while not self._ends:
            if self._measures:
                os.write(self.master, sample * 100)
            time.sleep(0.001)

    @staticmethod
    def _calibration():
        rows = ["Calibrated: 1"]
        resistors = {2: RESISTOR}
        for number in range(5):
            values = {"R": resistors.get(number, 100.0), "GS": 0, "GI": 1, "O": 0, "S": 0, "I": 0, "UG": 1}
            rows += [f"{name}{number}: {value}" for name, value in values.items()]
        return "\n".join([*rows, "HW: 9173", "IA: 59", "END"]).encode()

    def close(self):
        self._ends = True
        os.close(self._slave)
        for thread in self._threads:
            thread.join(1)
        os.close(self.master)


@pytest.fixture
def ppk2():
    pytest.importorskip("ppk2_api", reason="the extra ppk2 is not installed")
    devices = []

    def make(**options):
        devices.append(FakePpk2(**options))
        return devices[-1]

    yield make
    for device in devices:
        device.close()


def meter(**keys):
    return meter_of(PowerMeterSpec(**keys), "board")


def test_the_simulated_meter_shows_its_levels():
    with meter(driver="sim", options={"levels_ma": [10, 0.01], "level_seconds": 0.02}) as one:
        current = one.measure(0.08)
    assert current.seconds == pytest.approx(0.08)
    assert sorted(set(current.amperes)) == [0.00001, 0.01]
    assert current.amperes.count(0.01) == current.amperes.count(0.00001) == 40


@pytest.mark.parametrize("mode", ["ampere", "source"])
def test_a_ppk2(ppk2, mode):
    device = ppk2()
    with meter(driver="ppk2", port=device.port, mode=mode, voltage_mv=3000) as one:
        current = one.measure(0.3)
        assert one.volts == 3.0
    assert len(current.amperes) > 1000
    assert sum(current.amperes) / len(current.amperes) == pytest.approx(AMPERES, rel=0.01)
    assert current.seconds == pytest.approx(0.3, abs=0.2)
    assert bytes([0x11, {"ampere": 1, "source": 2}[mode]]) in device.commands
    assert b"\x0c\x01" in device.commands  # the board has its supply
    deadline = time.monotonic() + 2
    while device.commands[-1] != b"\x07" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert device.commands[-1] == b"\x07"


def test_what_is_no_ppk2(ppk2):
    silent = ppk2(metadata=False).port
    with pytest.raises(BackendError, match="no response from a PPK2"), meter(driver="ppk2", port=silent):
        pass


def test_a_port_that_is_not_there(ppk2):
    with pytest.raises(PortError, match="cannot open"), meter(driver="ppk2", port="/dev/no-such-port"):
        pass
    with pytest.raises(BackendError, match="needs a port"), meter(driver="ppk2"):
        pass


def test_wrong_kinds_and_options():
    with pytest.raises(BackendError, match="unknown power meter driver 'ppk'") as caught:
        meter(driver="ppk")
    assert "ppk2" in caught.value.hint
    with pytest.raises(BackendError, match="levels_ma"), meter(driver="sim", options={"levels_ma": "much"}):
        pass
