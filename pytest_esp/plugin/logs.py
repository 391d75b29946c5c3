"""Where the consoles of a test are logged, and how they are shown while it runs."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

_LONGEST_NAME = 120  # characters; file systems allow 255 bytes, and the board's name comes on top


def log_path(folder: Path, nodeid: str, board: str) -> Path:
    """Return the file for what *board* says during a test: its name is the test's and the board's."""
    name = re.sub(r"[^\w.\[\]=-]+", "-", nodeid.replace("::", "--")).strip("-")
    if len(name) > _LONGEST_NAME:
        name = f"{name[:_LONGEST_NAME]}-{hashlib.sha256(nodeid.encode()).hexdigest()[:8]}"
    return folder / f"{name}.{board}.log"


def live_echo(config: pytest.Config, board: str | None) -> Callable[[str], None] | None:
    """Return what shows a console's text at once, in runs with ``-s``; *board* stands before each line, if given."""
    if config.getoption("capture") != "no":
        return None
    begins_line = True

    def echo(text: str) -> None:
        nonlocal begins_line
        text = text.replace("\r\n", "\n")
        if board is not None:
            shown = text.replace("\n", f"\n{board}| ").removesuffix(f"{board}| ")
            text = (f"{board}| " if begins_line else "") + shown
        begins_line = text.endswith("\n")
        sys.stdout.write(text)
        sys.stdout.flush()

    return echo
