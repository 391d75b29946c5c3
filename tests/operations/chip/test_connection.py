"""Connecting by strategies, and measuring the link, on simulated chips with lines that are not what they should be."""

import pytest

from pytest_esp.errors import LinkError, OperationError, WrongChipError
from pytest_esp.link.fast import FastLoader
from pytest_esp.sim.chip import SimChip
from pytest_esp.wire.endpoints import serve
from pytest_esp.wire.reset import SLOW_HOST_RISE_TIME


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch):
    monkeypatch.setattr(FastLoader, "longest_wait", 0.05)


def chip_of(esp) -> SimChip:
    assert esp.link.port
    return esp.link.board.simulated


def too_long_a_line(esp, most, monkeypatch):
    """Nothing comes through above *most* baud."""
    chip = chip_of(esp)
    receive = chip.receive
    monkeypatch.setattr(chip, "receive", lambda data: receive(data) if esp.link.port.baudrate <= most else None)


def resets_that_miss(esp, count, monkeypatch):
    """The first *count* resets into the loader start the app."""
    board, reset = esp.link.board, esp.link.board.reset
    left = [count]

    def miss(bootloader):
        left[0] -= bootloader
        return reset(bootloader and left[0] < 0)

    monkeypatch.setattr(board, "reset", miss)


def test_the_first_strategy_does_it_and_the_link_stays_warm(esp):
    found = esp.chip.connect()
    assert (found.chip, found.baudrate, found.attempt, found.stub) == (esp.link.board.chip, 115200, 1, True)
    assert (found.strategy, found.failures) == ("board at 115200 baud", ())
    assert chip_of(esp).mode == "stub"
    assert esp.chip.identify().connection_time_seconds == 0


def test_what_was_asked_for_is_what_the_chip_does(esp):
    found = esp.chip.connect(baudrate=460800, use_stub=False)
    assert (found.baudrate, found.stub) == (460800, False)
    assert chip_of(esp).mode == "bootloader"
    assert chip_of(esp).baudrate == pytest.approx(460800, rel=0.01)
    again = esp.chip.connect(baudrate=921600)
    assert (again.baudrate, again.stub, chip_of(esp).mode) == (921600, True, "stub")
    assert esp.flash.read(0, 16).data == b"\xff" * 16


def test_a_reset_that_misses_is_tried_again(esp_of, monkeypatch):
    esp = esp_of("esp32c3")
    resets_that_miss(esp, 1, monkeypatch)
    found = esp.chip.connect()
    assert (found.attempt, found.strategy, found.baudrate) == (3, "board at 57600 baud", 115200)
    assert [failure.strategy for failure in found.failures] == ["board at 115200 baud", "no-reset at 115200 baud"]
    assert esp.chip.identify().mac_address == chip_of(esp).mac


def test_a_line_that_is_too_long_for_115200_baud(esp_of, monkeypatch):
    esp = esp_of("esp32c3")
    too_long_a_line(esp, 57600, monkeypatch)
    found = esp.chip.connect()
    assert (found.strategy, found.baudrate, found.stub) == ("board at 57600 baud", 57600, True)
    assert found.attempt == 3
    assert [failure.strategy for failure in found.failures] == [
        "board at 115200 baud",
        "no-reset at 115200 baud",
        "115200 baud",  # nor could it be raised, once the stub ran
    ]
    assert esp.flash.read(0, 16).data == b"\xff" * 16  # the link is warm, at that rate


def test_a_baud_rate_that_the_line_does_not_carry(esp_of, monkeypatch):
    esp = esp_of("esp32")
    too_long_a_line(esp, 300_000, monkeypatch)
    found = esp.chip.connect(baudrate=921600)
    assert found.baudrate == 230400
    assert [failure.strategy for failure in found.failures] == ["921600 baud", "460800 baud"]


def test_a_chip_that_never_answers(esp_of, monkeypatch):
    esp = esp_of("esp32c3")
    monkeypatch.setattr(chip_of(esp), "receive", lambda data: None)
    with pytest.raises(LinkError, match="any of 3 attempts") as caught:
        esp.chip.connect(retries=3)
    assert [line.partition(":")[0] for line in caught.value.details["attempts"]] == [
        "board at 115200 baud",
        "no-reset at 115200 baud",
        "board at 57600 baud",
    ]


def test_the_rom_of_an_esp8266_has_one_baud_rate(esp_of):
    found = esp_of("esp8266").chip.connect(baudrate=230400, use_stub=False)
    assert (found.baudrate, found.stub) == (115200, False)
    assert "does not support" in found.failures[0].error


def test_arguments_that_make_no_sense(esp_of):
    esp = esp_of("esp32c3")
    for call in (
        lambda: esp.chip.connect(baudrate=0),
        lambda: esp.chip.connect(retries=0),
        lambda: esp.chip.check_connection(rounds=0),
        lambda: esp.chip.check_connection(highest=-1),
    ):
        with pytest.raises(OperationError):
            call()


@pytest.fixture
def served(make_esp):
    """Serve a chip on a port with control lines: a function from the chip that its entry claims to the operations."""
    chip = SimChip("esp32c3", rise_time=SLOW_HOST_RISE_TIME)
    chip.reset(bootloader=False)
    endpoint = serve(chip.wire, "rfc2217://127.0.0.1:0")
    yield lambda claimed: make_esp(backend="serial", chip=claimed, port=endpoint.url, baud=230400)
    endpoint.close()
    chip.close()


def test_a_port_with_control_lines(served, monkeypatch):
    monkeypatch.setattr(FastLoader, "longest_wait", 3.0)
    found = served("esp32c3").chip.connect()
    assert found.strategy in ("classic at 115200 baud", "classic-long at 115200 baud")
    assert (found.baudrate, found.stub) == (230400, True)  # as boards.toml says


def test_another_chip_is_no_reason_to_try_on(served, monkeypatch):
    monkeypatch.setattr(FastLoader, "longest_wait", 3.0)
    with pytest.raises(WrongChipError, match="this is an ESP32-C3, not an ESP32"):
        served("esp32").chip.connect()


# -- measuring


def test_a_good_link(esp):
    found = esp.chip.check_connection(rounds=4)
    assert (found.highest_stable, found.errors, found.stub) == (921600, 0, True)
    assert [speed.baudrate for speed in found.speeds] == [115200, 230400, 460800, 921600]
    for speed in found.speeds:
        assert (speed.rounds, speed.errors) == (4, 0)
        assert 0 < speed.latency <= speed.worst_latency
        assert speed.bytes_per_second > 0
    assert esp.link.port.baudrate == 115200  # as before
    assert esp.chip.identify().connection_time_seconds == 0


def test_a_link_that_ends_at_a_baud_rate(esp_of, monkeypatch):
    esp = esp_of("esp32c3")
    too_long_a_line(esp, 300_000, monkeypatch)
    found = esp.chip.check_connection(rounds=2)
    assert found.highest_stable == 230400
    assert [(speed.baudrate, speed.errors > 0) for speed in found.speeds] == [
        (115200, False),
        (230400, False),
        (460800, True),
    ]
    assert esp.chip.identify().mac_address == chip_of(esp).mac


def test_flash_that_comes_out_wrong_is_counted(esp_of, monkeypatch):
    """The bytes arrive well, and are not those that the chip has an MD5 of."""
    esp = esp_of("esp32c3")
    esp.chip.connect()
    monkeypatch.setattr(chip_of(esp).flash, "md5", lambda address, size: b"\0" * 16)
    found = esp.chip.check_connection(rounds=2)
    assert (found.highest_stable, found.errors) == (None, 2)
    assert (found.speeds[0].md5_errors, found.speeds[0].register_errors, found.speeds[0].sync_errors) == (2, 0, 0)


def test_registers_that_forget_are_counted(esp_of, monkeypatch):
    esp = esp_of("esp32")
    esp.chip.connect()
    bus = chip_of(esp).bus
    read = bus.read
    monkeypatch.setattr(bus, "read", lambda address: read(address) & ~0x100)
    assert esp.chip.check_connection(rounds=2).speeds[0].register_errors == 2


def test_secure_download_mode_answers_sync_only(esp_of):
    found = esp_of("locked").chip.check_connection(rounds=2)
    assert (found.errors, found.stub) == (0, False)
    assert found.speeds[0].latency is None
    assert found.speeds[0].bytes_per_second is None
