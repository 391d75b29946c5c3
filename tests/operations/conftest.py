"""Boards for the tests of operations."""

import hashlib
import json
import subprocess
import sys

import pytest
from esptool.targets import CHIP_DEFS, CHIP_LIST

from pytest_esp.boards.registry import make_board
from pytest_esp.link.link import Link
from pytest_esp.rack.config import load_rack
from pytest_esp.sim.chip import SimChip
from pytest_esp.wire.endpoints import serve
from pytest_esp.wire.reset import SLOW_HOST_RISE_TIME


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
def esp_of(rack, make_esp):
    """Return the operations on a board of the rack, by its name."""
    return lambda name: make_esp(rack, name)


@pytest.fixture(params=["esp32", "esp32s3", "esp32c3", "esp32c6"])
def esp(request, esp_of):
    return esp_of(request.param)


@pytest.fixture
def real(tmp_path, monkeypatch):
    """A function that returns a link to a board that counts as real, and the simulated chip at its RFC 2217 port."""
    monkeypatch.setenv("PYTEST_ESP_STATE_DIR", str(tmp_path / "state"))
    opened = []

    def make(chip, allow="read,write,erase,burn", allow_burn=(), **consent):
        simulated = SimChip(chip, rise_time=SLOW_HOST_RISE_TIME)
        simulated.reset(bootloader=False)
        endpoint = serve(simulated.wire, "rfc2217://127.0.0.1:0")
        path = tmp_path / "real.toml"
        path.write_text(
            f'[boards.real]\nbackend="serial"\nchip="{chip}"\nport="{endpoint.url}"\nflash_size="4MB"\n'
            f"allow={json.dumps(allow.split(','))}\nallow_burn={json.dumps(list(allow_burn))}\n"
        )
        rack = load_rack(path)
        link = Link(make_board(rack.board("real"), rack), **consent)
        opened.append((link, endpoint, simulated))
        return link, simulated

    yield make
    for link, endpoint, simulated in opened:
        link.close()
        endpoint.close()
        simulated.close()


@pytest.fixture
def build_for(firmware_folder):
    """A function that returns the ESP32-C3's hello_world as if it were built for *chip*: pairs of address and bytes."""

    def build(chip):
        folder = firmware_folder / "hello_world_esp32c3"
        pairs = [(0x8000, (folder / "partition_table" / "partition-table.bin").read_bytes())]
        files = {CHIP_DEFS[chip].BOOTLOADER_FLASH_OFFSET: "bootloader/bootloader.bin", 0x10000: "hello_world.bin"}
        for address, name in files.items():
            image = bytearray((folder / name).read_bytes())
            image[12:14] = CHIP_DEFS[chip].IMAGE_CHIP_ID.to_bytes(2, "little")
            image[14:19] = b"\0\0\0\xff\xff"  # of any revision
            image[-32:] = hashlib.sha256(image[:-32]).digest()
            pairs.append((address, bytes(image)))
        return pairs

    return build


@pytest.fixture
def sign(tmp_path):
    """A function that signs a build's images for secure boot v2 with a new key; it returns them, and the key's file."""

    def run(*arguments):
        command = [sys.executable, "-m", "espsecure", *map(str, arguments)]
        subprocess.run(command, check=True, capture_output=True, timeout=100)

    def sign_all(pairs, scheme):
        key, image, out = tmp_path / f"{scheme}.pem", tmp_path / "image", tmp_path / "signed"
        run("generate-signing-key", "--version", 2, "--scheme", scheme, key)
        signed = []
        for address, data in pairs:
            if data[0] != 0xE9:
                signed.append((address, data))
                continue
            image.write_bytes(data)
            run("sign-data", "--version", 2, "--keyfile", key, "--output", out, image)
            signed.append((address, out.read_bytes()))
        return signed, key

    return sign_all
