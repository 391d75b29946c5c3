"""``pytest-esp sim`` and ``qemu`` in processes of their own, and the tools that talk to them."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent


class Served:
    """A virtual board in a process of its own.

    Attributes:
        ready: what it printed when it was ready.
    """

    def __init__(self, *arguments, **settings):
        self.process = subprocess.Popen(
            [BIN / "pytest-esp", *map(str, arguments), "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **settings,
        )
        line = self.process.stdout.readline()
        if not line:
            raise AssertionError(self.process.stderr.read())
        self.ready = json.loads(line)

    def url(self, scheme):
        return next(url for url in self.ready["endpoints"] if url.startswith(scheme)).removeprefix("pty:")

    def stop(self, number=signal.SIGTERM):
        """End it, and return its exit code; it says nothing on stderr."""
        self.process.send_signal(number)
        _, err = self.process.communicate(timeout=10)
        assert err == ""
        return self.process.returncode


@pytest.fixture
def serve():
    """A function that starts ``pytest-esp`` with the given arguments and waits until it serves."""
    running = []

    def start(*arguments, **settings):
        running.append(Served(*arguments, **settings))
        return running[-1]

    yield start
    for served in running:
        if served.process.poll() is None:
            served.process.kill()
        served.process.communicate()


@pytest.fixture
def tool():
    """A function that runs esptool, espefuse or pytest-esp, and returns what it prints."""

    def run(name, *arguments):
        result = subprocess.run(
            [BIN / name, *map(str, arguments)], capture_output=True, text=True, timeout=100, check=False
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    return run
