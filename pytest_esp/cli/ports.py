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

    rows = [_cells(state, identified) for state in states]
    used = [heading for heading in rows[0] if any(row[heading][0] for row in rows)]
    table = Table()
    for heading in used:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*(Text(*row[heading]) for heading in used))
    return table


def _cells(state: PortState, identified: bool) -> dict[str, tuple[str, str]]:
    """Return text and style of each column of a port's row."""
    port = state.port
    texts = {
        "port": port.device,
        "description": port.description,
        "lasting name": port.name if port.name != port.device else None,
        "board": state.board,
    }
    if identified:
        size = format_size(state.flash_size) if state.flash_size else None
        texts |= {"chip": state.chip, "revision": state.revision_text, "flash": size, "MAC": state.mac}
    return {heading: (text or "", "") for heading, text in texts.items()} | {"state": _state(state)}


def _state(state: PortState) -> tuple[str, str]:
    """Return a port's state in words, and its style."""
    if state.holder is not None:
        return state.holder.describe().partition(": ")[2], "yellow"
    if state.problem is not None:
        return state.problem, "red" if state.port.is_likely else ""
    return "free", "green"
