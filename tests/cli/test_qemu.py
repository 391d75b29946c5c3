"""``pytest-esp qemu``, used by unmodified esptool and espefuse as separate programs."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pytest_esp.wire import rfc2217

BIN = Path(sys.executable).parent
READY = b"see the list of tests."
RFC2217, SOCKET = ("--listen", "rfc2217://127.0.0.1:0"), ("--listen", "socket://127.0.0.1:0")


@pytest.fixture(autouse=True)
def needs_the_c3(need_qemu, tmp_path, monkeypatch):
    need_qemu("esp32c3")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setenv("PYTEST_ESP_LOCK_DIR", str(tmp_path / "locks"))


@pytest.fixture
def flash_file(tmp_path, build_of, flash_of):
    """A flash of an ESP32-C3 with the test firmware."""
    path = tmp_path / "flash.bin"
    path.write_bytes(flash_of(build_of("esp32c3")))
    return path


def qemus_of(process):
    """Return the pids of the processes that a served machine has started."""
    listing = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,stat="], capture_output=True, text=True, check=True)
    rows = (line.split() for line in listing.stdout.splitlines())
    return [int(pid) for pid, parent, state in rows if int(parent) == process.pid and not state.startswith("Z")]


def is_alive(pid):
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return state.strip() not in ("", "Z", "Zs")


def expect(connection, text, timeout=30.0):
    """Read from a socket or port until *text* comes."""
    read = connection.recv if isinstance(connection, socket.socket) else connection.read
    data = b""
    deadline = time.monotonic() + timeout
    while text not in data:
        assert time.monotonic() < deadline, data[-2000:]
        data += read(1)
    return data


@contextlib.contextmanager
def connected(url):
    host, _, port = url.removeprefix("socket://").rpartition(":")
    with socket.create_connection((host, int(port)), 30) as connection:
        yield connection


# -- esptool and espefuse


def test_esptool_flashes_as_on_a_devkit_and_the_app_answers_on_the_same_port(serve, tool, build_of, monkeypatch):
    """Default resets over RFC 2217: into the loader, write, and out of it again. pyserial's client needs 30 s."""
    served = serve("qemu", "esp32c3", *RFC2217, "--flash-size", "2MB")
    url = served.url("rfc2217")
    monkeypatch.chdir(build_of("esp32c3"))
    files = json.loads(Path("flasher_args.json").read_text())["flash_files"]
    out = tool("esptool", "--port", url, "write-flash", *(word for pair in files.items() for word in pair))
    assert out.count("Hash of data verified") == len(files)
    assert served.ready["mac"] in out
    port = rfc2217.Serial(url, timeout=1)
    try:
        port.write(b"mac\n")
        expect(port, served.ready["mac"].encode())
        port.dtr = False  # as a monitor resets a devkit
        port.rts = True
        port.rts = False
        expect(port, b"on esp32c3, slot factory")
    finally:
        port.close()


@pytest.mark.parametrize("scheme", ["socket", "pty"])
def test_espefuse_and_esptool_on_ports_without_lines(serve, tool, tmp_path, scheme):
    served = serve("qemu", "esp32c3", *SOCKET, "--listen", f"pty:{tmp_path / 'port'}", "--mac", "7C:DF:A1:00:00:42")
    port = served.url(scheme)
    data = os.urandom(1000)
    (tmp_path / "in.bin").write_bytes(data)
    summary = tool("espefuse", "--port", port, "--before", "no-reset", "summary", "--format", "json")
    assert json.loads(summary[summary.index("{") :])["MAC"]["value"] == "7c:df:a1:00:00:42 (OK)"
    tool("esptool", "--port", port, "--before", "no-reset", "write-flash", "0x10000", tmp_path / "in.bin")
    tool("esptool", "--port", port, "--before", "no-reset", "read-flash", "0x10000", "1000", tmp_path / "out.bin")
    assert (tmp_path / "out.bin").read_bytes() == data


def test_espefuse_burns_what_an_efuse_file_keeps(serve, tool, tmp_path):
    file = tmp_path / "efuse.bin"
    served = serve("qemu", "esp32c3", *SOCKET, "--efuse", file)
    burn = ("burn-efuse", "UART_PRINT_CONTROL", "1")
    tool("espefuse", "--port", served.url("socket"), "--before", "no-reset", "--do-not-confirm", *burn)
    assert served.stop() == 0
    again = serve("qemu", "esp32c3", *SOCKET, "--efuse", file)
    summary = tool("espefuse", "--port", again.url("socket"), "--before", "no-reset", "summary", "--format", "json")
    values = json.loads(summary[summary.index("{") :])
    assert values["UART_PRINT_CONTROL"]["value"] == "Enable when GPIO8 is low at reset"
    assert again.ready["mac"] == served.ready["mac"]


# -- what it starts with


@pytest.mark.parametrize(
    ("boot", "said"), [("auto", READY), ("app", READY), ("bootloader", b"wait uart0 download")], ids=lambda value: value
)
def test_it_starts_the_app_in_flash_or_what_boot_selects(serve, flash_file, boot, said):
    served = serve("qemu", "esp32c3", *SOCKET, "--flash", flash_file, "--boot", boot)
    assert served.ready["flash_size"] == 2 * 1024 * 1024
    with connected(served.url("socket")) as connection:
        if said == READY:
            connection.sendall(b"\n")  # the menu, for its greeting may have been before us
            expect(connection, b"Here's the test menu")
        else:
            connection.sendall(bytes.fromhex("c000082400000000000707122055555555") + b"U" * 28 + b"\xc0")
            expect(connection, bytes.fromhex("c00108"))


def test_a_blank_machine_waits_in_its_loader(serve):
    served = serve("qemu", "esp32c3", *SOCKET)
    with connected(served.url("socket")) as connection:
        connection.sendall(bytes.fromhex("c000082400000000000707122055555555") + b"U" * 28 + b"\xc0")
        expect(connection, bytes.fromhex("c00108"))


# -- its end


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_only_the_flash_file_is_left_after_a_stop(serve, flash_file, tmp_path, number):
    before = flash_file.read_bytes()
    served = serve("qemu", "esp32c3", *SOCKET, "--flash", flash_file, *("--listen", f"pty:{tmp_path / 'port'}"))
    (qemu,) = qemus_of(served.process)
    assert served.stop(number) == 0
    assert not is_alive(qemu)
    assert flash_file.read_bytes() == before
    assert sorted(os.listdir(tmp_path / "temporary")) == []
    assert sorted(os.listdir(tmp_path)) == ["flash.bin", "locks", "temporary"]


def test_killing_it_kills_qemu(serve, flash_file):
    served = serve("qemu", "esp32c3", *SOCKET, "--flash", flash_file)
    (qemu,) = qemus_of(served.process)
    served.process.kill()
    served.process.wait()
    deadline = time.monotonic() + 5
    while is_alive(qemu):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_killed_qemu_is_reported_and_restarted_by_a_reset(serve, flash_file):
    served = serve("qemu", "esp32c3", *RFC2217, "--flash", flash_file)
    (qemu,) = qemus_of(served.process)
    port = rfc2217.Serial(served.url("rfc2217"), timeout=1)
    try:
        os.kill(qemu, signal.SIGKILL)
        assert served.process.stderr.readline() == (
            "QEMU was killed by SIGKILL without a message; a reset starts it again\n"
        )
        port.dtr = False
        port.rts = True
        port.rts = False
        expect(port, READY)
    finally:
        port.close()
    assert served.stop() == 0


def test_one_image_is_not_served_twice(serve, flash_file):
    serve("qemu", "esp32c3", *SOCKET, "--flash", flash_file)
    with pytest.raises(AssertionError, match="is in use by another board"):
        serve("qemu", "esp32c3", *SOCKET, "--flash", flash_file)


# -- arguments


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["esp32c6"], 1, "QEMU has no machine for esp32c6; it has esp32, esp32s3, esp32c3"),
        (["esp33"], 1, "QEMU has no machine for esp33"),
        (["esp32c3", "--listen", "tcp:1"], 1, "not an address to listen on"),
        (["esp32c3", "--flash-size", "1MB"], 1, "QEMU does not support a flash size of 1MB"),
        (["esp32c3", "--mac", "1:2"], 2, "--mac"),
        (["esp32c3", "--flash-size", "much"], 2, "--flash-size"),
        ([], 2, "Usage"),
    ],
)
def test_bad_arguments_are_explained(arguments, code, message):
    result = subprocess.run([BIN / "pytest-esp", "qemu", *arguments], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (code, "")
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_without_qemu_the_error_says_how_to_install_it(tmp_path):
    environment = {"HOME": str(tmp_path), "PATH": os.defpath}
    result = subprocess.run(
        [BIN / "pytest-esp", "qemu", "esp32"], capture_output=True, text=True, check=False, env=environment
    )
    assert result.returncode == 1
    assert "no QEMU for xtensa" in result.stderr
    assert "pytest-esp qemu install" in result.stderr
