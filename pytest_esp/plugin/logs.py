"""Paths of console logs, and the live display of consoles."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_esp.controls import without_controls

_LONGEST_NAME = 120  # characters, without the board's name; file systems allow 255 bytes


def log_path(folder: Path, nodeid: str, board: str) -> Path:
    """Return the path of the console log of *board* in a test; the file is named after both."""
    name = re.sub(r"[^\w.\[\]=-]+", "-", nodeid.replace("::", "--")).strip("-")
    if len(name) > _LONGEST_NAME:
        name = f"{name[:_LONGEST_NAME]}-{hashlib.sha256(nodeid.encode()).hexdigest()[:8]}"
    return folder / f"{name}.{board}.log"


def live_echo(config: pytest.Config, board: str | None) -> Callable[[str], None] | None:
    """Return a function that prints console text at once, or None in runs without ``-s``.

    Each line is prefixed with *board*, if given.
    """
    if config.getoption("capture", "no") != "no":
        return None
    begins_line = True

    def echo(text: str) -> None:
        nonlocal begins_line
        text = without_controls(text, colours=sys.stdout.isatty())
        if board is not None:
            shown = text.replace("\n", f"\n{board}| ").removesuffix(f"{board}| ")
            text = (f"{board}| " if begins_line else "") + shown
        begins_line = text.endswith("\n")
        sys.stdout.write(text)
        sys.stdout.flush()

    return echo
