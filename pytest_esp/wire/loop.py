"""One asyncio loop per process, in a daemon thread: all endpoints and timers of all virtual boards run on it."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

_start = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None
_thread: threading.Thread | None = None
_owner = 0


def loop() -> asyncio.AbstractEventLoop:
    """Return the process's loop. It is started at the first call, and again in a forked child."""
    global _loop, _owner, _thread
    if _loop is not None and _owner == os.getpid():
        return _loop
    with _start:
        if _loop is None or _owner != os.getpid():
            _loop, _owner = asyncio.new_event_loop(), os.getpid()
            _thread = threading.Thread(target=_loop.run_forever, name="pytest-esp-wire", daemon=True)
            _thread.start()
        return _loop


def on_loop(call: Callable[..., None], *args: Any) -> None:
    """Run *call* on the loop's thread, after all earlier calls."""
    running = loop()
    if threading.current_thread() is _thread:
        running.call_soon(call, *args)
    else:
        running.call_soon_threadsafe(call, *args)


def settle() -> None:
    """Wait until the loop has finished all earlier calls. Do not call this on the loop's thread."""
    if _loop is None or _owner != os.getpid():
        return
    done = threading.Event()
    on_loop(done.set)
    done.wait(10.0)  # seconds; limited in case the interpreter is shutting down


class Timer:
    """A pending call of `call_later`."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call: Callable[[], None] | None = call
        self._handle: asyncio.TimerHandle | None = None

    def arm(self, delay: float) -> None:
        """Start the timer (on the loop's thread)."""
        if self._call is not None:
            self._handle = loop().call_later(delay, self._fire)

    def cancel(self) -> None:
        """Keep the call from starting. Callable from any thread, and after the call."""
        self._call = None

    def _fire(self) -> None:
        call, self._call = self._call, None
        if call is not None:
            call()


def call_later(delay: float, call: Callable[[], None]) -> Timer:
    """Call *call* on the loop's thread in *delay* seconds."""
    timer = Timer(call)
    on_loop(timer.arm, delay)
    return timer


def run(coroutine: Coroutine[Any, Any, T], timeout: float | None = 10.0) -> T:
    """Run *coroutine* on the loop and return its result. Do not call this on the loop's thread.

    Raises:
        TimeoutError: if it takes longer than *timeout* seconds.
    """
    return asyncio.run_coroutine_threadsafe(coroutine, loop()).result(timeout)
