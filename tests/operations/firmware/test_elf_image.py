"""Images of ELF files: the bytes of ``esptool elf2image``, and what is refused."""

import contextlib
import hashlib
import struct
from io import BytesIO

import pytest
from elftools.elf.elffile import ELFFile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pytest_esp.errors import FirmwareError, OperationError
from pytest_esp.formats.elf import read_elf
from pytest_esp.operations.firmware.elf_image import FlashSettings, elf_to_image, image_of


def same_as_esptool(esptool, elf, chip, folder, **more):
    ours, theirs = folder / "ours.bin", folder / "theirs.bin"
    result = elf_to_image(
        elf, chip, ours, flash_mode="dio", flash_freq="40m", flash_size="4MB", min_revision=3, max_revision=199
    )
    esptool(
        *("--chip", chip, "elf2image", "--flash-mode", "dio", "--flash-freq", "40m", "--flash-size", "4MB"),
        *("--min-rev-full", 3, "--max-rev-full", 199, "-o", theirs, elf),
    )
    assert ours.read_bytes() == theirs.read_bytes()
    assert (result.size, result.sha256) == (ours.stat().st_size, hashlib.sha256(ours.read_bytes()).hexdigest())
    assert result.warnings == ()


def test_the_bytes_are_those_of_esptool(esptool, elf_file, chip, tmp_path):
    same_as_esptool(esptool, elf_file, chip, tmp_path)


def test_the_bytes_are_those_of_esptool_for_apps_of_esp_idf(esptool, real_elf, chip, tmp_path):
    same_as_esptool(esptool, real_elf, chip, tmp_path)


def test_an_image_lies_beside_its_elf_file_and_overwrites_nothing(elf_file, chip, tmp_path):
    copy = tmp_path / "app.elf"
    copy.write_bytes(elf_file.read_bytes())
    result = elf_to_image(copy, chip)
    assert result.output_file == tmp_path / "app.bin"
    before = result.output_file.read_bytes()
    with pytest.raises(OperationError, match="exists already") as caught:
        elf_to_image(copy, chip, flash_size="4MB")
    assert caught.value.attempted == "firmware-elf-to-image"
    assert result.output_file.read_bytes() == before
    elf_to_image(copy, chip, flash_size="4MB", overwrite=True)
    assert result.output_file.read_bytes() != before


@pytest.mark.parametrize(
    ("made_for", "wanted", "words", "hint"),
    [
        ("esp32", "esp32c3", "xtensa code, but the esp32c3 is riscv", "esp32"),
        ("esp32c3", "esp32", "riscv code, but the esp32 is xtensa", "esp32c3"),
        ("esp32", "esp32s3", "entry point 0x4008040c is outside the memory of the esp32s3", "esp32"),
        ("esp32c3", "esp32c6", "is outside the memory of the esp32c6", "esp32c3"),
        ("esp32c3", "esp32p4", r"\.data, \.bss not in any memory of the esp32p4", "esp32c3"),
    ],
)
def test_an_elf_file_of_another_chip(build_of, tmp_path, made_for, wanted, words, hint):
    with pytest.raises(FirmwareError, match=words) as caught:
        elf_to_image(build_of(made_for) / "pytest_esp_test.elf", wanted, tmp_path / "x.bin")
    assert hint in caught.value.hint.split(", ")[0] or hint in caught.value.hint
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "words", "hint"),
    [
        ({"chip_type": "esp33"}, "no chip 'esp33'", "esp32"),
        ({"flash_size": "3MB"}, "no flash size '3MB'", "4MB"),
        ({"flash_freq": "81m"}, "no flash frequency '81m'", "80m"),
        ({"flash_mode": "dual"}, "no flash mode 'dual'", "dio"),
        ({"min_revision": -1}, "invalid revision -1", "100"),
        ({"max_revision": 70000}, "invalid revision 70000", "100"),
        ({"min_revision": 301, "max_revision": 300}, "no chip has a revision from 301 to 300", "lower"),
    ],
)
def test_settings_that_do_not_exist(build_of, tmp_path, arguments, words, hint):
    with pytest.raises(OperationError, match=words) as caught:
        elf_to_image(
            build_of("esp32") / "pytest_esp_test.elf",
            **{"chip_type": "esp32", "output_file": tmp_path / "x.bin"} | arguments,
        )
    assert hint in caught.value.hint


def test_what_is_no_elf_file(tmp_path, build_of):
    for content, words in [
        (b"", "is empty"),
        (b"\xe9 an image", "is not an ELF file"),
        (b"\x7fELF", "is damaged"),
        (amd64(build_of("esp32") / "pytest_esp_test.elf"), "for another processor: X86_64"),
    ]:
        (tmp_path / "x.elf").write_bytes(content)
        with pytest.raises(FirmwareError, match=words):
            elf_to_image(tmp_path / "x.elf", "esp32")
    with pytest.raises(FirmwareError, match="cannot be read"):
        elf_to_image(tmp_path / "missing.elf", "esp32")
    with pytest.raises(FirmwareError, match="not a regular file"):
        elf_to_image(tmp_path, "esp32")


def amd64(path):
    data = bytearray(path.read_bytes())
    struct.pack_into("<H", data, 18, 62)
    return bytes(data)


def test_an_object_file_has_nothing_to_load(build_of, tmp_path):
    """As an object file has: every section at address 0."""
    data = bytearray((build_of("esp32") / "pytest_esp_test.elf").read_bytes())
    for number in range(ELFFile(BytesIO(data)).num_sections()):
        struct.pack_into("<I", data, struct.unpack_from("<I", data, 32)[0] + 40 * number + 12, 0)
    (tmp_path / "x.elf").write_bytes(data)
    with pytest.raises(FirmwareError, match="nothing to load"):
        elf_to_image(tmp_path / "x.elf", "esp32")


def test_an_elf_file_that_is_cut_anywhere(elf_file, chip, elf_boundaries, tmp_path):
    data, cut = elf_file.read_bytes(), tmp_path / "cut.elf"
    for length in elf_boundaries(elf_file):
        cut.write_bytes(data[:length])
        with pytest.raises(FirmwareError):
            elf_to_image(cut, chip)
    assert [path.name for path in tmp_path.iterdir()] == ["cut.elf"]


def test_an_elf_file_of_esp_idf_that_is_cut(real_elf, chip, elf_boundaries, tmp_path):
    data, cut = real_elf.read_bytes(), tmp_path / "cut.elf"
    for length in elf_boundaries(real_elf)[54::7]:
        cut.write_bytes(data[:length])
        with pytest.raises(FirmwareError):
            elf_to_image(cut, chip)


def test_content_that_is_not_there_is_no_zeros(build_of, tmp_path):
    """For a section cut off by the end of the file, esptool would make an image of the rest."""
    data = bytearray((build_of("esp32c3") / "pytest_esp_test.elf").read_bytes())
    (table,) = struct.unpack_from("<I", data, 32)
    struct.pack_into("<I", data, table + 3 * 40 + 20, len(data))  # the size of .text
    (tmp_path / "x.elf").write_bytes(data)
    with pytest.raises(FirmwareError, match=r"is truncated: section 3 \(\.text\) needs"):
        elf_to_image(tmp_path / "x.elf", "esp32c3")


@given(flips=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 7)), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_flipped_bits_give_an_image_or_a_clear_error(elf_file, chip, tmp_path, flips):
    """Where an ELF file's structure is: its header, its segments, its sections' headers and names."""
    data = bytearray(elf_file.read_bytes())
    places = [*range(52 + 3 * 32), *range(len(data) - 16 * 40 - 0xA4, len(data))]
    for where, bit in flips:
        data[places[int(where * (len(places) - 1))]] ^= 1 << bit
    (tmp_path / "flipped.elf").write_bytes(data)
    with contextlib.suppress(FirmwareError):  # any other error fails the test
        elf = read_elf(tmp_path / "flipped.elf")
        image, _ = image_of(elf, chip, FlashSettings())
        assert image[0] == 0xE9
        assert elf.symbols is not None
