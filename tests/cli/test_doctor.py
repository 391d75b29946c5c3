"""``pytest-esp doctor``: it reports what is on this machine, and exits 1 only for what prevents runs."""

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

import pytest
from click.testing import CliRunner
from serial.tools.list_ports_common import ListPortInfo

from pytest_esp.cli.doctor import doctor_command
from pytest_esp.rack.config import load_rack

BIN = Path(sys.executable).parent
SIM = '[boards.a]\nbackend="sim"\nchip="esp32"\n'
QEMU = '[boards.q]\nbackend="qemu"\nchip="esp32c3"\ncount=2\n'
DEBIAN = '#!/bin/sh\necho "QEMU emulator version 7.2.9 (Debian 1:7.2)"\necho "kc705                kc705 EVB"\n'


@pytest.fixture
def home():
    """A home folder without tools, readable by all, so that tests can run as another user."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "programs").mkdir()
        yield folder


@pytest.fixture(autouse=True)
def nobodys_environment(home, monkeypatch):
    """No QEMU, and nothing that this machine's user has set."""
    for name in list(os.environ):
        if name.startswith(("PYTEST_ESP_", "QEMU_", "IDF_", "XDG_", "COLUMNS", "PYTEST_DISABLE_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("PATH", str(home / "programs"))
    monkeypatch.chdir(home)


@pytest.fixture
def rack(home):
    def write(text, lock_dir="locks"):
        path = home / "boards.toml"
        path.write_text(f'[rack]\nname="bench"\nlock_dir="{lock_dir}"\n{text}')
        return path

    return write


def doctor(*arguments, **env):
    return CliRunner().invoke(doctor_command, [*map(str, arguments)], env=env, catch_exceptions=False)


def as_somebody(function):
    """Return what *function* returns (plain data) for a user who is not root."""
    if os.geteuid() != 0:
        return function()
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setgid(54321)
            os.setuid(54321)
            os.write(writer, json.dumps(function()).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as file:
        answer = file.read()
    os.waitpid(pid, 0)
    return json.loads(answer)


def test_no_problems(rack, home):
    path = rack(SIM)
    result = doctor()
    assert result.exit_code == 0, result.stdout
    assert f"bench ({path}): 1 board: 1 sim (esp32)" in result.stdout
    assert f"locks: {home / 'locks'}" in result.stdout
    assert f"esptool {metadata.version('esptool')}" in result.stdout
    assert "No problems found." in result.stdout


def test_the_same_report_as_json(rack):
    report = json.loads(doctor("--rack", rack(SIM + QEMU), "--json").stdout)
    assert not report["success"]
    assert [(item["section"], item["text"].partition(":")[0]) for item in report["problems"]] == [("rack", "q-1, q-2")]
    assert [(board["name"], bool(board["problem"])) for board in report["rack"]["boards"]] == [
        ("a", False),
        ("q-1", True),
        ("q-2", True),
    ]
    assert report["qemu"] == []
    assert report["packages"]["pyserial"] == metadata.version("pyserial")
    assert all(note["hint"] for note in report["notes"] if note["section"] == "qemu")


def test_without_a_boards_toml_the_default_rack_is_shown():
    result = doctor()
    assert result.exit_code == 0
    assert "default (built in; no boards.toml in this folder or above): 4 boards: 4 sim" in result.stdout


def test_an_invalid_rack_file_is_a_problem_and_the_rest_is_still_reported(rack, home):
    result = doctor("--rack", rack('[boards.a]\nbackend="sim"\nchip="esp33"\n'))
    assert result.exit_code == 1
    assert "boards.toml:6: [boards.a.chip] `chip`: unknown value 'esp33'" in result.stdout
    assert "locks: " in result.stdout
    assert "1 problem" in result.stdout
    assert result.stderr == ""
    assert doctor("--rack", home / "gone.toml").exit_code == 1


def test_locks_that_cannot_be_made_are_a_problem(rack, home):
    (home / "file").touch()
    result = doctor("--rack", rack(SIM, lock_dir="file"))
    assert result.exit_code == 1
    assert f"cannot create a lock in {home / 'file'}" in result.stdout
    assert "PYTEST_ESP_LOCK_DIR" in result.stdout
    assert result.stdout.count("wrong") == 1


def test_a_state_folder_that_cannot_be_made_is_a_problem(rack, home):
    (home / "file").touch()
    result = doctor("--rack", rack(SIM), PYTEST_ESP_STATE_DIR=str(home / "file" / "state"))
    assert result.exit_code == 1
    assert f"cannot write the state of virtual boards to {home / 'file' / 'state'}" in result.stdout


def test_a_board_that_is_in_use_is_not_a_problem(rack):
    path = rack(SIM)
    loaded = load_rack(path)
    with loaded.lease("a", purpose="somebody's test")[0]:
        result = doctor("--rack", path)
    assert result.exit_code == 0
    assert "a: held for " in result.stdout
    assert "by somebody's test (" in result.stdout


class TestQemu:
    @pytest.fixture
    def debian(self, home):
        path = home / "programs" / "qemu-system-riscv32"
        path.write_text(DEBIAN)
        path.chmod(0o755)
        return path

    def test_missing_is_a_note(self, rack):
        result = doctor("--rack", rack(SIM))
        assert result.exit_code == 0
        assert "no QEMU for xtensa is installed" in result.stdout
        assert "pytest-esp qemu install" in result.stdout

    def test_missing_is_a_problem_if_the_rack_needs_it(self, rack):
        result = doctor("--rack", rack(QEMU))
        assert result.exit_code == 1
        assert "q-1, q-2: no QEMU for riscv32 with the machine esp32c3 is installed" in result.stdout

    def test_a_chip_that_qemu_does_not_emulate(self, rack):
        result = doctor("--rack", rack(QEMU.replace("esp32c3", "esp32c6")))
        assert result.exit_code == 1
        assert "QEMU has no machine for esp32c6; it has esp32, esp32s3, esp32c3" in result.stdout

    def test_a_distributions_build_is_named_with_the_reason(self, rack, debian):
        result = doctor("--rack", rack(SIM))
        assert result.exit_code == 0
        assert f"{debian} is QEMU 7.2.9 (Debian 1:7.2) without Espressif's machines" in result.stdout

    def test_used_and_unused_builds_are_listed(self, rack, debian, home):
        espressif = home / ".espressif/tools/qemu-riscv32/esp_develop_9.2.2_20260417/qemu/bin/qemu-system-riscv32"
        older = Path(str(espressif).replace("20260417", "20250817"))
        for path, date in ((espressif, 20260417), (older, 20250817)):
            path.parent.mkdir(parents=True)
            path.write_text(
                f'#!/bin/sh\necho "QEMU emulator version 9.2.2 (esp_develop_9.2.2_{date})"\n'
                'echo "esp32c3              Espressif ESP32-C3 machine"\n'
            )
            path.chmod(0o755)
        path = rack(QEMU)
        result = doctor("--rack", path)
        assert result.exit_code == 0, result.stdout
        assert f"riscv32: 9.2.2 (esp_develop_9.2.2_20260417), machines esp32c3; {espressif} (ESP-IDF tools)\n" in (
            line.rstrip() + "\n" for line in result.stdout.partition("QEMU\n")[2].replace("  ok    ", "").splitlines()
        )
        assert f"{older} (ESP-IDF tools), not used" in result.stdout
        assert f"{debian} (PATH) is not used: it is QEMU 7.2.9" in result.stdout
        rows = json.loads(doctor("--rack", path, "--json").stdout)["qemu"]
        assert [(row["path"], row["used"]) for row in rows] == [
            (str(debian), False),
            (str(espressif), True),
            (str(older), False),
        ]

    def test_a_variable_that_names_nothing(self, rack, home):
        result = doctor("--rack", rack(SIM), QEMU_XTENSA_PATH=str(home / "gone"))
        assert result.exit_code == 0
        assert f"QEMU_XTENSA_PATH is set to {home / 'gone'}, which does not exist" in result.stdout


class TestSerialBoards:
    def board(self, port):
        return f'[boards.s]\nbackend="serial"\nchip="esp32"\nport="{port}"\n'

    def test_that_are_not_plugged_in_are_a_problem(self, rack, home):
        result = doctor("--rack", rack(self.board(home / "ttyUSB9")))
        assert result.exit_code == 1
        assert f"s: the port {home / 'ttyUSB9'} does not exist" in result.stdout
        result = doctor("--rack", rack(self.board("usb:303a:1001:serial=nowhere")))
        assert result.exit_code == 1
        assert "no USB device usb:303a:1001:serial=nowhere is plugged in" in result.stdout

    def test_that_are_one(self, rack):
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            entries = [self.board(f"rfc2217://{host}:{port}").replace("boards.s", f"boards.{name}")
                       for name, host in (("a", "127.0.0.1"), ("b", "localhost"))]  # fmt: skip
            result = doctor("--rack", rack("".join(entries)))
        assert result.exit_code == 1
        assert "a and b are one board" in result.stdout

    def test_behind_servers_that_refuse_connections_are_a_problem(self, rack):
        with socket.create_server(("127.0.0.1", 0)) as server:
            url = f"rfc2217://127.0.0.1:{server.getsockname()[1]}"
            assert doctor("--rack", rack(self.board(url))).exit_code == 0
        result = doctor("--rack", rack(self.board(url)))
        assert result.exit_code == 1
        assert f"s: no connection to the remote port {url}: Connection refused" in result.stdout
        assert doctor("--rack", rack(self.board("rfc2217://nowhere.invalid:4000"))).exit_code == 1

    @pytest.mark.skipif(sys.platform == "win32", reason="every user may open every port")
    def test_that_this_user_may_not_open_are_a_problem(self, rack, home):
        port = home / "ttyUSB0"
        port.touch(mode=0o000)
        group = port.group()
        (home / "locks").mkdir(mode=0o777)
        (home / "locks").chmod(0o1777)
        (home / "state").mkdir()
        (home / "state").chmod(0o777)
        path = rack(self.board(port))
        state = {"PYTEST_ESP_STATE_DIR": str(home / "state")}
        doctor("--rack", path, **state)  # imports what somebody else may not be able to read

        def run():
            result = doctor("--rack", path, **state)
            return result.exit_code, result.stdout

        code, output = as_somebody(run)
        assert code == 1
        assert f"s: this user may not open {port}" in output
        assert f"sudo usermod -aG {group} $USER" in output
        port.chmod(0o666)
        assert as_somebody(run)[0] == 0


class TestPackages:
    @pytest.fixture
    def install(self, home, monkeypatch):
        """Write the metadata of a package that is found first on the path."""

        def install(name, version):
            folder = home / "site" / f"{name.replace('-', '_')}-{version}.dist-info"
            folder.mkdir(parents=True)
            (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
            monkeypatch.syspath_prepend(home / "site")

        return install

    def test_one_that_is_too_old_is_a_problem(self, rack, install):
        install("esptool", "4.8.1")
        result = doctor("--rack", rack(SIM))
        assert result.exit_code == 1
        assert re.search(r"esptool is 4\.8\.1, but \S*>=5\.\d+ is required", result.stdout)
        assert re.search(r"hint: pip install --upgrade 'esptool\S*>=5\.\d+'", result.stdout)

    def test_one_that_is_too_new_is_a_problem(self, rack, install):
        install("pytest", "99.0")
        result = doctor("--rack", rack(SIM))
        assert result.exit_code == 1
        assert re.search(r"pytest is 99\.0, but \S*<\d\S* is required", result.stdout)

    @pytest.fixture
    def with_broken(self, rack, home):
        """Run it where these modules cannot be imported, although the versions of their packages are right."""

        def run(*modules):
            (home / "site").mkdir()
            for module in modules:
                (home / "site" / f"{module}.py").write_text("raise ImportError('cannot import name X')")
            result = subprocess.run(
                [sys.executable, "-c", "from pytest_esp.cli.main import main; main()", "doctor", "--rack", rack(SIM)],
                env=os.environ | {"PYTHONPATH": str(home / "site")},
                capture_output=True,
                text=True,
                check=False,
            )
            assert result.returncode == 1, result.stderr
            return result.stdout

        return run

    def test_those_that_cannot_be_imported_are_problems(self, with_broken):
        output = with_broken("fastmcp", "xdist", "allure_commons", "grpc_reflection", "reedsolo")
        for problem in (
            "the MCP server cannot start with fastmcp",
            "pytest -n does not work with pytest-xdist",
            "pytest --alluredir does not work with allure-pytest",
            "boards of labgrid labs cannot be used with grpcio-reflection",
            "eFuses cannot be read or burnt with esptool",
        ):
            assert re.search(rf"{problem} \d\S*: ImportError: cannot import name X", output)
        assert "Folders" in output

    def test_without_a_working_esptool_nothing_else_is_checked(self, with_broken):
        output = with_broken("esp_pylib")
        assert re.search(r"boards cannot be used with esptool \d\S*: ImportError: cannot import name X", output)
        assert "Folders" not in output

    def test_one_that_breaks_pyserial_is_a_problem(self, rack, install):
        install("pyserial-labgrid", "3.4.0.1")
        result = doctor("--rack", rack(SIM))
        assert result.exit_code == 1
        assert "pyserial-labgrid and pyserial install the same files" in result.stdout

    def test_an_optional_one_that_is_missing_is_a_note(self, rack, monkeypatch):
        versions = metadata.version

        def without_xdist(name):
            if name == "pytest-xdist":
                raise metadata.PackageNotFoundError(name)
            return versions(name)

        monkeypatch.setattr(metadata, "version", without_xdist)
        result = doctor("--rack", rack(SIM), "--json")
        assert result.exit_code == 0
        (note,) = (item for item in json.loads(result.stdout)["notes"] if item["section"] == "packages")
        assert note["text"] == "pytest-xdist is not installed: tests cannot use several boards at the same time"
        assert note["hint"] == "pip install 'pytest-esp[xdist]'"

    def test_plugins_that_pytest_does_not_load(self, rack):
        result = doctor("--rack", rack(SIM), PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
        assert result.exit_code == 0
        assert "pytest -p pytest_esp.plugin" in result.stdout


def test_ports_are_named_as_boards_toml_wants_them(rack, home, monkeypatch):
    """Serial devices as the system lists them; none is opened."""
    bridge, native, uart = (ListPortInfo(str(home / name)) for name in ("ttyUSB0", "ttyACM0", "ttyS0"))
    for item in (bridge, native, uart):
        Path(item.device).touch()
    bridge.vid, bridge.pid, bridge.description = 0x10C4, 0xEA60, "CP2102N"
    native.vid, native.pid, native.serial_number, native.description = 0x303A, 0x1001, "7C:DF:A1:00:11:22", "USB JTAG"
    monkeypatch.setattr("serial.tools.list_ports.comports", lambda: [uart, native, bridge])
    output = doctor("--rack", rack(SIM)).stdout
    assert f"{bridge.device}: CP2102N (usb:10c4:ea60)" in output
    assert f"{native.device}: USB JTAG (usb:303a:1001:serial=7C:DF:A1:00:11:22)" in output
    assert f"not USB: {uart.device}" in output
    ports = json.loads(doctor("--rack", rack(SIM), "--json").stdout)["ports"]
    assert [port["device"] for port in ports] == [native.device, uart.device, bridge.device]
    assert {port["openable"] for port in ports} == {None if sys.platform == "win32" else True}


def test_it_is_a_command(rack):
    result = subprocess.run(
        [BIN / "pytest-esp", "doctor", "--rack", rack(QEMU)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert "1 problem: see above." in result.stdout
    assert result.stderr == ""
