"""Help texts of ``pytest-esp op``: the list of operations, the help of each, and their names in hints."""

from __future__ import annotations

import inspect
import os
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Annotated, Any, Literal, get_args, get_origin

import click

from pytest_esp.operations.registry import Operation, Parameter

_MARKUP = re.compile(r"``(.+?)``|`([^`]+)`|(?<![\w*/-])\*(\w[\w ]*)\*(?!\w)")
_EFFECTS = {
    "read": "reads the board",
    "write": "writes to the board",
    "erase": "erases data on the board",
    "burn": "burns eFuses: irreversible on a real board",
}


def plain(text: str) -> str:
    """Return the text of a docstring without reStructuredText markup."""
    return _MARKUP.sub(lambda match: match[1] or match[2] or match[3], text)


def listed(operations: Iterable[Operation]) -> str:
    """Return the list of all operations, by group."""
    from pytest_esp.operations.esp import Esp

    formatter = _formatter()
    formatter.write_text("Run pytest-esp op NAME --help for the arguments of an operation.")
    in_order = sorted(operations, key=lambda item: item.name)
    for group, members in groupby(in_order, key=lambda item: item.name.partition("-")[0]):
        about = plain(inspect.getdoc(vars(Esp)[group]) or "").partition("\n")[0].rstrip(".")
        rows = [(item.name, f"{_kind(item):5}  {plain(item.summary)}") for item in members]
        with formatter.section(f"{group}: {about}" if about else group):
            formatter.write_dl(rows, col_max=42)
    return formatter.getvalue().rstrip()


def help_of(operation: Operation) -> str:
    """Return the help of one operation."""
    formatter = _formatter()
    required = [f"{item.name}=..." for item in operation.parameters if item.required]
    optional = ["[KEY=VALUE]..."] if len(required) < len(operation.parameters) else []
    board = ["[--board NAME]"] if operation.takes_board or takes(operation, "port") else []
    formatter.write_usage("pytest-esp op", " ".join([operation.name, *board, *required, *optional]))
    formatter.write_paragraph()
    with formatter.indentation():
        formatter.write_text(plain(operation.description))
    if operation.parameters:
        with formatter.section("Arguments (KEY=VALUE; lists and tables as JSON)"):
            formatter.write_dl([(item.name, _about(item)) for item in operation.parameters])
    if operation.takes_board and operation.effect is not None:
        less = [f"without {flag}: {_EFFECTS[effect.value]}" for flag, effect in operation.without.items()]
        with formatter.section("Effect"):
            formatter.write_text("; ".join([_EFFECTS[operation.effect.value], *less]) + ".")
    formatter.write_paragraph()
    formatter.write_text("For options such as --board, --wait and --json, see pytest-esp op --help.")
    return formatter.getvalue().rstrip()


def takes(operation: Operation, name: str) -> bool:
    """Return whether an operation has a parameter of that name."""
    return any(item.name == name for item in operation.parameters)


def as_commands(text: str, operations: Mapping[str, Operation]) -> str:
    """Return a hint in which names of operations are replaced by commands."""
    names = "|".join(sorted(operations, key=len, reverse=True))
    return re.sub(rf"(?<!pytest-esp op )(?<![\w-])(?:{names})(?![\w-])", r"pytest-esp op \g<0>", text)


def _kind(operation: Operation) -> str:
    return operation.effect.value if operation.effect else "files"


def _formatter() -> click.HelpFormatter:
    return click.get_current_context().make_formatter()


def _about(parameter: Parameter) -> str:
    text = plain(parameter.description).strip()
    if text and text[-1] not in ".!?":
        text += "."
    kind = "|".join(dict.fromkeys(_words(parameter.annotation)))
    if parameter.required:
        return f"{text}  [{kind}; required]"
    default = parameter.default
    shown = "true" if default is True else "false" if default is False else default
    if isinstance(default, (list, tuple)):
        shown = ",".join(map(str, typing.cast("Sequence[Any]", default)))
    return f"{text}  [{kind}]" if shown in (None, "") else f"{text}  [{kind}; default: {shown}]"


def _words(annotation: Any) -> Iterator[str]:
    """Yield the words for the values that a parameter of that type takes."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _words(get_args(annotation)[0])
    elif origin is Literal:
        yield from map(str, get_args(annotation))
    elif origin in (typing.Union, types.UnionType):
        choices = get_args(annotation)
        is_path = any(get_origin(choice) is os.PathLike for choice in choices)
        for choice in choices:
            if not (choice is str and is_path):
                yield from _words(choice)
    elif isinstance(origin, type):
        yield "path" if origin is os.PathLike else "table" if issubclass(origin, Mapping) else "list"
    else:
        words = {bool: "true|false", int: "number", float: "number", str: "text"}
        if annotation in words:
            yield words[annotation]


def is_list(annotation: Any) -> bool:
    """Return whether a parameter takes a list of texts or numbers, but not a single text."""
    return set(_words(annotation)) == {"list"} and "Mapping" not in str(annotation) and "dict" not in str(annotation)
