"""Conversions that scripts import from ``pytest_embedded.utils``."""

from __future__ import annotations

import re
from typing import Any

_ANSI = re.compile(r"\x1b(?:[@-Z\\-_]|\[[0-?]*[ -/]*[@-~])")


def to_str(text: str | bytes) -> str:
    """Return *text* as a string, without bytes that are not UTF-8."""
    return text.decode("utf-8", "ignore") if isinstance(text, bytes) else text


def to_bytes(text: str | bytes, ending: str | bytes | None = None) -> bytes:
    """Return *text* as bytes; *ending* is added to strings only."""
    if isinstance(text, bytes):
        return text
    return text.encode() + (to_bytes(ending) if ending else b"")


def to_list(value: Any) -> Any:
    """Return a list of *value*, or of its items if it has several; what is empty stays as it is."""
    if not value or isinstance(value, list):
        return value  # pyright: ignore[reportUnknownVariableType]
    return list(value) if isinstance(value, (set, tuple)) else [value]  # pyright: ignore[reportUnknownArgumentType]


def remove_asci_color_code(text: str | bytes) -> str:
    """Return *text* without ANSI sequences."""
    return _ANSI.sub("", to_str(text))
