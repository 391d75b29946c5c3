"""A simulated chip and the port of a host at it, for the tests of this room."""

import contextlib

import pytest
from esptool.targets import CHIP_DEFS

from pytest_esp.sim.chip import SimChip
from pytest_esp.wire.port import VirtualPort


class Bench:
    """Makes chips with a host's port; all are closed in the end."""

    def __init__(self, stack):
        self._stack = stack

    def chip(self, name, **settings):
        chip = SimChip(name, **settings)
        self._stack.callback(chip.close)
        chip.reset(bootloader=True)
        return chip

    def port(self, chip):
        port = VirtualPort(chip.wire, f"sim:{chip.chip}")
        port.open()
        self._stack.callback(port.close)
        port.timeout = 0.05
        return port

    def esptool(self, chip, *, stub=False):
        """Return esptool's loader, connected; its chatter goes to pytest's capture."""
        esp = CHIP_DEFS[chip.chip](self.port(chip))
        esp.connect("no-reset")
        return esp.run_stub() if stub else esp

    def raw(self, chip):
        return RawHost(self.port(chip))


class RawHost:
    """Talks to a loader packet by packet, and looks at every byte of the answers."""

    def __init__(self, port):
        self.port = port

    def send(self, data):
        self.port.reset_input_buffer()
        self.port.write(data)
        return self.port.read(self.port.in_waiting)


@pytest.fixture
def bench():
    with contextlib.ExitStack() as stack:
        yield Bench(stack)
