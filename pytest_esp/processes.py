"""Processes of this machine: which still run, and children that do not outlive their parent."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Mapping
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


_GUARD = """
exec 3<&0
trap : TERM
"$@" </dev/null 3<&- & child=$!
{ trap : TERM; read -r _ <&3; kill -TERM -$$; sleep 2; kill -KILL -$$; } 2>/dev/null & guard=$!
while wait $child; status=$?; kill -0 $child 2>/dev/null; do :; done
kill -KILL $guard
kill -TERM -$$
exit $status
"""
# Signals go to the shell's process group. A trapped SIGTERM ends the shell's `wait`, not the child that it waits for.


def spawn_guarded(
    command: list[str], descriptors: tuple[int, ...], output: int, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start *command* under a shell that ends it when this process is gone, or closes the shell's standard input."""
    return subprocess.Popen(
        ["/bin/sh", "-c", _GUARD, "pytest-esp-guard", *command],
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=output,
        pass_fds=descriptors,
        start_new_session=True,
        env=environment,
    )
