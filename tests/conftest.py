"""What the project's own tests share."""

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path

import devkits
import pytest

from pytest_esp import secrets

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent


FOR_THE_TESTS = {"PYTEST_ESP_FIRMWARE", "PYTEST_ESP_RECORD_PANICS", "PYTEST_ESP_HOSTILE_EXAMPLES"}


def pytest_addoption(parser):
    parser.addoption("--devkits", action="store_true", help="run the tests with devkits in place of virtual boards")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    """Racks, folders and tokens of the user's environment reach neither the tests nor the plugin that runs them."""
    for name in [name for name in os.environ if name.startswith("PYTEST_ESP_")]:
        if name not in FOR_THE_TESTS:
            del os.environ[name]
    if config.getoption("--devkits"):
        config.pluginmanager.register(devkits.Plugin())


@pytest.fixture(autouse=True, scope="session")
def _secrets_stay_in_their_process():
    """Other workers of this run do not tell of theirs in the middle of a test: what is known is what it gave."""
    secrets.listeners.clear()


@pytest.fixture(autouse=True)
def _forget_secrets():
    """What one test has given a board is no secret in the next, nor what fixtures of a module have given."""
    secrets.forget()
    yield
    secrets.forget()


def _toml(value):
    if isinstance(value, dict):
        return "{" + ", ".join(f'"{key}" = {_toml(one)}' for key, one in value.items()) + "}"
    return json.dumps(value)


@pytest.fixture
def make_esp(tmp_path, monkeypatch):
    """A function that returns the operations on a board, whose link is closed after the test.

    The board is *name* of *rack*; without a rack it has one to itself, and *keys* are its entry in boards.toml.
    """
    from pytest_esp import Esp, Link, make_board
    from pytest_esp.rack.config import load_rack

    monkeypatch.setenv("PYTEST_ESP_STATE_DIR", str(tmp_path / "state"))
    links = []

    def make(rack=None, name="b", **keys):
        if rack is None:
            file = tmp_path / f"board-{len(links)}.toml"
            file.write_text(f"[boards.{name}]\n" + "".join(f"{key}={_toml(value)}\n" for key, value in keys.items()))
            rack = load_rack(file)
        links.append(Link(make_board(rack.board(name), rack)))
        return Esp(links[-1])

    yield make
    for link in links:
        link.close()


@pytest.fixture
def apps_panic(monkeypatch):
    """Apps of simulated chips panic as soon as they have been loaded."""
    from pytest_esp.sim.app import CrashApp, SilentApp

    def panic(app):
        app.restart = lambda reason: None
        CrashApp.receive(app, b"")

    monkeypatch.setattr(SilentApp, "start", panic)


@pytest.fixture
def firmware_folder():
    """The folder of real ESP-IDF builds, which the repository does not contain."""
    folder = Path(os.environ.get("PYTEST_ESP_FIRMWARE") or ROOT.parent / "shared" / "firmware")
    if not (folder / "hello_world_esp32c3" / "flasher_args.json").is_file():
        pytest.skip(f"no real firmware in {folder}: set PYTEST_ESP_FIRMWARE")
    return folder


@pytest.fixture
def need_qemu():
    """A function that skips the test unless a machine of *chip* can be started."""
    from pytest_esp.qemu.find import why_missing

    def need(chip):
        if reason := why_missing(chip):
            pytest.skip(reason)

    return need


@pytest.fixture
def build_of():
    """A function that returns the build folder of the test firmware (tests/firmware) for *chip*."""
    return lambda chip: ROOT / "tests" / "firmware" / "build" / chip


@pytest.fixture
def flash_of():
    """A function that returns what a flash of *size* bytes holds after *build*, a build folder, was written to it."""

    def flash(build, size=2 * 1024 * 1024):
        contents = bytearray(b"\xff" * size)
        files = json.loads((build / "flasher_args.json").read_text(encoding="utf-8"))["flash_files"]
        for offset, name in files.items():
            data = (build / name).read_bytes()
            contents[int(offset, 0) : int(offset, 0) + len(data)] = data
        return contents

    return flash


class FakeIdf:
    """The stand-in for ESP-IDF (tests/idf) as it is installed in *home*, and a project in *projects*."""

    def __init__(self, home, projects):
        self.path = home / "esp" / "esp-idf"
        self.tools = home / ".espressif"
        self.project = projects / "blink"
        self.log = home / "calls"
        shutil.copytree(ROOT / "tests" / "idf" / "esp-idf", self.path)
        shutil.copytree(ROOT / "tests" / "idf" / "project", self.project)

    def install(self):
        """Install its tools, as a user would have done."""
        variables = os.environ | {"IDF_PATH": str(self.path), "IDF_TOOLS_PATH": str(self.tools), "FAKE_IDF_SLOW": "0"}
        for command in (["install", "required"], ["install-python-env"]):
            subprocess.run(
                [sys.executable, self.path / "tools" / "idf_tools.py", *command],
                check=True,
                env=variables,
                capture_output=True,
            )

    def calls(self):
        """How idf.py was called: arguments and environment."""
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []


@pytest.fixture
def make_idf(tmp_path, monkeypatch):
    """A function that makes a home folder with a stand-in for ESP-IDF in it, and a project in a folder."""
    for name in ("IDF_PATH", "ESP_IDF_PATH", "IDF_TOOLS_PATH", "IDF_PYTHON_ENV_PATH", "IDF_TARGET"):
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "home"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("FAKE_IDF_LOG", str(home / "calls"))
    monkeypatch.setenv("FAKE_IDF_BUILDS", str(ROOT / "tests" / "firmware" / "build"))
    return lambda projects=tmp_path: FakeIdf(home, projects)


class Served:
    """A virtual board in a process of its own.

    Attributes:
        ready: what it printed when it was ready.
    """

    def __init__(self, *arguments, **settings):
        self.process = subprocess.Popen(
            [BIN / "pytest-esp", *map(str, arguments), "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **settings,
        )
        line = self.process.stdout.readline()
        if not line:
            raise AssertionError(self.process.stderr.read())
        self.ready = json.loads(line)

    def url(self, scheme):
        return next(url for url in self.ready["endpoints"] if url.startswith(scheme)).removeprefix("pty:")

    def stop(self, number=signal.SIGTERM):
        """End it, and return its exit code; it says nothing on stderr."""
        self.process.send_signal(number)
        _, err = self.process.communicate(timeout=10)
        assert err == ""
        return self.process.returncode


@pytest.fixture
def start_serving():
    """A function that starts ``pytest-esp`` with the given arguments and waits until it serves."""
    running = []

    def start(*arguments, **settings):
        running.append(Served(*arguments, **settings))
        return running[-1]

    yield start
    for served in running:
        if served.process.poll() is None:
            served.process.kill()
        served.process.communicate()


LINES = {"both": (True, True), "none": (False, False), "dtr": (True, False), "rts": (False, True)}
"""DTR and RTS after a port was opened. The kernel and pyserial leave both asserted; ``dtr`` pulls the boot strap, and
``rts`` holds the chip at EN."""


class Devkit:
    """A chip with an auto-reset circuit in another process, that a rack names as a real board.

    Attributes:
        rack: a boards.toml whose only board, ``devkit``, it is.
        url: of its port.
    """

    def __init__(self, folder, served, chip):
        self.served = served
        self.url = served.url("rfc2217")
        self.rack = folder / "boards.toml"
        self.rack.write_text(f'[boards.devkit]\nbackend = "serial"\nchip = "{chip}"\nport = "{self.url}"\n')

    def link(self):
        """A link to it, whose port is not opened yet."""
        from pytest_esp.boards.registry import make_board
        from pytest_esp.link.link import Link
        from pytest_esp.rack.config import load_rack

        rack = load_rack(self.rack)
        return Link(make_board(rack.board("devkit"), rack))


@pytest.fixture
def devkit(tmp_path, start_serving, flash_of, build_of, monkeypatch):
    """A function that makes a `Devkit` of *chip*, which waits in its loader and has *app* (see `load_app`) in flash.

    *lines*, of `LINES`, is how this process finds DTR and RTS after it has opened the port; the default is what
    happens by itself.
    """
    monkeypatch.setenv("PYTEST_ESP_LOCK_DIR", str(tmp_path / "locks"))
    monkeypatch.setenv("PYTEST_ESP_STATE_DIR", str(tmp_path / "state"))

    def make(chip, lines=None, *, app="hello"):
        contents = _image_of_an_esp8266() if chip == "esp8266" else flash_of(build_of(chip))
        flash = tmp_path / "flash.bin"
        flash.write_bytes(bytes(contents).ljust(2 * 1024 * 1024, b"\xff"))
        listen = ("--listen", "rfc2217://127.0.0.1:0")
        served = start_serving("sim", chip, *listen, "--flash", flash, "--flash-size", "2MB", "--app", app)
        if lines is not None:
            _find_lines(monkeypatch, *LINES[lines])
        return Devkit(tmp_path, served, chip)

    return make


def _find_lines(monkeypatch, dtr, rts):
    from pytest_esp.boards.serial import SerialBoard
    from pytest_esp.wire.rfc2217 import Serial

    opened = SerialBoard.open

    def open_so(board):
        port = opened(board)
        assert isinstance(port, Serial)
        if dtr:
            port.dtr = True
        port.rts = rts
        port.dtr = dtr
        return port

    monkeypatch.setattr(SerialBoard, "open", open_so)


def _image_of_an_esp8266():
    """One segment of 16 bytes, as its ROM loads it from address 0."""
    image = struct.pack("<BBBBIII", 0xE9, 1, 0, 0, 0x40100000, 0x40100000, 16) + bytes(16)
    return image.ljust(len(image) // 16 * 16 + 15, b"\0") + b"\xef"
