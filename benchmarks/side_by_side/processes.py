"""What a process and its descendants hold, from /proc."""

from __future__ import annotations

import os
from pathlib import Path

_PAGE = os.sysconf("SC_PAGE_SIZE")


def children(pid: int) -> set[int]:
    """Return the processes that *pid* has started and that have not ended."""
    return {child for child, parent in _parents().items() if parent == pid}


def tree(pid: int) -> set[int]:
    """Return *pid* and all its descendants."""
    parents = _parents()
    found, left = {pid}, [pid]
    while left:
        above = left.pop()
        below = {child for child, parent in parents.items() if parent == above} - found
        found |= below
        left += below
    return found


def resident(pid: int) -> int:
    """Return the bytes of memory that *pid* alone has resident; 0 once it has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
    except (OSError, IndexError):
        return 0


def descriptors(pid: int) -> int:
    """Return the number of files that *pid* has open.

    Raises:
        OSError: if it has ended.
    """
    return len(os.listdir(f"/proc/{pid}/fd"))


def threads(pid: int) -> int:
    """Return the number of threads of *pid*.

    Raises:
        OSError: if it has ended.
    """
    return len(os.listdir(f"/proc/{pid}/task"))


def _parents() -> dict[int, int]:
    found: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:  # it has just ended
            continue
        if state != "Z":
            found[int(stat.parent.name)] = int(parent)
    return found
