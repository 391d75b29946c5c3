"""The flash file of a QEMU machine: written past the chip, as the chip would have written it."""

import dataclasses
import random

import pytest

from pytest_esp.errors import BackendError, FirmwareError, OperationError
from pytest_esp.operations.chip.identity import ChipIdentity

ROM_IS_UP = 30.0


def flash_of(esp):
    """What the machine's file holds, all of it."""
    esp.link.close()
    return esp.link.board.flash_file.read_bytes()


def test_the_file_holds_what_the_chip_would_have_written(qemu_esp):
    """The same writes and erases of random data, by esptool on the wire and past it, leave equal flashes."""
    wire, file = qemu_esp("esp32c3"), qemu_esp("esp32c3")
    background, other = noise_of(1, 0x5000), noise_of(2, 4097)
    steps = [
        lambda flash, over: flash.write(background, 0x10000, over=over),
        lambda flash, over: flash.write(other, 0x10000, over=over),  # ends one byte into a sector
        lambda flash, over: flash.write(b"0123456789", 0x12123, over=over),  # begins and ends inside a sector
        lambda flash, over: flash.write([(0x14000, b"\xff" * 100), (0x16FFE, b"xy")], over=over),
        lambda flash, over: flash.erase(0x13000, 0x1000, over=over),
        lambda flash, over: flash.write(b"the last bytes..", 0x200000 - 16, over=over),
        lambda flash, over: flash.write(other, 0x10000, over=over),  # is there already
    ]
    for step in steps:
        over_wire, past_it = step(wire.flash, "wire"), step(file.flash, "auto")
        for name in ("regions", "bytes_written", "bytes_skipped", "verified", "address", "size"):
            assert getattr(over_wire, name, None) == getattr(past_it, name, None)
    for address, size in ((0x10000, 0x5000), (0x12123, 10), (0x1FFFF0, 16)):
        assert wire.flash.read(address, size, over="wire") == file.flash.read(address, size)
        assert wire.flash.md5(address, size, over="wire") == file.flash.md5(address, size)
    for regions in ([(0x10000, background)], [(0x16FFE, b"xy"), (0x12123, b"0123456789")]):
        assert wire.flash.verify(regions, over="wire") == file.flash.verify(regions)
    assert (wire.link.written_bytes, wire.link.skipped_bytes) == (file.link.written_bytes, file.link.skipped_bytes)
    assert file.transcript == ""
    assert flash_of(wire) == flash_of(file)


def noise_of(seed, size):
    return random.Random(seed).randbytes(size)


def test_all_of_it_is_erased(qemu_esp):
    esp = qemu_esp("esp32c3")
    esp.flash.write(b"x" * 5000, 0x1FE000)
    assert esp.flash.erase("all").size == 0x200000
    assert flash_of(esp) == b"\xff" * 0x200000


def test_nothing_is_started_to_write_or_read(qemu_esp, build_of):
    esp = qemu_esp("esp32c3")
    esp.flash.write(build_of("esp32c3"))
    assert esp.flash.verify(build_of("esp32c3")).matches
    assert esp.partitions.find("factory").offset == 0x10000
    assert not esp.link.is_open


def test_a_machine_is_stopped_until_it_is_reset(qemu_esp, build_of):
    """What it printed stays; after the reset comes the boot of what was written."""
    esp = qemu_esp("esp32c3")
    esp.flash.write(build_of("esp32c3"))
    console = esp.link.console
    console.expect("Press ENTER to see the list of tests.", ROM_IS_UP)
    assert esp.link.runs_app
    said = console.text
    esp.flash.erase(0x10000, 0x1000)
    assert (esp.link.board.pid, esp.link.runs_app) == (None, False)
    console.expect_silence(0.1)
    assert console.text.strip() == said.strip()
    assert "is not bootable" in boot_until(esp, "No bootable app partitions")
    esp.flash.write(build_of("esp32c3"))
    assert "Loaded app from partition at offset 0x10000" in boot_until(esp, "ready")


def boot_until(esp, text):
    console = esp.link.console
    console.skip()
    before = len(console.text)
    esp.link.reset(bootloader=False)
    console.expect(text, ROM_IS_UP)
    return console.text[before:]


def test_esptool_comes_back_after_it(qemu_esp):
    esp = qemu_esp("esp32c3")
    first = esp.chip.identify()
    assert isinstance(first, ChipIdentity)
    esp.flash.write(b"between", 0x10000)
    assert not esp.link.session.is_connected
    second = esp.chip.identify()
    assert (second.mac_address, second.flash_id, second.revision) == (
        first.mac_address,
        first.flash_id,
        first.revision,
    )
    assert esp.flash.read(0x10000, 7).data == b"between"


def test_who_it_is_costs_no_stub(qemu_esp):
    """Its ROM answers as the stub does."""
    esp = qemu_esp("esp32c3")
    by_rom, flash_by_rom = esp.chip.identify(), esp.flash.info()
    with esp.link.session.use("running the stub"):
        pass
    by_stub, flash_by_stub = esp.chip.identify(), esp.flash.info()
    assert (by_rom.stub_loaded, by_stub.stub_loaded) == (False, True)
    assert flash_by_rom == flash_by_stub
    about_the_link = {"stub_loaded": True, "connection_time_seconds": 0.0}
    assert dataclasses.replace(by_rom, **about_the_link) == dataclasses.replace(by_stub, **about_the_link)


@pytest.mark.parametrize("over", ["auto", "wire"])
def test_what_does_not_belong_is_refused_in_the_same_words(qemu_esp, build_of, over):
    esp = qemu_esp("esp32c3")
    foreign = build_of("esp32")
    with pytest.raises(FirmwareError, match=r"this is a build for esp32, not for the ESP32-C3"):
        esp.flash.write(foreign, over=over)
    with pytest.raises(FirmwareError, match=r"is an image for the ESP32 \(esp32\), not for the ESP32-C3"):
        esp.flash.write((foreign / "bootloader" / "bootloader.bin").read_bytes(), 0, over=over)
    with pytest.raises(FirmwareError, match=r"needs flash up to 0x200001, but the board has 2MB"):
        esp.flash.write([(0, b"first"), (0x1FFFFF, b"12")], over=over)
    for operation in (esp.flash.read, esp.flash.md5):
        with pytest.raises(OperationError, match="beyond the flash of 2MB"):
            operation(0x1FFFFF, 2, over=over)
    with pytest.raises(OperationError, match="must be multiples of the sector size"):
        esp.flash.erase(0x1000, 100, over=over)
    with pytest.raises(OperationError, match="there is no partition table") as caught:
        esp.partitions.find("nvs")
    assert caught.value.board == esp.link.board.name
    assert flash_of(esp) == b"\xff" * 0x200000


@pytest.mark.parametrize("over", ["auto", "wire"])
@pytest.mark.parametrize(("chip", "revision"), [("esp32c3", 3), ("esp32", 0)])
def test_an_image_for_later_revisions_is_refused(qemu_esp, build_of, over, chip, revision):
    esp = qemu_esp(chip, revision=revision)
    data = bytearray((build_of(chip) / "bootloader" / "bootloader.bin").read_bytes())
    data[15:17] = (101).to_bytes(2, "little")
    with pytest.raises(FirmwareError, match=rf"needs chip revision v1.1 or later, but this chip is v0.{revision}"):
        esp.flash.write(bytes(data), 0x1000, over=over)


def test_eFuses_that_guard_the_flash_are_obeyed(qemu_esp):  # noqa: N802 - the field's name
    """esptool asks the chip before it erases: only on the wire is it heard."""
    esp = qemu_esp("esp32c3")
    esp.flash.write(b"x" * 100, 0x10000)
    esp.efuse.burn("SECURE_BOOT_EN", 1)
    assert esp.link.board.direct_flash() is None
    with pytest.raises(OperationError, match="Active security features"):
        esp.flash.erase(0x10000, 0x1000)
    esp.link.close()  # the next lease finds virgin eFuses
    assert esp.flash.erase(0x10000, 0x1000).size == 0x1000


def test_a_write_that_is_interrupted_leaves_whole_regions(qemu_esp):
    esp = qemu_esp("esp32c3")

    def interrupt(done, total):
        if done > 5000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        esp.flash.write([(0x10000, b"a" * 5000), (0x20000, b"b" * 5000), (0x30000, b"c" * 5000)], progress=interrupt)
    assert caught.value.__notes__ == ["regions: 0x10000 written, 0x20000 written, 0x30000 untouched"]
    assert esp.flash.read(0x20000, 5000).data == b"b" * 5000
    assert esp.flash.read(0x30000, 5000).data == b"\xff" * 5000


def test_an_error_inside_the_context_changes_nothing(qemu_esp):
    board = qemu_esp("esp32c3").link.board
    with board.direct_flash() as flash:
        flash.program(0, b"one")
    with pytest.raises(BackendError), board.direct_flash() as flash:
        flash.erase(0, 0x1000) or fail()
    assert board.flash_file.read_bytes()[:4] == b"one\xff"


def fail():
    raise BackendError("on purpose")


def test_a_flash_file_of_another_size_is_refused(qemu_esp, tmp_path):
    file = tmp_path / "flash.bin"
    file.write_bytes(b"\xff" * 0x400000)
    esp = qemu_esp("esp32c3", flash_file=str(file))
    with pytest.raises(BackendError, match="has 4194304 bytes, not 2097152") as caught:
        esp.flash.write(b"x", 0)
    assert caught.value.board == esp.link.board.name
    assert file.read_bytes() == b"\xff" * 0x400000


@pytest.mark.parametrize("chip", ["esp32c3", "esp32"])
def test_the_wire_is_used_if_asked_for(qemu_esp, chip):
    """esptool speaks, by its stub, and the chip is left in its loader."""
    esp = qemu_esp(chip)
    esp.flash.write(noise_of(3, 5000), 0x10000, over="wire")
    assert esp.flash.read(0x10000, 5000, over="wire").data == noise_of(3, 5000)
    assert "Wrote 5000 bytes" in esp.transcript
    assert esp.link.session.is_connected
    assert esp.link.session.is_stub
