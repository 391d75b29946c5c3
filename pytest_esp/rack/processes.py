"""Which processes of this machine still run."""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path


def start_of(pid: int) -> int | None:
    """Return when a living process started, in clock ticks since the machine's start (proc(5)); else None."""
    fields = _stat(pid)
    return None if fields is None or fields[0] in "ZX" else int(fields[19])


own_start = functools.lru_cache(maxsize=2)(start_of)
"""`start_of`, remembered: for the caller's own process."""


def is_gone(pid: int, started: int | None) -> bool:
    """Tell whether the process *pid* that started then has certainly ended; another one may have its number by now.

    Where this machine does not tell, it may live: Windows, and processes of others that /proc hides.
    """
    if sys.platform == "win32":  # os.kill would end it
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        pass  # another user's
    fields = _stat(pid)
    return fields is not None and (fields[0] in "ZX" or (started is not None and int(fields[19]) != started))


def _stat(pid: int) -> list[str] | None:
    """Return the fields of /proc/PID/stat that follow the name of the process: its state is the first."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
