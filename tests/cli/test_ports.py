"""``pytest-esp ports`` and ``init``, on served chips in other processes, on ptys, and on a stand-in for USB devices."""

import contextlib
import json
import os
import pty
import select
import socket
import subprocess
import sys
import time
import tomllib
import tty
from pathlib import Path

import pytest
import serial
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from serial.tools import list_ports
from serial.tools.list_ports_common import ListPortInfo

from pytest_esp.cli import chips_at_ports
from pytest_esp.cli.chips_at_ports import PortState
from pytest_esp.cli.init import boards_toml, quoted
from pytest_esp.cli.main import cli
from pytest_esp.rack.config import load_rack
from pytest_esp.rack.ports import SerialPort, board_on
from pytest_esp.rack.rack import Rack
from pytest_esp.wire import rfc2217

BIN = Path(sys.executable).parent


@pytest.fixture
def here(tmp_path_factory):
    """The working folder, empty; no folder above it has a boards.toml."""
    return tmp_path_factory.mktemp("here")


@pytest.fixture(autouse=True)
def nothing_plugged_in(tmp_path, here, monkeypatch):
    """An empty folder, and a machine without serial ports; a test may add some to the list."""
    devices = []
    monkeypatch.setattr(list_ports, "comports", lambda: devices)
    monkeypatch.setenv("PYTEST_ESP_LOCK_DIR", str(tmp_path / "locks"))
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.chdir(here)
    return devices


def usb(device, vid, pid, serial_number=None, description="a bridge"):
    item = ListPortInfo(str(device))
    item.vid, item.pid, item.serial_number, item.description = vid, pid, serial_number, description
    return item


def run(*arguments):
    result = CliRunner().invoke(cli, [*map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        return 1, str(result.exception)  # `main` prints it
    return result.exit_code, result.output


def listed(*arguments):
    """The rows of ``ports --json``, by device."""
    code, output = run("ports", "--json", *arguments)
    assert code == 0, output
    return {row["device"]: row for row in json.loads(output)["ports"]}


@pytest.fixture
def silent():
    """The path of a pty at which nothing answers, and the other end."""
    far, near = pty.openpty()
    tty.setraw(near)
    yield os.ttyname(near), far
    for end in (far, near):
        os.close(end)


def has_received(far):
    return bool(select.select([far], [], [], 0.05)[0])


# -- ports


def test_what_is_plugged_in(nothing_plugged_in, tmp_path, here):
    device = tmp_path / "ttyACM0"
    device.touch()
    nothing_plugged_in.append(usb(device, 0x303A, 0x1001, "AA:BB", "USB JTAG"))
    (here / "boards.toml").write_text('[boards.mine]\nbackend="serial"\nchip="esp32c3"\nport="usb:303a:1001"\n')
    row = listed()[str(device)]
    assert (row["name"], row["description"], row["board"]) == ("usb:303a:1001:serial=AA:BB", "USB JTAG", "mine")
    assert (row["holder"], row["problem"], row["chip"]) == (None, None, None)
    _, output = run("ports")
    assert all(word in output for word in (str(device), "USB JTAG", "usb:303a:1001:serial=AA:BB", "mine", "free"))


def test_nothing_is_plugged_in():
    assert run("ports") == (0, "no serial port was found\n")


def test_without_being_asked_to_no_port_is_opened(silent, monkeypatch):
    """Neither a local port nor a remote one, whose server would open its own."""
    path, far = silent
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        url = f"rfc2217://127.0.0.1:{server.getsockname()[1]}"
        assert listed(path, url).keys() == {path, url}
        assert not has_received(far)
        with pytest.raises(TimeoutError):
            server.accept()


def test_listing_does_not_import_esptool(here):
    (here / "boards.toml").write_text('[boards.a]\nbackend="serial"\nchip="esp32"\nport="/dev/ttyX0"\n')
    result = subprocess.run(
        [sys.executable, "-X", "importtime", BIN / "pytest-esp", "ports", "socket://localhost:1"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "pytest_esp.rack.ports" in result.stderr
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert not imported & {"esptool", "espefuse"}


@pytest.mark.parametrize("chip", ["esp32", "esp32c3", "esp8266"])
def test_the_chip_behind_a_remote_port(devkit, chip):
    board = devkit(chip, app="echo")
    row = listed(board.url, "--identify")[board.url]
    assert (row["chip"], row["mac"], row["flash_size"]) == (chip, board.served.ready["mac"], "2MB")
    assert (row["revision"] is None) == (chip == "esp8266")
    assert is_running(board.url)


def is_running(url):
    """Whether the app answers: it echoes its input."""
    rfc2217.register()
    with serial.serial_for_url(url, 115200, timeout=0.25) as port:
        for _ in range(4):  # the app may still boot
            port.write(b"hello?")
            if b"hello?" in port.read(6):
                return True
            port.reset_input_buffer()
        return False


def test_the_chip_behind_a_pty(serve, tmp_path):
    path = tmp_path / "chip"
    served = serve("sim", "esp32s3", "--listen", f"pty:{path}")
    for _ in range(2):
        row = listed(path, "--identify")[str(path)]
        assert (row["chip"], row["mac"], row["flash_size"]) == ("esp32s3", served.ready["mac"], "4MB")


def test_a_chip_that_answers_is_named(devkit):
    output = subprocess.check_output([BIN / "pytest-esp", "ports", devkit("esp32c3").url, "--identify"], text=True)
    assert "esp32c3" in output


def test_a_chip_in_secure_download_mode(serve):
    served = serve("sim", "esp32c3", "--secure-download")
    row = listed(served.url("rfc2217"), "--identify")[served.url("rfc2217")]
    assert (row["chip"], row["mac"], row["flash_size"], row["problem"]) == ("esp32c3", None, None, None)


def test_silent_and_absent_ports_are_told_in_time_and_hold_up_no_other(devkit, silent, monkeypatch):
    board = devkit("esp32c3")
    path, _ = silent
    with socket.create_server(("127.0.0.1", 0)) as server:  # accepts, and never says a word
        mute = f"rfc2217://127.0.0.1:{server.getsockname()[1]}"
        refused = "socket://127.0.0.1:1"
        begun = time.monotonic()
        rows = listed(path, mute, refused, "/dev/ttyX7", board.url, "--identify")
        assert time.monotonic() - begun < chips_at_ports._LONGEST + 1.5  # importing and starting up
    assert rows[path]["problem"] == "no chip answers"
    assert rows[mute]["problem"] == "timed out after 2 s"
    assert "Connection refused" in rows[refused]["problem"]
    assert rows["/dev/ttyX7"]["problem"] == "the port /dev/ttyX7 does not exist"
    assert rows[board.url]["chip"] == "esp32c3"


def test_a_held_port_is_told_and_not_opened(silent, tmp_path):
    path, far = silent
    rack = Rack("other", None, {})
    with rack_lease(path, rack, "somebody's test"):
        row = listed(path, "--identify")[path]
        assert row["holder"]["purpose"] == "somebody's test"
        assert row["chip"] is None
        assert "held for" in run("ports", path, "--identify")[1]
        assert not has_received(far)
    listed(path, "--identify")
    assert has_received(far)


def rack_lease(port, rack, purpose):
    from pytest_esp.rack.lease import acquire

    (lease,) = acquire([board_on(port)], rack=rack, purpose=purpose, timeout=0)
    return lease


def test_a_port_is_leased_while_it_is_asked(silent, monkeypatch):
    from pytest_esp.boards.serial import SerialBoard
    from pytest_esp.rack.lease import holder_of

    opened = SerialBoard.open
    holders = []

    def open_so(board):
        holders.append(holder_of(board.spec, board.rack).purpose)
        return opened(board)

    monkeypatch.setattr(SerialBoard, "open", open_so)
    listed(silent[0], "--identify")
    assert holders == ["pytest-esp ports --identify"]


def test_only_likely_ports_are_asked(nothing_plugged_in, silent):
    path, far = silent
    nothing_plugged_in.append(usb(path, 0x2341, 0x0043, description="Arduino Uno"))
    row = listed("--identify")[path]
    assert row["problem"].startswith("not asked")
    assert not has_received(far)
    assert listed(path, "--identify")[path]["problem"] == "no chip answers"
    assert has_received(far)


def test_a_board_that_may_not_be_read_is_not_asked(silent, here):
    path, far = silent
    (here / "boards.toml").write_text(f'[boards.mine]\nbackend="serial"\nchip="esp32"\nport="{path}"\nallow=[]\n')
    assert listed(path, "--identify")[path]["problem"] == "not asked: the entry of mine does not allow 'read'"
    assert not has_received(far)


def test_a_rack_that_cannot_be_read_does_not_matter(silent, here):
    (here / "boards.toml").write_text("wrong")
    code, output = run("ports", silent[0])
    assert code == 0
    assert silent[0] in output
    assert "boards.toml:1: invalid TOML" in output


def test_another_chip_than_the_entry_states_is_named(devkit):
    board = devkit("esp32c3")
    board.rack.write_text(board.rack.read_text().replace("esp32c3", "esp32"))
    row = listed(board.url, "--identify", "--rack", board.rack)[board.url]
    assert (row["board"], row["chip"]) == ("devkit", "esp32c3")


def test_texts_of_devices_do_not_reach_the_terminal_as_escapes(nothing_plugged_in, tmp_path):
    for name in ("ttyACM0", "ttyACM1"):
        (tmp_path / name).touch()
    nothing_plugged_in.append(
        usb(tmp_path / "ttyACM0", 0x303A, 0x1001, "A\x1b]0;x\x07", "\x1b[31mred\r\n[bold]x\u202e")
    )
    for arguments in (("ports",), ("ports", "--json"), ("doctor",)):
        output = run(*arguments)[1]
        assert "\x1b" not in output
        assert "\u202e" not in output
        assert "[bold]" in output


# -- init


def test_boards_toml_of_what_is_found(devkit, serve, silent, here, nothing_plugged_in):
    board = devkit("esp32c3", app="echo")
    other = serve("sim", "esp32c3", "--flash-size", "8MB", "--mac", "7C:DF:A1:00:00:02")
    third = serve("sim", "esp32")
    code, output = run("init", "--yes", board.url, other.url("rfc2217"), third.url("rfc2217"), silent[0])
    assert code == 0, output
    rack = load_rack(here / "boards.toml")
    assert [(spec.name, spec.chip, spec.port, spec.flash_size) for spec in rack.boards.values()] == [
        ("esp32c3-1", "esp32c3", board.url, 2 << 20),
        ("esp32c3-2", "esp32c3", other.url("rfc2217"), 8 << 20),
        ("esp32-1", "esp32", third.url("rfc2217"), 4 << 20),
    ]
    assert {spec.allow for spec in rack.boards.values()} == {frozenset({"read", "write", "erase"})}
    text = (here / "boards.toml").read_text()
    assert f"MAC {board.served.ready['mac']}" in text
    assert f"# {silent[0]}: not identified: no chip answers" in text
    assert is_running(board.url)
    assert not list(here.glob(".*"))


def test_the_boards_that_are_plugged_in_by_their_lasting_names(nothing_plugged_in, serve, tmp_path):
    path = tmp_path / "ttyACM0"
    serve("sim", "esp32c6", "--listen", f"pty:{path}")
    nothing_plugged_in.append(usb(path, 0x303A, 0x1001, "AA", "USB JTAG"))
    nothing_plugged_in.append(usb("/dev/ttyX0", None, None))
    assert run("init", "--yes", "--output", "mine.toml")[0] == 0
    (spec,) = load_rack(Path("mine.toml")).boards.values()
    assert (spec.name, spec.port) == ("esp32c6-1", "usb:303a:1001:serial=AA")
    assert "USB JTAG" in Path("mine.toml").read_text()
    assert "ttyX0" not in Path("mine.toml").read_text()


@pytest.mark.parametrize("target", ["a file", "a link to nothing"])
def test_a_file_is_never_overwritten(devkit, here, target, monkeypatch):
    path = here / "boards.toml"
    if target == "a file":
        path.write_text("mine")
    else:
        path.symlink_to("nowhere")
    code, output = run("init", "--yes")
    assert code == 1
    assert "boards.toml exists already" in output
    assert "--output" in output
    assert path.is_symlink() or path.read_text() == "mine"
    assert not (here / "nowhere").exists()


def test_nothing_is_plugged_in_for_init(silent, here):
    code, output = run("init", "--yes")
    assert code == 1
    assert "no board is plugged in" in output
    assert 'backend = "sim"' in output
    code, output = run("init", "--yes", silent[0])
    assert code == 1
    assert "no chip answered" in output
    assert not list(here.iterdir())


def test_a_script_must_say_yes(silent, tmp_path):
    code, output = run("init", silent[0])
    assert code == 1
    assert "add --yes" in output
    assert not has_received(silent[1])


@pytest.mark.parametrize(("answer", "written"), [("\n", True), ("y\n", True), ("n\n", False)])
def test_it_asks_on_a_terminal(devkit, here, answer, written):
    board = devkit("esp32c3")
    master, slave = pty.openpty()
    with subprocess.Popen([BIN / "pytest-esp", "init", board.url], stdin=slave, stdout=slave, stderr=slave) as process:
        os.close(slave)
        seen = b""
        while b"[Y/n]" not in seen:
            seen += os.read(master, 4096)
        assert b"[boards.esp32c3-1]" in seen
        assert not (here / "boards.toml").exists()
        os.write(master, answer.encode())
        with contextlib.suppress(OSError):  # EIO: it has ended
            while os.read(master, 4096):
                pass
    os.close(master)
    assert (process.returncode == 0) is written
    assert (here / "boards.toml").exists() is written


def state_of(device, chip="esp32", mac=None, description="", name=None):
    port = SerialPort(device, name or device, description, is_likely=True)
    return PortState(port, board_on(device), None, chip=chip, mac=mac, flash_size=4 << 20)


def test_two_ports_of_one_chip_are_one_board(tmp_path):
    """A board with a bridge and native USB: both lead to the chip, and a lease on one does not hold the other."""
    first, second = (state_of(f"/dev/tty{number}", mac="7c:df:a1:00:00:01") for number in range(2))
    path = tmp_path / "boards.toml"
    path.write_text(boards_toml([first, second]))
    assert [spec.port for spec in load_rack(path).boards.values()] == ["/dev/tty0"]
    assert "# /dev/tty1: the second port of esp32-1, which has this MAC address" in path.read_text()


_TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@given(_TEXT)
def test_any_text_is_quoted_for_toml_and_the_terminal(text):
    shown = quoted(text)
    assert tomllib.loads(f"key = {shown}")["key"] == text
    assert not any(ord(one) < 0x20 or 0x7F <= ord(one) < 0xA0 for one in shown)


@given(description=_TEXT, name=_TEXT.filter(lambda text: "\0" not in text))
def test_whatever_a_device_calls_itself_the_file_is_one_entry(description, name):
    """What reaches `boards_toml` is printable already (tests/rack/test_ports.py)."""
    from pytest_esp.rack.holder import printable

    state = state_of("/dev/tty0", description=printable(description), name=f"/dev/{printable(name)}")
    (entry,) = tomllib.loads(boards_toml([state]))["boards"].values()
    assert entry == {
        "backend": "serial",
        "chip": "esp32",
        "port": f"/dev/{printable(name)}",
        "flash_size": "4MB",
        "allow": ["read", "write", "erase"],
    }


# -- op and check on a port


def test_an_operation_on_a_port(devkit, monkeypatch, here):
    board = devkit("esp32c3", app="echo")
    code, output = run("op", "chip-identify", "--port", board.url, "--json")
    assert (code, json.loads(output)["chip_type"]) == (0, "esp32c3")
    assert is_running(board.url)
    monkeypatch.setenv("PYTEST_ESP_PORT", board.url)
    assert json.loads(run("op", "chip-read-mac", "--json")[1])["mac_address"] == board.served.ready["mac"]
    # What the command line names counts more.
    (here / "boards.toml").write_text('[boards.virtual]\nbackend="sim"\nchip="esp32"\n')
    code, output = run("op", "chip-read-mac", "--json", "--board", "virtual")
    assert json.loads(output)["mac_address"] != board.served.ready["mac"]


def test_the_entry_of_a_port_holds_for_operations(devkit):
    board = devkit("esp32c3")
    board.rack.write_text(board.rack.read_text() + 'allow = ["read"]\n')
    answer = json.loads(
        run("op", "flash-erase", "region=0x1f0000", "size=4096", "--json", "--port", board.url, "--rack", board.rack)[1]
    )
    assert answer["error"] == "operation requires 'erase'; this board allows: read"


def test_an_operation_on_files_takes_no_port():
    answer = json.loads(run("op", "chip-elf-to-ram-image", "--port", "/dev/ttyX0", "--json")[1])
    assert "does not take --port" in answer["error"]


def test_the_suites_on_a_port(devkit):
    board = devkit("esp32c3")
    result = subprocess.run(
        [BIN / "pytest-esp", "check", "--port", board.url, "-k", "identity"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert " passed" in result.stdout
    assert board.url in result.stdout
