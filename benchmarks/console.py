"""The console beside pytest-embedded's, on one device behind a pty (and one behind a socket), in one run.

``.venv/bin/python benchmarks/console.py``. Both sides run the same tests against the same process, each in its own
environment (`side_by_side.peer`) and with no plugin but its own. "p50 / p90" are of single tests or round trips.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

import serial
from side_by_side.device import BOOT_END, FLOOD_END, device
from side_by_side.peer import peer_python
from side_by_side.run import Report, Side, Slope, both, measure_in_turn, p50, run

ROUNDS = {"pytest-esp": 5, "pytest-embedded": 2, "pytest": 3}
MANY = {"pytest-esp": 250, "pytest-embedded": 50, "pytest": 250}  # where one more test costs little, 40 more are noise
ECHOES = {"pytest-esp": 500, "pytest-embedded": 40}
FLOOD_BYTES = {"pytest-esp": 64 << 20, "pytest-embedded": 192 << 10}
SOCKET_FLOOD_BYTES = FLOOD_BYTES | {"pytest-embedded": 128}  # it takes one byte at a time from a socket
IDLE_SECONDS = 5

BOOT = f"""
def test_boot_{{number}}(FIXTURE):
    FIXTURE.write(b"boot\\n")
    FIXTURE.expect({BOOT_END!r}, timeout=10)
"""
BOOT_OPENED_ANEW = (
    BOOT.replace("(FIXTURE)", "(FIXTURE, esp)")
    + """
    esp.link.close()
"""
)
NOTHING = """
def test_nothing_{number}():
    pass
"""
NOTHING_WITH_FIXTURE = NOTHING.replace("()", "(FIXTURE)")
ECHO = """
import time


def test_echo(FIXTURE, record):
    for number in range(COUNT):
        begun = time.perf_counter()
        FIXTURE.write(b"echo %d\\n" % number)
        FIXTURE.expect("echo %d\\r\\n" % number, timeout=10)
        record(echo=time.perf_counter() - begun)
"""
FLOOD = """
import re, time

import pytest


@pytest.mark.parametrize("number", range(5))
def test_flood(FIXTURE, record, number):
    used, begun = time.process_time(), time.perf_counter()
    FIXTURE.write(b"flood BYTES\\n")
    FIXTURE.expect(re.compile(rb"finished with code (\\d+)"), timeout=60)
    record(flood=BYTES / 1e6 / (time.perf_counter() - begun), work=BYTES / 1e6 / (time.process_time() - used))
"""
IDLE = f"""
import time

import pytest
from cpu import cpu_seconds


def test_idle(FIXTURE, record):
    time.sleep(0.5)
    before = cpu_seconds()
    with pytest.raises(Exception):
        FIXTURE.expect("what never comes", timeout={IDLE_SECONDS})
    record(idle=(cpu_seconds() - before) / {IDLE_SECONDS} * 100)
"""


def main() -> None:
    """Measure, and print one table."""
    report = Report("console of a device on a pty")
    with tempfile.TemporaryDirectory() as name, device() as port:
        folder = Path(name)
        sides = (ours(folder, port), peer(port))
        boot(report, sides, folder)
        echo(report, sides, folder)
        flood(report, sides, folder, port)
        with device("--socket") as url:
            flood(report, (ours(folder, url), peer(url)), folder, url)
        idle(report, sides, folder)
        nothing(report, sides, folder)
    report.print()


def ours(folder: Path, port: str) -> Side:
    """Return this project's side; its rack has one board."""
    rack = folder / ("socket.toml" if "://" in port else "pty.toml")
    rack.write_text(f'[boards.pty]\nbackend = "serial"\nchip = "esp32c3"\nport = "{port}"\n')
    places = {"PYTEST_ESP_STATE_DIR": str(folder / "state"), "PYTEST_ESP_LOCK_DIR": str(folder / "locks")}
    return Side(
        "pytest-esp",
        Path(sys.executable),
        "pytest_esp.plugin",
        "console",
        ("--esp-rack", str(rack)),
        environment=places,
    )


def peer(port: str) -> Side:
    """Return the peer's side."""
    options = ("--embedded-services", "serial", "--port", port)
    return Side("pytest-embedded", peer_python(), "pytest_embedded.plugin", "dut", options)


def slope(side: Side, test: str) -> Slope:
    """Return what will measure one more *test*."""
    return Slope(side, test, ROUNDS[side.name], many=MANY[side.name])


def boot(report: Report, sides: tuple[Side, Side], folder: Path) -> None:
    """A test that opens the console, lets the device boot and matches the end of its boot log."""
    mine, theirs = (slope(side, BOOT) for side in sides)
    anew = slope(sides[0], BOOT_OPENED_ANEW)
    measure_in_turn((mine, theirs, anew), folder)
    report.add(
        "boot log matched: one more test (slope from 10 tests)",
        f"{mine.wall:.2f} ms",
        f"{theirs.wall:.0f} ms",
        f"{theirs.wall / mine.wall:.0f}x",
        "50x, 5 ms",
    )
    report.add(
        "  the same in processor time",
        f"{mine.cpu:.2f} ms",
        f"{theirs.cpu:.0f} ms",
        f"{theirs.cpu / mine.cpu:.0f}x",
        "",
    )
    report.add("  from test to test, p50 / p90", both(mine.gaps(), "ms"), both(theirs.gaps(), "ms", 0), "", "")
    report.add("  the port closed after every test: slope", f"{anew.wall:.2f} ms", "(always)", "", "")
    report.add("  from test to test, p50 / p90", both(anew.gaps(), "ms"), "", "", "")


def echo(report: Report, sides: tuple[Side, Side], folder: Path) -> None:
    """A line sent, and its echo matched."""
    mine, theirs = (
        [
            seconds * 1000
            for seconds in run(
                side, folder, ECHO.replace("FIXTURE", side.fixture).replace("COUNT", str(ECHOES[side.name]))
            ).values("echo")
        ]
        for side in sides
    )
    report.add(
        "echo round trip, p50 / p90",
        both(mine, "ms"),
        both(theirs, "ms", 1),
        f"{p50(theirs) / p50(mine):.0f}x",
        "100x, 0.5 ms",
    )


def flood(report: Report, sides: tuple[Side, Side], folder: Path, port: str) -> None:
    """Log lines as fast as they come, matched by an expression at their end."""
    sizes = SOCKET_FLOOD_BYTES if "://" in port else FLOOD_BYTES
    mine, theirs = (
        run(side, folder, FLOOD.replace("FIXTURE", side.fixture).replace("BYTES", str(sizes[side.name])))
        for side in sides
    )
    plain = [read_plainly(port) for _ in range(5)]
    fast, slow, most = mine.values("flood"), theirs.values("flood"), [rate for rate, _ in plain]
    report.add(
        f"flood through expect, over a {'socket' if '://' in port else 'pty'}, median of 5 (best)",
        f"{p50(fast):.0f} ({max(fast):.0f}) MB/s",
        f"{p50(slow):.2g} ({max(slow):.2g}) MB/s",
        f"{p50(fast) / p50(slow):.0f}x",
        "1000x, 80 MB/s",
    )
    report.add("  a loop of reads that looks at nothing", f"{p50(most):.0f} ({max(most):.0f}) MB/s", "", "", "")
    report.add(
        "  in a second of processor time (that loop)",
        f"{p50(mine.values('work')):.0f} ({p50([work for _, work in plain]):.0f}) MB",
        f"{p50(theirs.values('work')):.1g} MB",
        "",
        "",
    )


def read_plainly(port: str) -> tuple[float, float]:
    """Return what a loop that only reads gets from this port: MB/s, and MB in a second of its processor time."""
    size = FLOOD_BYTES["pytest-esp"]
    with serial.serial_for_url(port) as device_port:
        os.set_blocking(device_port.fileno(), True)
        used, begun = time.process_time(), time.perf_counter()
        device_port.write(b"flood %d\n" % size)
        last = b""
        while not last.endswith(FLOOD_END):
            last = last[-len(FLOOD_END) :] + os.read(device_port.fileno(), 1 << 16)
        return size / 1e6 / (time.perf_counter() - begun), size / 1e6 / (time.process_time() - used)


def idle(report: Report, sides: tuple[Side, Side], folder: Path) -> None:
    """Processor time while nothing comes."""
    if not Path("/proc/self/stat").exists():
        return
    mine, theirs = (run(side, folder, IDLE.replace("FIXTURE", side.fixture)).values("idle")[0] for side in sides)
    report.add(
        f"processor while waiting {IDLE_SECONDS} s, of a core", f"{mine:.1f} %", f"{theirs:.1f} %", "", "below 1 %"
    )


def nothing(report: Report, sides: tuple[Side, Side], folder: Path) -> None:
    """A test that does nothing: what the plugin costs everybody, and what its fixture costs."""
    bare = Side("pytest", sides[0].python, None, "")
    for what, test in (("plugin installed", NOTHING), ("with the fixture", NOTHING_WITH_FIXTURE)):
        mine, theirs, alone = slope(sides[0], test), slope(sides[1], test), slope(bare, NOTHING)
        measure_in_turn((mine, theirs, alone), folder)
        report.add(
            f"empty test, {what}: slope",
            f"{mine.wall:.2f} ms",
            f"{theirs.wall:.2f} ms",
            f"{theirs.wall / mine.wall:.1f}x",
            f"(pytest alone {alone.wall:.2f} ms)",
        )
        report.add("  in processor time", f"{mine.cpu:.2f} ms", f"{theirs.cpu:.2f} ms", "", f"({alone.cpu:.2f} ms)")
        report.add(
            "  from test to test, p50 / p90",
            both(mine.gaps(), "ms"),
            both(theirs.gaps(), "ms"),
            "",
            f"({both(alone.gaps(), 'ms')})",
        )


if __name__ == "__main__":
    main()
