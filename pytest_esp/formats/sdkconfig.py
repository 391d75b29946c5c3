"""What a build's configuration says about its console."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from pytest_esp.errors import EspError
from pytest_esp.formats.files import resolve
from pytest_esp.formats.regions import contents_of

_OPTIONS = ("ESP_CONSOLE_UART_BAUDRATE", "CONSOLE_UART_BAUDRATE")  # the latter up to ESP-IDF v4.2
_LINE = re.compile(rb"^CONFIG_(?:ESP_)?CONSOLE_UART_BAUDRATE=(\d+)\s*$", re.MULTILINE)


def console_baudrate(folder: Path) -> int | None:
    """Return the baud rate of the console of the build in *folder* (ESP-IDF, PlatformIO); None if it is unknown.

    ``config/sdkconfig.json`` says what was built; without it, the project's ``sdkconfig`` counts.
    """
    built = _json(folder / "config" / "sdkconfig.json")
    found = next((built[name] for name in _OPTIONS if isinstance(built.get(name), int)), None)
    if found is None and not built:
        description = folder / "project_description.json"
        name = _json(description).get("config_file")
        named = [(name, description)] if isinstance(name, str) else []
        places = [*named, (folder / "sdkconfig", None), (folder.parent / "sdkconfig", None)]
        lines = (_LINE.search(_contents(place, named_by)) for place, named_by in places)
        found = next((int(line[1]) for line in lines if line), None)
    return found if found is not None and 300 <= found <= 20_000_000 else None


def _contents(path: Path | str, named_by: Path | None = None) -> bytes:
    try:
        place = resolve(path, named_by=named_by)
        return contents_of(place) if place.is_file() else b""
    except (EspError, OSError):  # a hint only: the build can be used without it
        return b""


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(_contents(path) or b"{}")
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
