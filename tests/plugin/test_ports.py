"""``--esp-port`` and PYTEST_ESP_PORT: a run on a board without boards.toml. The boards are chips in other processes."""

import pytest

TEST = """
    def test_it(esp, board):
        assert esp.chip.identify().chip_type == "esp32c3"
        print(f"<{board.name} {board.spec.port} {sorted(board.spec.allow)}>")
"""

STAND_IN = """
import json, os
from serial.tools import list_ports
from serial.tools.list_ports_common import ListPortInfo

def comports():
    found = []
    # The workers of a run see no device: they use what the controller has found.
    if "PYTEST_XDIST_WORKER" not in os.environ:
        for device, vid, pid in json.loads(os.environ["PLUGGED_IN"]):
            item = ListPortInfo(device)
            item.vid, item.pid = vid, pid
            found.append(item)
    return found

list_ports.comports = comports
"""


@pytest.fixture
def bare(project, devkit, monkeypatch):
    """A project without a rack file, and a served chip."""
    board = devkit("esp32c3")
    monkeypatch.setenv("PYTEST_ESP_LOCK_DIR", str(project.path / "locks"))
    project.rack_file.unlink()
    project.url = board.url
    project.served = board.served
    project.file(TEST)
    yield project
    project.rack("[boards.a]\nbackend='sim'\nchip='esp32'\n")  # which the fixture reads at the end


@pytest.fixture
def plug(bare, serve, monkeypatch, tmp_path):
    """A function that plugs in chips with the given USB IDs, each on a pty."""
    import json

    devices = []
    bare.pytester.makepyfile(standin=STAND_IN)
    monkeypatch.setenv("PYTHONPATH", str(bare.path))

    def make(*ids):
        for vid, pid in ids:
            path = tmp_path / f"tty{len(devices)}"
            serve("sim", "esp32c3", "--listen", f"pty:{path}", "--mac", f"7C:DF:A1:00:00:{len(devices):02X}")
            devices.append((str(path), vid, pid))
        monkeypatch.setenv("PLUGGED_IN", json.dumps(devices))
        return [device for device, _, _ in devices]

    make()
    return make


@pytest.fixture
def serve(start_serving):
    return start_serving


def name_of(url):
    return url.partition("://")[2].replace(":", "-")


def test_a_run_on_a_port(bare):
    result = bare.run("-s", f"--esp-port={bare.url}", "--strict-markers")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines([f"boards: on {bare.url}"])
    result.stdout.re_match_lines([f".*<{name_of(bare.url)} {bare.url} \\['erase', 'read', 'write'\\]>"])


def test_by_the_environment(bare, monkeypatch):
    monkeypatch.setenv("PYTEST_ESP_PORT", f" {bare.url}, /dev/ttyX0 ")
    result = bare.run("--collect-only", "-q")
    result = bare.run(f"--esp-board={name_of(bare.url)}")
    # --esp-board names a board of a rack, so the environment does not count
    assert result.ret == 4
    result = bare.run("-s")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines([f"boards: on {bare.url}, /dev/ttyX0"])


def test_the_command_line_counts_more_than_the_environment(bare, monkeypatch):
    monkeypatch.setenv("PYTEST_ESP_PORT", "/dev/ttyX0")
    bare.rack('[boards.sim]\nbackend="sim"\nchip="esp32c3"\n')
    result = bare.run("-s", f"--esp-rack={bare.rack_file}")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*<sim None *>"])
    bare.run(f"--esp-port={bare.url}").assert_outcomes(passed=1)


@pytest.mark.parametrize("is_named", [True, False], ids=["named", "found"])
def test_the_entry_of_the_port_holds(bare, is_named):
    """It does not matter how the port is spelled, nor how the rack file was found."""
    bare.rack(
        f'[boards.far]\nbackend="serial"\nchip="esp32c3"\nport="{bare.url}"\nallow=["read"]\n'
        '[boards.sim]\nbackend="sim"\nchip="esp32c3"\n'
    )
    spelled = bare.url.replace("127.0.0.1", "localhost")
    result = bare.run("-s", f"--esp-port={spelled}", *([f"--esp-rack={bare.rack_file}"] if is_named else []))
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines([f"*<far {bare.url} [[]'read'[]]>"])
    result.stdout.fnmatch_lines([f"boards: on {spelled}; entries of */boards.toml hold for their ports"])


def test_what_its_entry_forbids_is_not_done(bare):
    bare.rack(f'[boards.far]\nbackend="serial"\nchip="esp32c3"\nport="{bare.url}"\nallow=["read"]\n')
    bare.file("@pytest.mark.erases\ndef test_it(esp): pass")
    result = bare.run(f"--esp-port={bare.url}")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["*far: it does not allow 'erase'*"])


def test_burns_are_not_allowed(bare):
    bare.file("@pytest.mark.burns\ndef test_it(esp): pass")
    bare.run(f"--esp-port={bare.url}", "--esp-allow-burn").assert_outcomes(skipped=1)


def test_several_ports(bare, serve):
    other = serve("sim", "esp32c3", "--mac", "7C:DF:A1:00:00:02").url("rfc2217")
    bare.file("@pytest.mark.esp(each='board')\ndef test_it(esp): print('<', esp.chip.read_mac().mac_address, '>')")
    result = bare.run("-sv", f"--esp-port={bare.url}", f"--esp-port={other}", f"--esp-port={bare.url}")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines([f"*{bare.served.ready['mac']}*", "*7c:df:a1:00:00:02*"])


@pytest.mark.parametrize("port", ["rfc2217://lab:99999", "usb:12:34"])
def test_a_malformed_port_is_a_usage_error(bare, port):
    result = bare.run(f"--esp-port={port}")
    assert result.ret == 4
    result.stderr.fnmatch_lines([f"ERROR: '{port}' is not a valid port", "*hint: expected *"])


def test_a_port_that_is_not_there_is_an_error_of_the_test(bare):
    result = bare.run("--esp-port=/dev/ttyX0")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*the port /dev/ttyX0 does not exist*"])


def test_collecting_opens_no_port(bare):
    """The server would report a client."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        result = bare.run("--collect-only", "-q", f"--esp-port=rfc2217://127.0.0.1:{server.getsockname()[1]}")
        assert result.ret == 0
        with pytest.raises(TimeoutError):
            server.accept()


# -- auto


def test_auto_finds_boards_by_their_usb_ids(bare, plug):
    first, _arduino, second = plug((0x303A, 0x1001), (0x2341, 0x0043), (0x1A86, 0x7523))
    code, output = bare.run_process("-p", "standin", "--esp-port=auto", "-s")
    assert code == 0, output
    assert f"boards: on {first}, {second}\n" in output
    assert "<tty0 " in output


@pytest.mark.parametrize("by", ["option", "environment"])
def test_without_a_board_auto_is_a_usage_error_that_says_what_was_seen(bare, plug, by, monkeypatch):
    (device,) = plug((0x2341, 0x0043))
    if by == "environment":
        monkeypatch.setenv("PYTEST_ESP_PORT", "auto")
    code, output = bare.run_process("-p", "standin", *(["--esp-port=auto"] if by == "option" else []))
    assert code == 4
    assert f"auto found no Espressif chip and no USB bridge; found: {device} (usb:2341:0043)" in output


def test_without_a_test_that_needs_a_board_the_environment_does_no_harm(bare, plug, monkeypatch):
    monkeypatch.setenv("PYTEST_ESP_PORT", "auto")
    bare.file("def test_it(): pass")
    code, output = bare.run_process("-p", "standin")
    assert code == 0, output


@pytest.mark.parametrize("by", ["option", "environment"])
def test_workers_use_the_boards_that_the_controller_has_found(bare, plug, by, monkeypatch):
    devices = plug((0x303A, 0x1001), (0x303A, 0x1001))
    if by == "environment":
        monkeypatch.setenv("PYTEST_ESP_PORT", "auto")
    bare.file("@pytest.mark.esp(each='board')\ndef test_it(esp): assert esp.chip.identify().chip_type == 'esp32c3'")
    code, output = bare.run_process("-p", "standin", "-n2", "-v", *(["--esp-port=auto"] if by == "option" else []))
    assert code == 0, output
    assert "2 passed" in output
    assert f"boards: on {', '.join(devices)}" in output
