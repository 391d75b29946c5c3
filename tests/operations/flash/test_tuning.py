"""What could be faster, and what is changed if asked."""

import pytest

from pytest_esp.errors import FirmwareError, LinkError, OperationError, RefusedError
from pytest_esp.formats.boot_image import read_image


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


def test_no_baud_rate(esp):
    with pytest.raises(OperationError, match="is no baud rate"):
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
    assert "refuses to start" in change.why


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


def test_an_esp8266(esp_of):
    assert esp_of("esp8266").flash.optimize([115200]).header is None
