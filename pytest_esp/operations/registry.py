"""What makes a function an operation: its effect, checked before the wire is touched, and its place in the list."""

from __future__ import annotations

import enum
import functools
import importlib
import inspect
import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

from pytest_esp.errors import EspError, OperationError, RefusedError
from pytest_esp.link.link import Link
from pytest_esp.units import parse_size

P = ParamSpec("P")
R = TypeVar("R")

_MODULES = (
    "chip",
    "details",
    "connection",
    "ram",
    "running",
    "recovery",
    "flash",
    "saving",
    "restoring",
    "analysis",
    "flash_chip",
    "tuning",
    "efuse",
    "security",
    "secure_boot",
    "encryption",
    "partitions",
    "nvs",
    "building.bootloader_image",
    "building.ram_image",
    "building.elf_image",
    "building.preparing",
    "building.merging",
    "building.splitting",
    "building.image_report",
    "building.size_analysis",
    "diagnostics",
    "ota.package",
    "ota.slots",
    "ota.upload",
    "catalogue.queries",
    "idf.installation",
    "idf.tools",
    "idf.project",
    "production.factory",
    "production.quality",
    "production.provisioning",
    "production.batch",
    "production.testing",
    "unity",
)


class Effect(enum.Enum):
    """What an operation does to the board; the values are the words of ``allow`` in boards.toml."""

    READ = "read"
    WRITE = "write"
    """Recoverable: flash is written."""
    ERASE = "erase"
    """User data is gone."""
    BURN = "burn"
    """Irreversible: eFuses."""


@dataclass(frozen=True)
class Parameter:
    """One argument of an operation.

    Attributes:
        annotation: its type, resolved.
        default: `inspect.Parameter.empty` if it must be given.
        description: from the ``Args:`` of the operation's docstring; empty where the name says it all.
    """

    name: str
    annotation: Any
    default: Any
    description: str

    @property
    def required(self) -> bool:
        """Whether it must be given."""
        return self.default is inspect.Parameter.empty


@dataclass(frozen=True)
class Operation:
    """One entry of the list: all that a command line or a tool server needs to offer the operation.

    Attributes:
        name: e.g. ``"flash-read"``: the group, and the function.
        effect: what it does to the board; None if it works on files alone, and takes no board.
        function: the operation itself; its first parameter is the `Link`, if it takes a board.
        doc: its docstring, without the indentation.
    """

    name: str
    effect: Effect | None
    function: Callable[..., Any]
    doc: str

    @property
    def summary(self) -> str:
        """The first line of the docstring."""
        return self.doc.partition("\n")[0]

    @property
    def takes_progress(self) -> bool:
        """Whether it has a callback ``progress``, which is not among the `parameters`."""
        return "progress" in inspect.signature(self.function).parameters

    @functools.cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        """The arguments, without the `Link` and the progress callback."""
        hints = typing.get_type_hints(self.function)
        descriptions = _argument_descriptions(self.doc)
        rest = list(inspect.signature(self.function).parameters.values())
        if self.effect is not None:
            del rest[0]
        return tuple(
            Parameter(item.name, hints[item.name], item.default, descriptions.get(item.name, ""))
            for item in rest
            if item.name != "progress"
        )

    @property
    def result(self) -> type[Any]:
        """The class of the result, a frozen dataclass."""
        return typing.get_type_hints(self.function)["return"]


OPERATIONS: dict[str, Operation] = {}
"""The operations of the modules imported so far, by name; `load_all` imports all of them."""


def operation(
    effect: Effect, *, group: str | None = None
) -> Callable[[Callable[Concatenate[Link, P], R]], Callable[Concatenate[Link, P], R]]:
    """Make a function over a `Link` an operation with this effect.

    Its name is *group* (by default that of its module, which may be one of several for a group) and its own.

    Calling it raises RefusedError, before the wire is touched, if the board's ``allow`` has not that effect. An error
    that leaves it names the board and the operation.
    """

    def decorate(function: Callable[Concatenate[Link, P], R]) -> Callable[Concatenate[Link, P], R]:
        name = _name(group or function.__module__.rpartition(".")[2], function)

        @functools.wraps(function)
        def checked(link: Link, *args: P.args, **kwargs: P.kwargs) -> R:
            __tracebackhide__ = True  # pytest shows the arguments of frames, and some are secret
            require(link, effect, name)
            try:
                return function(link, *args, **kwargs)
            except EspError as error:
                error.board = error.board or link.board.name
                error.attempted = error.attempted or name
                raise

        OPERATIONS[name] = Operation(name, effect, checked, inspect.getdoc(function) or "")
        return checked

    return decorate


def file_operation(*, group: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a function over files an operation of *group*, offered beside those of boards; it takes no `Link`.

    An error that leaves it names the operation.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        name = _name(group, function)

        @functools.wraps(function)
        def named(*args: P.args, **kwargs: P.kwargs) -> R:
            __tracebackhide__ = True
            try:
                return function(*args, **kwargs)
            except EspError as error:
                error.attempted = error.attempted or name
                raise

        OPERATIONS[name] = Operation(name, None, named, inspect.getdoc(function) or "")
        return named

    return decorate


def _name(group: str, function: Callable[..., Any]) -> str:
    return f"{group}-{function.__name__}".replace("_", "-")


def require(link: Link, effect: Effect, name: str) -> None:
    """Check that the board allows *effect*.

    Raises:
        RefusedError: if it does not; names the setting that would allow it.
    """
    spec = link.board.spec
    if effect.value in spec.allow:
        return
    allowed = ", ".join(word.value for word in Effect if word.value in spec.allow) or "nothing"
    raise RefusedError(
        f"boards.toml does not allow this board to be changed so: it needs {effect.value!r}, and allows {allowed}",
        board=spec.name,
        attempted=name,
        hint=f'add "{effect.value}" to `allow` of [boards.{spec.name}] if this is meant',
    )


def load_all() -> Mapping[str, Operation]:
    """Import every module of operations and return the whole list."""
    for module in _MODULES:
        importlib.import_module(f"{__package__}.{module}")
    return OPERATIONS


def size_argument(value: int | str, what: str) -> int:
    """Return a size or an address in bytes (see `units.parse_size`); *what* is its name in the message.

    Raises:
        OperationError: if it is none, or negative.
    """
    try:
        return parse_size(value)
    except ValueError as error:
        raise OperationError(f"the {what} is wrong: {error}") from error


def to_dict(result: object) -> dict[str, Any]:
    """Return a result (a frozen dataclass) as plain data for JSON; bytes become hex, paths text."""
    if not is_dataclass(result) or isinstance(result, type):
        raise TypeError(f"{result!r} is no result of an operation")
    return cast(dict[str, Any], _plain(asdict(result)))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in cast(Mapping[Any, Any], value).items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in cast(list[Any], value)]
    if isinstance(value, bytes):
        return value.hex()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)


_ARGUMENTS = re.compile(r"^Args:\n((?:[ ]{4}.*\n?|\n)+)", re.MULTILINE)
_ARGUMENT = re.compile(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", re.MULTILINE)


def _argument_descriptions(doc: str) -> dict[str, str]:
    section = _ARGUMENTS.search(doc)
    found = _ARGUMENT.findall(section[1]) if section else []
    return {name: " ".join(text.split()) for name, text in found}
