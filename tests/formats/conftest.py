"""Boards that the files of these tests are flashed to."""

import pytest
from esptool.targets import CHIP_LIST

from pytest_esp import load_rack


@pytest.fixture
def esp_of(tmp_path, monkeypatch, make_esp):
    """A function that returns the operations on a simulated chip with 4 MB of flash."""
    monkeypatch.setenv("PYTEST_ESP_STATE_DIR", str(tmp_path / "state"))
    path = tmp_path / "boards.toml"
    path.write_text("".join(f'[boards.{chip}]\nbackend="sim"\nchip="{chip}"\nflash_size="4MB"\n' for chip in CHIP_LIST))
    rack = load_rack(path)
    return lambda chip: make_esp(rack, chip)
