"""QEMU boards for the tests of boards."""

import pytest

from pytest_esp.boards.registry import make_board
from pytest_esp.link.link import Link
from pytest_esp.operations.esp import Esp
from pytest_esp.rack.config import load_rack


@pytest.fixture
def qemu_esp(need_qemu, tmp_path, monkeypatch):
    """Make a QEMU machine: a function from chip and further keys of boards.toml to the operations on it."""
    monkeypatch.setenv("PYTEST_ESP_STATE_DIR", str(tmp_path / "state"))
    links = []

    def make(chip, **keys):
        need_qemu(chip)
        lines = "".join(f"{key} = {value!r}\n" for key, value in {"flash_size": "2MB", **keys}.items())
        path = tmp_path / f"boards-{len(links)}.toml"
        path.write_text(f'[boards.machine-{len(links)}]\nbackend = "qemu"\nchip = "{chip}"\n{lines}')
        rack = load_rack(path)
        (spec,) = rack.boards.values()
        links.append(Link(make_board(spec, rack)))
        return Esp(links[-1])

    yield make
    for link in links:
        link.close()
