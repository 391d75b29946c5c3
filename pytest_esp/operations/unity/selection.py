"""Selects cases of a menu by name, group or attribute."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from pytest_esp.errors import OperationError
from pytest_esp.names import nearest
from pytest_esp.operations.unity.menu import Case, Menu

Names = str | Sequence[str]
"""One value or several; if several, any of them matches."""

_TERM = re.compile(r"\s*&?\s*(?P<not>!?)\s*(?:\[(?P<tag>[^\[\]]+)\]|(?P<word>[^\[\]&!]+))")


@dataclass(frozen=True)
class Selection:
    """Selects cases that match all given criteria; without criteria, all cases.

    Attributes:
        names: shell-style patterns (``"queue *"``); a case must match one of them.
        groups: tag expressions; any must match: ``"[a][b]"`` or ``"a&b"`` is both, ``"![a]"`` or ``"!a"`` is not.
        attributes: required values of ``[key=value]`` tags.
        invert: select all other cases instead.

    Raises:
        OperationError: if a tag expression is invalid.
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
        """Make a selection from what callers write."""
        return cls(_several(names), _several(groups), dict(attributes or {}), invert)

    def selects(self, case: Case) -> bool:
        """Whether *case* is selected."""
        meant = (
            (not self.names or any(_matches(case.name, pattern) for pattern in self.names))
            and (not self.groups or any(_holds(expression, case.tags) for expression in self.groups))
            and all(case.attributes.get(key) == str(value) for key, value in self.attributes.items())
        )
        return meant != self.invert

    def choose(self, menu: Menu) -> tuple[Case, ...]:
        """Return the selected cases of *menu*.

        Raises:
            OperationError: if there are none.
        """
        chosen = tuple(case for case in menu if self.selects(case))
        if not chosen:
            raise OperationError(
                f"none of the app's {len(menu)} test cases matches {self._describe()}", hint=self._hint(menu)
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
                f"invalid tag expression {expression!r} (at {expression[position:]!r})",
                hint='use "[a]", "[a][b]" for both, "![a]" for not; for several expressions use a list',
            )
        terms.append((bool(found["not"]), tag))
        position = found.end()
    if not terms:
        raise OperationError("an empty tag expression selects nothing", hint='use e.g. "[queue]"')
    return terms
