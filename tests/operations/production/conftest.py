"""What a production line has: a build, a rack, and boards that go wrong."""

from pathlib import Path

import pytest

from pytest_esp.sim.chip import SimChip
from pytest_esp.wire.endpoints import serve
from pytest_esp.wire.faults import Faults
from pytest_esp.wire.reset import SLOW_HOST_RISE_TIME

BUILDS = Path(__file__).parents[2] / "firmware" / "build"


@pytest.fixture
def build():
    return BUILDS / "esp32c3"


@pytest.fixture
def config(build):
    return {"firmware": str(build), "boot": {"wait": 10, "expect": "Calling app_main"}}


@pytest.fixture
def faulty():
    """A function that makes a simulated chip behind a port of its own, with a fault on its wire; returns the port."""
    made = []

    def make(chip="esp32c3", **faults):
        simulated = SimChip(chip, rise_time=SLOW_HOST_RISE_TIME, name=f"faulty-{len(made)}")
        simulated.reset(bootloader=False)
        simulated.wire.faults = Faults(**faults)
        endpoint = serve(simulated.wire, "rfc2217://127.0.0.1:0")
        made.append((endpoint, simulated))
        return endpoint.url

    yield make
    for endpoint, simulated in made:
        endpoint.close()
        simulated.close()
