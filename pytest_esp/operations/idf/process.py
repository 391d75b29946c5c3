"""A command that runs for minutes: its lines as they come, and its end, however that comes about."""

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

from pytest_esp.errors import OperationError
from pytest_esp.processes import spawn_guarded

_POLL = 0.1  # seconds between calls of `on_wait`
_GRACE = 2.0  # seconds between SIGTERM and SIGKILL
_ANSI = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
_MOST_LINES = 20_000  # that are kept


@dataclass(frozen=True)
class Finished:
    """A command that has ended by itself: its exit code, its last lines, and how long it took."""

    code: int
    lines: tuple[str, ...]
    seconds: float


def run(
    command: Sequence[str],
    environment: Mapping[str, str],
    timeout: float,
    on_line: Callable[[str], None],
    on_wait: Callable[[], None] = lambda: None,
) -> Finished:
    """Run *command* to its end and pass on every line it prints, without escape sequences.

    It never outlives its caller: all of its process group is ended when a callback raises, when its time is over, and
    when this process is gone, however it went.

    Args:
        command: program and arguments.
        environment: all of its variables.
        timeout: seconds.
        on_line: called with each line of its output and errors.
        on_wait: called ten times a second; what it raises stops the command.

    Raises:
        OperationError: if it cannot be started, or takes longer than *timeout*.
    """
    if sys.platform == "win32":
        raise OperationError("ESP-IDF is run on Linux and macOS only", hint="build in WSL, and flash the build folder")
    begun = time.monotonic()
    process, reader = _start(command, environment)
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
        f"{os.path.basename(command[0])} took longer than {timeout:g} s and was ended",
        hint="give it a longer timeout",
        details={"last_lines": list(lines[-20:])},
    )


def _start(command: Sequence[str], environment: Mapping[str, str]) -> tuple[subprocess.Popen[bytes], int]:
    reader, writer = os.pipe()
    try:
        return spawn_guarded(list(command), (), writer, environment), reader
    except OSError as error:
        os.close(reader)
        raise OperationError(f"{command[0]} cannot be started: {error.strerror or error}") from error
    finally:
        os.close(writer)


def _read(reader: int, lines: queue.Queue[str | None]) -> None:
    """Put what comes into *lines*; progress that overwrites itself with a carriage return is lines, too."""
    with open(reader, encoding="utf-8", errors="replace", newline=None) as file:
        for line in file:
            lines.put(_ANSI.sub("", line.rstrip()))
    lines.put(None)


def _next(lines: queue.Queue[str | None], process: subprocess.Popen[bytes]) -> str | None:
    """Return the next line, "" if there is none yet, and None at the end.

    What it has left behind may hold its output open: it has ended when it has, and nothing more is there.
    """
    gone = process.poll() is not None
    try:
        return lines.get(timeout=_POLL)
    except queue.Empty:
        return None if gone else ""


def _ended(process: subprocess.Popen[bytes], deadline: float, on_wait: Callable[[], None]) -> int | None:
    """Wait for its end: output may be closed before it. Return its exit code; None if its time is over."""
    while process.poll() is None and time.monotonic() < deadline:
        on_wait()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_POLL)
    return process.poll()


def _end(process: subprocess.Popen[bytes]) -> None:
    """End all of its process group, if it has not ended."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            break
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS says the latter of one that has ended
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE)
    if process.stdin is not None:
        process.stdin.close()
