"""Which cases of a menu are meant: by name, by group, by attribute."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from pytest_esp.errors import OperationError
from pytest_esp.names import nearest
from pytest_esp.operations.unity.menu import Case, Menu

Names = str | Sequence[str]
"""One or several; of several, any is meant."""

_TERM = re.compile(r"\s*&?\s*(?P<not>!?)\s*(?:\[(?P<tag>[^\[\]]+)\]|(?P<word>[^\[\]&!]+))")


@dataclass(frozen=True)
class Selection:
    """Cases that fulfil all of what is given; nothing given means all.

    Attributes:
        names: patterns as of a shell (``"queue *"``); any of them.
        groups: expressions of tags, any of them: ``"[a][b]"`` or ``"a&b"`` is both, ``"![a]"`` or ``"!a"`` is not.
        attributes: values of ``[key=value]`` tags, all of them.
        invert: all other cases are meant.

    Raises:
        OperationError: if an expression of groups cannot be read.
    """

    names: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    attributes: Mapping[str, str] = field(default_factory=dict[str, str])
    invert: bool = False

    def __post_init__(self) -> None:
        for expression in self.groups:
            _terms(expression)

    @classmethod
    def of(cls, names: Names, groups: Names, attributes: Mapping[str, str] | None, invert: bool) -> Selection:
        """Make one of what callers write."""
        return cls(_several(names), _several(groups), dict(attributes or {}), invert)

    def selects(self, case: Case) -> bool:
        """Whether *case* is meant."""
        meant = (
            (not self.names or any(_matches(case.name, pattern) for pattern in self.names))
            and (not self.groups or any(_holds(expression, case.tags) for expression in self.groups))
            and all(case.attributes.get(key) == str(value) for key, value in self.attributes.items())
        )
        return meant != self.invert

    def choose(self, menu: Menu) -> tuple[Case, ...]:
        """Return the cases of *menu* that are meant.

        Raises:
            OperationError: if there are none.
        """
        chosen = tuple(case for case in menu if self.selects(case))
        if not chosen:
            raise OperationError(
                f"none of the app's {len(menu)} test cases is selected by {self._describe()}", hint=self._hint(menu)
            )
        return chosen

    def _describe(self) -> str:
        given = {"names": self.names, "groups": self.groups, "attributes": dict(self.attributes)}
        text = ", ".join(f"{key}={value!r}" for key, value in given.items() if value)
        return f"not ({text})" if self.invert else text

    def _hint(self, menu: Menu) -> str:
        if self.names:
            return f"nearest names: {nearest(self.names[0], (case.name for case in menu))}"
        groups = dict.fromkeys(f"[{tag}]" for case in menu for tag in case.tags)
        return f"its tags are {' '.join(groups) or 'none'}"


def _several(given: Names) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


def _matches(name: str, pattern: str) -> bool:
    return name == pattern or fnmatch.fnmatchcase(name, pattern)


def _holds(expression: str, tags: Iterable[str]) -> bool:
    return all((tag in tags) != is_not for is_not, tag in _terms(expression))


def _terms(expression: str) -> list[tuple[bool, str]]:
    """Return the tags of an expression, each with whether it must be absent."""
    terms: list[tuple[bool, str]] = []
    position = 0
    while position < len(expression.rstrip()):
        found = _TERM.match(expression, position)
        tag = (found["tag"] or found["word"]).strip() if found else ""
        if found is None or not tag:
            raise OperationError(
                f"{expression!r} is no expression of groups (at {expression[position:]!r})",
                hint='write "[a]", "[a][b]" for both, "![a]" for not; several expressions are a list',
            )
        terms.append((bool(found["not"]), tag))
        position = found.end()
    if not terms:
        raise OperationError("an empty expression of groups selects nothing", hint='write e.g. "[queue]"')
    return terms
