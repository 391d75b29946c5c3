"""Boards whose apps have test menus."""

import importlib
import sys
from pathlib import Path

import pytest

from pytest_esp.rack.config import load_rack

FOLDER = Path(__file__).parent
FIRMWARE = FOLDER.parents[1] / "firmware"
DATA = FOLDER / "data"


@pytest.fixture(scope="session")
def recorded():
    """A function that returns what a real app printed, as it came: ``data/NAME.txt``."""
    return lambda name: (DATA / f"{name}.txt").read_bytes().decode()


@pytest.fixture
def links(tmp_path, monkeypatch, make_esp):
    """A function that makes links to boards of *chips*, all with the given entries in boards.toml."""
    monkeypatch.setenv("PYTEST_ESP_LOCK_DIR", str(tmp_path / "locks"))
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.syspath_prepend(str(FIRMWARE))
    made = []

    def make(*chips, build, **entries):
        lines = "".join(f"{key} = {value!r}\n" for key, value in {"flash_size": "4MB", **entries}.items())
        path = tmp_path / "boards.toml"
        names = [f"board-{number}" for number in range(1, len(chips) + 1)]
        tables = [f'[boards.{name}]\nchip = "{chip}"\n{lines}' for name, chip in zip(names, chips, strict=True)]
        path.write_text("\n".join(tables))
        rack = load_rack(path)
        for name, chip in zip(names, chips, strict=True):
            esp = make_esp(rack, name)
            esp.flash.write(build(chip))
            made.append(esp.link)
        return made

    return make


@pytest.fixture
def simulated(links, build_of):
    """Two simulated chips with the test firmware's app."""
    return links("esp32c3", "esp32", build=build_of, backend="sim", app="app:TestFirmware")


@pytest.fixture
def unity_app(monkeypatch):
    """The module of `UnityApp`, as the simulated chips import it."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("unity_app")


@pytest.fixture
def program(unity_app, monkeypatch):
    """What the app on the board of `link` does."""
    made = unity_app.Program()
    monkeypatch.setattr(unity_app.UnityApp, "program", made)
    return made


@pytest.fixture
def link(links, build_of, program):
    """A simulated chip with an app that runs `program`."""
    return links("esp32", build=build_of, backend="sim", app="unity_app:UnityApp")[0]


@pytest.fixture
def pair(links, build_of, program):
    """Two simulated chips with an app that runs `program`."""
    return links("esp32", "esp32c3", build=build_of, backend="sim", app="unity_app:UnityApp")


@pytest.fixture
def impatient(monkeypatch):
    """Lets the wait for an answer end sooner."""
    dialogue = sys.modules["pytest_esp.operations.unity.dialogue"]
    monkeypatch.setattr(dialogue, "_ANSWER_TIME", 0.1)
    monkeypatch.setattr(dialogue, "_ECHO_TIME", 0.1)
    monkeypatch.setattr(dialogue, "_RESTART_TIME", 0.3)
