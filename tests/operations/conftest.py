"""Boards for the tests of operations."""

import pytest
from esptool.targets import CHIP_LIST

from pytest_esp.boards.registry import make_board
from pytest_esp.link.link import Link
from pytest_esp.operations.esp import Esp
from pytest_esp.rack.config import load_rack


@pytest.fixture
def rack(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTEST_ESP_STATE_DIR", str(tmp_path / "state"))
    path = tmp_path / "boards.toml"
    path.write_text(
        "".join(f'[boards.{chip}]\nbackend="sim"\nchip="{chip}"\nflash_size="4MB"\n' for chip in CHIP_LIST)
        + '[boards.careful]\nbackend="sim"\nchip="esp32c3"\nallow=["read"]\n'
        + '[boards.small]\nbackend="sim"\nchip="esp32c3"\nflash_size="512KB"\n'
        + '[boards.large]\nbackend="sim"\nchip="esp32s3"\nflash_size="16MB"\n'
        + '[boards.twin]\nbackend="sim"\nchip="esp32c3"\nflash_size="512KB"\n'
        + '[boards.old]\nbackend="sim"\nchip="esp32"\nflash_size="4MB"\nrevision=100\n'
        + '[boards.locked]\nbackend="sim"\nchip="esp32c3"\nflash_size="4MB"\nsecure_download=true\n'
    )
    return load_rack(path)


@pytest.fixture
def esp_of(rack):
    """Return the operations on a board of the rack, by its name."""
    links = []

    def make(name):
        links.append(Link(make_board(rack.board(name), rack)))
        return Esp(links[-1])

    yield make
    for link in links:
        link.close()


@pytest.fixture(params=["esp32", "esp32s3", "esp32c3", "esp32c6"])
def esp(request, esp_of):
    return esp_of(request.param)
