"""Who is refused over HTTP: requests with a foreign Host, a foreign Origin, or without the token; all are sent."""

import http.client
import os
import re
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import anyio
import pytest
from click.testing import CliRunner
from fastmcp import Client
from fastmcp.client.transports import StreamableHttpTransport

from mcp_bridge.bridge import Bridge
from mcp_bridge.cli import main
from mcp_bridge.http_guard import TOKEN_ENVIRONMENT, kept_token, token_file
from mcp_bridge.settings import Settings
from pytest_esp.errors import RefusedError

TOKEN = "token-of-the-tests"
ACCEPT = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}
INITIALIZE = (
    '{"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {"protocolVersion": "2025-06-18",'
    ' "capabilities": {}, "clientInfo": {"name": "test", "version": "0"}}}'
)
# FastMCP's settings cannot switch the protection off.
OPEN_DOORS = {
    "FASTMCP_HTTP_HOST_ORIGIN_PROTECTION": "false",
    "FASTMCP_HTTP_ALLOWED_HOSTS": '["*"]',
    "FASTMCP_HTTP_ALLOWED_ORIGINS": '["*"]',
}


class Served:
    """A server in a process of its own; *said* is what it printed until it listened."""

    def __init__(self, folder, *arguments, at="127.0.0.1", **environment):
        command = [sys.executable, "-m", "mcp_bridge", "--roots", folder, "--http", f"{at}:0", *arguments]
        own = {"PYTEST_ESP_STATE_DIR": str(folder / "state"), "PYTEST_ESP_LOCK_DIR": str(folder / "locks")}
        others = {name: value for name, value in os.environ.items() if name != TOKEN_ENVIRONMENT}
        self.said = ""
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, cwd=folder, env=others | own | environment
        )
        for line in self.process.stderr:
            self.said += line
            if found := re.search(r"running on http://\S+:(\d+)", line):
                self.port = int(found[1])
                return
        raise AssertionError(self.said)

    def ask(self, method="POST", path="/mcp", *, token=TOKEN, **headers):
        """Return the status and the headers of an answer; a header of None is not sent, of a list each value is."""
        sent = {"Host": f"127.0.0.1:{self.port}", "Authorization": f"Bearer {token}" if token else None} | headers
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        connection.putrequest(method, path, skip_host=True)
        for name, values in (ACCEPT | sent).items():
            for value in values if isinstance(values, list) else [values]:
                if value is not None:
                    connection.putheader(name, value)
        body = INITIALIZE.encode() if method == "POST" else b""
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        answer = connection.getresponse()
        connection.close()  # a GET that is allowed never ends
        return answer.status, answer.headers

    def call(self, tool, token=TOKEN):
        """Return the answer of a tool, as a client gets it."""

        async def call():
            async with Client(StreamableHttpTransport(f"http://127.0.0.1:{self.port}/mcp", auth=token)) as client:
                return (await client.call_tool(tool)).structured_content

        return anyio.run(call)


@contextmanager
def served(folder, *arguments, **settings):
    server = Served(folder, *arguments, **settings)
    try:
        yield server
    finally:
        server.process.kill()
        server.process.wait()
        server.process.stderr.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """As most start it, where FastMCP's settings would switch all protection off."""
    folder = tmp_path_factory.mktemp("default")
    (folder / ".env").write_text("".join(f"{name}={value}\n" for name, value in OPEN_DOORS.items()))
    with served(folder, **OPEN_DOORS, PYTEST_ESP_MCP_TOKEN=TOKEN) as server:
        yield server


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    """Behind a proxy, with a page that may call it."""
    hosts = ["--allowed-host", "boards.example.com", "--allowed-host", "[2001:DB8::1]:8443"]
    origins = ["--allowed-origin", "HTTPS://Bench.example.com:443/", "--allowed-origin", "http://localhost:6274"]
    with served(tmp_path_factory.mktemp("named"), *hosts, *origins, PYTEST_ESP_MCP_TOKEN=TOKEN) as server:
        yield server


@pytest.fixture(scope="module")
def everywhere(tmp_path_factory):
    """Every route that the server has, and one that it does not have, by every method."""
    app = Bridge(Settings(roots=(tmp_path_factory.mktemp("root"),), components=("server",))).server()
    paths = [route.path for route in app.http_app().routes]
    assert "/mcp" in paths
    return [(method, path) for path in [*paths, "/none"] for method in ("GET", "HEAD", "POST", "PUT", "DELETE")]


# -- Host and Origin


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (421, {"Host": "evil.example.com"}),
        (421, {"Host": "evil.example.com:8000"}),
        (421, {"Host": "127.0.0.1.evil.example.com"}),
        (421, {"Host": "localhost.evil.example.com"}),
        (421, {"Host": "0.0.0.0:8000"}),
        (421, {"Host": "*"}),
        (421, {"Host": "evil.example.com", "Origin": "http://evil.example.com"}),
        (403, {"Origin": "http://evil.example.com"}),
        (403, {"Origin": "https://localhost.evil.example.com"}),
        (403, {"Origin": "http://localhost"}),
        (403, {"Origin": "http://localhost:3000"}),
        (403, {"Origin": "http://127.0.0.1:{port}"}),
        (403, {"Origin": "http://[::1]:6274"}),
        (403, {"Origin": "null"}),
        (403, {"Origin": "*"}),
        (403, {"Origin": ""}),
        (403, {"Origin": ["", "http://evil.example.com"]}),
        (403, {"Origin": "http://localhost:3000", "Access-Control-Request-Method": "POST"}),
    ],
)
def test_a_foreign_host_or_origin_is_refused(server, everywhere, status, headers):
    if isinstance(headers.get("Origin"), str):
        headers = headers | {"Origin": headers["Origin"].replace("{port}", str(server.port))}
    for method, path in [*everywhere, ("OPTIONS", "/mcp")]:
        answer, fields = server.ask(method, path, **headers)
        assert (method, path, answer) == (method, path, status)
        assert not {"mcp-session-id", "access-control-allow-origin"} & {name.lower() for name in fields}


def test_a_request_without_host_is_refused(server):
    assert server.ask(Host=None)[0] in (400, 421)
    assert server.ask(Host=["127.0.0.1", "evil.example.com"])[0] in (400, 421)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:{port}", "localhost:{port}", "LOCALHOST", "[::1]:{port}"])
def test_loopback_reaches_it_by_its_names(server, host):
    status, fields = server.ask(Host=host.replace("{port}", str(server.port)))
    assert status == 200
    assert "mcp-session-id" in fields


def test_a_client_with_the_token_calls_tools(server):
    assert server.call("esp_server_info")["success"]


@pytest.mark.parametrize("host", ["boards.example.com", "Boards.Example.com:443", "[2001:db8::1]:8443", "127.0.0.1"])
def test_allowed_hosts_are_accepted(named, host):
    assert named.ask(Host=host)[0] == 200


@pytest.mark.parametrize(
    "host", ["example.com", "x.boards.example.com", "boards.example.com.evil.org", "[2001:db8::2]"]
)
def test_other_hosts_are_still_refused(named, host):
    assert named.ask(Host=host)[0] == 421


@pytest.mark.parametrize("origin", ["https://bench.example.com", "http://localhost:6274"])
def test_allowed_origins_are_accepted(named, origin):
    status, fields = named.ask(Origin=origin)
    assert (status, fields["access-control-allow-origin"]) == (200, origin)
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    status, fields = named.ask("OPTIONS", token=None, Origin=origin, **asked)
    assert (status, fields["access-control-allow-origin"]) == (200, origin)
    assert named.ask(Origin=origin, token=None)[0] == 401
    assert named.ask(Origin=origin, Host="evil.example.com")[0] == 421


@pytest.mark.parametrize(
    "origin",
    [
        "http://bench.example.com",
        "https://bench.example.com:8443",
        "https://x.bench.example.com",
        "http://localhost:6275",
        "https://localhost:6274",
        "http://127.0.0.1:6274",
        ["https://bench.example.com", "http://evil.example.com"],
    ],
)
def test_other_origins_are_still_refused(named, origin):
    assert named.ask(Origin=origin)[0] == 403


@pytest.mark.parametrize("at", ["0.0.0.0", "localhost"])
def test_it_is_the_same_at_every_address(tmp_path, at):
    with served(tmp_path, at=at, PYTEST_ESP_MCP_TOKEN=TOKEN) as server:
        assert server.ask()[0] == 200
        assert server.ask(Host="0.0.0.0")[0] == 421
        assert server.ask(Host="evil.example.com")[0] == 421
        assert server.ask(Origin="http://localhost:3000")[0] == 403
        assert server.ask(token=None)[0] == 401


@pytest.mark.parametrize(
    "option",
    [
        *(f"--allowed-host={host}" for host in ["*", "*.com", "?*", "[a-z]*", "", "a/b", "http://a", "a b", "[*]:1"]),
        *(
            f"--allowed-origin={origin}"
            for origin in ["*", "null", "", "*://*", "http://*", "http://a*:1", "http://[a-z]", "http://a/b", "a.com"]
        ),
    ],
)
def test_patterns_are_refused(option):
    result = CliRunner().invoke(main, ["--http", "127.0.0.1:0", option])
    assert result.exit_code == 2
    assert "is not a" in result.output


@pytest.mark.parametrize("option", ["--allowed-host=a.com", "--allowed-origin=http://a.com"])
def test_both_options_need_http(option):
    result = CliRunner().invoke(main, [option])
    assert (result.exit_code, "require --http" in result.output) == (2, True)


# -- the token


@pytest.mark.parametrize(
    "sent",
    [
        None,
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        f"Bearer {TOKEN[:-1]}",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN.upper()}",
        f"Basic {TOKEN}",
        TOKEN,
        b"Bearer \xff\xfe",
    ],
)
def test_without_the_token_nothing_is_answered(server, everywhere, sent):
    for method, path in everywhere:
        status, fields = server.ask(method, path, Authorization=sent)
        assert (method, path, status) == (method, path, 401)
        assert "mcp-session-id" not in fields


def test_a_session_does_not_replace_the_token(server):
    session = server.ask()[1]["mcp-session-id"]
    for method in ("GET", "POST", "DELETE"):
        assert server.ask(method, token=None, **{"Mcp-Session-Id": session})[0] == 401
        assert server.ask(method, token="wrong", **{"Mcp-Session-Id": session})[0] == 401


def test_the_token_is_kept_in_a_file_of_the_user(tmp_path):
    file = tmp_path / "state" / "mcp-token"
    with ExitStack() as stack:
        first = stack.enter_context(served(tmp_path))
        token = file.read_text().strip()
        assert len(token) >= 32
        assert str(file) in first.said
        assert token not in first.said
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert first.call("esp_server_info", token)["success"]
        assert first.ask(token=None)[0] == 401
        again = stack.enter_context(served(tmp_path))
        assert again.ask(token=token)[0] == 200

        environment = stack.enter_context(served(tmp_path, PYTEST_ESP_MCP_TOKEN=TOKEN))
        assert environment.ask()[0] == 200
        assert environment.ask(token=token)[0] == 401
        assert TOKEN not in environment.said

        rotated = stack.enter_context(served(tmp_path, "--rotate-token"))
        new = file.read_text().strip()
        assert new != token
        assert rotated.ask(token=token)[0] == 401
        assert rotated.ask(token=new)[0] == 200
        assert new not in rotated.said
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.fixture
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTEST_ESP_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.delenv(TOKEN_ENVIRONMENT, raising=False)
    return tmp_path / "state"


def test_a_token_is_replaced_without_a_server(state):
    old = kept_token()
    result = CliRunner().invoke(main, ["--rotate-token"])
    assert result.exit_code == 0
    assert str(token_file()) in result.output
    assert kept_token() != old
    assert kept_token() not in result.output


def test_rotation_is_refused_where_it_has_no_effect(state, monkeypatch):
    old = kept_token()
    monkeypatch.setenv(TOKEN_ENVIRONMENT, TOKEN)
    result = CliRunner().invoke(main, ["--rotate-token"])
    assert (result.exit_code, TOKEN_ENVIRONMENT in result.output) == (2, True)
    assert kept_token() == old


def test_servers_that_start_at_once_share_one_token(state):
    with ThreadPoolExecutor(16) as threads:
        assert len(set(threads.map(lambda _: kept_token(), range(64)))) == 1


def test_the_folder_is_private_whatever_the_umask(state):
    before = os.umask(0)
    try:
        kept_token()
    finally:
        os.umask(before)
    assert stat.S_IMODE(token_file().stat().st_mode) == 0o600
    assert stat.S_IMODE(state.stat().st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o666])
def test_a_file_that_others_can_use_is_refused(state, mode):
    old = kept_token()
    token_file().chmod(mode)
    with pytest.raises(RefusedError, match="other users") as refused:
        kept_token()
    assert "--rotate-token" in refused.value.hint
    assert kept_token(rotate=True) != old
    assert kept_token()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_another_user_is_refused(state):
    kept_token()
    os.chown(token_file(), 12345, 12345)
    with pytest.raises(RefusedError, match="other users"):
        kept_token()


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_is_refused(state, tmp_path, exists):
    kept_token()
    if exists:
        token_file().rename(tmp_path / "elsewhere")
    else:
        token_file().unlink()
    token_file().symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RefusedError, match="is a link"):
        kept_token()
    assert kept_token(rotate=True)
    assert not token_file().is_symlink()


@pytest.mark.parametrize("text", ["", "\n", "short", "x" * 40 + "\ny", "é" * 40, "\0" * 40])
def test_a_file_without_a_token_is_refused(state, text):
    kept_token()
    token_file().write_text(text)
    with pytest.raises(RefusedError, match="does not contain a token"):
        kept_token()


def test_a_token_file_that_cannot_be_made_is_an_error(state):
    state.write_text("a file")
    result = CliRunner().invoke(main, ["--http", "127.0.0.1:0"])
    assert result.exit_code == 1
    assert "cannot use the token file" in result.output


@pytest.mark.parametrize("token", ["two words", "käse", "tab\ttab", "a\x7fb"])
def test_a_token_that_no_client_can_send_is_refused(state, monkeypatch, token):
    monkeypatch.setenv(TOKEN_ENVIRONMENT, token)
    result = CliRunner().invoke(main, ["--http", "127.0.0.1:0"])
    assert result.exit_code == 1
    assert "printable ASCII" in result.output
    assert token not in result.output


def test_no_option_switches_the_token_off():
    help_text = CliRunner().invoke(main, ["--help"]).output
    assert "--rotate-token" in help_text
    assert not re.search(r"--no-|--insecure|--disable|--unsafe", help_text)
