"""Backups and flash identification over a socket, compared with unmodified esptool on the same chip."""

import gzip
import json
import os
import re

import pytest


@pytest.fixture(params=["esp32", "esp8266"])
def chip(request):
    return request.param


@pytest.fixture
def port(serve, chip, tmp_path):
    """A simulated chip in a separate process, with the smallest flash, as esptool reads slowly."""
    served = serve("sim", chip, "--listen", "socket://127.0.0.1:0", "--flash-size", "256KB")
    return served.url("socket")


@pytest.fixture
def op(tool, chip, port, tmp_path, monkeypatch):
    """A function that runs an operation on that chip, as on any board with a port, and returns its JSON."""
    monkeypatch.setenv("PYTEST_ESP_LOCK_DIR", str(tmp_path / "locks"))
    rack = tmp_path / "boards.toml"
    rack.write_text(f'[boards.far]\nbackend = "serial"\nchip = "{chip}"\nport = "{port}"\n')
    return lambda name, *arguments: json.loads(tool("pytest-esp", "op", "--rack", rack, name, "--json", *arguments))


@pytest.fixture
def esptool(tool, port):
    return lambda *arguments: tool("esptool", "--port", port, *arguments)


@pytest.mark.parametrize("chip", ["esp32"], indirect=True)
def test_a_backup_is_what_esptool_reads(op, esptool, tmp_path):
    (tmp_path / "in.bin").write_bytes(os.urandom(5000))
    esptool("write-flash", "0x21000", tmp_path / "in.bin")
    esptool("read-flash", "0", "0x40000", tmp_path / "whole.bin")
    whole = (tmp_path / "whole.bin").read_bytes()
    saved = op("flash-backup", f"output_dir={tmp_path / 'saved'}")
    assert b"".join(gzip.decompress(file.read_bytes()) for file in sorted((tmp_path / "saved").glob("*.gz"))) == whole
    smart = op("flash-smart-backup", f"output_dir={tmp_path / 'smart'}")
    assert smart["sha256"] == saved["sha256"]
    assert smart["bytes_read"] < saved["bytes_read"] == len(whole)
    esptool("erase-flash")
    assert op("flash-restore", f"backup_dir={tmp_path / 'smart'}")["verified"]
    esptool("read-flash", "0x20000", "0x4000", tmp_path / "again.bin")
    assert (tmp_path / "again.bin").read_bytes() == whole[0x20000:0x24000]


def test_status_size_and_sfdp_are_what_esptool_says(op, esptool, chip):
    status = op("flash-status")
    said = esptool("flash-id")
    assert f"Manufacturer: {status['flash_id'] & 0xFF:02x}" in said
    voltage = re.search(r"Flash voltage set by (.+): (\S+)", said)
    assert (voltage is not None) == (chip == "esp32")
    if voltage:
        assert (status["voltage_source"], status["voltage"]) == voltage.groups()
    registers = sum(register << 8 * number for number, register in enumerate(status["registers"]))
    assert f"status: {registers:#06x}" in esptool("read-flash-status", "--bytes", "3")
    size = op("flash-size-detect")
    assert size["by_id"] == 256 << 10
    assert "Detected flash size: 256KB" in said
    sfdp = op("flash-sfdp-read")
    (table,) = sfdp["tables"]
    density = re.search(r"SFDP\[\d+..\d+\]: (.*)", esptool("read-flash-sfdp", str(table["address"] + 4), "4"))[1]
    bits = int.from_bytes(bytes(int(byte, 0) for byte in density.split()), "little") + 1
    assert bits == 8 * sfdp["size"] == 2 << 20
