"""Results as plain data, the same everywhere: what `pytest-esp op --json` prints and what a tool returns."""

from __future__ import annotations

import functools
import typing
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, cast

from pytest_esp.units import SHOWN, Address, Shown

__all__ = ["Address", "as_shown", "fields_of", "to_dict"]


def to_dict(result: object) -> dict[str, Any]:
    """Return a result (a frozen dataclass) as plain data for JSON.

    Bytes become hex, or None if ``output_file`` has them; paths become text; mappings and sequences become their JSON
    counterparts. Each `Address` is accompanied by its text; fields marked as never `Shown` are left out.
    """
    if not is_dataclass(result) or isinstance(result, type):
        raise TypeError(f"{result!r} is not the result of an operation")
    record: dict[str, Any] = {}
    saved = getattr(result, "output_file", None) is not None
    for field, is_hex in fields_of(type(result)):
        value = getattr(result, field)
        record[field] = None if saved and isinstance(value, bytes) else _plain(value)
        if is_hex:
            record[f"{field}_hex"] = None if value is None else f"{value:#x}"
    return record


@functools.cache
def fields_of(result_type: type[Any]) -> tuple[tuple[str, bool], ...]:
    """Return the fields of a result that are shown, and whether each is an `Address`."""
    hints = typing.get_type_hints(result_type, include_extras=True)
    shown = {field.name: _shown(hints[field.name]) for field in fields(result_type)}
    return tuple((name, how == "hex") for name, how in shown.items() if how != "never")


def _shown(annotation: Any) -> str | None:
    """Return how a field is `Shown`, even if its type allows None."""
    if typing.get_origin(annotation) is Annotated:
        return next((item.how for item in annotation.__metadata__ if isinstance(item, Shown)), None)
    choices = typing.get_args(annotation)
    return next(filter(None, map(_shown, choices)), None) if type(None) in choices else None


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if is_dataclass(value):
        return to_dict(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in cast(Mapping[Any, Any], value).items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in cast(list[Any], value)]
    return value.hex() if isinstance(value, bytes) else str(value)


def as_shown(properties: Mapping[str, Any]) -> dict[str, Any]:
    """Return the *properties* of a record's JSON schema in the form that `to_dict` gives the record."""
    shown: dict[str, Any] = {}
    for name, schema in properties.items():
        choices = schema.get("anyOf", [schema])
        optional = any(choice.get("type") == "null" for choice in choices)
        if any(choice.get(SHOWN) == "never" for choice in choices):
            continue
        if any(choice.get("format") == "binary" for choice in choices):
            shown[name] = {"type": ["string", "null"]}
        elif any(choice.get(SHOWN) == "hex" for choice in choices):
            shown[name] = {"type": ["integer", "null"] if optional else "integer"}
            shown[f"{name}_hex"] = {"type": ["string", "null"] if optional else "string"}
        else:
            shown[name] = schema
    return shown
