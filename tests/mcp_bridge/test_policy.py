"""The policy of one server, without a server."""

import asyncio
import hashlib

import pytest

from mcp_bridge.policy import Confine, Policy
from mcp_bridge.settings import Settings, parse_allow
from pytest_esp.errors import RefusedError
from pytest_esp.formats.files import confinement, resolve
from pytest_esp.operations.registry import Effect
from pytest_esp.rack.config import load_rack

CALL = ("esp_flash_erase", {"port": "c3", "size": 4096})


def policy_of(folder, allow="read,write,erase,burn"):
    return Policy(Settings(allow=parse_allow(allow), roots=(folder,)))


@pytest.fixture
def guarded(tmp_path):
    (tmp_path / "boards.toml").write_text('[boards.g]\nbackend="sim"\nchip="esp32"\nallow=["read", "write"]\n')
    return load_rack(tmp_path / "boards.toml").board("g")


def test_the_server_and_the_board_both_have_to_allow_it(tmp_path, guarded):
    policy = policy_of(tmp_path, "read,erase")
    policy.check(Effect.READ, guarded, "a tool")
    policy.check(Effect.ERASE, None, "a tool")
    with pytest.raises(RefusedError, match="server does not allow 'write'") as caught:
        policy.check(Effect.WRITE, guarded, "a tool")
    assert "--allow read,write,erase,burn" in caught.value.hint
    assert (caught.value.board, caught.value.attempted) == (None, "a tool")
    with pytest.raises(RefusedError, match="board does not allow 'erase'") as caught:
        policy.check(Effect.ERASE, guarded, "a tool")
    assert "`allow` of [boards.g]" in caught.value.hint
    assert (caught.value.board, caught.value.attempted) == ("g", "a tool")
    with pytest.raises(RefusedError, match="server"):
        policy.check(Effect.BURN, None, "a tool")


def test_a_token_is_good_for_one_call_of_one_server(tmp_path):
    policy = policy_of(tmp_path)
    tool, arguments = CALL
    token = policy.token(tool, arguments)
    assert len(token) == 16
    assert policy.accepts(token, tool, arguments)
    assert policy.accepts(token, tool, dict(reversed(arguments.items())))
    for other in (
        ("esp_flash_write", arguments),
        (tool, arguments | {"size": 8192}),
        (tool, arguments | {"force": True}),
        (tool, {}),
    ):
        assert not policy.accepts(token, *other)
    assert not policy_of(tmp_path).accepts(token, tool, arguments)


@pytest.mark.parametrize("token", ["", "0" * 16, "\u00e9" * 16])
def test_invalid_tokens(tmp_path, token):
    assert not policy_of(tmp_path).accepts(token, *CALL)


def test_a_part_of_a_token_is_refused(tmp_path):
    policy = policy_of(tmp_path)
    token = policy.token(*CALL)
    for wrong in (token[:-1], token + "0", token.upper() + " "):
        assert not policy.accepts(wrong, *CALL)


def test_arguments_of_any_type_have_a_token(tmp_path):
    policy = policy_of(tmp_path)
    assert policy.token("tool", {"path": tmp_path}) == policy.token("tool", {"path": str(tmp_path)})


def test_the_secret_of_a_server_is_as_long_as_its_hash(tmp_path, monkeypatch):
    sizes = []
    monkeypatch.setattr("mcp_bridge.policy.secrets.token_bytes", lambda size: sizes.append(size) or bytes(size))
    policy_of(tmp_path)
    assert sizes == [hashlib.sha256().digest_size]


def test_each_server_has_its_own_token_for_a_call(tmp_path):
    assert len({policy_of(tmp_path).token(*CALL) for _ in range(5)}) == 5


def confinement_of(settings, rack_file):
    """The confinement of a client's calls."""

    async def look(context):
        return confinement()

    return asyncio.run(Confine(settings, rack_file).on_message(None, look))


def test_a_client_is_confined_to_the_roots_and_does_not_write_the_rack(tmp_path):
    root, key = tmp_path / "root", tmp_path / "key.pem"
    (root / "inner").mkdir(parents=True)
    (tmp_path / "link").symlink_to(root)
    limits = confinement_of(Settings(roots=(tmp_path / "link",), update_key=key), tmp_path / "link" / "boards.toml")
    assert limits.roots == (root,)
    assert limits.readable == (key,)
    assert limits.protected == (root / "boards.toml",)
    assert "--roots" in limits.hint
    assert confinement() is None  # again, after the call


def test_without_a_key_and_a_rack_file_nothing_is_added(tmp_path):
    limits = confinement_of(Settings(roots=(tmp_path,)), None)
    assert (limits.readable, limits.protected) == ((), ())


def test_the_confinement_holds_for_the_call(tmp_path):
    async def open_outside(context):
        return resolve(tmp_path / "outside.bin")

    with pytest.raises(RefusedError, match="outside"):
        asyncio.run(Confine(Settings(roots=(tmp_path / "root",)), None).on_message(None, open_outside))
