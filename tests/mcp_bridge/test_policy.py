"""The policy of one server, without a server."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from fastmcp.server.middleware import MiddlewareContext

from mcp_bridge.policy import Confine, Consent, Policy
from mcp_bridge.settings import Settings, parse_allow
from pytest_esp.errors import RefusedError
from pytest_esp.formats.files import confinement, resolve
from pytest_esp.operations.registry import Effect
from pytest_esp.rack.config import load_rack

CALL = Consent(
    "esp_flash_erase", {"port": "c3", "size": 4096}, "erases 4 KB", ("7c:df:a1:00:00:01",), ("session", "bearer")
)


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


def test_a_token_is_good_for_one_use_of_one_call_of_one_server(tmp_path):
    policy = policy_of(tmp_path)
    token = policy.token(CALL)
    assert len(token) == 32
    for other in (
        replace(CALL, tool="esp_flash_write"),
        replace(CALL, arguments=CALL.arguments | {"size": 8192}),
        replace(CALL, arguments=CALL.arguments | {"force": True}),
        replace(CALL, arguments={}),
        replace(CALL, plan="erases 8 KB"),
        replace(CALL, boards=("7c:df:a1:00:00:02",)),
        replace(CALL, boards=()),
        replace(CALL, client=("another session", "bearer")),
        replace(CALL, client=("session", "another bearer")),
    ):
        assert not policy.accepts(token, other)
    assert not policy_of(tmp_path).accepts(token, CALL)
    assert policy.accepts(token, replace(CALL, arguments=dict(reversed(CALL.arguments.items()))))
    assert not policy.accepts(token, CALL)


def test_a_token_ends_after_five_minutes(tmp_path, monkeypatch):
    policy, now = policy_of(tmp_path), [1000.0]
    monkeypatch.setattr("mcp_bridge.policy.time.monotonic", lambda: now[0])
    first, second = policy.token(CALL), policy.token(CALL)
    now[0] += 299
    assert policy.accepts(first, CALL)
    now[0] += 2
    assert not policy.accepts(second, CALL)
    policy.token(CALL)
    assert len(policy._tokens) == 1


def test_tokens_that_nobody_uses_are_bounded(tmp_path):
    policy = policy_of(tmp_path)
    tokens = [policy.token(CALL) for _ in range(2000)]
    assert len(policy._tokens) <= 1001
    assert policy.accepts(tokens[-1], CALL)
    assert not policy.accepts(tokens[0], CALL)


def test_of_two_calls_at_once_one_gets_the_token(tmp_path):
    policy = policy_of(tmp_path)
    for _ in range(50):
        token = policy.token(CALL)
        with ThreadPoolExecutor(8) as threads:
            assert sum(threads.map(lambda _, token=token: policy.accepts(token, CALL), range(8))) == 1


@pytest.mark.parametrize("token", ["", "0" * 32, "\u00e9" * 32])
def test_invalid_tokens(tmp_path, token):
    assert not policy_of(tmp_path).accepts(token, CALL)


def test_a_part_of_a_token_is_refused(tmp_path):
    policy = policy_of(tmp_path)
    token = policy.token(CALL)
    for wrong in (token[:-1], token + "0", token.upper() + " "):
        assert not policy.accepts(wrong, CALL)


def test_arguments_of_any_type_have_a_token(tmp_path):
    policy = policy_of(tmp_path)
    token = policy.token(replace(CALL, arguments={"path": tmp_path}))
    assert policy.accepts(token, replace(CALL, arguments={"path": str(tmp_path)}))


def test_tokens_are_never_the_same(tmp_path):
    policy = policy_of(tmp_path)
    assert len({policy.token(CALL) for _ in range(100)}) == 100


def confinement_of(settings, rack_file):
    """The confinement of a client's calls."""

    async def look(context):
        return confinement()

    return asyncio.run(Confine(settings, rack_file).on_message(MiddlewareContext(message=None), look))


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
        asyncio.run(
            Confine(Settings(roots=(tmp_path / "root",)), None).on_message(
                MiddlewareContext(message=None), open_outside
            )
        )
