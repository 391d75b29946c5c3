"""What a board was given, seen three ways: as it was asked for, in flash, and by the program that runs on the board.

The test firmware's command ``nvs`` reads flash on its own (tests/firmware/app/nvs.c on QEMU, nvs_reader.py on simulated
chips).
"""

import base64
import csv
import json
import os
import re
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

FIRMWARE = Path(__file__).parents[2] / "firmware"
BLOB = bytes(value * 7 % 251 for value in range(6000))
VALUES = {
    "app": {
        "server": "https://example.com/a b?c=\\d",
        "place": "Größe 3 µm, 日本 🙂",
        "lines": "-----BEGIN-----\nMIIB\t\n-----END-----\n",
        "empty": "",
        "long": "ü" * 1900,
    },
    "limits": {
        f"{sign}{bits}_{end}": {"type": f"{sign}{bits}", "value": value}
        for bits in (8, 16, 32, 64)
        for sign, end, value in (
            ("u", "min", 0),
            ("u", "max", (1 << bits) - 1),
            ("i", "min", -1 << bits - 1),
            ("i", "max", (1 << bits - 1) - 1),
            ("i", "minus", -1),
        )
    },
    "raw": {"long": BLOB, "short": b"\0\xff", "page": bytes(4000), "none": b""},
}
BOARDS = {
    "simulated esp32c3": ("sim", "esp32c3"),
    "esp32c3": ("qemu", "esp32c3"),
    "esp32": ("qemu", "esp32"),
}
TABLE = "nvs,data,nvs,0x9000,0x7000\nfactory,app,factory,0x10000,0x40000\n"
KEY = bytes(range(64))


@pytest.fixture
def connect(monkeypatch, need_qemu, make_esp):
    """A function that makes a board, and returns the operations on it."""
    monkeypatch.syspath_prepend(str(FIRMWARE))

    def connect(backend, chip):
        app = {"app": "app:TestFirmware"} if backend == "sim" else {}
        if backend == "qemu":
            need_qemu(chip)
        return make_esp(backend=backend, chip=chip, flash_size="4MB", **app)

    return connect


@pytest.fixture(
    params=[pytest.param(board, marks=[pytest.mark.qemu] * (board[0] == "qemu")) for board in BOARDS.values()],
    ids=BOARDS,
)
def esp(request, connect):
    return connect(*request.param)


@pytest.fixture
def simulated(connect):
    return connect("sim", "esp32c3")


@pytest.fixture
def config(tmp_path, esp_or_simulated):
    (tmp_path / "table.csv").write_text(TABLE)
    return {
        "firmware": str(FIRMWARE / "build" / esp_or_simulated.chip.identify().chip_type),
        "partition_table": str(tmp_path / "table.csv"),
        "boot": {"wait": 20, "expect": "ready"},
    }


@pytest.fixture
def esp_or_simulated(request):
    return request.getfixturevalue("esp" if "esp" in request.fixturenames else "simulated")


def given(values):
    """Values as they were asked for: type and number, text or bytes, by namespace and key."""
    plain = {bytes: "blob", str: "string"}
    return {
        (namespace, key): (value["type"], value["value"]) if isinstance(value, dict) else (plain[type(value)], value)
        for namespace, keys in values.items()
        for key, value in keys.items()
    }


def in_flash(esp, **key):
    """Values as the host reads them from flash."""
    return {
        (entry.namespace, entry.key): (
            entry.type,
            bytes.fromhex(entry.value) if entry.type == "blob" else entry.value,
        )
        for entry in esp.nvs.read(**key).entries
    }


def started(esp):
    """Start the app; return its console."""
    console = esp.link.boot()
    console.expect(re.compile(r"see the list of tests\.\r?\n"))
    return console


def ask(console, command):
    """Send a command to the app; return its lines but the last, and the numbers in the last: values and problems."""
    console.write(command + "\n")
    said = console.read_until(re.compile(r"nvs: values \d+, problems \d+\r?\n"), 30)
    *lines, end = [line.removesuffix("\r") for line in said.removesuffix("\n").split("\n")]
    return lines, tuple(map(int, re.findall(r"\d+", end)))


def in_words(name, kind, value, *, whole=True):
    """A value in the app's words."""
    if kind == "string":
        value = re.sub(r"[\x00-\x1f\x7f\\]", lambda found: f"\\x{ord(found[0]):02x}", value)
    if kind == "blob":
        value = value.hex() if whole or len(value) <= 32 else f"{len(value)} bytes, crc32 {zlib.crc32(value):08x}"
    return f"nvs {'.'.join(name)} {kind} = {value}"


def check_app_sees(esp, values):
    """Start the app, and hold what it says to ``nvs`` against *values*: all in one list, and each blob whole."""
    console = started(esp)
    lines, counts = ask(console, "nvs")
    assert sorted(lines) == sorted(in_words(name, *value, whole=False) for name, value in values.items())
    assert counts == (len(values), 0)
    for name, (kind, value) in values.items():
        if kind == "blob":
            assert ask(console, f"nvs {name[0]} {name[1]}") == ([in_words(name, kind, value)], (1, 0))


def test_the_app_has_what_the_factory_gave_it(esp, config):
    esp.production.factory_program(config | {"serial_number": "SN-0042", "nvs": VALUES})
    wanted = given(VALUES) | {("manufacturing", "serial_number"): ("string", "SN-0042")}
    assert in_flash(esp) == wanted
    check_app_sees(esp, wanted)


def test_the_app_has_what_a_finished_board_is_given_and_given_anew(esp, config):
    esp.production.factory_program(config | {"nvs": {"app": VALUES["app"]}})
    wanted = given({"app": VALUES["app"]})
    for turn in (1, 2):
        calibration = {"gain": {"type": "i32", "value": -turn}, "curve": BLOB[turn : turn * 2500]}
        made = {"batch": f"B{turn}", "tested": {"type": "u64", "value": (1 << 63) + turn}}
        network = {"ssid": f"Werk {turn}", "password": "correct horse", "store": "both"}
        esp.production.write_calibration_data(calibration)
        esp.production.write_manufacturing_data(made)
        esp.production.provision({"wifi": network, "credentials": {"token": "t" * (100 // turn)}, "namespace": "cloud"})
        wanted |= given(
            {
                "calibration": calibration,
                "manufacturing": made,
                "cloud": {"token": "t" * (100 // turn)},
                "wifi": {"ssid": network["ssid"], "password": network["password"]},
                "nvs.net80211": {
                    "opmode": {"type": "u8", "value": 1},
                    "sta.ssid": b"\6\0\0\0" + network["ssid"].encode().ljust(32, b"\0"),
                    "sta.pswd": network["password"].encode().ljust(65, b"\0"),
                },
            }
        )
        assert in_flash(esp) == wanted
        check_app_sees(esp, wanted)


def test_the_app_keeps_only_what_a_reset_kept(simulated, config):
    simulated.production.factory_program(config | {"serial_number": "SN1", "nvs": VALUES})
    simulated.production.factory_reset(keep_namespaces=["manufacturing", "limits"])
    wanted = given({"limits": VALUES["limits"], "manufacturing": {"serial_number": "SN1"}})
    assert in_flash(simulated) == wanted
    check_app_sees(simulated, wanted)


def test_encrypted_values_are_not_for_an_app_without_the_key(esp, config, tmp_path):
    (tmp_path / "key.bin").write_bytes(KEY)
    esp.production.factory_program(config | {"nvs": VALUES, "nvs_key_file": str(tmp_path / "key.bin")})
    assert in_flash(esp, key_file=tmp_path / "key.bin") == given(VALUES)
    console = started(esp)
    lines, counts = ask(console, "nvs")
    pages = [page.number for page in esp.nvs.read().pages if page.encrypted]
    assert lines == [f"nvs: no entry of page {number} can be read: is it encrypted?" for number in pages]
    assert counts == (0, len(pages))


# -- Espressif's own tools


def nvs_of(esp, path):
    place = esp.partitions.find("nvs")
    path.write_bytes(esp.flash.read(place.offset, place.size).data)
    return place


def test_flash_is_what_espressifs_generator_makes(simulated, config, tmp_path):
    """From a CSV on its command line, with the same values in the same order."""
    simulated.production.factory_program(config | {"nvs": VALUES})
    place = nvs_of(simulated, tmp_path / "flash.bin")
    with (tmp_path / "values.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(("key", "type", "encoding", "value"))
        for namespace, keys in VALUES.items():
            rows.writerow((namespace, "namespace", "", ""))
            for (_, key), (kind, value) in given({namespace: keys}).items():
                rows.writerow((key, "data", *(("hex2bin", value.hex()) if kind == "blob" else (kind, value))))
    command = [sys.executable, "-m", "esp_idf_nvs_partition_gen", "generate", "values.csv", "out.bin", hex(place.size)]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=60)
    assert (tmp_path / "flash.bin").read_bytes() == (tmp_path / "out.bin").read_bytes()


@pytest.fixture
def nvs_tool():
    """ESP-IDF's reader of NVS partitions, which is on no package index."""
    folder = Path(os.environ.get("IDF_PATH", "")) / "components" / "nvs_flash" / "nvs_partition_tool"
    if not os.environ.get("IDF_PATH") or not (folder / "nvs_tool.py").is_file():
        pytest.skip("no ESP-IDF with nvs_tool.py: set IDF_PATH")
    return folder / "nvs_tool.py"


def test_espressifs_reader_finds_the_same(simulated, config, nvs_tool, tmp_path):
    simulated.production.factory_program(config | {"nvs": VALUES})
    simulated.production.write_calibration_data({"gain": {"type": "i32", "value": -1}})
    nvs_of(simulated, tmp_path / "flash.bin")

    def run(*arguments):
        command = [sys.executable, nvs_tool, "flash.bin", "--color=never", *arguments]
        done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, encoding="utf-8", timeout=60)
        return done.stdout

    check = run("--dump=none", "--integrity-check")
    wrong = [line for line in check.splitlines() if not re.fullmatch(r"(Page Empty|Page no\. \d+\s+CRC32: OK)?", line)]
    assert wrong == []
    assert espressifs_values(json.loads(run("--format=json"))) == in_flash(simulated)


def espressifs_values(partition):
    """What its JSON says is written. Blobs are in chunks, which it does not join."""
    entries = [entry for page in partition["pages"] for entry in page["entries"] if entry["state"] == "Written"]
    names = {entry["data"]["value"]: entry["key"] for entry in entries if entry["metadata"]["namespace"] == 0}
    values = {}
    for entry in entries:
        about = entry["metadata"]
        if about["namespace"] == 0:
            continue
        kind, name = about["type"], (names[about["namespace"]], entry["key"])
        raw = b"".join(base64.b64decode(child["raw"]) for child in entry["children"])[: entry["data"].get("size")]
        if kind == "string":
            values[name] = ("string", raw.removesuffix(b"\0").decode())
        elif kind == "blob_data":
            values[name] = ("blob", values.get(name, ("blob", b""))[1] + raw)
        elif kind == "blob_index":
            values.setdefault(name, ("blob", b""))
        else:
            values[name] = (re.sub(r"(u?)int(\d+)_t", lambda m: f"{m[1] or 'i'}{m[2]}", kind), entry["data"]["value"])
    return values
