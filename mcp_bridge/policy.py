"""What tools may do: use files inside the roots only, and change boards only as far as server and board allow."""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import anyio
from fastmcp import Context
from fastmcp.server.middleware import CallNext, Middleware, MiddlewareContext
from mcp import MCPError
from mcp.shared.exceptions import MCPDeprecationWarning

from mcp_bridge.settings import Settings
from pytest_esp.errors import RefusedError
from pytest_esp.formats.files import Confinement, confined
from pytest_esp.operations.registry import Effect
from pytest_esp.rack.spec import BoardSpec


class Policy:
    """The rules of one server."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._tokens: dict[str, tuple[str, float]] = {}
        """Tokens that were given and not used, with the digest of the call and the monotonic time of their end."""
        self._lock = threading.Lock()

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

    def token(self, consent: Consent) -> str:
        """Return a new token for a call. It is good for one use, for five minutes."""
        token = secrets.token_hex(_TOKEN_BYTES)
        now = time.monotonic()
        with self._lock:
            for old in [one for one, (_, ends) in self._tokens.items() if ends < now] or [*self._tokens][
                :-_MOST_TOKENS
            ]:
                del self._tokens[old]
            self._tokens[token] = (consent.digest, now + _TOKEN_SECONDS)
        return token

    def accepts(self, token: str, consent: Consent) -> bool:
        """Return whether *token* was given for exactly this call, and use it up."""
        with self._lock:
            digest, ends = self._tokens.get(token, ("", 0.0))
            if digest != consent.digest or ends < time.monotonic():
                return False
            del self._tokens[token]
        return True


@dataclass(frozen=True)
class Consent:
    """A call that is to be confirmed, and all that a token for it is bound to.

    Attributes:
        tool, arguments: the call, with defaults, without its token.
        plan: what it would do, for the person who decides.
        boards: the MAC addresses of its boards.
        client: the session and the bearer token of the client.
    """

    tool: str
    arguments: Mapping[str, Any]
    plan: str
    boards: tuple[str, ...] = ()
    client: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """The SHA-256 of all of it."""
        call = [self.tool, dict(self.arguments), self.plan, self.boards, self.client]
        return hashlib.sha256(json.dumps(call, sort_keys=True, default=str).encode()).hexdigest()


_TOKEN_BYTES = 16
_TOKEN_SECONDS = 300.0
_MOST_TOKENS = 1000  # that are not used yet


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
        self._narrowed: dict[str, Confinement] = {}

    async def on_message(self, context: MiddlewareContext[Any], call_next: CallNext[Any, Any]) -> Any:
        """Handle a client's message with files confined."""
        limits = self._confinement
        if context.fastmcp_context is not None and limits.roots:
            session = context.fastmcp_context.session_id
            if context.method == "notifications/roots/list_changed":
                self._narrowed.pop(session, None)
            elif context.method in _OPENS_FILES and _shares_our_disk(context.fastmcp_context):
                if session not in self._narrowed:
                    self._narrowed[session] = narrowed(limits, await _roots_of(context.fastmcp_context))
                limits = self._narrowed[session]
        with confined(limits):
            return await call_next(context)


_OPENS_FILES = ("tools/call", "resources/read", "prompts/get")
_ROOTS_TIMEOUT = 5.0  # seconds
_WITHOUT_ROOTS = "2026-07-28"  # since this version, servers cannot ask for a client's roots


def narrowed(limits: Confinement, folders: Sequence[Path]) -> Confinement:
    """Return *limits* with only what is inside the client's *folders*, too; unchanged if it has none."""
    if not folders:
        return limits
    both = [
        max(root, folder, key=lambda path: len(path.parts))  # the inner one
        for folder in folders
        for root in limits.roots
        if folder.is_relative_to(root) or root.is_relative_to(folder)
    ]
    hint = f"open a folder inside {' or '.join(map(str, limits.roots))} in the client, or {limits.hint}"
    reason = "the client's own roots are all outside of the server's"
    return replace(limits, roots=tuple(dict.fromkeys(both)), hint=hint, reason=reason)


def _shares_our_disk(context: Context) -> bool:
    """Return whether the client runs on this machine, and can have roots."""
    capabilities = context.session.client_capabilities
    return (
        context.transport in (None, "stdio")
        and context.session.protocol_version < _WITHOUT_ROOTS
        and capabilities is not None
        and capabilities.roots is not None
    )


async def _roots_of(context: Context) -> list[Path]:
    """Return the client's roots; empty if it does not answer."""
    roots: list[Any] = []
    with anyio.move_on_after(_ROOTS_TIMEOUT), contextlib.suppress(MCPError), warnings.catch_warnings():
        warnings.simplefilter("ignore", MCPDeprecationWarning)
        roots = (await context.session.list_roots()).roots  # pyright: ignore[reportDeprecated]
    urls = [urlsplit(str(root.uri)) for root in roots]
    return [Path(url2pathname(url.path).replace("\0", "")).resolve() for url in urls if url.scheme == "file"]
