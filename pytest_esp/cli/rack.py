"""``pytest-esp rack``: which boards there are, and who holds them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pytest_esp.errors import EspError
from pytest_esp.units import format_size

if TYPE_CHECKING:
    from pytest_esp.rack.rack import Rack
    from pytest_esp.rack.spec import BoardSpec


@click.command("rack")
@click.option(
    "--rack",
    "path",
    type=click.Path(path_type=Path),
    help="The rack file; else PYTEST_ESP_RACK, boards.toml.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def rack_command(path: Path | None, as_json: bool) -> None:
    """Show the boards of a rack, whether they are free, and who holds them since when."""
    from pytest_esp.rack.config import load_rack

    rack = load_rack(path)
    rows = [_row(rack, spec) for spec in rack.boards.values()]
    if as_json:
        where = str(rack.path) if rack.path else None
        click.echo(json.dumps({"success": True, "rack": rack.name, "path": where, "boards": rows}, indent=2))
        return
    _print_table(rack, rows)


def _row(rack: Rack, spec: BoardSpec) -> dict[str, Any]:
    from pytest_esp.rack.lease import holder_of

    row: dict[str, Any] = {
        "name": spec.name,
        "backend": spec.backend,
        "chip": spec.chip,
        "port": spec.port,
        "flash_size": spec.flash_size,
        "features": sorted(spec.features),
        "state": "free",
        "holder": None,
    }
    try:
        holder = holder_of(spec, rack)
    except EspError as error:
        return row | {"state": "missing", "problem": error.message}
    if holder is not None:
        held = {
            "pid": holder.pid,
            "host": holder.host,
            "user": holder.user,
            "purpose": holder.purpose,
            "seconds": round(time.time() - holder.since, 1),
        }
        row |= {"state": "held", "holder": held}
    return row


def _print_table(rack: Rack, rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"rack {rack.name} ({rack.path or 'built in'})", title_justify="left")
    for heading in ("board", "backend", "chip", "flash", "port", "state"):
        table.add_column(heading)
    for row in rows:
        size = format_size(row["flash_size"]) if row["flash_size"] else "?"
        table.add_row(row["name"], row["backend"], row["chip"], size, row["port"] or "", _state(row))
    Console().print(table)


def _state(row: dict[str, Any]) -> str:
    holder = row["holder"]
    if holder is None:
        return f"[red]{row['problem']}[/]" if "problem" in row else "[green]free[/]"
    return f"[yellow]held[/] {holder['seconds']} s by {holder['purpose']} (pid {holder['pid']}, {holder['user']})"
