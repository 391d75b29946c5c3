"""Captures esptool's and espefuse's output for each connection.

esptool has one logger for the whole process (``esptool.logger.log``). This module replaces it by one that sends every
message to the capture of the calling context, or to esptool's own logger if there is none.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from contextvars import ContextVar
from typing import Any, cast

from esp_pylib.logger import EspLog, EspLogBase, log
from rich.errors import MarkupError
from rich.markup import render

Progress = Callable[[int, int], None]
"""Called with the current and the total amount, in the operation's unit (bytes or percent)."""

_MOST_CHARACTERS = 1 << 18


class Transcript:
    """esptool's output on one connection (the last 256 KB)."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._size = 0
        self.warnings: list[str] = []

    @property
    def text(self) -> str:
        """The complete text."""
        return "".join(self._parts)

    def clear(self) -> None:
        """Remove all text."""
        self._parts.clear()
        self._size = 0
        self.warnings.clear()

    def add(self, text: str) -> None:
        """Append *text*; the oldest text is removed if the transcript grows too long."""
        self._parts.append(text)
        self._size += len(text)
        while self._size > _MOST_CHARACTERS and len(self._parts) > 1:
            self._size -= len(self._parts.pop(0))


_capture: ContextVar[tuple[Transcript, Progress | None] | None] = ContextVar("esptool_capture", default=None)


@contextlib.contextmanager
def capture(transcript: Transcript, progress: Progress | None = None) -> Generator[None]:
    """Send esptool's output in this context (thread or task) to *transcript*, and its progress to *progress*."""
    _install()
    token = _capture.set((transcript, progress))
    try:
        yield
    finally:
        _capture.reset(token)


def _install() -> None:
    # Each time, as a program that also uses esptool may have set another logger in between.
    if not isinstance(EspLog.instance, _DispatchingLog):
        from pytest_esp.link.esptool_private import warn_by

        warn_by(_warn)
        EspLog.set_logger(_DispatchingLog(cast(EspLogBase, EspLog.instance or EspLog())))


def _warn(message: str) -> None:
    log.warn(message)


class _DispatchingLog(EspLogBase):
    def __init__(self, outer: EspLogBase) -> None:
        self._outer = outer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._outer, name)

    def print(self, *args: Any, **kwargs: Any) -> None:
        captured = _capture.get()
        if captured is None:
            self._outer.print(*args, **kwargs)
        else:
            end = str(kwargs.get("end", "\n"))
            captured[0].add(_plain(str(kwargs.get("sep", " ")).join(map(str, args))) + end)

    def note(self, *args: Any) -> None:
        self._say("note", "NOTE: ", args)

    def hint(self, *args: Any) -> None:
        self._say("hint", "Hint: ", args)

    def debug(self, *args: Any) -> None:
        if _capture.get() is None:
            self._outer.debug(*args)

    def warn(self, *args: Any, suggestion: str | None = None) -> None:
        captured = _capture.get()
        if captured is None:
            self._outer.warn(*args, suggestion=suggestion)
            return
        captured[0].warnings.append(_plain(" ".join(map(str, args))))
        self._say("warn", "WARNING: ", args)

    def warning(self, message: str, suggestion: str | None = None) -> None:
        self.warn(message, suggestion=suggestion)

    def err(self, *args: Any, suggestion: str | None = None) -> None:
        if _capture.get() is None:
            self._outer.err(*args, suggestion=suggestion)
        else:
            self._say("err", "ERROR: ", args)

    def error(self, message: str, suggestion: str | None = None) -> None:
        self.err(message, suggestion=suggestion)

    def stage(self, finish: bool = False) -> None:
        if _capture.get() is None:
            self._outer.stage(finish)

    def set_verbosity(self, mode: int | str) -> None:
        self._outer.set_verbosity(mode)

    def progress_bar(
        self, cur_iter: int, total_iters: int, prefix: str = "", suffix: str = "", bar_length: int = 30
    ) -> None:
        captured = _capture.get()
        if captured is None:
            self._outer.progress_bar(cur_iter, total_iters, prefix, suffix, bar_length)
        elif captured[1] is not None:
            captured[1](cur_iter, total_iters)

    def _say(self, kind: str, prefix: str, args: tuple[Any, ...]) -> None:
        captured = _capture.get()
        if captured is None:
            getattr(self._outer, kind)(*args)
        else:
            captured[0].add(prefix + _plain(" ".join(map(str, args))) + "\n")


def _plain(text: str) -> str:
    """Return *text* without rich's markup."""
    if "[" not in text:
        return text
    try:
        return render(text).plain
    except MarkupError:
        return text
