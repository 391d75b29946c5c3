"""Runs a command for minutes: passes on its lines as they are printed, and makes sure that it ends."""

from __future__ import annotations

import contextlib
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_esp.errors import OperationError
from pytest_esp.processes import spawn_guarded

_POLL = 0.1  # seconds between calls of `on_wait`
_GRACE = 2.0  # seconds between SIGTERM and SIGKILL
_ANSI = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
_MOST_LINES = 20_000  # lines to keep


@dataclass(frozen=True)
class Finished:
    """A finished command: its exit code, its last lines, and its duration."""

    code: int
    lines: tuple[str, ...]
    seconds: float


def run(
    command: Sequence[str],
    environment: Mapping[str, str],
    timeout: float,
    on_line: Callable[[str], None],
    on_wait: Callable[[], None] = lambda: None,
    *,
    folder: Path | None = None,
) -> Finished:
    """Run *command* to its end and pass on every line that it prints, without escape sequences.

    It never outlives its caller: its whole process group is ended when a callback raises, when it times out, and when
    this process ends for any reason.

    Args:
        command: program and arguments.
        environment: all of its variables.
        timeout: in seconds.
        on_line: called with each line of its output and errors.
        on_wait: called ten times a second; an exception from it stops the command.
        folder: its working folder; by default the caller's.

    Raises:
        OperationError: if it cannot be started, or times out.
    """
    if sys.platform == "win32":
        raise OperationError("ESP-IDF runs on Linux and macOS only", hint="build in WSL, and flash the build folder")
    begun = time.monotonic()
    process, reader = _start(command, environment, folder)
    lines: queue.Queue[str | None] = queue.Queue()
    thread = threading.Thread(target=_read, args=(reader, lines), name="pytest-esp-idf", daemon=True)
    thread.start()
    kept: list[str] = []
    due = begun
    try:
        while (line := _next(lines, process)) is not None:
            if (now := time.monotonic()) >= due:
                due = now + _POLL
                on_wait()
            if now - begun > timeout:
                raise _too_long(command, timeout, kept)
            if line:
                kept.append(line)
                del kept[: len(kept) - _MOST_LINES]
                on_line(line)
        code = _ended(process, begun + timeout, on_wait)
        if code is None:
            raise _too_long(command, timeout, kept)
    finally:
        _end(process)
        thread.join(_GRACE)
    return Finished(code, tuple(kept), time.monotonic() - begun)


def _too_long(command: Sequence[str], timeout: float, lines: Sequence[str]) -> OperationError:
    return OperationError(
        f"{os.path.basename(command[0])} timed out after {timeout:g} s and was stopped",
        hint="use a longer timeout",
        details={"last_lines": list(lines[-20:])},
    )


def _start(
    command: Sequence[str], environment: Mapping[str, str], folder: Path | None
) -> tuple[subprocess.Popen[bytes], int]:
    reader, writer = os.pipe()
    try:
        return spawn_guarded(list(command), (), writer, environment, folder), reader
    except OSError as error:
        os.close(reader)
        raise OperationError(f"{command[0]} cannot be started: {error.strerror or error}") from error
    finally:
        os.close(writer)


def _read(reader: int, lines: queue.Queue[str | None]) -> None:
    """Put the output into *lines*; progress that overwrites itself with carriage returns becomes lines, too."""
    with open(reader, encoding="utf-8", errors="replace", newline=None) as file:
        for line in file:
            lines.put(_ANSI.sub("", line.rstrip()))
    lines.put(None)


def _next(lines: queue.Queue[str | None], process: subprocess.Popen[bytes]) -> str | None:
    """Return the next line, "" if there is none yet, and None at the end.

    Processes that it has left behind may keep its output open: it has ended once it exited and no output is left.
    """
    gone = process.poll() is not None
    try:
        return lines.get(timeout=_POLL)
    except queue.Empty:
        return None if gone else ""


def _ended(process: subprocess.Popen[bytes], deadline: float, on_wait: Callable[[], None]) -> int | None:
    """Wait for its exit, as it may close its output earlier. Return its exit code; None if it timed out."""
    while process.poll() is None and time.monotonic() < deadline:
        on_wait()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_POLL)
    return process.poll()


def _end(process: subprocess.Popen[bytes]) -> None:
    """End its whole process group, if it is still running."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            break
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS raises the latter for a finished process
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE)
    if process.stdin is not None:
        process.stdin.close()
