"""``pytest-esp op NAME key=value ...``: any operation, on a board of the rack or on files."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pytest_esp.errors import EspError, OperationError
from pytest_esp.secrets import hide_in

if TYPE_CHECKING:
    from pytest_esp.operations.registry import Operation, Parameter


@click.command("op")
@click.argument("name", required=False)
@click.argument("arguments", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--board", metavar="NAME", help="Which board; may be left out where the rack has only one.")
@click.option(
    "--rack",
    "path",
    type=click.Path(path_type=Path),
    help="The rack file; else PYTEST_ESP_RACK, boards.toml.",
)
@click.option("--wait", type=float, default=0.0, metavar="SECONDS", help="Wait so long for a board that is held.")
@click.option("--allow-burn", is_flag=True, help="Consent to burn eFuses that the board's allow_burn names.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def op_command(
    name: str | None,
    arguments: tuple[str, ...],
    board: str | None,
    path: Path | None,
    wait: float,
    allow_burn: bool,
    as_json: bool,
) -> None:
    """Run the operation NAME on a board, e.g. ``pytest-esp op flash-read --board c3 address=0x8000 size=4KB --json``.

    Those marked with `files` in the list work on files alone: they need no board and no rack.

    Without NAME all operations are listed; without a value for a needed KEY its help is shown.
    """
    from pytest_esp.operations.esp import load_all
    from pytest_esp.operations.results import to_dict

    operations = load_all()
    if name is None:
        _list(list(operations.values()))
        return
    used = board
    try:
        operation = _find(operations, name)
        given = _arguments(operation, arguments)
        if operation.effect is None:
            _check_no_board(operation, board)
            result = to_dict(operation.function(**given))
        else:
            with _leased_link(board, path, wait, allow_burn) as link:
                used = link.board.name
                result = to_dict(operation.function(link, **given))
    except EspError as error:
        if not as_json:
            raise
        record = {"success": False, "error": error.message, "port": error.board or used, "hint": error.hint}
        click.echo(json.dumps(hide_in(record | error.details), indent=2, default=str))
        sys.exit(1)
    result = hide_in(result)
    if as_json:
        click.echo(json.dumps({"success": True, "port": used, **result}, indent=2))
    else:
        _print(result)


def _check_no_board(operation: Operation, board: str | None) -> None:
    if board is not None:
        raise OperationError(f"{operation.name} works on files alone", hint=f"leave out --board {board}")


def _leased_link(board: str | None, path: Path | None, wait: float, allow_burn: bool) -> Any:
    from pytest_esp.boards.registry import make_board
    from pytest_esp.link.link import Link
    from pytest_esp.rack.config import load_rack

    rack = load_rack(path)
    (lease,) = rack.lease(rack.only_board(board), purpose="pytest-esp op", timeout=wait)
    try:
        link = Link(
            make_board(lease.spec, rack),
            burns_enabled=allow_burn,
            holder="pytest-esp op",
            announce=lambda text: click.echo(hide_in(text), err=True),
        )
    except BaseException:
        lease.release()
        raise
    return _Released(link, lease)


@dataclasses.dataclass
class _Released:
    """A link whose lease is given back with it."""

    link: Any
    lease: Any

    def __enter__(self) -> Any:
        return self.link

    def __exit__(self, *_: object) -> None:
        try:
            self.link.close()
        finally:
            self.lease.release()


def _find(operations: Any, name: str) -> Operation:
    from pytest_esp.names import nearest

    if name not in operations:
        raise OperationError(f"there is no operation {name!r}", hint=f"nearest: {nearest(name, operations)}")
    return operations[name]


def _arguments(operation: Operation, given: tuple[str, ...]) -> dict[str, Any]:
    known = {parameter.name: parameter for parameter in operation.parameters}
    values: dict[str, Any] = {}
    for item in given:
        key, mark, text = item.partition("=")
        key = key.replace("-", "_")
        if not mark or key not in known:
            shown = key if text[:1] in ("{", "[") else item  # a table may have secrets in it
            raise OperationError(
                f"{shown!r} is no argument of {operation.name}",
                hint="it takes " + (" ".join(f"{name}=..." for name in known) or "none"),
            )
        values[key] = _value(known[key], text)
    missing = [name for name, parameter in known.items() if parameter.required and name not in values]
    if missing:
        raise OperationError(f"{operation.name} needs {', '.join(missing)}", hint=_usage(operation))
    return values


def _value(parameter: Parameter, text: str) -> Any:
    """Return *text* as the parameter's type; lists, pairs and tables are written as JSON."""
    from pydantic import TypeAdapter, ValidationError

    value: Any = text
    if text[:1] in "[{":
        try:
            value = json.loads(text)
        except ValueError as error:
            hint = f"{parameter.name}: {parameter.description}" if parameter.description else None
            raise OperationError(f"{parameter.name}: this is not JSON: {error}", hint=hint) from error
    try:
        return TypeAdapter(parameter.annotation).validate_python(value)
    except ValidationError as error:
        shown = "" if isinstance(value, (dict, list)) else f"={text}"  # which may have secrets in it
        hint = f"{parameter.name}: {parameter.description}" if parameter.description else None
        raise OperationError(f"{parameter.name}{shown}: {error.errors()[0]['msg']}", hint=hint) from None


def _usage(operation: Operation) -> str:
    lines = [operation.summary]
    for parameter in operation.parameters:
        default = "" if parameter.required else f" (default {parameter.default})"
        lines.append(f"  {parameter.name}=...{default}  {parameter.description}".rstrip())
    return "\n".join(lines)


def _list(operations: list[Operation]) -> None:
    width = max(len(operation.name) for operation in operations)
    for operation in sorted(operations, key=lambda item: item.name):
        effect = operation.effect.value if operation.effect else "files"
        click.echo(f"{operation.name:{width}}  {effect:5}  {operation.summary}")


def _print(result: dict[str, Any]) -> None:
    for key, value in result.items():
        text = value if isinstance(value, str) else json.dumps(value)
        click.echo(f"{key}: {text}")
