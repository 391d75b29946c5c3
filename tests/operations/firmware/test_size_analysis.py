"""What takes room in an app: by its ELF file, and by the linker's map."""

import shutil
import struct
import subprocess

import pytest
from elftools.elf.elffile import ELFFile

from pytest_esp.errors import FirmwareError, OperationError
from pytest_esp.formats.elf import read_elf
from pytest_esp.operations.firmware.size_analysis import size

BINUTILS = {"esp32": "xtensa-lx106-elf", "esp32c3": "riscv64-unknown-elf"}


def sections_of(elf):
    """What pyelftools says of the test firmware's sections: address and size, by name."""
    with elf.open("rb") as file:
        found = {one.name: (one["sh_addr"], one["sh_size"]) for one in ELFFile(file).iter_sections()}
    return {name: found[name] for name in (".data", ".bss", ".text")}


def test_sections_and_memories(build_of):
    elf = build_of("esp32c3") / "pytest_esp_test.elf"
    found, sections = size(elf), sections_of(elf)
    (_, data), (_, bss), (_, text) = sections.values()
    assert (found.chip_type, found.image_size, found.ram_only_size) == ("esp32c3", data + text, bss)
    assert [(one.name, (one.address, one.size), one.in_image) for one in found.sections] == [
        (".data", sections[".data"], True),
        (".bss", sections[".bss"], False),
        (".text", sections[".text"], True),
    ]
    assert [(one.name, one.used) for one in found.memories] == [("DRAM", data + bss), ("IRAM", text)]
    assert found.memories[1].percent == round(100 * text / found.memories[1].size, 1)
    assert "no archives: linker map pytest_esp_test.map not found" in found.notes


@pytest.mark.parametrize(("chip", "shared"), [("esp32", False), ("esp32c3", True)])
def test_where_code_and_data_share_one_memory(build_of, chip, shared):
    """On these chips DRAM and IRAM are two addresses of the same SRAM: neither has its whole window to itself."""
    notes = size(build_of(chip) / "pytest_esp_test.elf").notes
    assert any("DRAM and IRAM are the same memory" in note for note in notes) is shared


def nm(chip, path):
    """Return what ``nm`` says: (size, name), the largest first."""
    program = f"{BINUTILS[chip]}-nm"
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    text = subprocess.run(
        [program, "--print-size", "--size-sort", "-r", path], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    return [(int(line.split()[1], 16), line.split()[3]) for line in text.splitlines()]


def test_the_largest_symbols_are_those_of_nm(elf_file, chip):
    found = [(one.size, one.name) for one in size(elf_file, top=15).symbols]
    expected = nm(chip, elf_file)
    assert [length for length, _ in found] == [length for length, _ in expected[:15]]
    assert set(found) <= set(expected)


def test_the_largest_symbols_of_an_app_of_esp_idf(real_elf, chip):
    result = size(real_elf, top=10)
    assert result.chip_type == chip
    expected = {name: length for length, name in nm(chip, real_elf)}
    assert all(expected[one.name] == one.size for one in result.symbols)
    assert sum(one.used for one in result.memories) == result.image_size + result.ram_only_size
    assert not [one.name for one in result.sections if "dummy" in one.name]


def test_room_that_is_only_kept_free_is_not_used(firmware_folder):
    """ESP-IDF keeps the data addresses of code in RAM free, with a section without content."""
    elf = firmware_folder / "panic_esp32c3" / "hello_world.elf"
    assert ".dram0.dummy" in [one.name for one in read_elf(elf).sections]
    assert next(one for one in size(elf).memories if one.name == "DRAM").used == 0x1360 + 0xE40


def test_the_chip(build_of, tmp_path):
    """By what was given, by the build folder, by the image beside it, or because no other chip has such memory."""
    elf = shutil.copy(build_of("esp32c3") / "pytest_esp_test.elf", tmp_path / "app.elf")
    alone = size(elf)
    assert (alone.chip_type, alone.memories) == (None, ())
    assert "the ELF file fits esp32c3, esp32c2" in alone.notes[0]
    assert size(elf, "esp32c2").chip_type == "esp32c2"
    shutil.copy(build_of("esp32c3") / "pytest_esp_test.bin", tmp_path / "app.bin")
    assert size(elf).chip_type == "esp32c3"
    data = bytearray(elf.read_bytes())
    for number in (1, 2, 3):  # to where only the ESP32-S31 has memory
        struct.pack_into(
            "<I", data, struct.unpack_from("<I", data, 32)[0] + 40 * number + 12, 0x2F000000 + 0x4000 * number
        )
    struct.pack_into("<I", data, 24, 0x2F00C000)
    (tmp_path / "moved.elf").write_bytes(data)
    assert size(tmp_path / "moved.elf").chip_type == "esp32s31"


def write_map(path, elf, target="IDF_TARGET_ESP32C3 = 0x0"):
    """Write a linker map as GNU ld does: half of each section is from an archive, the rest from an object file."""
    lines = ["Memory Configuration", "", "Name             Origin             Length             Attributes"]
    lines += ["iram0_0_seg      0x4037c000 0x00064000 xr", "dram0_0_seg      0x3fc80000 0x00060000 rw"]
    lines += ["*default*        0x00000000 0xffffffff", "", "Linker script and memory map", "", target, ""]
    for one in read_elf(elf).sections:
        half = one.size // 2
        lines.append(f"{one.name:16}0x{one.address:08x} {one.size:#10x}")
        lines.append(f" {one.name}.a        0x{one.address:08x} {half:#10x} esp-idf/log/liblog.a(log.c.obj)")
        lines.append(f" {one.name}.b        0x{one.address + half:08x} {one.size - half:#10x} main.o")
        lines.append("")
    path.write_text("\n".join([*lines, "Cross Reference Table", "", "Symbol      File", "main    main.o", ""]))


def test_archives_by_the_map(build_of, tmp_path):
    elf = shutil.copy(build_of("esp32c3") / "pytest_esp_test.elf", tmp_path / "app.elf")
    write_map(tmp_path / "app.map", elf)
    found = size(elf, "esp32c3")
    assert found.map_file == tmp_path / "app.map"
    sizes = [length for _, length in sections_of(elf).values()]
    half = sum(length // 2 for length in sizes)
    assert {one.name: one.size for one in found.archives} == {
        "esp-idf/log/liblog.a": half,
        "(exe)": sum(sizes) - half,
    }
    assert found.archives[0].memories["DRAM"] + found.archives[0].memories.get("IRAM", 0) == found.archives[0].size
    assert sum(one.used for one in found.memories) == sum(sizes)
    assert found.notes == ()


def test_a_map_without_its_chip(build_of, tmp_path):
    elf = shutil.copy(build_of("esp32c3") / "pytest_esp_test.elf", tmp_path / "app.elf")
    write_map(tmp_path / "app.map", elf, target="")
    assert size(elf, "esp32c3").archives
    with pytest.raises(FirmwareError, match="cannot determine chip target"):
        size(elf)


def test_a_map_of_another_build(build_of, tmp_path):
    elf = shutil.copy(build_of("esp32c3") / "pytest_esp_test.elf", tmp_path / "app.elf")
    write_map(tmp_path / "app.map", elf)
    text = (tmp_path / "app.map").read_text()
    _, length = sections_of(elf)[".text"]
    (tmp_path / "app.map").write_text(text.replace(f"{length:#x}", f"{length - 4:#x}"))
    assert size(elf, "esp32c3").notes == ("app.map is the map of another build: sections .text differ",)


@pytest.mark.parametrize("content", ["", "no map", "Memory Configuration\n\nName Origin\n a b\n"])
def test_a_map_that_is_damaged(build_of, tmp_path, content):
    (tmp_path / "x.map").write_text(content)
    with pytest.raises(FirmwareError, match="linker map"):
        size(build_of("esp32c3") / "pytest_esp_test.elf", map_file=tmp_path / "x.map")


def test_a_map_that_is_cut_anywhere(build_of, tmp_path):
    elf = build_of("esp32c3") / "pytest_esp_test.elf"
    write_map(tmp_path / "whole.map", elf)
    text, cut = (tmp_path / "whole.map").read_text(), tmp_path / "cut.map"
    for length in range(0, len(text), 31):
        cut.write_text(text[:length])
        try:
            assert size(elf, map_file=cut).map_file == cut
        except FirmwareError as error:
            assert "cut.map" in error.message  # noqa: PT017 - both may be


def test_what_is_refused(build_of, tmp_path):
    elf = build_of("esp32") / "pytest_esp_test.elf"
    with pytest.raises(FirmwareError, match="xtensa code"):
        size(elf, "esp32c3")
    with pytest.raises(OperationError, match="no chip 'esp33'"):
        size(elf, "esp33")
    with pytest.raises(OperationError, match="top must be at least 0, not -1"):
        size(elf, top=-1)
    with pytest.raises(FirmwareError, match="cannot be read"):
        size(elf, map_file=tmp_path / "none.map")
