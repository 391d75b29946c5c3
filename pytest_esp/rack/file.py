"""Finds the rack file, without reading it, and the ports of the environment: what every pytest run does."""

from __future__ import annotations

import os
from pathlib import Path

FILE_NAME = "boards.toml"
ENVIRONMENT = "PYTEST_ESP_RACK"
PORT_ENVIRONMENT = "PYTEST_ESP_PORT"


def find_rack_file(path: Path | None = None) -> Path | None:
    """Return *path*, ``PYTEST_ESP_RACK``, or the nearest boards.toml here or above; None if there is none.

    The nearest one is returned even if it cannot be read: a file further up describes other boards.
    """
    if path is not None:
        return path
    if named := os.environ.get(ENVIRONMENT):
        return Path(named)
    here = Path.cwd()
    return next((found for folder in (here, *here.parents) if os.path.lexists(found := folder / FILE_NAME)), None)


def ports_of_environment() -> list[str]:
    """Return the ports in ``PYTEST_ESP_PORT``, which are separated by commas."""
    return [name for part in os.environ.get(PORT_ENVIRONMENT, "").split(",") if (name := part.strip())]
