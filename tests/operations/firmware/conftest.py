"""Files that the tests of builders work on, and esptool as a program of its own to compare with."""

import subprocess
import sys
from io import BytesIO

import pytest
from elftools.elf.elffile import ELFFile

REAL_ELFS = {"esp32": "coredump_uart_esp32", "esp32c3": "panic_esp32c3"}


@pytest.fixture
def esptool():
    """A function that runs esptool and returns what it prints."""

    def run(*arguments):
        done = subprocess.run(
            [sys.executable, "-m", "esptool", *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


@pytest.fixture(params=["esp32", "esp32c3"])
def chip(request):
    return request.param


@pytest.fixture
def elf_file(chip, build_of):
    """The ELF file of the test firmware."""
    return build_of(chip) / "pytest_esp_test.elf"


@pytest.fixture
def real_elf(chip, firmware_folder):
    """An ELF file that ESP-IDF made."""
    return firmware_folder / REAL_ELFS[chip] / "hello_world.elf"


@pytest.fixture
def elf_boundaries():
    """A function that returns the lengths of a file at which something in its ELF structure begins or ends."""

    def lengths(path):
        data = path.read_bytes()
        ends = set(range(0, 54)) | {len(data) - 1, len(data) - 39, len(data) - 40, len(data) - 41}
        elf = ELFFile(BytesIO(data))
        for section in elf.iter_sections():
            for place in (section["sh_offset"], section["sh_offset"] + section["sh_size"]):
                ends |= {place - 1, place, place + 1}
        return sorted(end for end in ends if 0 <= end < len(data))

    return lengths
