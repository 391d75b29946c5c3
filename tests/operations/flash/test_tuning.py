"""Suggested faster settings, and applying them."""

import hashlib
import struct
from types import SimpleNamespace

import pytest
from esptool.targets import CHIP_DEFS

from pytest_esp.errors import FirmwareError, LinkError, OperationError, RefusedError
from pytest_esp.formats.boot_image import read_image
from pytest_esp.operations.flash import tuning
from pytest_esp.operations.flash.tuning import RateMeasure


@pytest.fixture(params=["esp32", "esp32c3"])
def esp(request, esp_of, build_of):
    esp = esp_of(request.param)
    esp.flash.write(build_of(request.param))
    return esp


def flash_of(esp):
    return esp.link.board.simulated.flash


def changes(result):
    return {(change.setting, change.how): change.better for change in result.changes}


def bootloader(esp):
    return 0x1000 if esp.link.session.chip == "esp32" else 0


def test_what_the_header_says(esp):
    result = esp.flash.optimize([115200])
    assert result.header.mode == "dio"
    assert result.header.size == 2 << 20
    assert result.flash_size == 4 << 20
    assert changes(result)["size", "apply"] == "4MB"
    assert changes(result)["mode", "rebuild"] == "qio"
    assert result.applied == ()


def test_nothing_is_changed_unasked(esp):
    before = flash_of(esp).read(0, 4 << 20)
    esp.flash.optimize([115200])
    assert flash_of(esp).read(0, 4 << 20) == before


def test_reads_are_measured_and_the_rate_is_as_before(esp):
    esp.flash.info()
    before = esp.link.session.port.baudrate
    result = esp.flash.optimize([230400, 921600])
    assert [rate.baudrate for rate in result.rates] == [230400, 921600]
    assert all(rate.bytes_per_second > 0 for rate in result.rates)
    assert result.best_baudrate in (230400, 921600)
    assert esp.link.session.port.baudrate == before


def test_a_rate_at_which_the_chip_is_silent(esp_of, monkeypatch):
    esp = esp_of("esp32c3")
    session = esp.link.session
    original = session.change_baudrate

    def fragile(rate):
        if rate == 2_000_000:
            session.drop()
            raise LinkError("the chip does not answer")
        original(rate)

    monkeypatch.setattr(session, "change_baudrate", fragile)
    slow, fast = esp.flash.optimize([115200, 2_000_000]).rates
    assert slow.bytes_per_second
    assert (fast.bytes_per_second, fast.error) == (None, "the chip does not answer")


def test_the_rates_that_are_measured_by_default(esp_of):
    rates = esp_of("esp32c3").flash.optimize().rates
    assert [rate.baudrate for rate in rates] == [115200, 460800, 921600]


def test_no_baud_rate(esp):
    with pytest.raises(OperationError, match="invalid baud rate"):
        esp.flash.optimize([0])


def test_applied_changes_leave_an_image_that_boots(esp):
    result = esp.flash.optimize([115200], apply=True)
    assert "size" in result.applied
    image = read_image(flash_of(esp).read, bootloader(esp), 0x8000)  # with its checksum and its hash
    assert image.flash_size == 2  # 4 MB
    again = esp.flash.optimize([115200], apply=True)
    assert again.applied == ()
    assert again.header.size == 4 << 20
    assert again.header.frequency == "80m"
    console = esp.link.console
    console.skip()  # the first boot, of a blank flash
    esp.link.reset(bootloader=False)
    console.expect("Calling app_main", timeout=5)


def test_a_header_that_promises_too_much(esp_of, build_of):
    esp = esp_of("small")
    esp.flash.write(build_of("esp32c3") / "bootloader" / "bootloader.bin", 0)
    (change,) = [change for change in esp.flash.optimize([115200]).changes if change.setting == "size"]
    # no number in the header of an ESP32-C3 stands for 512 KB
    assert (change.now, change.better, change.how) == ("2MB", "512KB", "rebuild")
    assert "does not start" in change.why


def test_a_damaged_bootloader_is_left_alone(esp):
    flash_of(esp).flip(bootloader(esp) + 600)
    before = flash_of(esp).read(0, 0x10000)
    with pytest.raises(FirmwareError, match="the bootloader is damaged"):
        esp.flash.optimize([115200], apply=True)
    assert flash_of(esp).read(0, 0x10000) == before


def test_a_signed_bootloader_is_left_alone(esp_of, build_of):
    esp = esp_of("esp32c3")
    esp.flash.write(build_of("esp32c3"))
    esp.efuse.burn("SECURE_BOOT_EN", 1)
    esp.link.session.drop()
    with pytest.raises(FirmwareError, match="secure boot"):
        esp.flash.optimize([115200], apply=True)


def test_a_board_that_is_only_read(esp_of):
    esp = esp_of("careful")
    assert esp.flash.optimize([115200]).header is None
    with pytest.raises(RefusedError, match="'write'"):
        esp.flash.optimize([115200], apply=True)


# -- the header, byte by byte


def put(esp, image, behind=b""):
    """Put a bootloader into the chip's flash, whose hash is made right, and bytes behind it; returns where."""
    start = CHIP_DEFS[esp.link.board.chip].BOOTLOADER_FLASH_OFFSET
    if image[23] and esp.link.board.chip != "esp8266":
        image = image[:-32] + hashlib.sha256(image[:-32]).digest()
    assert esp.link.port  # now there is a chip
    flash_of(esp).erase(start, 0x8000 - start)
    flash_of(esp).program(start, bytes(image) + behind)
    return start


def with_header(build, mode=2, size=1, frequency=0, has_hash=True):
    """The bootloader of a build with these numbers in its header."""
    image = bytearray((build / "bootloader" / "bootloader.bin").read_bytes())
    image[2:4] = mode, size << 4 | frequency
    image[23] = has_hash
    return bytes(image if has_hash else image[:-32])


@pytest.mark.in_process
@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ({"mode": 0, "size": 0, "frequency": 0}, ("qio", "40m", 1 << 20)),
        ({"mode": 1, "size": 1, "frequency": 1}, ("qout", "26m", 2 << 20)),
        ({"mode": 2, "size": 2, "frequency": 2}, ("dio", "20m", 4 << 20)),
        ({"mode": 3, "size": 7, "frequency": 15}, ("dout", "80m", 128 << 20)),
        ({"mode": 4, "size": 15, "frequency": 7}, (None, None, None)),
    ],
)
def test_numbers_in_the_header(esp_of, build_of, numbers, expected):
    esp = esp_of("esp32")
    put(esp, with_header(build_of("esp32"), **numbers))
    result = esp.flash.optimize([115200])
    header = result.header
    assert (header.address, header.mode, header.frequency, header.size) == (0x1000, *expected)
    if header.size is None:
        (change,) = result.changes  # what is unknown is no worse than anything else, but a size
        assert (change.setting, change.now, change.better) == ("size", "unknown", "4MB")


@pytest.mark.parametrize(
    ("before", "after", "applied"),
    [
        ((2, 1, 15), (2, 2, 15), ("size",)),
        ((2, 3, 15), (2, 2, 15), ("size",)),
        ((2, 2, 0), (2, 2, 15), ("frequency",)),
        ((2, 2, 1), (2, 2, 15), ("frequency",)),
        ((3, 2, 15), (2, 2, 15), ("mode",)),
        ((3, 0, 2), (2, 2, 15), ("size", "frequency", "mode")),
        ((0, 2, 15), (0, 2, 15), ()),
        ((1, 2, 15), (1, 2, 15), ()),
    ],
)
@pytest.mark.parametrize("has_hash", [True, False])
def test_a_change_leaves_everything_else_as_it_was(esp_of, build_of, before, after, applied, has_hash):
    """Mode, size and frequency; the last two share a byte of the header."""
    esp = esp_of("esp32")
    build, behind = build_of("esp32"), b"what lies behind"
    start = put(esp, with_header(build, *before, has_hash), behind)
    assert esp.flash.optimize([115200], apply=True).applied == applied
    wanted = with_header(build, *after, has_hash)
    if has_hash:
        wanted = wanted[:-32] + hashlib.sha256(wanted[:-32]).digest()
    there = flash_of(esp).read(start, 0x8000 - start)
    assert there[: len(wanted)] == wanted
    assert there[len(wanted) :] == behind.ljust(len(there) - len(wanted), b"\xff")


def full_sector():
    """A bootloader for the ESP32 of exactly one sector: one segment of zeros, its checksum, and room for a hash."""
    header = bytes([0xE9, 1, 2, 0x10]) + bytes(19) + b"\1"
    return header + struct.pack("<II", 0x3FFF0000, 4028) + bytes(4028) + b"\0\0\0\xef" + bytes(32)


@pytest.mark.parametrize("full", [False, True])
def test_only_the_sectors_of_the_bootloader_are_written(esp_of, build_of, full):
    esp = esp_of("esp32")
    image = full_sector() if full else with_header(build_of("esp32"))
    assert (len(image) % 4096 == 0) is full
    start = put(esp, image)
    end = start + -(-len(image) // 4096) * 4096
    touched, flash = set(), flash_of(esp)
    program = flash.program

    def note(address, data):
        touched.update(range(address & ~0xFFF, address + len(data), 4096))
        program(address, data)

    flash.program = note
    esp.flash.optimize([115200], apply=True)
    assert touched == set(range(start, end, 4096))


@pytest.mark.parametrize(
    ("chip", "fastest"),
    [("esp32", "80m"), ("esp32c2", "60m"), ("esp32h2", "48m"), ("esp32c3", "80m"), ("esp32c6", "80m")],
)
def test_the_fastest_frequency_of_a_chip(esp_of, build_of, build_for, chip, fastest):
    esp = esp_of(chip)
    image = bytearray(build_for(chip)[1][1])
    image[2:4] = 2, 0x22  # the slowest
    start = put(esp, image)
    result = esp.flash.optimize([115200], apply=True)
    assert result.header.frequency in ("20m", "15m", "12m")
    assert changes(result)["frequency", "apply"] == fastest
    assert flash_of(esp).read(start + 3, 1)[0] == 0x20 | CHIP_DEFS[chip].FLASH_FREQUENCY[fastest]
    again = esp.flash.optimize([115200])
    assert again.header.frequency == fastest
    assert ("frequency", "apply") not in changes(again)


def test_why_a_size_should_be_another(esp_of, build_of):
    esp = esp_of("esp32")
    why = {}
    for size in (1, 2, 3):
        put(esp, with_header(build_of("esp32"), size=size))
        why[size] = [change.why for change in esp.flash.optimize([115200]).changes if change.setting == "size"]
    assert why == {
        1: ["the flash beyond the stated size is not used"],
        2: [],
        3: ["the bootloader does not start if the header states more than the real size"],
    }


# -- the rate


@pytest.fixture
def measured(esp_of, monkeypatch):
    """A function that returns the suggestions for measured speeds (bytes per second by baud rate)."""

    def optimize(rates, configured=115200, virtual=False):
        esp = esp_of("esp32c3")
        measures = tuple(RateMeasure(rate, speed, None) for rate, speed in rates.items())
        monkeypatch.setattr(tuning, "_measure", lambda link, rates: measures)
        monkeypatch.setattr(type(esp.link.board), "virtual", virtual)
        monkeypatch.setattr(esp.link.board, "spec", esp.link.board.spec.model_copy(update={"baud": configured}))
        result = esp.flash.optimize()
        return result.best_baudrate, [(one.now, one.better, one.how, one.why) for one in result.changes]

    return optimize


@pytest.mark.in_process
def test_a_better_rate_is_named(measured):
    why = "it reads 64 KB at 44 KB/s"
    assert measured({115200: 10_000.0, 921600: 45_000.0, 460800: 40_000.0}) == (
        921600,
        [("115200", "921600", "rebuild", why)],
    )
    assert measured({460800: 45_000.0, 921600: None}) == (460800, [("115200", "460800", "rebuild", why)])


@pytest.mark.in_process
def test_a_rate_that_is_hardly_better_is_not_named(measured):
    assert measured({115200: 10_000.0, 921600: 10_999.0}) == (921600, [])
    assert measured({115200: 10_000.0, 921600: 11_001.0})[1]
    assert measured({115200: 10_000.0, 921600: 9_000.0}) == (115200, [])
    assert measured({921600: 10_000.0, 460800: 9_000.0}, configured=921600) == (921600, [])
    assert measured({115200: 0.0}) == (115200, [])
    assert measured({460800: 1.0})[1]  # nothing is known of the other
    assert measured({115200: None}) == (None, [])
    assert measured({}) == (None, [])


def test_a_virtual_board_has_no_better_rate(measured):
    assert measured({115200: 10_000.0, 921600: 45_000.0}, virtual=True) == (921600, [])


def test_how_fast_it_is(esp_of, monkeypatch):
    """64 KB in 4 seconds."""
    times = iter([100.0, 104.0, 200.0, 200.3])
    monkeypatch.setattr(tuning, "time", SimpleNamespace(perf_counter=lambda: next(times)))
    rates = esp_of("esp32c3").flash.optimize([115200, 921600]).rates
    assert [rate.bytes_per_second for rate in rates] == [16384.0, 218453.3]


def test_an_esp8266(esp_of):
    esp = esp_of("esp8266")
    assert esp.flash.optimize([115200]).header is None
    # One segment of 16 bytes; none of them says that there is a hash, as in the longer header of the other chips.
    body = struct.pack("<III", 0x40100000, 0x40100000, 16) + b"\1" * 16 + bytes(15) + b"\xef"
    put(esp, bytes([0xE9, 1, 3, 0x52]) + body)
    header = esp.flash.optimize([115200]).header
    assert (header.mode, header.frequency, header.size) == ("dout", "20m", 2 << 20)  # 2MB-c1
    assert esp.flash.optimize([115200], apply=True).applied == ("size", "frequency", "mode")
    assert flash_of(esp).read(0, 4 + len(body)) == bytes([0xE9, 1, 2, 0x4F]) + body
