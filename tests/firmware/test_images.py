"""The committed images are what the sources say, and what decoders of panics and writers of flash expect."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from esptool.bin_image import LoadFirmwareImage

from pytest_esp.link.symbols import Symbols

FOLDER = Path(__file__).parent
COMPILERS = {
    "esp32c3": ("riscv64-unknown-elf-gcc", "gcc-riscv64-unknown-elf"),
    "esp32": ("xtensa-lx106-elf-gcc", "gcc-xtensa-lx106"),
}
"""And Debian's package of each."""
CRASHED = ["store_through", "pass_null", "crash", "run", "main"]


@pytest.fixture
def build(chip):
    return FOLDER / "build" / chip


@pytest.fixture
def compiler(chip, build):
    """The cross compiler that made the images; any other makes others of the same source."""
    name, package = COMPILERS[chip]
    if shutil.which(name) is None or shutil.which("make") is None:
        pytest.skip(f"{name} and make are not installed (Debian: apt install make {package})")
    version = subprocess.run([name, "-dumpfullversion"], capture_output=True, text=True, check=True).stdout.strip()
    made_by = re.search(rb"GCC: \([^)]*\) (\S+?)\0", (build / "pytest_esp_test.elf").read_bytes())
    if made_by is None or version != made_by[1].decode():
        pytest.skip(f"{name} is {version}; the images were made by {made_by and made_by[1].decode()}")
    return name


@pytest.mark.usefixtures("compiler")
def test_images_are_what_the_sources_say(chip, build, tmp_path):
    subprocess.run(
        [
            "make",
            "-s",
            "-C",
            FOLDER,
            f"PYTHON={sys.executable}",
            f"BUILD={tmp_path}",
            f"OBJECTS={tmp_path}/objects",
            chip,
        ],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    names = sorted(path.relative_to(build) for path in build.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(tmp_path / chip) for path in (tmp_path / chip).rglob("*") if path.is_file())
    for name in names:
        assert (tmp_path / chip / name).read_bytes() == (build / name).read_bytes(), name


def test_esptool_finds_images_valid_and_of_the_chip(chip, build):
    listing = json.loads((build / "flasher_args.json").read_text(encoding="utf-8"))
    for name in (listing["bootloader"]["file"], listing["app"]["file"]):
        image = LoadFirmwareImage(chip, str(build / name))
        assert image.checksum == image.calculate_checksum()
        assert image.stored_digest == image.calc_digest
        assert image.ROM_LOADER.CHIP_NAME.lower().replace("-", "") == chip


def test_the_app_names_its_elf_file(build):
    image = (build / "pytest_esp_test.bin").read_bytes()
    assert image[0xB0:0xD0] == hashlib.sha256((build / "pytest_esp_test.elf").read_bytes()).digest()


def test_nothing_names_the_machine_that_compiled(build):
    for path in build.rglob("*"):
        if path.is_file():
            assert not re.findall(rb"(?<![\w.])(?:/[\w.+-]+){2,}", path.read_bytes()), path


def test_images_are_small(build):
    assert sum(path.stat().st_size for path in build.rglob("*") if path.is_file()) < 64 * 1024


def test_a_recorded_panic_leads_to_the_functions_of_the_elf_file(chip, build):
    symbols = Symbols(build / "pytest_esp_test.elf")
    text = (FOLDER / "panics" / f"{chip}-crash.txt").read_text(encoding="utf-8")
    assert symbols.matches(re.search(r"ELF file SHA256: (\w+)", text)[1])
    if chip == "esp32":
        pcs = [int(pc, 16) for pc in re.findall(r"(0x\w+):0x", text)]
    else:
        registers = {name: int(value, 16) for name, value in re.findall(r"(\S+) *: (0x\w+)", text)}
        words = re.findall(r"^(\w+): (0x.*)$", text.partition("Stack memory:")[2], re.MULTILINE)
        memory = {
            int(begin, 16) + 4 * at: int(word, 16) for begin, line in words for at, word in enumerate(line.split())
        }
        # A return address can be that of the next function; the call before it cannot.
        pcs = [pc - (depth > 0) for depth, (pc, _) in enumerate(symbols.unwind(registers, memory))]
    assert [symbols.locate(pc).function for pc in pcs][: len(CRASHED)] == CRASHED
