"""A pytest run inside the test, with its own rack."""

import importlib
import os
import pkgutil
import signal
import subprocess
import sys
import textwrap
import time

import pytest

import pytest_esp
from pytest_esp.rack.config import load_rack
from pytest_esp.rack.lease import holder_of

# pytester takes from sys.modules what a run inside a test has imported: each run would import it again, and pydantic
# would not find the module of a class that a later test uses.
for _module in pkgutil.walk_packages(pytest_esp.__path__, "pytest_esp."):
    if not _module.name.startswith("pytest_esp.suites"):
        importlib.import_module(_module.name)

RACK = """
[rack]
name = "bench"

[boards.one-esp32]
backend = "sim"
chip = "esp32"
flash_size = "4MB"

[boards.one-s3]
backend = "sim"
chip = "esp32s3"
flash_size = "8MB"
features = ["psram"]

[boards.c3]
backend = "sim"
chip = "esp32c3"
flash_size = "4MB"
count = 2
"""


# Plugins that other packages bring, and that every run inside a test would have to import.
PLAIN = ("-ra", *(f"-pno:{name}" for name in ("cacheprovider", "hypothesispytest", "anyio", "platformdirs")))


class Project:
    """A folder with a boards.toml and tests, in which pytest is run."""

    def __init__(self, pytester):
        self.pytester = pytester
        self.path = pytester.path
        self.rack_file = self.path / "boards.toml"
        self.processes = []
        self.rack(RACK)

    def rack(self, text):
        self.rack_file.write_text(textwrap.dedent(text))

    def file(self, text, name="test_it"):
        self.pytester.makepyfile(**{name: "import pytest\n" + textwrap.dedent(text)})

    def run(self, *arguments):
        """Run pytest in this process."""
        return self.pytester.runpytest_inprocess(*PLAIN, *arguments)

    def start(self, *arguments):
        """Start pytest in a separate process."""
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", *PLAIN, *arguments],
            cwd=self.path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            # A shell that runs us in the background lets SIGINT be ignored, and children inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - a test has no locks held
        )
        self.processes.append(process)
        return process

    def run_process(self, *arguments):
        process = self.start(*arguments)
        output, _ = process.communicate(timeout=100)
        return process.returncode, output

    def interrupt(self, process):
        """Press Ctrl-C."""
        os.killpg(process.pid, signal.SIGINT)

    def wait_for(self, name, process, timeout=60.0):
        """Wait until a test of *process* has made the file *name*."""
        deadline = time.monotonic() + timeout
        while not (self.path / name).exists():
            assert process.poll() is None, process.stdout.read()
            assert time.monotonic() < deadline, f"{name} did not appear"
            time.sleep(0.01)

    def holders(self):
        """Return who holds boards of the rack."""
        rack = load_rack(self.rack_file)
        return [record for spec in rack.boards.values() if (record := holder_of(spec, rack))]


@pytest.fixture
def project(pytester, monkeypatch):
    monkeypatch.setenv("PYTEST_ESP_LOCK_DIR", str(pytester.path / "locks"))
    monkeypatch.setenv("PYTEST_ESP_STATE_DIR", str(pytester.path / "state"))
    for name in ("PYTEST_ESP_RACK", "PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER"):
        monkeypatch.delenv(name, raising=False)
    made = Project(pytester)
    yield made
    for process in made.processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    assert made.holders() == [], "a run left its lease behind"
