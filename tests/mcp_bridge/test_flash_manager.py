"""The flash tools: what each does, what it refuses, and what it says to bad arguments."""

import json
import os
import shutil
from xml.etree import ElementTree

import jsonschema
import pytest

from pytest_esp.formats.partition_table import from_csv

CSV = "nvs, data, nvs, 0x9000, 0x4000\nfactory, app, factory, 0x10000, 1M\n"
SIZE = 4 << 20
READERS = ("esp_flash_analyze", "esp_flash_status", "esp_flash_sfdp_read", "esp_flash_size_detect")


@pytest.fixture
def call(server):
    """Call a tool on the board c3 and check that the answer fits its schema."""
    tools = server.list_tools()

    def make(name, port="c3", **arguments):
        answer = server.call(name, port=port, **arguments)
        jsonschema.validate(answer, tools[name].output_schema)
        assert answer["success"] or answer["error"]
        return answer

    return make


@pytest.fixture
def confirmed(call):
    """Call a tool that erases, twice: the first answer has the token for the second."""

    def make(name, **arguments):
        first = call(name, **arguments)
        assert not first["success"]
        return call(name, confirm=first["confirm"], **arguments)

    return make


@pytest.fixture
def filled(server, call):
    """A table, something in nvs and an app, on the board c3."""
    for name, data in (("table.bin", from_csv(CSV)), ("nvs.bin", os.urandom(64)), ("app.bin", os.urandom(70_000))):
        (server.folder / name).write_bytes(data)
    places = {"table.bin": "0x8000", "nvs.bin": "0x9000", "app.bin": "0x10000"}
    files = [{"path": name, "address": address} for name, address in places.items()]
    assert call("esp_flash_multi", files=files)["verified"]
    return files


# -- one image, many images, and back


def test_firmware_at_an_address(server, call):
    (server.folder / "a.bin").write_bytes(b"hello" * 1000)
    written = call("esp_flash_firmware", firmware_path="a.bin", address="64KB")
    assert (written["bytes_written"], written["verified"]) == (5000, True)
    assert call("esp_flash_firmware", firmware_path="a.bin", address="64KB")["bytes_skipped"] == 5000
    assert bytes.fromhex(call("esp_flash_read", address=0x10000, size=5)["data"]) == b"hello"


@pytest.mark.parametrize("name", ["esp_flash_verify", "esp_verify_flash"])
def test_verify(server, call, filled, name):
    assert call(name, files=filled)["matches"]
    (server.folder / "nvs.bin").write_bytes(b"another")
    answer = call(name, files=filled)
    assert not answer["matches"]
    assert [region["first_difference"] for region in answer["regions"]] == [None, 0x9000, None]
    assert "give either firmware_path or files" in call(name)["error"]


def test_read_into_a_file(server, call, filled):
    answer = call("esp_flash_read", address="0x9000", size="64", output_file="out.bin")
    assert (server.folder / "out.bin").read_bytes() == (server.folder / "nvs.bin").read_bytes()
    assert answer["data"] is None
    assert "exists already" in call("esp_flash_read", address=0, size=4, output_file="out.bin")["error"]
    assert "too many" in call("esp_flash_read", address=0, size="8KB")["error"]


def test_erase_a_partition(call, confirmed, filled):
    assert confirmed("esp_flash_erase", region="nvs")["size"] == 0x4000
    assert call("esp_flash_read", address="0x9000", size=4)["data"] == "ffffffff"
    assert "needs a size" in call("esp_flash_erase", start_address=0x9000)["error"]
    assert "give either region or start_address" in call("esp_flash_erase")["error"]


# -- backups


@pytest.mark.parametrize("kind", ["esp_flash_backup", "esp_smart_backup"])
@pytest.mark.parametrize("restore", ["esp_flash_restore", "esp_smart_restore"])
def test_backup_and_restore(server, call, confirmed, filled, kind, restore):
    saved = call(kind, output_dir="saved")
    assert saved["output_dir"] == str(server.folder / "saved")
    assert sum(region["size"] for region in saved["regions"]) == saved["flash_size"] == SIZE
    manifest = json.loads((server.folder / "saved" / "manifest.json").read_text())
    assert (manifest["chip"], manifest["sha256"]) == ("esp32c3", saved["sha256"])
    confirmed("esp_flash_erase", region="all")
    answer = confirmed(restore, backup_dir="saved")
    assert answer["verified"]
    assert answer["bytes_written"] >= 70_000
    assert call("esp_flash_verify", files=filled)["matches"]
    assert confirmed(restore, backup_dir="saved")["bytes_unchanged"] == SIZE


@pytest.mark.parametrize("kind", ["esp_flash_backup", "esp_smart_backup"])
def test_a_backup_is_not_replaced_without_overwrite(call, filled, kind):
    first = call(kind, output_dir="saved")
    assert "already contains a backup" in call(kind, output_dir="saved")["error"]
    assert call(kind, output_dir="saved", overwrite=True)["sha256"] == first["sha256"]
    assert "contains other files" in call(kind, output_dir=".")["error"]
    assert call(kind, port="esp32", output_dir="other")["success"]


def test_one_region(call, confirmed, filled):
    call("esp_smart_backup", output_dir="saved")
    confirmed("esp_flash_erase", region="all")
    answer = confirmed("esp_smart_restore", backup_dir="saved", regions=["nvs"])
    outcomes = {region["name"]: region["outcome"] for region in answer["regions"]}
    assert outcomes.pop("nvs") == "written"
    assert set(outcomes.values()) == {"left"}
    answer = call("esp_smart_restore", backup_dir="saved", regions=["nvz"])
    assert "no region 'nvz'" in answer["error"]
    assert "nearest: nvs" in answer["hint"]


@pytest.mark.parametrize("restore", ["esp_flash_restore", "esp_smart_restore"])
def test_a_restore_that_is_refused(server, call, filled, restore):
    call("esp_smart_backup", output_dir="saved")
    assert "not a complete backup" in call(restore, backup_dir="nowhere")["error"]
    assert "not of an esp32" in call(restore, port="esp32", backup_dir="saved", any_mac=True)["error"]
    assert "does not allow 'erase'" in call(restore, port="guarded", backup_dir="saved")["error"]
    chunk = next(iter((server.folder / "saved").glob("*.gz")))
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"?")
    assert "is damaged" in call(restore, backup_dir="saved")["error"]
    assert call("esp_flash_verify", files=filled)["matches"]


@pytest.mark.parametrize("name", ["esp_flash_backup", "esp_smart_backup", "esp_flash_restore", "esp_smart_restore"])
def test_folders_outside_are_refused(server, call, name, tmp_path):
    place = {"output_dir" if "backup" in name else "backup_dir": str(tmp_path / "elsewhere")}
    answer = call(name, **place)
    assert "outside the folders" in answer["error"]
    assert not (tmp_path / "elsewhere").exists()


def test_progress_is_reported(server, call, filled):
    server.progress.clear()
    call("esp_flash_backup", output_dir="saved")
    assert server.progress[-1] == (SIZE, SIZE)


def test_what_asks_and_what_does_not(server):
    tools = server.list_tools()
    for name in ("esp_flash_restore", "esp_smart_restore", "esp_flash_erase"):
        assert tools[name].annotations.destructive_hint
    for name in ("esp_flash_backup", "esp_smart_backup", *READERS):
        assert not tools[name].annotations.destructive_hint
        assert tools[name].annotations.read_only_hint is ("overwrite" not in tools[name].input_schema["properties"])
    assert not tools["esp_flash_optimize"].annotations.read_only_hint
    assert not tools["esp_flash_optimize"].annotations.destructive_hint


# -- looking


def test_analyze(call, filled):
    answer = call("esp_flash_analyze")
    assert answer["used_sectors"] + answer["erased_sectors"] == 1024
    (factory,) = [region for region in answer["regions"] if region["name"] == "factory"]
    assert factory["used_sectors"] == 18
    assert answer["images"] == []
    assert ElementTree.fromstring(answer["map"]).tag.endswith("svg")


def test_analyze_finds_a_real_app(server, call, build_of):
    shutil.copytree(build_of("esp32c3"), server.folder / "build")
    call("esp_flash_firmware", firmware_path="build")
    boot, app = call("esp_flash_analyze")["images"]
    assert (boot["region"], app["app"]["project"], app["problem"]) == ("bootloader", "pytest_esp_test", None)


def test_status(call):
    answer = call("esp_flash_status")
    assert (answer["registers"], answer["protection"], answer["voltage"]) == ([0, 0, 0], "none", None)
    assert call("esp_flash_status", port="esp32")["voltage"] == "3.3V"


def test_sfdp(call):
    answer = call("esp_flash_sfdp_read")
    assert answer["size"] == SIZE
    assert {erase["size"] for erase in answer["erase_types"]} == {4096, 32768, 65536}


def test_size(call, filled):
    answer = call("esp_flash_size_detect")
    assert (answer["by_id"], answer["by_sfdp"], answer["by_wrap"], answer["agree"]) == (SIZE, SIZE, SIZE, True)


@pytest.mark.parametrize("name", READERS)
def test_a_read_only_server_can_read(call, name):
    assert call(name, port="guarded")["success"]


@pytest.mark.parametrize("name", [*READERS, "esp_flash_optimize"])
def test_no_such_board(call, name):
    assert "no board 'c4'" in call(name, port="c4")["error"]


def test_optimize_writes_only_if_asked(server, call, build_of):
    shutil.copytree(build_of("esp32c3"), server.folder / "build")
    call("esp_flash_firmware", firmware_path="build")
    told = call("esp_flash_optimize", baudrates=[115200])
    assert {change["setting"] for change in told["changes"]} >= {"size", "mode"}
    assert (told["applied"], told["header"]["size"]) == ([], 2 << 20)
    assert call("esp_flash_verify", firmware_path="build")["matches"]
    assert "size" in call("esp_flash_optimize", baudrates=[115200], apply=True)["applied"]
    assert call("esp_flash_optimize", baudrates=[115200])["header"]["size"] == SIZE


def test_optimize_on_a_board_that_is_only_read(call):
    """Looking is allowed; the word apply makes it a write."""
    assert call("esp_flash_optimize", port="guarded", baudrates=[115200])["success"]
    assert "does not allow 'write'" in call("esp_flash_optimize", port="guarded", apply=True)["error"]
    assert "invalid baud rate -1" in call("esp_flash_optimize", baudrates=[-1])["error"]
