"""The queue of those who wait for boards, so that everyone gets a turn, also who needs several boards at once.

Whoever waits has a ticket in the lock folder, which says what would do. Tickets are served in the order of their
arrival: a free board that an earlier ticket needs is not taken. So the first in the queue gets its boards as soon as
those who hold them now have released them, and no two can wait for each other.

A ticket counts while its file is locked, so that it ends with its process, and while the process looks at the queue:
one that is stopped (Ctrl-Z) keeps its place, but does not keep boards from others.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from pytest_esp.rack.holder import read_untrusted
from pytest_esp.rack.locks import held_here

if sys.platform != "win32":
    import fcntl

_FOLDER = "waiting"
_NAME = re.compile(r"\d{20}-(\d{1,10})-\d{1,10}\.ticket")
_STEM = re.compile(r"[A-Za-z0-9-]{1,100}")
_BEAT_EVERY, _ASLEEP_AFTER = 0.5, 3.0  # seconds
_LONGEST_TICKET = 1 << 18  # bytes
_MOST_TICKETS = 1000
_numbers = itertools.count()

Board = Sequence[str]
"""The names of the locks that a board needs."""


@dataclass(frozen=True)
class Ticket:
    """What a process waits for: *count* of *boards*."""

    pid: int
    count: int
    boards: Sequence[Board]


class Queue:
    """The queue of a lock folder, for one wait for *count* of *boards*.

    Args:
        is_free: whether a lock of that name is free.
    """

    def __init__(self, folder: str, boards: Sequence[Board], count: int, is_free: Callable[[str], bool]) -> None:
        self._folder = os.path.join(folder, _FOLDER)
        self._boards = boards
        self._count = count
        self._is_free = is_free
        self._arrival = f"{time.monotonic_ns():020d}-{os.getpid()}-{next(_numbers)}.ticket"
        self._descriptor: int | None = None
        self._beat = 0.0
        self._read: dict[str, Ticket | None] = {}
        self._seen: object = None
        self.length = 0
        """How many earlier tickets there were at the last look."""
        self.has_moved = False
        """Whether tickets or the boards that are free have changed since the last look."""

    # -- the own ticket

    def join(self) -> None:
        """Take a ticket, or show that this process still waits.

        Raises:
            OSError: if it cannot be written.
        """
        now = time.monotonic()
        if self._descriptor is not None and now - self._beat < _BEAT_EVERY:
            return
        self._beat = now
        path = os.path.join(self._folder, self._arrival)
        if self._descriptor is not None:
            try:
                os.utime(path)
                return
            except OSError:  # the folder was deleted
                self.close()
        self._descriptor = self._write(path)
        held_here.add(self)

    def _write(self, path: str) -> int:
        if not os.path.isdir(self._folder):
            with contextlib.suppress(FileExistsError):
                os.mkdir(self._folder)
                os.chmod(self._folder, 0o1777)
        part = f"{path}.part"
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            if sys.platform != "win32":
                fcntl.flock(
                    descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB
                )  # before it has its name: others remove free ones
                os.fchmod(descriptor, 0o644)
            os.write(descriptor, json.dumps([self._count, self._boards]).encode())
            if sys.platform == "win32":  # it does not rename open files
                os.close(descriptor)
            os.replace(part, path)
        except BaseException:
            os.close(descriptor)
            with contextlib.suppress(OSError):
                os.unlink(part)
            raise
        return descriptor

    def change(self, boards: Sequence[Board]) -> None:
        """Wait for other boards, at the same place in the queue."""
        if boards != self._boards:
            self.close()
            self._boards = boards

    def close(self) -> None:
        """Give the ticket back. Without one, this has no effect."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is None:
            return
        held_here.discard(self)
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(self._folder, self._arrival))
        if sys.platform != "win32":
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing is not enough if another thread forks meanwhile
            os.close(descriptor)

    def forget(self) -> None:
        """Close what a forked child has inherited."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    # -- the others

    def kept(self) -> dict[str, Ticket]:
        """Return the locks that earlier tickets keep, with the ticket that keeps each.

        They also keep what is not free now: it could become free before the caller takes it.
        """
        tickets = self._earlier()
        self.length = len(tickets)
        if not tickets:
            self._note(())
            return {}
        names = {name for ticket in tickets for board in ticket.boards for name in board}
        free = {name for name in names if self._is_free(name)}
        self._note((tuple(tickets), frozenset(free)))
        busy = {name: ticket for ticket in tickets for board in ticket.boards for name in board if name not in free}
        return busy | allot(tickets, free)

    def _note(self, seen: object) -> None:
        self.has_moved, self._seen = seen != self._seen, seen

    def _earlier(self) -> list[Ticket]:
        """Return the tickets before this one, in the order of their arrival."""
        try:
            with os.scandir(self._folder) as entries:
                found = list(itertools.islice((entry.name for entry in entries), _MOST_TICKETS))
        except OSError:
            return []
        names = sorted(name for name in found if name < self._arrival and _NAME.fullmatch(name))
        return [ticket for name in names if (ticket := self._live(name)) is not None]

    def _live(self, name: str) -> Ticket | None:
        """Return a ticket; None if its process has ended or is stopped, or it is not for boards that matter here."""
        path = os.path.join(self._folder, name)
        if not _is_waiting(path):
            return None
        if name not in self._read:
            self._read[name] = _parse(name, read_untrusted(path, _LONGEST_TICKET))
        return self._read[name]


def allot(tickets: Sequence[Ticket], free: set[str]) -> dict[str, Ticket]:
    """Return the free locks that *tickets* keep: each, in turn, those of the first boards that it can have."""
    left = set(free)
    kept: dict[str, Ticket] = {}
    for ticket in tickets:
        missing = ticket.count
        for board in ticket.boards:
            if missing and left.issuperset(board):
                missing -= 1
                left.difference_update(board)
                kept.update(dict.fromkeys(board, ticket))
    return kept


def _is_waiting(path: str) -> bool:
    """Return whether a ticket's process waits; remove the ticket of a process that has ended."""
    if sys.platform == "win32":
        with contextlib.suppress(OSError):
            return time.time() - os.stat(path).st_mtime < _ASLEEP_AFTER
        return False
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return time.time() - os.fstat(descriptor).st_mtime < _ASLEEP_AFTER
    except OSError:
        return False
    else:
        with contextlib.suppress(OSError):
            os.unlink(path)
        return False
    finally:
        os.close(descriptor)


def _parse(name: str, text: bytes | None) -> Ticket | None:
    """Return the ticket in a file's text; None if it is not one."""
    match = _NAME.fullmatch(name)
    try:
        values: Any = json.loads(text or b"")
    except (ValueError, RecursionError):
        return None
    if match is None or not isinstance(values, list) or len(cast("list[Any]", values)) != 2:
        return None
    count, boards = cast("list[Any]", values)
    if type(count) is not int or not isinstance(boards, list) or not 0 < count <= len(cast("list[Any]", boards)):
        return None
    if not all(_is_board(board) for board in cast("list[Any]", boards)):
        return None
    return Ticket(int(match[1]), count, tuple(tuple(board) for board in cast("list[list[str]]", boards)))


def _is_board(value: Any) -> bool:
    if not isinstance(value, list):
        return False
    return all(isinstance(name, str) and _STEM.fullmatch(name) for name in cast("list[Any]", value))
