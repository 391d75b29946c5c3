"""What a simulated chip prints of a boot is what ESP-IDF's own bootloader and app print on QEMU's machine."""

import json
import re

import pytest

_TIME = re.compile(r"^([IWE]) \(\d+\) ")
_COLOUR = re.compile(r"\x1b\[[\d;]*m")
# What QEMU's machine has otherwise: its strap, and the mode in which its flash is left after the ROM has read it.
_NOT_OURS = re.compile(r"rst:|SPI Mode")
# Not told by the bytes of an image without a bootloader's descriptor (before ESP-IDF 5.1).
_OWN_VERSION = re.compile(r"(ESP-IDF) v\S+ (2nd stage bootloader)")


def lines(esp, folder, wait):
    """Return what is printed from a reset to the app's start, without times."""
    for offset, name in json.loads((folder / "flasher_args.json").read_text())["flash_files"].items():
        esp.flash.write(folder / name, int(offset, 16))
    mark = esp.link.console.mark()
    esp.chip.reset()
    esp.link.console.expect(re.compile(r"Chip rev: .*\n"), wait)
    text, last, _ = _COLOUR.sub("", esp.link.console.text_since(mark)).partition("Chip rev:")
    assert last
    found = [_TIME.sub(r"\1 ", line.strip()) for line in text.splitlines() if line.strip()]
    return [_OWN_VERSION.sub(r"\1 \2", line) for line in found if not _NOT_OURS.search(line)]


@pytest.mark.parametrize("name", ["hello_world_esp32", "hello_world_esp32c3"])
def test_every_line_of_a_simulated_boot_is_printed_by_the_real_one(make_pair, firmware_folder, name):
    pair = make_pair(name.rpartition("_")[2])
    real, simulated = (lines(esp, firmware_folder / name, 20) for esp in (pair.real, pair.simulated))
    assert len(simulated) > 25
    left = iter(real)
    assert [line for line in simulated if line not in left] == []  # and in the same order
