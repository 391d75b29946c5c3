"""``pytest-esp op NAME key=value ...``: run an operation on a board of the rack or on files."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pytest_esp.errors import EspError, OperationError
from pytest_esp.secrets import hide_in

if TYPE_CHECKING:
    from pytest_esp.link.link import Link
    from pytest_esp.operations.registry import Operation, Parameter


@click.command("op", add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("name", required=False)
@click.argument("arguments", nargs=-1, metavar="[KEY=VALUE]...", type=click.UNPROCESSED)
@click.option("--board", metavar="NAME", help="The board; optional if the rack has only one.")
@click.option(
    "--port", metavar="PORT", help="The port of a board, in place of --board; needs no rack. Default: PYTEST_ESP_PORT."
)
@click.option(
    "--rack",
    "path",
    type=click.Path(path_type=Path),
    help="The rack file. Default: PYTEST_ESP_RACK, else boards.toml in this folder or above.",
)
@click.option(
    "--wait", type=float, default=0.0, metavar="SECONDS", help="How long to wait for a board that is held. Default: 0."
)
@click.option(
    "--after",
    type=click.Choice(["hard-reset", "watchdog-reset", "no-reset"]),
    help="How to restart a real board's app afterwards. Default: after in its entry, else hard-reset.",
)
@click.option("--allow-burn", is_flag=True, help="Allow burning the eFuses that the board's allow_burn lists.")
@click.option("--hex", "dump", is_flag=True, help="Print bytes as a hex dump.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for programs.")
@click.option("-h", "--help", "wants_help", is_flag=True, help="Show this message, or the help of the operation NAME.")
@click.pass_context
def op_command(
    context: click.Context,
    name: str | None,
    arguments: tuple[str, ...],
    board: str | None,
    port: str | None,
    path: Path | None,
    wait: float,
    after: str | None,
    allow_burn: bool,
    dump: bool,
    as_json: bool,
    wants_help: bool,
) -> None:
    """Run the operation NAME on a board or on files. Without NAME, list all operations.

    Write arguments as KEY=VALUE or --KEY VALUE, lists and tables as JSON, lists also as A,B,C:

    \b
        pytest-esp op flash-read --board c3 address=0x8000 size=4KB --hex
        pytest-esp op flash-read --help

    Operations that the list marks with "files" do not use a board or a rack.
    """
    from pytest_esp.cli.op_help import as_commands, help_of, listed
    from pytest_esp.operations.esp import load_all

    if name is None and wants_help:
        click.echo(context.get_help())
        return
    operations = load_all()
    if name is None:
        click.echo(listed(operations.values()))
        return
    used = board
    try:
        operation = _find(operations, name)
        if wants_help:
            click.echo(help_of(operation))
            return
        if port is not None and not operation.takes_board:
            raise OperationError(f"{operation.name} does not take --port", hint="see pytest-esp op without arguments")
        given = _arguments(operation, arguments, {"port": board, "rack": path, "wait_s": wait or None})
        with _signals(operation, given):
            with (
                _link(operation, board, port, path, wait, after, allow_burn) as link,
                _progress(operation, as_json) as progress,
            ):
                used = link.board.name if link is not None else board
                result = operation.function(*([link] if link is not None else []), **given, **progress)
            _print(operation, result, used, dump=dump, as_json=as_json)
    except EspError as error:
        error.hint = error.hint and as_commands(error.hint, operations)
        if not as_json:
            raise
        record = {"success": False, "error": error.message, "port": error.board or used, "hint": error.hint}
        click.echo(json.dumps(hide_in(record | error.details), indent=2, default=str))
        sys.exit(1)


@contextlib.contextmanager
def _signals(operation: Operation, given: Mapping[str, Any]) -> Generator[None]:
    """On SIGTERM and SIGHUP, release the board and exit; if the operation burns eFuses, after it has ended."""
    from pytest_esp.operations.registry import Effect

    burns, came = operation.effect_of(given) is Effect.BURN, list[int]()
    names = ("SIGTERM", "SIGHUP", "SIGINT") if burns else ("SIGTERM", "SIGHUP")

    def end(number: int, _frame: object) -> None:
        if not burns:
            sys.exit(128 + number)
        came.append(number)

    previous = {
        number: signal.signal(number, end) for name in names if (number := getattr(signal, name, None)) is not None
    }
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        if came:
            sys.exit(128 + came[0])


def _print(operation: Operation, result: object, board: str | None, *, dump: bool, as_json: bool) -> None:
    from pytest_esp.cli.op_help import takes
    from pytest_esp.cli.op_result import Report
    from pytest_esp.operations.results import to_dict

    if as_json:
        click.echo(json.dumps(hide_in({"success": True, "port": board, **to_dict(result)}), indent=2))
    else:
        Report(result, dump=dump, can_save=takes(operation, "output_file")).write()


@contextlib.contextmanager
def _link(
    operation: Operation,
    board: str | None,
    port: str | None,
    path: Path | None,
    wait: float,
    after: str | None,
    allow_burn: bool,
) -> Generator[Link | None]:
    """Yield a link to the leased board; None if the operation does not use a board."""
    if not operation.takes_board:
        yield None
        return
    from pytest_esp.boards.registry import make_board
    from pytest_esp.link.link import Link
    from pytest_esp.rack.config import load_rack
    from pytest_esp.rack.file import ports_of_environment

    ports = [port] if port else ([] if board or path else ports_of_environment())
    rack = load_rack(path, ports=ports)
    (lease,) = rack.lease(rack.only_board(board), purpose="pytest-esp op", timeout=wait)
    spec = lease.spec.model_copy(update={"after": after}) if after else lease.spec
    with (
        lease,
        Link(
            make_board(spec, rack),
            burns_enabled=allow_burn,
            holder="pytest-esp op",
            announce=lambda text: click.echo(hide_in(text), err=True),
        ) as link,
    ):
        yield link


@contextlib.contextmanager
def _progress(operation: Operation, as_json: bool) -> Generator[Mapping[str, Any]]:
    """Yield the progress callback as a keyword argument, if the operation takes one."""
    if not operation.takes_progress:
        yield {}
        return
    from pytest_esp.cli.op_progress import progress_of

    with progress_of(operation.name, lines=not as_json) as callback:
        yield {"progress": callback}


def _find(operations: Any, name: str) -> Operation:
    from pytest_esp.names import nearest

    if name not in operations:
        raise OperationError(f"unknown operation {name!r}", hint=f"did you mean {nearest(name, operations)}?")
    return operations[name]


def _arguments(operation: Operation, given: tuple[str, ...], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call; *options* are passed to operations that lease boards themselves.

    Raises:
        OperationError: if an argument is unknown, missing or invalid, or if the operation does not use a board but
            one was given.
    """
    known = {parameter.name: parameter for parameter in operation.parameters}
    values = {} if operation.takes_board else {key: value for key, value in options.items() if value and key in known}
    if options["port"] and "port" not in known and not operation.takes_board:
        raise OperationError(f"{operation.name} does not use a board", hint=f"leave out --board {options['port']}")
    for key, text in _pairs(operation, known, given):
        values[key] = _value(known[key], text)
    missing = [parameter for name, parameter in known.items() if parameter.required and name not in values]
    if missing:
        about = [f"{parameter.name}: {parameter.description}".rstrip(".: ") for parameter in missing]
        names = ", ".join(parameter.name for parameter in missing)
        raise OperationError(
            f"{operation.name} requires {names}", hint="; ".join([*about, f"see {operation.name} --help"])
        )
    return values


def _pairs(operation: Operation, known: Mapping[str, Parameter], given: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Yield the pairs of ``KEY=VALUE``, ``--KEY=VALUE`` and ``--KEY VALUE``; ``--KEY`` of a flag means true."""
    words = iter(given)
    for item in words:
        key, mark, text = item.removeprefix("--").partition("=")
        key = key.replace("-", "_")
        is_option = item.startswith("--") and not mark
        if key not in known or not (mark or is_option):
            shown = key if text[:1] in ("{", "[") else item  # a table may contain secrets
            raise OperationError(
                f"{operation.name} does not take the argument {shown!r}",
                hint="it takes " + (" ".join(f"{name}=..." for name in known) or "no arguments"),
            )
        if is_option:
            text = "true" if known[key].annotation is bool else next(words, "")
        yield key, text


def _value(parameter: Parameter, text: str) -> Any:
    """Return *text* converted to the parameter's type. Lists and tables are JSON; lists may also be ``A,B``."""
    from pydantic import TypeAdapter, ValidationError

    from pytest_esp.cli.op_help import is_list

    value: Any = text
    if text[:1] in "[{":
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            hint = f"{parameter.name}: {parameter.description}" if parameter.description else None
            raise OperationError(f"{parameter.name}: invalid JSON: {error}", hint=hint) from error
    elif is_list(parameter.annotation):
        value = text.split(",")
    try:
        return TypeAdapter(parameter.annotation).validate_python(value)
    except ValidationError as error:
        shown = "" if isinstance(value, (dict, list)) else f"={text}"  # a list or table may contain secrets
        hint = f"{parameter.name}: {parameter.description}" if parameter.description else None
        raise OperationError(f"{parameter.name}{shown}: {error.errors()[0]['msg']}", hint=hint) from None
