"""Locks that one process of the machine holds at a time. The kernel frees them when it ends, however it ends.

A lock is a file in the lock folder. On Linux it is also a name in the kernel (the address of an abstract socket), which
needs no folder: users with different lock folders exclude each other, and so do those who come after the folder was
deleted. The kernel also says which process has the name. Processes in a network namespace of their own do not see
the names of others; for a serial port there is a third lock, on the device's own file in /sys. That is one file in
every sandbox with the host's /sys. A container has a /sys of its own: it needs a lock folder that it shares.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import sys
import weakref
from dataclasses import dataclass
from typing import Protocol

if sys.platform == "win32":
    from filelock import FileLock, Timeout
else:
    import fcntl

_ATTEMPTS = 100
_FORBIDDEN = (errno.EPERM, errno.EACCES, errno.EAFNOSUPPORT)  # in a sandbox without Unix sockets: files must do
_OBSERVERS = 1024
"""How many connections of observers the kernel keeps while a name is held; nobody accepts them."""


@dataclass(frozen=True)
class Locker:
    """The process that holds a lock, as the kernel sees it; None where it does not say."""

    pid: int | None = None
    uid: int | None = None


class Inherited(Protocol):
    """What a forked child inherits from a holder, and must not keep when the holder is killed."""

    def forget(self) -> None:
        """Close it, without freeing the lock of the parent."""


held_here: weakref.WeakSet[Inherited] = weakref.WeakSet()
"""What this process holds; a forked child forgets it at once."""


def _forget_all() -> None:
    for held in list(held_here):
        held.forget()
    held_here.clear()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_forget_all)


class KernelName:
    """A name that one process of this network namespace can have at a time. Only Linux has such names.

    Only its holder's end or `unlock` frees it.
    """

    def __init__(self, name: str) -> None:
        self._address = f"\0pytest-esp/{name}"
        self._socket: socket.socket | None = None

    def try_lock(self) -> bool:
        """Take the name if it is free; return whether this object has it. True where there are no such names.

        Raises:
            OSError: if too many files are open.
        """
        if sys.platform != "linux":
            return True
        try:
            taken = socket.socket(socket.AF_UNIX)
        except OSError as error:
            if error.errno in _FORBIDDEN:
                return True
            raise
        try:
            taken.bind(self._address)
            taken.listen(_OBSERVERS)
        except OSError as error:
            taken.close()
            if error.errno == errno.EADDRINUSE:
                return False
            if error.errno in _FORBIDDEN:
                return True
            raise
        self._socket = taken
        return True

    def forget(self) -> None:
        """Give the name back, unless another process has inherited it."""
        taken, self._socket = self._socket, None
        if taken is not None:
            taken.close()

    def locker(self) -> Locker | None:
        """Return who has the name; None if nobody has. This does not get in the way of those who want it."""
        if sys.platform != "linux":
            return None
        try:
            with socket.socket(socket.AF_UNIX) as probe:
                probe.setblocking(False)
                probe.connect(self._address)
                pid, uid, _ = struct.unpack("3i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        except BlockingIOError:  # more observers than the kernel keeps
            return Locker()
        except OSError as error:
            if error.errno == errno.ECONNREFUSED or error.errno in _FORBIDDEN:
                return None
            raise
        return Locker(pid or None, uid)  # 0: a process that cannot be seen from this PID namespace


if sys.platform == "win32":

    class FileLatch:
        """A lock file."""

        def __init__(self, path: str) -> None:
            # `thread_local=False`: any thread of the process may release it.
            # No soft locks: with them, a killed holder would keep its boards for ever.
            self.path = path
            self._lock = FileLock(path, mode=0o666, thread_local=False, fallback_to_soft=False)

        @property
        def is_intact(self) -> bool:
            """Whether this object holds the lock: Windows does not delete open files."""
            return self._lock.is_locked

        def try_lock(self) -> bool:
            """Take the lock if it is free.

            Raises:
                OSError: if the file cannot be created.
            """
            try:
                self._lock.acquire(blocking=False)
            except Timeout:
                return False
            return True

        def unlock(self) -> None:
            """Release the lock."""
            self._lock.release()

        def forget(self) -> None:
            """Has no effect: Windows does not fork."""

        def is_locked(self) -> bool:
            """Return whether some process holds the lock."""
            if not os.path.exists(self.path):
                return False
            locked = not self.try_lock()
            self._lock.release()
            return locked

else:

    class FileLatch:
        """A lock file, locked with flock(2)."""

        def __init__(self, path: str) -> None:
            self.path = path
            self._descriptor: int | None = None

        @property
        def is_intact(self) -> bool:
            """Whether this object holds the lock, and its file is still the one that others would lock."""
            descriptor = self._descriptor
            if descriptor is None:
                return False
            try:
                here, there = os.fstat(descriptor), os.stat(self.path, follow_symlinks=False)
            except OSError:
                return False
            return (here.st_ino, here.st_dev) == (there.st_ino, there.st_dev)

        def try_lock(self) -> bool:
            """Take the lock if it is free.

            Raises:
                OSError: if the file cannot be created.
            """
            for _ in range(_ATTEMPTS):
                descriptor = _open(self.path)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    os.close(descriptor)
                    return False
                except OSError:
                    os.close(descriptor)
                    raise
                self._descriptor = descriptor
                if self.is_intact:
                    return True
                self.forget()  # somebody has deleted the file meanwhile
            raise OSError(errno.ESTALE, f"{self.path} is deleted again and again")

        def unlock(self) -> None:
            """Release the lock."""
            if self._descriptor is not None:
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)  # closing is not enough if another thread forks meanwhile
                self.forget()

        def forget(self) -> None:
            """Close the file, which a forked child has inherited."""
            descriptor, self._descriptor = self._descriptor, None
            if descriptor is not None:
                os.close(descriptor)

        def is_locked(self) -> bool:
            """Return whether some process holds the lock.

            Raises:
                OSError: if this cannot be found out.
            """
            try:
                descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            except FileNotFoundError:
                return False
            # A shared lock for a moment, so that observers do not see each other.
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
                fcntl.flock(descriptor, fcntl.LOCK_UN)
            except BlockingIOError:
                return True
            finally:
                os.close(descriptor)
            return False

    class DeviceLatch(FileLatch):
        """A file of the kernel's, locked without being written, which has no side effects; every user may do that.

        Where it cannot be opened, the other locks must do.
        """

        def try_lock(self) -> bool:
            """Take the lock if it is free."""
            try:
                descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                return True
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(descriptor)
                return not isinstance(error, BlockingIOError)
            self._descriptor = descriptor
            return True

    def _open(path: str) -> int:
        """Open a lock file; create it, for all users, if it is missing."""
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        for _ in range(_ATTEMPTS):
            # Never O_CREAT for a file that exists: the kernel refuses it for others' files in a sticky folder.
            with contextlib.suppress(FileNotFoundError):
                return os.open(path, flags)
            with contextlib.suppress(FileExistsError):
                descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666)
                os.fchmod(descriptor, 0o666)  # whatever the umask
                return descriptor
        raise OSError(errno.ESTALE, f"{path} is deleted again and again")


class MachineLock:
    """A lock file and, on Linux, a kernel name and perhaps a device's own file; held if all are.

    Args:
        path: the lock file.
        name: at most 90 characters.
        device: a file of the kernel's, which is locked, too.
    """

    def __init__(self, path: str, name: str, device: str | None = None) -> None:
        self._name = KernelName(name)
        self._device = None if device is None or sys.platform == "win32" else DeviceLatch(device)
        self._file = FileLatch(path)
        self._is_held = False

    @property
    def is_held(self) -> bool:
        """Whether this object holds the lock; False in a forked child of the holder, and once the file was deleted."""
        return self._is_held and self._file.is_intact

    @property
    def is_locked(self) -> bool:
        """Whether this object took the lock and has not released it; False in a forked child."""
        return self._is_held

    def try_lock(self) -> bool:
        """Take the lock if it is free; return whether this object took it.

        Raises:
            OSError: if it cannot be created.
        """
        if self._is_held or not self._name.try_lock():
            return False
        try:
            self._is_held = (self._device is None or self._device.try_lock()) and self._file.try_lock()
        finally:
            if not self._is_held:
                self._unlock_device()
                self._name.forget()
        if self._is_held:
            held_here.add(self)
        return self._is_held

    def unlock(self) -> bool:
        """Release the lock; return whether this process held it, which a forked child of the holder never did."""
        held, self._is_held = self._is_held, False
        if held:
            held_here.discard(self)
            self._file.unlock()
            self._unlock_device()
            self._name.forget()
        return held

    def _unlock_device(self) -> None:
        if self._device is not None:
            self._device.unlock()

    def forget(self) -> None:
        """Close what a forked child has inherited."""
        self._is_held = False
        self._file.forget()
        if self._device is not None:
            self._device.forget()
        self._name.forget()

    def locker(self) -> Locker | None:
        """Return who holds the lock; None if it is free.

        Raises:
            OSError: if this cannot be found out.
        """
        if locker := self._name.locker():
            return locker
        is_locked = self._file.is_locked() or (self._device is not None and self._device.is_locked())
        return Locker() if is_locked else None

    def __del__(self) -> None:
        self.unlock()
