"""Every operation on a board, first thing on a port opened fresh, beside the same call on a board in this process.

The chip is in another process and named as a serial board. It runs its app, or waits in its loader; whatever was done,
its app runs when the port is closed.
"""

import contextlib
import copy
import importlib
import pkgutil
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import devkits
import pytest
import serial

import pytest_esp.operations
from pytest_esp.boards.registry import make_board
from pytest_esp.errors import EspError
from pytest_esp.link.link import Link
from pytest_esp.operations.esp import Esp
from pytest_esp.operations.firmware import ram
from pytest_esp.operations.idf.project import build as build_project
from pytest_esp.operations.ota import package
from pytest_esp.operations.registry import OPERATIONS
from pytest_esp.operations.results import to_dict
from pytest_esp.rack.config import load_rack
from pytest_esp.wire import rfc2217

for _module in pkgutil.walk_packages(pytest_esp.operations.__path__, "pytest_esp.operations."):
    importlib.import_module(_module.name)

FIRMWARE = Path(__file__).parents[1] / "firmware"
SIZE = 4 * 1024 * 1024
APP = "app:TestFirmware"
BURNS = (
    *("CUSTOM_MAC", "BLOCK_USR_DATA", "BLOCK3", "RD_DIS", "WR_DIS"),
    *("BLOCK_KEY0", "KEY_PURPOSE_0", "SPI_BOOT_CRYPT_CNT", "DIS_DOWNLOAD_ICACHE"),
    *("BLOCK_KEY5", "KEY_PURPOSE_5", "SECURE_BOOT_KEY_REVOKE1", "SECURE_BOOT_KEY_REVOKE2"),
    *("DIS_DIRECT_BOOT", "SECURE_BOOT_EN"),
    *("BLOCK1", "FLASH_CRYPT_CONFIG", "FLASH_CRYPT_CNT", "DISABLE_DL_DECRYPT", "DISABLE_DL_CACHE"),
    *("BLOCK2", "ABS_DONE_0", "ABS_DONE_1"),
)

CALLS = {
    "chip-identify": {},
    "chip-read-mac": {},
    "chip-change-baudrate": {"baud": 230400},
    "chip-read-register": {"address": 0x3FF00000},
    "chip-connect": {},
    "chip-check-connection": {"rounds": 1, "highest_baud": 230400},
    "chip-reset": {},
    "chip-run-firmware": {"until": "Press ENTER"},
    "chip-monitor": {"duration_seconds": 5, "until": "Press ENTER", "reset": True},
    "chip-recover": {"wait_seconds": 2},
    "chip-load-ram": {"firmware": "program", "until": "Hello world!"},
    "chip-self-test": {},
    "chip-info": {},
    "flash-info": {},
    "flash-read": {"address": 0x8000, "size": 64},
    "flash-md5": {"address": 0, "size": 0x20000},
    "flash-write": {"firmware": "build"},
    "flash-erase": {"region": "0x300000", "size": 4096},
    "flash-verify": {"firmware": "build"},
    "flash-backup": {"output_dir": "new"},
    "flash-smart-backup": {"output_dir": "new"},
    "flash-restore": {"backup_dir": "backup", "any_mac": True},
    "flash-smart-restore": {"backup_dir": "backup", "any_mac": True},
    "flash-analyze": {},
    "flash-status": {},
    "flash-sfdp-read": {},
    "flash-size-detect": {},
    "flash-optimize": {"baudrates": [115200]},
    "partitions-read": {},
    "partitions-find": {"name": "nvs"},
    "partitions-otadata": {},
    "partitions-app": {},
    "partitions-analyze": {},
    "partitions-write": {"table": "table", "discard_data": True},
    "partitions-setup-ota": {"app_size": "1MB", "discard_data": True},
    "ota-prepare": {},
    "ota-deploy": {"package": "package"},
    "ota-rollback": {},
    "nvs-read": {},
    "efuse-read-all": {},
    "efuse-read": {"efuse_name": "MAC"},
    "efuse-summary": {},
    "efuse-plan": {"efuse_name": "CUSTOM_MAC", "value": "7c:df:a1:00:00:09"},
    "efuse-burn": {"efuse_name": "CUSTOM_MAC", "value": "7c:df:a1:00:00:09"},
    "security-info": {},
    "security-posture": {},
    "security-audit": {},
    "security-plan-secure-boot": {"firmware": "build", "key_file": "signing_key"},
    "security-enable-secure-boot": {"firmware": "signed", "key_file": "signing_key"},
    "encryption-status": {},
    "encryption-plan": {"firmware": "build", "key_file": "key"},
    "encryption-enable": {"firmware": "build", "key_file": "key"},
    "encryption-configure": {"mode": "release"},
    "diagnostics-core-dump": {},
    "diagnostics-memory-dump": {"address": "ram", "size": 64},
    "diagnostics-register-dump": {"module": "RTC_CNTL"},
    "diagnostics-power-analysis": {"duration": 0.2},
    "diagnostics-performance-profile": {"duration": 1, "until": "Press ENTER"},
    "diagnostics-rf-calibration-check": {},
    "diagnostics-thermal-status": {},
    "diagnostics-diagnostic-report": {"duration": 1},
    "idf-flash-project": {"project_path": "project"},
    "idf-monitor": {"project_path": "project", "until": "Press ENTER", "reset": True},
    "production-factory-program": {"config": {"firmware": "build", "boot": {"wait": 10, "expect": "Press ENTER"}}},
    "production-factory-reset": {},
    "production-inspect": {"expect": "Press ENTER", "boot_wait_seconds": 10},
    "production-provision": {"config": {"wifi": {"ssid": "bench", "password": "not-for-logs"}}},
    "production-write-calibration-data": {"data": {"adc_offset": 3}},
    "production-write-manufacturing-data": {"data": {"serial_number": "SN-1"}},
    "unity-menu": {},
    "unity-run": {"case": 1},
    "unity-run-all": {"groups": ["math"]},
}
"""One call of each operation. A string that names a fixture of `inputs` stands for that."""

STAYS_IN_RAM = {"chip-load-ram", "chip-self-test"}
"""What starts a program in RAM, which goes on."""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A function that returns what a *chip*'s flash holds, and what its operations are given, by names in `CALLS`."""
    made = {}

    def make(chip, flash_of, build_of):
        if chip not in made:
            contents = bytes(flash_of(build_of(chip), SIZE))
            made[chip] = contents, _inputs(chip, contents, tmp_path_factory.mktemp(chip))
        return made[chip]

    return make


def _inputs(chip, contents, folder):
    build = FIRMWARE / "build" / chip
    key, signing_key, table = folder / "key.bin", folder / "signing.pem", folder / "table.csv"
    key.write_bytes(bytes(range(32)))
    table.write_text("nvs,data,nvs,0x9000,0x6000\nphy_init,data,phy,0xf000,0x1000\nfactory,app,factory,0x10000,1M\n")
    _espsecure("generate-signing-key", "--version", "2", "--scheme", "rsa3072", signing_key)
    signed = shutil.copytree(build, folder / "signed")
    for name in ("bootloader/bootloader.bin", "pytest_esp_test.bin"):
        _espsecure("sign-data", "--version", "2", "--keyfile", signing_key, "--output", signed / name, build / name)
    (folder / "flash.bin").write_bytes(contents)
    with board("here", chip, "app", folder) as link:
        backup = Esp(link).flash.smart_backup(folder / "backup").output_dir
    return {
        "build": build,
        "key": key,
        "signing_key": signing_key,
        "signed": signed,
        "backup": backup,
        "table": table,
        "program": ram.self_test_image(chip),
        "package": package.create(build / "pytest_esp_test.bin", "1.0.1", folder / "app.espota").path,
        "ram": {"esp32": 0x3FFB0000, "esp32c3": 0x3FC90000}[chip],
    }


def _espsecure(*arguments):
    subprocess.run([sys.executable, "-m", "espsecure", *map(str, arguments)], check=True, capture_output=True)


def arguments_of(operation, given, folder):
    """Return the arguments of the call in `CALLS`, with *folder* for what it writes."""
    found = {
        key: given.get(value, value) if isinstance(value, str) else value for key, value in CALLS[operation].items()
    }
    if found.get("output_dir") == "new":
        found["output_dir"] = folder / "saved"
    if "config" in found and "firmware" in found["config"]:
        found["config"] = found["config"] | {"firmware": str(given["build"])}
    return found


def call(link, operation, arguments):
    """Return the result as plain data, or the message of the error."""
    try:
        return to_dict(OPERATIONS[operation].function(link, **copy.deepcopy(arguments)))
    except EspError as error:
        return {"error": type(error).__name__, "message": error.args[0]}


def test_every_operation_has_a_call():
    assert set(CALLS) == {name for name, operation in OPERATIONS.items() if operation.takes_board}


def cases():
    """Yield operation, chip and state; every operation is once among those that are not slow."""
    for number, operation in enumerate(CALLS):
        for chip in ("esp32c3", "esp32"):
            for state in ("app", "loader"):
                is_slow = chip != "esp32c3" or (state == "app") is (number % 2 == 0)
                yield pytest.param(operation, chip, state, marks=[pytest.mark.slow] if is_slow else [])


@pytest.mark.parametrize(("operation", "chip", "state"), list(cases()))
def test_it_does_the_same(operation, chip, state, inputs, tmp_path, monkeypatch, make_idf, flash_of, build_of):
    monkeypatch.setenv("PYTEST_ESP_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("PYTEST_ESP_LOCK_DIR", str(tmp_path / "locks"))
    monkeypatch.syspath_prepend(str(FIRMWARE))
    contents, given = inputs(chip, flash_of, build_of)
    if operation.startswith("idf-"):
        idf = make_idf()
        idf.install()
        build_project(idf.project, chip)
        given = given | {"project": idf.project}
    answers = []
    for kind in ("here", "devkit"):
        folder = tmp_path / kind
        folder.mkdir()
        (folder / "flash.bin").write_bytes(contents)
        with board(kind, chip, state, folder, operation) as link:
            answers.append(comparable(call(link, operation, arguments_of(operation, given, folder))))
    assert answers[1] == answers[0]


@contextlib.contextmanager
def board(kind, chip, state, folder, operation=""):
    """A link to a board whose port is not open yet: a simulated chip in this process, or a devkit in *state*."""
    file = folder / "boards.toml"
    common = f'[boards.b]\nchip="{chip}"\nallow=["read","write","erase","burn"]\nflash_size="4MB"\n'
    if kind == "here":
        file.write_text(common + f'backend="sim"\nflash_file="{folder}/flash.bin"\napp="{APP}"\nmac="{MAC}"\n')
        with link_to(file) as link:
            yield link
        return
    flash = ["--flash", f"{folder}/flash.bin", "--flash-size", "4MB"]
    served = devkits.Served(
        ["sim", chip, "--listen", "rfc2217://127.0.0.1:0", *flash, "--app", APP, "--mac", MAC, "--json"]
    )
    try:
        if state == "app":
            start_app(served.url)
        burns = ",".join(f'"{name}"' for name in BURNS)
        file.write_text(common + f'backend="serial"\nport="{served.url}"\nallow_burn=[{burns}]\n')
        with link_to(file) as link:
            yield link
        assert is_running(served.url) or operation in STAYS_IN_RAM
    finally:
        served.stop()


def link_to(file):
    rack = load_rack(file)
    return Link(make_board(rack.board("b"), rack), burns_enabled=True)


MAC = "7c:df:a1:00:00:01"


def start_app(url):
    rfc2217.register()
    with serial.serial_for_url(url, 115200, timeout=5) as port:
        port.dtr = False
        port.rts = True
        port.rts = False
        assert port.read_until(b"Press ENTER").endswith(b"Press ENTER")


def is_running(url):
    """Whether the app answers. Opening the port changes nothing."""
    with serial.serial_for_url(url, 115200, timeout=0.25) as port:
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            port.write(b"\r\n")
            if b"test menu" in port.read_until(b"test menu"):
                return True
        return False


OWN = re.compile(
    r"baud|second|latency|elapsed|time|port|strategy|round_trip|made$|markdown|rates$|^at$|^begin$|_dir$|_file$|^path$|^settings?$|^hint$"
)
"""Keys whose values are each board's own."""


def comparable(value):
    """Return what is the same on equal boards: without times, rates and folders, and logs up to the app's start."""
    if isinstance(value, dict):
        return {key: comparable(item) for key, item in value.items() if not OWN.search(key)}
    if isinstance(value, list):
        return [comparable(item) for item in value if not (isinstance(item, dict) and _is_own(item))]
    if isinstance(value, str):
        return value.partition("Calling app_main()")[0]
    return None if isinstance(value, float) else value


def _is_own(item):
    """Whether a row is about the baud rate."""
    return item.get("setting") == "baud" or "UART" in str(item.get("name"))
