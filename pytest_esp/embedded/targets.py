"""Parametrisation over chips: what scripts import from ``pytest_embedded_idf.utils``."""

from __future__ import annotations

import ast
import importlib
import os
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest

from pytest_esp.rack.chips import CHIPS

_CONSTANTS = Path("tools", "idf_py_actions", "constants.py")


def _listed(name: str) -> list[str]:
    """Return a list of ESP-IDF's, from IDF_PATH; without it all chips are supported, and none is a preview."""
    file = Path(os.environ.get("IDF_PATH", ""), _CONSTANTS)
    if os.environ.get("IDF_PATH") and file.is_file():
        for line in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(line, ast.Assign) and any(isinstance(to, ast.Name) and to.id == name for to in line.targets):
                return list(ast.literal_eval(line.value))
    return [chip for chip in CHIPS if chip != "esp8266"] if name == "SUPPORTED_TARGETS" else []


supported_targets: ContextVar[list[str]] = ContextVar("supported_targets")
preview_targets: ContextVar[list[str]] = ContextVar("preview_targets")


def set_lists(supported: str | None, preview: str | None) -> None:
    """Set both lists: comma-separated, or ESP-IDF's if None."""
    supported_targets.set(_words(supported) if supported else _listed("SUPPORTED_TARGETS"))
    preview_targets.set(_words(preview) if preview else _listed("PREVIEW_TARGETS"))


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",")]


def idf_parametrize(
    param_names: str, values: Sequence[Any], indirect: bool | Sequence[str] = False
) -> Callable[[Any], Any]:
    """Parametrise a test like ``pytest.mark.parametrize``.

    A ``target`` can be ``"supported_targets"`` or ``"preview_targets"``; a value after the last parameter, or for the
    parameter ``markers``, is a marker or several.

    Raises:
        ValueError: if a name is empty, or a value has too many items.
    """
    names = [name.strip() for name in param_names.split(",")]
    if not all(names):
        raise ValueError(f"a parameter's name is empty: {param_names!r}")
    rows = [[value] if len(names) == 1 else list(value) for value in values]
    names = [name for name in names if name != "markers"]
    if "target" in names:
        rows = [row for given in rows for row in _with_targets(given, names.index("target"))]
    return pytest.mark.parametrize(",".join(names), [_param(row, len(names)) for row in rows], indirect=indirect)


def _with_targets(row: list[Any], place: int) -> list[list[Any]]:
    lists = {"supported_targets": supported_targets, "preview_targets": preview_targets}
    named = lists.get(row[place]) if isinstance(row[place], str) else None
    return [row] if named is None else [[*row[:place], chip, *row[place + 1 :]] for chip in named.get()]


def _param(row: list[Any], count: int) -> Any:
    if len(row) > count + 1:
        raise ValueError(f"{row!r} has more than {count} values and their markers")
    marks = row[count] if len(row) > count else ()
    return pytest.param(*row[:count], marks=marks if isinstance(marks, (list, tuple)) else (marks,))


def soc_filtered_targets(soc_statement: str, targets: str = "all") -> list[str]:
    """Return the chips for which a statement about ESP-IDF's ``SOC_*`` capabilities holds.

    Raises:
        ImportError: if the package that reads them is not installed.
        ValueError: if it holds for none.
    """
    statement = _statement(soc_statement)
    chips = [*supported_targets.get()] if targets in ("all", "supported_targets") else []
    chips += preview_targets.get() if targets in ("all", "preview_targets") else []
    found = [chip for chip in chips if statement.get_value(chip, "")]
    if not found:
        raise ValueError(f"{soc_statement!r} holds for none of {', '.join(chips)}")
    return found


def _statement(text: str) -> Any:
    try:
        parser: Any = importlib.import_module("esp_bool_parser")
    except ImportError as error:
        raise ImportError("soc_filtered_targets needs the package esp-bool-parser, and IDF_PATH") from error
    return parser.parse_bool_expr(text)


def why_filtered(marker: pytest.Mark, chip: str) -> str | None:
    """Return why a marker ``skip_if_soc`` skips a test on *chip*; None if it does not."""
    statement = marker.args[0]
    return f"filtered by {statement}, for {chip}" if _statement(statement).get_value(chip, "") else None
