"""Leases: the exclusive right of one process to use a board."""

from __future__ import annotations

import contextlib
import errno
import functools
import getpass
import hashlib
import os
import random
import re
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from pytest_esp.errors import LeaseError, NoMatchError, PortError
from pytest_esp.processes import own_start
from pytest_esp.rack import labgrid
from pytest_esp.rack.holder import (
    HOST,
    NAMESPACE,
    HolderRecord,
    PlaceHolder,
    UnsignedHolder,
    read_records,
    write_record,
)
from pytest_esp.rack.identity import (
    STATE_ENVIRONMENT,
    canonical_port,
    files_of,
    identity,
    kernel_file,
    state_folder,
    user_id,
)
from pytest_esp.rack.locks import FileLatch, MachineLock
from pytest_esp.rack.presence import check_present, check_reachable
from pytest_esp.rack.waiting import Queue, Ticket

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
_random = random.SystemRandom()  # a seeded global generator would make all processes pause alike

OnWait = Callable[[list[HolderRecord], float], None]
"""Called with the holders and the seconds waited, when a wait begins and every few seconds."""


class Lease:
    """A held board; a context manager. The kernel releases it when the process ends in any way.

    Attributes:
        place: the acquired place of a labgrid board; None for other boards.
    """

    def __init__(self, spec: BoardSpec, locks: Sequence[BoardLock], waited: float) -> None:
        self.spec = spec
        self.waited = waited
        self.since = time.time()
        self.thread = threading.get_ident()
        self._locks = [locks]
        self.place: HeldPlace | None = None
        _leases.add(self)

    @property
    def held(self) -> bool:
        """Whether the board is still held.

        False in a forked child of the holder, if a lab's place was lost, and if the lock folder or a lock in it was
        deleted: others may then take the board, unless they are on this machine and it runs Linux.
        """
        held = [lock.is_held for locks in self._locks for lock in locks]
        return bool(held) and all(held) and (self.place is None or self.place.lost is None)

    def release(self) -> None:
        """Release the board. Has no effect the second time, or in a forked child."""
        try:
            locks = self._locks.pop()  # atomic: if two threads call this, only one releases
        except IndexError:
            return
        if self.place is not None:
            self.place.release()
        for lock in locks:
            lock.unlock()
        _leases.discard(self)

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()


_leases: weakref.WeakSet[Lease] = weakref.WeakSet()
"""The leases of this process."""


def is_leased(spec: BoardSpec) -> bool:
    """Return whether this process holds the board."""
    return any(lease.spec == spec and lease.held for lease in list(_leases))


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
    Who waits longest gets its boards first (see `waiting`), except that a thread that holds boards does not queue for
    more: those before it may wait for what it holds. Candidates that are not plugged in are skipped if *count* others
    are left. A process does not get a board twice. *timeout* is in seconds; None waits for ever.

    Raises:
        LeaseError: if they do not become free in time (the message names the holders), or a lock cannot be created.
        NoMatchError: if the candidates are fewer than *count* pieces of hardware.
        PortError: if too few are plugged in.
    """
    folder = lock_folder(rack)
    begun = resolved = time.monotonic()
    slots = _slots(candidates, rack, folder, count)
    queue = _queue(slots, folder, count)
    has_boards = any(lease.thread == threading.get_ident() and lease.held for lease in list(_leases))
    reported: float | None = None
    pause = _FIRST_PAUSE
    with _queues_of_labs(candidates, rack), contextlib.closing(queue):
        while True:
            kept = {} if has_boards else queue.kept()
            taken = _take([slot for slot in slots if slot.names.isdisjoint(kept)], count)
            now = time.monotonic()
            waited = now - begun
            if taken and len(slots) > count and (gone := _unreachable(taken)):
                _unlock(taken)
                slots = [slot for slot in slots if slot not in gone]
                continue
            if taken:
                return _sign(taken, purpose, waited)
            left = _LONGEST_PAUSE if timeout is None else timeout - waited
            if left > 0:
                if on_wait is not None and (reported is None or waited - reported >= _REPORT_EVERY):
                    reported = waited
                    on_wait(_holders(slots), waited)
                with contextlib.suppress(OSError):  # without a ticket, the wait is only less fair
                    queue.join()
                if count == 1:  # a wait for several boards must not keep single ones of a lab from others
                    for slot in slots:
                        slot.queue()
            elif left < -_PASSING or not _is_passing(slots, count):
                raise _timed_out(slots, count, waited, kept)
            if queue.has_moved:
                pause = _FIRST_PAUSE * (1 + queue.length)
            # The random pause keeps two processes that need several boards from colliding again and again.
            time.sleep(min(pause * _random.uniform(0.5, 1.0), left if left > 0 else _FIRST_PAUSE))
            pause = min(pause * 2, _LONGEST_PAUSE)
            if now - resolved > _RESOLVE_EVERY:  # boards may appear, vanish, or return as another device node
                resolved = now
                with contextlib.suppress(PortError, NoMatchError):
                    slots = _slots(candidates, rack, folder, count)
                    queue.change([slot.stems for slot in slots])


def _queue(slots: Sequence[_Slot], folder: Path, count: int) -> Queue:
    def is_free(stem: str) -> bool:
        try:
            return not FileLatch(f"{folder}/{stem}.lock").is_locked()
        except OSError:
            return False

    return Queue(str(folder), [slot.stems for slot in slots], count, is_free)


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


class BoardLock:
    """A lock of a board or of a file that it writes, with the record of its holder.

    Args:
        scope: what the lock holds for beside its lock folder; empty: the whole machine.
        device: see `MachineLock`.
    """

    def __init__(self, folder: Path, stem: str, scope: str = "", device: str | None = None) -> None:
        self.stem = stem
        self._folder = folder
        self._lock = MachineLock(f"{folder}/{stem}.lock", f"{scope}/{stem}" if scope else stem, device)
        self._record: str | None = None

    @property
    def is_held(self) -> bool:
        """See `MachineLock.is_held`."""
        return self._lock.is_held

    def try_lock(self) -> bool:
        """Take the lock if it is free.

        Raises:
            LeaseError: if the lock cannot be created.
        """
        try:
            try:
                return self._lock.try_lock()
            except FileNotFoundError:  # the folder was deleted
                _usable(self._folder)
                return self._lock.try_lock()
        except (OSError, NotImplementedError) as error:
            raise _no_lock(self._folder, error) from error

    def sign(self, board: str, purpose: str, since: float) -> None:
        """Write the holder's record.

        Raises:
            OSError: if it cannot be written.
        """
        user = user_id()
        record = HolderRecord(
            board, os.getpid(), HOST, _user_name(user), purpose, since, own_start(os.getpid()), NAMESPACE
        )
        self._record = write_record(str(self._folder), self.stem, user, record)

    def unlock(self) -> None:
        """Release the lock and remove its record; has no effect in a forked child."""
        record, self._record = self._record, None
        if record is not None and self._lock.is_locked:
            with contextlib.suppress(OSError):
                os.unlink(record)
        self._lock.unlock()

    def holder(self, board: str) -> HolderRecord | None:
        """Return who holds the lock of *board*; None if it is free. The record only gives the name.

        Raises:
            LeaseError: if the lock cannot be checked.
        """
        try:
            locker = self._lock.locker()
        except OSError as error:
            raise _no_lock(self._folder, error) from error
        if locker is None:
            return None
        for record in read_records(str(self._folder), self.stem, locker.uid):
            if locker.pid in (None, record.pid) or not record.is_near:
                return record
        if locker.pid is None or locker.uid is None:
            return UnsignedHolder(board, 0, HOST, "?", "a process that is just taking or releasing it", time.time())
        why = f"which has no record in {self._folder}: it is just taking or releasing it, or uses another lock folder"
        return UnsignedHolder(board, locker.pid, HOST, _name_of(locker.uid), why, time.time())


class _Slot:
    """A candidate with its locks: its own, and those of its files."""

    def __init__(self, spec: BoardSpec, locks: Sequence[BoardLock], folder: Path) -> None:
        self.spec = spec
        self.folder = folder
        self.locks = locks
        self.stems = [lock.stem for lock in locks]
        self.names = frozenset(self.stems)

    @property
    def stem(self) -> str:
        """The name of the board's own lock."""
        return self.stems[0]

    def try_lock(self) -> bool:
        """Take the locks if all are free.

        Raises:
            LeaseError: if a lock cannot be created.
        """
        return try_locks(self.locks)

    def sign(self, purpose: str, waited: float) -> Lease:
        """Write the holder's records and return the lease; the locks were just taken.

        Raises:
            OSError: if a record cannot be written.
        """
        lease = Lease(self.spec, self.locks, waited)
        for lock in self.locks:
            lock.sign(self.spec.name, purpose, lease.since)
        return lease

    def chances(self) -> set[str]:
        """Return the names of the hardware that this slot could get; other slots may share them."""
        return {self.stem}

    def queue(self) -> None:
        """Enter the board's queue in its lab. Others do not have one."""

    def unlock(self) -> None:
        """Release the locks."""
        for lock in self.locks:
            lock.unlock()

    def holder(self) -> HolderRecord | None:
        """Return who holds the board or one of its files; None if they are free.

        Raises:
            LeaseError: if a lock cannot be checked.
        """
        return next((holder for lock in self.locks if (holder := lock.holder(self.spec.name))), None)


def try_locks(locks: Sequence[BoardLock]) -> bool:
    """Take all *locks*, or none if one is not free; return whether they were taken.

    Raises:
        LeaseError: if a lock cannot be created.
    """
    taken: list[BoardLock] = []
    try:
        for lock in locks:
            if not lock.try_lock():
                break
            taken.append(lock)
    finally:
        if len(taken) < len(locks):
            for lock in taken:
                lock.unlock()
    return len(taken) == len(locks)


class _PlaceSlot(_Slot):
    """A labgrid board: after the lock of this machine, its place is acquired in the lab, which other machines share."""

    def __init__(self, spec: BoardSpec, locks: Sequence[BoardLock], folder: Path, key: str) -> None:
        super().__init__(spec, locks, folder)
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
    board_lock = BoardLock(folder, file_stem(spec, rack), _scope(spec), kernel_file(spec))
    locks = [board_lock, *file_locks(files_of(spec), folder)]
    if spec.console_port:
        stem = _stem(canonical_port(spec.console_port, spec.name))
        locks.append(BoardLock(folder, stem, _scope(spec), kernel_file(spec, of_console=True)))
    if spec.backend != LABGRID:
        return _Slot(spec, locks, folder)
    labgrid.check(spec)
    return _PlaceSlot(spec, locks, folder, identity(spec, rack))


def _scope(spec: BoardSpec) -> str:
    """Return what a board is unique in: the machine, or for a virtual board the folder of its flash."""
    is_own = spec.virtual or (spec.port or "").lower().startswith("loop:")
    return _state_scope(*map(os.environ.get, (STATE_ENVIRONMENT, "XDG_STATE_HOME", "HOME"))) if is_own else ""


@functools.lru_cache(maxsize=16)
def _state_scope(*_environment: str | None) -> str:
    return _digest(os.path.abspath(state_folder()))


def file_locks(files: Iterable[str], folder: Path) -> list[BoardLock]:
    """Return the locks of files, each as `files_of` names it."""
    return [BoardLock(folder, f"file-{_digest(file)}") for file in files]


def _slots(candidates: Sequence[BoardSpec], rack: Rack, folder: Path, count: int) -> list[_Slot]:
    """Return slots for the candidates that are plugged in, one for each piece of hardware."""
    found: list[_Slot] = []
    aliases: list[str] = []
    missing: list[PortError] = []
    for spec in candidates:
        try:
            check_present(spec)
            slot = _slot(spec, rack, folder)
        except PortError as error:
            missing.append(error)
            continue
        other = next((other for other in found if not slot.names.isdisjoint(other.names)), None)
        if other is None:
            found.append(slot)
        elif slot.stem == other.stem:
            aliases.append(f"{spec.name} is the same hardware as {other.spec.name}")
        else:
            shared = "file" if any(name.startswith("file-") for name in slot.names & other.names) else "port"
            aliases.append(f"{spec.name} uses the same {shared} as {other.spec.name}")
    if len(found) >= count:
        return found
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


def _unreachable(slots: list[_Slot]) -> list[_Slot]:
    """Return those whose remote ports refuse connections; they are locked, so the look disturbs nobody."""
    found: list[_Slot] = []
    for slot in slots:
        try:
            check_reachable(slot.spec)
        except PortError:
            found.append(slot)
    return found


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
        folder = Path(os.path.expanduser(named) if str(named).startswith("~") else named)
        if not folder.is_absolute():
            raise _no_lock(folder, ValueError("the path must be absolute"))
        return _usable(folder)
    if _SHARED.is_dir() or (_SHARED.parent.is_dir() and os.access(_SHARED.parent, os.W_OK | os.X_OK)):
        return _usable(_SHARED)
    return _usable(_TEMPORARY)


def _usable(folder: Path) -> Path:
    try:
        if not os.path.isdir(folder):
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
    return _stem(identity(spec, rack))


def _stem(key: str) -> str:
    readable = re.sub(r"[^A-Za-z0-9]+", "-", key).strip("-")[-48:]
    return f"{readable}-{_digest(key)}"


def _digest(text: str) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:12]


@functools.cache
def _user_name(number: str) -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return number


@functools.cache
def _name_of(uid: int) -> str:
    try:
        import pwd

        return pwd.getpwuid(uid).pw_name
    except (ImportError, KeyError):
        return str(uid)


def _no_lock(folder: Path, error: Exception) -> LeaseError:
    code = getattr(error, "errno", None)
    if code in (errno.EMFILE, errno.ENFILE):
        hint = "close files, or raise the limit of open files (`ulimit -n`); a lease needs two descriptors"
    elif code in (errno.ENOSPC, errno.EDQUOT):
        hint = "free disk space or inodes there"
    else:
        hint = f"set {ENVIRONMENT} or `lock_dir` in [rack] to a folder that every user of the boards can write to"
    return LeaseError(f"cannot create a lock in {folder}: {getattr(error, 'strerror', None) or error}", hint=hint)


def _timed_out(slots: list[_Slot], count: int, waited: float, kept: Mapping[str, Ticket]) -> LeaseError:
    held: list[str] = []
    hint = "increase the lock timeout, or end the process that holds the board"
    for slot in slots:
        try:
            if (holder := slot.holder()) is not None:
                held.append(holder.describe())
                if isinstance(holder, PlaceHolder):
                    hint = "increase the lock timeout, or ask the owner to release the place (labgrid-client)"
            elif ticket := next((kept[stem] for stem in slot.stems if stem in kept), None):
                several = f" for {ticket.count} boards" if ticket.count > 1 else ""
                held.append(f"{slot.spec.name}: kept for pid {ticket.pid}, which has waited longer{several}")
        except PortError as error:
            held.append(f"{slot.spec.name}: {error.message}")
    wanted = f"{count} of {len(slots)} boards" if count > 1 or len(slots) > 1 else slots[0].spec.name
    return LeaseError(
        f"timed out after {waited:.1f} s waiting for {wanted}; " + ("; ".join(held) or "it was just released"),
        hint=hint,
    )
