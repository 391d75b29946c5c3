"""Two MCP clients and pytest runs on one rack under load: who drives what, what is lost, and what leaks.

``.venv/bin/python benchmarks/soak.py --minutes 5``. Each client has a bridge of its own, over standard input and
output; pytest runs with two workers, again and again. The rack has two simulated chips that move from holder to
holder, one in a process of its own behind a pty, and a QEMU machine if there is one. Everybody who has a board signs a
page of its flash (`side_by_side.ledger`): the proof of turns lies on the board, not in the locks. The exit code is 1
if anything was found; ``--json`` prints the findings for a program.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncGenerator, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastmcp import Client
from fastmcp.client.transports import StdioTransport
from rich import box
from rich.console import Console
from rich.table import Table
from side_by_side import ledger
from side_by_side.ledger import Page, TrespassError
from side_by_side.processes import children, descriptors, resident, threads, tree

from pytest_esp.boards.registry import make_board
from pytest_esp.errors import EspError
from pytest_esp.link.link import Link
from pytest_esp.operations.esp import Esp
from pytest_esp.qemu.find import why_missing
from pytest_esp.rack.config import load_rack
from pytest_esp.rack.lease import holder_of

CLIENTS = ("anna", "bert")
TASKS = 2  # that take boards, of each client
WAIT = 120.0  # seconds for a board; longer than pytest keeps one while others wait
LONGEST_CALL = 300.0  # seconds; a call that takes longer is lost
AT_ONCE = 12  # calls, more than all tasks of a client make
SAMPLE = 1.0  # seconds
MOST_GROWTH = 6e6  # bytes of a bridge, from a third of the time to its end
CHIPS = {"alpha": "esp32", "beta": "esp32c6", "wired": "esp32s3", "emulated": "esp32c3"}

TESTS = """
import json
import os
from pathlib import Path

import pytest
from side_by_side import ledger
from side_by_side.ledger import Page


@pytest.mark.parametrize("number", range(4))
@pytest.mark.esp(each="chip")
def test_board(esp, number):
    def read():
        return esp.flash.read(ledger.ADDRESS, ledger.SIZE).data

    owner = f"pytest {os.getpid()} {number}"
    page = Page.unpack(read()).sign(owner)
    esp.flash.write([(ledger.ADDRESS, page.pack())])
    page.check(read())
    esp.chip.identify()
    esp.security.posture()
    page.check(read())
    esp.flash.write([(ledger.ADDRESS, page.close().pack())])
    with Path(f"signed-pytest-{os.getpid()}.jsonl").open("a") as file:
        file.write(json.dumps([esp.link.board.name, page.count]) + "\\n")
"""


@dataclass
class Bridge:
    """What is known of one bridge process; each sample is (seconds, descriptors, threads, resident bytes)."""

    pid: int
    samples: list[tuple[float, int, int, int]] = field(default_factory=list)
    quiet: list[tuple[int, int, int]] = field(default_factory=list)

    def sample(self, begun: float) -> None:
        """Add a sample."""
        self.samples.append((time.monotonic() - begun, *self.look()))

    def look(self) -> tuple[int, int, int]:
        """Return descriptors, threads and resident bytes."""
        return descriptors(self.pid), threads(self.pid), resident(self.pid)

    def growth(self) -> float:
        """Return by how many bytes its memory has grown from a third of the time to the end, by medians."""
        sizes = [sample[3] for sample in self.samples]
        part = max(len(sizes) // 10, 1)
        early = sizes[len(sizes) // 3 :][:part]
        return statistics.median(sizes[-part:]) - statistics.median(early)


class Soak:
    """One soak: its folder, its boards, and what was found."""

    def __init__(self, folder: Path, seconds: float, boards: list[str], seed: int) -> None:
        self.folder = folder
        self.seconds = seconds
        self.boards = boards
        self.random = random.Random(seed)
        self.begun = time.monotonic()
        self.problems: list[str] = []
        self.signed: dict[str, dict[str, list[int]]] = {}
        self.calls: Counter[str] = Counter()
        self.times: list[float] = []
        self.bridges: dict[str, Bridge] = {}
        self.pytest: Counter[str] = Counter()

    @property
    def over(self) -> bool:
        """Whether the time is over."""
        return time.monotonic() - self.begun > self.seconds

    def note(self, who: str, board: str, count: int) -> None:
        """Add a count that *who* has signed and closed."""
        self.signed.setdefault(board, {}).setdefault(who, []).append(count)

    # -- the whole

    async def run(self) -> None:
        """Let all work until the time is over, and look at what is left."""
        async with contextlib.AsyncExitStack() as stack:
            drivers = [await stack.enter_async_context(self._driver(name)) for name in CLIENTS]
            for driver in drivers:
                await driver.warm_up()
            self.begun = time.monotonic()
            sampler = asyncio.create_task(self._sample())
            await asyncio.gather(self._pytest(), *(driver.work() for driver in drivers))
            sampler.cancel()
            for driver in drivers:
                await driver.look_when_quiet()
        self._look_at_bridges()

    @contextlib.asynccontextmanager
    async def _driver(self, name: str) -> AsyncGenerator[Driver]:
        before = children(os.getpid())
        transport = StdioTransport(
            str(Path(sys.executable).with_name("pytest-esp-mcp")),
            ["--rack", "boards.toml", "--roots", str(self.folder), "--idle", "0.2"],
            env=dict(os.environ),
            cwd=str(self.folder),
            keep_alive=False,
            log_file=self.folder / f"bridge-{name}.log",
        )
        async with Client(transport) as client:
            (pid,) = children(os.getpid()) - before
            self.bridges[name] = Bridge(pid)
            yield Driver(self, name, client)

    async def _sample(self) -> None:
        while True:
            await asyncio.sleep(SAMPLE)
            for bridge in self.bridges.values():
                bridge.sample(self.begun)

    async def _pytest(self) -> None:
        (self.folder / "test_boards.py").write_text(TESTS)
        (self.folder / "pytest.ini").write_text("[pytest]\n")
        while not self.over:
            process = await asyncio.create_subprocess_exec(
                *(
                    sys.executable,
                    "-m",
                    "pytest",
                    "-q",
                    "-n",
                    "2",
                    "-p",
                    "no:cacheprovider",
                    "--esp-rack",
                    "boards.toml",
                ),
                cwd=self.folder,
                env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            said = (await process.communicate())[0].decode()
            self.pytest["runs"] += 1
            self.pytest["tests"] += sum(map(int, re.findall(r"(\d+) passed", said)))
            if process.returncode:
                self.problems.append(f"pytest: {said[-3000:]}")

    # -- what was found

    def _look_at_bridges(self) -> None:
        for name, bridge in self.bridges.items():
            (files, running, _), (files_later, running_later, _) = bridge.quiet
            if files_later > files:
                self.problems.append(f"{name}: {files} descriptors at first, {files_later} at the end")
            if running_later > running:
                self.problems.append(f"{name}: {running} threads at first, {running_later} at the end")
            if bridge.growth() > MOST_GROWTH:
                self.problems.append(f"{name}: grown by {bridge.growth() / 1e6:.1f} MB")

    def look_at_boards(self) -> None:
        """Compare each board's page with what everybody has signed; nobody holds a board any more."""
        for path in self.folder.glob("signed-pytest-*.jsonl"):
            for line in path.read_text().splitlines():
                self.note("pytest", *json.loads(line))
        rack = load_rack(self.folder / "boards.toml")
        for name in self.boards:
            holder = holder_of(rack.board(name), rack)
            if holder is not None:
                self.problems.append(f"still held: {holder.describe()}")
                continue
            try:
                (lease,) = rack.lease(name, purpose="soak", timeout=0)
                with lease, Link(make_board(rack.board(name), rack)) as link:
                    page = Page.unpack(Esp(link).flash.read(ledger.ADDRESS, ledger.SIZE).data)
            except (EspError, TrespassError) as error:
                self.problems.append(f"{name}, looked at when all was over: {error}")
                continue
            counts = sorted(count for by in self.signed.get(name, {}).values() for count in by)
            if page.open or counts != list(range(1, page.count + 1)):
                self.problems.append(f"{name}: {page}, but signed were {counts}")

    def look_for_processes(self, marker: str) -> None:
        """Look for processes that this soak has started, wherever they hang in the tree by now."""
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if int(process.name) != os.getpid() and marker.encode() in (process / "environ").read_bytes():
                    command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    self.problems.append(f"left behind: {process.name} {command}")
        self.problems += [f"child left behind: {pid}" for pid in tree(os.getpid()) - {os.getpid()}]

    def findings(self) -> dict[str, Any]:
        """Return everything, for a program."""
        return {
            "seconds": self.seconds,
            "problems": self.problems,
            "turns": {board: {who: len(counts) for who, counts in by.items()} for board, by in self.signed.items()},
            "calls": dict(self.calls),
            "pytest": dict(self.pytest),
            "bridges": {
                name: {
                    "descriptors": [look[0] for look in bridge.quiet],
                    "threads": [look[1] for look in bridge.quiet],
                    "resident_mb": [round(look[2] / 1e6, 1) for look in bridge.quiet],
                    "most_descriptors": max(sample[1] for sample in bridge.samples),
                    "most_threads": max(sample[2] for sample in bridge.samples),
                    "growth_mb": round(bridge.growth() / 1e6, 2),
                }
                for name, bridge in self.bridges.items()
            },
        }

    def print(self) -> None:
        """Print everything, for a person."""
        found = self.findings()
        turns = Table(title="turns on the boards, each signed and closed in flash", box=box.SIMPLE)
        turns.add_column("board")
        for who in (*CLIENTS, "pytest"):
            turns.add_column(who, justify="right")
        for board in self.boards:
            by = found["turns"].get(board, {})
            turns.add_row(f"{board} ({CHIPS[board]})", *(str(by.get(who, 0)) for who in (*CLIENTS, "pytest")))
        bridges = Table(title="bridges, nothing running: at first, and at the end", box=box.SIMPLE)
        for heading in ("bridge", "descriptors (most)", "threads (most)", "resident MB", "grown MB*"):
            bridges.add_column(heading, justify="left" if heading == "bridge" else "right")
        for name, one in found["bridges"].items():
            bridges.add_row(
                name,
                f"{one['descriptors'][0]} -> {one['descriptors'][1]} ({one['most_descriptors']})",
                f"{one['threads'][0]} -> {one['threads'][1]} ({one['most_threads']})",
                f"{one['resident_mb'][0]} -> {one['resident_mb'][1]}",
                f"{one['growth_mb']:+}",
            )
        console = Console(width=max(110, Console().width))
        console.print(turns, bridges)
        print("* from a third of the time to its end, under load")
        calls = ", ".join(f"{count} {what}" for what, count in sorted(self.calls.items()))
        ordered = sorted(self.times)
        print(
            f"calls: {calls}; p50 {ordered[len(ordered) // 2]:.0f} ms, p99 {ordered[len(ordered) * 99 // 100]:.0f} ms"
        )
        print(f"pytest -n 2: {self.pytest['runs']} runs, {self.pytest['tests']} tests; {self.seconds:.0f} s")
        print("\n".join(["FOUND:", *self.problems]) if self.problems else "nothing was found")


class Driver:
    """One client and what it does with its bridge."""

    def __init__(self, soak: Soak, name: str, client: Client[Any]) -> None:
        self._soak = soak
        self._name = name
        self._client = client
        self._mine = {board: asyncio.Lock() for board in soak.boards}
        self._number = 0

    async def warm_up(self) -> None:
        """Use every board once, so that all is imported, and start more threads than `work` ever needs at a time."""
        for board in self._soak.boards:
            await self._turn(board)
        board = self._soak.boards[0]
        long = self._must("esp_serial_monitor", port=board, duration_seconds=1)
        await asyncio.gather(long, *(self._must("esp_detect_chip", port=board) for _ in range(AT_ONCE)))
        await self._look()
        await self.look_when_quiet()

    async def look_when_quiet(self) -> None:
        """Note what the bridge holds when no board is in use."""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            await asyncio.sleep(0.5)
            status = (await self._client.call_tool("esp_rack_status", {})).structured_content or {}
            if not any("held_here_for_seconds" in row for row in status["boards"]):
                break
        bridge = self._soak.bridges[self._name]
        bridge.quiet.append(bridge.look())

    async def work(self) -> None:
        """Take boards, look at things, and call things off, until the time is over."""
        takers = (self._repeat(self._turn_somewhere) for _ in range(TASKS))
        await asyncio.gather(*takers, self._repeat(self._look), self._repeat(self._poach))

    async def _repeat(self, work: Any) -> None:
        while not self._soak.over:
            try:
                await work()
            except Exception as error:  # whatever it is, it is a finding
                self._soak.problems.append(f"{self._name}: {type(error).__name__}: {error}")
                await asyncio.sleep(1)
            await asyncio.sleep(self._soak.random.uniform(0, 0.05))

    async def _call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        self._soak.calls["made"] += 1
        begun = time.perf_counter()
        try:
            result = await asyncio.wait_for(self._client.call_tool(tool, arguments, raise_on_error=False), LONGEST_CALL)
        except TimeoutError:
            self._soak.calls["lost"] += 1
            raise
        self._soak.calls["answered"] += 1
        self._soak.times.append((time.perf_counter() - begun) * 1000)
        assert result.structured_content is not None, f"{tool}: {result.content}"
        return result.structured_content

    async def _must(self, tool: str, **arguments: Any) -> dict[str, Any]:
        answer = await self._call(tool, **arguments)
        if not answer["success"]:
            raise RuntimeError(f"{tool} {arguments}: {answer}")
        return answer

    # -- turns

    async def _turn_somewhere(self) -> None:
        await self._turn(self._soak.random.choice(self._soak.boards))

    async def _turn(self, board: str) -> None:
        """Take a board, sign its page, work, find the page unchanged, close it, give the board back."""
        async with self._mine[board]:  # two tasks of one client are one holder
            await self._must("esp_lease", board=board, minutes=10, wait_s=WAIT)
            try:
                self._number += 1
                page = Page.unpack(await self._read(board)).sign(f"{self._name} {self._number}")
                await self._write(board, page)
                page.check(await self._read(board))
                for _ in range(self._soak.random.randint(1, 3)):
                    await self._anything(board)
                page.check(await self._read(board))
                await self._write(board, page.close())
                self._soak.note(self._name, board, page.count)
            except TrespassError as error:
                raise TrespassError(f"{board}: {error}") from error
            finally:
                await self._must("esp_release", board=board)

    async def _read(self, board: str) -> bytes:
        answer = await self._must("esp_flash_read", port=board, address=ledger.ADDRESS, size=ledger.SIZE)
        return bytes.fromhex(answer["data"])

    async def _write(self, board: str, page: Page) -> None:
        file = self._soak.folder / f"page-{self._name}-{board}.bin"
        file.write_bytes(page.pack())
        await self._must("esp_flash_firmware", port=board, firmware_path=file.name, address=ledger.ADDRESS)

    async def _anything(self, board: str) -> None:
        tool, arguments = self._soak.random.choice(
            (
                ("esp_detect_chip", {}),
                ("esp_security_audit", {}),
                ("esp_efuse_read", {"efuse_name": "MAC"}),
                ("esp_flash_read", {"address": 0x200000, "size": 1024}),
                ("esp_flash_status", {}),
            )
        )
        await self._must(tool, port=board, **arguments)

    # -- meanwhile

    async def _look(self) -> None:
        """Ask what needs no board: the bridge answers while boards work."""
        tool = self._soak.random.choice(("esp_rack_status", "esp_server_info", "esp_list_tools", "esp_health_check"))
        await self._must(tool)
        await self._client.list_tools()
        await asyncio.sleep(0.2)

    async def _poach(self) -> None:
        """Read from a board without waiting for it: it answers, or says who has it. Some of these are called off."""
        board = self._soak.random.choice(self._soak.boards)
        if self._soak.random.random() < 0.3:
            call = asyncio.create_task(self._client.call_tool("esp_flash_read", _READING | {"port": board}))
            await asyncio.sleep(self._soak.random.uniform(0, 0.05))
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
            self._soak.calls["called off"] += 1
        else:
            answer = await self._call("esp_detect_chip", port=board)
            if not answer["success"]:
                self._soak.calls["refused"] += 1
                if "held" not in answer["error"]:
                    raise RuntimeError(f"esp_detect_chip {board}: {answer}")
        await asyncio.sleep(0.2)


_READING = {"address": 0x100000, "size": "64KB", "output_file": "called-off.bin", "overwrite": True}


# -- the command


def main() -> None:
    """Soak, print what was found, and exit with 1 if that is anything."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=1.0, help="(1)")
    parser.add_argument("--seed", type=int, default=1, help="of the order of things (1)")
    parser.add_argument("--no-qemu", action="store_true", help="simulated chips only")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        folder = Path(name)
        os.environ["PYTEST_ESP_STATE_DIR"], os.environ["PYTEST_ESP_LOCK_DIR"] = f"{name}/state", f"{name}/locks"
        with wired_chip() as port:
            boards = write_rack(folder, port, qemu=not options.no_qemu and why_missing(CHIPS["emulated"]) is None)
            soak = Soak(folder, options.minutes * 60, boards, options.seed)
            asyncio.run(soak.run())
            soak.look_at_boards()
        soak.look_for_processes(f"PYTEST_ESP_STATE_DIR={name}/state")
    if options.json:
        print(json.dumps(soak.findings()))
    else:
        soak.print()
    sys.exit(bool(soak.problems))


@contextlib.contextmanager
def wired_chip() -> Generator[str]:
    """Run a simulated chip in a process of its own; yield the pty that leads to it."""
    command = [Path(sys.executable).with_name("pytest-esp"), "sim", CHIPS["wired"], "--listen", "pty:", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline())["endpoints"][0].removeprefix("pty:")
        finally:
            process.terminate()


def write_rack(folder: Path, port: str, *, qemu: bool) -> list[str]:
    """Write the rack file, and return the names of the boards."""
    entries = {
        "alpha": 'backend = "sim"',
        "beta": 'backend = "sim"',
        "wired": f'backend = "serial"\nport = "{port}"',
    } | ({"emulated": 'backend = "qemu"'} if qemu else {})
    text = "\n".join(
        f'[boards.{name}]\nchip = "{CHIPS[name]}"\nflash_size = "4MB"\n{entry}\n' for name, entry in entries.items()
    )
    (folder / "boards.toml").write_text(text)
    return list(entries)


if __name__ == "__main__":
    main()
