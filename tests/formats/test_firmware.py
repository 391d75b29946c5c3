"""Builds as they lie in folders, opened and flashed. The images are those of the test firmware (tests/firmware)."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from esptool.targets import CHIP_DEFS

from pytest_esp.errors import FirmwareError
from pytest_esp.formats.firmware import Firmware, load
from pytest_esp.formats.flash_settings import FlashSettings
from pytest_esp.formats.partition_table import from_csv

OTA_CSV = """
nvs,     data, nvs,   0x9000,  0x5000
otadata, data, ota,   0xe000,  0x2000
first,   app,  ota_0, 0x20000, 512K
second,  app,  ota_1, ,        512K
"""
CHIPS = ["esp32c3", "esp32"]


@pytest.fixture(params=CHIPS)
def chip(request):
    return request.param


@pytest.fixture
def idf(build_of, chip):
    return build_of(chip)


def parts_of(idf):
    """Bootloader, partition table, app and ELF of the test firmware."""
    return (
        idf / "bootloader" / "bootloader.bin",
        idf / "partition_table" / "partition-table.bin",
        idf / "pytest_esp_test.bin",
        idf / "pytest_esp_test.elf",
    )


def addresses(firmware):
    return {region.address: Path(region.source).name for region in firmware.regions}


def copy(pairs):
    for source, target in pairs:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def merged_of(idf):
    """All of a build as one image for address 0."""
    files = json.loads((idf / "flasher_args.json").read_text())["flash_files"]
    whole = bytearray(b"\xff" * 0x20000)
    for offset, name in files.items():
        data = (idf / name).read_bytes()
        whole[int(offset, 0) : int(offset, 0) + len(data)] = data
    return bytes(whole)


# -- ESP-IDF


def test_a_build_folder_of_esp_idf(idf, chip):
    firmware = Firmware.open(idf)
    bootloader = CHIP_DEFS[chip].BOOTLOADER_FLASH_OFFSET
    assert addresses(firmware) == {
        bootloader: "bootloader.bin",
        0x8000: "partition-table.bin",
        0x10000: "pytest_esp_test.bin",
    }
    assert (firmware.chip, firmware.path, firmware.needs_slot) == (chip, idf, False)
    assert (firmware.app.project, firmware.app.version) == ("pytest_esp_test", "1.0.0")
    assert firmware.name == "pytest_esp_test 1.0.0"


def test_its_elf_is_known_by_its_hash(idf):
    firmware = Firmware.open(idf)
    assert firmware.elf == idf / "pytest_esp_test.elf"
    assert firmware.elf_problem is None
    assert firmware.identity == firmware.app.elf_sha256 == hashlib.sha256(firmware.elf.read_bytes()).hexdigest()


def test_an_elf_of_another_build_is_not_used(idf, tmp_path):
    build = Path(shutil.copytree(idf, tmp_path / "build"))
    with (build / "pytest_esp_test.elf").open("ab") as elf:
        elf.write(b"changed")
    firmware = Firmware.open(build)
    assert firmware.elf is None
    assert f"has {firmware.app.elf_sha256[:9]}; build the project again" in firmware.elf_problem


def test_project_description_names_the_elf(idf, tmp_path):
    """Beside others, such as a coprocessor's."""
    build = Path(shutil.copytree(idf, tmp_path / "build"))
    (build / "ulp.elf").write_bytes(b"\x7fELF of a coprocessor")
    assert Firmware.open(build).elf is None
    (build / "project_description.json").write_text(json.dumps({"app_elf": "pytest_esp_test.elf"}))
    assert Firmware.open(build).elf == build / "pytest_esp_test.elf"


@pytest.mark.parametrize("name", ["panic_esp32c3", "coredump_uart_esp32", "unit_test_esp32", "hello_world_esp32c3"])
def test_real_builds(firmware_folder, name):
    firmware = Firmware.open(firmware_folder / name)
    assert firmware.chip in name
    assert firmware.app.project in ("hello_world", "unit_test_app_idf", "unit_test_app")
    assert firmware.app.idf_version.startswith("v")
    has_elf = bool(list((firmware_folder / name).glob("*.elf")))
    assert (firmware.elf is not None, firmware.elf_problem) == (has_elf, None)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is damaged"),
        ("[]", "expected a JSON object"),
        ("{}", "is damaged"),
        ('{"flash_files": 7}', "is damaged"),
        ('{"flash_files": {"0x10000": 7}}', "is damaged"),
        ('{"flash_files": {"here": "app.bin"}}', "is damaged"),
        ('{"flash_files": {}, "app": {"offset": []}}', "is damaged"),
        ('{"flash_files": {}, "app": {"offset": true}}', "is damaged"),
        ('{"flash_files": {}, "extra_esptool_args": {"chip": 7}}', "is damaged"),
        ('{"flash_files": {}, "flash_settings": []}', "nothing to write"),
        ('{"flash_files": {}, "write_flash_args": 7}', "is damaged"),
        ('{"flash_files": {}, "write_flash_args": ["--flash_mode"]}', "is damaged"),
        ("[" * 100_000, "is damaged"),
        (b"\xff\xfe{", "is damaged"),
    ],
)
def test_a_damaged_listing(tmp_path, content, words):
    (tmp_path / "flasher_args.json").write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(FirmwareError, match=words):
        Firmware.open(tmp_path)


@pytest.mark.parametrize("offset", ["0x10000", 0x10000, "65536"])
def test_a_listing_with_a_byte_order_mark_and_numbers(idf, chip, tmp_path, offset):
    build = Path(shutil.copytree(idf, tmp_path / "build"))
    listing = build / "flasher_args.json"
    content = json.loads(listing.read_text())
    content["app"] = {"offset": offset}
    listing.write_bytes(b"\xef\xbb\xbf" + json.dumps(content).encode())
    assert Firmware.open(build).app.project == "pytest_esp_test"


def test_a_build_that_is_not_complete(tmp_path):
    (tmp_path / "flasher_args.json").write_text(json.dumps({"flash_files": {"0x10000": "app.bin"}}))
    with pytest.raises(FirmwareError, match=r"app\.bin cannot be read: No such file"):
        Firmware.open(tmp_path)


# -- Arduino


@pytest.fixture
def sketch(idf, tmp_path):
    """A build folder of Arduino with a table for updates over the air, as Arduino's are."""
    bootloader, _, app, elf = parts_of(idf)
    folder = tmp_path / "sketch" / "build" / "esp32.esp32.some_board"
    copy(
        [
            (app, folder / "sketch.ino.bin"),
            (bootloader, folder / "sketch.ino.bootloader.bin"),
            (elf, folder / "sketch.ino.elf"),
        ]
    )
    (folder / "sketch.ino.partitions.bin").write_bytes(from_csv(OTA_CSV))
    return folder


def test_a_build_of_arduino(sketch, chip):
    firmware = Firmware.open(sketch)
    bootloader = CHIP_DEFS[chip].BOOTLOADER_FLASH_OFFSET
    assert addresses(firmware) == {
        bootloader: "sketch.ino.bootloader.bin",
        0x8000: "sketch.ino.partitions.bin",
        0xE000: "8192 bytes",
        0x20000: "sketch.ino.bin",
    }
    assert (firmware.chip, firmware.elf) == (chip, sketch / "sketch.ino.elf")
    assert firmware.app.project == "pytest_esp_test"


def test_its_otadata_is_that_of_boot_app0_where_there_is_one(sketch):
    (sketch / "boot_app0.bin").write_bytes(b"\x01".ljust(0x2000, b"\xff"))
    assert addresses(Firmware.open(sketch))[0xE000] == "boot_app0.bin"


TINYUF2_CSV = """
nvs,      data, nvs,      0x9000,   20K,
otadata,  data, ota,      0xe000,   8K,
ota_0,    app,  ota_0,    0x10000,  1408K,
ota_1,    app,  ota_1,    0x170000, 1408K,
uf2,      app,  factory,  0x2d0000, 256K,
ffat,     data, fat,      0x310000, 960K,
"""


def test_a_table_of_tinyuf2(esp_of, sketch, chip):
    """The factory partition is TinyUF2's: the app goes to ota_0, and otadata selects it (esptool's boot_app0.bin)."""
    (sketch / "sketch.ino.partitions.bin").write_bytes(from_csv(TINYUF2_CSV))
    firmware = Firmware.open(sketch)
    found = addresses(firmware)
    assert (found[0x10000], found[0xE000]) == ("sketch.ino.bin", "8192 bytes")
    otadata = next(region.data for region in firmware.regions if region.address == 0xE000)
    assert otadata == bytes.fromhex("01000000" + "ff" * 24 + "9a984347").ljust(0x2000, b"\xff")
    esp = esp_of(chip)
    esp.flash.write(firmware)
    assert "Loaded app from partition at offset 0x10000" in esp.chip.reset("app").output


FLASH_ARGS = """--flash-mode dio --flash-freq 40m --flash-size 4MB
{} sketch.ino.bootloader.bin
0x8000 sketch.ino.partitions.bin
0xe000 boot_app0.bin
0x20000 "sketch.ino.bin"
"""


def test_flash_args_of_core_3(sketch, chip):
    bootloader = CHIP_DEFS[chip].BOOTLOADER_FLASH_OFFSET
    (sketch / "flash_args").write_text(FLASH_ARGS.format(hex(bootloader)))
    firmware = Firmware.open(sketch)
    assert addresses(firmware) == {
        bootloader: "sketch.ino.bootloader.bin",
        0x8000: "sketch.ino.partitions.bin",
        0xE000: "8192 bytes",
        0x20000: "sketch.ino.bin",
    }
    assert (firmware.chip, firmware.elf) == (chip, sketch / "sketch.ino.elf")
    assert firmware.settings == FlashSettings("dio", "40m", "4MB")


@pytest.mark.parametrize("content", ["", "--flash-mode", "0x1000", "nowhere a.bin", '0x1000 "a.bin', b"\xff\xfe0"])
def test_damaged_flash_args(sketch, content):
    (sketch / "flash_args").write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(FirmwareError, match="flash_args is damaged"):
        Firmware.open(sketch)


@pytest.mark.parametrize("name", ["sketch.ino.bin", "storage.bin"])
def test_every_file_is_checked_against_its_slot(sketch, chip, name):
    table = from_csv("nvs,data,nvs,0x9000,0x5000\napp,app,factory,0x20000,4K\nstorage,data,fat,0x90000,4K")
    (sketch / "sketch.ino.partitions.bin").write_bytes(table)
    if name == "storage.bin":
        (sketch / "storage.bin").write_bytes(bytes(4097))
        lines = ["0x8000 sketch.ino.partitions.bin", "0x90000 storage.bin"]
        (sketch / "flash_args").write_text("\n".join(lines))
    with pytest.raises(FirmwareError, match=rf"{name} has 0x\w+ bytes, but partition \w+ has only 0x1000"):
        Firmware.open(sketch)


def test_a_sketch_is_found_from_its_own_folder(sketch, chip):
    assert Firmware.open(sketch.parents[1]).path == sketch
    with pytest.raises(FirmwareError, match=f"has no build for esp32h2, only for {chip}"):
        Firmware.open(sketch.parents[1], "esp32h2")


def test_a_merged_image_is_enough(idf, chip, tmp_path):
    (tmp_path / "sketch.ino.merged.bin").write_bytes(merged_of(idf))
    shutil.copyfile(parts_of(idf)[3], tmp_path / "sketch.ino.elf")
    firmware = Firmware.open(tmp_path)
    assert addresses(firmware) == {0: "sketch.ino.merged.bin"}
    assert (firmware.chip, firmware.elf, firmware.needs_slot) == (chip, tmp_path / "sketch.ino.elf", False)


def test_an_earlier_update_does_not_shadow_a_sketch(esp_of, sketch, chip):
    """Its otadata is blank: the first slot boots, whatever was updated before."""
    esp = esp_of(chip)
    esp.flash.write(sketch)
    esp.flash.write([(0xE000, (2).to_bytes(4, "little") + b"\xff" * 20 + b"\xff\xff\xff\xff" + b"\x74\x37\xf6\x55")])
    assert esp.partitions.otadata().active == "second"
    esp.flash.write(Firmware.open(sketch))
    installed = esp.partitions.app()
    assert (installed.slot.name, installed.app) == ("first", Firmware.open(sketch).app)
    assert "Loaded app from partition at offset 0x20000" in esp.chip.reset("app").output


# -- PlatformIO


@pytest.fixture
def project(idf, tmp_path, chip):
    bootloader, table, app, elf = parts_of(idf)
    folder = tmp_path / "project" / ".pio" / "build" / f"{chip}-env"
    copy(
        [
            (app, folder / "firmware.bin"),
            (bootloader, folder / "bootloader.bin"),
            (table, folder / "partitions.bin"),
            (elf, folder / "firmware.elf"),
        ]
    )
    return folder


def test_a_build_of_platformio(project, chip):
    """As PlatformIO uploads it: the app to ota_0, which boot_app0 selects."""
    for path in (project, project.parents[2]):
        firmware = Firmware.open(path, chip)
        assert addresses(firmware) == {
            CHIP_DEFS[chip].BOOTLOADER_FLASH_OFFSET: "bootloader.bin",
            0x8000: "partitions.bin",
            0xE000: "8192 bytes",
            0x50000: "firmware.bin",
        }
        assert (firmware.chip, firmware.elf, firmware.path) == (chip, project / "firmware.elf", project)


def test_a_build_of_platformio_boots(esp_of, project, chip):
    esp = esp_of(chip)
    esp.flash.write(project)
    assert esp.partitions.otadata().active == "ota_0"
    assert "Loaded app from partition at offset 0x50000" in esp.chip.reset("app").output


def test_platformio_with_esp_idf(project, idf, chip):
    """Its listing decides where the files go, but names images that PlatformIO makes itself; it has two ELF files."""
    (project / "bootloader.elf").write_bytes(b"\x7fELF")
    bootloader = hex(CHIP_DEFS[chip].BOOTLOADER_FLASH_OFFSET)
    (project / "ota_data_initial.bin").write_bytes(b"\xff" * 0x2000)
    files = {
        bootloader: "bootloader/bootloader.bin",
        "0x10000": "project.bin",
        "0xb000": "partition_table/partition-table.bin",
        "0xe000": "ota_data_initial.bin",
    }
    listing = {
        "flash_settings": {"flash_mode": "dio", "flash_size": "detect", "flash_freq": "40m"},
        "flash_files": files,
        "app": {"offset": "0x10000", "file": "project.bin"},
        "extra_esptool_args": {"chip": chip},
    }
    (project / "flasher_args.json").write_text(json.dumps(listing))
    firmware = Firmware.open(project)
    assert addresses(firmware) == {
        int(bootloader, 0): "bootloader.bin",
        0xB000: "partitions.bin",
        0xE000: "ota_data_initial.bin",
        0x10000: "firmware.bin",
    }
    assert (firmware.elf, firmware.chip, firmware.settings.size) == (project / "firmware.elf", chip, "detect")


def test_idedata_decides(project, chip):
    """PlatformIO's own listing, with paths of the machine that made it."""
    images = [
        {"offset": hex(CHIP_DEFS[chip].BOOTLOADER_FLASH_OFFSET), "path": f"/home/them/{project.name}/bootloader.bin"},
        {"offset": "0xb000", "path": "C:\\them\\partitions.bin"},
        {"offset": "0xf000", "path": "/home/them/.platformio/packages/framework/tools/partitions/boot_app0.bin"},
    ]
    extra = {"flash_images": images, "application_offset": "0x20000"}
    (project / "idedata.json").write_text(json.dumps({"env_name": project.name, "extra": extra}))
    assert addresses(Firmware.open(project)) == {
        CHIP_DEFS[chip].BOOTLOADER_FLASH_OFFSET: "bootloader.bin",
        0xB000: "partitions.bin",
        0xF000: "8192 bytes",
        0x20000: "firmware.bin",
    }
    (project / "idedata.json").write_text(json.dumps({"extra": {}}))  # of a version that lists no images
    assert 0x8000 in addresses(Firmware.open(project))


@pytest.mark.parametrize("place", ["sdkconfig.{}", "sdkconfig", ".pio/build/{}/sdkconfig"])
def test_the_table_is_where_sdkconfig_says(project, place):
    root = project.parents[2]
    (root / place.format(project.name)).write_text("# CONFIG_X is not set\nCONFIG_PARTITION_TABLE_OFFSET=0xb000\n")
    assert addresses(Firmware.open(project))[0xB000] == "partitions.bin"


def test_a_damaged_partition_table(project):
    table = project / "partitions.bin"
    table.write_bytes(b"\0" * 100)
    with pytest.raises(FirmwareError, match=r"partitions\.bin: the partition table is damaged"):
        Firmware.open(project)
    table.write_bytes(from_csv("nvs, data, nvs, 0x9000, 0x5000"))
    with pytest.raises(FirmwareError, match="has no app partition"):
        Firmware.open(project)


# -- single images


def test_an_app_alone_goes_where_the_board_looks_for_it(esp_of, idf, chip):
    esp = esp_of(chip)
    bootloader, _, app, _ = parts_of(idf)
    esp.flash.write([(CHIP_DEFS[chip].BOOTLOADER_FLASH_OFFSET, bootloader), (0x8000, from_csv(OTA_CSV))])
    firmware = Firmware.open(app)
    assert (firmware.needs_slot, firmware.chip, firmware.app.project) == (True, chip, "pytest_esp_test")
    assert firmware.elf == app.with_suffix(".elf")
    (written,) = esp.flash.write(firmware).regions
    assert written.address == 0x20000
    assert esp.flash.verify(app).matches
    assert esp.partitions.app().app == firmware.app
    assert "Loaded app from partition at offset 0x20000" in esp.chip.reset("app").output


def test_an_app_alone_on_a_blank_board_goes_to_the_usual_place(esp_of, idf, chip):
    (written,) = esp_of(chip).flash.write(parts_of(idf)[2]).regions
    assert written.address == 0x10000


def test_an_app_that_is_too_large_for_its_partition(esp_of, idf, chip):
    esp = esp_of(chip)
    esp.flash.write([(0x8000, from_csv("app, app, factory, 0x10000, 4K"))])
    with pytest.raises(FirmwareError, match=r"but partition app has only 0x1000"):
        esp.flash.write(parts_of(idf)[2])


def test_a_merged_image(esp_of, idf, chip, tmp_path):
    path = tmp_path / "factory.bin"
    path.write_bytes(merged_of(idf))
    firmware = Firmware.open(path)
    assert (addresses(firmware), firmware.chip) == ({0: "factory.bin"}, chip)
    assert firmware.app == Firmware.open(idf).app
    esp = esp_of(chip)
    esp.flash.write(path)
    assert "Project name:     pytest_esp_test" in esp.chip.reset("app").output


def test_what_is_no_firmware(idf, tmp_path, build_of):
    data = tmp_path / "data.bin"
    data.write_bytes(b"data" * 100)
    _, table, _, elf = parts_of(idf)
    c3_bootloader = parts_of(build_of("esp32c3"))[0]
    shutil.copyfile(elf, tmp_path / "alone.elf")
    for path, words in (
        (data, "needs an address: it is neither an app image nor a whole flash"),
        (table, "needs an address"),
        (tmp_path / "nowhere", "does not exist"),
        (tmp_path / "alone.elf", "is an ELF file, which cannot be flashed"),
        (tmp_path, r"alone\.elf is an ELF file, which cannot be flashed, and there is no image"),
        ("x" * 5000, "does not exist"),
        ("nul\0byte", "does not exist"),
    ):
        with pytest.raises(FirmwareError, match=words):
            Firmware.open(path)
    marked = bytearray(c3_bootloader.read_bytes())
    marked[0x20] = 0x50  # what ESP-IDF's own bootloaders have there
    data.write_bytes(marked)
    with pytest.raises(FirmwareError, match="is a bootloader") as caught:
        Firmware.open(data)
    assert "write it to 0x0" in caught.value.hint
    (tmp_path / "alone.elf").unlink()
    with pytest.raises(FirmwareError, match="does not contain a build"):
        Firmware.open(tmp_path)


def test_a_build_for_the_esp8266(esp_of, tmp_path):
    """Its images name no chip; they are known by where they go in memory."""
    # The header of its eboot: one segment of 0x568 bytes for 0x4010F000.
    image = bytes.fromhex("e901024020f41040 00f0104068050000") + bytes(range(256)) * 16
    (tmp_path / "firmware.bin").write_bytes(image)
    (tmp_path / "firmware.elf").write_bytes(b"\x7fELF")
    for path in (tmp_path, tmp_path / "firmware.bin"):
        firmware = Firmware.open(path, "esp8266")
        assert (addresses(firmware), firmware.chip, firmware.app) == ({0: "firmware.bin"}, "esp8266", None)
        assert firmware.elf == tmp_path / "firmware.elf"
    assert esp_of("esp8266").flash.write(tmp_path).verified
    with pytest.raises(FirmwareError, match="this is a build for esp8266"):
        esp_of("esp32").flash.write(tmp_path)


def test_a_listing_without_a_chip(idf, chip, tmp_path):
    """The images tell it."""
    build = Path(shutil.copytree(idf, tmp_path / "build"))
    listing = build / "flasher_args.json"
    content = json.loads(listing.read_text())
    del content["extra_esptool_args"]
    listing.write_text(json.dumps(content))
    assert Firmware.open(tmp_path, chip).chip == chip


# -- several builds


def test_a_folder_with_a_build_for_each_chip(build_of):
    folder = build_of("esp32").parent
    for chip in CHIPS:
        assert Firmware.open(folder, chip).path == folder / chip
    with pytest.raises(FirmwareError, match="has no build for esp32s3, only for esp32, esp32c3"):
        Firmware.open(folder, "esp32s3")
    with pytest.raises(FirmwareError, match=r"2 matching builds: esp32 \(esp32\), esp32c3 \(esp32c3\)"):
        Firmware.open(folder)


def test_a_build_for_another_chip_can_be_opened_but_not_flashed(esp_of, build_of):
    with pytest.raises(FirmwareError, match="this is a build for esp32, not for the ESP32-C3"):
        esp_of("esp32c3").flash.write(Firmware.open(build_of("esp32")))


# -- identity


def test_builds_without_a_descriptor_are_told_apart_by_their_bytes():
    one, other = load(b"one", 0x1000), load([(0x1000, b"other")])
    assert one.identity == load([("0x1000", b"one")]).identity != other.identity
    assert one.identity != load(b"one", 0x2000).identity
    assert len(one.identity) == 64


def test_an_elf_hash_that_was_left_out_says_nothing(idf, tmp_path):
    """Build tools other than ESP-IDF's may leave zeros there."""
    build = Path(shutil.copytree(idf, tmp_path / "build"))
    app = build / "pytest_esp_test.bin"
    data = bytearray(app.read_bytes())
    data[0xB0:0xD0] = bytes(32)
    app.write_bytes(data)
    firmware = Firmware.open(build)
    assert firmware.identity != Firmware.open(idf).identity
    assert int(firmware.identity, 16)
    assert firmware.elf == build / "pytest_esp_test.elf"
