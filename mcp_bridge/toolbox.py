"""The tools of a server: which are listed, and how a client finds and calls the others.

The list of all tools would cost a model more than its task. By default the list has the tools for ad hoc work, and
three that find and call any other one. All tools can also be called by their own names.
"""

from __future__ import annotations

import inspect
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastmcp import Context
from fastmcp.server.providers.base import Provider
from fastmcp.tools.base import Tool, ToolResult
from fastmcp.utilities.versions import VersionSpec
from mcp.types import ToolAnnotations
from pydantic import BeforeValidator, Field

from mcp_bridge.answers import error_answer
from mcp_bridge.arguments import from_json
from mcp_bridge.components.base import Component, Shared
from mcp_bridge.schemas import input_schema
from mcp_bridge.tool import ShortTool, ToolInfo, make_tool, tools_of
from pytest_esp.errors import OperationError
from pytest_esp.operations.registry import Effect, argument_descriptions, description

COMMON = (
    "esp_scan_ports",
    "esp_rack_status",
    "esp_release",
    "esp_detect_chip",
    "esp_flash_firmware",
    "esp_flash_read",
    "esp_flash_verify",
    "esp_flash_erase",
    "esp_flash_backup",
    "esp_flash_restore",
    "esp_run_firmware",
    "esp_serial_monitor",
    "esp_reset_chip",
    "esp_recover_chip",
    "esp_core_dump_analyze",
    "esp_efuse_read",
    "esp_efuse_burn",
    "esp_security_audit",
    "esp_partition_read",
    "esp_partition_create",
    "esp_partition_flash",
    "esp_nvs_read",
    "esp_nvs_partition_create",
    "esp_ota_partition_setup",
    "esp_ota_package_create",
    "esp_ota_deploy",
    "esp_ota_rollback",
    "esp_batch_program",
    "esp_qemu_start",
    "esp_qemu_stop",
    "esp_sim_start",
    "esp_sim_stop",
)
"""The tools for ad hoc work, which are listed by default."""

FIND, CALL_READ, CALL_ANY = "esp_find_tools", "esp_call_read", "esp_call_any"

_Name = Annotated[str, Field(description="name of a tool")]
_Arguments = Annotated[dict[str, Any] | None, BeforeValidator(from_json), Field(description="its arguments by name")]


@dataclass(frozen=True)
class _Entry:
    component: Component
    method: Any
    info: ToolInfo


class Toolbox(Provider):
    """Makes the tools of the components when they are listed or called.

    Args:
        bridge: the server.
    """

    def __init__(self, bridge: Shared) -> None:
        super().__init__()
        self._settings = bridge.settings
        self._entries = {
            name: _Entry(component, method, info)
            for component in bridge.components.values()
            for name, (method, info) in tools_of(component).items()
        }
        self._made: dict[str, Tool] = {}
        self._finders = {
            FIND: (self.esp_find_tools, ToolAnnotations(read_only_hint=True, open_world_hint=False)),
            CALL_READ: (self.esp_call_read, ToolAnnotations(read_only_hint=True, open_world_hint=False)),
            CALL_ANY: (
                self.esp_call_any,
                ToolAnnotations(read_only_hint=False, destructive_hint=True, open_world_hint=False),
            ),
        }

    @property
    def names(self) -> list[str]:
        """The names of all tools."""
        return [*self._entries, *self._finders]

    @property
    def operations(self) -> dict[str, str]:
        """The tool that offers an operation, by the operation's name."""
        return {one.info.operation: name for name, one in self._entries.items() if one.info.operation}

    # -- the provider's interface

    async def _list_tools(self) -> Sequence[Tool]:
        """Return the tools that are listed: those that may be called, and by default only the common ones."""
        allowed = [name for name, entry in self._entries.items() if self._allows(entry.info.effect)]
        if self._settings.lists_all:
            return [self._tool(name) for name in allowed]
        finders = [FIND, CALL_READ, *([CALL_ANY] if self._settings.allow - {Effect.READ} else [])]
        return [self._tool(name) for name in [*(name for name in COMMON if name in allowed), *finders]]

    async def _get_tool(self, name: str, version: VersionSpec | None = None) -> Tool | None:
        return self._tool(name) if name in self._entries or name in self._finders else None

    def _allows(self, effect: Effect | None) -> bool:
        return effect is None or effect in self._settings.allow

    def _tool(self, name: str) -> Tool:
        if name not in self._made:
            self._made[name] = self._make(name)
        return self._made[name]

    def _make(self, name: str) -> Tool:
        entry = self._entries.get(name)
        if entry is not None:
            return make_tool(
                entry.component, name, entry.method, entry.info, output_schemas=self._settings.output_schemas
            )
        method, annotations = self._finders[name]
        tool = ShortTool.from_function(
            method, name=name, description=description(inspect.getdoc(method) or ""), annotations=annotations,
            output_schema=None,
        )  # fmt: skip
        tool.parameters = input_schema(tool.parameters)
        return tool

    # -- finding and calling

    async def esp_find_tools(
        self,
        query: Annotated[str, Field(description='what to do, e.g. "compare chips"; "" lists all names')],
        limit: Annotated[int, Field(description="the most tools to return with their parameters", ge=1, le=20)] = 5,
    ) -> ToolResult:
        """Find other tools: factory programming, provisioning, quality control, flash analysis, encryption, secure
        boot, image files, memory, diagnostics, ESP-IDF projects, products and more. Each comes with its parameters,
        and the tool that calls it.
        """
        usable = {name: one for name, one in self._entries.items() if self._allows(one.info.effect_of({}))}
        words = {name: _words(self._text(name, one)) for name, one in usable.items()}
        best = _ranked(query, words, {name: set(_words(name)) for name in usable})
        if not best:
            names = sorted(usable)
            return ToolResult(structured_content={"success": True, "port": None, "tools": [], "names": names})
        tools = [self._found(name) for name in best[:limit]]
        more = best[limit : limit + 20]
        return ToolResult(structured_content={"success": True, "port": None, "tools": tools, "names": more})

    async def esp_call_read(self, context: Context, tool: _Name, arguments: _Arguments = None) -> Any:
        """Call any tool by its name if the call only reads: it changes neither boards, files nor virtual machines."""
        entry = self._entries.get(tool)
        if entry is not None and not entry.info.only_reads(arguments or {}):
            hint = f"{CALL_ANY} calls it; a person may be asked first"
            return error_answer(OperationError(f"this call of {tool} would do more than read", hint=hint))
        return await self._call(context, tool, arguments)

    async def esp_call_any(self, context: Context, tool: _Name, arguments: _Arguments = None) -> Any:
        """Call any tool by its name. The same is checked and asked as if the tool was called itself."""
        return await self._call(context, tool, arguments)

    async def _call(self, context: Context, tool: str, arguments: dict[str, Any] | None) -> ToolResult:
        if tool in self._finders:
            return error_answer(OperationError(f"{tool} cannot be called through another tool", hint="call it itself"))
        return await context.fastmcp.call_tool(tool, arguments or {})

    def _found(self, name: str) -> dict[str, Any]:
        tool = self._tool(name)
        info = self._entries[name].info
        return {
            "name": name,
            "description": tool.description,
            "call_with": CALL_READ if info.read_only else CALL_ANY,
            "effect": info.effect.value if info.effect else None,
            "input_schema": tool.parameters,
        }

    @staticmethod
    def _text(name: str, entry: _Entry) -> str:
        doc = entry.method.__doc__ or ""
        return " ".join((name, description(doc), *argument_descriptions(doc)))


# -- ranking


def _words(text: str) -> list[str]:
    """Return the words of *text* without their endings: "calibrate" and "calibration" are one word."""
    return [word[:5].rstrip("s") for word in re.findall(r"[a-z0-9]{2,}", text.lower()) if word not in ("esp", "the")]


def _ranked(query: str, texts: dict[str, list[str]], names: dict[str, set[str]]) -> list[str]:
    """Return the names of the tools that have words of *query*, best first: rare words and names count more."""
    spread = Counter(word for words in texts.values() for word in set(words))
    scores: dict[str, float] = {}
    for name, words in texts.items():
        hits = set(_words(query)) & set(words)
        scores[name] = sum(math.log(1 + len(texts) / spread[word]) * (3 if word in names[name] else 1) for word in hits)
    return sorted((name for name, score in scores.items() if score), key=lambda name: -scores[name])
