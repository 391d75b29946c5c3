"""What a file is: reports and flashing say the same, and only what belongs somewhere is written there.

The files are made by esptool from the test firmware and from real builds, or by hand where no tool is at hand.
"""

import json
import shutil
import struct
from pathlib import Path

import pytest
from esptool import cmds
from esptool.targets import CHIP_DEFS

from pytest_esp.errors import FirmwareError
from pytest_esp.formats.file_kinds import look
from pytest_esp.formats.firmware import Firmware
from pytest_esp.formats.partition_table import from_csv
from pytest_esp.operations.firmware.image_report import analyze

CSV = """
nvs,     data, nvs,   0x9000,  0x5000
otadata, data, ota,   0xe000,  0x2000
first,   app,  ota_0, 0x20000, 512K
second,  app,  ota_1, ,        512K
"""
UF2 = struct.Struct("<8I476sI")


@pytest.fixture(params=["esp32c3", "esp32"])
def chip(request):
    return request.param


@pytest.fixture
def idf(build_of, chip):
    return build_of(chip)


@pytest.fixture
def start(chip):
    """The address of the bootloader."""
    return CHIP_DEFS[chip].BOOTLOADER_FLASH_OFFSET


def app_of(idf):
    return idf / "pytest_esp_test.bin"


def parts_of(idf):
    files = json.loads((idf / "flasher_args.json").read_text())["flash_files"]
    return [(int(address, 0), str(idf / name)) for address, name in files.items()]


def uf2_of(data, base, size=256):
    """A UF2 file as Microsoft's uf2conv.py makes it."""
    chunks = [data[at : at + size] for at in range(0, len(data), size)]
    return b"".join(
        UF2.pack(
            0x0A324655, 0x9E5D5157, 0x2000, base + number * size, size, number, len(chunks), 0x1C5F21B0,
            chunk.ljust(476, b"\0"), 0x0AB16F30,
        )
        for number, chunk in enumerate(chunks)
    )  # fmt: skip


def addresses(firmware):
    return {region.address: region.size for region in firmware.regions}


@pytest.fixture
def prepared(esp_of, idf, chip, start):
    """A board with bootloader and table, and what it has below its app partitions."""
    esp = esp_of(chip)
    esp.flash.write([(start, idf / "bootloader" / "bootloader.bin"), (0x8000, from_csv(CSV))])
    return esp, esp.flash.read(0, 0x20000).data


# -- UF2 and Intel HEX


def test_a_uf2_file_of_an_app_from_address_0(prepared, idf, tmp_path):
    """As uf2conv.py makes it for TinyUF2, whose addresses are relative to the slot."""
    path = tmp_path / "app.uf2"
    path.write_bytes(uf2_of(app_of(idf).read_bytes(), 0))
    firmware = Firmware.open(path)
    assert firmware.needs_slot
    assert (analyze(path).kind, analyze(path).address) == ("app", None)
    esp, before = prepared
    (written,) = esp.flash.write(path).regions
    assert written.address == 0x20000
    assert esp.flash.read(0, 0x20000).data == before
    assert "Loaded app from partition at offset 0x20000" in esp.chip.reset("app").output


def test_a_uf2_file_of_an_app_with_its_address_keeps_it(idf, tmp_path):
    path = tmp_path / "app.uf2"
    path.write_bytes(uf2_of(app_of(idf).read_bytes(), 0x30000))
    firmware = Firmware.open(path)
    assert (min(addresses(firmware)), firmware.needs_slot) == (0x30000, False)


@pytest.mark.parametrize("base", [0x1000, 0x8000, 0x9000, 0x11000])
def test_a_uf2_file_of_an_app_where_none_can_start(prepared, idf, tmp_path, base):
    path = tmp_path / "app.uf2"
    path.write_bytes(uf2_of(app_of(idf).read_bytes(), base))
    esp, before = prepared
    with pytest.raises(FirmwareError, match=f"has an app at {base:#x}, where no app partition can begin"):
        esp.flash.write(path)
    assert esp.flash.read(0, 0x20000).data == before


@pytest.mark.parametrize("base", [0, 0x1000, 0x2000])
def test_a_uf2_file_of_a_whole_flash_from_another_address(capsys, idf, chip, start, tmp_path, base):
    """A merged image that begins with the bootloader: it is right for the bootloader's address only."""
    merged = cmds.merge_bin(parts_of(idf), chip, target_offset=start)
    (tmp_path / "all.uf2").write_bytes(uf2_of(merged, base))
    if base == start:
        assert min(addresses(Firmware.open(tmp_path / "all.uf2"))) == start
        return
    with pytest.raises(FirmwareError, match=f"its bootloader is at {base:#x}, but the .* starts it from {start:#x}"):
        Firmware.open(tmp_path / "all.uf2")
    assert any("its bootloader is at" in problem for problem in analyze(tmp_path / "all.uf2").problems)


@pytest.mark.parametrize("form", ["uf2", "hex"])
def test_files_of_esptool_itself(capsys, idf, chip, start, tmp_path, form):
    path = tmp_path / f"all.{form}"
    cmds.merge_bin(parts_of(idf), chip, output=str(path), format=form)
    firmware = Firmware.open(path)
    assert (min(addresses(firmware)), firmware.chip, firmware.needs_slot) == (start, chip, False)
    assert analyze(path).problems == ()


# -- merged images


@pytest.mark.parametrize("from_bootloader", [True, False])
def test_a_merged_image_and_its_first_address(esp_of, capsys, idf, chip, start, tmp_path, from_bootloader):
    base = start if from_bootloader else 0
    path = tmp_path / "merged.bin"
    cmds.merge_bin(parts_of(idf), chip, output=str(path), target_offset=base)
    report = analyze(path)
    assert (report.kind, report.address, report.problems) == ("merged", base, ())
    firmware = Firmware.open(path)
    assert (list(addresses(firmware)), firmware.chip, firmware.needs_slot) == ([base], chip, False)
    assert firmware.app.project == "pytest_esp_test"
    esp = esp_of(chip)
    esp.flash.write(path)
    assert "Project name:     pytest_esp_test" in esp.chip.reset("app").output


def test_a_merged_image_of_table_and_app(idf, chip, capsys, tmp_path):
    parts = [part for part in parts_of(idf) if part[0] >= 0x8000]
    cmds.merge_bin(parts, chip, output=str(tmp_path / "update.bin"), target_offset=0x8000)
    assert list(addresses(Firmware.open(tmp_path / "update.bin"))) == [0x8000]
    assert analyze(tmp_path / "update.bin").address == 0x8000


@pytest.mark.parametrize("build", ["hello_world_esp32", "hello_world_esp32c3", "unit_test_esp32", "panic_esp32c3"])
def test_merged_images_of_real_builds(firmware_folder, capsys, build, tmp_path):
    folder = firmware_folder / build
    chip = build.rpartition("_")[2]
    start = CHIP_DEFS[chip].BOOTLOADER_FLASH_OFFSET
    cmds.merge_bin(parts_of(folder), chip, output=str(tmp_path / "all.bin"), target_offset=start)
    assert list(addresses(Firmware.open(tmp_path / "all.bin"))) == [start]


def test_a_merged_image_whose_parts_do_not_fit(idf, chip, capsys, tmp_path):
    """The app is not where the table has an app partition."""
    (tmp_path / "table.bin").write_bytes(from_csv("nvs,data,nvs,0x9000,0x5000\nfirst,app,factory,0x90000,256K"))
    parts = [(address, str(tmp_path / "table.bin") if address == 0x8000 else name) for address, name in parts_of(idf)]
    cmds.merge_bin(parts, chip, output=str(tmp_path / "all.bin"))
    with pytest.raises(FirmwareError, match="its parts are not where its bootloader and its partition table look"):
        Firmware.open(tmp_path / "all.bin")
    assert "its parts are not where" in " ".join(analyze(tmp_path / "all.bin").problems)


# -- what has no place


def test_a_bootloader_alone(firmware_folder, idf, start, chip, tmp_path):
    """Those of old versions of ESP-IDF have no descriptor."""
    old = firmware_folder / f"hello_world_{chip}" / "bootloader" / "bootloader.bin"
    marked = bytearray((idf / "bootloader" / "bootloader.bin").read_bytes())
    marked[0x20] = 0x50
    (tmp_path / "new.bin").write_bytes(marked)
    for path, words in ((old, "bootloader"), (tmp_path / "new.bin", "is a bootloader")):
        with pytest.raises(FirmwareError, match=f"needs an address: it .*{words}") as caught:
            Firmware.open(path)
        assert f"write it to {start:#x}" in caught.value.hint
        assert analyze(path).kind in ("bootloader", "image")
        assert analyze(path).address == start


def littlefs():
    return struct.pack("<II", 1, 0xF0000FF7) + b"littlefs" + bytes(4096 - 16)


def fat():
    return (b"\xeb\xfe\x90MSDOS5.0" + struct.pack("<HBHBHH", 4096, 1, 1, 1, 512, 256)).ljust(510, b"\0") + b"\x55\xaa"


def spiffs(blocks=16):
    data = bytearray(b"\xff" * 4096 * blocks)
    for block in range(blocks):
        data[block * 4096 + 252 : block * 4096 + 254] = struct.pack(
            "<H", (0x20140529 ^ 256 ^ (blocks - block)) & 0xFFFF
        )
    return bytes(data)


@pytest.mark.parametrize(("make", "name"), [(littlefs, "LittleFS"), (fat, "FAT"), (spiffs, "SPIFFS")])
def test_a_file_system(make, name, tmp_path):
    (tmp_path / "storage.bin").write_bytes(make())
    with pytest.raises(FirmwareError, match=f"needs an address: it is a {name} file system") as caught:
        Firmware.open(tmp_path / "storage.bin")
    assert "address of its partition" in caught.value.hint
    report = analyze(tmp_path / "storage.bin")
    assert (report.kind, report.address, report.images, report.problems) == ("file-system", None, (), ())


def test_a_partition_table(idf):
    table = idf / "partition_table" / "partition-table.bin"
    with pytest.raises(FirmwareError, match="needs an address: it is a partition table") as caught:
        Firmware.open(table)
    assert "usually 0x8000" in caught.value.hint


def test_files_that_end_too_early(idf, chip, capsys, start, tmp_path):
    """At any byte: an image that is cut is never written."""
    whole = app_of(idf).read_bytes()
    path = tmp_path / "cut.bin"
    for size in (25, 32, 33, 200, 288, 289, 4096, len(whole) // 2, len(whole) - 33, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(FirmwareError, match=r"is truncated|needs an address"):
            Firmware.open(path)
    for size in range(25):
        path.write_bytes(whole[:size])
        with pytest.raises(FirmwareError):
            Firmware.open(path)
    merged = cmds.merge_bin(parts_of(idf), chip, target_offset=start)
    path.write_bytes(merged[:-100])
    with pytest.raises(FirmwareError, match="is truncated: its image at"):
        Firmware.open(path)


def test_an_image_with_the_padding_or_signature_of_its_tools_is_whole(idf, tmp_path):
    whole = app_of(idf).read_bytes()
    for tail in (b"", b"\xff" * 3000, bytes(100), (b"\xe7\x02" + bytes(1214)).rjust(4096, b"\xff")):
        (tmp_path / "app.bin").write_bytes(whole + tail)
        assert Firmware.open(tmp_path / "app.bin").needs_slot


def test_an_app_without_a_descriptor_is_known_by_its_segments(firmware_folder, chip, tmp_path):
    data = bytearray((firmware_folder / f"hello_world_{chip}" / "hello_world.bin").read_bytes())
    data[0x20:0x24] = bytes(4)
    assert look(bytes(data)).kind == "app"
    Path(tmp_path / "app.bin").write_bytes(data)
    assert Firmware.open(tmp_path / "app.bin").needs_slot


# -- the header's flash settings


@pytest.mark.parametrize("size", ["detect", "2MB", "keep"])
def test_the_header_is_what_esptool_writes(esp_of, idf, chip, start, tmp_path, capsys, size):
    """`esptool write-flash --flash-size detect` on a board with 4 MB; the listing's settings go into the bootloader."""
    build = Path(shutil.copytree(idf, tmp_path / "build"))
    listing = build / "flasher_args.json"
    content = json.loads(listing.read_text())
    content["flash_settings"] = {"flash_mode": "dout", "flash_size": size, "flash_freq": "keep"}
    content["write_flash_args"] = ["--flash_mode", "dout", "--flash_size", size, "--flash_freq", "keep"]
    listing.write_text(json.dumps(content))
    image = (build / "bootloader" / "bootloader.bin").read_bytes()
    wanted = cmds._update_image_flash_params(
        CHIP_DEFS[chip], start, "keep", "dout", "4MB" if size == "detect" else size, image
    )
    assert wanted != image
    esp = esp_of(chip)
    esp.flash.write(build)
    assert esp.flash.read(start, len(wanted)).data == wanted
    assert esp.flash.verify(build).matches
    assert "pytest_esp_test" in esp.chip.reset("app").output
