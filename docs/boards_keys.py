"""Writes the table of keys in docs/boards.md, from the model of a board's entry: ``python docs/boards_keys.py``."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

from pytest_esp.rack.spec import ASKED_BACKENDS, BACKENDS, VIRTUAL_BACKENDS, BoardSpec, backends_of

PAGE = Path(__file__).parent / "boards.md"
BEGIN, END = "<!-- keys: written by docs/boards_keys.py -->\n", "<!-- end of keys -->\n"
_DEFAULTS = {  # those that depend on the backend, or that a validator fills in
    "chip": "asked of a real board; required for others",
    "console_baud": "that of the build's `sdkconfig`, else 115200",
    "baud": "460800, virtual boards 921600",
    "flash_size": "asked of a real board; virtual boards 4MB",
    "revision": "asked",
    "crystal": "asked",
    "allow": "all but `burn`; virtual boards all",
}
_TYPES = {
    "allow": "list of names",
    "allow_burn": "list of names",
    "faults": "table",
    "features": "list of names",
    "flash_size": "size",
    "options": "table",
    "power": "table",
    "power_meter": "table",
    "revision": "text or int",
    "tags": "table",
}


def table() -> str:
    """Return the table in Markdown: key, type, default, backends, meaning."""
    meanings = _meanings()
    properties: dict[str, dict[str, Any]] = BoardSpec.model_json_schema()["properties"]
    rows = [
        f"| `{key}` | {_type(key, schema)} | {_default(key, schema)} | {_backends(key)} | {meanings[key]} |"
        for key, schema in properties.items()
        if key != "name"  # the table's name
    ]
    return "\n".join(["| key | type | default | backends | meaning |", "|---|---|---|---|---|", *rows]) + "\n"


def _meanings() -> dict[str, str]:
    """Return the meaning of each key, from the docstring's section on attributes."""
    section = inspect.cleandoc(BoardSpec.__doc__ or "").partition("Attributes:\n")[2]
    found = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", section, re.MULTILINE)
    return {key: " ".join(text.split()).removesuffix(".").replace("|", "\\|") for key, text in found}


def _type(key: str, schema: dict[str, Any]) -> str:
    if key in _TYPES:
        return _TYPES[key]
    kinds = [schema, *schema.get("anyOf", ())]
    if choices := [f'`"{choice}"`' for kind in kinds for choice in kind.get("enum", ())]:
        return ", ".join(choices)
    words = {"integer": "int", "boolean": "bool", "string": "text"}
    return next(words[kind["type"]] for kind in kinds if kind.get("type") in words)


def _default(key: str, schema: dict[str, Any]) -> str:
    if key in _DEFAULTS:
        return _DEFAULTS[key]
    default = schema.get("default")
    if default is None or default == []:
        return "required" if key == "backend" else ""
    return f'`"{default}"`' if isinstance(default, str) else f"`{str(default).lower()}`"


def _backends(key: str) -> str:
    backends = backends_of(key)
    names = {BACKENDS: "all", VIRTUAL_BACKENDS: "virtual", ASKED_BACKENDS: "real"}
    known = next((name for group, name in names.items() if set(group) == set(backends)), "")
    return known or ", ".join(backends) or "other packages'"


def written() -> str:
    """Return the page with the table as it should be."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    return before + BEGIN + table() + END + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(written(), encoding="utf-8")
