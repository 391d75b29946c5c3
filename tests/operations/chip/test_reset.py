"""Resets of simulated chips, and of QEMU."""

import re

import pytest

from pytest_esp.boards.registry import make_board
from pytest_esp.errors import LinkError, OperationError
from pytest_esp.link.link import Link
from pytest_esp.operations.chip.identity import identify
from pytest_esp.operations.chip.reset import reset
from pytest_esp.rack.config import load_rack
from pytest_esp.sim.chip import SimChip

CHIPS = ["esp8266", "esp32", "esp32s2", "esp32s3", "esp32c2", "esp32c3", "esp32c6", "esp32h2", "esp32p4"]


def chip_of(esp) -> SimChip:
    return esp.link.board.simulated


def test_a_reset_into_the_bootloader_is_proven(esp):
    assert esp.chip.reset("bootloader").mode == "bootloader"
    assert chip_of(esp).mode == "bootloader"


def test_a_reset_into_the_app_is_proven_by_its_banner(esp):
    result = esp.chip.reset()
    assert result.mode == "app"
    assert re.search(r"rst:0x1 \(POWERON", result.output)
    assert "invalid header: 0xffffffff" in result.output  # blank flash
    assert chip_of(esp).mode == "app"


def test_a_chip_that_says_nothing_after_a_reset_is_an_error(esp_of, monkeypatch):
    esp = esp_of("esp32c3")
    esp.chip.identify()
    monkeypatch.setattr(chip_of(esp), "transmit", lambda data: None)
    with pytest.raises(LinkError, match="timed out waiting for the boot banner") as caught:
        esp.chip.reset("app", wait_seconds=0.05)
    assert caught.value.board == "esp32c3"


def test_there_are_two_places_and_three_resets(esp_of):
    with pytest.raises(OperationError, match="invalid reset target 'mars'") as caught:
        esp_of("esp32c3").chip.reset("mars")
    assert "'app' or 'bootloader'" in caught.value.hint
    with pytest.raises(OperationError, match="invalid reset mode 'hammer'"):
        esp_of("esp32c3").chip.reset("app", reset_mode="hammer")


@pytest.mark.parametrize("chip", ["esp32s2", "esp32s3", "esp32c3", "esp32p4"])
def test_the_watchdog_starts_the_app_and_the_rom_says_so(esp_of, chip):
    esp = esp_of(chip)
    esp.flash.info()  # the stub runs
    result = esp.chip.reset("app", reset_mode="watchdog-reset")
    assert (result.mode, result.reset_mode, result.reason) == ("app", "watchdog-reset", "RTCWDT_RTC_RST")
    assert chip_of(esp).mode == "app"
    assert esp.chip.identify().chip_type == chip


@pytest.mark.parametrize("chip", ["esp32s2", "esp32s3", "esp32p4"])
def test_the_watchdog_keeps_a_chip_with_usb_in_its_loader(esp_of, chip):
    esp = esp_of(chip)
    result = esp.chip.reset("bootloader", reset_mode="watchdog-reset")
    assert (result.mode, result.reason) == ("bootloader", "RTCWDT_RTC_RST")
    assert chip_of(esp).mode == "bootloader"


@pytest.mark.parametrize(
    ("chip", "to", "reset_mode", "error"),
    [
        ("esp32", "app", "watchdog-reset", "cannot be reset by its watchdog"),
        ("esp32c6", "app", "watchdog-reset", "cannot be reset by its watchdog"),
        ("esp32c3", "bootloader", "watchdog-reset", "cannot be told to stay in its loader"),
        ("esp32c3", "app", "soft-reset", "boot strap was latched"),
        ("locked", "app", "watchdog-reset", "watchdog-reset is not available in secure download mode"),
    ],
)
def test_resets_that_a_chip_cannot(esp_of, chip, to, reset_mode, error):
    esp = esp_of(chip)
    with pytest.raises(OperationError, match=error):
        esp.chip.reset(to, reset_mode=reset_mode)
    assert esp.chip.reset(to).mode == to  # the hard one does it


def test_a_soft_reset_starts_the_app_of_an_esp8266(esp_of):
    esp = esp_of("esp8266")
    result = esp.chip.reset("app", reset_mode="soft-reset")
    assert (result.mode, result.reason) == ("app", None)  # its ROM gives a number only
    assert "rst cause:2" in result.output
    assert chip_of(esp).mode == "app"


def test_a_reset_that_ends_elsewhere_is_an_error(esp_of, monkeypatch):
    esp = esp_of("esp32s3")
    esp.chip.identify()
    monkeypatch.setattr(chip_of(esp), "_download_boot_is_forced", lambda: False)
    with pytest.raises(LinkError, match="the loader does not answer"):
        esp.chip.reset("bootloader", reset_mode="watchdog-reset")
    assert esp.chip.identify().chip_type == "esp32s3"


@pytest.mark.qemu
@pytest.mark.parametrize(("chip", "reason"), [("esp32", "SW_RESET"), ("esp32c3", "RTC_SW_SYS_RST")])
def test_a_soft_reset_on_qemu_leads_into_the_loader(tmp_path, monkeypatch, need_qemu, chip, reason):
    """QEMU runs the chip's own ROM, which performs the reset."""
    need_qemu(chip)
    monkeypatch.setenv("PYTEST_ESP_STATE_DIR", str(tmp_path))
    (tmp_path / "boards.toml").write_text(f'[boards.q]\nbackend="qemu"\nchip="{chip}"\nflash_size="2MB"\n')
    rack = load_rack(tmp_path / "boards.toml")
    with Link(make_board(rack.board("q"), rack)) as link:
        result = reset(link, "bootloader", "soft-reset")
        assert (result.mode, result.reason) == ("bootloader", reason)
        assert identify(link).chip_type == chip


@pytest.mark.parametrize("chip", ["esp32s2", "esp32s3", "esp32c3", "esp32c6", "esp32h2"])
def test_a_rom_that_prints_nothing(esp_of, build_for, chip):
    """The bootloader's first line proves the boot, and the output begins there."""
    esp = esp_of(chip)
    esp.flash.write(build_for(chip))
    assert "ESP-ROM" in esp.chip.reset("app").output
    esp.efuse.burn("UART_PRINT_CONTROL", 3)
    result = esp.chip.reset("app", wait_seconds=1)
    assert (result.mode, result.reason) == ("app", None)
    assert re.match(r"I \(24\) boot: ESP-IDF", result.output)
    run = esp.chip.run_firmware(0.1)
    assert run.state == "running"
    assert run.output.startswith("I (24) boot: ESP-IDF")


@pytest.mark.qemu
def test_a_rom_of_qemu_that_prints_nothing(make_esp, need_qemu, firmware_folder):
    need_qemu("esp32c3")
    esp = make_esp(backend="qemu", chip="esp32c3")
    esp.flash.write(firmware_folder / "hello_world_esp32c3")
    esp.efuse.burn("UART_PRINT_CONTROL", 3)
    result = esp.chip.reset("app")
    assert result.mode == "app"
    assert "boot: ESP-IDF" in result.output
    assert "ESP-ROM" not in result.output
