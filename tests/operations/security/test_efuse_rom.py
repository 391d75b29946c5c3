"""eFuses are burnt by the ROM alone: the stub raises the clock of some chips, and esptool writes no timing for that."""

import io
import os

import pytest
from esptool.targets import CHIP_LIST

from pytest_esp.errors import LinkError
from pytest_esp.operations.security import efuse

MAC = "00:11:22:33:44:55"
WITH_EFUSES = [chip for chip in CHIP_LIST if chip != "esp8266"]


def a_flag(esp):
    """Return the name of an eFuse of one bit that closes nothing."""
    fields = esp.efuse.read_all().fields
    names = ("DISABLE_DL_CACHE", "SECURE_BOOT_AGGRESSIVE_REVOKE", "DIS_PAD_JTAG", "DIS_DOWNLOAD_MANUAL_ENCRYPT")
    return next(name for name in names if name in fields)


def run_stub(esp):
    esp.flash.md5(0, 0x1000, over="wire")
    assert esp.link.session.is_stub


def read_and_run_stub(esp):
    esp.efuse.read_all()
    run_stub(esp)


def read_through_stub(esp):
    run_stub(esp)
    esp.efuse.read_all()


def change_baudrate(esp):
    esp.link.session.change_baudrate(921600)


def connect_faster(esp):
    esp.chip.connect(baud=460800)


def connect_faster_without_stub(esp):
    esp.chip.connect(baud=460800, use_stub=False)


def find_a_running_stub(esp):
    """Connect without a reset: esptool takes the stub that runs for the ROM, and keeps the ROM's class."""
    run_stub(esp)
    esp.link.session.connect_by("without a reset", lambda loader: loader.sync(), baudrate=115200)
    assert not esp.link.session.is_stub
    assert esp.link.board.simulated.mode == "stub"


BEFORE = [read_and_run_stub, read_through_stub, run_stub, change_baudrate, connect_faster,
          connect_faster_without_stub, find_a_running_stub]  # fmt: skip


@pytest.fixture
def burners(monkeypatch):
    """A function that returns what runs on a board's chip (its mode and baud rate) at each write to its eFuses."""

    def watch(esp):
        chip = esp.link.port and esp.link.board.simulated
        write, seen = chip.efuses.write, []

        def watched(*arguments):
            seen.append((chip.mode, chip.baudrate))
            write(*arguments)

        monkeypatch.setattr(chip.efuses, "write", watched)
        return seen

    return watch


BY_ROM = {("bootloader", 115200)}


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("chip", ["esp32", "esp32s2", "esp32c2", "esp32c5", "esp32c3"])
def test_whatever_ran_before(esp_of, burners, chip, before):
    esp = esp_of(chip)
    seen = burners(esp)
    before(esp)
    assert esp.efuse.burn("CUSTOM_MAC", MAC).verified
    assert set(seen) == BY_ROM
    assert esp.efuse.read("CUSTOM_MAC").value.startswith(MAC)


@pytest.mark.parametrize("chip", WITH_EFUSES)
def test_the_session_works_on(esp_of, burners, chip):
    esp = esp_of(chip)
    name = a_flag(esp)
    esp.flash.write([(0x1000, b"before")])
    connect_faster(esp)
    seen = burners(esp)
    assert esp.efuse.burn(name, 1).verified
    assert set(seen) == BY_ROM
    assert esp.flash.read(0x1000, 6).data == b"before"
    has_stub = bool(esp.link.board.simulated.model.stub_entries)
    assert (esp.link.session.is_stub, esp.link.port.baudrate) == (has_stub, 460800 if has_stub else 115200)
    assert esp.efuse.read(name).meaning is True
    assert esp.efuse.burn(name, 1).burnt_bits == 0
    assert esp.link.session.is_stub == has_stub  # where there is nothing to burn, nothing is reset


def test_all_burns_of_one_call_enter_the_rom_once(esp_of, burners):
    esp = esp_of("esp32")
    run_stub(esp)
    seen = burners(esp)
    resets = []
    reset = esp.link.board.reset
    esp.link.board.reset = lambda **how: resets.append(how) or reset(**how)
    efuse.burn_all(esp.link, [("CUSTOM_MAC", MAC), ("JTAG_DISABLE", 1), ("CONSOLE_DEBUG_DISABLE", 1)])
    assert set(seen) == BY_ROM
    assert len(resets) == 1


@pytest.mark.parametrize("chip", ["esp32", "esp32s2", "esp32c3"])
@pytest.mark.parametrize("batch", [False, True], ids=["at once", "in a batch"])
def test_espefuse_s_own_commands_over_the_session(esp_of, burners, chip, batch):
    esp = esp_of(chip)
    seen = burners(esp)
    secret = os.urandom(32)
    key = io.BytesIO(secret)
    key.name = "key"
    name = a_flag(esp)
    with esp.link.session.use("burning", flash=True) as loader:
        assert loader.IS_STUB
        commands = esp.link.session.espefuse(loader)
        if batch:
            commands.use_batch_mode()
        commands.burn_efuse({name: 1})
        if chip == "esp32":
            commands.burn_key(["flash_encryption"], [key])
        else:
            commands.burn_key(["BLOCK_KEY0"], [key], ["XTS_AES_128_KEY"])
        if batch:
            assert not seen
            assert esp.link.session.is_stub
            commands.burn_all()
    assert set(seen) == BY_ROM
    efuses = esp.link.board.simulated.efuses
    assert efuses.field(name) == 1
    assert efuses.encryption_key() == secret


@pytest.mark.parametrize("chip", ["esp32", "esp32s2", "esp32c3"])
def test_flash_encryption(esp_of, burners, build_for, tmp_path, chip):
    esp = esp_of(chip)
    seen = burners(esp)
    (tmp_path / "key").write_bytes(os.urandom(32))
    assert esp.encryption.enable(build_for(chip), tmp_path / "key").burnt
    assert set(seen) == BY_ROM


@pytest.mark.parametrize("chip", ["esp32", "esp32s2"])
def test_secure_boot(esp_of, burners, build_for, sign, chip):
    esp = esp_of(chip)
    seen = burners(esp)
    pairs, key = sign(build_for(chip), "rsa3072")
    assert esp.security.enable_secure_boot(pairs, key).burnt
    assert set(seen) == BY_ROM


@pytest.mark.parametrize("chip", ["esp32", "esp32s2"])
def test_manufacturing_data(esp_of, burners, chip):
    esp = esp_of(chip)
    run_stub(esp)
    seen = burners(esp)
    assert esp.production.write_manufacturing_data({"serial": "A1"}, to_efuse=True).efuse.verified
    assert set(seen) == BY_ROM


def test_a_real_board(real, burners):
    from pytest_esp.operations.esp import Esp

    link, simulated = real("esp32", allow_burn=["JTAG_DISABLE"], burns_enabled=True)
    with link:
        esp = Esp(link)
        run_stub(esp)
        modes, write = [], simulated.efuses.write
        simulated.efuses.write = lambda *arguments: modes.append(simulated.mode) or write(*arguments)
        assert esp.efuse.burn("JTAG_DISABLE", 1).verified
        assert set(modes) == {"bootloader"}
        run_stub(esp)


def test_a_stub_that_no_reset_ends_is_not_burnt_through(esp_of, burners):
    """A board without reset lines: the answer to a SYNC says that the stub still runs."""
    esp = esp_of("esp32")
    run_stub(esp)
    seen = burners(esp)
    esp.link.board.reset = lambda **how: True
    with pytest.raises(LinkError, match="the stub flasher is still running") as caught:
        esp.efuse.burn("JTAG_DISABLE", 1)
    assert "nothing was burned" in caught.value.hint
    assert not seen
