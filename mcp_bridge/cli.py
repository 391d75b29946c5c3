"""``pytest-esp-mcp``: the server's command line."""

from __future__ import annotations

import ipaddress
import os
import re
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from mcp_bridge.settings import Settings, default_roots, parse_allow
from pytest_esp.errors import EspError
from pytest_esp.secrets import remember

if TYPE_CHECKING:
    from fastmcp import FastMCP

    from mcp_bridge.bridge import Bridge

_NAME = "[a-z0-9._-]+"
_NO_TYPE_CHECKS = "PY_KEY_VALUE_DISABLE_BEARTYPE"
"""Read by py-key-value-aio, FastMCP's store, which otherwise adds type checks to its functions (0.1 s per start)."""


def _hosts(_context: click.Context, _option: click.Parameter, texts: tuple[str, ...]) -> list[str]:
    """Return host names or addresses as FastMCP compares them: without port and brackets.

    Patterns are refused, as they could allow all hosts.
    """
    hosts = [re.sub(r"^\[(.*)\](:\d+)?$|^([^:]*):\d+$", r"\1\3", text.lower()) for text in texts]
    for text, host in zip(texts, hosts, strict=True):
        if not _is_ip_address(host) and not re.fullmatch(_NAME, host):
            raise click.BadParameter(f"{text!r} is not a host name, e.g. boards.example.com")
    return hosts


def _origins(_context: click.Context, _option: click.Parameter, texts: tuple[str, ...]) -> list[str]:
    """Return origins as browsers send them: without the default port.

    Patterns and "null" are refused, as they could allow any page.
    """
    origins = [
        re.sub(r"^(http://[^:]*):80$|^(https://[^:]*):443$", r"\1\2", text.lower().rstrip("/")) for text in texts
    ]
    for text, origin in zip(texts, origins, strict=True):
        if not re.fullmatch(rf"[a-z][a-z0-9+.-]*://{_NAME}(:\d+)?", origin):
            raise click.BadParameter(f"{text!r} is not an origin, e.g. https://boards.example.com:8443")
    return origins


def _is_ip_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


@click.command("pytest-esp-mcp", context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--rack",
    type=click.Path(path_type=Path),
    help="The rack file. Default: PYTEST_ESP_RACK, else boards.toml in this folder or above.",
)
@click.option("--components", default="", metavar="NAME,...", help="Load only these groups of tools. Default: all.")
@click.option(
    "--tools",
    type=click.Choice(["common", "all"]),
    help="List the tools for ad hoc work, which find and call the others, or all tools. Default: common; all with "
    "--components.",
)
@click.option("--output-schemas", is_flag=True, help="List tools with the schemas of their answers.")
@click.option(
    "--allow",
    default="read,write,erase",
    show_default=True,
    metavar="EFFECT,...",
    help="What tools may do to boards: read, write, erase, burn.",
)
@click.option(
    "--roots",
    multiple=True,
    metavar="DIR",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A folder that tools may read files from and write files to (repeatable). Default: MCP_PROJECT_ROOTS, else "
    "the working folder unless it is / or a home folder.",
)
@click.option(
    "--idle",
    type=float,
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="Release boards that are idle for so long.",
)
@click.option("--allow-burn", is_flag=True, help="Allow burning the eFuses that a board's allow_burn lists.")
@click.option(
    "--suites",
    multiple=True,
    metavar="PATH_OR_MODULE",
    help="A test suite of yours that esp_production_test may run, outside the folders in which clients may write "
    "(repeatable).",
)
@click.option(
    "--update-key",
    envvar="PYTEST_ESP_UPDATE_KEY",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A public key: install only updates (esp_ota_deploy) that are signed with its private key.",
)
@click.option("--http", metavar="HOST:PORT", help="Serve streamable HTTP instead of standard input and output.")
@click.option(
    "--allowed-host",
    "hosts",
    multiple=True,
    metavar="NAME",
    callback=_hosts,
    help="With --http: another host name under which clients reach the server, e.g. a proxy's (repeatable).",
)
@click.option(
    "--allowed-origin",
    "origins",
    multiple=True,
    metavar="ORIGIN",
    callback=_origins,
    help="With --http: allow web pages of this origin to call the server (repeatable). Default: no web pages.",
)
@click.option(
    "--rotate-token", is_flag=True, help="Make a new bearer token for --http. Without --http, exit after that."
)
def main(
    rack: Path | None,
    components: str,
    tools: Literal["common", "all"] | None,
    output_schemas: bool,
    allow: str,
    roots: tuple[Path, ...],
    idle: float,
    allow_burn: bool,
    suites: tuple[str, ...],
    update_key: Path | None,
    http: str | None,
    hosts: list[str],
    origins: list[str],
    rotate_token: bool,
) -> None:
    """Offer Espressif boards to MCP clients as esp_* tools, over standard input and output, or HTTP.

    HTTP clients must send a bearer token. It is read from PYTEST_ESP_MCP_TOKEN, else from a file whose path is printed.
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
            suites=suites,
            update_key=update_key.resolve() if update_key else None,
            tools=tools,
            output_schemas=output_schemas,
        )
        address = _address(http) if http is not None else None
        if address is None and (hosts or origins):
            raise click.UsageError("--allowed-host and --allowed-origin require --http")
        token = _token(rotate=rotate_token) if address is not None or rotate_token else ""
        if address is None and rotate_token:
            return
        bridge = Bridge(settings)
        app = bridge.server()
        _end_on_signals(bridge)
        if address is None:
            app.run("stdio", show_banner=False, log_level="WARNING")
        else:
            _serve(app, *address, hosts=hosts, origins=origins, token=token)
    except EspError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)


def _end_on_signals(bridge: Bridge) -> None:
    """End the server on SIGINT, SIGTERM and SIGHUP, when calls that burn have ended.

    Otherwise the thread that reads standard input waits for the client. uvicorn sets handlers of its own, and calls
    these when it has ended.
    """

    def end(number: int, _frame: object) -> None:
        threading.Thread(target=finish, args=(number,), daemon=True).start()

    def finish(number: int) -> None:
        try:
            bridge.close()
        finally:
            os._exit(128 + number)

    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):  # Windows has no SIGHUP
            signal.signal(getattr(signal, name), end)


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise click.UsageError(f"--http: {text!r} is not HOST:PORT, e.g. 127.0.0.1:8000")
    return host.strip("[]"), int(port)


def _token(*, rotate: bool) -> str:
    from mcp_bridge.http_guard import TOKEN_ENVIRONMENT, kept_token, named_token, token_file

    token = named_token()
    if token is None:
        token = kept_token(rotate=rotate)
        click.echo(f"The bearer token is in {token_file()}", err=True)
    elif rotate:
        raise click.UsageError(f"--rotate-token has no effect while {TOKEN_ENVIRONMENT} is set")
    remember(token)
    return token


def _serve(app: FastMCP[Any], host: str, port: int, *, hosts: list[str], origins: list[str], token: str) -> None:
    """Serve HTTP. All settings are passed explicitly, so that FastMCP's environment variables do not change them."""
    from fastmcp.server.auth.providers.jwt import StaticTokenVerifier
    from starlette.middleware import Middleware

    from mcp_bridge.http_guard import Gate

    is_any = _is_ip_address(host) and ipaddress.ip_address(host).is_unspecified
    app.auth = StaticTokenVerifier({token: {"client_id": "pytest-esp", "scopes": []}})
    app.run(
        "http",
        host=host,
        port=port,
        show_banner=False,
        host_origin_protection=True,
        allowed_hosts=hosts if is_any else [*hosts, host],
        allowed_origins=origins,
        middleware=[Middleware(Gate, origins=origins)],
    )
