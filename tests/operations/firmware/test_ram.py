"""Programs in RAM, on simulated chips; and the self-test, which runs its machine code on QEMU."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from esptool import cmds

from pytest_esp.errors import FirmwareError, OperationError, RefusedError
from pytest_esp.operations.firmware import ram
from pytest_esp.operations.firmware.ram_image import elf_to_ram_image

SOURCE = Path(ram.__file__).parent / "selftest"
FIRMWARE = Path(__file__).parents[2] / "firmware" / "build"


@pytest.fixture
def board(monkeypatch, make_esp):
    """Make a board of any backend, whose app may be one of the tests'."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    return make_esp


def sim(board, app):
    return board(backend="sim", chip="esp32c3", app=app)


# -- loading


def test_a_program_runs_without_touching_the_flash(board):
    esp = sim(board, "hello")
    before = esp.flash.md5(0, 0x10000)
    assert esp.link.session.is_stub  # which has to make room
    result = esp.chip.load_ram(ram.self_test_image("esp32c3"), until="Hello world!")
    assert (result.output, result.matched) == ("Hello world!\r\n", True)
    assert result.bytes_loaded == sum(segment.size for segment in result.image.segments)
    assert esp.link.board.simulated.mode == "ram-app"
    assert esp.flash.md5(0, 0x10000) == before


def test_what_lies_in_ram_is_what_esptool_finds_in_the_image(board, tmp_path):
    esp = sim(board, "hello")
    data = ram.self_test_image("esp32c3")
    file = tmp_path / "program.bin"
    file.write_bytes(data)
    image = esp.chip.load_ram(file, wait_seconds=0.01).image
    known = cmds.LoadFirmwareImage("esp32c3", data)
    assert (image.entry, image.path) == (known.entrypoint, file)
    assert [(part.address, part.size) for part in image.segments] == [
        (segment.addr, len(segment.data)) for segment in known.segments
    ]
    bus = esp.link.board.simulated.bus
    for segment in known.segments:
        words = [bus.read(segment.addr + at) for at in range(0, len(segment.data), 4)]
        assert b"".join(word.to_bytes(4, "little") for word in words) == segment.data


def test_text_that_does_not_come(board):
    result = sim(board, "hello").chip.load_ram(ram.self_test_image("esp32c3"), wait_seconds=0.05, until="Goodbye")
    assert (result.matched, result.output) == (False, "Hello world!\r\n")


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", "is not an image"),
        (b"\xe9\x01\x02", "is not an image"),
        (b"\xff" * 64, "is not an image"),
        (b"\x7fELF" + bytes(60), "the program is damaged"),
        (ram.self_test_image("esp32"), "is an image for the esp32, not for the esp32c3"),
        (ram.self_test_image("esp32c3")[:200], "is not an image"),
    ],
)
def test_what_is_no_program_for_this_chip(board, data, error):
    esp = sim(board, "hello")
    with pytest.raises(FirmwareError, match=error):
        esp.chip.load_ram(data)
    assert esp.link.board.simulated.mode == "bootloader"


def test_a_damaged_program_is_not_started(board):
    data = bytearray(ram.self_test_image("esp32c3"))
    data[100] ^= 1
    with pytest.raises(FirmwareError, match="checksum is wrong"):
        sim(board, "hello").chip.load_ram(bytes(data))


def test_an_app_for_the_flash_is_no_program_for_ram(board):
    data = bytearray(ram.self_test_image("esp32c3"))
    data[24:28] = (0x3C000020).to_bytes(4, "little")  # the first segment's address: what the cache shows of the flash
    with pytest.raises(FirmwareError, match="not a program for RAM: 308 bytes are for 0x3c000020"):
        sim(board, "hello").chip.load_ram(bytes(data))


def test_secure_download_mode_takes_no_program(esp_of):
    with pytest.raises(OperationError, match="in secure download mode"):
        esp_of("locked").chip.load_ram(ram.self_test_image("esp32c3"))


def test_a_board_that_may_only_be_read(esp_of):
    with pytest.raises(RefusedError, match="requires 'write'"):
        esp_of("careful").chip.load_ram(b"")


# -- ELF files


@pytest.mark.parametrize("chip", ["esp32", "esp32c3"])
def test_an_elf_file_becomes_the_image_that_esptool_makes(tmp_path, chip):
    elf = FIRMWARE / chip / "pytest_esp_test.elf"
    image = elf_to_ram_image(elf, chip, tmp_path / "program.bin")
    command = [sys.executable, "-m", "esptool", "--chip", chip, "elf2image", "-o", tmp_path / "known.bin", elf]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    assert image.path.read_bytes() == (tmp_path / "known.bin").read_bytes()
    assert image.segments
    with pytest.raises(OperationError, match="exists"):
        elf_to_ram_image(elf, chip, tmp_path / "program.bin")
    assert elf_to_ram_image(elf, chip, tmp_path / "program.bin", overwrite=True) == image


def test_what_cannot_be_converted(tmp_path):
    (tmp_path / "text").write_text("no ELF")
    elf = FIRMWARE / "esp32c3" / "pytest_esp_test.elf"
    for source, chip, error in [
        (tmp_path / "text", "esp32", "is not an ELF file"),
        (tmp_path / "none", "esp32", "cannot be read"),
        (elf, "esp33", "no chip 'esp33'"),
        (elf, "esp32", "is not for the esp32: it contains riscv code"),  # its addresses are those of another chip
    ]:
        with pytest.raises((FirmwareError, OperationError), match=error):
            elf_to_ram_image(source, chip, tmp_path / "out.bin")
    assert not (tmp_path / "out.bin").exists()


# -- the self-test


@pytest.mark.qemu
@pytest.mark.parametrize("chip", ["esp32", "esp32c3"])
def test_the_self_test_passes_on_qemu(board, need_qemu, chip):
    need_qemu(chip)
    esp = board(backend="qemu", chip=chip, flash_size="2MB")
    result = esp.chip.self_test()
    assert [test.name for test in result.tests] == ["ram", "crc", "timer", "uart", "code"]
    assert result.passed
    assert all(test.passed for test in result.tests)
    assert f"self-test 1.0 on {chip}" in result.output
    esp.link.console.write("again\n")  # it goes on, on the same link
    esp.link.console.expect("uart: PASS 5 bytes")
    assert esp.chip.identify().chip_type == chip


@pytest.mark.qemu
def test_an_elf_file_runs_in_ram(board, need_qemu):
    need_qemu("esp32c3")
    esp = board(backend="qemu", chip="esp32c3", flash_size="2MB")
    result = esp.chip.load_ram(FIRMWARE / "esp32c3" / "pytest_esp_test.elf", wait_seconds=10, until="ready")
    assert "pytest-esp test firmware" in result.output
    esp.link.console.write("echo from RAM\n")
    esp.link.console.expect("from RAM")


def test_a_chip_that_passes(board):
    result = sim(board, "selftest_app:Passing").chip.self_test()
    assert result.passed
    assert all(test.passed for test in result.tests)


@pytest.mark.parametrize(("app", "name"), [("BadRam", "ram"), ("BadCode", "code"), ("BadUart", "uart")])
def test_a_chip_that_fails(board, app, name):
    result = sim(board, f"selftest_app:{app}").chip.self_test()
    assert not result.passed
    assert [test.name for test in result.tests if not test.passed] == [name]


def test_a_chip_that_runs_no_machine_code_proves_nothing(board):
    with pytest.raises(OperationError, match="does not run machine code"):
        sim(board, "silent").chip.self_test()
    with pytest.raises(OperationError, match=r"timed out after 0\.05 s"):
        sim(board, "selftest_app:Mute").chip.self_test(wait_seconds=0.05)


def test_a_chip_without_a_self_test(esp_of):
    with pytest.raises(OperationError, match="no self-test for the esp32s3") as caught:
        esp_of("esp32s3").chip.self_test()
    assert "esp32, esp32c3" in caught.value.hint


@pytest.mark.skipif(
    not (shutil.which("riscv64-unknown-elf-gcc") and shutil.which("xtensa-lx106-elf-gcc")), reason="no cross compilers"
)
def test_the_images_are_those_of_the_source(tmp_path):
    version = subprocess.run(["riscv64-unknown-elf-gcc", "-dumpversion"], capture_output=True, text=True, check=True)
    if version.stdout.strip() != "12.2.0":
        pytest.skip(f"another compiler than the images': {version.stdout.strip()}")
    places = [f"BUILD={tmp_path}", f"OBJECTS={tmp_path}/objects", f"PYTHON={sys.executable}"]
    subprocess.run(["make", "-C", SOURCE, *places], check=True, capture_output=True, timeout=100)
    for chip in ram.SELF_TEST_CHIPS:
        assert (tmp_path / f"{chip}.bin").read_bytes() == ram.self_test_image(chip)
