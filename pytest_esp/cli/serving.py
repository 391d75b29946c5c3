"""Serve a virtual board to other programs until interrupted, for ``pytest-esp sim`` and ``pytest-esp qemu``."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import click

from pytest_esp.units import format_size, parse_size
from pytest_esp.wire.endpoints import serve
from pytest_esp.wire.wire import Wire


class _Size(click.ParamType[int]):
    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return parse_size(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


_FILE = click.Path(dir_okay=False, path_type=Path)
_OPTIONS = (
    click.option(
        "--listen",
        "listen",
        multiple=True,
        metavar="URL",
        help="Where to serve: rfc2217://HOST:PORT, socket://HOST:PORT or pty:PATH (repeatable). Port 0 means any free "
        "port. Default: rfc2217://127.0.0.1:0.",
    ),
    click.option("--flash", "flash_file", type=_FILE, help="The flash image. A missing file is created, blank."),
    click.option(
        "--flash-size", type=_Size(), help="The flash size, e.g. 4MB. Default: the size of --flash, else 4MB."
    ),
    click.option("--efuse", "efuse_file", type=_FILE, help="The eFuse file. A missing file is created."),
    click.option("--mac", help="The base MAC address, AA:BB:CC:DD:EE:FF."),
    click.option("--revision", type=int, help="The chip revision as major * 100 + minor."),
    click.option(
        "--on-close",
        type=click.Choice(["bootloader", "app", "keep"]),
        default="bootloader",
        show_default=True,
        help="What to run after a client without reset lines (socket, pty) disconnects from the loader.",
    ),
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object when ready."),
)


def board_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that all served boards have."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@contextlib.contextmanager
def stop_signals() -> Generator[threading.Event]:
    """Set the event on Ctrl-C and SIGTERM. Enter before the board is made, so that no signal loses flash contents."""
    stop = threading.Event()
    names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")  # SIGHUP: the terminal was closed; SIGBREAK: Windows
    signals = [getattr(signal, name) for name in names if hasattr(signal, name)]

    def set_stop(_number: int, _frame: object) -> None:
        stop.set()

    previous = {number: signal.signal(number, set_stop) for number in signals}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def announce_and_serve(
    stack: contextlib.ExitStack,
    wire: Wire,
    listen: tuple[str, ...],
    *,
    kind: str,
    chip: str,
    mac: str,
    flash_size: int,
    as_json: bool,
) -> None:
    """Serve *wire* at all addresses until *stack* is closed, and print one line per address, or a JSON object."""
    endpoints = [serve(wire, url, name=chip) for url in listen or ("rfc2217://127.0.0.1:0",)]
    for endpoint in endpoints:
        stack.callback(endpoint.close)
    urls = [endpoint.url for endpoint in endpoints]
    if as_json:
        click.echo(json.dumps({"chip": chip, "mac": mac, "flash_size": flash_size, "endpoints": urls}))
        return
    # To stderr, so that stdout has only one line per endpoint.
    click.echo(f"{kind} {chip}, {format_size(flash_size)} flash, MAC {mac}. Press Ctrl-C to stop.", err=True)
    for url in urls:
        click.echo(url)
