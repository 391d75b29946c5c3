"""A simulated chip and QEMU's machine of the same chip, made equal: MAC address, revision, eFuses and flash."""

import contextlib
import sys
from pathlib import Path

import pytest

from pytest_esp.boards.registry import make_board
from pytest_esp.link.link import Link
from pytest_esp.operations.esp import Esp
from pytest_esp.qemu.find import why_missing
from pytest_esp.rack.config import load_rack

sys.path.insert(0, str(Path(__file__).parent))  # the tests of this folder share modules

FLASH_SIZE = 2 * 1024 * 1024
MAC = "7c:df:a1:c0:ff:ee"
REVISIONS = {"esp32": 300, "esp32c3": 3, "esp32s3": 2}


class Pair:
    """Two boards that should not be told apart.

    Attributes:
        real: QEMU's; simulated: the simulated one. Both are `Esp`.
    """

    def __init__(self, chip, folder, stack, flash=b""):
        self.chip = chip
        self.real, self.simulated = (self._board(backend, folder, stack, flash) for backend in ("qemu", "sim"))

    def _board(self, backend, folder, stack, flash):
        folder = folder / backend
        folder.mkdir()
        flash_file = folder / "flash.bin"
        flash_file.write_bytes(bytes(flash).ljust(FLASH_SIZE, b"\xff"))
        path = folder / "boards.toml"
        path.write_text(
            f'[boards.{backend}]\nbackend = "{backend}"\nchip = "{self.chip}"\nflash_size = "2MB"\n'
            f'flash_file = "{flash_file.as_posix()}"\nmac = "{MAC}"\nrevision = {REVISIONS[self.chip]}\n'
        )
        rack = load_rack(path)
        return Esp(stack.enter_context(Link(make_board(rack.board(backend), rack))))

    def ask(self, question):
        """Return what both answer to *question*, a function of an `Esp` that returns a dict."""
        return question(self.real), question(self.simulated)


@pytest.fixture
def make_pair(tmp_path, monkeypatch):
    """A function that makes a pair of a chip, from what their flashes hold; both are closed in the end."""
    for name in ("STATE", "LOCK"):
        monkeypatch.setenv(f"PYTEST_ESP_{name}_DIR", str(tmp_path / name.lower()))
    with contextlib.ExitStack() as stack:

        def make(chip, flash=b""):
            if reason := why_missing(chip):
                pytest.skip(reason)
            return Pair(chip, tmp_path, stack, flash)

        yield make


@pytest.fixture(params=["esp32c3", "esp32", "esp32s3"])
def pair(request, make_pair):
    """A pair with blank flashes."""
    return make_pair(request.param)
