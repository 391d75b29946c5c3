"""The running tool call, for the thread that does its work: report progress, and stop if it was cancelled."""

from __future__ import annotations

import asyncio
import threading
import time
from contextvars import ContextVar

from fastmcp import Context

from pytest_esp.errors import StoppedError

_PERIOD = 0.1  # seconds between two reports of progress

_running: ContextVar[Call] = ContextVar("mcp_bridge_call")


class Call:
    """One running tool call."""

    def __init__(self, context: Context | None, loop: asyncio.AbstractEventLoop) -> None:
        self._context = context
        self._loop = loop
        self._next = 0.0
        self.stop = threading.Event()

    def begin(self) -> None:
        """Make this the running call of the context, for `progress`."""
        _running.set(self)

    def progress(self, done: int, total: int) -> None:
        """Report progress to the client.

        Raises:
            StoppedError: if the call was cancelled.
        """
        if self.stop.is_set():
            raise StoppedError("the call was stopped before it finished", hint=f"{done} of {total} were done")
        now = time.monotonic()
        if self._context is not None and (now >= self._next or done >= total):
            self._next = now + _PERIOD
            asyncio.run_coroutine_threadsafe(self._context.report_progress(done, total), self._loop)


def progress(done: int, total: int) -> None:
    """Report the progress of the running call; see `Call.progress`."""
    call = _running.get(None)
    if call is not None:
        call.progress(done, total)
