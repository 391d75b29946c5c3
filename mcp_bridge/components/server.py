"""Tools for the server itself: its health, tools, rack and leases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from mcp_bridge.components.base import Component, health_of
from mcp_bridge.tool import tool, tools_of
from pytest_esp import __version__
from pytest_esp.rack.state import state_of


@dataclass(frozen=True)
class Health:
    """The server's status: ``healthy``, or ``degraded`` with the problems of each component."""

    status: str
    components: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class ToolList:
    """Tools by component: name and first sentence."""

    components: dict[str, dict[str, str]]
    count: int


@dataclass(frozen=True)
class ServerInfo:
    """The server's versions, rack and limits."""

    version: str
    esptool: str
    rack: str
    rack_file: str | None
    boards: list[str]
    allow: list[str]
    roots: list[str]
    idle_seconds: float


@dataclass(frozen=True)
class RackStatus:
    """The boards, who holds them, and how long this server keeps those that it holds."""

    rack: str
    boards: list[dict[str, Any]]


@dataclass(frozen=True)
class LeaseReport:
    """A board that this server holds or has released."""

    board: str
    held: bool
    seconds: float


class Server(Component):
    """Tools about the server itself."""

    NAME: ClassVar[str] = "server"
    SUMMARY: ClassVar[str] = "health, tools, rack, leases"

    @tool()
    def esp_health_check(self, detailed: bool = False) -> Health:
        """Check the server: each component checks what it depends on.

        Args:
            detailed: also return the healthy components.
        """
        found = health_of(self.bridge)
        bad = {name: report for name, report in found.items() if report.get("status") != "healthy"}
        return Health("degraded" if bad else "healthy", found if detailed else bad)

    @tool()
    def esp_list_tools(self, component: str | None = None) -> ToolList:
        """List the tools of this server by component, with one line each.

        Args:
            component: list only the tools of this component.
        """
        chosen = {
            name: {
                tool_name: (method.__doc__ or "").strip().partition("\n")[0]
                for tool_name, (method, _) in tools_of(loaded).items()
            }
            for name, loaded in self.bridge.components.items()
            if component in (None, name)
        }
        return ToolList(chosen, sum(map(len, chosen.values())))

    @tool()
    def esp_server_info(self) -> ServerInfo:
        """Return the server's version, its rack, the effects that it allows, and the folders that it may use."""
        import esptool

        settings = self.bridge.settings
        return ServerInfo(
            version=__version__,
            esptool=esptool.__version__,
            rack=self.bridge.rack.name,
            rack_file=str(self.bridge.rack.path) if self.bridge.rack.path else None,
            boards=list(self.bridge.rack.boards),
            allow=sorted(effect.value for effect in settings.allow),
            roots=[str(root) for root in settings.roots],
            idle_seconds=settings.idle,
        )

    @tool()
    def esp_rack_status(self) -> RackStatus:
        """List the boards of the rack: chip, backend, state (free, held, missing) and who holds them."""
        here = self.bridge.boards.held()
        rows: list[dict[str, Any]] = []
        for spec in self.bridge.rack.boards.values():
            row: dict[str, Any] = {
                "name": spec.name,
                "chip": self.bridge.rack.known(spec).chip,
                "backend": spec.backend,
            }
            row |= state_of(spec, self.bridge.rack).to_dict()
            if spec.name in here:
                row["held_here_for_seconds"] = round(here[spec.name], 1)
            rows.append(row)
        return RackStatus(self.bridge.rack.name, rows)

    @tool(idempotent=True, read_only=False, uses="board")
    def esp_lease(self, board: str, minutes: float = 10.0, wait_s: float = 0.0) -> LeaseReport:
        """Keep a board for this server for some minutes, so that no other process takes it between calls.

        Args:
            board: its name in the rack.
            minutes: minutes to keep it, 480 at most.
            wait_s: seconds to wait for a board that another process holds.
        """
        seconds = min(max(minutes, 0.0), 480.0) * 60
        spec = self.bridge.boards.keep(board, seconds, wait=wait_s)
        return LeaseReport(spec.name, True, seconds)

    @tool(idempotent=True, read_only=False, uses="board")
    def esp_release(self, board: str) -> LeaseReport:
        """Release a board at once, so that other processes can use it.

        Args:
            board: its name in the rack.
        """
        self.bridge.boards.release(board)
        return LeaseReport(self.bridge.boards.resolve(board).name, False, 0.0)

    def health_check(self) -> dict[str, Any]:
        """Check that the lock folder can be used."""
        from pytest_esp.rack.lease import lock_folder

        return {"status": "healthy", "lock_folder": str(lock_folder(self.bridge.rack))}
