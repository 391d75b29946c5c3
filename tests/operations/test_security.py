"""eFuses, security info and posture, on virgin and on locked simulated chips."""

import json

import pytest

from pytest_esp.boards.registry import make_board
from pytest_esp.errors import OperationError, RefusedError
from pytest_esp.link.link import Link
from pytest_esp.operations import efuse
from pytest_esp.operations.esp import Esp
from pytest_esp.rack.config import load_rack

FAMILIES = ["esp32", "esp32s2", "esp32s3", "esp32c2", "esp32c3", "esp32c6", "esp32h2", "esp32p4"]


@pytest.mark.parametrize("chip", FAMILIES)
def test_a_virgin_chip_is_open(esp_of, chip):
    posture = esp_of(chip).security.posture()
    assert (posture.flash_encryption, posture.secure_boot, posture.jtag) == (False, False, True)
    assert posture.download_mode == "enabled"


@pytest.mark.parametrize("chip", FAMILIES)
def test_the_mac_is_the_one_of_the_loader(esp_of, chip):
    esp = esp_of(chip)
    assert esp.efuse.read("MAC").value.startswith(esp.chip.identify().mac)


def test_a_locked_esp32(esp_of):
    esp = esp_of("esp32")
    for name in ("ABS_DONE_0", "JTAG_DISABLE"):
        assert esp.efuse.burn(name, 1).burnt_bits == 1
    esp.efuse.burn("FLASH_CRYPT_CNT", 1)
    posture = esp.security.posture()
    assert (posture.flash_encryption, posture.secure_boot, posture.jtag) == (True, True, False)
    esp.efuse.burn("FLASH_CRYPT_CNT", 3)
    assert not esp.security.posture().flash_encryption  # an even number of bits


@pytest.mark.parametrize("chip", ["esp32s3", "esp32c3", "esp32c6"])
def test_a_locked_later_chip(esp_of, chip):
    esp = esp_of(chip)
    for name in ("SECURE_BOOT_EN", "DIS_PAD_JTAG", "DIS_USB_JTAG"):
        esp.efuse.burn(name, 1)
    esp.efuse.burn("SPI_BOOT_CRYPT_CNT", 1)
    posture = esp.security.posture()
    assert (posture.flash_encryption, posture.secure_boot, posture.jtag) == (True, True, False)
    info = esp.security.info()
    assert "SECURE_BOOT_EN" in info.flag_names
    assert info.flash_crypt_count == 1


def test_jtag_over_usb_counts_as_open(esp_of):
    esp = esp_of("esp32c3")
    esp.efuse.burn("DIS_PAD_JTAG", 1)
    assert esp.security.posture().jtag


def test_the_esp32_has_no_security_info(esp_of):
    with pytest.raises(OperationError, match="has no security info"):
        esp_of("esp32").security.info()


@pytest.mark.parametrize("chip", ["esp32s3", "esp32c3", "esp32c6"])
def test_a_burn_is_planned_done_and_read_back(esp_of, chip):
    esp = esp_of(chip)
    plan = esp.efuse.plan("CUSTOM_MAC", "00:11:22:33:44:55")
    assert plan.new_bits > 0
    assert "1" not in plan.before
    assert esp.efuse.plan("CUSTOM_MAC", "00:11:22:33:44:55") == plan  # a plan changes nothing
    result = esp.efuse.burn("CUSTOM_MAC", "00:11:22:33:44:55")
    assert "00:11:22:33:44:55" in result.value_after
    assert result.burnt_bits >= plan.new_bits


def test_bits_do_not_come_back(esp_of):
    esp = esp_of("esp32c3")
    esp.efuse.burn("UART_PRINT_CONTROL", 1)
    with pytest.raises(OperationError, match="bits burnt"):
        esp.efuse.burn("UART_PRINT_CONTROL", 2)
    assert esp.efuse.burn("UART_PRINT_CONTROL", 1).burnt_bits == 0
    assert esp.efuse.burn("UART_PRINT_CONTROL", 3).burnt_bits == 1


@pytest.mark.parametrize(
    ("name", "value"), [("DIS_PAD_JTAG", 2), ("CUSTOM_MAC", "11:22"), ("SPI_BOOT_CRYPT_CNT", 4096)]
)
def test_a_value_that_does_not_fit(esp_of, name, value):
    with pytest.raises(OperationError, match="does not fit"):
        esp_of("esp32c3").efuse.burn(name, value)


def test_an_unknown_efuse_is_answered_with_the_nearest(esp_of):
    with pytest.raises(OperationError, match="eFuse 'DIS_PAD_JTGA' not found") as caught:
        esp_of("esp32c3").efuse.read("DIS_PAD_JTGA")
    assert "DIS_PAD_JTAG" in caught.value.hint


def test_efuses_are_virgin_again_at_the_next_lease_and_flash_is_kept(rack):
    for expected_flash in (b"\xff", b"x"):
        with Link(make_board(rack.board("esp32c3"), rack)) as link:
            esp = Esp(link)
            assert esp.flash.read(0x1000, 1).data == expected_flash
            assert int(esp.efuse.read("DIS_PAD_JTAG").bits, 2) == 0
            esp.flash.write([(0x1000, b"x")])
            esp.efuse.burn("DIS_PAD_JTAG", 1)


def test_a_file_keeps_them(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTEST_ESP_STATE_DIR", str(tmp_path / "state"))
    path = tmp_path / "boards.toml"
    path.write_text('[boards.a]\nbackend="sim"\nchip="esp32c3"\nefuse_file="a.efuse"\n')
    rack = load_rack(path)
    for expected in (0, 1):
        with Link(make_board(rack.board("a"), rack)) as link:
            esp = Esp(link)
            assert int(esp.efuse.read("DIS_PAD_JTAG").bits, 2) == expected
            esp.efuse.burn("DIS_PAD_JTAG", 1)


# -- real boards: consent, and the audit log


def real_link(tmp_path, monkeypatch, allow, **consent):
    """Return a link to a board that counts as real: an endpoint with a simulated chip behind it."""
    from pytest_esp.sim.chip import SimChip
    from pytest_esp.wire.endpoints import serve

    monkeypatch.setenv("PYTEST_ESP_STATE_DIR", str(tmp_path / "state"))
    chip = SimChip("esp32c3")
    chip.reset(bootloader=True)
    endpoint = serve(chip.wire, "pty:")
    path = tmp_path / "boards.toml"
    port = endpoint.url.removeprefix("pty:")
    path.write_text(f'[boards.real]\nbackend="serial"\nchip="esp32c3"\nport="{port}"\nbaud=115200\n{allow}\n')
    rack = load_rack(path)
    return Link(make_board(rack.board("real"), rack), **consent), endpoint


BURN = 'allow=["read","write","erase","burn"]\nallow_burn=["DIS_PAD_JTAG"]'


@pytest.mark.parametrize(
    ("allow", "consent", "hint"),
    [
        ("", True, 'add "burn" to `allow`'),
        ('allow=["read","burn"]', True, 'add "DIS_PAD_JTAG" to `allow_burn`'),
        (BURN, False, "--esp-allow-burn"),
    ],
)
def test_a_real_board_is_not_burnt_without_consent(tmp_path, monkeypatch, allow, consent, hint):
    link, endpoint = real_link(tmp_path, monkeypatch, allow, burns_enabled=consent)
    with link, pytest.raises(RefusedError) as caught:
        Esp(link).efuse.burn("DIS_PAD_JTAG", 1)
    assert hint in caught.value.hint
    assert not link.is_open
    endpoint.close()


def test_a_burn_of_a_real_board_is_in_the_audit_log(tmp_path, monkeypatch):
    link, endpoint = real_link(tmp_path, monkeypatch, BURN, burns_enabled=True, holder="test_x")
    with link:
        assert Esp(link).efuse.burn("DIS_PAD_JTAG", 1).burnt_bits == 1
        entries = [json.loads(line) for line in efuse.audit_file(link).read_text().splitlines()]
    assert [entry["stage"] for entry in entries] == ["begin", "done"]
    assert entries[0] | {"name": "DIS_PAD_JTAG", "before": "0", "after": "1", "holder": "test_x"} == entries[0]
    assert entries[1]["read_back"] == "1"
    endpoint.close()
