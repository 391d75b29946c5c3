"""A board programmed as it leaves the factory, on simulated chips and on QEMU, and brought back to that."""

import pytest
from esp_idf_defs.otadata import OtaDataSelectEntry, OtaImageState

from pytest_esp.boards.registry import make_board
from pytest_esp.errors import EspError, FirmwareError, OperationError, RefusedError
from pytest_esp.link.fast import FastLoader
from pytest_esp.link.link import Link
from pytest_esp.operations.esp import Esp
from pytest_esp.operations.production.config import Boot
from pytest_esp.operations.production.factory import check_boot
from pytest_esp.rack.config import load_rack
from pytest_esp.wire.faults import Faults

SECRET = "a secret of the customer"


def values_of(esp):
    return {(entry.namespace, entry.key): entry.value for entry in esp.nvs.read().entries}


def test_a_board_is_programmed_and_starts(esp_of, config, build):
    esp = esp_of("esp32c3")
    esp.flash.write(b"left over", 0x200000)
    seen = []
    done = esp.production.factory_program(
        config | {"serial_number": "SN7", "nvs": {"app": {"key": SECRET, "n": {"type": "u8", "value": 3}}}},
        progress=lambda done, total: seen.append(done / total),
    )
    assert (done.chip_type, done.serial_number, done.booted, done.verified) == ("esp32c3", "SN7", True, True)
    assert done.mac_address == esp.chip.identify().mac_address
    assert done.app.project == "pytest_esp_test"
    assert done.nvs_written == ("app.key", "app.n", "manufacturing.serial_number")
    assert values_of(esp) == {("app", "key"): SECRET, ("app", "n"): 3, ("manufacturing", "serial_number"): "SN7"}
    assert esp.flash.verify(build).matches
    assert esp.flash.read(0x200000, 9).data == b"\xff" * 9
    assert set(done.seconds_by_stage) == {"check", "erase", "flash", "nvs", "verify", "boot"}
    assert seen == sorted(seen)
    assert seen[-1] == 1
    assert SECRET not in repr(done)


def test_a_file_says_how(esp_of, build, tmp_path):
    """Names of files in it are relative to it; the table comes from a CSV, NVS values from another."""
    (tmp_path / "table.csv").write_text("nvs,data,nvs,,0x6000\nfactory,app,factory,,1M\n")
    (tmp_path / "nvs.csv").write_text("key,type,encoding,value\nnet,namespace,,\nhost,data,string,broker\n")
    (tmp_path / "line.toml").write_text(
        f'firmware = "{build}"\npartition_table = "table.csv"\nnvs = "nvs.csv"\nserial_number = "A1"\n'
        '[boot]\nwait = 10\nexpect = "Calling app_main"\n'
    )
    esp = esp_of("esp32c3")
    done = esp.production.factory_program(tmp_path / "line.toml")
    assert done.booted
    assert [part.name for part in esp.partitions.read().partitions] == ["nvs", "factory"]
    assert values_of(esp) == {("net", "host"): "broker", ("manufacturing", "serial_number"): "A1"}


def test_encrypted_nvs(esp_of, config, tmp_path):
    (tmp_path / "key.bin").write_bytes(bytes(range(64)))
    esp = esp_of("esp32c3")
    esp.production.factory_program(config | {"serial_number": "E1", "nvs_key_file": str(tmp_path / "key.bin")})
    assert esp.nvs.read().encrypted
    (entry,) = esp.nvs.read(key_file=tmp_path / "key.bin").entries
    assert entry.value == "E1"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"firmware": "nowhere"}, "does not exist"),
        ({"firmwares": "x"}, "unknown setting 'firmwares'; nearest: firmware"),
        ({"firmware": "esp32"}, "this firmware is for esp32, but the board has an esp32c3"),
        ({"chip": "esp32s3"}, "esp32s3"),
        ({"mac": "7c:df:a1:00:00:99"}, "this is for the board with the MAC address 7c:df:a1:00:00:99"),
        ({"mac": "7c:df"}, "mac: string should match"),
        ({"nvs": {"a": {"a name that is too long": 1}}}, "invalid key or namespace"),
        ({"nvs": {"a": {"key": {"type": "u8", "value": 300}}}}, "the value of 'key' is invalid"),
        ({"nvs": {"a": {f"k{n}": SECRET * 100 for n in range(10)}}}, "no room"),
        ({"nvs": {"a": 5}}, "has no keys"),
        ({"nvs_partition": "nvs2", "serial_number": "1"}, "no NVS partition 'nvs2'"),
        ({"partition_table": "two_otas"}, "two_ota"),
        ({"partition_table": "none.csv"}, "cannot be read"),
        ({"boot": {"wait": -1}}, "boot"),
        ({"serial_number": "a\nb"}, "printable"),
    ],
)
def test_what_is_wrong_is_found_before_anything_is_touched(esp_of, config, build, change, words):
    esp = esp_of("esp32c3")
    esp.flash.write(b"the only copy", 0x1000)
    if change.get("firmware") == "esp32":
        change = {"firmware": str(build.parent / "esp32")}
    with pytest.raises(EspError) as caught:
        esp.production.factory_program(config | change)
    assert words in str(caught.value)
    assert SECRET not in str(caught.value)
    assert esp.flash.read(0x1000, 13).data == b"the only copy"


def test_a_table_larger_than_the_flash_and_an_app_larger_than_its_partition(esp_of, config, tmp_path):
    (tmp_path / "large.csv").write_text("nvs,data,nvs,,0x6000\nfactory,app,factory,,6M\n")
    (tmp_path / "small.csv").write_text("nvs,data,nvs,,0x6000\nfactory,app,factory,,4K\n")
    esp = esp_of("esp32c3")
    with pytest.raises(OperationError, match="beyond the flash"):
        esp.production.factory_program(config | {"partition_table": str(tmp_path / "large.csv")})
    with pytest.raises(FirmwareError, match=r"bytes, but the partition factory has only 0x1000"):
        esp.production.factory_program(config | {"partition_table": str(tmp_path / "small.csv")})


def test_firmware_that_could_not_start_alone(esp_of, build):
    with pytest.raises(OperationError, match="no partition table"):
        esp_of("esp32c3").production.factory_program({"firmware": str(build / "pytest_esp_test.bin")})
    with pytest.raises(FirmwareError, match="no bootloader"):
        esp_of("esp32c3").production.factory_program(
            {"firmware": str(build / "pytest_esp_test.bin"), "partition_table": "two_ota"}
        )


def test_a_board_that_does_not_allow_it(esp_of, config):
    with pytest.raises(RefusedError):
        esp_of("careful").production.factory_program(config)


def test_a_locked_chip_is_left_alone(esp_of, config):
    with pytest.raises(OperationError, match="secure download mode"):
        esp_of("locked").production.factory_program(config)


def pull_the_cable(esp):
    esp.link.board.wire.faults = Faults(vanish_after=1000)


def wear_out_nvs(esp):
    esp.link.board.simulated.flash.stuck = {0x9008: 0xFF}


@pytest.mark.parametrize(
    ("trouble", "change", "stage", "state"),
    [
        (pull_the_cable, {}, "flash", "the flash was erased and is partly written"),
        (wear_out_nvs, {"serial_number": "SN1"}, "nvs", "firmware is written; NVS is blank or partly written"),
        (lambda _: None, {"boot": {"wait": 0.2, "expect": "never"}}, "boot", "the app was not seen to start"),
    ],
)
def test_a_failure_says_what_state_the_board_is_in(esp_of, config, monkeypatch, trouble, change, stage, state):
    monkeypatch.setattr(FastLoader, "longest_wait", 0.05)
    esp = esp_of("esp32c3")
    begun = []

    def look(done, total):
        if not begun:
            begun.append(done)
            trouble(esp)

    with pytest.raises(EspError) as caught:
        esp.production.factory_program(config | change, progress=look)
    assert caught.value.details["stage"] == stage
    assert state in caught.value.details["state"]
    assert state in str(caught.value)


def test_another_app_than_the_one_that_was_written(esp_of, config):
    """A boot only proves the app that its log names."""
    esp = esp_of("esp32c3")
    esp.production.factory_program(config)
    app = esp.partitions.app().app
    other = type(app)("another", "9", app.idf_version, None, "0" * 64)
    with pytest.raises(OperationError, match=r"pytest_esp_test 1\.0\.0 started instead of another 9"):
        check_boot(esp.link, Boot(wait=10, expect="Calling app_main"), other)


# -- QEMU


@pytest.mark.qemu
@pytest.mark.parametrize("chip", ["esp32c3", "esp32"])
def test_a_machine_is_programmed_and_its_app_runs(chip, need_qemu, tmp_path, monkeypatch, build):
    need_qemu(chip)
    monkeypatch.setenv("PYTEST_ESP_STATE_DIR", str(tmp_path / "state"))
    (tmp_path / "boards.toml").write_text(f'[boards.machine]\nbackend = "qemu"\nchip = "{chip}"\nflash_size = "4MB"\n')
    rack = load_rack(tmp_path / "boards.toml")
    with Link(make_board(rack.board("machine"), rack)) as link:
        esp = Esp(link)
        done = esp.production.factory_program(
            {"firmware": str(build.parent / chip), "serial_number": "Q1", "boot": {"wait": 20, "expect": "ready"}}
        )
        assert done.booted
        assert esp.production.inspect("Q1", done.app.elf_sha256, boot_wait_seconds=20, expect="ready").passed


# -- back to the factory's state


def test_a_reset_takes_what_is_the_users_and_leaves_the_apps(esp_of, config, build):
    esp = esp_of("esp32c3")
    esp.production.factory_program(config | {"serial_number": "SN1", "nvs": {"user": {"name": "Anna"}}})
    storage = esp.partitions.find("storage")
    esp.flash.write(b"a file", storage.offset)
    done = esp.production.factory_reset()
    assert (done.erased, done.kept) == (("nvs", "otadata", "storage"), ("factory", "ota_0", "ota_1"))
    assert (done.slot_before, done.slot_after, done.app.version) == ("factory", "factory", "1.0.0")
    assert values_of(esp) == {}
    assert esp.flash.read(storage.offset, 6).data == b"\xff" * 6
    assert esp.flash.verify(build).matches
    assert esp.chip.run_firmware(10, "Calling app_main").state == "running"


def test_what_a_reset_is_told_to_keep(esp_of, config):
    esp = esp_of("esp32c3")
    esp.production.factory_program(config | {"serial_number": "SN1", "nvs": {"user": {"name": "Anna"}}})
    storage = esp.partitions.find("storage")
    esp.flash.write(b"a file", storage.offset)
    done = esp.production.factory_reset(keep=["storage"], keep_namespaces=["manufacturing"])
    assert (done.erased, done.kept_values) == (("nvs", "otadata"), 1)
    assert values_of(esp) == {("manufacturing", "serial_number"): "SN1"}
    assert esp.flash.read(storage.offset, 6).data == b"a file"
    with pytest.raises(OperationError, match="no partition 'storag'"):
        esp.production.factory_reset(keep=["storag"])


def test_calibration_and_keys_are_not_the_users(esp_of):
    esp = esp_of("esp32c3")
    rows = ("nvs,data,nvs,,0x4000", "phy_init,data,phy,,0x1000", "keys,data,nvs_keys,,0x1000", "fctry,data,nvs,,0x3000")
    esp.partitions.write("\n".join((*rows, "factory,app,factory,,1M")) + "\n")
    done = esp.production.factory_reset()
    assert (done.erased, done.kept) == (("nvs",), ("phy_init", "keys", "fctry", "factory"))


def test_a_reset_never_leaves_a_board_that_starts_nothing(esp_of, config, build, tmp_path):
    """Without a factory app a blank otadata starts the first slot; the only app may be in the second."""
    (tmp_path / "table.csv").write_text(
        "nvs,data,nvs,,0x4000\notadata,data,ota,,0x2000\nota_0,app,ota_0,,512K\nota_1,app,ota_1,,512K\n"
    )
    esp = esp_of("esp32c3")
    esp.flash.write(build)
    esp.partitions.write(tmp_path / "table.csv", discard_data=True)
    app = (build / "pytest_esp_test.bin").read_bytes()
    first, second = (esp.partitions.find(name).offset for name in ("ota_0", "ota_1"))
    esp.flash.write(app, second)
    entry = OtaDataSelectEntry(2, OtaImageState.VALID).to_bytes()
    esp.flash.write(entry, esp.partitions.find("otadata").offset)
    esp.flash.erase(first, 0x80000)
    done = esp.production.factory_reset()
    assert done.notes == ("otadata was kept: without it ota_0 would start, which has no app",)
    assert (done.erased, done.slot_after) == (("nvs",), "ota_1")
    assert esp.chip.run_firmware(10, "Calling app_main").offset == second
