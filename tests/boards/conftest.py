"""QEMU boards for the tests of boards, and a labgrid lab."""

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from filelock import FileLock

from pytest_esp.formats.nor_flash import NorFlash
from pytest_esp.rack.labgrid_protocol import Connection
from pytest_esp.sim.chip import SimChip
from pytest_esp.wire.endpoints import serve
from pytest_esp.wire.reset import SLOW_HOST_RISE_TIME

ROOT = Path(__file__).parents[2]
LABGRID = "26.0.1"


@pytest.fixture
def qemu_esp(need_qemu, make_esp):
    """Make a QEMU machine: a function from chip and further keys of boards.toml to the operations on it."""

    def make(chip, **keys):
        need_qemu(chip)
        return make_esp(**{"backend": "qemu", "chip": chip, "flash_size": "2MB", **keys})

    return make


@pytest.fixture(scope="session")
def labgrid_programs():
    """The folder of labgrid's programs, in an environment of their own: the package does not go with pyserial."""
    spec = importlib.util.spec_from_file_location("peer", ROOT / "benchmarks" / "side_by_side" / "peer.py")
    peer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(peer)
    folder = ROOT / ".bench" / f"labgrid-{LABGRID}"
    folder.parent.mkdir(exist_ok=True)
    with FileLock(f"{folder}.lock"):  # xdist's workers make it once
        try:
            return peer.environment(folder, [f"labgrid=={LABGRID}"]).parent
        except (OSError, subprocess.SubprocessError) as error:
            pytest.skip(f"labgrid {LABGRID} cannot be installed: {error}")


class Lab:
    """A labgrid lab on this machine: a coordinator, and an exporter of the ports of simulated chips."""

    def __init__(self, programs, folder):
        self.programs = programs
        self.folder = folder
        self.address = ""
        self.processes = {}
        self.chips = {}
        self.endpoints = {}
        self.exporter_options = ()
        folder.mkdir()

    def add_chip(self, place, chip="esp32c3", tags=(), protocol="rfc2217"):
        """Start a simulated chip whose port will be the one of a *place*."""
        # Its reset circuit is slow, as for other programs: no reset goes amiss on a busy machine.
        sim = SimChip(chip, flash=NorFlash(2 * 1024 * 1024), rise_time=SLOW_HOST_RISE_TIME)
        sim.reset(bootloader=True)
        self.chips[place] = sim
        scheme = "socket" if protocol == "raw" else protocol
        self.endpoints[place] = (serve(sim.wire, f"{scheme}://127.0.0.1:0"), protocol, {"chip": chip, **dict(tags)})

    def start(self):
        """Start coordinator and exporter."""
        places = {
            place: {
                "aliases": [], "comment": "", "tags": tags, "created": 1.0, "changed": 1.0,
                "matches": [{"exporter": "rack1", "group": place, "cls": "*", "name": None, "rename": None}],
            }
            for place, (_, _, tags) in self.endpoints.items()
        }  # fmt: skip
        (self.folder / "places.yaml").write_text(json.dumps(places))
        self.start_coordinator()
        self.start_exporter()
        return self

    def start_coordinator(self):
        """Start the coordinator, at the address that it has had."""
        line = self.run("coordinator", "labgrid-coordinator", "-l", self.address or "127.0.0.1:0", ready="listening on")
        self.address = line.split()[-1]

    def start_exporter(self, *options):
        """Start the exporter of all ports."""
        groups = {}
        for place, (endpoint, protocol, _) in self.endpoints.items():
            port = {"cls": "NetworkSerialPort", "host": "127.0.0.1", "port": int(endpoint.url.rpartition(":")[2])}
            groups[place] = {"serial": port | {"protocol": protocol}}
        (self.folder / "exporter.yaml").write_text(json.dumps(groups))
        self.exporter_options = options
        options = ("-c", self.address, "--hostname", "127.0.0.1", "-n", "rack1", *options, "exporter.yaml")
        self.run("exporter", "labgrid-exporter", *options, ready="Exporter ready")
        with contextlib.closing(Connection(self.address, "far/observer", lambda: None)) as observer:
            deadline = time.monotonic() + 10
            while len(observer.resources) < len(groups):  # it is ready before they are
                assert time.monotonic() < deadline
                time.sleep(0.01)

    def run(self, name, program, *arguments, ready):
        """Start a program and return the line with which it is ready."""
        log = self.folder / f"{name}.log"
        with log.open("wb") as out:
            self.processes[name] = process = subprocess.Popen(
                [self.programs / program, *arguments],
                cwd=self.folder,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
            )
        deadline = time.monotonic() + 30
        while True:
            found = [line for line in log.read_text(errors="replace").splitlines() if ready in line]
            if found:
                return found[-1]
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"{program} does not start: {log.read_text(errors='replace')}")
            time.sleep(0.02)

    def stop(self, name, how=signal.SIGKILL):
        """End a program."""
        process = self.processes.pop(name)
        process.send_signal(how)
        process.wait(15)

    def client(self, *arguments, user="alice", host="far"):
        """Do what somebody else does in the lab, with labgrid's own client; return what it says."""
        result = subprocess.run(
            [self.programs / "labgrid-client", "-x", self.address, *arguments],
            env=os.environ | {"LG_USERNAME": user, "LG_HOSTNAME": host},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    def owner(self, place):
        """Who has acquired a place, by what the coordinator says; None if nobody has."""
        with contextlib.closing(Connection(self.address, "far/observer", lambda: None)) as observer:
            return observer.places[place].owner or None

    def tidy(self):
        """Bring everything into the state that it starts with."""
        if "coordinator" not in self.processes:
            self.start_coordinator()
        if self.exporter_options and "exporter" in self.processes:
            self.stop("exporter")
        if "exporter" not in self.processes:
            self.start_exporter()
        with contextlib.closing(Connection(self.address, "far/observer", lambda: None)) as observer:
            for place in observer.places.values():
                if place.owner:
                    observer.release(place.name, place.owner)

    def write_rack(self, text, name="boards.toml"):
        """Write a rack file: `LAB` in *text* is the coordinator."""
        file = self.folder / name
        file.write_text(text.replace("LAB", f'backend = "labgrid"\ncoordinator = "{self.address}"'))
        return file

    def close(self):
        """Stop everything."""
        for name in list(self.processes):
            self.stop(name)
        for endpoint, _, _ in self.endpoints.values():
            endpoint.close()
        for chip in self.chips.values():
            chip.close()


@pytest.fixture(scope="module")
def whole_lab(labgrid_programs, tmp_path_factory):
    """A lab with places alike, `near` and `far`, one that is reached without control lines, and some more."""
    lab = Lab(labgrid_programs, tmp_path_factory.mktemp("lab") / "here")
    lab.add_chip("near", tags={"desk": "left"})
    lab.add_chip("far")
    lab.add_chip("plain", chip="esp32", protocol="raw")
    for number in range(4):
        lab.add_chip(f"spare{number}", chip="esp32")
    try:
        yield lab.start()
    finally:
        lab.close()


@pytest.fixture
def lab(whole_lab, tmp_path, monkeypatch):
    """The lab of `whole_lab`, with everything in it at its start."""
    monkeypatch.setenv("PYTEST_ESP_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("PYTEST_ESP_LOCK_DIR", str(tmp_path / "locks"))
    whole_lab.tidy()
    return whole_lab
