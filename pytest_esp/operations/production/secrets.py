"""Values that nobody may read: passwords, keys, credentials. They go into a board, and nowhere else."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable, Mapping
from typing import Any, cast

from pytest_esp.errors import EspError, OperationError
from pytest_esp.secrets import Forms

_TYPES = frozenset({"string", "blob", "hex", "hex2bin", "base64"})  # of values that are given with their type


class Secrets(Forms):
    """The values of one call: none of them is in its errors, whatever its name."""

    def __init__(self, values: object) -> None:
        super().__init__(leaf for leaf in _leaves(values) if leaf not in _TYPES)

    @contextlib.contextmanager
    def guard(self) -> Generator[None]:
        """Let no error out that has one of the values in its message, its hint, its details or its cause."""
        __tracebackhide__ = True
        try:
            yield
        except EspError as error:
            raise self._cleaned(error) from None
        except (ValueError, TypeError, OSError) as error:  # of a library that was given one of them
            raise OperationError(self.hide(f"{type(error).__name__}: {error}")) from None

    def _cleaned(self, error: EspError) -> EspError:
        error.message = self.hide(error.message)
        error.args = (error.message,)
        error.hint = error.hint and self.hide(error.hint)
        error.attempted = error.attempted and self.hide(error.attempted)
        error.details = self.hide_in(error.details)
        return error


def _leaves(values: object) -> Iterable[str | bytes]:
    if isinstance(values, (str, bytes)):
        yield values
    elif isinstance(values, Mapping):
        for value in cast("Mapping[Any, Any]", values).values():
            yield from _leaves(value)
    elif isinstance(values, (list, tuple)):
        for value in cast("list[Any]", values):
            yield from _leaves(value)
    elif isinstance(values, int) and not isinstance(values, bool):
        yield str(values)
