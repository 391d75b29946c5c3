"""``pytest-esp-mcp``: the server's command line."""

from __future__ import annotations

import ipaddress
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mcp_bridge.settings import Settings, default_roots, parse_allow
from pytest_esp.errors import EspError
from pytest_esp.secrets import remember

if TYPE_CHECKING:
    from fastmcp.server.auth import AuthProvider

    from mcp_bridge.bridge import Bridge

_TOKEN = "PYTEST_ESP_MCP_TOKEN"
_NO_TYPE_CHECKS = "PY_KEY_VALUE_DISABLE_BEARTYPE"
"""Of py-key-value-aio, FastMCP's store: at every start it would give its functions checks of their types (0.1 s)."""


@click.command("pytest-esp-mcp", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--rack", type=click.Path(path_type=Path), help="The rack file; else PYTEST_ESP_RACK, boards.toml.")
@click.option("--components", default="", metavar="NAME,...", help="Load only these groups of tools.")
@click.option(
    "--allow", default="read,write,erase", show_default=True, metavar="EFFECT,...", help="What tools may do at most."
)
@click.option(
    "--roots",
    multiple=True,
    metavar="DIR",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folders that files may be read from and written to (repeatable); else MCP_PROJECT_ROOTS, the working folder.",
)
@click.option("--idle", type=float, default=60.0, show_default=True, metavar="SECONDS", help="Until boards are free.")
@click.option("--allow-burn", is_flag=True, help="Consent to burn eFuses that a board's allow_burn names.")
@click.option(
    "--update-key",
    envvar="PYTEST_ESP_UPDATE_KEY",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A public key: only updates (esp_ota_deploy) signed with its private key are installed.",
)
@click.option("--http", metavar="HOST:PORT", help="Serve streamable HTTP instead of standard input and output.")
def main(
    rack: Path | None,
    components: str,
    allow: str,
    roots: tuple[Path, ...],
    idle: float,
    allow_burn: bool,
    update_key: Path | None,
    http: str | None,
) -> None:
    """Offer Espressif boards to MCP clients as esp_* tools, over standard input and output, or HTTP.

    Over HTTP clients send the bearer token in PYTEST_ESP_MCP_TOKEN; only on the loopback interface there may be none.
    """
    os.environ.setdefault(_NO_TYPE_CHECKS, "1")
    from mcp_bridge.bridge import Bridge

    try:
        settings = Settings(
            rack=rack,
            components=tuple(name for name in components.split(",") if name),
            allow=parse_allow(allow),
            roots=tuple(root.resolve() for root in roots) or default_roots(),
            idle=idle,
            burns_enabled=allow_burn,
            update_key=update_key.resolve() if update_key else None,
        )
        address = _address(http) if http is not None else None
        auth = _auth(address[0]) if address is not None else None
        bridge = Bridge(settings)
        app = bridge.server()
        if address is None:
            _end_on_signals(bridge)
            app.run("stdio", show_banner=False, log_level="WARNING")
        else:
            app.auth = auth
            app.run("http", host=address[0], port=address[1], show_banner=False)
    except EspError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)


def _end_on_signals(bridge: Bridge) -> None:
    """Let SIGINT and SIGTERM end the server: the thread that reads standard input would wait for the client else."""

    def end(number: int, _frame: object) -> None:
        threading.Thread(target=finish, args=(number,), daemon=True).start()

    def finish(number: int) -> None:
        try:
            bridge.close()  # calls that run come to their end first: a burn is never cut
        finally:
            os._exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise click.UsageError(f"--http: {text!r} is no HOST:PORT, e.g. 127.0.0.1:8000")
    return host.strip("[]"), int(port)


def _auth(host: str) -> AuthProvider | None:
    token = os.environ.get(_TOKEN, "")
    if token:
        from fastmcp.server.auth.providers.jwt import StaticTokenVerifier

        remember(token)
        return StaticTokenVerifier({token: {"client_id": "pytest-esp", "scopes": []}})
    if not _is_loopback(host):
        raise click.UsageError(f"{host} can be reached from outside: set a bearer token in {_TOKEN}")
    return None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
