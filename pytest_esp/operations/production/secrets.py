"""Secret values: passwords, keys, credentials. They are written to a board, and appear nowhere else."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable, Mapping
from typing import Any, cast

from pytest_esp.errors import EspError, OperationError
from pytest_esp.secrets import Forms

_TYPES = frozenset({"string", "blob", "hex", "hex2bin", "base64"})  # types of values given with a type


class Secrets(Forms):
    """The values of one call: none of them appears in its errors, whatever its name."""

    def __init__(self, values: object) -> None:
        super().__init__(leaf for leaf in _leaves(values) if leaf not in _TYPES)

    @contextlib.contextmanager
    def guard(self) -> Generator[None]:
        """Remove these values from the message, hint, details and cause of any error that passes through."""
        __tracebackhide__ = True
        try:
            yield
        except EspError as error:
            raise self._cleaned(error) from None
        except (ValueError, TypeError, OSError) as error:  # raised by a library that received one of them
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
