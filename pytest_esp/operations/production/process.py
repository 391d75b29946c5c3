"""Runs boards of a batch in separate processes, so that CPU-bound work uses all cores.

Threads of one Python process share one core. This is enough for fifty real boards, which mostly wait for their ports,
but not for fifty simulated ones. A process takes its job from a pipe, so that no secret is in a file, its environment
or its command line, and reports the results of its boards on its output, line by line. It never outlives its caller.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Generator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pydantic import TypeAdapter

from pytest_esp.errors import EspError, OperationError
from pytest_esp.formats.files import Confinement, confined
from pytest_esp.link.link import Link
from pytest_esp.operations.production.config import FactoryConfig
from pytest_esp.operations.production.plan import make_plan
from pytest_esp.operations.production.record import BoardRecord, RecordBook, read_records
from pytest_esp.operations.production.work import Batch, BoardResult, Device, OpenBoard, Tell, Told
from pytest_esp.processes import spawn_guarded

if TYPE_CHECKING:
    from pytest_esp.rack.rack import Rack

PURPOSE = "batch programming"
AVAILABLE = sys.platform != "win32"
"""Whether this platform can end a process together with its caller."""

_GRACE = 20.0  # seconds for all boards of a process to reach a safe point
_LAST_WORDS = 2000  # characters
_HINT = "program the board again"


@dataclass(frozen=True)
class Job:
    """The job of one process, as plain data.

    Attributes:
        specs: the boards, as in boards.toml.
        confinement: a `Confinement` as plain data; None if any file may be opened.
        wait: seconds to wait for a board that is held.
    """

    name: str
    rack_name: str
    rack_path: str | None
    lock_dir: str | None
    specs: list[dict[str, Any]]
    config: dict[str, Any]
    devices: list[dict[str, Any]]
    folder: str
    confinement: dict[str, Any] | None
    used: dict[str, str]
    look: bool
    wait: float


class WorkProcess:
    """A process, and the thread that reads its output."""

    def __init__(self, job: Job, tell: Tell, book: RecordBook) -> None:
        self._job = job
        self._tell = tell
        self._book = book
        self._stopped = False
        self._reader, writer = os.pipe()
        job_end, our_end = os.pipe()
        command = [sys.executable, "-P", "-m", "pytest_esp.operations.production.process", str(job_end)]
        try:
            self._process = spawn_guarded(command, (job_end,), writer, os.environ)
        finally:
            os.close(writer)
            os.close(job_end)
        self._listener = threading.Thread(target=self._listen, name="production-listener", daemon=True)
        self._listener.start()
        with contextlib.suppress(BrokenPipeError), open(our_end, "w", encoding="utf-8") as pipe:
            json.dump(asdict(job), pipe)

    def stop(self) -> None:
        """Ask the process to bring its boards to a safe point and exit."""
        self._stopped = True
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGTERM)

    def close(self) -> None:
        """Wait for the process to exit, or kill it if this takes too long."""
        try:
            self._process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._listener.join(_GRACE)

    def _listen(self) -> None:
        left = {str(device["board"]) for device in self._job.devices}
        said = ""
        with open(self._reader, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                told = _told(line)
                if told is None:
                    said = (said + line)[-_LAST_WORDS:]
                    continue
                if told.result is not None:
                    left.discard(told.board)
                self._tell(told)
                if not left:
                    break
        if left:
            self._process.wait()  # it does not write any more
            self._give_up(left, said)

    def _give_up(self, boards: Set[str], said: str) -> None:
        """Record and report the results of boards whose process died."""
        last = said.strip().splitlines()[-1:] or ["no output"]
        error = f"the process that programmed it died: {last[0]}"
        written: dict[str, BoardRecord] = {}
        try:
            written = {one.board: one for one in read_records(Path(self._job.folder)) if one.batch == self._job.name}
        except OperationError as unread:
            error = f"{error}; {unread.message}"
        for board in boards:
            record = written.get(board)
            if record is None or record.outcome == "begun":
                record = self._failed(board, record, error)
            self._tell(Told(board, result=BoardResult.of(record, None if record.outcome == "passed" else _HINT)))

    def _failed(self, board: str, begun: BoardRecord | None, error: str) -> BoardRecord:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        if begun is not None:
            state = "unknown: it was being programmed"
            record = replace(begun, time=now, outcome="failed", stage="process", state=state, error=error)
        else:
            record = BoardRecord(
                time=now,
                batch=self._job.name,
                board=board,
                outcome="failed",
                stage="process",
                state="nothing was touched",
                error="the batch was stopped" if self._stopped else error,
            )
        with contextlib.suppress(OperationError):  # with a full disk, the result still reports it
            self._book.write(record)
        return record


def _told(line: str) -> Told | None:
    if not line.startswith('{"board"'):
        return None
    try:
        table = cast("dict[str, Any]", json.loads(line))
        result = table.pop("result")
        return Told(**table, result=BoardResult(**result) if result else None)
    except (ValueError, TypeError, KeyError):
        return None


def as_plain(value: Any) -> Any:
    """Return NVS values in a form that JSON can represent: bytes as blobs in hex."""
    if isinstance(value, bytes):
        return {"type": "blob", "value": value.hex()}
    if isinstance(value, Mapping):
        given = cast("Mapping[str, Any]", value)
        if isinstance(given.get("value"), bytes):
            return as_plain(given["value"])
        return {str(key): as_plain(item) for key, item in given.items()}
    if isinstance(value, Path):
        return str(value)
    return value


def leased(rack: Rack, wait: float) -> OpenBoard:
    """Return a function that leases boards of *rack* and opens them."""
    from pytest_esp.boards.registry import make_board
    from pytest_esp.rack.lease import acquire

    @contextlib.contextmanager
    def open_board(name: str) -> Generator[Link]:
        spec = rack.board(name)
        (lease,) = acquire([spec], rack=rack, purpose=PURPOSE, timeout=wait)
        with lease, Link(make_board(spec, rack), holder=PURPOSE) as link:
            yield link

    return open_board


def shares(devices: Sequence[Device], count: int, head_start: int) -> tuple[list[Device], list[list[Device]]]:
    """Return the devices of the caller's own process, and those of each other process.

    There are *count* processes in total; the caller has worked on *head_start* boards when the others have started.
    """
    theirs = max(0, len(devices) - head_start) // count * (count - 1) if count > 1 else 0
    dealt, own = devices[:theirs], devices[theirs:]
    return list(own), [share for share in (list(dealt[number :: count - 1]) for number in range(count - 1)) if share]


def main(arguments: Sequence[str]) -> int:
    """Do the job that is read from the pipe whose descriptor is the argument."""
    with open(int(arguments[0]), encoding="utf-8") as pipe:
        job = Job(**json.load(pipe))
    with confined(TypeAdapter(Confinement | None).validate_python(job.confinement)):
        return _work(job)


def _work(job: Job) -> int:
    from pytest_esp.rack.rack import Rack
    from pytest_esp.rack.spec import BoardSpec

    boards = {str(spec["name"]): BoardSpec.model_validate(spec) for spec in job.specs}
    rack = Rack(
        job.rack_name,
        Path(job.rack_path) if job.rack_path else None,
        boards,
        Path(job.lock_dir) if job.lock_dir else None,
    )
    out = sys.stdout.buffer
    lock = threading.Lock()

    def tell(told: Told) -> None:
        with lock:
            out.write((json.dumps(asdict(told)) + "\n").encode())
            out.flush()

    plan = make_plan(FactoryConfig.load(job.config))
    with RecordBook(Path(job.folder)) as book:
        batch = Batch(job.name, plan, leased(rack, job.wait), tell, book.write, job.used, look=job.look)

        def stop(_number: int, _frame: object) -> None:
            batch.stop.set()

        signal.signal(signal.SIGTERM, stop)
        for thread in batch.start([Device(**device) for device in job.devices]):
            thread.join()
    return 0


if __name__ == "__main__":
    try:
        code = main(sys.argv[1:])
    except EspError as error:  # the caller has checked everything: a file has changed since
        print(error.message)
        code = 1
    sys.stdout.flush()
    os._exit(code)  # all boards are closed; a regular exit takes 0.1 s, for which the caller would wait
