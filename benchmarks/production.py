"""Fifty simulated boards programmed by one call, beside what the processor alone needs for it.

``.venv/bin/python benchmarks/production.py``. The ideal is all processor time of the call, its processes and their
start included, shared out to the machine's cores; other work on the machine counts against us. The call is made in a
process of its own, and its best round counts: everything else can only add to it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

FIRMWARE = Path(__file__).parents[1] / "tests" / "firmware" / "build" / "esp32c3"
GOAL = 1.3  # of the ideal


def main() -> None:
    """Measure, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--boards", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--firmware", type=Path, default=FIRMWARE, help="a build for the ESP32-C3")
    parser.add_argument("--once", metavar="PROCESSES", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.once is not None:
        print(json.dumps(program(options.boards, options.firmware, int(options.once) or None)))
        return
    cores = len(os.sched_getaffinity(0))
    load = [os.getloadavg()[0]]
    table = Table(title=f"{options.boards} boards programmed by one call", box=box.SIMPLE)
    table.add_column("what", overflow="fold")
    for heading in ("one process", "by default", "goal"):
        table.add_column(heading, justify="right")
    columns: list[dict[str, float]] = []
    for processes in (1, None):
        rounds = [in_a_process(options, processes) for _ in range(options.rounds)]
        columns.append(min(rounds, key=lambda found: found["seconds"]))
        load.append(os.getloadavg()[0])
    lines = {
        "from the call to its result": ("seconds", "{:.2f} s", ""),
        "processor time of all processes": ("cpu", "{:.2f} s", ""),
        f"ideal: that on {cores} cores": ("ideal", "{:.2f} s", ""),
        "of the ideal": ("ratio", "{:.2f}", f"at most {GOAL}"),
        "processes": ("processes", "{:.0f}", ""),
        "boards in a minute": ("rate", "{:.0f}", ""),
        "most memory: the call": ("memory", "{:.0f} MB", ""),
        "most memory: another process": ("memory_of_process", "{:.0f} MB", ""),
        "boards that passed": ("passed", "{:.0f}", str(options.boards)),
    }
    for what, (key, form, goal) in lines.items():
        cells = [form.format(value(found, key, cores)) for found in columns]
        table.add_row(what, *cells, goal)
    Console(width=max(120, Console().width)).print(table)
    size = sum(file.stat().st_size for file in options.firmware.rglob("*.bin"))
    print(
        f"firmware of {size / 1024:.0f} KB, each board with its own serial number and NVS values, read back, inspected"
    )
    print(
        f"{cores} cores, load {min(load):.1f} to {max(load):.1f}; Python {platform.python_version()}; "
        f"{platform.system()} {platform.machine()}"
    )
    print(f"command: {Path(sys.executable).name} {' '.join(sys.argv)}")


def value(found: dict[str, float], key: str, cores: int) -> float:
    """Return a figure of a round, or one that follows from others."""
    ideal = found["cpu"] / cores
    return {"ideal": ideal, "ratio": found["seconds"] / ideal, "rate": found["passed"] / found["seconds"] * 60}.get(
        key, found.get(key, 0.0)
    )


def in_a_process(options: argparse.Namespace, processes: int | None) -> dict[str, float]:
    """Return what one round has measured."""
    command = [sys.executable, __file__, "--once", str(processes or 0), "--boards", str(options.boards)]
    command += ["--firmware", str(options.firmware)]
    found = subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
    return json.loads(found.stdout)


def program(boards: int, firmware: Path, processes: int | None) -> dict[str, float]:
    """Program that many boards, and return seconds, processor seconds and memory (MB).

    None processes are as many as pay.
    """
    from pytest_esp.operations.production.batch import batch_program

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ |= {"PYTEST_ESP_STATE_DIR": str(folder / "state"), "PYTEST_ESP_LOCK_DIR": str(folder / "locks")}
        rack = folder / "boards.toml"
        rack.write_text(f'[boards.line]\nbackend = "sim"\nchip = "esp32c3"\nflash_size = "4MB"\ncount = {boards}\n')
        config = {
            "firmware": str(firmware),
            "serial_number": "SN{index:05d}",
            "nvs": {"app": {"host": "broker.example", "certificate": bytes(range(256)) * 8}},
            "boot": {"wait": 60, "expect": "Calling app_main"},
        }
        used, begun = cpu(), time.perf_counter()
        result = batch_program(["line-*"], config=config, output_dir=folder / "record", rack=rack, processes=processes)
        seconds, used = time.perf_counter() - begun, cpu() - used
    memory = [resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {
        "seconds": seconds,
        "cpu": used,
        "memory": memory[0],
        "memory_of_process": memory[1] if result.processes > 1 else 0.0,
        "passed": result.passed,
        "processes": result.processes,
    }


def cpu() -> float:
    """Return the processor time of this process and its children that have ended, in seconds."""
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


if __name__ == "__main__":
    main()
