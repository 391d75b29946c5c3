"""Tools for firmware files: what they answer, what they refuse."""

import shutil

import pytest


@pytest.fixture
def build(server, build_of):
    """The test firmware's build folder for an ESP32-C3, inside of what the server may use."""
    return shutil.copytree(build_of("esp32c3"), server.folder / "build")


def test_from_elf_file_to_a_board(server, build):
    """Converted, merged, split, flashed, booted."""
    made = server.call(
        "esp_app_prepare", elf_file="build/pytest_esp_test.elf", chip_type="esp32c3", output_file="app.bin"
    )
    assert made["image"]["images"][0]["app"]["project"] == "pytest_esp_test"
    assert (server.folder / "app.bin").read_bytes() == (build / "pytest_esp_test.bin").read_bytes()
    loader = server.call(
        "esp_bootloader_build",
        chip_type="esp32c3",
        config={"image": "build/bootloader/bootloader.bin", "flash_size": "4MB"},
    )
    assert loader["how"] == "adapted"
    assert "not built" in loader["done"]
    files = [
        {"address": f"{loader['offset']:#x}", "path": "bootloader.bin"},
        {"address": "0x8000", "path": "build/partition_table/partition-table.bin"},
        {"address": 0x10000, "path": "app.bin"},
    ]
    merged = server.call("esp_binary_merge", files=files, output_file="all.bin", pad_to_size="1MB")
    assert (merged["chip_type"], merged["format"], merged["size"]) == ("esp32c3", "raw", 0x100000)
    analysis = server.call("esp_firmware_analyze", binary_file="all.bin", chip_type="esp32c3")
    assert (analysis["kind"], analysis["problems"], len(analysis["images"])) == ("merged", [], 2)
    smaller = server.call("esp_binary_optimize", binary_file="all.bin")
    assert smaller["output_dir"] == str(server.folder / "all-parts")
    assert smaller["seconds_saved"] > 1
    assert server.call("esp_flash_firmware", firmware_path="all-parts", port="c3")["verified"]
    read = server.call("esp_flash_read", address=0, size=0x100000, output_file="read.bin", port="c3")
    assert read["size"] == 0x100000
    assert (server.folder / "read.bin").read_bytes() == (server.folder / "all.bin").read_bytes()


def test_an_image_of_an_elf_file(server, build):
    copy = server.folder / "app.elf"
    shutil.copy(build / "pytest_esp_test.elf", copy)
    made = server.call("esp_elf_to_binary", elf_file="app.elf", chip_type="esp32c3", flash_mode="dio", flash_size="2MB")
    assert (made["success"], made["output_file"], made["warnings"]) == (True, str(server.folder / "app.bin"), [])
    assert made["size"] == copy.with_suffix(".bin").stat().st_size


def test_sizes(server, build):
    answer = server.call("esp_size_analysis", elf_file="build/pytest_esp_test.elf", top=3)
    assert answer["chip_type"] == "esp32c3"
    assert [one["name"] for one in answer["memories"]] == ["DRAM", "IRAM"]
    assert [len(answer["symbols"]), answer["archives"], answer["map_file"]] == [3, [], None]


def test_other_formats(server, build):
    for name, format in [("all.hex", "hex"), ("all.uf2", "uf2")]:
        assert server.call("esp_binary_merge", files="build", output_file=name)["format"] == format


def test_a_damaged_image_is_reported(server, build):
    data = bytearray((build / "pytest_esp_test.bin").read_bytes())
    data[3000] ^= 1
    (server.folder / "x.bin").write_bytes(data)
    answer = server.call("esp_firmware_analyze", binary_file="x.bin")
    assert answer["success"]
    assert "Checksum failed" in answer["problems"][0]
    (server.folder / "cut.bin").write_bytes(data[:1000])
    answer = server.call("esp_firmware_analyze", binary_file="cut.bin")
    assert (answer["success"], answer["attempted"]) == (False, "firmware-analyze")
    assert "is damaged" in answer["error"]
    assert answer["hint"]


ELF = {"elf_file": "build/pytest_esp_test.elf", "chip_type": "esp32c3"}
MERGE = {"files": "build", "output_file": "all.bin"}


REFUSED = [
    ("esp_elf_to_binary", ELF, "pytest_esp_test.bin exists already"),
    ("esp_elf_to_binary", ELF | {"chip_type": "esp32", "output_file": "x.bin"}, "is not for the esp32"),
    ("esp_elf_to_binary", ELF | {"chip_type": "esp33", "output_file": "x.bin"}, "no chip 'esp33'"),
    ("esp_elf_to_binary", ELF | {"elf_file": "boards.toml", "output_file": "x.bin"}, "is not an ELF file"),
    ("esp_elf_to_binary", ELF | {"elf_file": "../x.elf"}, "outside the folders"),
    ("esp_elf_to_binary", ELF | {"output_file": "../x.bin"}, "outside the folders"),
    ("esp_elf_to_binary", ELF | {"output_file": "x.bin", "flash_size": "3MB"}, "no flash size"),
    ("esp_app_prepare", ELF, "pytest_esp_test.bin exists already"),
    ("esp_app_prepare", ELF | {"output_file": "x.bin", "partition_table": "../t.csv"}, "outside the folders"),
    ("esp_app_prepare", ELF | {"elf_file": "missing.elf"}, "cannot be read"),
    ("esp_binary_merge", MERGE | {"output_file": "boards.toml"}, "may not be written"),
    ("esp_binary_merge", MERGE | {"output_file": "../all.bin"}, "outside the folders"),
    ("esp_binary_merge", MERGE | {"files": [{"address": 0, "path": "../a.bin"}]}, "outside the folders"),
    ("esp_binary_merge", MERGE | {"files": [{"address": "x", "path": "boards.toml"}]}, "invalid address"),
    ("esp_binary_merge", MERGE | {"files": []}, "nothing to merge"),
    ("esp_binary_merge", MERGE | {"files": "nothing"}, "does not exist"),
    ("esp_binary_merge", MERGE | {"chip_type": "x"}, "no chip 'x'"),
    ("esp_firmware_analyze", {"binary_file": "boards.toml"}, "is not an image"),
    ("esp_firmware_analyze", {"binary_file": "build"}, "not a regular file"),
    ("esp_firmware_analyze", {"binary_file": "../x.bin"}, "outside the folders"),
    ("esp_bootloader_build", {"chip_type": "esp32", "config": {"flash": "4MB"}}, "unknown parameter 'config.flash'"),
    ("esp_bootloader_build", {"chip_type": "esp32", "config": {"image": "../b.bin"}}, "outside the folders"),
    ("esp_bootloader_build", {"chip_type": "esp32", "config": {"flash_size": 4}}, "config.flash_size: Input should be"),
    ("esp_bootloader_build", {"chip_type": "esp32", "config": {"options": ["X"]}}, "config.options: Input should be"),
    ("esp_bootloader_build", {"chip_type": "esp32", "config": {"options": {"X": None}}}, "config.options.X"),
    ("esp_bootloader_build", {"chip_type": "esp32"}, "building a bootloader requires ESP-IDF"),
    ("esp_binary_optimize", {"binary_file": "boards.toml"}, "needs an address"),
    (
        "esp_binary_optimize",
        {"binary_file": "build/pytest_esp_test.bin", "output_dir": ".."},
        "outside the folders",
    ),
    ("esp_binary_optimize", {"binary_file": "build/pytest_esp_test.bin", "output_dir": "."}, "exists already"),
    ("esp_size_analysis", {"elf_file": "boards.toml"}, "is not an ELF file"),
    ("esp_size_analysis", {"elf_file": "build/pytest_esp_test.elf", "map_file": "boards.toml"}, "linker map"),
    ("esp_size_analysis", {"elf_file": "build/pytest_esp_test.elf", "chip_type": "esp32"}, "riscv code"),
]


def test_what_is_refused(server, build, tmp_path, monkeypatch):
    """With the expected error. No file is made or changed."""
    for name in ("IDF_PATH", "ESP_IDF_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    before = sorted(server.folder.rglob("*"))
    for tool, arguments, error in REFUSED:
        answer = server.call(tool, **arguments)
        assert (answer["success"], error in answer["error"]) == (False, True), answer
        assert sorted(server.folder.rglob("*")) == before, tool


def test_the_tools_touch_no_board(server):
    tools = server.list_tools()
    names = set(server.call("esp_list_tools")["components"]["firmware_builder"])
    assert names == {
        "esp_elf_to_binary", "esp_app_prepare", "esp_binary_merge", "esp_firmware_analyze", "esp_bootloader_build",
        "esp_binary_optimize", "esp_size_analysis",
    }  # fmt: skip
    assert not any("port" in tools[name].input_schema["properties"] for name in names)
