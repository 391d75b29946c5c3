"""``pytest-esp sim``, used by unmodified esptool and espefuse as separate programs."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_esp.rack.config import load_rack

BIN = Path(sys.executable).parent


@pytest.mark.parametrize("scheme", ["socket", "pty"])
@pytest.mark.parametrize("chip", ["esp32", "esp32c3"])
def test_esptool_writes_and_reads(serve, tmp_path, chip, scheme, tool):
    served = serve(
        "sim",
        chip,
        "--listen",
        "socket://127.0.0.1:0",
        "--listen",
        f"pty:{tmp_path / 'port'}",
        "--mac",
        "7C:DF:A1:00:00:42",
    )
    port = served.url(scheme)
    data = os.urandom(5001)
    (tmp_path / "in.bin").write_bytes(data)
    assert "7c:df:a1:00:00:42" in tool("esptool", "--port", port, "read-mac")
    assert "Hash of data verified" in tool("esptool", "--port", port, "write-flash", "0x10000", tmp_path / "in.bin")
    tool("esptool", "--port", port, "read-flash", "0x10000", "5001", tmp_path / "out.bin")
    assert (tmp_path / "out.bin").read_bytes() == data


def test_stock_pyserial_resets_into_the_loader_over_rfc2217(serve, tool):
    """Unmodified esptool with pyserial's own RFC 2217 client is slow, but enters the loader at the first try."""
    served = serve("sim", "esp32c3", "--listen", "rfc2217://127.0.0.1:0")
    out = tool("esptool", "--port", served.url("rfc2217"), "--no-stub", "--connect-attempts", "1", "read-mac")
    assert served.ready["mac"] in out


def test_espefuse_reads_and_burns(serve, tmp_path, tool):
    served = serve("sim", "esp32c3", "--listen", "socket://127.0.0.1:0", "--efuse", tmp_path / "efuse.bin")
    port = served.url("socket")
    tool("espefuse", "--port", port, "--do-not-confirm", "burn-efuse", "UART_PRINT_CONTROL", "1")
    served.stop()
    again = serve("sim", "esp32c3", "--listen", "socket://127.0.0.1:0", "--efuse", tmp_path / "efuse.bin")
    summary = tool("espefuse", "--port", again.url("socket"), "summary", "--format", "json")
    values = json.loads(summary[summary.index("{") :])
    assert values["UART_PRINT_CONTROL"]["value"] == "Enable when GPIO8 is low at reset"
    assert values["MAC"]["value"].startswith(again.ready["mac"])


def test_secure_download_mode(serve, tool):
    served = serve("sim", "esp32c3", "--listen", "socket://127.0.0.1:0", "--secure-download")
    out = tool("esptool", "--port", served.url("socket"), "--no-stub", "get-security-info")
    assert "Secure Download Mode" in out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_loses_no_flash_contents(serve, tmp_path, number, tool):
    flash = tmp_path / "flash.bin"
    served = serve("sim", "esp32c6", "--listen", "socket://127.0.0.1:0", "--flash", flash, "--flash-size", "2MB")
    (tmp_path / "in.bin").write_bytes(b"kept" * 1000)
    tool("esptool", "--port", served.url("socket"), "write-flash", "0x1000", tmp_path / "in.bin")
    assert served.stop(number) == 0
    content = flash.read_bytes()
    assert len(content) == 2 * 1024 * 1024
    assert content[0x1000 : 0x1000 + 4000] == b"kept" * 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["esp33"], "unknown chip 'esp33'"),
        (["esp32", "--listen", "tcp:1"], "not an address to listen on"),
        (["esp32", "--mac", "1:2"], "invalid MAC address"),
        (["esp32", "--flash-size", "3MB"], "invalid flash size"),
        (["esp32", "--secure-download"], "has no secure download mode"),
        (["esp32", "--app", "nothing:Here"], "cannot load the app"),
    ],
)
def test_bad_arguments_are_explained(arguments, message):
    result = subprocess.run([BIN / "pytest-esp", "sim", *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert message in result.stderr
    assert "hint:" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_flash_file_of_another_size_or_in_a_missing_folder(tmp_path):
    (tmp_path / "small.bin").write_bytes(b"x" * 100)
    for path, message in (
        (tmp_path / "small.bin", "has 100 bytes"),
        (tmp_path / "small.bin" / "x", "cannot be used"),
    ):
        result = subprocess.run(
            [BIN / "pytest-esp", "sim", "esp32", "--flash", path, "--flash-size", "4MB"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 1
        assert message in result.stderr


@pytest.mark.parametrize("option", ["--flash", "--efuse"])
def test_a_file_in_use_is_refused(serve, tmp_path, option):
    """By another `pytest-esp sim`, or by a leased board, however the file is spelled."""
    used, link = tmp_path / "used.bin", tmp_path / "link.bin"
    link.symlink_to(used)
    command = [BIN / "pytest-esp", "sim", "esp32", option, link]
    served = serve("sim", "esp32", "--listen", "socket://127.0.0.1:0", option, used)
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 1
    assert f"{used} is in use by another board: sim-esp32: held for" in result.stderr
    assert f"by pytest-esp sim esp32 (pid {served.process.pid}," in result.stderr
    served.stop()
    (tmp_path / "boards.toml").write_text(f'[boards.a]\nbackend="sim"\nchip="esp32"\n{option[2:]}_file="used.bin"\n')
    rack = load_rack(tmp_path / "boards.toml")
    with rack.lease("a", purpose="a test", timeout=0)[0]:
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert result.returncode == 1
        assert "a: held for" in result.stderr
        assert "by a test" in result.stderr


def test_help_imports_no_large_packages(tool):
    assert shutil.which("pytest-esp", path=str(BIN))
    out = tool("pytest-esp", "--help")
    assert "sim" in out
    assert "rack" in out
