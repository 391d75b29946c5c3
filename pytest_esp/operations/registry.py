"""Registers functions as operations: with an effect, checked before the board is accessed, and a place in the list."""

from __future__ import annotations

import enum
import functools
import inspect
import os
import re
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Concatenate, ParamSpec, TypeVar

from pytest_esp.errors import EspError, RefusedError
from pytest_esp.formats.files import Access, PathRole, confinement, resolve
from pytest_esp.link.link import Link
from pytest_esp.names import ChipSpelling, chip_name

P = ParamSpec("P")
R = TypeVar("R")
M = TypeVar("M")


class Effect(enum.Enum):
    """What an operation does to the board; the values are those of ``allow`` in boards.toml."""

    READ = "read"
    WRITE = "write"
    """Recoverable: writes flash."""
    ERASE = "erase"
    """Destroys user data."""
    BURN = "burn"
    """Irreversible: eFuses."""


@dataclass(frozen=True)
class Parameter:
    """One argument of an operation.

    Attributes:
        annotation: its type, resolved.
        default: `inspect.Parameter.empty` if it must be given.
        description: from the ``Args:`` of the operation's docstring; empty if it has none.
    """

    name: str
    annotation: Any
    default: Any
    description: str

    @property
    def required(self) -> bool:
        """Whether the argument must be given."""
        return self.default is inspect.Parameter.empty


@dataclass(frozen=True)
class Operation:
    """One entry of the list: all that a command line or a tool server needs to offer the operation.

    Attributes:
        name: e.g. ``"flash-read"``: group and function name.
        effect: the strongest effect it can have; None if it only works on files.
        function: the operation itself; its first parameter is the `Link`, if it takes a board.
        doc: its docstring, without the indentation.
        without: flags (parameters) without which a call has a weaker effect, and that effect.
        takes_board: whether it runs on one board, over a `Link`.
    """

    name: str
    effect: Effect | None
    function: Callable[..., Any]
    doc: str
    without: Mapping[str, Effect] = field(default_factory=dict[str, Effect])
    takes_board: bool = True

    def effect_of(self, arguments: Mapping[str, Any]) -> Effect | None:
        """Return the effect of a call with these *arguments*."""
        return next((less for flag, less in self.without.items() if not arguments.get(flag)), self.effect)

    @property
    def summary(self) -> str:
        """Return the first line of the docstring."""
        return self.doc.partition("\n")[0]

    @property
    def description(self) -> str:
        """Return the docstring up to its sections: the text to read before the arguments."""
        return description(self.doc)

    @property
    def takes_progress(self) -> bool:
        """Return whether the function has a callback ``progress``, which is not among the `parameters`."""
        return "progress" in inspect.signature(self.function).parameters

    @functools.cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        """Return the arguments, without the `Link` and the progress callback."""
        hints = typing.get_type_hints(self.function, include_extras=True)
        descriptions = argument_descriptions(self.doc)
        rest = list(inspect.signature(self.function).parameters.values())
        if self.takes_board:
            del rest[0]
        return tuple(
            Parameter(item.name, hints[item.name], item.default, descriptions.get(item.name, ""))
            for item in rest
            if item.name != "progress"
        )

    @functools.cached_property
    def paths(self) -> Mapping[str, Access]:
        """Return the parameters that are paths (by their types), and what each is opened for."""
        hints = typing.get_type_hints(self.function, include_extras=True)
        return {name: role.access for name, hint in hints.items() for role in _marks(hint, PathRole)}

    @functools.cached_property
    def chips(self) -> frozenset[str]:
        """Return the parameters that are names of chips (by their types)."""
        hints = typing.get_type_hints(self.function, include_extras=True)
        return frozenset(name for name, hint in hints.items() if any(_marks(hint, ChipSpelling)))

    def prepare(self, names: Sequence[str], args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Return the arguments of a call (the first are *names*): chips as esptool spells them, and paths resolved if
        paths are confined.

        Raises:
            RefusedError: see `resolve`.
        """
        if confinement() is None and not self.chips:
            return args, kwargs
        return (
            [*map(self._prepared, names, args), *args[len(names) :]],
            {name: self._prepared(name, value) for name, value in kwargs.items()},
        )

    def _prepared(self, name: str, value: Any) -> Any:
        if name in self.chips:
            if isinstance(value, list):
                return [chip_name(one) for one in typing.cast("list[str]", value)]
            return chip_name(value) if isinstance(value, str) else value
        if name in self.paths and isinstance(value, (str, os.PathLike)) and confinement() is not None:
            return resolve(value, self.paths[name])
        return value

    @property
    def result(self) -> type[Any]:
        """Return the class of the result, a frozen dataclass."""
        return typing.get_type_hints(self.function)["return"]


OPERATIONS: dict[str, Operation] = {}
"""Return the operations of the modules imported so far, by name; `load_all` imports all of them."""


def operation(
    effect: Effect, *, group: str, without: Mapping[str, Effect] | None = None
) -> Callable[[Callable[Concatenate[Link, P], R]], Callable[Concatenate[Link, P], R]]:
    """Register a function over a `Link` as an operation with this effect.

    Its name joins *group* and the function's name, e.g. ``"flash-read"``.

    Args:
        effect: the strongest effect it can have.
        group: the attribute of `esp` that has the method.
        without: a flag without which a call has a weaker effect, e.g. ``{"apply": Effect.READ}``.

    Calling it raises RefusedError before the board is accessed, if the board's ``allow`` lacks that effect. Errors
    that leave it name the board and the operation.
    """

    def decorate(function: Callable[Concatenate[Link, P], R]) -> Callable[Concatenate[Link, P], R]:
        name = _name(group, function)
        names = tuple(inspect.signature(function).parameters)[1:]

        @functools.wraps(function)
        def checked(link: Link, *args: P.args, **kwargs: P.kwargs) -> R:
            __tracebackhide__ = True  # pytest prints the arguments of frames; some are secret
            given: dict[str, Any] = dict(zip(names, args, strict=False), **kwargs)
            require(link, entry.effect_of(given) or effect, name)
            try:
                args, kwargs = entry.prepare(names, args, kwargs)
                return function(link, *args, **kwargs)
            except EspError as error:
                error.board = error.board or link.board.name
                error.attempted = error.attempted or name
                raise

        entry = Operation(name, effect, checked, inspect.getdoc(function) or "", without or {})
        return _listed(checked, entry)

    return decorate


def file_operation(*, group: str, effect: Effect | None = None) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Register a function over files as an operation of *group*, offered beside those of boards; it takes no `Link`.

    *effect* is the strongest effect it can have on boards that it leases by name, or on this machine (it installs or
    builds); a server checks it. Errors that leave it name the operation.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        name = _name(group, function)
        names = tuple(inspect.signature(function).parameters)

        @functools.wraps(function)
        def named(*args: P.args, **kwargs: P.kwargs) -> R:
            __tracebackhide__ = True
            try:
                args, kwargs = entry.prepare(names, args, kwargs)
                return function(*args, **kwargs)
            except EspError as error:
                error.attempted = error.attempted or name
                raise

        entry = Operation(name, effect, named, inspect.getdoc(function) or "", takes_board=False)
        return _listed(named, entry)

    return decorate


def operation_of(function: Callable[..., Any]) -> Operation:
    """Return the list entry of an operation, given its function."""
    return getattr(function, _ENTRY)


_ENTRY = "__operation__"


def _listed(function: Callable[P, R], entry: Operation) -> Callable[P, R]:
    OPERATIONS[entry.name] = entry
    setattr(function, _ENTRY, entry)
    return function


def _marks(annotation: Any, kind: type[M]) -> Iterator[M]:
    """Yield the marks of one *kind* in a type."""
    if typing.get_origin(annotation) is typing.Annotated:
        yield from (item for item in annotation.__metadata__ if isinstance(item, kind))
        return
    for part in typing.get_args(annotation):
        yield from _marks(part, kind)


def _name(group: str, function: Callable[..., Any]) -> str:
    return f"{group}-{function.__name__}".replace("_", "-")


def require(link: Link, effect: Effect, name: str) -> None:
    """Check that the board allows *effect*.

    Raises:
        RefusedError: if not; the hint names the setting that allows it.
    """
    spec = link.board.spec
    if effect.value in spec.allow:
        return
    allowed = ", ".join(word.value for word in Effect if word.value in spec.allow) or "nothing"
    raise RefusedError(
        f"operation requires {effect.value!r}; this board allows: {allowed}",
        board=spec.name,
        attempted=name,
        hint=f'to permit it, add "{effect.value}" to `allow` of [boards.{spec.name}] in boards.toml',
    )


_ARGUMENTS = re.compile(r"^Args:\n((?:[ ]{4}.*\n?|\n)+)", re.MULTILINE)
_ARGUMENT = re.compile(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", re.MULTILINE)


_SECTION = re.compile(r"^(?:Args|Raises|Returns|Attributes|Source):", re.MULTILINE)


def description(doc: str) -> str:
    """Return a docstring up to its sections."""
    return _SECTION.split(doc, maxsplit=1)[0].strip()


def argument_descriptions(doc: str) -> dict[str, str]:
    """Return the description of each argument in the ``Args:`` of a docstring."""
    section = _ARGUMENTS.search(doc)
    found = _ARGUMENT.findall(section[1]) if section else []
    return {name: " ".join(text.split()) for name, text in found}
