"""Provisioning: other NVS values are kept, burning requires consent, and secrets are never shown."""

import json
import struct
import subprocess
import sys
import zlib

import pytest

from pytest_esp.errors import EspError, OperationError, RefusedError
from pytest_esp.formats.nvs_pages import make_pages, read_pages
from pytest_esp.formats.partition_layouts import build
from pytest_esp.operations.production.provisioning import write_calibration_data

PASSWORD = "correct horse battery"
TOKEN = "tok-8f3a77c2"
BEFORE = {
    "app": {"text": "Größe \\x41", "blob": bytes(range(256)) * 20, "number": {"type": "i64", "value": -5}},
    "nvs.net80211": {"sta.ssid": bytes(36), "sta.pmk": bytes(32), "ap.chan": {"type": "u8", "value": 6}},
}


@pytest.fixture
def esp(esp_of):
    """A board with values in its NVS."""
    esp = esp_of("esp32c3")
    esp.flash.write(build("two_ota", "4MB").data, 0x8000)
    place = esp.partitions.find("nvs")
    esp.flash.write(make_pages(BEFORE, place.size), place.offset)
    return esp


def values_of(esp):
    return {(entry.namespace, entry.key): (entry.type, entry.value) for entry in esp.nvs.read().entries}


def test_a_network_goes_where_the_wifi_library_looks(esp):
    before = values_of(esp)
    done = esp.production.provision({"wifi": {"ssid": "Werk 3", "password": PASSWORD}})
    after = values_of(esp)
    assert bytes.fromhex(after["nvs.net80211", "sta.ssid"][1]) == struct.pack("<I", 6) + b"Werk 3".ljust(32, b"\0")
    assert bytes.fromhex(after["nvs.net80211", "sta.pswd"][1]) == PASSWORD.encode().ljust(65, b"\0")
    assert after["nvs.net80211", "opmode"] == ("u8", 1)
    # The key of the network before would be taken for that of this one.
    assert done.nvs.removed == ("nvs.net80211.sta.pmk",)
    kept = {key: value for key, value in before.items() if key[0] == "app" or key[1] == "ap.chan"}
    assert kept.items() <= after.items()
    assert (done.ssid, done.nvs.kept, done.nvs.state) == ("Werk 3", len(kept), "written")
    assert PASSWORD not in repr(done)
    assert esp.production.provision({"wifi": {"ssid": "Werk 3", "password": PASSWORD}}).nvs.state == "unchanged"


def test_credentials_and_files(esp, tmp_path):
    (tmp_path / "device.pem").write_text("-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n")
    (tmp_path / "device.json").write_text(
        json.dumps(
            {
                "wifi": {"ssid": "a", "store": "namespace"},
                "namespace": "cloud",
                "credentials": {"token": TOKEN, "cert": {"file": "device.pem", "type": "string"}},
            }
        )
    )
    done = esp.production.provision(tmp_path / "device.json")
    assert done.nvs.written == ("cloud.cert", "cloud.token", "wifi.password", "wifi.ssid")
    after = values_of(esp)
    assert after["cloud", "cert"] == ("string", (tmp_path / "device.pem").read_text())
    assert (after["cloud", "token"], after["wifi", "ssid"]) == (("string", TOKEN), ("string", "a"))


@pytest.mark.parametrize("write", ["write_calibration_data", "write_manufacturing_data"])
def test_data_joins_what_is_there(esp, write):
    before = values_of(esp)
    done = getattr(esp.production, write)({"adc": {"type": "u16", "value": 1100}, "text": "x", "raw": b"\1\2"})
    assert done.namespace == {"write_calibration_data": "calibration"}.get(write, "manufacturing")
    after = values_of(esp)
    assert after.items() - before.items() == {
        ((done.namespace, "adc"), ("u16", 1100)),
        ((done.namespace, "text"), ("string", "x")),
        ((done.namespace, "raw"), ("blob", "0102")),
    }
    assert before.items() <= after.items()


def test_the_generators_own_bytes(esp, tmp_path):
    """NVS after an update is what Espressif's generator makes of the same values on its command line."""
    place = esp.partitions.find("nvs")
    esp.flash.erase("nvs")
    esp.production.write_calibration_data({"adc": {"type": "u16", "value": 1100}, "name": "probe"})
    csv = "key,type,encoding,value\ncalibration,namespace,,\nadc,data,u16,1100\nname,data,string,probe\n"
    (tmp_path / "values.csv").write_text(csv)
    command = [sys.executable, "-m", "esp_idf_nvs_partition_gen", "generate", "values.csv", "out.bin", hex(place.size)]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=60)
    there = esp.flash.read(place.offset, place.size).data
    assert there == (tmp_path / "out.bin").read_bytes()
    assert read_pages(there).problems == ()


def test_the_user_efuse_block(esp):
    done = esp.production.write_manufacturing_data({"batch": "B7"}, to_efuse=True)
    assert (done.efuse.efuse_name, done.efuse.verified) == ("BLOCK_USR_DATA", True)
    assert esp.efuse.read("BLOCK_USR_DATA").value.startswith("42 37 00")
    with pytest.raises(OperationError, match="has burnt bits"):
        esp.production.write_manufacturing_data({"batch": "A0"}, to_efuse=True)
    with pytest.raises(OperationError, match="takes one value"):
        esp.production.write_manufacturing_data({"a": "1", "b": "2"}, to_efuse=True)
    with pytest.raises(OperationError, match="has 33 bytes"):
        esp.production.write_manufacturing_data({"a": "x" * 33}, to_efuse=True)


def test_a_real_board_burns_only_what_its_entry_names(real):
    link, simulated = real("esp32c3")
    with pytest.raises(RefusedError, match="BLOCK_USR_DATA"):
        write_calibration_data(link, {"a": "x"}, to_efuse=True)
    assert simulated.efuses.field("BLOCK_USR_DATA") == 0
    link, _ = real("esp32c3", allow="read,write")
    with pytest.raises(RefusedError, match="'burn'"):
        write_calibration_data(link, {"a": "x"}, to_efuse=True)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, "nothing to provision"),
        ({"wifi": {"ssid": "a", "password": "short"}}, "8 to 63"),
        ({"wifi": {"ssid": "x" * 33}}, "at most 32 bytes"),
        ({"wifi": {"ssid": "a", "password": PASSWORD, "psk": "x"}}, "wifi.psk"),
        ({"wify": {"password": PASSWORD}}, "unknown setting 'wify'; nearest: wifi"),
        ({"credentials": {"token": {"type": "u8", "value": TOKEN}}}, "is not a number"),
        ({"credentials": {"token": {"type": TOKEN, "value": 1}}}, "does not match its type"),
        ({"credentials": {"token": TOKEN * 400}}, "value of 'token' has 4800 bytes"),
        ({"credentials": {"token": {"type": "blob", "value": TOKEN}}}, "value of 'token' is invalid"),
        ({"credentials": {"a name that is too long": TOKEN}}, "invalid key or namespace"),
        ({"credentials": {"token": TOKEN}, "nvs_partition": "nvz"}, "no partition 'nvz'"),
        ({"credentials": {"cert": {"file": "none.pem"}}}, "cannot be read"),
        ('{"credentials": {"token": "' + TOKEN, "not valid JSON"),
    ],
)
def test_errors_have_no_secrets(esp, config, words):
    before = values_of(esp)
    with pytest.raises(EspError) as caught:
        esp.production.provision(config)
    assert words in str(caught.value)
    said = [str(caught.value), repr(caught.value.details), repr(caught.value.__cause__), repr(caught.value.args)]
    assert not any(secret in text for text in said for secret in (PASSWORD, TOKEN))
    assert values_of(esp) == before


def test_what_could_not_be_kept_is_refused(esp):
    place = esp.partitions.find("nvs")
    latin = make_pages({"old": {"text": "caf?"}}, place.size)
    data = bytearray(latin)
    at = data.index(b"caf?")
    data[at + 3] = 0xE9
    data[at - 4 : at] = zlib.crc32(bytes(data[at : at + 5]), 0xFFFFFFFF).to_bytes(4, "little")
    entry = at - 32
    head = bytes(data[entry : entry + 4]) + bytes(data[entry + 8 : entry + 32])
    data[entry + 4 : entry + 8] = zlib.crc32(head, 0xFFFFFFFF).to_bytes(4, "little")
    esp.flash.write(bytes(data), place.offset)
    with pytest.raises(OperationError, match=r"old\.text is text that is not UTF-8"):
        esp.production.write_calibration_data({"a": 1})
    data[entry] ^= 1
    esp.flash.write(bytes(data), place.offset)
    with pytest.raises(OperationError, match="is damaged"):
        esp.production.write_calibration_data({"a": 1})
    esp.flash.write(make_pages(BEFORE, place.size, bytes(range(64))), place.offset)
    with pytest.raises(OperationError, match="is encrypted"):
        esp.production.write_calibration_data({"a": 1})


def test_a_failing_test_of_a_user_shows_no_secret(tmp_path, monkeypatch):
    """Not in pytest's traceback, not in junit.xml, not in allure's results."""
    monkeypatch.setenv("PYTEST_ESP_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("PYTEST_ESP_LOCK_DIR", str(tmp_path / "locks"))
    (tmp_path / "boards.toml").write_text('[boards.c3]\nbackend = "sim"\nchip = "esp32c3"\n')
    (tmp_path / "given.json").write_text(json.dumps({"wifi": {"ssid": "a", "password": PASSWORD}}))
    (tmp_path / "test_line.py").write_text(
        "import json, pathlib\n\n"
        "def test_provisioned(esp):\n"
        "    esp.production.provision(json.loads(pathlib.Path('given.json').read_text()))\n\n"
        "def test_from_a_file(esp):\n"
        "    esp.production.provision('given.json')\n"
    )
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--junitxml=junit.xml", "--alluredir=allure"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)
    assert "2 failed" in run.stdout, run.stdout
    assert "there is no partition table in flash" in run.stdout
    written = [run.stdout, run.stderr, (tmp_path / "junit.xml").read_text()]
    written += [file.read_text(errors="replace") for file in (tmp_path / "allure").iterdir()]
    assert not any(PASSWORD in text for text in written)
