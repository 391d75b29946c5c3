"""The app's first output, and boards that are brought back, on simulated chips; a crashing app on QEMU."""

import time
from pathlib import Path

import pytest

from pytest_esp.errors import LinkError, OperationError, RefusedError, StoppedError, WrongChipError
from pytest_esp.link.fast import FastLoader

FIRMWARE = Path(__file__).parents[2] / "firmware" / "build"
STEPS = ["reset", "power cycle", "boot strap", "lower baud rate", "stub", "ROM without stub", "boot", "erase app"]


@pytest.fixture
def board(monkeypatch, make_esp):
    """Make a board: a function from keys of boards.toml to the operations on it."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    return lambda **keys: make_esp(**{"backend": "sim", "chip": "esp32c3", **keys})


@pytest.fixture
def with_app(board):
    """Make a simulated ESP32-C3 with our test firmware in its flash, and this class in the place of its code."""

    def make(app, **keys):
        esp = board(app=app, **keys)
        esp.flash.write(FIRMWARE / "esp32c3")
        return esp

    return make


def outcomes(recovery):
    return {step.name: step.outcome for step in recovery.steps}


# -- the app


def test_first_output(with_app):
    run = with_app("hello").chip.run_firmware(wait_seconds=5, until="Hello world!")
    assert (run.state, run.matched, run.crash, run.reason) == ("running", True, None, "POWERON")
    assert (run.project, run.version, run.offset) == ("pytest_esp_test", "1.0.0", 0x10000)
    assert run.output.startswith("ESP-ROM:esp32c3")
    assert run.lines[0] == (0.0, "ESP-ROM:esp32c3-api1-20210207")
    assert run.lines[-1][1] == "Hello world!"
    assert run.seconds < 5


def test_what_the_app_said_before_does_not_count(with_app):
    esp = with_app("hello")
    for _ in range(2):
        run = esp.chip.run_firmware(wait_seconds=0.1)
        assert run.output.count("ESP-ROM") == run.output.count("Hello world!") == 1
    assert esp.chip.run_firmware(wait_seconds=0.05, until="Goodbye").matched is False


def test_an_app_that_crashes(with_app):
    run = with_app("selftest_app:CrashLoop").chip.run_firmware(wait_seconds=5)
    assert run.state == "crashed"
    assert "Store access fault" in run.crash
    assert run.project == "pytest_esp_test"


def test_nothing_to_start(board):
    run = board().chip.run_firmware(wait_seconds=1)
    assert (run.state, run.project, run.offset) == ("not bootable", None, None)
    assert "blank" in run.crash
    assert board(chip="esp8266").chip.run_firmware(wait_seconds=0.05).state == "not bootable"


def test_an_app_that_says_nothing(with_app, monkeypatch):
    esp = with_app("hello")
    monkeypatch.setattr(esp.link.board.simulated, "transmit", lambda data: None)
    assert esp.chip.run_firmware(wait_seconds=0.05).state == "silent"
    with pytest.raises(OperationError, match="invalid duration: 0 s"):
        esp.chip.run_firmware(wait_seconds=0)


def test_what_the_app_says_later(with_app):
    esp = with_app("hello")
    said = esp.chip.monitor(5, "Hello world!", reset=True)
    assert (said.matched, said.crash, said.lines[0][0]) == ("Hello world!", None, 0.0)
    assert esp.chip.monitor(0.1).lines == ()
    esp.chip.monitor(0.1, elf_file=FIRMWARE / "esp32c3" / "pytest_esp_test.elf")
    assert esp.link.console.elf == FIRMWARE / "esp32c3" / "pytest_esp_test.elf"
    with pytest.raises(OperationError, match="invalid duration: 301 s"):
        esp.chip.monitor(301)


@pytest.mark.parametrize("listen", ["monitor", "run_firmware"])
def test_listening_can_be_stopped(with_app, listen):
    """Cancelled like the call of an MCP client; the board is free again at once."""
    esp, told = with_app("hello"), []

    def stop(done, total):
        told.append((done, total))
        raise StoppedError("enough")

    begun = time.monotonic()
    with pytest.raises(StoppedError):
        getattr(esp.chip, listen)(60.0, progress=stop)
    assert time.monotonic() - begun < 20
    assert told == [(1, 60)]
    assert esp.chip.identify().chip_type == "esp32c3"


# -- recovery


def test_a_board_that_is_well(with_app):
    found = with_app("hello").chip.recover(wait_seconds=0.1)
    assert (found.chip_type, found.state, found.next) == ("esp32c3", "running", None)
    assert list(outcomes(found)) == STEPS
    assert [name for name, outcome in outcomes(found).items() if outcome == "worked"] == ["reset", "stub", "boot"]


def test_a_blank_board_is_told_what_it_needs(board):
    found = board().chip.recover(wait_seconds=1)
    assert found.state == "not bootable"
    assert found.next == "flash a bootloader, a partition table and an app"
    assert outcomes(found)["boot"] == "failed"


def test_a_crashing_app_is_left_alone_unless_it_was_asked_for(with_app):
    esp = with_app("selftest_app:CrashLoop")
    before = esp.flash.md5(0, 0x50000)
    found = esp.chip.recover(wait_seconds=5)
    assert found.state == "crashed"
    assert found.steps[-1].detail == "not requested"
    assert "Store access fault" in found.steps[-2].detail
    assert esp.flash.md5(0, 0x50000) == before


def test_a_crashing_app_is_erased_and_nothing_else(with_app):
    esp = with_app("selftest_app:CrashLoop")
    head, table = esp.flash.md5(0, 0x8000), esp.partitions.read()
    found = esp.chip.recover(erase_app=True, wait_seconds=5)
    assert (found.state, found.next) == ("erased", "flash an app")
    assert found.steps[-1].detail == "factory: 0x40000 bytes at 0x10000"
    assert esp.flash.read(0x10000, 0x40000).data == b"\xff" * 0x40000
    assert (esp.flash.md5(0, 0x8000), esp.partitions.read()) == (head, table)
    assert esp.chip.run_firmware(wait_seconds=1).state == "not bootable"


def test_an_app_that_lives_is_never_erased(with_app):
    esp = with_app("hello")
    before = esp.flash.md5(0, 0x50000)
    assert outcomes(esp.chip.recover(erase_app=True, wait_seconds=0.1))["erase app"] == "skipped"
    assert esp.flash.md5(0, 0x50000) == before


def test_erasing_needs_leave(board):
    esp = board(allow=["read", "write"])
    with pytest.raises(RefusedError, match="requires 'erase'"):
        esp.chip.recover(erase_app=True)
    assert not esp.link.is_open  # the wire was not touched
    assert esp.chip.recover(wait_seconds=0.1).state == "not bootable"


@pytest.fixture
def short_waits(monkeypatch):
    monkeypatch.setattr(FastLoader, "longest_wait", 0.02)


@pytest.mark.usefixtures("short_waits")
def test_a_chip_that_needs_its_power_cut(with_app, monkeypatch):
    esp = with_app("hello")
    board, chip = esp.link.board, esp.link.board.simulated
    receive, cycle = chip.receive, board.power_cycle
    hung = [True]
    monkeypatch.setattr(chip, "receive", lambda data: None if hung else receive(data))

    def power_cycle():
        hung.clear()
        cycle()

    monkeypatch.setattr(board, "power_cycle", power_cycle)
    found = esp.chip.recover(wait_seconds=0.1)
    assert outcomes(found) | {"reset": "failed", "power cycle": "worked", "boot strap": "skipped"} == outcomes(found)
    assert found.state == "running"


@pytest.mark.usefixtures("short_waits")
def test_a_chip_behind_a_bad_line(with_app, monkeypatch):
    esp = with_app("hello")
    chip = esp.link.board.simulated
    receive = chip.receive
    monkeypatch.setattr(chip, "receive", lambda data: receive(data) if esp.link.port.baudrate <= 40_000 else None)
    found = esp.chip.recover(wait_seconds=0.1)
    assert [step.outcome for step in found.steps[:4]] == ["failed", "failed", "failed", "worked"]
    assert found.steps[3].detail == "board at 38400 baud"
    assert found.state == "running"


@pytest.mark.usefixtures("short_waits")
def test_a_stub_that_does_not_start(with_app, monkeypatch):
    esp = with_app("hello")
    chip = esp.link.board.simulated
    monkeypatch.setattr(chip, "_start_stub", chip.hold)
    esp.link.session.drop()
    found = esp.chip.recover(wait_seconds=0.1)
    assert (outcomes(found)["stub"], outcomes(found)["ROM without stub"]) == ("failed", "worked")


@pytest.mark.usefixtures("short_waits")
def test_a_dead_board(board, monkeypatch):
    esp = board()
    assert esp.link.port
    monkeypatch.setattr(esp.link.board.simulated, "receive", lambda data: None)
    with pytest.raises(LinkError, match="cannot be reached by any measure") as caught:
        esp.chip.recover()
    steps = caught.value.details["steps"]
    assert [step["name"] for step in steps] == STEPS[:4]
    assert {step["outcome"] for step in steps} == {"failed"}
    assert "BOOT button" in caught.value.hint


def test_another_chip_is_not_recovered(board, monkeypatch):
    esp = board()
    assert esp.link.port
    esp.link.session.expected_chip = "esp32"
    with pytest.raises(WrongChipError):
        esp.chip.recover(erase_app=True)


@pytest.mark.qemu
def test_a_boot_loop_on_qemu_is_ended(board, need_qemu):
    """Machine code that crashes at every boot; the measures are those that a real board gets."""
    need_qemu("esp32c3")
    esp = board(backend="qemu", flash_size="2MB")
    esp.flash.write(FIRMWARE / "esp32c3")
    esp.chip.run_firmware(wait_seconds=20, until="ready")
    esp.link.console.write("abort\n")
    esp.link.console.expect("Rebooting", timeout=20, ignore_crashes=True)
    found = esp.chip.recover(erase_app=True, wait_seconds=2)
    assert found.state == "running"  # once is no loop
    esp.flash.write([(0x10100, b"\0" * 64)])  # the image's hash is wrong now: the bootloader tries, and gives up
    found = esp.chip.recover(erase_app=True, wait_seconds=10)
    assert found.state == "erased"
    assert esp.flash.read(0x10000, 4096).data == b"\xff" * 4096
