"""Firmware on QEMU beside pytest-embedded's and beside the bare emulator, in one run.

``.venv/bin/python benchmarks/qemu.py``. ESP-IDF's hello_world, each test on a machine started for it, flash written
before, which the fixture `firmware` makes sure of; the peer is told not to make its image anew. The builds are looked
for in ``PYTEST_ESP_FIRMWARE`` or in ``shared/firmware`` beside the checkout.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from pathlib import Path

from side_by_side.cpu import cpu_seconds
from side_by_side.peer import FOLDER, peer_python
from side_by_side.run import Report, Run, Side, both, p50, run

from pytest_esp.boards.qemu import QemuBoard
from pytest_esp.boards.registry import make_board
from pytest_esp.qemu.find import find, why_missing
from pytest_esp.qemu.machines import machine_for
from pytest_esp.qemu.process import command_line
from pytest_esp.rack.config import load_rack

CHIPS = ("esp32", "esp32c3")
ROUNDS, TESTS = 2, 4
PARALLEL_TESTS = 8
IDLE_SECONDS = 5
FIRMWARE = Path(os.environ.get("PYTEST_ESP_FIRMWARE") or Path(__file__).parents[2] / "shared" / "firmware")
HELLO = b"Hello world!"

OURS = """
def test_hello_{number}(firmware, console, record):
    console.expect("Hello world!", timeout=60)
    record(matched=time.perf_counter())
"""
PEER = """
def test_hello_{number}(dut, record):
    dut.expect_exact("Hello world!", timeout=60)
    record(matched=time.perf_counter())
"""
IDLE = f"""
import time

import pytest
from cpu import cpu_seconds


def test_idle(FIXTURE, record):
    FIXTURE.expect("Hello world!", timeout=60)
    time.sleep(0.5)
    before = cpu_seconds()
    with pytest.raises(Exception):
        FIXTURE.expect("what never comes", timeout={IDLE_SECONDS})
    record(idle=(cpu_seconds() - before) / {IDLE_SECONDS} * 100)
"""


def main() -> None:
    """Measure, and print one table."""
    reasons = {chip: missing(chip) for chip in CHIPS}
    for chip, reason in reasons.items():
        if reason:
            print(f"{chip}: skipped: {reason}")
    if all(reasons.values()):
        return
    report = Report("hello_world on QEMU", "bare emulator")
    for chip in CHIPS:
        if not reasons[chip]:
            with tempfile.TemporaryDirectory() as name:
                measure(report, chip, Path(name))
    report.print()


def missing(chip: str) -> str | None:
    """Return why *chip* cannot be measured here."""
    if not (build(chip) / "flasher_args.json").is_file():
        return f"no build in {build(chip)}: set PYTEST_ESP_FIRMWARE"
    return why_missing(chip)


def build(chip: str) -> Path:
    """Return the build folder of hello_world for *chip*."""
    return FIRMWARE / f"hello_world_{chip}"


def measure(report: Report, chip: str, folder: Path) -> None:
    """Add the lines of one chip."""
    os.environ["PYTEST_ESP_STATE_DIR"] = os.environ["PYTEST_ESP_LOCK_DIR"] = str(folder)
    mine, theirs = ours(chip, folder), peer(chip, folder)
    board = prepare(folder)
    bare: list[float] = []
    first: dict[str, list[float]] = {mine.name: [], theirs.name: []}
    later: dict[str, list[float]] = {mine.name: [], theirs.name: []}
    for _ in range(ROUNDS):
        for side, test in ((mine, OURS), (theirs, PEER)):
            bare += [start_bare(board) for _ in range(TESTS // 2)]
            times = till_match(run(side, folder, module(test, TESTS)))
            first[side.name].append(times[0])
            later[side.name] += times[1:]
    fast, slow = later[mine.name], later[theirs.name]
    report.add(f"{chip}: from fixture to match, p50 / p90", both(fast, "s"), both(slow, "s"), both(bare, "s"), "", "")
    report.add(
        "  above the bare emulator, p50 (best)",
        f"{p50(fast) - p50(bare):.2f} ({min(fast) - min(bare):.2f}) s",
        f"{p50(slow) - p50(bare):.2f} ({min(slow) - min(bare):.2f}) s",
        "",
        "",
        "at most 0.15 s",
    )
    report.add(
        "  the first test of a run, which imports",
        f"{p50(first[mine.name]):.2f} s",
        f"{p50(first[theirs.name]):.2f} s",
        "",
        "",
        "",
    )
    parallel(report, folder, (mine, theirs))
    idle(report, folder, (mine, theirs), board)


def ours(chip: str, folder: Path) -> Side:
    """Return this project's side; its rack has two boards."""
    size = json.loads((build(chip) / "flasher_args.json").read_text())["flash_settings"]["flash_size"]
    rack = folder / "boards.toml"
    rack.write_text(f'[boards.qemu]\nbackend = "qemu"\nchip = "{chip}"\nflash_size = "{size}"\ncount = 2\n')
    options = ("--esp-rack", str(rack), "--esp-firmware", str(build(chip)))
    return Side("pytest-esp", Path(sys.executable), "pytest_esp.plugin", "console", options)


def prepare(folder: Path) -> QemuBoard:
    """Write the firmware to the flash of both boards, and return the first one."""
    rack = load_rack(folder / "boards.toml")
    boards = [make_board(spec, rack) for spec in rack.boards.values()]
    for board in boards:
        assert isinstance(board, QemuBoard)
        files = json.loads((build(board.chip) / "flasher_args.json").read_text())["flash_files"]
        with board.direct_flash() as flash:
            for offset, name in files.items():
                flash.program(int(offset, 0), (build(board.chip) / name).read_bytes())
    assert isinstance(boards[0], QemuBoard)
    return boards[0]


def peer(chip: str, folder: Path) -> Side:
    """Return the peer's side: its flash image is made once, in a copy of the build."""
    machine = machine_for(chip)
    app = folder / "app"
    shutil.copytree(build(chip), app)
    options = [
        *(
            "--embedded-services",
            "idf,qemu",
            "--app-path",
            str(app),
            "--build-dir",
            ".",
            "--skip-regenerate-image",
            "y",
        ),
        *("--qemu-prog-path", str(find(machine.architecture, machine.name).path)),
        *("--qemu-extra-args", f"-global driver={machine.watchdog_driver},property=wdt_disable,value=true"),
    ]
    python = peer_python()
    search = {"PATH": f"{FOLDER / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    side = Side("pytest-embedded", python, "pytest_embedded.plugin", "dut", options, environment=search)
    run(side, folder, "def test_image(dut):\n    pass\n")
    return side


def module(test: str, count: int) -> str:
    """Return a test module of *count* times *test*."""
    return "import time\n" + "\n".join(test.replace("{number}", str(number)) for number in range(count))


def till_match(done: Run) -> list[float]:
    """Return the seconds from the begin of each test to its match."""
    return [matched - begun for begun, matched in zip(done.values("begins")[0], done.values("matched"), strict=True)]


@contextlib.contextmanager
def bare_emulator(board: QemuBoard) -> Generator[subprocess.Popen[bytes]]:
    """Run QEMU as a board does, but with its UART on standard output, until that says hello."""
    machine = machine_for(board.chip)
    program = find(machine.architecture, machine.name)
    board.open_stopped()  # makes its eFuses
    board.close()
    efuse = board.flash_file.parent / "efuse.bin"
    command = command_line(program, machine, board.flash_file, efuse, strap=machine.strap_flash, psram=False)
    command += ["-serial", "stdio", "-monitor", "none"]
    # Its standard input is a pipe: with one at its end, the esp32 machine never starts.
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        said = b""
        while HELLO not in said:
            said += os.read(process.stdout.fileno(), 4096)
        yield process
        process.terminate()


def start_bare(board: QemuBoard) -> float:
    """Return the seconds from the start of the bare emulator to its hello."""
    begun = time.perf_counter()
    with bare_emulator(board):
        return time.perf_counter() - begun


def parallel(report: Report, folder: Path, sides: tuple[Side, Side]) -> None:
    """Tests on two machines at a time."""
    times: list[str] = []
    for side, test in zip(sides, (OURS, PEER), strict=True):
        try:
            done = run(side, folder, module(test, PARALLEL_TESTS), "-p", "xdist.plugin", "-n", "2")
        except RuntimeError as error:
            times.append("failed: " + str(error).strip().splitlines()[-1])
        else:
            times.append(f"{done.wall:.1f} s")
    report.add(f"  {PARALLEL_TESTS} tests with -n 2, whole run", *times, "", "", "")


def idle(report: Report, folder: Path, sides: tuple[Side, Side], board: QemuBoard) -> None:
    """Processor time while the app sleeps."""
    if not Path("/proc/self/stat").exists():
        return
    mine, theirs = (run(side, folder, IDLE.replace("FIXTURE", side.fixture)).values("idle")[0] for side in sides)
    with bare_emulator(board) as process:
        time.sleep(0.5)
        before = cpu_seconds(process.pid)
        time.sleep(IDLE_SECONDS)
        alone = (cpu_seconds(process.pid) - before) / IDLE_SECONDS * 100
    report.add(
        f"  processor while the app sleeps {IDLE_SECONDS} s, of a core",
        f"{mine:.0f} %",
        f"{theirs:.0f} %",
        f"{alone:.0f} %",
        "",
        "the emulator's",
    )


if __name__ == "__main__":
    main()
