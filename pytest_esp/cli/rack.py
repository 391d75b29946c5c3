"""``pytest-esp rack``: show the boards of a rack and who holds them."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pytest_esp.units import format_size

if TYPE_CHECKING:
    from pytest_esp.rack.rack import Rack
    from pytest_esp.rack.spec import BoardSpec


@click.command("rack")
@click.option(
    "--rack",
    "path",
    type=click.Path(path_type=Path),
    help="The rack file. Default: PYTEST_ESP_RACK, else boards.toml in this folder or above.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def rack_command(path: Path | None, as_json: bool) -> None:
    """Show the boards of a rack: whether they are free, or who holds them and for how long."""
    from pytest_esp.rack.config import load_rack
    from pytest_esp.rack.lease import lock_folder

    rack = load_rack(path)
    rows = [_row(rack, spec) for spec in rack.boards.values()]
    if not as_json:
        _print_table(rack, rows)
        return
    report = {
        "success": True,
        "rack": rack.name,
        "path": str(rack.path) if rack.path else None,
        "lock_dir": str(lock_folder(rack)),
        "boards": rows,
    }
    click.echo(json.dumps(report, indent=2))


def _row(rack: Rack, spec: BoardSpec) -> dict[str, Any]:
    from pytest_esp.rack.facts import filled_in, remembered
    from pytest_esp.rack.identity import lab_address
    from pytest_esp.rack.lease import LABGRID
    from pytest_esp.rack.state import holder_to_dict, state_of

    found = state_of(spec, rack)
    facts = remembered(spec, rack)
    known = filled_in(spec, facts)
    row: dict[str, Any] = {
        "name": spec.name,
        "backend": spec.backend,
        "chip": known.chip,
        "port": lab_address(spec) if spec.backend == LABGRID else spec.port,
        "flash_size": known.flash_size,
        "features": sorted(known.features),
        "remembered": asdict(facts) if facts else None,
        "state": found.state,
        "holder": holder_to_dict(found.holder) if found.holder else None,
    }
    return row if found.problem is None else row | {"problem": found.problem}


def _print_table(rack: Rack, rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # `Text`, not `str`: rich would take the brackets of a test's id for markup.
    table = Table(title=Text(f"rack {rack.name} ({rack.path or 'built in'})"), title_justify="left")
    for heading in ("board", "backend", "chip", "flash", "port", "state"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        size = format_size(row["flash_size"]) if row["flash_size"] else "?"
        cells = (row["name"], row["backend"], row["chip"], size, row["port"] or "")
        table.add_row(*(Text(cell) for cell in cells), Text(*_state(row)))
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 250  # so that test ids are not wrapped in logs
    console.print(table)


def _state(row: dict[str, Any]) -> tuple[str, str]:
    """Return a board's state in words, and its style."""
    holder = row["holder"]
    if "problem" in row:
        return row["problem"], "red"
    if holder is None:
        return "free", "green"
    if "place" in holder and not holder["user"]:
        return f"place {holder['place']} is {holder['purpose'] or 'reserved for another user'}", "yellow"
    if "place" in holder:
        who = f"{holder['user']}@{holder['host']}" + (f", {holder['purpose']}" if holder["purpose"] else "")
        return f"held {_duration(holder['seconds'])} in the lab (place {holder['place']}) by {who}", "yellow"
    if not holder["pid"]:
        return f"held by {holder['purpose']}", "yellow"
    who = f"pid {holder['pid']}, {holder['user']}@{holder['host']}"
    return f"held {_duration(holder['seconds'])} by {holder['purpose']} ({who})", "yellow"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = int(seconds) // 60
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
