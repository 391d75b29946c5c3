"""What is in a flash."""

import random
from xml.etree import ElementTree

import pytest

from pytest_esp.formats.partition_table import from_csv


@pytest.mark.parametrize("chip", ["esp32", "esp32c3"])
def test_a_real_build(esp_of, build_of, chip):
    esp = esp_of(chip)
    esp.flash.write(build_of(chip))
    esp.flash.write(b"stray", 0x3FF000)
    found = esp.flash.analyze()
    uses = {region.name: region for region in found.regions}
    assert uses["bootloader"].kind == "bootloader"
    assert uses["factory"].type == "app"
    size = (build_of(chip) / "pytest_esp_test.bin").stat().st_size
    assert uses["factory"].used_sectors == -(-size // 4096)
    assert uses["factory"].used_sectors + uses["factory"].erased_sectors == uses["factory"].size // 4096
    assert uses["nvs"].entropy is None
    assert 4 < uses["factory"].entropy < 8
    assert found.regions[-1].kind == "gap"
    assert found.regions[-1].used_sectors == 1
    assert found.used_sectors + found.erased_sectors == 1024
    assert sum(region.used_sectors for region in found.regions) == found.used_sectors
    boot, app = found.images
    assert (boot.region, boot.chip, boot.problem, boot.app) == ("bootloader", chip, None, None)
    assert (app.region, app.size, app.problem) == ("factory", size, None)
    assert app.app == esp.partitions.app().app
    assert app.app.project == "pytest_esp_test"


def test_a_damaged_image_is_called_so(esp_of, build_of):
    esp = esp_of("esp32c3")
    esp.flash.write(build_of("esp32c3"))
    esp.link.board.simulated.flash.flip(0x10000 + 5000)
    (_, app) = esp.flash.analyze().images
    assert app.size is None
    assert "Checksum failed" in app.problem


def test_entropy(esp_of):
    esp = esp_of("small")
    esp.flash.write([(0x10000, bytes(4096)), (0x20000, random.Random(1).randbytes(0x10000))])
    (region,) = esp.flash.analyze().regions
    assert 7 < region.entropy < 8
    esp.flash.erase(0x20000, "64K")
    assert esp.flash.analyze().entropy == 0


def test_only_what_is_used_is_read(esp_of):
    esp = esp_of("esp32c3")
    esp.flash.write(b"x", 0x200000)
    esp.flash.analyze()
    reads = []
    with esp.link.session.use("watching") as loader:
        original = loader.read_flash
        loader.read_flash = lambda *arguments: reads.append(arguments[:2]) or original(*arguments)
    esp.flash.analyze()
    del loader.read_flash
    assert [read for read in reads if read[1] == 0x10000] == [(0x200000, 0x10000)]


def test_the_map_is_a_picture_of_it(esp_of):
    esp = esp_of("esp32c3")
    csv = "nvs, data, nvs, 0x9000, 0x4000\nfactory, app, factory, 0x10000, 1M\n"
    esp.flash.write([(0x8000, from_csv(csv)), (0x10000, b"x" * 8192)])
    root = ElementTree.fromstring(esp.flash.analyze().map)
    namespace = {"s": "http://www.w3.org/2000/svg"}
    titles = [title.text for title in root.findall(".//s:title", namespace)]
    assert "factory: 0x10000, used" in titles
    assert "nvs: 0x9000, erased" in titles
    assert any("factory" in text.text and "1 % used" in text.text for text in root.findall("s:text", namespace))
    cells = [rect for rect in root.findall("s:rect", namespace) if rect.find("s:title", namespace) is not None]
    assert sum(int(rect.get("width")) + 1 for rect in cells) == 1024 * 10


def test_names_that_are_no_xml(esp_of):
    from pytest_esp.operations.flash.flash_map import draw
    from pytest_esp.operations.flash.layout import Span

    root = ElementTree.fromstring(draw([Span('<a&"\x01>', "partition", 0, 0x4000)], [True, False, True, True]))
    assert '<a&"?>: 0x0, used' in [title.text for title in root.iter("{http://www.w3.org/2000/svg}title")]


def test_an_esp8266(esp_of):
    """Its images have neither chip nor hash."""
    import struct

    body = b"\x11" * 64
    image = struct.pack("<BBBBI", 0xE9, 1, 0, 0x40, 0x40100000) + struct.pack("<II", 0x40100000, 64) + body
    checksum = 0xEF
    for byte in body:
        checksum ^= byte
    image = image.ljust(-(-(len(image) + 1) // 16) * 16 - 1, b"\0") + bytes([checksum])
    esp = esp_of("esp8266")
    esp.flash.write(image, 0)
    (found,) = esp.flash.analyze().images
    assert (found.address, found.chip, found.size, found.problem) == (0, "esp8266", len(image), None)
