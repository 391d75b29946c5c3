"""The suites that users run, on simulated boards; and that they find what is wrong with one."""

import subprocess
import sys
from xml.etree import ElementTree

import pytest

from pytest_esp.formats.nor_flash import NorFlash
from pytest_esp.sim.chip import SimChip
from pytest_esp.wire.endpoints import serve

# Plugins that other packages bring, and that every run would have to import.
PLAIN = ("-pno:hypothesispytest", "-pno:anyio", "-pno:platformdirs")

RACK = """
[boards.c3]
backend = "sim"
chip = "esp32c3"
flash_size = "4MB"

[boards.old]
backend = "sim"
chip = "esp8266"
flash_size = "2MB"
"""


@pytest.fixture
def check(tmp_path, monkeypatch):
    """Run `pytest-esp check` in a folder with a boards.toml; return exit code and output."""
    monkeypatch.setenv("PYTEST_ESP_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("PYTEST_ESP_LOCK_DIR", str(tmp_path / "locks"))

    def run(rack, *arguments):
        (tmp_path / "boards.toml").write_text(rack)
        start = "from pytest_esp.cli.main import main; main()"
        command = [sys.executable, "-c", start, "check", "-q", "-rs", *PLAIN, *arguments]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        return result.returncode, result.stdout + result.stderr

    return run


def test_all_suites_pass_on_simulated_boards(check, tmp_path):
    code, output = check(RACK, "--junitxml=junit.xml")
    assert code == 0, output
    cases = list(ElementTree.parse(tmp_path / "junit.xml").iter("testcase"))
    modules = {case.get("classname").rpartition(".")[2] for case in cases}
    assert modules == {
        "test_baud",
        "test_efuse",
        "test_flash_roundtrip",
        "test_identity",
        "test_partitions",
        "test_reset",
        "test_security",
        "test_verify",
    }
    skipped = {case.get("name") for case in cases if case.find("skipped") is not None}
    assert skipped
    assert all("[old" in name for name in skipped)  # an ESP8266 has no eFuses


@pytest.mark.parametrize("chip", ["esp32c3", "esp32", "esp32s3"])
def test_all_suites_pass_on_qemu(check, need_qemu, chip):
    need_qemu(chip)
    rack = f'[boards.machine]\nbackend = "qemu"\nchip = "{chip}"\nflash_size = "4MB"\n'
    code, output = check(rack, "-m", "qemu", "--esp-strict")
    assert code == 0, output
    assert "skipped" not in output


def test_a_board_behind_a_real_port_passes_and_keeps_its_flash(check):
    flash = NorFlash(4 * 1024 * 1024)
    kept = b"what the user has in the scratch region"
    flash.program(flash.size - 0x20000, kept)
    chip = SimChip("esp32c3", flash=flash, rise_time=0.02)
    endpoint = serve(chip.wire, "rfc2217://127.0.0.1:0", name="devkit")
    try:
        rack = f'[boards.real]\nbackend = "serial"\nchip = "esp32c3"\nport = "{endpoint.url}"\n'
        code, output = check(rack, "-k", "not 65537 and not 16385 and not 0x8000 and not 0x1")
    finally:
        endpoint.close()
        chip.close()
    assert code == 0, output
    assert "the board has no partition table" in output
    assert flash.read(flash.size - 0x20000, 0x20000) == kept.ljust(0x20000, b"\xff")


def test_one_board_and_no_flash_writes(check):
    code, output = check(RACK, "--board=c3", "-m", "not erases and not burns")
    assert code == 0, output
    assert "old" not in output
    assert "0.0 KB" in output


def test_a_chip_that_is_not_there_is_named(check):
    code, output = check(RACK, "--board=c4")
    assert code == pytest.ExitCode.USAGE_ERROR
    assert "did you mean c3" in output


def test_a_locked_down_board_fails_and_says_why(check):
    code, output = check(RACK.replace('"4MB"', '"4MB"\nsecure_download = true'), "--board=c3", "-k", "roundtrip")
    assert code == pytest.ExitCode.TESTS_FAILED
    assert "secure download mode" in output


def test_a_missing_port_fails_every_test_quickly_and_says_why(check):
    rack = '[boards.real]\nbackend = "serial"\nchip = "esp32"\nport = "/dev/not-there"\n'
    code, output = check(rack, "-k", "identity")
    assert code == 8
    assert "/dev/not-there" in output
    assert "hint:" in output


def test_hardware_is_not_burnt_without_consent(check):
    rack = (
        '[boards.real]\nbackend = "serial"\nchip = "esp32"\nport = "/dev/not-there"\n'
        'allow = ["read", "burn"]\nallow_burn = ["CUSTOM_MAC"]\n'
    )
    code, output = check(rack, "-k", "burn_reads_back")
    assert code == 0, output
    assert "--esp-allow-burn" in output
    assert "1 skipped" in output
