"""Show an operation's progress on stderr: a bar on a terminal, otherwise a line every few seconds."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Generator

import click

_QUIET = 5.0  # seconds between two lines

Progress = Callable[[int, int], None]


@contextlib.contextmanager
def progress_of(name: str, *, lines: bool) -> Generator[Progress]:
    """Yield a callback that shows the progress of the operation *name*.

    Args:
        name: shown before the bar or the percentage.
        lines: whether to print lines if stderr is not a terminal.
    """
    if not sys.stderr.isatty():
        yield _lines(name) if lines else _nothing
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False) as bar:
        task = bar.add_task(name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total or None)


def _nothing(_done: int, _total: int) -> None:
    """Print nothing: programs that read JSON may read stderr together with stdout."""


def _lines(name: str) -> Progress:
    printed = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal printed
        now = time.monotonic()
        if total and now - printed >= _QUIET:
            printed = now
            click.echo(f"{name}: {100 * done // total} %", err=True)

    return show
