"""JSON schemas of tools, in the part of JSON Schema that all clients and models take.

Some converters refuse a whole request for one keyword: integers in ``enum``, references, formats that nobody has
registered, ``additionalProperties``. They are left out here; the server itself validates the arguments.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from pytest_esp.operations.results import as_shown

_DROPPED = ("additionalProperties", "format", "title", "$defs")


def inlined(schema: Any, definitions: Mapping[str, Any]) -> Any:
    """Return *schema* with its references resolved, without the keywords that some clients refuse.

    Results are shown as `to_dict` returns them. Schemas of tools are not recursive.
    """
    if isinstance(schema, list):
        return [inlined(item, definitions) for item in cast("list[Any]", schema)]
    if not isinstance(schema, dict):
        return schema
    keywords = cast("dict[str, Any]", schema)
    if "$ref" in keywords:
        rest = {key: value for key, value in keywords.items() if key != "$ref"}
        return inlined({**definitions[keywords["$ref"].rpartition("/")[2]], **rest}, definitions)
    shown: dict[str, Any] = {}
    for key, value in keywords.items():
        if key == "properties":  # its keys are names of fields; one may be "title"
            shown[key] = as_shown({name: inlined(one, definitions) for name, one in value.items()})
        elif key not in _DROPPED or (key == "format" and value == "binary"):  # `as_shown` needs that one
            shown[key] = inlined(value, definitions)
    if "required" in shown:
        shown["required"] = [name for name in shown["required"] if name in shown["properties"]]
    return shown


def input_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of a tool's arguments, from pydantic's.

    A parameter that may be null is only optional, so that its type is one type; closed sets are strings.
    """
    plain = inlined(schema, schema.get("$defs", {}))
    properties = {name: _argument(one) for name, one in plain.get("properties", {}).items()}
    required = {"required": plain["required"]} if plain.get("required") else {}
    return {"type": "object", "properties": properties, **required}


def _argument(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of one argument, or of a part of one."""
    shown = {key: value for key, value in schema.items() if key not in ("anyOf", "const")}
    if shown.get("default", ...) is None:
        del shown["default"]
    if "const" in schema:
        shown["enum"] = [schema["const"]]
    if "properties" in shown:
        shown["properties"] = {name: _argument(one) for name, one in shown["properties"].items()}
    if shown.get("type") == "array":
        shown["items"] = _argument(shown.get("items") or {"type": "object"})
    if any(isinstance(one, int) for one in shown.get("enum", ())):
        shown["type"], shown["enum"] = "string", [str(one) for one in shown["enum"]]
        shown |= {"default": str(shown["default"])} if "default" in shown else {}
    kinds = _merged([_argument(one) for one in schema.get("anyOf", ()) if one.get("type") != "null"])
    if len(kinds) == 1:
        return {**kinds[0], **shown}
    return {"anyOf": kinds, **shown} if kinds else shown


def _merged(kinds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return alternatives with those left out that another one includes, and their enums joined."""
    enums = [one for one in kinds if "enum" in one]
    others = [one for one in kinds if "enum" not in one and one.get("type") != "number"]
    numbers = [one for one in kinds if one.get("type") == "number"]
    if numbers:
        others = [*(one for one in others if one.get("type") != "integer"), numbers[0]]
    if {"type": "string"} in others:
        enums = []
    joined = [{"type": "string", "enum": [value for one in enums for value in one["enum"]]}] if enums else []
    unique: list[dict[str, Any]] = []
    return [*joined, *(unique.append(one) or one for one in others if one not in unique)]
