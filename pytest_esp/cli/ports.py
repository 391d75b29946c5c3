"""``pytest-esp ports``: list the serial ports, and on request the chips behind them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pytest_esp.units import format_size

if TYPE_CHECKING:
    from rich.table import Table

    from pytest_esp.cli.chips_at_ports import PortState


@click.command("ports")
@click.argument("given", metavar="[PORT]...", nargs=-1)
@click.option(
    "--identify",
    is_flag=True,
    help="Ask for the chips behind the ports of Espressif chips, of known USB bridges, and behind each PORT. This "
    "resets the boards; afterwards their apps start again.",
)
@click.option(
    "--rack",
    "path",
    type=click.Path(path_type=Path),
    help="The rack file. Default: PYTEST_ESP_RACK, else boards.toml in this folder or above.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def ports_command(given: tuple[str, ...], identify: bool, path: Path | None, as_json: bool) -> None:
    """List the serial ports: device, lasting name, board of the rack, and who holds it.

    PORT adds ports that the system does not list: rfc2217://HOST:PORT, socket://HOST:PORT, /dev/pts/3. Without
    --identify no port is opened.
    """
    from pytest_esp.cli.chips_at_ports import ask_chips, look_at, rack_or_none
    from pytest_esp.rack.ports import find_ports

    rack, problem = rack_or_none(path)
    states = look_at(find_ports(given), rack)
    if identify:
        ask_chips(states, rack)
    if as_json:
        report = {"success": True, "ports": [state.to_dict() for state in states]}
        click.echo(json.dumps(report if problem is None else report | {"rack_problem": problem}, indent=2))
        return
    if states:
        print_states(states, identified=identify)
    else:
        click.echo("no serial port was found")
    if problem is not None:
        click.echo(f"boards are not named, as the rack cannot be read: {problem}", err=True)


def print_states(states: list[PortState], *, identified: bool) -> None:
    """Print a table of ports."""
    import os

    from rich.console import Console

    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 250  # so that names are not wrapped in logs
    console.print(_table(states, identified))


def _table(states: list[PortState], identified: bool) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table()
    chip = ("chip", "revision", "flash", "MAC") if identified else ()
    for heading in ("port", "description", "lasting name", "board", *chip, "state"):
        table.add_column(heading, overflow="fold")
    for state in states:
        port = state.port
        lasting = port.name if port.name != port.device else ""
        size = format_size(state.flash_size) if state.flash_size else ""
        found = (state.chip or "", state.revision_text or "", size, state.mac or "") if identified else ()
        cells = (port.device, port.description, lasting, state.board or "", *found)
        table.add_row(*map(Text, cells), Text(*_state(state)))
    return table


def _state(state: PortState) -> tuple[str, str]:
    """Return a port's state in words, and its style."""
    if state.holder is not None:
        return state.holder.describe().partition(": ")[2], "yellow"
    if state.problem is not None:
        return state.problem, "red" if state.port.is_likely else ""
    return "free", "green"
