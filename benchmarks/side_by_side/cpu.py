"""Processor time of a process and all that it has started, from /proc; each run has a copy beside its tests."""

from __future__ import annotations

import os
from pathlib import Path

_TICK = 1 / os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int | None = None) -> float:
    """Return the seconds that *pid* (this process) and its descendants have used; those that were waited for, too."""
    parents: dict[int, int] = {}
    used: dict[int, float] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        process = int(stat.parent.name)
        parents[process] = int(fields[1])
        used[process] = sum(map(int, fields[11:15])) * _TICK
    return _sum(os.getpid() if pid is None else pid, parents, used)


def _sum(pid: int, parents: dict[int, int], used: dict[int, float]) -> float:
    return used.get(pid, 0.0) + sum(_sum(child, parents, used) for child, parent in parents.items() if parent == pid)
