"""One server with its rack, its policy and its components."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncGenerator
from typing import Any

import anyio
from fastmcp import FastMCP

from mcp_bridge.answers import Guard
from mcp_bridge.boards import BoardPool
from mcp_bridge.bounds import Archive
from mcp_bridge.calls import Calls
from mcp_bridge.completion import Completion
from mcp_bridge.components import COMPONENT_REGISTRY, component_class, plugged_in
from mcp_bridge.components.base import Component
from mcp_bridge.hints import Hints
from mcp_bridge.policy import Confine, Policy
from mcp_bridge.prompts import add_prompts
from mcp_bridge.resources import add_resources
from mcp_bridge.seen import Seen
from mcp_bridge.settings import Settings
from mcp_bridge.suites import named_suites
from mcp_bridge.tool import check_plug_in, tools_of
from mcp_bridge.toolbox import Toolbox
from pytest_esp import HOMEPAGE, __version__
from pytest_esp.errors import RackError
from pytest_esp.rack.config import load_rack

_log = logging.getLogger(__name__)

INSTRUCTIONS = """Drives Espressif boards (ESP32, ESP32-C3, ...): real ones, QEMU machines and simulated chips.
Boards have names (esp_rack_status lists them). `port` takes a name, a device path or a URL; it is optional if the rack
has only one board. Every answer has `success`; if it is false, `error` says what was wrong and `hint` what to do.
Calls that erase or burn ask for confirmation first, or answer with a `confirm` token for a second call."""


class Bridge:
    """One server, and what its components share.

    Raises:
        RackError: if the rack file is invalid, or a component is unknown.
        OperationError: see `named_suites`.

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

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.calls = Calls()
        self.rack = load_rack(settings.rack)
        self.boards = BoardPool(
            self.rack, idle=settings.idle, burns_enabled=settings.burns_enabled, purpose="the MCP bridge"
        )
        self.policy = Policy(settings)
        self.suites = named_suites(settings.suites, settings.roots)
        self.seen = Seen()
        self.archive = Archive()
        self.broken: dict[str, str] = {}
        self.components: dict[str, Component] = {}
        for name in settings.components or (*COMPONENT_REGISTRY, *plugged_in()):
            if name in COMPONENT_REGISTRY:
                self.components[name] = component_class(name)(self)
            else:
                self._plug_in(name)

    def _plug_in(self, name: str) -> None:
        """Load a component of another package. If it is broken, `broken` says why, and the others are not affected."""
        try:
            component = component_class(name)(self)
            check_plug_in(component, {tool for other in self.components.values() for tool in tools_of(other)})
        except RackError:  # there is no component of that name
            raise
        except (Exception, SystemExit) as error:
            self.broken[name] = f"{type(error).__name__}: {error}"
        else:
            self.components[name] = component

    def close(self) -> None:
        """Let burns end, stop other calls and what the components have started, and release all boards."""
        self.calls.close()
        try:
            for component in self.components.values():
                try:
                    component.close()
                except Exception:
                    _log.exception("%s could not be closed", component.NAME)
        finally:
            self.boards.close()

    def server(self) -> FastMCP[Any]:
        """Return the server, not yet running. It releases all boards when it ends."""

        @contextlib.asynccontextmanager
        async def lifespan(_app: FastMCP[Any]) -> AsyncGenerator[None]:
            try:
                yield
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.to_thread.run_sync(self.close)

        app: FastMCP[Any] = FastMCP(
            "pytest-esp",
            instructions=INSTRUCTIONS,
            version=__version__,
            website_url=HOMEPAGE or None,
            lifespan=lifespan,
            on_duplicate="error",
        )
        app.add_middleware(Confine(self.settings, self.rack.path))
        toolbox = Toolbox(self)
        app.add_middleware(Guard(toolbox.names, Hints(toolbox.operations)))
        app.add_provider(toolbox)
        add_resources(app, self)
        add_prompts(app)
        app.add_completion_handler(Completion(self).complete)
        return app
