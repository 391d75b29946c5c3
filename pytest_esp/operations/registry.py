"""What makes a function an operation: its effect, checked before the wire is touched, and its place in the list."""

from __future__ import annotations

import enum
import functools
from collections.abc import Callable
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

from pytest_esp.errors import RefusedError
from pytest_esp.link.link import Link

P = ParamSpec("P")
R = TypeVar("R")


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
class Operation:
    """One entry of the list.

    Attributes:
        name: e.g. ``"flash-read"``: the module, and the function.
        effect: what it does to the board.
        function: the operation itself; its first parameter is the `Link`.
        summary: the first line of its docstring.
    """

    name: str
    effect: Effect
    function: Callable[..., Any]
    summary: str


OPERATIONS: dict[str, Operation] = {}
"""All operations by name; filled as the modules of this package are imported (`load_all`)."""


def operation(
    effect: Effect,
) -> Callable[[Callable[Concatenate[Link, P], R]], Callable[Concatenate[Link, P], R]]:
    """Make a function over a `Link` an operation with this effect.

    Calling it raises RefusedError, before the wire is touched, if the board's ``allow`` has not that effect.
    """

    def decorate(function: Callable[Concatenate[Link, P], R]) -> Callable[Concatenate[Link, P], R]:
        name = f"{function.__module__.rpartition('.')[2]}-{function.__name__}".replace("_", "-")

        @functools.wraps(function)
        def checked(link: Link, *args: P.args, **kwargs: P.kwargs) -> R:
            require(link, effect, name)
            return function(link, *args, **kwargs)

        summary = (function.__doc__ or "").partition("\n")[0]
        OPERATIONS[name] = Operation(name, effect, checked, summary)
        return checked

    return decorate


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


def load_all() -> dict[str, Operation]:
    """Import every module of operations and return the whole list."""
    from pytest_esp.operations import chip, efuse, flash, partitions, security

    assert all((chip, efuse, flash, partitions, security))
    return OPERATIONS


def to_dict(result: object) -> dict[str, Any]:
    """Return a result (a frozen dataclass) as plain data for JSON; bytes become hex."""
    assert is_dataclass(result)
    return cast(dict[str, Any], _plain(asdict(cast(Any, result))))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in cast(dict[Any, Any], value).items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in cast(list[Any], value)]
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, enum.Enum):
        return value.value
    return value
