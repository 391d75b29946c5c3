"""Values that nobody may read: passwords, keys, credentials. They go into a board, and nowhere else."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Generator, Iterable, Mapping
from typing import Any, cast

from pytest_esp.errors import EspError, OperationError

MASK = "***"
_TYPES = frozenset({"string", "blob", "hex", "hex2bin", "base64"})  # of values that are given with their type
_SHORTEST = 4  # characters; to mask shorter ones would spoil every message, and none is a password


class Secrets:
    """The values of one call, in every form in which a message could have them."""

    def __init__(self, values: object) -> None:
        leaves = [leaf for leaf in _leaves(values) if leaf not in _TYPES]
        forms = {form for leaf in leaves for form in _forms(leaf) if len(form) >= _SHORTEST}
        self._forms = sorted(forms, key=len, reverse=True)  # the longest first: a short one may be a part of it

    def __repr__(self) -> str:
        return f"Secrets({MASK})"

    def hide(self, text: str) -> str:
        """Return *text* without any of the values."""
        for form in self._forms:
            text = text.replace(form, MASK)
        return text

    def hide_in(self, value: Any) -> Any:
        """Return plain data (text, lists, tables) without any of the values."""
        if isinstance(value, str):
            return self.hide(value)
        if isinstance(value, Mapping):
            return {key: self.hide_in(item) for key, item in cast("Mapping[Any, Any]", value).items()}
        if isinstance(value, (list, tuple)):
            return [self.hide_in(item) for item in cast("list[Any]", value)]
        return value

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


def _forms(value: str | bytes) -> Iterable[str]:
    raw = value.encode() if isinstance(value, str) else value
    yield raw.hex()
    yield base64.b64encode(raw).decode()
    if isinstance(value, str):
        yield value
        yield json.dumps(value)[1:-1]
        yield repr(value)[1:-1]
    else:
        yield repr(value)[2:-1]
        with contextlib.suppress(UnicodeDecodeError):
            yield value.decode()
