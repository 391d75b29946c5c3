"""The test firmware on two kinds of board, behind the same port.

One is the program itself on QEMU, the other its stand-in on a simulated chip. Both have the same MAC address and
revision, and start from equal flashes.
"""

import contextlib
import json
import re
import time
from pathlib import Path

import pytest

from pytest_esp.errors import BackendError
from pytest_esp.formats.nor_flash import NorFlash
from pytest_esp.qemu.find import find
from pytest_esp.qemu.machine import QemuMachine
from pytest_esp.qemu.machines import machine_for
from pytest_esp.sim.app import load_app
from pytest_esp.sim.chip import SimChip
from pytest_esp.wire.port import VirtualPort

FOLDER = Path(__file__).parent
FLASH_SIZE = 2 * 1024 * 1024
MAC = bytes.fromhex("7cdfa1c0ffee")
REVISIONS = {"esp32": 0, "esp32c3": 3}  # major * 100 + minor
TIMEOUT = 30.0

_BOOT_OF_ROM = re.compile(r"(?:ESP-ROM:|ets J).*?(?=I \(\d+\) boot: Partition Table:)", re.DOTALL)
_SEGMENT_OR_LOADER = re.compile(
    r"^I \(\d+\) (?:esp_image: segment|boot: Disabling RNG|main_task: Started).*\n", re.MULTILINE
)
_FALLBACK = r"I \1 boot: the factory image\n"
_NO_ADDRESS = re.compile(r"\b0x00[0-9a-f]{6}\b")


class Dialogue:
    """Says something to a board, and reads the answer.

    Attributes:
        board: has ``reset(bootloader)``.
        flash_now: stops the board, and returns what its flash holds.
    """

    def __init__(self, port, board):
        self.board = board
        self.flash_now = None
        self._port = port
        self._received = ""

    def until(self, end):
        """Return what comes up to and with *end*."""
        deadline = time.monotonic() + TIMEOUT
        while end not in self._received:
            assert time.monotonic() < deadline, f"no {end!r} in {self._received!r}"
            self._received += self._port.read(self._port.in_waiting or 1).decode("latin-1")
        answer, _, self._received = self._received.partition(end)
        return answer + end

    def say(self, text, end):
        """Send *text*, and return what comes up to and with *end*."""
        self._port.write(text.encode("latin-1"))
        return self.until(end)

    def say_and_listen(self, text, seconds):
        """Send *text*, and return what comes within some seconds."""
        self._port.write(text.encode("latin-1"))
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._received += self._port.read(self._port.in_waiting or 1).decode("latin-1")
        answer, self._received = self._received, ""
        return answer


def _essence(text):
    text = re.sub(r"\x1b\[[0-9;]*m", "", text).replace("\r\n", "\n")
    text = _NO_ADDRESS.sub("0x00......", text)  # times lie about on the stack and in registers
    text = _SEGMENT_OR_LOADER.sub("", _BOOT_OF_ROM.sub("", text))
    # ESP-IDF's bootloader says the first if all entries were refused, our loader the second.
    text = re.sub(r"I (\(\d+\)) boot: Defaulting to factory image\n", _FALLBACK, text)
    text = re.sub(r"E (\(\d+\)) boot: ota data partition invalid, falling back to factory\n", _FALLBACK, text)
    return re.sub(
        r"Test ran in \d+ms", "Test ran in 0ms", re.sub(r"^([IWE]) \(\d+\)", r"\1 (0)", text, flags=re.MULTILINE)
    )


class Boards:
    """Makes boards; all are closed in the end."""

    def __init__(self, stack, tmp_path):
        self._stack = stack
        self._tmp_path = tmp_path

    def real(self, chip, flash):
        """The program on QEMU, from a copy of *flash*."""
        machine = machine_for(chip)
        try:
            qemu = find(machine.architecture, machine.name)
        except BackendError as error:
            pytest.skip(f"no QEMU for {chip}: {error}")
        flash_file, efuse_file = self._tmp_path / f"{chip}-flash.bin", self._tmp_path / f"{chip}-efuse.bin"
        flash_file.write_bytes(flash)
        efuse_file.write_bytes(_efuses(chip, machine.efuse_size))
        board = QemuMachine(qemu, machine, flash=flash_file, efuse=efuse_file, log=self._tmp_path / f"{chip}-qemu.log")
        self._stack.callback(board.stop)
        dialogue = self._started(board, chip)

        def flash_now():
            board.stop()
            return flash_file.read_bytes()

        dialogue.flash_now = flash_now
        return dialogue

    def simulated(self, chip, flash):
        """The stand-in on a simulated chip, from a copy of *flash*."""
        memory = NorFlash(FLASH_SIZE)
        memory.program(0, flash)
        app = load_app("app:TestFirmware")
        board = SimChip(chip, flash=memory, mac=MAC.hex(":"), revision=REVISIONS[chip], app=app, rollback=True)
        self._stack.callback(board.close)
        dialogue = self._started(board, chip)
        dialogue.flash_now = lambda: memory.read(0, FLASH_SIZE)
        return dialogue

    def _started(self, board, chip):
        port = VirtualPort(board.wire, chip)
        port.open()
        self._stack.callback(port.close)
        port.timeout = 0.05
        board.reset(bootloader=False)
        return Dialogue(port, board)


def _flash_with_firmware(chip):
    folder = FOLDER / "build" / chip
    flash = bytearray(b"\xff" * FLASH_SIZE)
    listing = json.loads((folder / "flasher_args.json").read_text(encoding="utf-8"))
    assert listing["extra_esptool_args"]["chip"] == chip
    for offset, name in listing["flash_files"].items():
        data = (folder / name).read_bytes()
        flash[int(offset, 0) : int(offset, 0) + len(data)] = data
    return flash


def _efuses(chip, size):
    """Return an eFuse file of QEMU with the MAC address, and revision 0.3 of an ESP32-C3."""
    data = bytearray(size)
    address = 4 if chip == "esp32" else 24
    data[address : address + 6] = MAC[::-1]
    if chip == "esp32c3":
        data[38] = REVISIONS[chip] << 2
    return bytes(data)


@pytest.fixture(params=["esp32c3", "esp32"])
def chip(request):
    return request.param


@pytest.fixture
def firmware_flash(chip):
    """What the flash holds after the build folder was written to it; a bytearray."""
    return _flash_with_firmware(chip)


@pytest.fixture
def essence():
    """A function that takes out of a text what must differ: times, and what ROM and loader say about themselves."""
    return _essence


@pytest.fixture
def boards(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    with contextlib.ExitStack() as stack:
        yield Boards(stack, tmp_path)
