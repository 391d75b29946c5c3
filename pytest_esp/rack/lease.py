"""The exclusive right to use a board, held by one process."""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import json
import os
import re
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from pytest_esp.errors import LeaseError
from pytest_esp.rack.identity import identity

if TYPE_CHECKING:
    from pytest_esp.rack.rack import Rack
    from pytest_esp.rack.spec import BoardSpec

ENVIRONMENT = "PYTEST_ESP_LOCK_DIR"
_SHARED = Path("/run/lock/pytest-esp")
_FIRST_PAUSE, _LONGEST_PAUSE = 0.001, 0.025
_REPORT_EVERY = 5.0
_HOST = socket.gethostname()


@dataclass(frozen=True)
class HolderRecord:
    """Who holds a board.

    Attributes:
        purpose: the test, session or tool call.
        since: seconds since the epoch.
    """

    board: str
    pid: int
    host: str
    user: str
    purpose: str
    since: float

    def describe(self) -> str:
        """Return it in words."""
        held = max(0.0, time.time() - self.since)
        return f"{self.board}: held for {held:.1f} s by {self.purpose} (pid {self.pid}, {self.user}@{self.host})"


OnWait = Callable[[list[HolderRecord], float], None]
"""Called when a wait begins and every few seconds, with the holders and the seconds waited."""


class Lease:
    """A held board; a context manager. The kernel frees it, too, however the process dies."""

    def __init__(self, spec: BoardSpec, lock: FileLock, record: Path, waited: float) -> None:
        self.spec = spec
        self.waited = waited
        self.since = time.time()
        self._lock = lock
        self._record = record

    @property
    def held(self) -> bool:
        """Whether it is still held."""
        return self._lock.is_locked

    def release(self) -> None:
        """Give the board back. Releasing twice is harmless."""
        if self._lock.is_locked:
            with contextlib.suppress(OSError):
                self._record.unlink()
            self._lock.release()

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()


def acquire(
    candidates: Sequence[BoardSpec],
    *,
    rack: Rack,
    purpose: str,
    count: int = 1,
    timeout: float | None = None,
    on_wait: OnWait | None = None,
) -> list[Lease]:
    """Take *count* of the *candidates*, whichever become free first.

    Several boards are taken all at once or not at all, so that two takers of the same boards never wait for each
    other. *timeout* is in seconds; None waits for ever.

    Raises:
        LeaseError: if they do not become free in time (it names the holders), or no lock can be made.
    """
    folder = lock_folder(rack)
    begun = time.monotonic()
    reported: float | None = None
    pause = _FIRST_PAUSE
    while True:
        leases = _try(candidates, rack, folder, purpose, count, begun)
        if leases:
            return leases
        waited = time.monotonic() - begun
        if timeout is not None and waited >= timeout:
            raise _timed_out(candidates, rack, count, waited)
        if on_wait is not None and (reported is None or waited - reported >= _REPORT_EVERY):
            reported = waited
            on_wait(holders(candidates, rack), waited)
        time.sleep(pause)
        pause = min(pause * 2, _LONGEST_PAUSE)


def _try(
    candidates: Sequence[BoardSpec], rack: Rack, folder: Path, purpose: str, count: int, begun: float
) -> list[Lease]:
    leases: list[Lease] = []
    try:
        for spec in candidates:
            lease = _try_one(spec, rack, folder, purpose, begun)
            if lease is not None:
                leases.append(lease)
            if len(leases) == count:
                return leases
    except BaseException:
        _release(leases)
        raise
    _release(leases)
    return []


def _release(leases: list[Lease]) -> None:
    for lease in leases:
        lease.release()


def _try_one(spec: BoardSpec, rack: Rack, folder: Path, purpose: str, begun: float) -> Lease | None:
    lock_path, record_path = _paths(spec, rack, folder)
    # `thread_local=False`: the lease belongs to the process, and may be released by another of its threads.
    lock = FileLock(lock_path, mode=0o666, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    except OSError as error:
        raise _no_lock(folder, error) from error
    lease = Lease(spec, lock, record_path, time.monotonic() - begun)
    record = HolderRecord(spec.name, os.getpid(), _HOST, _user(), purpose, lease.since)
    try:
        # Written beside and renamed, so that nobody reads half a record.
        part = record_path.with_suffix(f".{os.getpid()}.{threading.get_ident()}.part")
        part.write_text(json.dumps(asdict(record)), encoding="utf-8")
        part.replace(record_path)
    except OSError as error:
        lock.release()
        raise _no_lock(folder, error) from error
    return lease


def holder_of(spec: BoardSpec, rack: Rack) -> HolderRecord | None:
    """Return who holds the board; None if it is free. The lock decides: a record that a killed holder left is nothing.

    Raises:
        LeaseError: if the lock folder cannot be used.
    """
    lock_path, record_path = _paths(spec, rack, lock_folder(rack))
    if not lock_path.exists():
        return None
    lock = FileLock(lock_path, mode=0o666, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return _read_record(record_path, spec)
    except OSError as error:
        raise _no_lock(lock_path.parent, error) from error
    lock.release()
    return None


def holders(candidates: Sequence[BoardSpec], rack: Rack) -> list[HolderRecord]:
    """Return who holds any of the *candidates*."""
    return [record for spec in candidates if (record := holder_of(spec, rack)) is not None]


def _read_record(path: Path, spec: BoardSpec) -> HolderRecord:
    try:
        return HolderRecord(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # just taken, or just released
        return HolderRecord(spec.name, 0, _HOST, "?", "somebody who is just taking or releasing it", time.time())


def lock_folder(rack: Rack) -> Path:
    """Return the folder of the locks, made if it is missing: the same for all users of the machine, where possible.

    Raises:
        LeaseError: if it cannot be made or written.
    """
    named = os.environ.get(ENVIRONMENT) or rack.lock_dir
    folders = [Path(named)] if named else [_SHARED, Path(tempfile.gettempdir()) / "pytest-esp"]
    problem: OSError | None = None
    for folder in folders:
        try:
            if not folder.is_dir():
                folder.mkdir(parents=True, exist_ok=True)
                folder.chmod(0o1777)  # sticky: everybody makes locks, nobody removes another's
            if os.access(folder, os.W_OK | os.X_OK):
                return folder
            problem = PermissionError(13, "Permission denied")
        except OSError as error:
            problem = error
    assert problem is not None
    raise _no_lock(folders[-1], problem) from problem


def _paths(spec: BoardSpec, rack: Rack, folder: Path) -> tuple[Path, Path]:
    stem = file_stem(spec, rack)
    return folder / f"{stem}.lock", folder / f"{stem}.json"


def file_stem(spec: BoardSpec, rack: Rack) -> str:
    """Return a file name for a board: readable, and as unique as its identity."""
    key = identity(spec, rack)
    readable = re.sub(r"[^A-Za-z0-9]+", "-", key).strip("-")[-48:]
    return f"{readable}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return str(os.getuid()) if hasattr(os, "getuid") else "?"


def _no_lock(folder: Path, error: OSError) -> LeaseError:
    return LeaseError(
        f"no lock can be made in {folder}: {error.strerror or error}",
        hint=f"name a folder that every user of the boards may write: {ENVIRONMENT}, or lock_dir in [rack]",
    )


def _timed_out(candidates: Sequence[BoardSpec], rack: Rack, count: int, waited: float) -> LeaseError:
    held = [record.describe() for record in holders(candidates, rack)]
    wanted = f"{count} of {len(candidates)} boards" if count > 1 or len(candidates) > 1 else candidates[0].name
    return LeaseError(
        f"{wanted} did not become free in {waited:.1f} s; " + ("; ".join(held) or "the holder has just let go"),
        hint="wait longer (--esp-lock-timeout), or end the holder: its lock goes with it",
    )
