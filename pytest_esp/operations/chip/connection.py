"""Connects to a chip's loader, trying one strategy after another, and measures the link."""

from __future__ import annotations

import hashlib
import itertools
import os
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from esptool.reset import DEFAULT_RESET_DELAY, ClassicReset, UnixTightReset, USBJTAGSerialReset
from esptool.util import FatalError

from pytest_esp.boards.board import Board
from pytest_esp.errors import LinkError, OperationError, PortError
from pytest_esp.link.esptool_private import port_of, try_to_connect
from pytest_esp.link.link import Link
from pytest_esp.link.session import Session
from pytest_esp.operations.chip.identity import check_baudrate
from pytest_esp.operations.registry import Effect, operation
from pytest_esp.wire.wire import ROM_BAUDRATE

_LONG_DELAY = DEFAULT_RESET_DELAY + 0.5  # for boards with a large capacitor at EN, as in esptool
_SLOWER = (57600, 38400, 19200)  # the ROM measures the baud rate of the first SYNC
_SPEEDS = (115200, 230400, 460800, 921600, 1_500_000, 2_000_000)


# -- connecting


@dataclass(frozen=True)
class Strategy:
    """One way to reach the loader.

    Attributes:
        name: of the reset: ``board`` (a virtual board's own), ``tight``, ``classic``, each also ``-long`` (holds EN
            longer), ``usb-jtag``, or ``no-reset`` (the chip may be in its loader already).
        hello: baud rate of the first SYNC.
    """

    name: str
    hello: int = ROM_BAUDRATE

    def __str__(self) -> str:
        return f"{self.name} at {self.hello} baud"


def strategies(link: Link) -> list[Strategy]:
    """Return the strategies to reach this board's loader, the likeliest first."""
    names = _resets(link)
    return [Strategy(name) for name in names] + [Strategy(names[0], baudrate) for baudrate in _SLOWER]


def _resets(link: Link) -> list[str]:
    board, where = link.board, str(getattr(link.port, "name", ""))
    if type(board).reset is not Board.reset:
        return ["board", "no-reset"]
    if where.startswith("socket:"):
        return ["no-reset"]  # the board has no control lines
    classic = ["classic", "classic-long"]
    if os.name == "nt" or where.startswith("rfc2217:"):
        return [*classic, "no-reset"]  # both lines cannot be set at once
    return ["tight", "tight-long", *classic, "usb-jtag", "no-reset"]


_LINES: dict[str, Callable[[Any], Any]] = {
    "tight": UnixTightReset,
    "tight-long": lambda port: UnixTightReset(port, _LONG_DELAY),
    "classic": ClassicReset,
    "classic-long": lambda port: ClassicReset(port, _LONG_DELAY),
    "usb-jtag": USBJTAGSerialReset,
}


def _enter(link: Link, strategy: Strategy) -> Callable[[Any], None]:
    """Return what resets the chip into its loader and synchronizes, for `Session.connect_by`."""

    def enter(esp: Any) -> None:
        if strategy.name == "board":
            link.board.reset(bootloader=True)
            return _greet(esp, link.board.boot_seconds)
        reset = _LINES[strategy.name](port_of(esp)) if strategy.name in _LINES else None
        if (error := try_to_connect(esp, reset)) is not None:
            raise error

    return enter


def _greet(esp: Any, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while True:
        esp.flush_input()
        try:
            return esp.sync()
        except FatalError:
            if time.monotonic() >= deadline:
                raise


@dataclass(frozen=True)
class Attempt:
    """A failed attempt: its strategy in words, and the reason."""

    strategy: str
    error: str


@dataclass(frozen=True)
class Connection:
    """An established connection; later operations on the same link use it.

    Attributes:
        baud: the link's baud rate now: the requested one, or a lower one if the chip did not answer at that.
        attempt: number of the attempt that succeeded, from 1.
        strategy: of that attempt: the reset, and the baud rate of the first SYNC.
        stub_loaded: whether the stub flasher is running.
        failures: the failed attempts before it, and baud rates that were too high.
        seconds: total time.
    """

    chip_type: str
    baud: int
    attempt: int
    strategy: str
    stub_loaded: bool
    failures: tuple[Attempt, ...]
    seconds: float


@operation(Effect.READ, group="chip")
def connect(link: Link, baud: int | None = None, retries: int = 7, use_stub: bool = True) -> Connection:
    """Connect to the chip's loader by several strategies (resets, lower baud rates), and keep the connection.

    Use it if a chip does not answer, or to continue at another baud rate. If it fails, try recover.

    Source: the reset sequences of ``esptool.reset``.

    Args:
        baud: baud rate after connecting; by default that of boards.toml, 115200 on a virtual board.
        retries: maximum number of attempts, at least 1.
        use_stub: run the stub flasher, if the chip has one.

    Raises:
        LinkError: if no attempt succeeds; ``details["attempts"]`` lists each with its reason.
        WrongChipError: if the chip is not the one in boards.toml.
    """
    begun = time.monotonic()
    wanted = (ROM_BAUDRATE if link.board.virtual else link.board.spec.baud) if baud is None else baud
    check_baudrate(wanted)
    if retries < 1:
        raise OperationError(f"retries must be at least 1, not {retries}")
    ways = strategies(link)
    attempt, strategy, failures = _connect(link, itertools.islice(itertools.cycle(ways), retries))
    speed, too_fast = _run_at(link, strategy, wanted, use_stub)
    failures += too_fast
    session = link.session
    return Connection(
        chip_type=session.chip,
        baud=speed,
        attempt=attempt,
        strategy=str(strategy),
        stub_loaded=session.is_stub,
        failures=tuple(failures),
        seconds=round(time.monotonic() - begun, 3),
    )


def connect_by(link: Link, strategy: Strategy) -> None:
    """Connect to the ROM by this strategy only.

    Raises:
        LinkError, PortError, WrongChipError: see `Session.use`.
    """
    link.session.connect_by(str(strategy), _enter(link, strategy), hello=strategy.hello, baudrate=strategy.hello)


def _connect(link: Link, ways: Iterator[Strategy]) -> tuple[int, Strategy, list[Attempt]]:
    failures: list[Attempt] = []
    for number, strategy in enumerate(ways, 1):
        try:
            connect_by(link, strategy)
        except (LinkError, PortError) as error:
            if not isinstance(error, PortError) and type(error) is not LinkError:
                raise  # a different chip: no other strategy changes that
            failures.append(Attempt(str(strategy), error.message))
        else:
            return number, strategy, failures
    raise LinkError(
        f"cannot connect to the loader (attempts: {len(failures)}); last error: {failures[-1].error}",
        details={"attempts": [f"{failed.strategy}: {failed.error}" for failed in failures]},
        hint="check the power supply, the boot pin and the port; then try to recover the chip",
    )


def _run_at(link: Link, strategy: Strategy, wanted: int, use_stub: bool) -> tuple[int, list[Attempt]]:
    """Start the stub, if requested, and switch to the highest working baud rate up to the requested one."""
    failures: list[Attempt] = []
    slower = [speed for speed in reversed(_SPEEDS) if strategy.hello <= speed < wanted]
    for speed in (wanted, *slower, strategy.hello):
        try:
            with link.session.use(f"switching to {speed} baud", stub=use_stub) as esp:
                if speed != link.port.baudrate:
                    _change(esp, speed)
        except (LinkError, OperationError) as error:  # the ESP8266's ROM has one baud rate only
            failures.append(Attempt(f"{speed} baud", error.message))
            connect_by(link, strategy)  # a chip at another baud rate does not understand a command to switch back
        else:
            return speed, failures
    raise LinkError(
        f"the chip answers SYNC but nothing after it; last error: {failures[-1].error}",
        details={"attempts": [f"{failed.strategy}: {failed.error}" for failed in failures]},
        hint="check the cable and the line for noise",
    )


def _change(esp: Any, baudrate: int) -> None:
    esp.change_baud(baudrate)
    esp.sync()  # only an answer proves that the new rate works


# -- measuring


@dataclass(frozen=True)
class SpeedReport:
    """Measurements of the link at one baud rate.

    Attributes:
        rounds: how often each of the three checks ran; fewer than requested if the link broke.
        sync_errors, register_errors, md5_errors: number of failures. The register check writes a pattern and reads it
            back; the MD5 check reads a block of flash and compares it with the MD5 that the chip computes.
        latency: median round trip of a register access in seconds; *worst_latency* is the longest; None if none ran.
        bytes_per_second: throughput of the blocks that were read; None if none were.
    """

    baud: int
    rounds: int
    sync_errors: int
    register_errors: int
    md5_errors: int
    latency: float | None
    worst_latency: float | None
    bytes_per_second: float | None

    @property
    def errors(self) -> int:
        """All errors."""
        return self.sync_errors + self.register_errors + self.md5_errors


@dataclass(frozen=True)
class ConnectionTest:
    """Measurements of the link at rising baud rates, up to the first that failed.

    Attributes:
        highest_stable: the highest baud rate without an error; None if every rate had errors.
        errors: total over all rates.
        stub_loaded: whether the stub flasher answered, rather than the ROM.
    """

    chip_type: str
    speeds: tuple[SpeedReport, ...]
    highest_stable: int | None
    errors: int
    stub_loaded: bool
    seconds: float


@operation(Effect.READ, group="chip")
def check_connection(link: Link, rounds: int = 8, highest_baud: int = 921600) -> ConnectionTest:
    """Measure the link at rising baud rates: SYNC, register echo and MD5 round trips.

    Afterwards the link is at its previous baud rate. In secure download mode only SYNC can be checked.

    Args:
        rounds: how often to run each check at each baud rate, 1 to 1000.
        highest_baud: the highest baud rate to try.

    Raises:
        LinkError: if the chip does not answer at the start.
        OperationError: if an argument is invalid.
    """
    check_baudrate(highest_baud)
    if not 0 < rounds <= 1000:
        raise OperationError(f"rounds must be 1 to 1000, not {rounds}", hint="use a number from 1 to 1000")
    begun = time.monotonic()
    session = link.session
    stub = not link.board.uploads_slowly
    reports: list[SpeedReport] = []
    with session.use("testing the connection", stub=stub, flash=True) as esp:
        is_stub, before = bool(esp.IS_STUB), int(link.port.baudrate)
    for speed in _rising(session, highest_baud):
        report = _try_speed(session, speed, rounds, stub)
        reports.append(report)
        if report.errors:
            break
    _go_back(session, before)
    stable = [report.baud for report in reports if not report.errors]
    return ConnectionTest(
        chip_type=session.chip,
        speeds=tuple(reports),
        highest_stable=max(stable, default=None),
        errors=sum(report.errors for report in reports),
        stub_loaded=is_stub,
        seconds=round(time.monotonic() - begun, 3),
    )


def _rising(session: Session, highest: int) -> list[int]:
    if session.chip == "esp8266" and not session.is_stub:
        return [ROM_BAUDRATE]  # its ROM cannot change the baud rate
    return [speed for speed in _SPEEDS if speed < highest] + [highest]


@dataclass
class _Counts:
    rounds: int = 0
    sync: int = 0
    register: int = 0
    md5: int = 0
    latencies: list[float] = field(default_factory=list[float])
    read_bytes: int = 0
    read_seconds: float = 0.0

    def report(self, baudrate: int) -> SpeedReport:
        times = sorted(self.latencies)
        return SpeedReport(
            baudrate,
            self.rounds,
            self.sync,
            self.register,
            self.md5,
            times[len(times) // 2] if times else None,
            times[-1] if times else None,
            self.read_bytes / self.read_seconds if self.read_seconds else None,
        )


_MOST_ERRORS = 3  # at one baud rate: each can cost a time-out of 3 s


def _try_speed(session: Session, speed: int, rounds: int, stub: bool) -> SpeedReport:
    counts = _Counts()
    try:
        with session.use(f"testing {speed} baud", stub=stub, flash=True) as esp:
            if speed != session.port.baudrate:
                counts.sync += not _works(lambda: _change(esp, speed))
            while counts.rounds < rounds and counts.sync + counts.register + counts.md5 < _MOST_ERRORS:
                _round(esp, counts)
            if counts.sync:
                raise LinkError("the chip does not answer")  # the next use connects again
    except (LinkError, OperationError):
        counts.sync += not counts.sync
    return counts.report(speed)


def _works(action: Callable[[], object]) -> bool:
    try:
        action()
    except FatalError:
        return False
    return True


def _round(esp: Any, counts: _Counts) -> None:
    counts.rounds += 1
    esp.flush_input()
    counts.sync += not _works(esp.sync)
    if esp.secure_download_mode:
        return
    esp.flush_input()
    counts.register += not _works(lambda: _echo(esp, counts.latencies))
    counts.md5 += not _works(lambda: _compare(esp, counts))


def _echo(esp: Any, latencies: list[float]) -> None:
    """Write patterns, including SLIP's special bytes, to an unused register, and read them back.

    The register is the last word of the SPI controller's buffer: every command to the flash overwrites it.
    """
    register = esp.SPI_REG_BASE + esp.SPI_W0_OFFS + 60
    for pattern in (0x55AA55AA, 0xC0DBDCDD, int.from_bytes(secrets.token_bytes(4), "little")):
        esp.write_reg(register, pattern)
        begun = time.monotonic()
        back = esp.read_reg(register)
        latencies.append(time.monotonic() - begun)
        if back != pattern:
            raise FatalError(f"wrote {pattern:#010x} but read back {back:#010x}")


def _compare(esp: Any, counts: _Counts) -> None:
    size = 4096 if esp.IS_STUB else 256
    address = 0x1000 * (counts.rounds % 16)
    begun = time.monotonic()
    data = esp.read_flash(address, size)
    counts.read_seconds += time.monotonic() - begun
    counts.read_bytes += len(data)
    if hashlib.md5(data, usedforsecurity=False).hexdigest() != esp.flash_md5sum(address, size):
        raise FatalError("the data received does not match the chip's MD5")


def _go_back(session: Session, baudrate: int) -> None:
    """Restore the link's baud rate; if the link broke, the next use resets the chip."""
    if session.is_connected and session.port.baudrate != baudrate:
        with session.use(f"switching back to {baudrate} baud", stub=False) as esp:
            _change(esp, baudrate)
