"""What tools may do: files inside the roots only, and consent before anything that cannot be undone."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mcp_bridge.settings import Settings
from pytest_esp.errors import RefusedError
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
            RefusedError: if one does not; names the setting that would.
        """
        if effect not in self._settings.allow:
            raise RefusedError(
                f"this server does not allow {effect.value!r}",
                attempted=tool,
                hint=f"start it with --allow {','.join(word.value for word in (*Effect,))} if this is meant",
            )
        if spec is not None and effect.value not in spec.allow:
            raise RefusedError(
                f"the board does not allow {effect.value!r}",
                board=spec.name,
                attempted=tool,
                hint=f'add "{effect.value}" to `allow` of [boards.{spec.name}] in the rack file if this is meant',
            )

    # -- consent

    def token(self, tool: str, arguments: Mapping[str, Any]) -> str:
        """Return what proves that this very call was announced: good for this server and these arguments only."""
        call = json.dumps([tool, dict(arguments)], sort_keys=True, default=str)
        return hmac.new(self._secret, call.encode(), hashlib.sha256).hexdigest()[:16]

    def accepts(self, token: str, tool: str, arguments: Mapping[str, Any]) -> bool:
        """Tell whether *token* belongs to this call."""
        return hmac.compare_digest(token.encode(), self.token(tool, arguments).encode())

    # -- files

    def path(self, name: str) -> Path:
        """Return the file or folder *name* (relative to the first root), with links followed.

        Raises:
            RefusedError: if it lies outside the roots, if there are none, or if it is no name at all.
        """
        if not self._settings.roots:
            raise RefusedError(
                f"this server may not open {name!r} or any other file: it was started without --roots, and its working "
                "folder is too broad (the root folder, a home folder, or a folder that contains home folders)",
                hint="start the server with --roots DIR, or in the project's folder",
            )
        try:
            path = (self._settings.roots[0] / Path(name).expanduser()).resolve()
        except (ValueError, OSError, RuntimeError) as error:
            raise RefusedError(f"{name!r} is no path: {error}") from error
        if any(path == root or root in path.parents for root in self._settings.roots):
            return path
        raise RefusedError(
            f"{name} lies outside the folders that this server may use",
            hint=f"use {', '.join(map(str, self._settings.roots))}, or start it with --roots DIR",
        )
