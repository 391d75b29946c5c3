"""The base class of components, and what the components of a server share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from mcp_bridge.boards import BoardPool
from mcp_bridge.bounds import Archive
from mcp_bridge.calls import Calls
from mcp_bridge.policy import Policy
from mcp_bridge.seen import Seen
from mcp_bridge.settings import Settings
from pytest_esp.errors import LinkError
from pytest_esp.rack.rack import Rack


class Shared(Protocol):
    """What the components of a server share.

    Attributes:
        boards: the boards, leased when they are used.
        policy: what tools may do.
        suites: where the suites of `Settings.suites` lie, by name.
        seen: the last answers of tools, by board.
        archive: the last answers that were shortened.
        components: the loaded components, by name.
        broken: why a component of another package cannot be used, by its name.
        calls: the queues of the boards.
    """

    settings: Settings
    rack: Rack
    boards: BoardPool
    policy: Policy
    suites: Mapping[str, Path]
    seen: Seen
    archive: Archive
    components: dict[str, Component]
    broken: dict[str, str]
    calls: Calls


@dataclass(frozen=True)
class Instance:
    """A running virtual board. Other tools take *instance_id* as their ``port``."""

    instance_id: str
    chip_type: str
    tcp_port: int
    socket_uri: str
    rfc2217_uri: str
    flash_image: str
    boot_mode: str
    pid: int | None
    hint: str


def health_of(bridge: Shared) -> dict[str, dict[str, Any]]:
    """Return what each component reports about itself; a check that fails is a report, too."""
    found: dict[str, dict[str, Any]] = {}
    for name, component in bridge.components.items():
        try:
            found[name] = dict(component.health_check())
        except Exception as error:
            found[name] = {"status": "failed", "problem": str(error) or type(error).__name__}
    return found | {name: {"status": "failed", "problem": problem} for name, problem in bridge.broken.items()}


class Component:
    """A group of tools: the methods that are marked with `mcp_bridge.tool.tool`."""

    NAME: ClassVar[str]
    SUMMARY: ClassVar[str]
    FOR_SILENT_BOARDS: ClassVar[tuple[str, ...]] = ()
    """The tools that are for boards that may not answer; with others, the user is asked only if the board answers."""

    def __init__(self, bridge: Shared) -> None:
        self.bridge = bridge

    def health_check(self) -> dict[str, Any]:
        """Return ``{"status": "healthy"}``, or another status with what is wrong."""
        return {"status": "healthy"}

    def instances(self) -> list[Instance]:
        """Return the virtual boards that the component has started."""
        return []

    def plan(self, tool: str, arguments: Mapping[str, Any]) -> str:
        """Return what a call of one of the component's tools would do, for the question to the user."""
        spec = self.bridge.boards.resolve(arguments.get("port"))
        given = ", ".join(f"{key}={value!r}" for key, value in arguments.items() if value is not None and key != "port")
        kind = "virtual" if spec.virtual else "real"
        return f"{tool} on the {kind} board {spec.name} ({spec.chip}): {given or 'no arguments'}"

    def mac_of(self, tool: str, board: str) -> str:
        """Return the MAC address of a board that a call of one of the component's tools would change.

        Raises:
            EspError: if the board cannot be used, or does not answer, unless the tool is for such boards.
        """
        try:
            with self.bridge.boards.use(board) as esp:
                return esp.chip.read_mac().mac_address or "in secure download mode"
        except LinkError:
            if tool not in self.FOR_SILENT_BOARDS:
                raise
            return ""

    def close(self) -> None:
        """Stop what the component has started."""
