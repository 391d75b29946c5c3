"""Runs the tests with devkits in place of virtual boards: ``pytest --devkits``.

A board of the backends ``sim`` and ``qemu`` is then a real board to everything above `boards`: `pytest-esp sim` or
`pytest-esp qemu` serves it from a process of its own at a port with control lines, which `SerialBoard` opens. It keeps
running when the port is closed, until its test ends. A test that looks inside a virtual board is skipped, and says so.
"""

import json
import multiprocessing
import os
import shutil
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from pytest_esp.boards import registry
from pytest_esp.boards.serial import SerialBoard
from pytest_esp.formats.mac import made_up_mac
from pytest_esp.formats.nor_flash import NorFlash
from pytest_esp.link.link import Link
from pytest_esp.rack.identity import identity

_FORKS = multiprocessing.get_context("spawn" if sys.platform == "win32" else "forkserver")
_IMPORTED_ONCE = ["pytest_esp.cli.sim", "pytest_esp.sim.chip", "pytest_esp.wire.endpoints", "pytest_esp.boards.qemu"]


def _serve(arguments, ready):
    """Run ``pytest-esp``; what it prints is written to the connection *ready*."""
    os.dup2(ready.fileno(), 1)
    from pytest_esp.cli.main import cli

    cli.main(arguments, prog_name="pytest-esp")


class Served:
    """A virtual board in another process.

    Attributes:
        url: of its port.
        mac, flash: of the chip.
    """

    def __init__(self, arguments):
        ours, theirs = os.pipe()
        with os.fdopen(ours) as lines:
            ready = _FORKS.Process(
                target=_serve, args=(arguments, Connection(os.dup(theirs), readable=False)), daemon=True
            )
            ready.start()
            os.close(theirs)
            line = lines.readline()
        if not line:
            raise AssertionError(f"pytest-esp {' '.join(arguments)} did not start")
        self.process = ready
        self.url = (answer := json.loads(line))["endpoints"][0]
        self.mac = answer["mac"]
        self.flash = NorFlash.open(Path(arguments[arguments.index("--flash") + 1]))
        self.users = 0

    def stop(self):
        self.flash.close()
        self.process.terminate()
        self.process.join(10)


_served = {}
_INSIDE = "it looks inside a virtual board; a devkit is in another process"


class _View:
    """Some attributes of an object; a test that uses another one is skipped."""

    def __init__(self, **attributes):
        self.__dict__.update(attributes)

    def __getattr__(self, name):
        pytest.skip(_INSIDE)

    def __setattr__(self, name, value):
        pytest.skip(_INSIDE)


class _EveryName(tuple):
    """The eFuses that may be burned: the tests of what may be have real boards of their own."""

    def __contains__(self, name):
        return True


class Devkit(SerialBoard):
    """A devkit in place of the virtual board that the entry describes."""

    def __init__(self, spec, rack):
        super().__init__(spec.model_copy(update={"allow_burn": _EveryName()}), rack)
        self.backend = spec.backend  # for the reports

    def resolve(self):
        return self._served().url

    def _served(self):
        key = (identity(self.spec, self.rack), os.environ.get("PYTEST_ESP_STATE_DIR"))
        if key not in _served or not _served[key].process.is_alive():
            _served[key] = Served(_arguments(self.spec, self.rack))
        return _served[key]

    def open(self):
        served = self._served()
        port = super().open()
        served.users += 1
        return port

    def close(self):
        if self._port is not None:
            self._served().users -= 1
        super().close()

    @property
    def wire(self):
        return super().wire or pytest.skip(_INSIDE)

    @property
    def simulated(self):
        """What a test may know of the chip: its flash, which is a file, and its MAC address."""
        served = self._served()
        file = served.flash
        flash = _View(size=file.size, read=file.read, program=file.program, erase=file.erase, flip=file.flip)
        return _View(mac=served.mac, flash=flash)

    @property
    def pid(self):
        pytest.skip(_INSIDE)

    flash_file = rise_time = pid


def _copy_of(file):
    """Return a copy of a board's file, whose own is locked by its lease."""
    if file is None:
        return None
    copy = file.with_name(f"{file.name}.devkit")
    if file.exists() and not copy.exists():
        shutil.copy(file, copy)
    return copy


def _arguments(spec, rack):
    options = {
        "--listen": "rfc2217://127.0.0.1:0",
        "--flash": _copy_of(spec.flash_file) or rack.state_dir(spec) / "flash.bin",
        "--flash-size": spec.flash_size,
        "--efuse": _copy_of(spec.efuse_file),
        "--mac": spec.mac or (None if spec.efuse_file else made_up_mac(identity(spec, rack)).hex(":")),
        "--revision": spec.revision,
        "--app": spec.app,
        "--usb": os.environ.get("PYTEST_ESP_DEVKITS_USB"),
    }
    flags = ["--secure-download"] * spec.secure_download + ["--psram"] * (
        spec.backend == "qemu" and "psram" in spec.features
    )
    given = [str(word) for option, value in options.items() if value is not None for word in (option, value)]
    return [spec.backend, spec.chip, *given, *flags, "--json"]


_CHANGE_THE_APP = {"program", "unity_app", "apps_panic"}


class Plugin:
    """Puts devkits in place of virtual boards in this process."""

    def __init__(self):
        _FORKS.set_forkserver_preload(_IMPORTED_ONCE)
        for backend in ("sim", "qemu"):
            registry._BUILT_IN[backend] = "devkits:Devkit"
        Link.__init__.__kwdefaults__["burns_enabled"] = True

    def pytest_collection_modifyitems(self, items):
        """Skip what only a virtual board has."""
        for item in items:
            if item.get_closest_marker("in_process"):
                item.add_marker(pytest.mark.skip(reason="it is about what a virtual board alone has"))
            elif _CHANGE_THE_APP & set(item.fixturenames):
                item.add_marker(pytest.mark.skip(reason="it changes the app of a simulated chip while that runs"))

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_teardown(self, nextitem):
        """Stop what the test has started, unless a fixture keeps it open."""
        for key, served in list(_served.items()):
            if nextitem is None or served.users <= 0:
                _served.pop(key).stop()
