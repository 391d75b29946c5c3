"""Connecting by strategies, and measuring the link, on simulated chips with faulty lines."""

from types import SimpleNamespace

import pytest
from esptool.reset import ClassicReset, UnixTightReset, USBJTAGSerialReset
from esptool.util import FatalError

from pytest_esp.boards.board import Board
from pytest_esp.errors import LinkError, OperationError, WrongChipError
from pytest_esp.link.fast import FastLoader
from pytest_esp.operations.chip import connection
from pytest_esp.operations.chip.connection import Strategy, connect_by, strategies
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
    """No bytes get through above *most* baud."""
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


@pytest.mark.in_process
def test_the_first_strategy_does_it_and_the_link_stays_warm(esp):
    found = esp.chip.connect()
    assert (found.chip_type, found.baud, found.attempt, found.stub_loaded) == (esp.link.board.chip, 115200, 1, True)
    assert (found.strategy, found.failures) == ("board at 115200 baud", ())
    assert chip_of(esp).mode == "stub"
    assert esp.chip.identify().connection_time_seconds == 0


def test_what_was_asked_for_is_what_the_chip_does(esp):
    found = esp.chip.connect(baud=460800, use_stub=False)
    assert (found.baud, found.stub_loaded) == (460800, False)
    assert chip_of(esp).mode == "bootloader"
    assert chip_of(esp).baudrate == pytest.approx(460800, rel=0.01)
    again = esp.chip.connect(baud=921600)
    assert (again.baud, again.stub_loaded, chip_of(esp).mode) == (921600, True, "stub")
    assert esp.flash.read(0, 16).data == b"\xff" * 16


@pytest.mark.in_process
def test_a_reset_that_misses_is_tried_again(esp_of, monkeypatch):
    esp = esp_of("esp32c3")
    resets_that_miss(esp, 1, monkeypatch)
    found = esp.chip.connect()
    assert (found.attempt, found.strategy, found.baud) == (3, "board at 57600 baud", 115200)
    assert [failure.strategy for failure in found.failures] == ["board at 115200 baud", "no-reset at 115200 baud"]
    assert esp.chip.identify().mac_address == chip_of(esp).mac


def test_a_line_that_is_too_long_for_115200_baud(esp_of, monkeypatch):
    esp = esp_of("esp32c3")
    too_long_a_line(esp, 57600, monkeypatch)
    found = esp.chip.connect()
    assert (found.strategy, found.baud, found.stub_loaded) == ("board at 57600 baud", 57600, True)
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
    found = esp.chip.connect(baud=921600)
    assert found.baud == 230400
    assert [failure.strategy for failure in found.failures] == ["921600 baud", "460800 baud"]


def test_a_chip_that_never_answers(esp_of, monkeypatch):
    esp = esp_of("esp32c3")
    monkeypatch.setattr(chip_of(esp), "receive", lambda data: None)
    with pytest.raises(LinkError, match="attempts: 3") as caught:
        esp.chip.connect(retries=3)
    assert [line.partition(":")[0] for line in caught.value.details["attempts"]] == [
        "board at 115200 baud",
        "no-reset at 115200 baud",
        "board at 57600 baud",
    ]


def test_the_rom_of_an_esp8266_has_one_baud_rate(esp_of):
    found = esp_of("esp8266").chip.connect(baud=230400, use_stub=False)
    assert (found.baud, found.stub_loaded) == (115200, False)
    assert "does not support" in found.failures[0].error


def test_arguments_that_make_no_sense(esp_of):
    esp = esp_of("esp32c3")
    for call in (
        lambda: esp.chip.connect(baud=0),
        lambda: esp.chip.connect(retries=0),
        lambda: esp.chip.check_connection(rounds=0),
        lambda: esp.chip.check_connection(rounds=-1),
        lambda: esp.chip.check_connection(highest_baud=-1),
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
    assert (found.baud, found.stub_loaded) == (230400, True)  # as boards.toml says


def test_another_chip_is_no_reason_to_try_on(served, monkeypatch):
    monkeypatch.setattr(FastLoader, "longest_wait", 3.0)
    with pytest.raises(WrongChipError, match="this is an ESP32-C3, not an ESP32"):
        served("esp32").chip.connect()


# -- measuring


@pytest.mark.in_process
def test_a_good_link(esp):
    found = esp.chip.check_connection(rounds=4)
    assert (found.highest_stable, found.errors, found.stub_loaded) == (921600, 0, True)
    assert [speed.baud for speed in found.speeds] == [115200, 230400, 460800, 921600]
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
    assert [(speed.baud, speed.errors > 0) for speed in found.speeds] == [
        (115200, False),
        (230400, False),
        (460800, True),
    ]
    assert esp.chip.identify().mac_address == chip_of(esp).mac


def test_flash_that_comes_out_wrong_is_counted(esp_of, monkeypatch):
    """The bytes arrive intact, but do not match the chip's MD5."""
    esp = esp_of("esp32c3")
    esp.chip.connect()
    monkeypatch.setattr(chip_of(esp).flash, "md5", lambda address, size: b"\0" * 16)
    found = esp.chip.check_connection(rounds=2)
    assert (found.highest_stable, found.errors, found.speeds[0].errors) == (None, 2, 2)
    assert (found.speeds[0].md5_errors, found.speeds[0].register_errors, found.speeds[0].sync_errors) == (2, 0, 0)


@pytest.mark.parametrize("spoil", [lambda value: value & ~0x100, lambda value: value | 0x200], ids=["lower", "higher"])
def test_registers_that_forget_are_counted(esp_of, monkeypatch, spoil):
    esp = esp_of("esp32")
    esp.chip.connect()
    bus = chip_of(esp).bus
    read = bus.read
    monkeypatch.setattr(bus, "read", lambda address: spoil(read(address)))
    found = esp.chip.check_connection(rounds=2)
    assert (found.errors, found.speeds[0].errors, found.speeds[0].register_errors) == (2, 2, 2)


def test_secure_download_mode_answers_sync_only(esp_of):
    found = esp_of("locked").chip.check_connection(rounds=2)
    assert (found.errors, found.stub_loaded) == (0, False)
    assert [speed.baud for speed in found.speeds] == [115200, 230400, 460800, 921600]
    assert found.speeds[0].latency is None
    assert found.speeds[0].bytes_per_second is None


def test_a_chip_that_does_nothing_is_given_up_after_three_errors(esp_of, monkeypatch):
    esp = esp_of("esp32")
    esp.chip.connect()
    chip = chip_of(esp)
    read = chip.bus.read
    monkeypatch.setattr(chip.bus, "read", lambda address: read(address) & ~0x100)
    (speed,) = esp.chip.check_connection(rounds=9).speeds
    assert (speed.rounds, speed.register_errors, speed.md5_errors) == (3, 3, 0)
    monkeypatch.setattr(chip.flash, "md5", lambda address, size: b"\0" * 16)
    found = esp.chip.check_connection(rounds=9)
    assert [(speed.rounds, speed.register_errors, speed.md5_errors) for speed in found.speeds] == [(2, 2, 2)]
    assert found.errors == 4


@pytest.mark.in_process
def test_the_rates_that_are_tried(esp_of):
    def tried(name, highest):
        return [speed.baud for speed in esp_of(name).chip.check_connection(1, highest).speeds]

    assert tried("esp32c3", 300_000) == [115200, 230400, 300_000]
    assert tried("esp32c3", 3_000_000) == [115200, 230400, 460800, 921600, 1_500_000, 2_000_000, 3_000_000]
    assert tried("esp32c3", 115200) == [115200]
    assert tried("esp32c3", 57600) == [57600]
    assert tried("esp8266", 230400) == [115200, 230400]  # its stub can change it


def test_the_rom_of_an_esp8266_is_measured_at_its_rate(esp_of, monkeypatch):
    esp = esp_of("esp8266")
    monkeypatch.setattr(type(esp.link.board), "uploads_slowly", True)
    found = esp.chip.check_connection(1)
    assert [speed.baud for speed in found.speeds] == [115200]
    assert not found.stub_loaded


def test_as_many_rounds_as_may_be(esp_of):
    esp = esp_of("locked")
    assert esp.chip.check_connection(rounds=1000, highest_baud=115200).speeds[0].rounds == 1000
    assert esp.chip.check_connection(rounds=1, highest_baud=115200).speeds[0].rounds == 1
    with pytest.raises(OperationError, match="rounds must be 1 to 1000, not 1001"):
        esp.chip.check_connection(rounds=1001)


class Clock:
    """Each call returns the next of *times*, and then always the last one."""

    def __init__(self, *times):
        self.times = list(times)

    def monotonic(self):
        return self.times.pop(0) if len(self.times) > 1 else self.times[0]


@pytest.mark.parametrize(("stub", "size"), [(True, 4096), (False, 256)])
def test_what_is_measured(esp_of, monkeypatch, stub, size):
    """Round trips of 1, 2 and 6 s, then a block of flash in 8 s."""
    esp = esp_of("esp32c3")
    monkeypatch.setattr(type(esp.link.board), "uploads_slowly", not stub)
    esp.chip.connect(use_stub=stub)
    monkeypatch.setattr(connection, "time", Clock(0.5, 10, 11, 20, 22, 30, 36, 40, 48, 100))
    found = esp.chip.check_connection(rounds=1, highest_baud=115200)
    (speed,) = found.speeds
    assert (speed.latency, speed.worst_latency, speed.bytes_per_second) == (2, 6, size / 8)
    assert (found.seconds, found.stub_loaded) == (99.5, stub)


def test_registers_get_patterns_and_flash_is_read_all_over(esp_of, monkeypatch):
    esp = esp_of("esp32")
    esp.chip.connect()
    chip, written, addresses = chip_of(esp), [], []
    write, md5 = chip.bus.write, chip.flash.md5

    def note_write(address, value, *mask):
        written.append((address, value))
        write(address, value, *mask)

    def note_md5(address, size):
        addresses.append((address, size))
        return md5(address, size)

    monkeypatch.setattr(chip.bus, "write", note_write)
    monkeypatch.setattr(chip.flash, "md5", note_md5)
    assert esp.chip.check_connection(rounds=17, highest_baud=115200).errors == 0
    echoes = [value for address, value in written if address == 0x3FF42000 + 0x80 + 60]  # SPI_W15
    assert len(echoes) == 3 * 17
    assert {0x55AA55AA, 0xC0DBDCDD} < set(echoes)
    assert len(set(echoes)) == 2 + 17
    asked = [address for address, size in addresses if size == 4096]
    assert asked == [0x1000 * (number % 16) for number in range(1, 18)]


# -- strategies


class ByLines:
    """A board that is reset by its control lines."""

    reset = Board.reset


class ByItself:
    """A board that has a reset of its own."""

    def reset(self, *, bootloader): ...


@pytest.mark.parametrize(
    ("kind", "port", "system", "resets"),
    [
        (ByItself, "socket://lab:1", "posix", ["board", "no-reset"]),
        (ByLines, "socket://lab:1", "posix", ["no-reset"]),
        (ByLines, "rfc2217://lab:1", "posix", ["classic", "classic-long", "no-reset"]),
        (ByLines, "COM3", "nt", ["classic", "classic-long", "no-reset"]),
        (
            ByLines,
            "/dev/ttyUSB0",
            "posix",
            ["tight", "tight-long", "classic", "classic-long", "usb-jtag", "no-reset"],
        ),
    ],
)
def test_ways_into_the_loader(monkeypatch, kind, port, system, resets):
    monkeypatch.setattr(connection, "os", SimpleNamespace(name=system))
    found = strategies(SimpleNamespace(board=kind(), port=SimpleNamespace(name=port)))
    slower = [Strategy(resets[0], baudrate) for baudrate in (57600, 38400, 19200)]
    assert found == [*(Strategy(name, 115200) for name in resets), *slower]
    assert len(set(found)) == len(found)


class Loader:
    """Stands for esptool's loader: it notes how it is reset, and answers after so many attempts."""

    _port = SimpleNamespace(name="/dev/ttyUSB0")

    def __init__(self, error=None, silent=0):
        self.error = error
        self.silent = silent
        self.flushed = 0

    def _connect_attempt(self, reset, mode):
        self.reset, self.mode = reset, mode
        return self.error

    def flush_input(self):
        self.flushed += 1

    def sync(self):
        self.silent -= 1
        if self.silent >= 0:
            raise FatalError("no answer")


def enter_by(strategy, loader, board=None):
    """Let *loader* be reset by *strategy*; return at which baud rates."""
    rates = []

    def connect(words, enter, *, hello, baudrate):
        assert words == str(strategy)
        rates.extend((hello, baudrate))
        enter(loader)

    connect_by(SimpleNamespace(board=board, session=SimpleNamespace(connect_by=connect)), strategy)
    return rates


@pytest.mark.parametrize(
    ("name", "kind", "delay"),
    [
        ("tight", UnixTightReset, 0.05),
        ("tight-long", UnixTightReset, 0.55),
        ("classic", ClassicReset, 0.05),
        ("classic-long", ClassicReset, 0.55),
        ("usb-jtag", USBJTAGSerialReset, 0.05),
    ],
)
def test_resets_by_control_lines(name, kind, delay):
    loader = Loader()
    assert enter_by(Strategy(name, 57600), loader) == [57600, 57600]
    assert type(loader.reset) is kind
    assert loader.reset.reset_delay == pytest.approx(delay)
    assert loader.mode == "default-reset"


def test_a_chip_that_is_in_its_loader_is_not_reset():
    loader = Loader()
    enter_by(Strategy("no-reset"), loader)
    assert (loader.reset, loader.mode) == (None, "no-reset")
    with pytest.raises(FatalError, match="wrong boot mode"):
        enter_by(Strategy("no-reset"), Loader(FatalError("wrong boot mode")))


def test_a_board_that_resets_itself_is_waited_for(monkeypatch):
    """It waits for the longest possible boot, and no longer."""
    resets = []
    board = SimpleNamespace(reset=lambda *, bootloader: resets.append(bootloader), boot_seconds=10.0)
    monkeypatch.setattr(connection, "time", Clock(100.0, 109.9))
    loader = Loader(silent=3)
    enter_by(Strategy("board"), loader, board)
    assert (resets, loader.flushed) == ([True], 4)
    monkeypatch.setattr(connection, "time", Clock(100.0, 109.9, 110.0))
    loader = Loader(silent=3)
    with pytest.raises(FatalError):
        enter_by(Strategy("board"), loader, board)
    assert loader.flushed == 2


def test_the_ways_are_tried_over_and_over(esp_of, monkeypatch):
    """Seven attempts by default."""
    esp = esp_of("esp32c3")
    monkeypatch.setattr(chip_of(esp), "receive", lambda data: None)
    with pytest.raises(LinkError, match=r"attempts: 7\); last error: \S") as caught:
        esp.chip.connect()
    ways = [line.partition(":")[0] for line in caught.value.details["attempts"]]
    assert ways[:5] == [str(way) for way in strategies(esp.link)]
    assert ways[5:] == ways[:2]
    with pytest.raises(LinkError, match="attempts: 1"):
        esp.chip.connect(retries=1)


def test_the_last_error_is_named(esp_of, monkeypatch):
    reasons = iter(["no answer", "wrong boot mode", "noise"])

    def fail(link, strategy):
        raise LinkError(next(reasons))

    monkeypatch.setattr(connection, "connect_by", fail)
    with pytest.raises(LinkError, match=r"attempts: 3\); last error: noise"):
        esp_of("esp32c3").chip.connect(retries=3)


def test_a_chip_that_answers_a_sync_and_nothing_else(esp_of, monkeypatch):
    esp = esp_of("esp32c3")
    reasons = iter(["the stub does not start", "no answer", "no answer", "noise"])

    def refuse(*_, **__):
        raise LinkError(next(reasons))

    monkeypatch.setattr(esp.link.session, "use", refuse)
    with pytest.raises(LinkError, match="nothing after it; last error: noise") as caught:
        esp.chip.connect(baud=460800)
    tried = [line.partition(":")[0] for line in caught.value.details["attempts"]]
    assert list(dict.fromkeys(tried)) == ["460800 baud", "230400 baud", "115200 baud"]


def test_how_long_it_took(esp_of, monkeypatch):
    esp = esp_of("esp32c3")
    monkeypatch.setattr(connection, "time", Clock(100.0, 103.5))
    assert esp.chip.connect().seconds == 3.5
