"""The MCP server beside mcesptool, the published one, over one simulated chip on a pty, in one run.

``.venv/bin/python benchmarks/mcp_servers.py``. Both are started as clients start them, over standard input and output,
by the same client, mcesptool in an environment of its own (with the same esptool). They take turns on the chip: ours
gives its board back before mcesptool's turn, and has its link warm again before its own calls count. What each of them
answers is compared with what is true of the chip. (It is not named mcp.py, which would hide the package `mcp`.)
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastmcp import Client
from fastmcp.client.transports import StdioTransport
from rich import box
from rich.console import Console
from rich.table import Table
from side_by_side.peer import environment
from side_by_side.processes import children, resident, tree
from side_by_side.run import Report, both, p50

VERSION = "2026.7.5"
REQUIREMENTS = (f"mcesptool=={VERSION}", "fastmcp==3.4.10", "mcp==1.30.0", "esptool==5.6.0")
FOLDER = Path(__file__).parents[1] / ".bench" / f"mcesptool-{VERSION}"

CHIP = "esp32"
ADDRESS = 0x10000
READ_SIZE = 4096
IMAGE = bytes(random.Random(1).choices(range(64), k=160 << 10))  # it deflates to three quarters, much as firmware does
STARTS = 3
ROUNDS = 5
CALLS = 8  # of ours, in a round in which mcesptool makes one

IDENTIFY, READ, EFUSE, MAC, AUDIT, FLASH = (
    "identify the chip",
    "read 4 KB of flash into a file",
    "read one eFuse (FLASH_CRYPT_CNT)",
    "read one eFuse (MAC)",
    "security audit",
    "flash 160 KB that are there already",
)
Answer = dict[str, Any]


@dataclass
class Server:
    """One of the two: how it is started, what it is asked, and what came of it.

    Attributes:
        calls: tool and arguments of each piece of work.
        read_file: where it is told to write what it reads.
        times: milliseconds of each piece of work.
        starts: milliseconds from the start of the process, by what was reached.
        memory: bytes, when it waits for calls, and at most while it works.
        noise: lines on its standard output that are no messages, in one start and one call.
    """

    name: str
    command: Path
    arguments: list[str]
    environment: dict[str, str]
    calls: dict[str, tuple[str, Answer]]
    read_file: Path
    times: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    starts: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    answers: dict[str, Answer] = field(default_factory=dict[str, Answer])
    memory: tuple[int, int] = (0, 0)
    noise: int = 0

    def note_start(self, what: str, seconds: float) -> None:
        """Add the time at which something was reached."""
        self.starts.setdefault(what, []).append(seconds * 1000)


class Noise(logging.Handler):
    """Counts what servers say on their standard output that is no message of the protocol, as the client notices it."""

    count = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Count it."""
        Noise.count += "parse JSONRPC" in record.getMessage()


def main() -> None:
    """Measure, and print two tables."""
    logger = logging.getLogger("mcp")
    logger.addHandler(Noise())
    logger.propagate = False
    with tempfile.TemporaryDirectory() as name, chip() as (port, mac):
        folder = Path(name)
        (folder / "image.bin").write_bytes(IMAGE)
        servers = (ours(folder, port), peer(folder, port))
        asyncio.run(measure(servers, folder))
        print_times(servers)
        print_answers(servers, mac)


@contextlib.contextmanager
def chip() -> Generator[tuple[str, str]]:
    """Run a simulated chip behind a pty; yield the pty's name and the chip's MAC address."""
    command = [Path(sys.executable).with_name("pytest-esp"), "sim", CHIP, "--listen", "pty:", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            said = json.loads(process.stdout.readline())
            (port,) = said["endpoints"]
            yield port.removeprefix("pty:"), said["mac"]
        finally:
            process.terminate()


def plain_environment(**more: str) -> dict[str, str]:
    """Return this environment as users have it: Python keeps what it has compiled."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"} | more


def ours(folder: Path, port: str) -> Server:
    """Return this project's server; its rack has one board, which is that pty."""
    (folder / "boards.toml").write_text(f'[boards.chip]\nbackend = "serial"\nchip = "{CHIP}"\nport = "{port}"\n')
    flashed = {"firmware_path": "image.bin", "address": ADDRESS}
    file = folder / "read-ours.bin"
    reading = {"address": ADDRESS, "size": READ_SIZE, "output_file": file.name, "overwrite": True}
    return Server(
        "pytest-esp",
        Path(sys.executable).with_name("pytest-esp-mcp"),
        ["--rack", str(folder / "boards.toml"), "--roots", str(folder)],
        plain_environment(PYTEST_ESP_STATE_DIR=str(folder / "state"), PYTEST_ESP_LOCK_DIR=str(folder / "locks")),
        {
            IDENTIFY: ("esp_detect_chip", {"port": "chip"}),
            READ: ("esp_flash_read", {"port": "chip", **reading}),
            EFUSE: ("esp_efuse_read", {"port": "chip", "efuse_name": "FLASH_CRYPT_CNT"}),
            MAC: ("esp_efuse_read", {"port": "chip", "efuse_name": "MAC"}),
            AUDIT: ("esp_security_audit", {"port": "chip"}),
            FLASH: ("esp_flash_firmware", {"port": "chip", **flashed}),
        },
        file,
    )


def peer(folder: Path, port: str) -> Server:
    """Return mcesptool; it finds its esptool by PATH. `detailed` identifies as much as ours does."""
    programs = environment(FOLDER, REQUIREMENTS).parent
    file = folder / "read-theirs.bin"
    reading = {"start_address": hex(ADDRESS), "size": str(READ_SIZE), "output_path": str(file)}
    return Server(
        "mcesptool",
        programs / "mcesptool",
        [],
        plain_environment(PATH=f"{programs}{os.pathsep}{os.environ['PATH']}", MCP_PROJECT_ROOTS=str(folder)),
        {
            IDENTIFY: ("esp_detect_chip", {"port": port, "detailed": True}),
            READ: ("esp_flash_read", {"port": port, **reading}),
            EFUSE: ("esp_efuse_read", {"port": port, "efuse_name": "FLASH_CRYPT_CNT"}),
            MAC: ("esp_efuse_read", {"port": port, "efuse_name": "MAC"}),
            AUDIT: ("esp_security_audit", {"port": port}),
            FLASH: (
                "esp_flash_firmware",
                {"port": port, "firmware_path": str(folder / "image.bin"), "address": hex(ADDRESS)},
            ),
        },
        file,
    )


# -- measuring


async def measure(servers: tuple[Server, Server], folder: Path) -> None:
    """Let both take turns: whole starts first, then calls on servers that stay."""
    for number in range(STARTS + 1):
        for server in servers:
            if number == 1:  # the first start of each has filled the caches
                server.starts.clear()
            noise = Noise.count
            async with started(server, folder) as (client, _):
                begun = server_begun[server.name]
                server.note_start("tools listed", await since(begun, client.list_tools()))
                server.note_start("chip identified", await since(begun, ask(client, server, IDENTIFY)))
            server.noise = Noise.count - noise
    async with started(servers[0], folder) as (mine, my_pid), started(servers[1], folder) as (theirs, their_pid):
        await ask(mine, servers[0], FLASH)
        for _ in range(ROUNDS):
            await turn(mine, servers[0], CALLS)
            await mine.call_tool("esp_release", {"board": "chip"})
            await turn(theirs, servers[1], 1)
        for client, pid, server in ((mine, my_pid, servers[0]), (theirs, their_pid, servers[1])):
            with highest_memory(pid) as highest:
                for what in (IDENTIFY, MAC, AUDIT, FLASH):
                    server.answers[what] = await ask(client, server, what)
            server.memory = (memory_of(pid), highest[0])
            if server is servers[0]:
                await mine.call_tool("esp_release", {"board": "chip"})


server_begun: dict[str, float] = {}


@contextlib.asynccontextmanager
async def started(server: Server, folder: Path) -> AsyncGenerator[tuple[Client[Any], int]]:
    """Start a server; yield a client that is connected, and the process."""
    before = children(os.getpid())
    server_begun[server.name] = time.perf_counter()
    transport = StdioTransport(
        str(server.command),
        server.arguments,
        env=server.environment,
        cwd=str(folder),
        keep_alive=False,
        log_file=folder / f"{server.name}.log",
    )
    async with Client(transport, mode="legacy") as client:  # the handshake that both know
        server.note_start("connected", time.perf_counter() - server_begun[server.name])
        (pid,) = children(os.getpid()) - before
        yield client, pid


async def since(begun: float, work: Any) -> float:
    """Return the seconds from *begun* to the end of *work*."""
    await work
    return time.perf_counter() - begun


async def ask(client: Client[Any], server: Server, what: str) -> Answer:
    """Make one call and return its answer, which may be that it has failed."""
    tool, arguments = server.calls[what]
    result = await client.call_tool(tool, arguments, raise_on_error=False)
    return result.structured_content or {"success": False, "error": str(result.content)}


async def turn(client: Client[Any], server: Server, calls: int) -> None:
    """Do all work several times; the link of a server that keeps one is warm before it counts."""
    if calls > 1:
        for what in server.calls:
            await ask(client, server, what)
    for what in server.calls:
        for _ in range(calls):
            server.read_file.unlink(missing_ok=True)
            begun = time.perf_counter()
            answer = await ask(client, server, what)
            server.times.setdefault(what, []).append((time.perf_counter() - begun) * 1000)
            server.answers[what] = answer
            if what == READ:
                answer["data_right"] = server.read_file.read_bytes() == IMAGE[:READ_SIZE]


def memory_of(pid: int) -> int:
    """Return the resident bytes of a process and all that it has started."""
    return sum(map(resident, tree(pid)))


@contextlib.contextmanager
def highest_memory(pid: int) -> Generator[list[int]]:
    """Yield a list whose only item will be the highest resident memory of a process tree meanwhile."""
    highest, over = [0], threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            highest[0] = max(highest[0], memory_of(pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield highest
    finally:
        over.set()
        watcher.join()


# -- what came of it


def print_times(servers: tuple[Server, Server]) -> None:
    """Print how long both took."""
    mine, theirs = servers
    report = Report(f"MCP servers over a simulated {CHIP} on a pty", peer=f"mcesptool {VERSION}")
    for what in ("connected", "tools listed", "chip identified"):
        fast, slow = mine.starts[what], theirs.starts[what]
        goal = "no slower" if what == "chip identified" else ""
        report.add(
            f"from the start of the server: {what}, median of {STARTS}",
            f"{p50(fast) / 1000:.2f} s",
            f"{p50(slow) / 1000:.2f} s",
            f"{p50(slow) / p50(fast):.1f}x",
            goal,
        )
    for what in mine.calls:
        fast, slow = mine.times[what], theirs.times[what]
        ratio = f"{p50(slow) / p50(fast):.0f}x"
        report.add(f"{what}, p50 / p90", both(fast, "ms", 1), both(slow, "ms", 0), ratio, "25x")
    for index, what in enumerate(("waiting", "at most while working")):
        sizes = (f"{server.memory[index] / 1e6:.0f} MB" for server in servers)
        report.add(f"resident memory of the process tree, {what}", *sizes, "", "")
    report.print()
    print(f"{len(mine.times[IDENTIFY])} and {len(theirs.times[IDENTIFY])} calls of each tool, in {ROUNDS} turns")


def print_answers(servers: tuple[Server, Server], mac: str) -> None:
    """Print what both answered, beside what is true."""
    table = Table(title="what they answered", box=box.SIMPLE)
    for heading in ("what", "true", *(server.name for server in servers)):
        table.add_column(heading, overflow="fold")
    rows: dict[str, tuple[str, Callable[[Answer], str]]] = {
        IDENTIFY: (f"{CHIP}, {mac}, 4MB", said_identity),
        READ: ("the bytes written before", lambda answer: "the same" if answer["data_right"] else "OTHER BYTES"),
        EFUSE: ("0", said_efuse),
        MAC: (mac, said_efuse),
        AUDIT: ("a blank chip: all is open", said_posture),
        FLASH: ("nothing to write", said_written),
    }
    for what, (truth, say) in rows.items():
        table.add_row(what, truth, *(say(server.answers[what]) for server in servers))
    noise = (f"{server.noise}" for server in servers)
    table.add_row("lines on standard output that are not of the protocol", "0", *noise)
    Console(width=max(120, Console().width)).print(table)


def said_identity(answer: Answer) -> str:
    """Return who a server thinks the chip is."""
    known = answer.get("chip_info", answer)
    return ", ".join(str(known[key]) for key in ("chip_type", "mac_address", "flash_size") if key in known)


def said_efuse(answer: Answer) -> str:
    """Return the value, or why there is none."""
    return str(answer["value"]) if answer["success"] else f"ERROR: {answer['error']}"


def said_posture(answer: Answer) -> str:
    """Return the verdict, with what is wrong of it in capitals."""
    posture = answer.get("posture")
    if not posture:
        return f"no verdict: {answer.get('efuse_error', answer)}"
    told = {name: str(posture.get(name, "not told")) for name in ("flash_encryption", "secure_boot", "jtag")}
    right = {"flash_encryption": "disabled", "secure_boot": "disabled", "jtag": "enabled"}
    words = {name: said if said.startswith(right[name]) else f"{said.upper()} (WRONG)" for name, said in told.items()}
    return ", ".join(f"{name} {said}" for name, said in words.items())


def said_written(answer: Answer) -> str:
    """Return how much was written, and whether it was verified."""
    if not answer["success"]:
        return f"ERROR: {answer['error']}"
    return f"{answer['bytes_written']} bytes written{', verified' if answer['verified'] else ''}"


if __name__ == "__main__":
    main()
