"""Leases: the exclusive right of one process to use a board."""

from __future__ import annotations

import contextlib
import errno
import functools
import getpass
import hashlib
import json
import os
import random
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from pytest_esp.errors import LeaseError, NoMatchError, PortError
from pytest_esp.processes import own_start, start_of
from pytest_esp.rack import labgrid
from pytest_esp.rack.holder import HOST, HolderRecord, PlaceHolder
from pytest_esp.rack.identity import identity, user_id

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    from pytest_esp.rack.labgrid import HeldPlace
    from pytest_esp.rack.rack import Rack
    from pytest_esp.rack.spec import BoardSpec

ENVIRONMENT = "PYTEST_ESP_LOCK_DIR"
_SHARED = Path("/run/lock/pytest-esp")
# TMPDIR may differ between users and shells; the lock folder must not.
_TEMPORARY = (Path("/tmp") if Path("/tmp").is_dir() else Path(tempfile.gettempdir())) / "pytest-esp"
LABGRID = "labgrid"
_FIRST_PAUSE, _LONGEST_PAUSE = 0.001, 0.025
_REPORT_EVERY = 5.0
_RESOLVE_EVERY = 1.0
# Seconds. A lock without a record is just being taken, released or checked: try again, even after the timeout.
_PASSING = 0.05


OnWait = Callable[[list[HolderRecord], float], None]
"""Called with the holders and the seconds waited, when a wait begins and every few seconds."""


class Lease:
    """A held board; a context manager. The kernel releases it when the process ends in any way.

    Attributes:
        place: the acquired place of a labgrid board; None for other boards.
    """

    def __init__(self, spec: BoardSpec, lock: FileLock, record: Path, waited: float) -> None:
        self.spec = spec
        self.waited = waited
        self.since = time.time()
        self._locks = [lock]
        self._record = record
        self.place: HeldPlace | None = None

    @property
    def held(self) -> bool:
        """Whether the board is still held; False in a forked child of the holder, and if a lab's place was lost."""
        return any(lock.is_locked for lock in self._locks) and (self.place is None or self.place.lost is None)

    def release(self) -> None:
        """Release the board. Has no effect the second time, or in a forked child."""
        try:
            lock = self._locks.pop()  # atomic: if two threads call this, only one releases
        except IndexError:
            return
        if lock.is_locked:
            if self.place is not None:
                self.place.release()
            with contextlib.suppress(OSError):
                self._record.unlink()
            lock.release()

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
    """Lease *count* of the *candidates*: those that become free first; of the free ones, the first in order.

    A labgrid board's place is also acquired in its lab.

    Several boards are taken all at once or not at all, so that two processes that need the same boards never deadlock.
    Candidates that are not plugged in are skipped if *count* others are left. A process does not get a board twice.
    *timeout* is in seconds; None waits for ever.

    Raises:
        LeaseError: if they do not become free in time (the message names the holders), or a lock cannot be created.
        NoMatchError: if the candidates are fewer than *count* pieces of hardware.
        PortError: if too few are plugged in.
    """
    folder = lock_folder(rack)
    begun = resolved = time.monotonic()
    slots = _slots(candidates, rack, folder, count)
    reported: float | None = None
    pause = _FIRST_PAUSE
    with _queues_of_labs(candidates, rack):
        while True:
            taken = _take(slots, count)
            now = time.monotonic()
            waited = now - begun
            if taken:
                return _sign(taken, purpose, waited)
            left = _LONGEST_PAUSE if timeout is None else timeout - waited
            if left > 0:
                if on_wait is not None and (reported is None or waited - reported >= _REPORT_EVERY):
                    reported = waited
                    on_wait(_holders(slots), waited)
                if count == 1:  # a wait for several boards must not keep single ones from others
                    for slot in slots:
                        slot.queue()
            elif left < -_PASSING or not _is_passing(slots, count):
                raise _timed_out(slots, count, waited)
            # The random pause keeps two processes that need several boards from colliding again and again.
            time.sleep(min(pause * random.uniform(0.5, 1.0), left if left > 0 else _FIRST_PAUSE))
            pause = min(pause * 2, _LONGEST_PAUSE)
            if now - resolved > _RESOLVE_EVERY:  # boards may appear, vanish, or return as another device node
                resolved = now
                with contextlib.suppress(PortError, NoMatchError):
                    slots = _slots(candidates, rack, folder, count)


@contextlib.contextmanager
def _queues_of_labs(candidates: Sequence[BoardSpec], rack: Rack) -> Generator[None]:
    """At the end, leave the labs' queues that a wait may have entered."""
    try:
        yield
    finally:
        for spec in candidates:
            if spec.backend == LABGRID:
                labgrid.leave_queue(spec, identity(spec, rack))


def holder_of(spec: BoardSpec, rack: Rack) -> HolderRecord | None:
    """Return who holds the board; None if it is free. Only the lock counts: a killed holder leaves its record behind.

    Raises:
        LeaseError: if the lock folder cannot be used.
        PortError: if the board is not plugged in.
    """
    return _slot(spec, rack, lock_folder(rack)).holder()


def holders(candidates: Sequence[BoardSpec], rack: Rack) -> list[HolderRecord]:
    """Return the holders of the *candidates*. Boards that are not plugged in do not have a holder.

    Raises:
        LeaseError: if the lock folder cannot be used.
    """
    found: list[HolderRecord] = []
    for spec in candidates:
        with contextlib.suppress(PortError):
            if (holder := holder_of(spec, rack)) is not None:
                found.append(holder)
    return found


class _Slot:
    """A candidate with its lock and its records."""

    def __init__(self, spec: BoardSpec, stem: str, folder: Path) -> None:
        self.spec = spec
        self.stem = stem
        self.folder = folder
        self.path = folder / f"{stem}.lock"
        # One record per user: in a sticky folder, a user cannot replace the record that another's killed process left.
        self.record = folder / f"{stem}.{user_id()}.json"
        # `thread_local=False`: the lease belongs to the process, and any of its threads may release it.
        # No soft locks: with them, a killed holder would keep its boards for ever.
        self.lock = FileLock(self.path, mode=0o666, thread_local=False, fallback_to_soft=False)

    def try_lock(self) -> bool:
        """Take the lock if it is free.

        Raises:
            LeaseError: if the lock cannot be created.
        """
        try:
            self.lock.acquire(blocking=False)
        except Timeout:
            return False
        except (OSError, NotImplementedError) as error:
            raise _no_lock(self.folder, error) from error
        return True

    def sign(self, purpose: str, waited: float) -> Lease:
        """Write the holder's record and return the lease; the lock was just taken.

        Raises:
            OSError: if the record cannot be written.
        """
        lease = Lease(self.spec, self.lock, self.record, waited)
        record = HolderRecord(
            self.spec.name, os.getpid(), HOST, _user_name(user_id()), purpose, lease.since, own_start(os.getpid())
        )
        # Written to a temporary file and renamed, so that nobody reads half a record.
        part = f"{self.record}.{os.getpid()}.{threading.get_ident()}.part"
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            os.write(descriptor, json.dumps(vars(record)).encode())
            if sys.platform != "win32":
                os.fchmod(descriptor, 0o644)  # whatever the umask: others must be able to read who holds the board
        finally:
            os.close(descriptor)
        os.replace(part, self.record)
        return lease

    def chances(self) -> set[str]:
        """Return the names of the hardware that this slot could get; other slots may share them."""
        return {self.stem}

    def queue(self) -> None:
        """Enter the board's queue if it has one. Local locks do not."""

    def unlock(self) -> None:
        """Release the lock, and remove the record that a killed process of this user may have left."""
        with contextlib.suppress(OSError):
            self.record.unlink()
        self.lock.release()

    def holder(self) -> HolderRecord | None:
        """Return who holds the board; None if it is free. The lock decides; the record only gives the name.

        Raises:
            LeaseError: if the lock cannot be checked.
        """
        if not self._is_locked():
            return None
        records = [record for path in self.folder.glob(f"{self.stem}.*.json") if (record := _read_record(path))]
        signed = max(records, key=lambda record: record.since, default=None)
        unsigned = "a process that is just taking or releasing it"
        return signed or HolderRecord(self.spec.name, 0, HOST, "?", unsigned, time.time())

    def _is_locked(self) -> bool:
        if sys.platform == "win32":
            if not self.path.exists():
                return False
            locked = not self.try_lock()
            self.lock.release()
            return locked
        # A shared lock for a moment, so that observers do not see each other.
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise _no_lock(self.folder, error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing is not enough if another thread forks meanwhile
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False


class _PlaceSlot(_Slot):
    """A labgrid board: after the lock of this machine, its place is acquired in the lab, which other machines share."""

    def __init__(self, spec: BoardSpec, stem: str, folder: Path, key: str) -> None:
        super().__init__(spec, stem, folder)
        self._key = key
        self._place: HeldPlace | None = None

    def try_lock(self) -> bool:
        """Take the lock, and the place, if both are free."""
        if not super().try_lock():
            return False
        try:
            self._place = labgrid.take(self.spec, self._key)
        finally:
            if self._place is None:
                super().unlock()
        return self._place is not None

    def sign(self, purpose: str, waited: float) -> Lease:
        """Return the lease on lock and place."""
        lease = super().sign(purpose, waited)
        lease.place = self._place
        return lease

    def unlock(self) -> None:
        """Release lock and place."""
        place, self._place = self._place, None
        if place is not None:
            place.release()
        super().unlock()

    def chances(self) -> set[str]:
        """Return the suitable places that are free."""
        return labgrid.free_places(self.spec)

    def queue(self) -> None:
        """Reserve the place in the lab for when it becomes free."""
        labgrid.queue(self.spec, self._key)

    def holder(self) -> HolderRecord | None:
        """Return who holds the board: from the lock's record, else from the lab.

        Raises:
            PortError: if the coordinator does not respond.
        """
        return super().holder() or labgrid.holder(self.spec)


def _slot(spec: BoardSpec, rack: Rack, folder: Path) -> _Slot:
    """Return a board's slot.

    Raises:
        PortError: if the board cannot be found.
    """
    stem = file_stem(spec, rack)
    if spec.backend != LABGRID:
        return _Slot(spec, stem, folder)
    labgrid.check(spec)
    return _PlaceSlot(spec, stem, folder, identity(spec, rack))


def _slots(candidates: Sequence[BoardSpec], rack: Rack, folder: Path, count: int) -> list[_Slot]:
    """Return slots for the candidates that are plugged in, one for each piece of hardware."""
    found: dict[str, _Slot] = {}
    aliases: list[str] = []
    missing: list[PortError] = []
    for spec in candidates:
        try:
            slot = _slot(spec, rack, folder)
        except PortError as error:
            missing.append(error)
            continue
        if slot.stem in found:
            aliases.append(f"{spec.name} is the same hardware as {found[slot.stem].spec.name}")
        else:
            found[slot.stem] = slot
    if len(found) >= count:
        return list(found.values())
    if missing:
        raise missing[0]
    raise NoMatchError(
        f"{count} boards were requested, but only {len(found)} match" + "".join(f"; {alias}" for alias in aliases)
    )


def _take(slots: list[_Slot], count: int) -> list[_Slot]:
    """Lock and return the first *count* free slots; if there are fewer, lock none and return an empty list."""
    # Acquiring and releasing a place takes seconds, so do not try if too few are free.
    if count > 1 and len(set[str]().union(*(slot.chances() for slot in slots))) < count:
        return []
    # If all are needed, every process locks them in the same order: the one that gets the first lock wins.
    order = sorted(slots, key=lambda slot: slot.stem) if 1 < count == len(slots) else slots
    taken: list[_Slot] = []
    try:
        for slot in order:
            if slot.try_lock():
                taken.append(slot)
                if len(taken) == count:
                    return [slot for slot in slots if slot in taken]
    except BaseException:
        _unlock(taken)
        raise
    _unlock(taken)
    return []


def _unlock(slots: list[_Slot]) -> None:
    for slot in slots:
        slot.unlock()


def _sign(taken: list[_Slot], purpose: str, waited: float) -> list[Lease]:
    try:
        return [slot.sign(purpose, waited) for slot in taken]
    except BaseException as error:
        _unlock(taken)
        if isinstance(error, OSError):
            raise _no_lock(taken[0].folder, error) from error
        raise


def _is_passing(slots: list[_Slot], count: int) -> bool:
    """Return whether *count* slots have no recorded holder: checking a lock also locks it, for microseconds."""
    signed = sum(1 for holder in _holders(slots) if holder.is_signed)
    return len(slots) - signed >= count


def _holders(slots: list[_Slot]) -> list[HolderRecord]:
    """Return the known holders of the slots."""
    found: list[HolderRecord] = []
    for slot in slots:
        with contextlib.suppress(PortError):
            if (holder := slot.holder()) is not None:
                found.append(holder)
    return found


def _read_record(path: Path) -> HolderRecord | None:
    """Return the record in a file; None if there is none, or its writer has ended."""
    try:
        record = HolderRecord(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    if record.host != HOST or record.started is None:
        return record
    return record if start_of(record.pid) == record.started else None


def lock_folder(rack: Rack) -> Path:
    """Return the lock folder, which all users of the machine share. It is created if it is missing.

    The first of these is used: ``PYTEST_ESP_LOCK_DIR``, ``[rack] lock_dir``, /run/lock/pytest-esp, or, if that cannot
    be created, /tmp/pytest-esp. An existing folder that is not writable is an error: with two lock folders, two users
    would both get the board.

    Raises:
        LeaseError: if it cannot be created or written to, or is not absolute.
    """
    named = os.environ.get(ENVIRONMENT) or rack.lock_dir
    if named:
        folder = Path(os.path.expanduser(named))
        if not folder.is_absolute():
            raise _no_lock(folder, ValueError("the path must be absolute"))
        return _usable(folder)
    if _SHARED.is_dir() or (_SHARED.parent.is_dir() and os.access(_SHARED.parent, os.W_OK | os.X_OK)):
        return _usable(_SHARED)
    return _usable(_TEMPORARY)


def _usable(folder: Path) -> Path:
    try:
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o1777)  # sticky: everyone can create locks, but only remove their own
    except OSError as error:
        raise _no_lock(folder, error) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise _no_lock(folder, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))
    return folder


def file_stem(spec: BoardSpec, rack: Rack) -> str:
    """Return a file name for a board: readable, and as unique as its identity.

    Raises:
        PortError: if its port is given by USB IDs, and no device or several devices match.
    """
    key = identity(spec, rack)
    readable = re.sub(r"[^A-Za-z0-9]+", "-", key).strip("-")[-48:]
    return f"{readable}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"


@functools.cache
def _user_name(number: str) -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return number


def _no_lock(folder: Path, error: Exception) -> LeaseError:
    return LeaseError(
        f"cannot create a lock in {folder}: {getattr(error, 'strerror', None) or error}",
        hint=f"set {ENVIRONMENT} or `lock_dir` in [rack] to a folder that every user of the boards can write to",
    )


def _timed_out(slots: list[_Slot], count: int, waited: float) -> LeaseError:
    held: list[str] = []
    hint = "increase the lock timeout, or end the process that holds the board"
    for slot in slots:
        try:
            if (holder := slot.holder()) is not None:
                held.append(holder.describe())
                if isinstance(holder, PlaceHolder):
                    hint = "increase the lock timeout, or ask the owner to release the place (labgrid-client)"
        except PortError as error:
            held.append(f"{slot.spec.name}: {error.message}")
    wanted = f"{count} of {len(slots)} boards" if count > 1 or len(slots) > 1 else slots[0].spec.name
    return LeaseError(
        f"timed out after {waited:.1f} s waiting for {wanted}; " + ("; ".join(held) or "it was just released"),
        hint=hint,
    )
