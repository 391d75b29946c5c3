"""Tool calls: their queues, one for each board, and the running call, for the thread that does its work.

A call waits for its board in the event loop, not in a thread: however many calls wait for one board, those on other
boards go on. A call that is cancelled, or whose client is gone, while it waits never begins.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from contextvars import ContextVar, copy_context
from typing import Any

import anyio
from fastmcp import Context
from fastmcp.server.dependencies import get_http_request

from pytest_esp.errors import LeaseError, RackError, StoppedError

_PERIOD = 0.1  # seconds between two reports of progress
_LONGEST_QUEUE = 600.0  # seconds that a call waits for other calls on the same board
_MOST_BOARDLESS = 32  # calls at once that use no board
_GRACE = 3.0  # seconds to the next safe point, when the server ends

_running: ContextVar[Call] = ContextVar("mcp_bridge_call")


class Call:
    """One tool call.

    Args:
        context: for reports of progress.
        loop: the server's event loop.
        burns: whether it may burn eFuses: once it has begun, it is not stopped.
        wait: seconds to wait for a board that another process holds.
    """

    def __init__(
        self, context: Context | None, loop: asyncio.AbstractEventLoop, *, burns: bool = False, wait: float = 0.0
    ) -> None:
        self._context = context
        self._loop = loop
        self._next = 0.0
        self.burns = burns
        self.wait = wait
        self.stop = threading.Event()
        self.done = threading.Event()

    def start(self, work: Callable[[], Any]) -> asyncio.Future[Any]:
        """Do the work of this call in a thread, where `progress` belongs to it, and return its future result.

        The thread is the call's own, so that calls that hang cannot keep others from beginning. The end of the process
        does not wait for it.
        """
        future = self._loop.create_future()
        variables = copy_context()

        def settle(result: Any, error: BaseException | None) -> None:
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

        def run() -> None:
            result, error = None, None
            try:
                result = variables.run(self._run, work)
            except BaseException as caught:
                error = caught
            self.done.set()
            with contextlib.suppress(RuntimeError):  # the loop is closed: the server has ended
                self._loop.call_soon_threadsafe(settle, result, error)

        threading.Thread(target=run, name="mcp-bridge-call", daemon=True).start()
        return future

    def _run(self, work: Callable[[], Any]) -> Any:
        _running.set(self)
        if self.stop.is_set():
            raise StoppedError("the call was stopped before it began; nothing was changed")
        return work()

    def progress(self, done: int, total: int) -> None:
        """Report progress to the client.

        Raises:
            StoppedError: if the call was cancelled.
        """
        if self.stop.is_set() and not self.burns:
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


def patience() -> float:
    """Return the seconds that the running call waits for a board that another process holds."""
    call = _running.get(None)
    return call.wait if call is not None else 0.0


def check_not_stopped() -> None:
    """Check that the running call may go on, before it changes anything.

    Raises:
        StoppedError: if it was stopped.
    """
    call = _running.get(None)
    if call is not None and call.stop.is_set():
        raise StoppedError("the call was stopped while it waited for the board; nothing was changed")


class Calls:
    """The calls of a server: one at a time on each board, in the order in which they came."""

    def __init__(self) -> None:
        self._queues: dict[str, deque[asyncio.Future[None]]] = {}
        """Of each board in use: the calls that wait for it."""
        self._boardless = asyncio.Semaphore(_MOST_BOARDLESS)
        self._begun: set[Call] = set()
        self._lock = threading.Lock()
        self._closed = False

    async def take(self, boards: Collection[str], gone: asyncio.Event | None = None) -> Callable[[], None]:
        """Wait until no other call uses *boards*, and take them; return the function that gives them back.

        Without boards, wait until fewer than 32 other such calls are running.

        Args:
            boards: names of boards.
            gone: is set when the client is gone.

        Raises:
            LeaseError: if another call still uses one of them after 600 s.
            StoppedError: if the client is gone before.
        """
        with contextlib.ExitStack() as taken:
            if not boards:
                await self._boardless.acquire()
                taken.callback(self._boardless.release)
            for name in sorted(set(boards)):  # the same order in all calls prevents deadlocks
                await self._wait(name, gone)
                taken.callback(self._pass_on, name)
            return taken.pop_all().close

    async def _wait(self, name: str, gone: asyncio.Event | None) -> None:
        if name not in self._queues:
            self._queues[name] = deque()
            return
        mine = asyncio.get_running_loop().create_future()
        self._queues[name].append(mine)
        try:
            with anyio.move_on_after(_LONGEST_QUEUE):
                async with anyio.create_task_group() as group:
                    if gone is not None:
                        group.start_soon(_cancel_when, gone, group.cancel_scope)
                    await mine
                    group.cancel_scope.cancel()
        except BaseException:
            if mine.done() and not mine.cancelled():
                self._pass_on(name)  # it was this call's turn already
            raise
        finally:
            if not mine.done():
                mine.cancel()
            with contextlib.suppress(KeyError, ValueError):
                self._queues[name].remove(mine)
        if not mine.cancelled():
            return
        if gone is not None and gone.is_set():
            raise StoppedError("the client is gone; nothing was changed")
        raise LeaseError(f"still in use by another call after {_LONGEST_QUEUE:g} s", board=name)

    def _pass_on(self, name: str) -> None:
        queue = self._queues[name]
        while queue:
            following = queue.popleft()
            if not following.done():
                following.set_result(None)
                return
        del self._queues[name]

    # -- those that have begun

    def begin(self, call: Call) -> None:
        """Note that a call begins.

        Raises:
            RackError: if the server ends.
        """
        with self._lock:
            if self._closed:
                raise RackError("the server is shutting down")
            self._begun = {other for other in self._begun if not other.done.is_set()} | {call}

    def close(self) -> None:
        """Let calls that may burn end, and stop the others at their next safe point, for which they have 3 s."""
        with self._lock:
            self._closed = True
        for call in self._begun:
            call.stop.set()
        for call in self._begun:
            if call.burns:
                call.done.wait()
        deadline = time.monotonic() + _GRACE
        for call in self._begun:
            call.done.wait(max(deadline - time.monotonic(), 0.0))


async def _cancel_when(event: asyncio.Event, scope: anyio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


GONE = "pytest_esp.client_gone"
"""The key of the event in the scope of an HTTP request that is set when its client is gone."""


def client_gone() -> asyncio.Event | None:
    """Return the event that is set when the client of the running request is gone; None if it is not over HTTP."""
    try:
        return get_http_request().scope.get(GONE)
    except RuntimeError:  # not over HTTP
        return None
