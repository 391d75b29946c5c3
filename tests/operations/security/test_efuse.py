"""eFuses of simulated chips: read, planned, burnt, read back; and what a real board needs before it is burnt."""

import contextlib
import inspect
import io
import json
import os
import signal
import threading

import pytest
from espefuse.efuse.base_operations import BaseCommands

from pytest_esp.boards.registry import make_board
from pytest_esp.errors import LinkError, OperationError, RefusedError
from pytest_esp.link.link import Link
from pytest_esp.operations.esp import Esp
from pytest_esp.operations.results import to_dict
from pytest_esp.operations.security import efuse
from pytest_esp.rack.config import load_rack

MAC = "00:11:22:33:44:55"


def test_a_summary_has_every_field(esp):
    summary = esp.efuse.read_all()
    assert summary.chip_type == esp.link.board.chip
    assert len(summary.fields) > 40
    mac = summary.fields["MAC"]
    assert mac.value.startswith(esp.chip.identify().mac_address)
    assert (len(mac.bits), mac.bit_length, mac.readable) == (48, 48, True)
    assert {field.efuse_name for field in summary.fields.values()} == summary.fields.keys()


def test_one_field_by_any_of_its_names(esp_of):
    esp = esp_of("esp32")
    field = esp.efuse.read("jtag_disable")
    assert (field.efuse_name, field.value, field.meaning, field.bits, field.block) == (
        "JTAG_DISABLE",
        "0",
        False,
        "0",
        0,
    )
    assert esp.efuse.read("DISABLE_JTAG") == field
    assert esp.efuse.read("CUSTOM_MAC").bit_length == 48  # which espefuse shows only where one is burnt


@pytest.mark.parametrize("name", ["DIS_PAD_JTGA", "dis pad jtag", "", "\0"])
def test_an_unknown_name_is_answered_with_the_nearest(esp_of, name):
    with pytest.raises(OperationError, match="not found") as caught:
        esp_of("esp32c3").efuse.read(name)
    available = caught.value.details["available_efuses"]
    assert len(available) == len(set(available)) > 60
    if name.strip("\0"):
        assert caught.value.hint.startswith("nearest: DIS_PAD_JTAG")
        assert available[0] == "DIS_PAD_JTAG"


def test_the_esp8266_and_a_locked_chip_have_none_to_read(esp_of):
    with pytest.raises(OperationError, match="no eFuse definitions for the ESP8266"):
        esp_of("esp8266").efuse.read_all()
    with pytest.raises(OperationError, match="secure download mode") as caught:
        esp_of("locked").efuse.read("MAC")
    assert "security info" in caught.value.hint


# -- plan and burn


def test_a_burn_is_planned_done_and_read_back(esp):
    plan = esp.efuse.plan("CUSTOM_MAC", MAC)
    assert plan.new_bits > 0
    assert "1" not in plan.before
    assert esp.efuse.plan("CUSTOM_MAC", MAC) == plan  # a plan changes nothing
    result = esp.efuse.burn("CUSTOM_MAC", MAC)
    assert result.value_after.startswith(MAC)
    assert (result.burnt_bits, result.verified, result.changes) == (plan.new_bits, True, plan.changes)
    assert esp.efuse.read("CUSTOM_MAC").bits == plan.after


def test_what_is_burnt_along_is_in_the_plan(esp_of):
    """A custom MAC of the ESP32 has a version and a checksum of its own."""
    changes = {change.efuse_name: change for change in esp_of("esp32").efuse.plan("CUSTOM_MAC", MAC).changes}
    assert {"CUSTOM_MAC", "CUSTOM_MAC_CRC", "MAC_VERSION"} <= changes.keys()
    assert (changes["MAC_VERSION"].before, changes["MAC_VERSION"].after) == ("00000000", "00000001")


@pytest.mark.parametrize("value", [1, True, "1", "0x1"])
def test_a_flag_is_burnt_however_it_is_written(esp_of, value):
    esp = esp_of("esp32c3")
    result = esp.efuse.burn("DIS_PAD_JTAG", value)
    assert (result.value_before, result.value_after, result.burnt_bits) == ("0", "1", 1)
    again = esp.efuse.burn("DIS_PAD_JTAG", value)
    assert (again.burnt_bits, again.changes) == (0, ())


def test_bits_do_not_come_back(esp_of):
    esp = esp_of("esp32c3")
    esp.efuse.burn("UART_PRINT_CONTROL", 1)
    for value in (2, 0):
        with pytest.raises(OperationError, match=r"burnt bits \(01\)") as caught:
            esp.efuse.burn("UART_PRINT_CONTROL", value)
        assert caught.value.hint == "burnt bits cannot be cleared; choose a value that includes them"
    assert esp.efuse.burn("UART_PRINT_CONTROL", 3).burnt_bits == 1
    assert esp.efuse.burn("DIS_PAD_JTAG", 0).burnt_bits == 0


def test_what_is_burnt_already_is_not_staged_for_a_burn(esp_of, monkeypatch):
    esp = esp_of("esp32c3")
    esp.efuse.burn("DIS_PAD_JTAG", 1)
    monkeypatch.setattr(efuse, "_staged", None)
    plan = esp.efuse.plan("DIS_PAD_JTAG", 1)
    assert (plan.new_bits, plan.changes) == (0, ())


def test_protection_bits_are_added_to(esp_of):
    esp = esp_of("esp32c3")
    esp.efuse.burn("WR_DIS", 4)
    assert esp.efuse.plan("WR_DIS", 0x38).new_bits == 3
    assert esp.efuse.burn("WR_DIS", 8).value_after == "12"


@pytest.mark.parametrize(
    ("name", "value"),
    [("DIS_PAD_JTAG", 2), ("CUSTOM_MAC", "11:22"), ("CUSTOM_MAC", "01:00:00:00:00:00"), ("SPI_BOOT_CRYPT_CNT", 4096),
     ("SPI_BOOT_CRYPT_CNT", -1), ("SPI_BOOT_CRYPT_CNT", "many"), ("BLOCK_KEY0", b"short"), ("BLOCK_KEY0", "0xzz")],
)  # fmt: skip
def test_a_value_that_does_not_fit(esp_of, name, value):
    esp = esp_of("esp32c3")
    before = esp.efuse.read_all()
    with pytest.raises(OperationError, match="invalid value") as caught:
        esp.efuse.burn(name, value)
    assert "bits (" in caught.value.hint
    assert esp.efuse.read_all() == before


def test_a_write_protected_field(esp_of):
    esp = esp_of("esp32c3")
    esp.efuse.burn("WR_DIS", 4)
    assert not esp.efuse.read("DIS_PAD_JTAG").writeable
    with pytest.raises(OperationError, match="DIS_PAD_JTAG is write-protected"):
        esp.efuse.burn("DIS_PAD_JTAG", 1)


def test_a_factory_mac_cannot_be_changed(esp_of):
    with pytest.raises(OperationError):
        esp_of("esp32c3").efuse.burn("MAC", "ff:ff:ff:ff:ff:fe")


def test_a_coded_block_is_burnt_once(esp_of):
    """More bits would not fit its Reed-Solomon code: espefuse's own check, before anything is burnt."""
    esp = esp_of("esp32c3")
    esp.efuse.burn("BLOCK_USR_DATA", bytes(31) + b"\x01")
    with pytest.raises(OperationError, match=r"cannot be burnt.*RS coding scheme"):
        esp.efuse.plan("BLOCK_USR_DATA", bytes(30) + b"\x01\x01")
    assert esp.efuse.read("BLOCK_USR_DATA").value.endswith("00 01")


def test_a_combination_that_would_brick_the_chip(esp_of):
    esp = esp_of("esp32s3")
    esp.efuse.burn("DIS_USB_JTAG", 1)
    with pytest.raises(OperationError, match="is incompatible"):
        esp.efuse.burn("DIS_USB_SERIAL_JTAG", 1)


def test_a_key_is_in_no_log_and_no_result(esp_of):
    esp = esp_of("esp32c3")
    key = os.urandom(32)
    results = [
        esp.efuse.plan("BLOCK_KEY0", key),
        esp.efuse.burn("BLOCK_KEY0", key),
        esp.efuse.burn("BLOCK_KEY0", key.hex()),
    ]
    assert [getattr(result, "burnt_bits", None) for result in results[1:]] == [results[0].new_bits, 0]
    assert results[1].verified
    assert esp.efuse.read("BLOCK_KEY0").value == key.hex(" ")
    with pytest.raises(OperationError) as caught:
        esp.efuse.burn("BLOCK_KEY0", os.urandom(32))
    bits = f"{int.from_bytes(key[::-1]):0256b}"
    for text in (json.dumps([to_dict(result) for result in results]), esp.transcript, str(caught.value)):
        assert not any(form in text for form in (key.hex(), key.hex(" "), key[::-1].hex(), bits))


@pytest.mark.parametrize("chip", ["esp32s2", "esp32s3", "esp32c3", "esp32c6"])
def test_a_burn_that_closes_the_registers(esp_of, chip):
    """espefuse leaves the process here (sys.exit); here it is proven by the mode that the chip is in afterwards."""
    esp = esp_of(chip)
    port = esp.link.port
    result = esp.efuse.burn("ENABLE_SECURITY_DOWNLOAD", 1)
    assert (result.burnt_bits, result.value_after, result.verified) == (1, None, True)
    assert esp.chip.identify().secure_download_mode
    assert esp.link.port is port
    assert port.is_open


@pytest.mark.parametrize(("chip", "name"), [("esp32", "UART_DOWNLOAD_DIS"), ("esp32c6", "DIS_DOWNLOAD_MODE")])
def test_a_burn_that_closes_the_loader(esp_of, chip, name):
    esp = esp_of(chip)
    result = esp.efuse.burn(name, 1)
    assert (result.burnt_bits, result.verified) == (1, True)
    with pytest.raises(LinkError):
        esp.chip.identify()
    assert esp.chip.reset("app").mode == "app"


def test_ctrl_c_does_not_cut_a_burn(esp_of, monkeypatch):
    """The interruption comes with the first write to the eFuse controller, and takes effect when all is burnt."""
    esp = esp_of("esp32c3")
    esp.efuse.read("MAC")
    efuses = esp.link.board.simulated.efuses
    write, writes = efuses.write, []

    def interrupting_write(*arguments):
        if not writes:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)
        writes.append(arguments)
        write(*arguments)

    def interrupt(number, frame):
        raise KeyboardInterrupt

    monkeypatch.setattr(efuses, "write", interrupting_write)
    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            esp.efuse.burn("CUSTOM_MAC", MAC)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert len(writes) > 1
    assert esp.efuse.read("CUSTOM_MAC").value.startswith(MAC)


# -- who keeps what


@pytest.mark.in_process
def test_efuses_are_virgin_again_at_the_next_lease_and_flash_is_kept(rack):
    for expected_flash in (b"\xff", b"x"):
        with Link(make_board(rack.board("esp32c3"), rack)) as link:
            esp = Esp(link)
            assert esp.flash.read(0x1000, 1).data == expected_flash
            assert esp.efuse.read("DIS_PAD_JTAG").meaning is False
            esp.flash.write([(0x1000, b"x")])
            esp.efuse.burn("DIS_PAD_JTAG", 1)


def test_a_file_keeps_them(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTEST_ESP_STATE_DIR", str(tmp_path / "state"))
    path = tmp_path / "boards.toml"
    path.write_text('[boards.a]\nbackend="sim"\nchip="esp32c3"\nefuse_file="a.efuse"\n')
    rack = load_rack(path)
    for expected in (False, True):
        with Link(make_board(rack.board("a"), rack)) as link:
            esp = Esp(link)
            assert esp.efuse.read("DIS_PAD_JTAG").meaning is expected
            esp.efuse.burn("DIS_PAD_JTAG", 1)


# -- real boards: consent, and the audit log


@pytest.fixture
def real_link(tmp_path, monkeypatch):
    """Return a maker of links to a board that counts as real: an endpoint with a simulated chip behind it."""
    from pytest_esp.sim.chip import SimChip
    from pytest_esp.wire.endpoints import serve

    monkeypatch.setenv("PYTEST_ESP_STATE_DIR", str(tmp_path / "state"))
    chip = SimChip("esp32c3", mac="7c:df:a1:00:00:01")
    chip.reset(bootloader=True)
    endpoint = serve(chip.wire, "pty:")
    port = endpoint.url.removeprefix("pty:")

    def make(allow, **consent):
        path = tmp_path / "boards.toml"
        path.write_text(f'[boards.real]\nbackend="serial"\nchip="esp32c3"\nport="{port}"\nbaud=115200\n{allow}\n')
        rack = load_rack(path)
        return Link(make_board(rack.board("real"), rack), **consent)

    yield make
    endpoint.close()
    chip.close()


BURN = 'allow=["read","write","erase","burn"]\nallow_burn=["DIS_PAD_JTAG", "BLOCK_KEY0"]'


def entries(link):
    return [json.loads(line) for line in link.burns.audit_file.read_text().splitlines()]


@pytest.mark.parametrize(
    ("allow", "consent", "hint"),
    [
        ("", True, 'add "burn" to `allow`'),
        ('allow=["read","burn"]', True, 'add "DIS_PAD_JTAG" to `allow_burn`'),
        (BURN, False, "--esp-allow-burn"),
    ],
)
def test_a_real_board_is_not_burnt_without_consent(real_link, allow, consent, hint):
    with real_link(allow, burns_enabled=consent) as link, pytest.raises(RefusedError) as caught:
        Esp(link).efuse.burn("DIS_PAD_JTAG", 1)
    assert hint in caught.value.hint
    assert not link.is_open
    assert not link.burns.audit_file.exists()


def test_a_burn_of_a_real_board_is_in_the_audit_log(real_link):
    with real_link(BURN, burns_enabled=True, holder="test_x") as link:
        assert Esp(link).efuse.burn("DIS_PAD_JTAG", 1).verified
        begin, done = entries(link)
        Esp(link).efuse.burn("DIS_PAD_JTAG", 1)
        assert len(entries(link)) == 2  # nothing was burnt
    assert (begin["stage"], done["stage"]) == ("begin", "done")
    assert (begin["efuses"], begin["changes"]) == (
        ["DIS_PAD_JTAG"],
        [{"efuse_name": "DIS_PAD_JTAG", "before": "0", "after": "1"}],
    )
    assert (begin["board"], begin["mac"], begin["holder"]) == ("real", "7c:df:a1:00:00:01", "test_x")
    assert (done["read_back"], done["verified"]) == ({"DIS_PAD_JTAG": "1"}, True)


def test_no_key_is_in_the_audit_log(real_link):
    key = os.urandom(32)
    with real_link(BURN, burns_enabled=True) as link:
        assert Esp(link).efuse.burn("BLOCK_KEY0", key).verified
        hidden = [{"efuse_name": "BLOCK_KEY0", "before": None, "after": None}]
        assert [entry["changes"] for entry in entries(link)] == [hidden, hidden]
        assert entries(link)[1]["read_back"] == {"BLOCK_KEY0": None}
        text = link.burns.audit_file.read_text()
    assert key.hex() not in text
    assert "01" * 8 not in text
    assert f"{int.from_bytes(key[::-1]):0256b}" not in text


def test_nothing_is_burnt_that_cannot_be_logged(real_link):
    with real_link(BURN, burns_enabled=True) as link:
        link.burns.audit_file.mkdir(parents=True)
        with pytest.raises(OperationError, match=r"audit log .* cannot be written") as caught:
            Esp(link).efuse.burn("DIS_PAD_JTAG", 1)
        assert caught.value.hint == "nothing was burnt"
        assert Esp(link).efuse.read("DIS_PAD_JTAG").meaning is False


def test_the_text_for_people_hides_keys(esp_of):
    esp = esp_of("esp32c3")
    key = bytes(range(32))
    esp.efuse.burn("BLOCK_KEY0", key)
    summary = esp.efuse.summary()
    zeros = bytes(32).hex(" ")
    shown = [summary.efuses[name] for name in ("BLOCK_KEY0", "BLOCK_KEY1", "BLOCK_USR_DATA", "DIS_PAD_JTAG")]
    assert shown == ["(a key)", zeros, zeros, "0"]
    text = summary.raw_output
    assert "Security fuses:" in text
    assert "?? ?? ??" in text
    assert key.hex(" ") not in text
    assert text.count("00 00 00 00 00 00 00 00") > 3


def test_a_summary_leaves_stdout_open(esp_of):
    """espefuse's default file is the stdout of its import, which it closes if there is another one by then."""
    default = inspect.signature(BaseCommands.summary).parameters["file"].default
    with contextlib.redirect_stdout(io.StringIO()) as stdout:
        assert "MAC" in esp_of("esp32c3").efuse.summary().raw_output
    assert not default.closed
    assert not stdout.closed
