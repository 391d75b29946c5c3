"""Records of who holds a board. Those of other users are not trusted: they are bounded, checked and free of escapes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import math
import os
import re
import socket
import stat
import sys
import time
from dataclasses import dataclass
from typing import Any, cast

from pytest_esp.processes import is_gone

HOST = socket.gethostname()
_LONGEST_TEXT = 300
_LONGEST_RECORD = 4096  # bytes
_MOST_RECORDS = 64  # of one board
_LAST_MOMENT = 253402300799.0  # the end of the year 9999, in seconds since the epoch
# Control characters, and those that change the direction of text or hide in it; halves of surrogate pairs.
_UNPRINTABLE = re.compile(
    "[\\x00-\\x1f\\x7f-\\x9f\\u061c\\u200b-\\u200f\\u2028-\\u202e\\u2060-\\u206f\\ufeff\\ud800-\\udfff]+"
)


def _namespace() -> str:
    """Return an ID of the PID namespace, and of the machine since it was started."""
    parts: list[str] = []
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        parts.append(file.read().strip())
    with contextlib.suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


NAMESPACE = _namespace()


def printable(text: str) -> str:
    """Return *text* in one line without escapes, and no longer than useful."""
    text = _UNPRINTABLE.sub(" ", text).strip()
    return text if len(text) <= _LONGEST_TEXT else f"{text[: _LONGEST_TEXT // 2]} ... {text[-_LONGEST_TEXT // 2 :]}"


@dataclass(frozen=True)
class HolderRecord:
    """Who holds a board.

    Attributes:
        pid: the holder's process ID; 0 if it is not recorded yet.
        purpose: the test, session or tool call.
        since: the start of the lease, in seconds since the epoch.
        started: when the process *pid* started, in clock ticks since boot; None if unknown.
        namespace: the machine and its PID namespace in which *pid* is valid; empty if unknown.
    """

    board: str
    pid: int
    host: str
    user: str
    purpose: str
    since: float
    started: int | None = None
    namespace: str = ""

    def describe(self) -> str:
        """Return a description for messages."""
        who = "this process, " if self.is_near and self.pid == os.getpid() else ""
        where = " in another PID namespace" if self.host == HOST and not self.is_near else ""
        return (
            f"{self.board}: held for {self.seconds:.1f} s by {self.purpose} "
            f"({who}pid {self.pid}{where}, {self.user}@{self.host})"
        )

    @property
    def is_near(self) -> bool:
        """Whether *pid* is valid here: on this machine, in this PID namespace."""
        return self.host == HOST and self.namespace in ("", NAMESPACE)

    @property
    def seconds(self) -> float:
        """How long the board has been held, in seconds."""
        return max(0.0, time.time() - self.since)

    @property
    def is_signed(self) -> bool:
        """Whether the holder is known; if not, a process may be just taking, releasing or checking the board."""
        return True


@dataclass(frozen=True)
class UnsignedHolder(HolderRecord):
    """A holder without a record.

    Attributes:
        pid: 0 if it is not known either.
    """

    def describe(self) -> str:
        """Return a description for messages."""
        if not self.pid:
            return f"{self.board}: held by {self.purpose}"
        return f"{self.board}: held by pid {self.pid}, {self.user}@{self.host}, {self.purpose}"

    @property
    def is_signed(self) -> bool:
        """Whether the holder is known: it may still sign."""
        return False


@dataclass(frozen=True)
class PlaceHolder(HolderRecord):
    """The holder of a place of a labgrid lab, as its coordinator reports it.

    Attributes:
        pid: 0 if the holder is not pytest-esp.
        place: the place's name.
        others: the number of other suitable places, which are also held.
    """

    place: str = ""
    others: int = 0

    def describe(self) -> str:
        """Return a description for messages."""
        return printable(f"{self.board}: the labgrid place {self.place} is {self.how}")

    @property
    def how(self) -> str:
        """How the place is held, as a text that follows "is"."""
        more = f"; so are {self.others} other suitable places" if self.others else ""
        if not self.user:
            return f"{self.purpose or 'reserved for someone else'}{more}"
        what = f", {self.purpose}" if self.purpose else ""
        return f"held for {self.seconds:.1f} s by {self.user}@{self.host}{what}{more}"

    @property
    def is_signed(self) -> bool:
        """Whether the holder is known: always, from the coordinator."""
        return True


# -- their files


def write_record(folder: str, stem: str, user: str, record: HolderRecord) -> str:
    """Write the record of a board's holder and return its path.

    Raises:
        OSError: if it cannot be written.
    """
    # One record per user: in a sticky folder, a user cannot replace the record that another's killed process left.
    path = os.path.join(folder, f"{stem}.{user}.json")
    text = json.dumps({**vars(record), "purpose": printable(record.purpose)}).encode()
    try:
        _write(path, text)
    except FileExistsError:  # left by a killed process, or by another user
        part = f"{path}.{os.getpid()}.{time.monotonic_ns()}.part"
        _write(part, text)
        path = _rename(part, path)
    return path


def _write(path: str, text: bytes) -> None:
    """Write a new file; never through another user's link. Who reads half of it sees no record yet."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        os.write(descriptor, text)
        if sys.platform != "win32":
            os.fchmod(descriptor, 0o644)  # whatever the umask: others must be able to read who holds the board
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(path)
        raise
    finally:
        os.close(descriptor)


def _rename(part: str, path: str) -> str:
    """Give a record its name; another one if somebody else's file is in the way."""
    try:
        os.replace(part, path)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EACCES, errno.EISDIR, errno.ENOTEMPTY):
            with contextlib.suppress(OSError):
                os.unlink(part)
            raise
        path = f"{part.removesuffix('.part')}.json"
        os.replace(part, path)
    return path


def read_records(folder: str, stem: str, uid: int | None = None) -> list[HolderRecord]:
    """Return the records of a board whose processes run, as far as can be seen, of all users or one; newest first."""
    try:
        with os.scandir(folder) as entries:
            found = (entry.path for entry in entries if _is_record(entry.name, stem))
            paths = list(itertools.islice(found, _MOST_RECORDS))
    except OSError:
        return []
    records = [record for path in paths if (record := _read_record(path, uid)) is not None]
    return sorted(records, key=lambda record: record.since, reverse=True)


def _is_record(name: str, stem: str) -> bool:
    return name.startswith(f"{stem}.") and name.endswith(".json")


def _read_record(path: str, uid: int | None) -> HolderRecord | None:
    """Return the record in a file; None if there is none, or its writer has ended."""
    text = read_untrusted(path, _LONGEST_RECORD, uid)
    record = None if text is None else _parse(text)
    if record is None or not record.is_near or record.started is None:
        return record
    return None if is_gone(record.pid, record.started) else record


def read_untrusted(path: str, most: int, uid: int | None = None) -> bytes | None:
    """Return the contents of a file in a folder that others write to.

    None unless it is a regular file of at most *most* bytes, of the user *uid* if that is given.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        return None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or (uid is not None and status.st_uid != uid):
            return None
        data = os.read(descriptor, most + 1)
        return data if len(data) <= most else None
    except OSError:
        return None
    finally:
        os.close(descriptor)


_TYPES = {"board": str, "pid": int, "host": str, "user": str, "purpose": str, "since": float}


def _parse(text: bytes) -> HolderRecord | None:
    """Return the record in a file's text; None if it is not one."""
    try:
        values: Any = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict):
        return None
    fields = cast("dict[str, Any]", values)
    board, pid, host, user, purpose, since = (_checked(fields.get(name), kind) for name, kind in _TYPES.items())
    started, namespace = _checked(fields.get("started"), int), _checked(fields.get("namespace"), str)
    if None in (board, pid, host, user, purpose, since):
        return None
    if not 0 < pid < 1 << 31 or not 0 <= since <= _LAST_MOMENT:
        return None
    return HolderRecord(board, pid, host, user, purpose, min(since, time.time()), started, namespace or "")


def _checked(value: Any, kind: type) -> Any:
    """Return a value of the wanted kind, text without escapes; None if it is of another."""
    if kind is str and isinstance(value, str):
        return printable(value)
    if kind is float and type(value) in (int, float):
        return float(value) if abs(value) <= _LAST_MOMENT else math.inf
    return value if kind is int and type(value) is int else None
