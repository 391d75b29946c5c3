"""What every component is made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from mcp_bridge.bridge import Bridge


class Component:
    """A group of tools: the methods that are marked with `mcp_bridge.tool.tool`."""

    NAME: ClassVar[str]
    SUMMARY: ClassVar[str]

    def __init__(self, bridge: Bridge) -> None:
        self.bridge = bridge

    def health_check(self) -> dict[str, Any]:
        """Return ``{"status": "healthy"}`` or what is wrong, from looking."""
        return {"status": "healthy"}

    def plan(self, tool: str, arguments: Mapping[str, Any]) -> str:
        """Return in words what a call of one of its tools would do, for the consent to it."""
        spec = self.bridge.boards.resolve(arguments.get("port"))
        given = ", ".join(f"{key}={value!r}" for key, value in arguments.items() if value is not None and key != "port")
        kind = "virtual" if spec.virtual else "real"
        return f"{tool} on the {kind} board {spec.name} ({spec.chip}): {given or 'no arguments'}"

    def close(self) -> None:
        """Stop what the component has started."""
