"""Watches when programs open and close a pty's device.

The master end of a pty only reports "hung up" while the device is not open, so it does not show that one client closes
it and the next one opens it. Linux reports every open and close through inotify.
"""

from __future__ import annotations

import ctypes
import os
import struct

_IN_CLOSE = 0x08 | 0x10  # IN_CLOSE_WRITE, IN_CLOSE_NOWRITE
_IN_OPEN = 0x20
_EVENT = struct.Struct("iIII")  # watch, mask, cookie, length of the name that follows


class PtyWatch:
    """The opens and closes of one device, in order.

    Attributes:
        descriptor: becomes readable when there are events.

    Raises:
        OSError: if this system does not have inotify, or the limit of watches is reached (/proc/sys/fs/inotify).
    """

    def __init__(self, device: str) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if not hasattr(libc, "inotify_init1"):
            raise OSError("this system has no inotify")
        self.descriptor: int = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self.descriptor < 0:
            raise _last_error()
        if libc.inotify_add_watch(self.descriptor, os.fsencode(device), _IN_OPEN | _IN_CLOSE) < 0:
            error = _last_error()
            self.close()
            raise error

    def changes(self) -> list[bool]:
        """Return the events since the last call: True for an open, False for a close."""
        try:
            data = os.read(self.descriptor, 1 << 16)
        except BlockingIOError:
            return []
        found: list[bool] = []
        offset = 0
        while offset < len(data):
            _, mask, _, length = _EVENT.unpack_from(data, offset)
            offset += _EVENT.size + length
            if mask & (_IN_OPEN | _IN_CLOSE):
                found.append(bool(mask & _IN_OPEN))
        return found

    def close(self) -> None:
        """Stop watching."""
        os.close(self.descriptor)


def _last_error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
