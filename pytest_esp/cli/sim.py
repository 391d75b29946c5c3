"""``pytest-esp sim CHIP``: serve a simulated chip on sockets, RFC 2217 and ptys until interrupted."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pytest_esp.cli.serving import announce_and_serve, board_options, stop_signals

if TYPE_CHECKING:
    from pytest_esp.sim.chip import SimChip


@click.command("sim")
@click.argument("chip")
@board_options
@click.option(
    "--usb",
    type=click.Choice(["bridge", "serial-jtag", "otg"]),
    default="bridge",
    show_default=True,
    help="The kind of its port: a USB-UART bridge (CP210x, CH340) with the auto-reset circuit of a devkit, or the "
    "chip's own USB-Serial-JTAG or USB-OTG, whose port vanishes for a moment at some resets.",
)
@click.option(
    "--rise-time",
    type=click.FloatRange(min=0.0, max=5.0),
    metavar="SECONDS",
    help="How long EN of a board with a bridge rises after it was released, by its capacitor. The chip reads its boot "
    "strap at the end. Default: long enough for slow clients, and the strap counts at any time in it.",
)
@click.option("--secure-download", is_flag=True, help="Start in secure download mode.")
@click.option("--console-baud", type=int, help="Baud rate of bootloader and app; by default that of the app, 115200.")
@click.option("--app", help="The app to run after app_main() is called: module:Class or a built-in name.")
def sim_command(
    chip: str,
    listen: tuple[str, ...],
    flash_file: Path | None,
    flash_size: int | None,
    app: str | None,
    rise_time: float | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Serve a simulated CHIP (as esptool names it: esp32, esp32c3, ...) until Ctrl-C or SIGTERM.

    Unmodified tools can use it: esptool --port rfc2217://127.0.0.1:PORT flash-id
    """
    if rise_time is not None and settings["usb"] != "bridge":
        raise click.UsageError("--rise-time requires --usb bridge: the chip's own USB has no capacitor at EN")
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(stop_signals())
        _claim(stack, chip, flash_file, settings["efuse_file"])
        simulated = _make_chip(chip, flash_file, flash_size, app, rise_time, **settings)
        stack.callback(simulated.close)
        announce_and_serve(
            stack,
            simulated.wire,
            listen,
            kind="Simulated",
            chip=chip,
            mac=simulated.mac,
            flash_size=simulated.flash.size,
            as_json=as_json,
        )
        stop.wait()


def _claim(stack: contextlib.ExitStack, chip: str, *files: Path | None) -> None:
    """Lock the files until *stack* is closed."""
    from pytest_esp.boards.claim import claim_files
    from pytest_esp.rack.rack import Rack

    rack = Rack("command line", None, {})
    used = [file for file in files if file is not None]
    stack.callback(claim_files(used, rack, board=f"sim-{chip}", purpose=f"pytest-esp sim {chip}"))


def _make_chip(
    chip: str,
    flash_file: Path | None,
    flash_size: int | None,
    app: str | None,
    rise_time: float | None,
    **settings: Any,
) -> SimChip:
    from pytest_esp.formats.nor_flash import NorFlash
    from pytest_esp.sim.app import load_app
    from pytest_esp.sim.chip import SimChip
    from pytest_esp.wire.reset import SLOW_HOST_RISE_TIME

    flash = NorFlash.open(flash_file, flash_size) if flash_file else NorFlash(flash_size or 4 * 1024 * 1024)
    simulated = SimChip(
        chip,
        flash=flash,
        app=load_app(app) if app else None,
        rise_time=SLOW_HOST_RISE_TIME if rise_time is None else rise_time,
        reads_strap_late=rise_time is not None,
        **settings,
    )
    simulated.reset(bootloader=True)
    return simulated
