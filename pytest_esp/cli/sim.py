"""``pytest-esp sim CHIP``: serve a simulated chip on sockets, RFC 2217 and ptys until interrupted."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pytest_esp.units import format_size, parse_size

if TYPE_CHECKING:
    from pytest_esp.sim.chip import SimChip
    from pytest_esp.wire.endpoints import Endpoint


class _Size(click.ParamType[int]):
    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return parse_size(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.command("sim")
@click.argument("chip")
@click.option(
    "--listen",
    "listen",
    multiple=True,
    metavar="URL",
    help="rfc2217://HOST:PORT, socket://HOST:PORT or pty:PATH; port 0 takes any free one. "
    "May be given several times. Default: rfc2217://127.0.0.1:0.",
)
@click.option(
    "--flash",
    "flash_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Flash image; made, blank, if missing.",
)
@click.option("--flash-size", type=_Size(), help="e.g. 4MB; default: the size of --flash, else 4MB.")
@click.option(
    "--efuse",
    "efuse_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="eFuse file; made if missing.",
)
@click.option("--mac", help="Base MAC address, AA:BB:CC:DD:EE:FF.")
@click.option("--revision", type=int, help="Chip revision as major * 100 + minor.")
@click.option("--secure-download", is_flag=True, help="Start in secure download mode.")
@click.option("--app", help="What runs after `Calling app_main()`: module:Class or a built-in name.")
@click.option(
    "--on-close",
    type=click.Choice(["bootloader", "app", "keep"]),
    default="bootloader",
    show_default=True,
    help="What a client without reset lines (socket, pty) leaves behind when it leaves the loader.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object when ready.")
def sim_command(
    chip: str,
    listen: tuple[str, ...],
    flash_file: Path | None,
    flash_size: int | None,
    efuse_file: Path | None,
    mac: str | None,
    revision: int | None,
    secure_download: bool,
    app: str | None,
    on_close: str,
    as_json: bool,
) -> None:
    """Serve a simulated CHIP (as esptool names it: esp32, esp32c3, ...) until Ctrl-C or SIGTERM.

    Works with unmodified tools: ``esptool --port rfc2217://127.0.0.1:PORT flash-id``.
    """
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(_stop_signals())
        simulated = _make_chip(
            chip,
            flash_file,
            flash_size,
            app,
            efuse_file=efuse_file,
            mac=mac,
            revision=revision,
            secure_download=secure_download,
            on_close=on_close,
        )
        stack.callback(simulated.close)
        endpoints = [_serve(stack, simulated, url) for url in listen or ("rfc2217://127.0.0.1:0",)]
        _announce(simulated, endpoints, as_json)
        stop.wait()


def _make_chip(chip: str, flash_file: Path | None, flash_size: int | None, app: str | None, **settings: Any) -> SimChip:
    from pytest_esp.sim.app import load_app
    from pytest_esp.sim.chip import SimChip
    from pytest_esp.sim.flash import NorFlash
    from pytest_esp.wire.reset import SLOW_HOST_RISE_TIME

    flash = NorFlash.open(flash_file, flash_size) if flash_file else NorFlash(flash_size or 4 * 1024 * 1024)
    simulated = SimChip(
        chip, flash=flash, app=load_app(app) if app else None, rise_time=SLOW_HOST_RISE_TIME, **settings
    )
    simulated.reset(bootloader=True)
    return simulated


@contextlib.contextmanager
def _stop_signals() -> Generator[threading.Event]:
    """Set the event on Ctrl-C and SIGTERM, from before the chip exists: no signal loses a byte of flash."""
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


def _serve(stack: contextlib.ExitStack, chip: SimChip, url: str) -> Endpoint:
    from pytest_esp.wire.endpoints import serve

    endpoint = serve(chip.wire, url, name=chip.chip)
    stack.callback(endpoint.close)
    return endpoint


def _announce(chip: SimChip, endpoints: list[Endpoint], as_json: bool) -> None:
    urls = [endpoint.url for endpoint in endpoints]
    if as_json:
        click.echo(json.dumps({"chip": chip.chip, "mac": chip.mac, "flash_size": chip.flash.size, "endpoints": urls}))
        return
    # On stderr, so that standard output has one line per endpoint and nothing else.
    size = format_size(chip.flash.size)
    click.echo(f"Simulated {chip.chip}, {size} flash, MAC {chip.mac}. Ctrl-C stops it.", err=True)
    for url in urls:
        click.echo(url)
