"""Resources that a client can read. Reading does not touch boards: it shows their last answers, with their age."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from fastmcp import FastMCP

from mcp_bridge.components.base import Shared, health_of
from mcp_bridge.tool import tools_of
from pytest_esp import __version__
from pytest_esp.errors import EspError, OperationError
from pytest_esp.operations.production.testing import suites
from pytest_esp.rack.spec import BACKENDS
from pytest_esp.rack.state import state_of
from pytest_esp.secrets import hide, hide_in

_JSON = "application/json"
_LINES = 100

# The tools whose last answers about every board a resource shows.
_VIEWS = {
    "esp://flash/status": ("esp_flash_status", "esp_flash_size_detect", "esp_flash_analyze", "esp_detect_chip"),
    "esp://security/info": ("esp_security_audit", "esp_security_info"),
    "esp://partitions": ("esp_partition_read", "esp_partition_analyze"),
    "esp://firmware/info": (
        "esp_run_firmware",
        "esp_partition_analyze",
        "esp_flash_analyze",
        "esp_flash_firmware",
        "esp_idf_flash_project",
    ),
    "esp://diagnostics": (
        "esp_diagnostic_report",
        "esp_test_connection",
        "esp_performance_profile",
        "esp_core_dump_analyze",
        "esp_thermal_status",
        "esp_power_analysis",
        "esp_rf_calibration_check",
        "esp_recover_chip",
    ),
}


def add_resources(app: FastMCP[Any], bridge: Shared) -> None:
    """Add all resources to *app*."""

    def add(uri: str, name: str, description: str, read: Callable[..., Any]) -> None:
        app.resource(uri, name=name, description=description, mime_type=_JSON)(read)

    about = "The devices of the rack with their chips' features, and the chips that the installed esptool supports."
    add("esp://chips", "chips", about, lambda: _guarded(lambda: _chips(bridge)))
    add("esp://server/status", "server_status", "Health of the components, and the rack.", lambda: _status(bridge))
    add("esp://config", "config", "How this server was started.", lambda: _config(bridge))
    add("esp://capabilities", "capabilities", "Components, tools and backends.", lambda: _capabilities(bridge))
    add("esp://products/catalog", "products_catalog", "Chips and modules, with their lifecycle.", _products)
    add("esp://idf/status", "idf_status", "The installed ESP-IDF and its tools.", _idf)
    known = {tool for component in bridge.components.values() for tool in tools_of(component)}
    views = {uri: tuple(tool for tool in tools if tool in known) for uri, tools in _VIEWS.items()}
    for uri, tools in views.items():
        if tools:
            name = uri.removeprefix("esp://").replace("/", "_")
            add(uri, name, f"The last answers of {', '.join(tools)} about each board.", _view(bridge, tools))

    def board(board: str) -> str:
        return _guarded(lambda: _board(bridge, board))

    def console(board: str, lines: str = str(_LINES)) -> str:
        return _guarded(lambda: _console(bridge, board, lines))

    def partitions(board: str) -> str:
        return _guarded(lambda: _view_of(bridge, board, views["esp://partitions"]))

    def answer(number: str) -> str:
        kept = bridge.archive.read(int(number)) if number.isdecimal() else None
        if kept is None:
            error = OperationError(f"answer {number} is not kept", hint="call the tool again")
            return _text({"success": False, "error": error.message, "port": None, "hint": error.hint})
        return kept

    add("esp://answers/{number}", "answer", "The whole of an answer that was cut.", answer)
    add("esp://boards/{board}", "board", "One board: its entry, its holder, its last identification.", board)
    about = "The last console lines of a board that this server holds."
    add("esp://boards/{board}/console{?lines}", "console", about, console)
    add("esp://boards/{board}/partitions", "board_partitions", "A board's partition table as last read.", partitions)


def _text(content: Any) -> str:
    return json.dumps(hide_in(content), indent=1, default=str)


def _guarded(read: Callable[[], Any]) -> str:
    try:
        return _text(read())
    except EspError as error:
        return _text({"success": False, "error": error.message, "port": error.board, "hint": error.hint})


def _chips(bridge: Shared) -> dict[str, Any]:
    from esptool.targets import CHIP_DEFS

    from pytest_esp.qemu.machines import MACHINES

    rows = [
        {
            "chip": chip,
            "name": rom.CHIP_NAME,
            "bootloader_offset": f"{rom.BOOTLOADER_FLASH_OFFSET:#x}",
            "has_qemu_machine": chip in MACHINES,
        }
        for chip, rom in CHIP_DEFS.items()
    ]
    return {"devices": [_device(bridge, name) for name in bridge.rack.boards], "chips": rows}


def _device(bridge: Shared, name: str) -> dict[str, Any]:
    """Return a board's state, the features of its entry, and the last answers of its chip."""
    spec = bridge.rack.known(bridge.boards.resolve(name))
    seen = bridge.seen.of(spec.name, ("esp_detect_chip", "esp_get_chip_info"))
    flash = {"flash_size": spec.flash_size} if spec.flash_size is not None else {}
    hint = {} if seen else {"hint": "call esp_detect_chip to identify the chip"}
    return {**_state(bridge, name), "features": sorted(spec.features), **flash, **seen, **hint}


def _status(bridge: Shared) -> str:
    boards = [_state(bridge, name) for name in bridge.rack.boards]
    return _text({"version": __version__, "components": health_of(bridge), "rack": bridge.rack.name, "boards": boards})


def _state(bridge: Shared, name: str) -> dict[str, Any]:
    spec = bridge.boards.resolve(name)
    board = {"board": spec.name, "chip": bridge.rack.known(spec).chip, "backend": spec.backend}
    return board | state_of(spec, bridge.rack).to_dict()


def _config(bridge: Shared) -> str:
    settings = bridge.settings
    return _text(
        {
            "rack": str(bridge.rack.path or "built-in"),
            "components": list(bridge.components),
            "allow": sorted(effect.value for effect in settings.allow),
            "roots": [str(root) for root in settings.roots],
            "idle_seconds": settings.idle,
            "burns_enabled": settings.burns_enabled,
            "suites": [*suites(), *bridge.suites],
        }
    )


def _capabilities(bridge: Shared) -> str:
    tools = {name: sorted(tools_of(component)) for name, component in bridge.components.items()}
    return _text({"components": tools, "backends": list(BACKENDS)})


def _products() -> str:
    from pytest_esp.operations.catalogue.queries import search

    def read() -> dict[str, Any]:
        found = search()
        return {"as_of": found.as_of, "products": [asdict(product) for product in found.products]}

    return _guarded(read)


def _idf() -> str:
    from pytest_esp.operations.idf.installation import environment
    from pytest_esp.operations.idf.tools import tools

    def read() -> dict[str, Any]:
        found = environment()
        wanted = tools().tools if found.idf is not None else ()
        rows = [
            {
                "name": tool.name,
                "install": tool.install,
                "wanted": tool.recommended,
                "installed": [version.version for version in tool.versions if version.installed],
            }
            for tool in wanted
        ]
        return {**asdict(found), "tools": rows}

    return _guarded(read)


def _view(bridge: Shared, tools: tuple[str, ...]) -> Callable[[], str]:
    return lambda: _text({"boards": [_view_of(bridge, name, tools) for name in bridge.rack.boards]})


def _view_of(bridge: Shared, name: str, tools: tuple[str, ...]) -> dict[str, Any]:
    spec = bridge.boards.resolve(name)
    found = bridge.seen.of(spec.name, tools)
    hint = f"call {tools[0]} first" if tools else "load a component that provides this with --components"
    return {"board": spec.name, **found} if found else {"board": spec.name, "hint": hint}


def _board(bridge: Shared, name: str) -> dict[str, Any]:
    spec = bridge.boards.resolve(name)
    entry = spec.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    return {**_state(bridge, name), "entry": entry, "seen": bridge.seen.of(spec.name, ("esp_detect_chip",))}


def _console(bridge: Shared, name: str, lines: str) -> dict[str, Any]:
    spec = bridge.boards.resolve(name)
    if not lines.isdecimal():
        raise OperationError(f"{lines!r} is not a number of lines", hint="use e.g. ?lines=20", board=spec.name)
    said = bridge.boards.console_lines(spec.name, int(lines))
    if said is None:
        return {"board": spec.name, "lines": [], "hint": "the board is not open: call esp_serial_monitor"}
    return {"board": spec.name, "lines": [(at, hide(text, is_cut=True)) for at, text in said]}
