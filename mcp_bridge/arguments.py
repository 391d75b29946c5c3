"""Arguments as models send them: lists and tables as JSON text, members of closed sets as text, "" for nothing."""

from __future__ import annotations

import contextlib
import inspect
import json
from collections.abc import Mapping
from dataclasses import is_dataclass
from types import UnionType
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin

from pydantic import BeforeValidator


def accepting(annotation: Any, default: Any = inspect.Parameter.empty) -> Any:
    """Return the type of a parameter that also accepts the text forms of its values.

    Args:
        annotation: its type.
        default: its default; if it is None, an empty text means the default (some clients must send every parameter).
    """
    kinds = list(_kinds(annotation))
    takes_text = any(kind is str for kind in kinds)
    is_container = any(_is_container(kind) for kind in kinds)
    numbers = {str(value): value for kind in kinds for value in _numbers(kind)}

    def from_text(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        text = value.strip()
        if default is None and not text:
            return None
        if is_container and not takes_text:
            return from_json(text)
        if is_container and text.startswith(("[", "{")):
            with contextlib.suppress(ValueError):  # it may be another text
                return from_json(text)
        return numbers.get(text.upper().removesuffix("MB").strip(), value)

    if default is None or is_container or numbers:
        return Annotated[annotation, BeforeValidator(from_text)]
    return annotation


def from_json(value: Any) -> Any:
    """Return the value of JSON text; other values as they are.

    Raises:
        ValueError: if a text is not JSON.
    """
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise ValueError("expected a list or an object, or JSON text with one") from None


def _kinds(annotation: Any) -> list[Any]:
    """Return the alternatives of a type."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _kinds(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return [kind for part in get_args(annotation) for kind in _kinds(part)]
    return [annotation]


def _is_container(kind: Any) -> bool:
    origin: Any = get_origin(kind) or kind
    return isinstance(origin, type) and (
        issubclass(cast("type[Any]", origin), (list, tuple, Mapping))
        or is_dataclass(cast("type[Any]", origin))
        or hasattr(cast("type[Any]", origin), "model_fields")
    )


def _numbers(kind: Any) -> list[int]:
    """Return the integers of a closed set."""
    return [value for value in get_args(kind) if type(value) is int] if get_origin(kind) is Literal else []
