"""Access over HTTP: only clients with the bearer token, and web pages only from allowed origins."""

from __future__ import annotations

import asyncio
import os
import secrets
import stat
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fastmcp.server.auth.middleware import RequireAuthMiddleware
from filelock import FileLock
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import PlainTextResponse

from mcp_bridge.calls import GONE
from pytest_esp.errors import RefusedError
from pytest_esp.rack.identity import STATE_ENVIRONMENT, state_folder

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

TOKEN_ENVIRONMENT = "PYTEST_ESP_MCP_TOKEN"
_TOKEN_FILE = "mcp-token"
_SHORTEST = 32  # characters of a token in the file; shorter text was not written by `_write`
_LONGEST = 1000
_LOCK_TIMEOUT = 10.0  # seconds


class Gate:
    """Middleware that refuses origins that are not allowed, and requests without the token, on any path.

    FastMCP's own guard runs before it. That one checks Host, but accepts all loopback origins and the server's own.
    """

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        self._origins = frozenset(origins)
        self._app = CORSMiddleware(
            RequireAuthMiddleware(app, []),
            allow_origins=origins,
            allow_methods=("GET", "POST", "DELETE"),
            allow_headers=("*",),
            expose_headers=("mcp-session-id",),
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with 401 or 403."""
        if scope["type"] == "http" and not self._origins.issuperset(Headers(scope=scope).getlist("origin")):
            refusal = PlainTextResponse("Forbidden Origin: allow it with --allowed-origin", 403)
            await refusal(scope, receive, send)
            return
        gone = scope[GONE] = asyncio.Event()
        try:
            await self._app(scope, receive, send)
        finally:
            gone.set()  # the answer has been sent, or the client has closed the connection


# -- the token


def token_file() -> Path:
    """Return the path of the file with this user's token."""
    return state_folder() / _TOKEN_FILE


def named_token() -> str | None:
    """Return the token in PYTEST_ESP_MCP_TOKEN; None if it is not set.

    Raises:
        RefusedError: if it has characters that clients cannot send.
    """
    token = os.environ.get(TOKEN_ENVIRONMENT, "").strip()
    if not token.isascii() or not token.isprintable() or " " in token:
        raise RefusedError(f"{TOKEN_ENVIRONMENT} must consist of printable ASCII characters without spaces")
    return token or None


def kept_token(*, rotate: bool = False) -> str:
    """Return the token in `token_file`; make a new one if there is none, or if *rotate* is true.

    Raises:
        RefusedError: if the file cannot be used, other users can read it, or it is a link.
    """
    path = token_file()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock"), timeout=_LOCK_TIMEOUT):  # servers that start at once share one token
            if rotate or not os.path.lexists(path):
                _write(path, secrets.token_urlsafe(32))
            return _read(path)
    except OSError as error:
        raise RefusedError(
            f"cannot use the token file {path}: {error.strerror or error}",
            hint=f"set {TOKEN_ENVIRONMENT}, or set {STATE_ENVIRONMENT} to a folder that you can write to",
        ) from error


def _write(path: Path, token: str) -> None:
    descriptor, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")  # has mode 0600
    with os.fdopen(descriptor, "w") as file:
        file.write(f"{token}\n")
    os.replace(part, path)


def _read(path: Path) -> str:
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0)
    if path.is_symlink():
        raise RefusedError(f"{path} is a link", hint="make a new token with --rotate-token")
    with os.fdopen(os.open(path, flags), errors="replace") as file:
        about = os.fstat(file.fileno())
        if os.name == "posix" and (about.st_uid != os.geteuid() or stat.S_IMODE(about.st_mode) & 0o077):
            raise RefusedError(f"other users can read or change {path}", hint="make a new token with --rotate-token")
        token = file.read(_LONGEST).strip()
    if len(token) < _SHORTEST or not token.isascii() or not token.isprintable():
        raise RefusedError(f"{path} does not contain a token", hint="make a new one with --rotate-token")
    return token
