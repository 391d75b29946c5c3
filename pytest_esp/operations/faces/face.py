"""Turns operations into methods of `esp`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

from pytest_esp.link.link import Link

P = ParamSpec("P")
R = TypeVar("R")


class bound(Generic[P, R]):  # noqa: N801 - used like a decorator
    """Make an operation (a function over a `Link`) a method of a face, with its signature and docstring."""

    def __init__(self, function: Callable[Concatenate[Link, P], R]) -> None:
        self.function = function
        self.__doc__ = function.__doc__

    @overload
    def __get__(self, face: None, owner: type[Any]) -> bound[P, R]: ...
    @overload
    def __get__(self, face: Face, owner: type[Any]) -> Callable[P, R]: ...
    def __get__(self, face: Face | None, owner: type[Any]) -> bound[P, R] | Callable[P, R]:
        """Return the operation with the face's link filled in."""
        if face is None:
            return self

        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            __tracebackhide__ = True  # pytest prints the arguments of frames; some are secret
            return self.function(face.link, *args, **kwargs)

        call.__name__ = self.function.__name__
        call.__doc__ = self.__doc__
        return call


class Face:
    """A group of operations, bound to one board."""

    def __init__(self, link: Link) -> None:
        self.link = link
