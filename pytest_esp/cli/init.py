"""``pytest-esp init``: write a boards.toml for the boards that are plugged in."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pytest_esp.errors import OperationError, RackError
from pytest_esp.units import format_size

if TYPE_CHECKING:
    from pytest_esp.cli.chips_at_ports import PortState

_VIRTUAL = """\
Without a board, begin with virtual ones: pytest uses four simulated chips where there is no boards.toml. A simulated
chip of your own: [boards.virtual-c3] with backend = "sim" and chip = "esp32c3" in boards.toml; docs/boards.md."""
_HEAD = """\
# The boards of this bench, found by `pytest-esp init`. docs/boards.md explains all keys; `pytest-esp rack` checks them.
"""
_ALLOW = '# what tests may do; "burn" (eFuses) needs allow_burn, too'
_UNQUOTED = re.compile("[\x7f-\x9f\u2028\u2029]")


@click.command("init")
@click.argument("given", metavar="[PORT]...", nargs=-1)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("boards.toml"),
    show_default=True,
    help="The file to write. An existing file is never overwritten.",
)
@click.option("--yes", is_flag=True, help="Do not ask, for scripts.")
def init_command(given: tuple[str, ...], output: Path, yes: bool) -> None:
    """Write boards.toml for the boards that are plugged in, or for those on each PORT.

    Each port is asked for its chip, which resets the board; afterwards its app starts again. Without PORT only ports
    of Espressif chips and of known USB bridges are asked. The exit code is 1 if nothing was found.
    """
    from pytest_esp.cli.chips_at_ports import ask_chips, look_at, rack_or_none
    from pytest_esp.cli.ports import print_states
    from pytest_esp.rack.ports import find_ports

    _check_new(output)
    if not (yes or sys.stdin.isatty()):
        raise OperationError("init asks before it writes, but the input is not a terminal", hint="add --yes")
    rack, _ = rack_or_none(None)
    states = look_at(find_ports(given, others=not given), rack)
    ask_chips(states, rack)
    if states:
        print_states(states, identified=True)
    if not any(state.chip for state in states):
        asked = any(state.port.is_likely for state in states)
        raise OperationError("no chip answered" if asked else "no board is plugged in", hint=_VIRTUAL)
    text = boards_toml(states)
    if not yes:
        click.echo(f"\n{text}")
        click.confirm(f"Write this to {output}?", default=True, abort=True)
    _write(output, text)
    click.echo(f"wrote {output}. Next: pytest-esp rack, pytest-esp check, pytest")


def boards_toml(states: Iterable[PortState]) -> str:
    """Return the text of a rack file with an entry for each chip that was found.

    Ports whose chips are unknown, and second ports of a chip, become comments.
    """
    numbers: Counter[str] = Counter()
    names: dict[str, str] = {}
    parts = [_HEAD]
    for state in states:
        if state.chip is None:
            if state.port.is_likely:
                parts.append("".join(_comment(state, f"not identified: {state.problem or 'unknown'}")))
        elif state.mac is not None and state.mac in names:
            parts.append("".join(_comment(state, f"the second port of {names[state.mac]}, which has this MAC address")))
        else:
            numbers[state.chip] += 1
            name = f"{state.chip}-{numbers[state.chip]}"
            if state.mac is not None:
                names[state.mac] = name
            parts.append("".join(_entry(name, state)))
    return "\n".join(parts)


def _entry(name: str, state: PortState) -> Iterator[str]:
    about = [state.port.description, state.revision_text and f"revision {state.revision_text}"]
    about += [state.mac and f"MAC {state.mac}"]
    if text := ", ".join(filter(None, about)):
        yield f"# {text}\n"
    yield f'[boards.{name}]\nbackend = "serial"\nchip = {quoted(state.chip or "")}\nport = {quoted(state.port.name)}\n'
    if state.flash_size:
        yield f"flash_size = {quoted(format_size(state.flash_size))}\n"
    yield f'allow = ["read", "write", "erase"]  {_ALLOW}\n'


def _comment(state: PortState, reason: str) -> Iterator[str]:
    about = f" ({state.port.description})" if state.port.description else ""
    yield f"# {state.port.device}{about}: {reason}\n"
    yield f"# port = {quoted(state.port.name)}\n"


def quoted(text: str) -> str:
    """Return *text* as a TOML basic string, which prints as one line without control characters.

    Raises:
        ValueError: if it has half of a surrogate pair: TOML cannot express that.
    """
    text.encode()
    return _UNQUOTED.sub(lambda match: f"\\u{ord(match[0]):04x}", json.dumps(text, ensure_ascii=False))


def _check_new(output: Path) -> None:
    if output.exists() or output.is_symlink():
        raise RackError(
            f"{output} exists already",
            hint="`pytest-esp ports --identify` shows what to add to it; or use --output OTHER.toml, or move it away",
        )


def _write(output: Path, text: str) -> None:
    from pytest_esp.formats.files import save

    _check_new(output)
    save(output, text.encode())
