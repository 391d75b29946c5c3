"""A client's own roots narrow the server's, over standard input and output; never widen them."""

import sys

import anyio
import pytest
from fastmcp import Client
from fastmcp.client.transports import StdioTransport

from mcp_bridge.policy import narrowed
from pytest_esp.formats.files import Confinement


@pytest.mark.parametrize(
    ("own", "theirs", "both"),
    [
        (["a"], ["a/in"], ["a/in"]),
        (["a/in"], ["a"], ["a/in"]),
        (["a"], ["a"], ["a"]),
        (["a", "b"], ["."], ["a", "b"]),
        (["a"], ["b"], []),
        (["a"], ["ab"], []),
        (["a"], ["a/in", "b"], ["a/in"]),
        (["a"], [], ["a"]),
    ],
)
def test_what_both_allow(tmp_path, own, theirs, both):
    limits = Confinement(roots=tuple(tmp_path / name for name in own))
    assert narrowed(limits, [tmp_path / name for name in theirs]).roots == tuple(tmp_path / name for name in both)


def opened(tmp_path, roots, later=None):
    """Return which of the files in two folders a client with *roots* can read, then with the roots *later*."""
    for folder in ("inside", "beside"):
        (tmp_path / "root" / folder).mkdir(parents=True)
        (tmp_path / "root" / folder / "x.bin").write_bytes(b"x")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "x.bin").write_bytes(b"x")
    environment = {"PYTEST_ESP_STATE_DIR": str(tmp_path), "PYTEST_ESP_LOCK_DIR": str(tmp_path)}
    command = ["-m", "mcp_bridge", "--roots", str(tmp_path / "root"), "--components", "firmware_builder"]
    transport = StdioTransport(sys.executable, command, env=environment)

    async def answers(client):
        results = {}
        for name in ("root/inside", "root/beside", "outside"):
            arguments = {"binary_file": str(tmp_path / name / "x.bin")}
            result = await client.call_tool("esp_firmware_analyze", arguments, raise_on_error=False)
            results[name] = result.structured_content
        return {name for name, answer in results.items() if "outside the folders" not in answer["error"]}, results

    async def run():
        current = [roots]
        handler = (lambda _: current[0]) if roots is not None else None
        async with Client(transport, roots=handler, mode="legacy") as client:
            first, results = await answers(client)
            if later is None:
                return first, results
            current[0] = later
            await client.session.send_roots_list_changed()
            return first, (await answers(client))[0]

    return anyio.run(run)


def test_its_roots_narrow_those_of_the_server(tmp_path):
    assert opened(tmp_path, [f"file://{tmp_path}/root/inside"])[0] == {"root/inside"}


def test_its_roots_do_not_widen_them(tmp_path):
    assert opened(tmp_path, [f"file://{tmp_path}", "file:///"])[0] == {"root/inside", "root/beside"}


@pytest.mark.parametrize("roots", [None, [], ["https://example.com/"]])
def test_without_roots_of_its_own_it_has_those_of_the_server(tmp_path, roots):
    assert opened(tmp_path, roots)[0] == {"root/inside", "root/beside"}


def test_with_roots_elsewhere_it_opens_nothing_and_says_why(tmp_path):
    _, results = opened(tmp_path, [f"file://{tmp_path}/outside"])
    assert all("the client's own roots" in answer["error"] for answer in results.values())
    assert f"{tmp_path}/root" in results["root/inside"]["hint"]


@pytest.mark.filterwarnings("ignore:The roots capability is deprecated")
def test_its_roots_may_change(tmp_path):
    first, then = opened(tmp_path, [f"file://{tmp_path}/root/inside"], [f"file://{tmp_path}/root/beside"])
    assert (first, then) == ({"root/inside"}, {"root/beside"})
