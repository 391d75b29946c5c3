"""Works on the boards of a batch: one thread for each, so that a failing board does not delay the others."""

from __future__ import annotations

import contextlib
import queue
import string
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal, Self

from pytest_esp.errors import EspError, OperationError, StoppedError
from pytest_esp.formats.files import confined, confinement
from pytest_esp.link.link import Link
from pytest_esp.link.logs import Progress
from pytest_esp.operations.chip.identity import ChipIdentity, identify
from pytest_esp.operations.production.factory import Stage, program
from pytest_esp.operations.production.plan import Plan
from pytest_esp.operations.production.quality import inspect
from pytest_esp.operations.production.record import BoardRecord, Outcome
from pytest_esp.operations.registry import Effect, require

OpenBoard = Callable[[str], AbstractContextManager[Link]]
"""Leases the board with this name and yields a link to it."""

_FIELDS = ("index", "mac", "board")
# States of a board that failed before `program` began, or after it was done.
_STATES = {
    "lease": "nothing was touched",
    "check": "nothing was touched",
    "quality": "everything is written and verified and has started, but the inspection failed",
}


@dataclass(frozen=True)
class Device:
    """Data for one board.

    Attributes:
        board: its name or port.
        index: its number in the batch.
        serial_number: may contain ``{index}``, ``{mac}`` and ``{board}``.
        nvs: its own values.
    """

    board: str
    index: int
    serial_number: str | None
    nvs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]], repr=False)

    def serial_for(self, mac: str | None) -> str | None:
        """Return the serial number of the board with that MAC address."""
        if self.serial_number is None:
            return None
        bare = (mac or "").replace(":", "")
        return self.serial_number.format(index=self.index, mac=bare, board=self.board)


@dataclass(frozen=True)
class BoardResult:
    """The result of one board.

    Attributes:
        passed: whether it is programmed, verified, started, and passed the inspection if there was one.
        stage: the stage that failed, else "done".
        state: state of the board after a failure, in words.
        quality: whether the inspection passed; None if there was none.
    """

    board: str
    mac_address: str | None
    chip_type: str | None
    serial_number: str | None
    passed: bool
    stage: str
    state: str | None
    error: str | None
    hint: str | None
    quality: bool | None
    bytes_written: int
    elapsed_seconds: float

    @classmethod
    def of(cls, record: BoardRecord, hint: str | None) -> Self:
        """Return the result in the last line of a board in the record."""
        return cls(
            board=record.board,
            mac_address=record.mac_address or None,
            chip_type=record.chip_type or None,
            serial_number=record.serial_number or None,
            passed=record.outcome == "passed",
            stage=record.stage,
            state=record.state or None,
            error=record.error or None,
            hint=hint,
            quality=record.quality == "passed" if record.quality else None,
            bytes_written=record.bytes_written,
            elapsed_seconds=record.elapsed_seconds,
        )


@dataclass(frozen=True)
class Told:
    """A report from a board's worker: its progress, or its result."""

    board: str
    done: int = 0
    total: int = 0
    result: BoardResult | None = None


Tell = Callable[[Told], None]
Write = Callable[[BoardRecord], None]
"""Writes a line to disk before it returns."""


def check_serial_numbers(devices: Sequence[Device]) -> None:
    """Check that no two boards get the same serial number.

    Raises:
        OperationError: if they would, or a template has an unknown field.
    """
    seen: dict[str, str] = {}
    for device in devices:
        if device.serial_number is None:
            continue
        try:
            names = [name for _, name, _, _ in string.Formatter().parse(device.serial_number) if name is not None]
            wrong = next((name for name in names if name not in _FIELDS), None)
            number = "" if wrong is not None else device.serial_for(None)
        except (ValueError, LookupError) as error:
            raise OperationError(f"invalid serial number {device.serial_number!r}: {error}") from None
        if wrong is not None:
            raise OperationError(
                f"the serial number {device.serial_number!r} has the unknown field {{{wrong}}}",
                hint="use {index}, {mac} and {board}, e.g. SN{index:05d}",
            )
        if "mac" in names or number is None:
            continue
        if number in seen:
            raise OperationError(
                f"{device.board} and {seen[number]} would both get the serial number {number}",
                hint='use {index} or {mac} in it, e.g. "SN{index:05d}"',
            )
        seen[number] = device.board


class Batch:
    """The work on the boards of one call, in one process.

    Args:
        name: name of the batch, for the record.
        plan: common to all boards.
        open_board: leases and opens a board.
        tell, write: called from the threads of the boards.
        used: MAC addresses of the boards that have serial numbers already.
        look: whether finished boards are inspected.
    """

    def __init__(
        self,
        name: str,
        plan: Plan,
        open_board: OpenBoard,
        tell: Tell,
        write: Write,
        used: Mapping[str, str],
        *,
        look: bool = True,
    ) -> None:
        self.stop = threading.Event()
        self._name = name
        self._plan = plan
        self._open = open_board
        self._tell = tell
        self._write = write
        self._used = used
        self._look = look
        self._lock = threading.Lock()
        self._confinement = confinement()
        self._boards_by_mac: dict[str, str] = {}

    def start(self, devices: Iterable[Device]) -> list[threading.Thread]:
        """Start one thread for each board."""
        threads = [
            threading.Thread(target=self._one, args=(device,), name=f"production-{device.board}", daemon=True)
            for device in devices
        ]
        for thread in threads:
            thread.start()
        return threads

    def _one(self, device: Device) -> None:
        worker = _Worker(self, device)
        try:
            with confined(self._confinement):
                worker.run()
        except BaseException as error:  # a bug here is also reported as a result: the other boards continue
            worker.failed(error)

    # -- for workers

    def open(self, board: str) -> AbstractContextManager[Link]:
        """Lease a board and open a link to it."""
        return self._open(board)

    def plan_for(self, device: Device, who: ChipIdentity) -> Plan:
        """Return the data for a board, once its identity is known.

        Raises:
            OperationError: if it is in this batch already, or its serial number belongs to another board.
        """
        number = device.serial_for(who.mac_address)
        if who.mac_address is not None:
            with self._lock:
                other = self._boards_by_mac.setdefault(who.mac_address, device.board)
            if other != device.board:
                raise OperationError(f"this is the same board as {other}: MAC address {who.mac_address}")
        owner = self._used.get(number or "")
        if owner is not None and owner != who.mac_address:
            raise OperationError(
                f"the serial number {number} belongs to the board with the MAC address {owner}",
                hint="see the record; start with another index",
            )
        return self._plan.with_values(number, device.nvs)

    def tell(self, told: Told) -> None:
        """Report something about a board."""
        self._tell(told)

    def write(self, record: BoardRecord) -> None:
        """Append a line to the record."""
        self._write(record)

    @property
    def looks(self) -> bool:
        """Whether finished boards are inspected."""
        return self._look

    @property
    def name(self) -> str:
        """The name of the batch."""
        return self._name

    @property
    def plan(self) -> Plan:
        """The plan common to all boards."""
        return self._plan


class _Worker:
    """Work on one board, in progress."""

    def __init__(self, batch: Batch, device: Device) -> None:
        self._batch = batch
        self._device = device
        self._plan = batch.plan
        self._begun = time.monotonic()
        self._stage: Stage | Literal["lease", "quality"] = "lease"
        self._who: ChipIdentity | None = None
        self._quality: bool | None = None
        self._bytes = 0

    def run(self) -> None:
        with self._batch.open(self._device.board) as link:
            self._check_stop()
            require(link, Effect.ERASE, "production-batch-program")
            self._stage = "check"
            self._who = identify(link)
            self._plan = self._batch.plan_for(self._device, self._who)
            done = program(link, self._plan, progress=self._progress, on_stage=self._entered)
            self._bytes = done.bytes_written
            if self._batch.looks:
                self._stage = "quality"
                self._inspect(link)
        self._stage = "done"
        self._finish(None)

    def failed(self, error: BaseException) -> None:
        """Report a failure, without any secret."""
        self._finish(error)

    def _inspect(self, link: Link) -> None:
        app = self._plan.firmware.app
        look = inspect(
            link,
            self._plan.config.serial_number,
            app.elf_sha256 if app else None,
            boot=False,  # checked already
            nvs_partition=self._plan.config.nvs_partition,
            nvs_key_file=self._plan.config.nvs_key_file,
        )
        # A board without NVS values may have no NVS partition, and firmware without a descriptor has no app to check.
        counts = {"nvs": bool(self._plan.entries), "app": app is not None}
        wrong = [check for check in look.checks if not check.passed and counts.get(check.name, True)]
        self._quality = not wrong
        if wrong:
            raise OperationError(f"{wrong[0].name}: {wrong[0].found}")

    def _entered(self, stage: Stage) -> None:
        self._check_stop()
        self._stage = stage
        if stage == "erase":
            self._batch.write(self._record("begun", "", ""))

    def _progress(self, done: int, total: int) -> None:
        self._check_stop()
        self._batch.tell(Told(self._device.board, done, total))

    def _check_stop(self) -> None:
        if self._batch.stop.is_set():
            raise StoppedError("the batch was stopped")

    def _finish(self, error: BaseException | None) -> None:
        state = hint = None
        message = ""
        if isinstance(error, EspError):
            message, hint = error.message, error.hint
            state = error.details.get("state") or _STATES.get(self._stage)
        elif error is not None:
            message = f"{type(error).__name__}: {error}"
        secrets = self._plan.secrets
        message, hint = secrets.hide(message), hint and secrets.hide(hint)
        record = self._record("failed" if error is not None else "passed", message, state or "")
        result = BoardResult.of(record, hint)
        try:
            self._batch.write(record)
        except OperationError as unwritten:
            result = replace(result, passed=False, error="; ".join(filter(None, (result.error, unwritten.message))))
        self._batch.tell(Told(self._device.board, result=result))

    def _record(self, outcome: Outcome, error: str, state: str) -> BoardRecord:
        who, plan = self._who, self._plan
        known = self._stage not in ("lease", "check")
        app = plan.firmware.app
        return BoardRecord(
            time=datetime.now(UTC).isoformat(timespec="milliseconds"),
            batch=self._batch.name,
            board=self._device.board,
            mac_address=(who.mac_address if who else None) or "",
            chip_type=who.chip_type if who else "",
            serial_number=(plan.config.serial_number if known else None) or "",
            outcome=outcome,
            stage=self._stage,
            state=state,
            error=error,
            firmware=plan.firmware.name,
            elf_sha256=app.elf_sha256 if app else "",
            nvs_keys=" ".join(sorted(f"{namespace}.{key}" for namespace, key in plan.entries)) if known else "",
            quality="" if self._quality is None else "passed" if self._quality else "failed",
            bytes_written=self._bytes,
            elapsed_seconds=round(time.monotonic() - self._begun, 3),
        )


class Desk:
    """Collects the reports of the boards in the thread of the caller."""

    def __init__(self, boards: Sequence[str], progress: Progress | None) -> None:
        self.told: queue.SimpleQueue[Told] = queue.SimpleQueue()
        self.results: dict[str, BoardResult] = {}
        self._boards = boards
        self._progress = progress
        self._shares: dict[str, float] = dict.fromkeys(boards, 0.0)

    def attend(self, stop: Callable[[], None]) -> tuple[BoardResult, ...]:
        """Report progress until all boards have a result, and return the results in order.

        *stop* is called once if the progress callback raises, or this thread is interrupted: all boards are brought to
        their next safe point, and then that error propagates.
        """
        interruption: BaseException | None = None
        while len(self.results) < len(self._boards):
            try:
                self._take(interruption is None)
            except BaseException as error:
                if interruption is None:
                    stop()
                interruption = interruption or error
        if interruption is not None:
            raise interruption
        return tuple(self.results[board] for board in self._boards)

    def _take(self, reports: bool) -> None:
        told: Told | None = None
        with contextlib.suppress(queue.Empty):
            told = self.told.get(timeout=0.2)
        if told is not None:
            self._shares[told.board] = 1.0 if told.result else told.done / told.total if told.total else 0.0
            if told.result is not None:
                self.results[told.board] = told.result
        if reports and self._progress is not None:
            # Thousandths of boards: fast and slow boards count the same.
            self._progress(round(1000 * sum(self._shares.values())), 1000 * len(self._boards))
