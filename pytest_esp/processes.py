"""Processes of this machine: check whether they still run, and start children that end with their parent."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path


def start_of(pid: int) -> int | None:
    """Return when a running process started, in clock ticks since boot (proc(5)); None if it does not run."""
    fields = _stat(pid)
    return None if fields is None or fields[0] in "ZX" else int(fields[19])


own_start = functools.lru_cache(maxsize=2)(start_of)
"""`start_of` with a cache, for the caller's own process."""


def is_gone(pid: int, started: int | None) -> bool:
    """Return whether the process *pid* that started at *started* has certainly ended; its number may be in use again.

    False if this cannot be determined: on Windows, and for other users' processes that /proc hides.
    """
    if sys.platform == "win32":  # os.kill would end the process
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        pass  # another user's process
    fields = _stat(pid)
    return fields is not None and (fields[0] in "ZX" or (started is not None and int(fields[19]) != started))


def _stat(pid: int) -> list[str] | None:
    """Return the fields of /proc/PID/stat after the process's name; the first is its state."""
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
# Signals go to the shell's process group. A trapped SIGTERM interrupts the shell's `wait`, but not its child.


def spawn_guarded(
    command: list[str],
    descriptors: tuple[int, ...],
    output: int,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> subprocess.Popen[bytes]:
    """Start *command* under a shell that ends it when this process ends or closes the shell's standard input."""
    return subprocess.Popen(
        ["/bin/sh", "-c", _GUARD, "pytest-esp-guard", *command],
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=output,
        pass_fds=descriptors,
        start_new_session=True,
        env=environment,
        cwd=folder,
    )
