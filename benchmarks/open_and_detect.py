"""From a closed port to a known chip: this project's link beside esptool, on the same simulated chip, in one run.

``.venv/bin/python benchmarks/open_and_detect.py``. Medians of wall time. esptool is given the same work as the command
that suites usually start, and in-process on the same ports. On a pty both begin with the default reset.
"""

from __future__ import annotations

import contextlib
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from esptool import cmds
from rich.console import Console
from rich.table import Table

from pytest_esp.boards.registry import make_board
from pytest_esp.link.link import Link
from pytest_esp.operations.esp import Esp
from pytest_esp.rack.config import load_rack
from pytest_esp.rack.requirement import Requirement
from pytest_esp.sim.chip import SimChip
from pytest_esp.wire.endpoints import serve
from pytest_esp.wire.port import VirtualPort

CHIP = "esp32c3"
DATA = os.urandom(256 * 1024)


def median_ms(work: Callable[[], object], repeats: int) -> float:
    """Return the median time of *work* in milliseconds, after one run that is not counted."""
    work()
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        work()
        times.append((time.perf_counter() - begun) * 1000)
    return statistics.median(times)


def stock_identify(port: object, mode: str = "no-reset") -> cmds.ESPLoader:
    """Identify with stock esptool, as its command does, and return the stub."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        esp = cmds.detect_chip(port, connect_mode=mode)
        esp.get_chip_description(), esp.read_mac(), esp.get_crystal_freq()
        esp = cmds.run_stub(esp)
        cmds.attach_flash(esp)
        esp.flash_id()
    return esp


def main() -> None:
    """Measure, and print one table."""
    table = Table(title=f"simulated {CHIP}, median wall time")
    for heading in ("what", "pytest-esp", "esptool in-process", "esptool command"):
        table.add_column(heading, justify="left" if heading == "what" else "right")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PYTEST_ESP_STATE_DIR"] = os.environ["PYTEST_ESP_LOCK_DIR"] = folder
        measure(table, folder)
    Console(width=110).print(table)


def measure(table: Table, folder: str) -> None:
    """Fill the table."""
    rack_file = Path(folder) / "boards.toml"
    chip = SimChip(CHIP)
    chip.reset(bootloader=True)
    endpoint = serve(chip.wire, "pty:")
    port = endpoint.url.removeprefix("pty:")
    rack_file.write_text(
        f'[boards.sim]\nbackend="sim"\nchip="{CHIP}"\nflash_size="4MB"\n'
        f'[boards.pty]\nbackend="serial"\nchip="{CHIP}"\nport="{port}"\nbaud=115200\n'
    )
    rack = load_rack(rack_file)

    def lease() -> None:
        rack.lease(Requirement(boards=("sim",)), purpose="benchmark")[0].release()

    def ours(name: str) -> Callable[[], None]:
        def identify() -> None:
            with Link(make_board(rack.board(name), rack)) as link:
                Esp(link).chip.identify()

        return identify

    def stock_in_process() -> None:
        chip.reset(bootloader=True)
        virtual = VirtualPort(chip.wire, "sim:stock")
        virtual.open()
        stock_identify(virtual)
        virtual.close()

    def stock_on_pty() -> None:
        esp = stock_identify(port, "default-reset")
        esp._port.close()

    def stock_command() -> None:
        subprocess.run(
            [Path(sys.executable).with_name("esptool"), "--port", port, "flash-id"], capture_output=True, check=True
        )

    table.add_row("lease and release a board", f"{median_ms(lease, 200):.2f} ms", "-", "-")
    table.add_row(
        "open and identify, in-process",
        f"{median_ms(ours('sim'), 30):.1f} ms",
        f"{median_ms(stock_in_process, 10):.1f} ms",
        "-",
    )
    table.add_row(
        "open and identify, pty",
        f"{median_ms(ours('pty'), 10):.1f} ms",
        f"{median_ms(stock_on_pty, 10):.1f} ms",
        f"{median_ms(stock_command, 5):.0f} ms",
    )
    transfers(table, rack, chip)
    endpoint.close()
    chip.close()


def transfers(table: Table, rack: object, chip: SimChip) -> None:
    """Measure what a warm link moves."""
    link = Link(make_board(rack.board("sim"), rack))  # type: ignore[attr-defined]
    esp = Esp(link)
    warm = median_ms(esp.flash.info, 100)
    write = median_ms(lambda: esp.flash.write([(0x10000, DATA)], skip_unchanged=False), 5)
    skip = median_ms(lambda: esp.flash.write([(0x10000, DATA)]), 20)
    read = median_ms(lambda: esp.flash.read(0x10000, len(DATA)), 5)
    link.close()
    chip.reset(bootloader=True)
    virtual = VirtualPort(chip.wire, "sim:stock")
    virtual.open()
    stock = stock_identify(virtual)
    with contextlib.redirect_stdout(io.StringIO()):
        stock_write = median_ms(lambda: cmds.write_flash(stock, [(0x10000, DATA)]), 3)
        stock_read = median_ms(lambda: stock.read_flash(0x10000, len(DATA)), 3)
        stock_warm = median_ms(lambda: stock.flash_id(cache=False), 20)
    virtual.close()
    table.add_row("flash id, warm", f"{warm:.2f} ms", f"{stock_warm:.2f} ms", "-")
    table.add_row("write 256 KB and verify", f"{write:.1f} ms", f"{stock_write:.1f} ms", "-")
    table.add_row("write 256 KB that are there", f"{skip:.2f} ms", "-", "-")
    table.add_row("read 256 KB", f"{read:.1f} ms", f"{stock_read:.1f} ms", "-")


if __name__ == "__main__":
    main()
