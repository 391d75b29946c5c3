"""``pytest-esp sim`` and ``qemu`` in separate processes, and the tools that talk to them."""

import subprocess
import sys
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent


@pytest.fixture
def serve(start_serving):
    return start_serving


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
