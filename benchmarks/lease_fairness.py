"""How long takers of one, two and three of three boards wait beside each other, in processes of their own.

Five processes take one board at a time, one takes two and one takes three, each as soon as it has released the last.
A waiter needs at most one turn of each process before it.

    python benchmarks/lease_fairness.py [--seconds 60] [--hold 0.05] [--singles 5]
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

from pytest_esp.rack.config import load_rack
from pytest_esp.rack.requirement import Requirement

BOARDS = 3


def take(path: Path, count: int, hold: float, end: float, waits: Any) -> None:
    """Take *count* boards again and again until *end*, and put (count, waits in seconds) into *waits*."""
    rack = load_rack(path)
    found: list[float] = []
    while time.monotonic() < end:
        leases = rack.lease(Requirement(count=count), purpose=f"{count} boards", timeout=600)
        found.append(leases[0].waited)
        time.sleep(hold)
        for lease in leases:
            lease.release()
    waits.put((count, found))


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to take boards")
    parser.add_argument("--hold", type=float, default=0.05, help="how long a taker holds its boards, in seconds")
    parser.add_argument("--singles", type=int, default=5, help="processes that take one board at a time")
    options = parser.parse_args()
    counts = [*[1] * options.singles, 2, 3]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "boards.toml"
        boards = "".join(f'[boards.b{number}]\nbackend = "sim"\nchip = "esp32"\n' for number in range(BOARDS))
        path.write_text(f'[rack]\nlock_dir = "locks"\n{boards}')
        context = multiprocessing.get_context("spawn")
        waits: Any = context.Queue()
        end = time.monotonic() + options.seconds
        takers = [context.Process(target=take, args=(path, count, options.hold, end, waits)) for count in counts]
        for taker in takers:
            taker.start()
        results = [waits.get(timeout=options.seconds + 600) for _ in takers]
        for taker in takers:
            taker.join()
    print(f"{options.singles} takers of 1 board, one of 2 and one of 3, of {BOARDS} boards, {options.hold} s each")
    print("boards   leases   median wait   99th percentile   longest (s, and in turns of the hold time)")
    for count in sorted(set(counts)):
        found = sorted(wait for number, waited in results if number == count for wait in waited)
        median, late, longest = found[len(found) // 2], found[len(found) * 99 // 100], found[-1]
        print(
            f"{count:6}   {len(found):6}   {median:11.3f}   {late:15.3f}   {longest:.3f} ({longest / options.hold:.1f})"
        )


if __name__ == "__main__":
    main()
