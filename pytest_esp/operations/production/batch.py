"""Programs many boards in one call."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from pytest_esp.errors import OperationError
from pytest_esp.formats.files import Confinement, FileName, ReadPath, WritePath, confinement, resolve
from pytest_esp.link.logs import Progress
from pytest_esp.names import nearest
from pytest_esp.operations.production.config import FactoryConfig, Given, with_files
from pytest_esp.operations.production.plan import Plan, make_plan
from pytest_esp.operations.production.process import AVAILABLE, Job, WorkProcess, as_plain, leased, shares
from pytest_esp.operations.production.record import RecordBook, serial_numbers
from pytest_esp.operations.production.work import (
    Batch,
    BoardResult,
    Desk,
    Device,
    OpenBoard,
    check_serial_numbers,
)
from pytest_esp.operations.registry import Effect, file_operation
from pytest_esp.operations.security.secret_names import remember_in

if TYPE_CHECKING:
    from pytest_esp.rack.rack import Rack

DEFAULT_FOLDER = "production"
_WORTH_A_PROCESS = 16  # virtual boards that are done in the time that another process takes to start


@dataclass(frozen=True)
class BatchResult:
    """The result of a batch.

    Attributes:
        batch: its name in the record.
        passed, failed: number of boards.
        boards: in the order in which they were given.
        record_file, csv_file: the record of this batch and of earlier ones.
        processes: number of processes that worked on the boards, including the caller's.
    """

    batch: str
    passed: int
    failed: int
    boards: tuple[BoardResult, ...]
    record_file: Path
    csv_file: Path
    processes: int
    elapsed_seconds: float


class OwnData(BaseModel):
    """Data for one board of a batch; *board* is its name; without it, entries are assigned in order."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    board: str | None = None
    serial_number: str | None = Field(default=None, min_length=1, max_length=64)
    nvs: dict[str, dict[str, Any]] = Field(default_factory=dict[str, dict[str, Any]], repr=False)


@file_operation(group="production", effect=Effect.ERASE)
def batch_program(
    ports: list[str],
    firmware: ReadPath | None = None,
    config: Given | None = None,
    devices: list[dict[str, Any]] | None = None,
    *,
    serial_number: str | None = None,
    first_index: int = 1,
    output_dir: WritePath = DEFAULT_FOLDER,
    look: bool = True,
    rack: ReadPath | None = None,
    wait_s: float = 0.0,
    processes: int | None = None,
    progress: Progress | None = None,
) -> BatchResult:
    """Program many boards of the rack at once, like `factory_program`; a board that fails does not stop the others.

    Each board is leased, gets its own serial number and NVS values, and is inspected at the end. boards.jsonl and
    boards.csv get two lines for each board, by MAC address: one at its start, one with the outcome.

    Args:
        ports: names of boards, or patterns: "line-*".
        firmware: a build folder or a merged image; replaces the one in config.
        config: as for factory_program.
        devices: data for single boards: {"board", "serial_number", "nvs"}; entries without board are assigned in order.
        serial_number: template of serial numbers, e.g. "SN{index:05d}"; {mac} and {board} are also allowed.
        first_index: index of the first board.
        output_dir: folder of the record; lines are only ever added to it.
        look: inspect finished boards.
        rack: the rack file; by default PYTEST_ESP_RACK, else boards.toml in this folder or its parents.
        wait_s: seconds to wait for boards that are held.
        processes: number of processes, including the caller's; by default one, or up to one per core for many
            virtual boards.
        progress: called with thousandths of boards done and total.

    Raises:
        FirmwareError, OperationError, RackError: if something is wrong before the first board is accessed.
    """
    __tracebackhide__ = True
    from pytest_esp.rack.config import load_rack

    found = load_rack(resolve(rack) if rack is not None else None)
    names = board_names(ports, found)
    plan, own = checked(names, firmware, config, devices, serial_number, first_index)
    return run_batch(found, plan, own, Path(output_dir), look=look, wait=wait_s, processes=processes, progress=progress)


def board_names(wanted: Sequence[str], rack: Rack) -> list[str]:
    """Return the boards of *rack* that match names and patterns, each once.

    Raises:
        OperationError: if a name or pattern matches none.
    """
    names: dict[str, None] = {}
    for pattern in wanted:
        found = [name for name in rack.boards if fnmatchcase(name, pattern)]
        if not found:
            raise OperationError(f"the rack has no board {pattern!r}", hint=f"nearest: {nearest(pattern, rack.boards)}")
        names.update(dict.fromkeys(found))
    if not names:
        raise OperationError("no boards were given", hint='use names or patterns, e.g. ["line-*"]')
    return list(names)


def checked(
    boards: Sequence[str],
    firmware: FileName | None,
    config: Given | None,
    own: Sequence[Mapping[str, Any]] | None,
    serial_number: str | None,
    first_index: int,
) -> tuple[Plan, list[Device]]:
    """Return the common plan and the data for each board, after every check that needs no board.

    Raises:
        FirmwareError, OperationError: if something is wrong.
    """
    __tracebackhide__ = True
    remember_in(list(own or ()))  # mask its secrets before reporting errors
    table = FactoryConfig.table(config or {})
    if firmware is not None:
        table["firmware"] = resolve(firmware)
    if serial_number is not None:
        table["serial_number"] = serial_number
    settings = FactoryConfig.load(table)
    common = make_plan(settings.model_copy(update={"serial_number": None}))
    given = _by_board(boards, own or ())
    devices = [
        Device(board, first_index + number, given[board].serial_number or settings.serial_number, given[board].nvs)
        for number, board in enumerate(boards)
    ]
    check_serial_numbers(devices)
    for device in devices:  # find invalid values before the first board is accessed
        common.with_values(device.serial_for("00:00:00:00:00:00"), device.nvs)
    return common, devices


def _by_board(boards: Sequence[str], own: Sequence[Mapping[str, Any]]) -> dict[str, OwnData]:
    __tracebackhide__ = True
    named: dict[str, OwnData] = {}
    unnamed: list[OwnData] = []
    for number, table in enumerate(own):
        try:
            data = OwnData.model_validate(table)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise OperationError(f"devices[{number}].{where}: {first['msg']}") from None
        data = data.model_copy(update={"nvs": with_files(data.nvs)})
        if data.board is None:
            unnamed.append(data)
        elif data.board in named or data.board not in boards:
            raise OperationError(
                f"devices[{number}]: the board {data.board!r} is "
                + ("given twice" if data.board in named else "not in this batch")
            )
        else:
            named[data.board] = data
    rest = [board for board in boards if board not in named]
    if unnamed and len(unnamed) != len(rest):
        raise OperationError(
            f"there is data for {len(unnamed)} boards, but {len(rest)} boards to assign it to",
            hint="give one entry for each board, or name the board in each entry",
        )
    return {**dict.fromkeys(rest, OwnData()), **dict(zip(rest, unnamed, strict=False)), **named}


def run_batch(
    rack: Rack,
    plan: Plan,
    devices: Sequence[Device],
    folder: Path,
    *,
    look: bool = True,
    wait: float = 0.0,
    processes: int | None = None,
    open_board: OpenBoard | None = None,
    progress: Progress | None = None,
) -> BatchResult:
    """Program boards by a plan that was checked; see `batch_program`.

    Args:
        rack: the rack with the boards.
        plan: common to all boards.
        devices: data for each board.
        folder: of the record.
        look: whether finished boards are inspected.
        wait: seconds to wait for boards that are held.
        processes: see `batch_program`.
        open_board: leases and opens boards, if they are not simply those of the rack; then no process is started.
        progress: called with thousandths of boards done and total.

    Raises:
        OperationError: if the record cannot be written or read. StoppedError: from the progress callback.
    """
    begun = time.time()
    name = datetime.fromtimestamp(begun, UTC).strftime("%Y%m%dT%H%M%S.%f")[:-3] + "Z"
    count = 1 if open_board is not None else processes or _worth(rack, devices)
    if not AVAILABLE:
        count = 1
    desk = Desk([device.board for device in devices], progress)
    own, others = shares(devices, count, 0 if processes else _WORTH_A_PROCESS)
    with RecordBook(folder) as book:
        used = serial_numbers(folder)
        jobs = _jobs(name, rack, plan, others, folder, used, look, wait)
        batch = Batch(name, plan, open_board or leased(rack, wait), desk.told.put, book.write, used, look=look)
        with _processes(jobs, desk, book) as running, _threads(batch, own):

            def stop() -> None:
                batch.stop.set()
                _stop(running)

            results = desk.attend(stop)
        files = book.json_lines, book.csv
    passed = sum(result.passed for result in results)
    return BatchResult(name, passed, len(results) - passed, results, *files, 1 + len(others), time.time() - begun)


def _worth(rack: Rack, devices: Sequence[Device]) -> int:
    """Return the useful number of processes: real boards mostly wait for the port, virtual ones keep a core busy."""
    virtual = sum(rack.board(device.board).virtual for device in devices)
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(1, min(cores, virtual // _WORTH_A_PROCESS))


def _jobs(
    name: str,
    rack: Rack,
    plan: Plan,
    dealt: Sequence[Sequence[Device]],
    folder: Path,
    used: Mapping[str, str],
    look: bool,
    wait: float,
) -> list[Job]:
    config = cast("dict[str, Any]", as_plain(plan.config.model_dump(exclude_none=True)))
    return [
        Job(
            name=name,
            rack_name=rack.name,
            rack_path=str(rack.path) if rack.path else None,
            lock_dir=str(rack.lock_dir) if rack.lock_dir else None,
            specs=[rack.board(device.board).model_dump(mode="json", exclude_unset=True) for device in share],
            config=config,
            devices=[as_plain(asdict(device)) for device in share],
            folder=str(folder),
            confinement=TypeAdapter(Confinement | None).dump_python(confinement(), mode="json"),
            used=dict(used),
            look=look,
            wait=wait,
        )
        for share in dealt
    ]


@contextlib.contextmanager
def _threads(batch: Batch, devices: Sequence[Device]) -> Generator[None]:
    """Work on all boards in threads of this process."""
    threads = batch.start(devices)
    try:
        yield
    finally:
        batch.stop.set()
        for thread in threads:
            thread.join()


def _stop(running: Sequence[WorkProcess]) -> None:
    for process in running:
        process.stop()


@contextlib.contextmanager
def _processes(jobs: Sequence[Job], desk: Desk, book: RecordBook) -> Generator[list[WorkProcess]]:
    """Work on all boards in processes."""
    running: list[WorkProcess] = []
    try:
        for job in jobs:
            running.append(WorkProcess(job, desk.told.put, book))  # noqa: PERF401 - known even if a later one fails
        yield running
    except BaseException:
        _stop(running)
        raise
    finally:
        for process in running:
            process.close()
