"""What tools may do: use files inside the roots only, and change boards only as far as server and board allow."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastmcp.server.middleware import CallNext, Middleware, MiddlewareContext

from mcp_bridge.settings import Settings
from pytest_esp.errors import RefusedError
from pytest_esp.formats.files import Confinement, confined
from pytest_esp.operations.registry import Effect
from pytest_esp.rack.spec import BoardSpec


class Policy:
    """The rules of one server."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._secret = secrets.token_bytes(32)

    # -- effects

    def check(self, effect: Effect, spec: BoardSpec | None, tool: str) -> None:
        """Check that the server and the board allow *effect*.

        Raises:
            RefusedError: if one does not; the hint names the setting to change.
        """
        if effect not in self._settings.allow:
            raise RefusedError(
                f"this server does not allow {effect.value!r}",
                attempted=tool,
                hint=f"to allow it, start the server with --allow {','.join(word.value for word in (*Effect,))}",
            )
        if spec is not None and effect.value not in spec.allow:
            raise RefusedError(
                f"the board does not allow {effect.value!r}",
                board=spec.name,
                attempted=tool,
                hint=f'to allow it, add "{effect.value}" to `allow` of [boards.{spec.name}] in the rack file',
            )

    # -- consent

    def token(self, tool: str, arguments: Mapping[str, Any]) -> str:
        """Return the confirm token of a call. It is valid for this server and these arguments only."""
        call = json.dumps([tool, dict(arguments)], sort_keys=True, default=str)
        return hmac.new(self._secret, call.encode(), hashlib.sha256).hexdigest()[:16]

    def accepts(self, token: str, tool: str, arguments: Mapping[str, Any]) -> bool:
        """Return whether *token* belongs to this call."""
        return hmac.compare_digest(token.encode(), self.token(tool, arguments).encode())


class Confine(Middleware):
    """Confines the files of a client's calls to the roots; see `pytest_esp.formats.files.resolve`.

    Args:
        settings: contain the roots, and the key for updates, which may be read from any folder.
        rack_file: never written, so that clients cannot change what is allowed.
    """

    def __init__(self, settings: Settings, rack_file: Path | None) -> None:
        self._confinement = Confinement(
            roots=tuple(root.resolve() for root in settings.roots),
            readable=(settings.update_key.resolve(),) if settings.update_key else (),
            protected=(rack_file.resolve(),) if rack_file else (),
            hint="start the server with --roots DIR",
        )

    async def on_message(self, context: MiddlewareContext[Any], call_next: CallNext[Any, Any]) -> Any:
        """Handle a client's message with files confined."""
        with confined(self._confinement):
            return await call_next(context)
