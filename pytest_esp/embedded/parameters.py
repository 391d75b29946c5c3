"""Values of parameters: from a test's parametrisation, else from the command line; one for each of several boards."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import pytest

from pytest_esp.versions import required

_WORDS = {"y": True, "yes": True, "true": True, "n": False, "no": False, "false": False}
_count = 1


def set_count(count: int) -> None:
    """Set the number of boards of the running test, for the decorators of conftest files."""
    global _count
    _count = count
    peer = sys.modules.get("pytest_embedded.plugin")
    if peer is not None and hasattr(peer, "__file__"):  # an installed one, whose decorators read its own number
        required(peer, "_COUNT", "pytest-embedded")
        vars(peer)["_COUNT"] = count


def count_of(value: Any) -> int:
    """Return a number of boards.

    Raises:
        ValueError: if it is none.
    """
    count = int(value)
    if count < 1:
        raise ValueError(f"count must be at least 1, not {value}")
    return count


def parse_multi_dut_args(count: int, value: Any) -> Any:
    """Return the value of each board: ``"a|b"`` is one for each of two; a tuple if there are several boards.

    Words for yes and no become booleans.

    Raises:
        ValueError: if the number of values is neither 1 nor *count*.
    """
    values = tuple(map(_boolean, value.split("|") if isinstance(value, str) else [value]))
    if len(values) not in (1, count):
        raise ValueError(f"{value!r} has {len(values)} values, but there are {count} boards")
    return values[0] if count == 1 else values * (count // len(values))


def _boolean(value: Any) -> Any:
    return _WORDS.get(value.lower(), value) if isinstance(value, str) else value


def multi_dut_argument(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a fixture that returns a value for each board, see `parse_multi_dut_args`."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return parse_multi_dut_args(_count, function(*args, **kwargs))

    return wrapper


def multi_dut_fixture(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a fixture that is called once for each board, with that board's values."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if _count == 1:
            return function(*args, **kwargs)
        return tuple(
            function(*args, **{name: of_board(value, number) for name, value in kwargs.items()})
            for number in range(_count)
        )

    return wrapper


def of_board(value: Any, number: int) -> Any:
    """Return the board's item of a value that has one for each board, else the value."""
    return value[number] if isinstance(value, (list, tuple)) else value  # pyright: ignore[reportUnknownVariableType]


def _request_param_or_config_option_or_default(  # pyright: ignore[reportUnusedFunction] - conftest files import it
    request: pytest.FixtureRequest, option: str, default: Any = None
) -> Any:
    return value_of(request, option, default)


def value_of(request: pytest.FixtureRequest, option: str, default: Any = None) -> Any:
    """Return the parameter of a fixture, else the command line's option, else *default*."""
    return getattr(request, "param", None) or request.config.getoption(option, None) or default


def item_value(item: pytest.Item, name: str, default: Any = None) -> Any:
    """Return the value of a parameter before the test runs."""
    callspec: Any = getattr(item, "callspec", None)
    given = None if callspec is None else callspec.params.get(name)
    return given or item.config.getoption(name, None) or default
