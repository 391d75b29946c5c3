"""A user's consent, by each way to ask for it; without a server."""

import asyncio
from types import SimpleNamespace

import pytest
from fastmcp.server.elicitation import AcceptedElicitation, CancelledElicitation, DeclinedElicitation
from mcp import MCPError
from mcp.types import ElicitResult

from mcp_bridge.consent import ask
from mcp_bridge.policy import Consent, Policy
from mcp_bridge.settings import Settings
from pytest_esp.errors import RefusedError

YES = "".join(("y", "es"))  # made at run time, as what comes from a client is
TOOL, PLAN = "esp_flash_erase", "erases 4 KB"
CONSENT = Consent(TOOL, {"port": "c3"}, PLAN, ("7c:df:a1:00:00:01",), ("session", ""))
OLD, NEW = "2025-11-25", "2026-07-28"


@pytest.fixture
def policy(tmp_path):
    return Policy(Settings(roots=(tmp_path,)))


class Client:
    """The context of a call by a client that can be asked, if it has a *version* of the protocol."""

    def __init__(self, version=None, answer=None, responses=None, state=None):
        elicitation = SimpleNamespace(form=object(), url=None) if version else None
        capabilities = SimpleNamespace(elicitation=elicitation)
        self.session = SimpleNamespace(client_capabilities=capabilities, protocol_version=version or NEW)
        self.answer = answer
        self.questions = []
        self.input_responses = responses
        self.request_state = state

    async def elicit(self, question, choices):
        self.questions.append((question, choices))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def asked(policy, client, token=None):
    return asyncio.run(ask(client, policy, CONSENT, token))


def test_the_token_of_this_call_confirms_it(policy):
    client = Client(OLD)
    assert asked(policy, client, policy.token(CONSENT)) is None
    assert client.questions == []


@pytest.mark.parametrize("token", ["", "0123456789abcdef"])
def test_a_token_of_another_call_is_refused(policy, token):
    for client in (Client(), Client(OLD, AcceptedElicitation(data=YES)), Client(NEW)):
        with pytest.raises(RefusedError, match="another call") as caught:
            asked(policy, client, token)
        assert caught.value.attempted == TOOL
        assert "confirm" not in caught.value.details


@pytest.mark.parametrize(
    "capabilities",
    [
        None,
        SimpleNamespace(elicitation=None),
        SimpleNamespace(elicitation=SimpleNamespace(form=None, url=object())),  # it can only show a link
    ],
)
def test_a_client_that_cannot_ask_gets_the_plan_and_a_token(policy, capabilities):
    client = Client()
    client.session.client_capabilities = capabilities
    with pytest.raises(RefusedError, match=PLAN) as caught:
        asked(policy, client)
    assert caught.value.attempted == TOOL
    details = caught.value.details
    assert details.keys() == {"confirm", "plan"}
    assert details["plan"] == PLAN
    assert asked(policy, client, details["confirm"]) is None
    with pytest.raises(RefusedError, match="was used"):
        asked(policy, client, details["confirm"])


def test_a_person_who_is_asked_in_the_call_agrees(policy):
    client = Client(OLD, AcceptedElicitation(data=YES))
    assert asked(policy, client) is None
    assert client.questions == [(f"{PLAN}\nContinue?", ["yes", "no"])]


@pytest.mark.parametrize(
    "answer",
    [
        AcceptedElicitation(data="no"),
        AcceptedElicitation(data="yep"),
        AcceptedElicitation(data="zzz"),
        AcceptedElicitation(data="Yes"),
        DeclinedElicitation(),
        CancelledElicitation(),
    ],
)
def test_any_other_answer_during_the_call_refuses_it(policy, answer):
    with pytest.raises(RefusedError, match="nothing was changed") as caught:
        asked(policy, Client(OLD, answer))
    assert caught.value.attempted == TOOL


@pytest.mark.parametrize(
    "error", [MCPError(-1, "no"), ValueError("no choice"), RuntimeError(), TypeError(), KeyError()]
)
def test_a_client_that_answers_with_an_error_has_not_confirmed(policy, error):
    with pytest.raises(RefusedError, match="could not ask the user") as caught:
        asked(policy, Client(OLD, error))
    assert "confirm" not in caught.value.details


def test_a_client_that_says_nothing_about_forms_shows_them(policy):
    client = Client(OLD, AcceptedElicitation(data=YES))
    client.session.client_capabilities.elicitation = SimpleNamespace(form=None, url=None)
    assert asked(policy, client) is None
    assert client.questions


@pytest.mark.parametrize("version", [NEW, "2027-01-01"])
def test_newer_clients_are_asked_by_the_end_of_the_call(policy, version):
    client = Client(version)
    question = asked(policy, client)
    assert client.questions == []
    assert question.request_state
    (request,) = question.input_requests.values()
    assert request.params.message == f"{PLAN}\nContinue?"
    schema = request.params.requested_schema
    assert (schema["properties"]["value"]["enum"], schema["required"]) == (["yes", "no"], ["value"])


def answered(policy, result, state=None):
    """The call that comes back with an answer."""
    question = asked(policy, Client(NEW))
    (name,) = question.input_requests
    state = question.request_state if state is None else state
    return asked(policy, Client(NEW, responses={name: result}, state=state))


def test_the_answer_comes_with_the_next_call(policy):
    assert answered(policy, ElicitResult(action="accept", content={"value": YES})) is None


@pytest.mark.parametrize(
    "answer",
    [
        ElicitResult(action="accept", content={"value": "no"}),
        ElicitResult(action="accept", content={"value": "zzz"}),
        ElicitResult(action="accept", content={"value": "YES"}),
        ElicitResult(action="accept", content={}),
        ElicitResult(action="accept", content=None),
        ElicitResult(action="decline", content={"value": YES}),
        ElicitResult(action="cancel", content={"value": YES}),
        SimpleNamespace(action="accept", content={"value": YES}),
    ],
)
def test_any_other_answer_with_the_next_call_refuses_it(policy, answer):
    with pytest.raises(RefusedError, match="nothing was changed") as caught:
        answered(policy, answer)
    assert caught.value.attempted == TOOL


@pytest.mark.parametrize("state", ["", "0000", "ffffffffffffffff", "zzzz"])
def test_an_answer_to_another_call_is_asked_for_once_more(policy, state):
    question = answered(policy, ElicitResult(action="accept", content={"value": YES}), state)
    assert question.request_state


def test_an_answer_is_good_for_one_call(policy):
    question = asked(policy, Client(NEW))
    yes = {name: ElicitResult(action="accept", content={"value": YES}) for name in question.input_requests}
    assert asked(policy, Client(NEW, responses=yes, state=question.request_state)) is None
    assert asked(policy, Client(NEW, responses=yes, state=question.request_state)).input_requests


def test_the_state_of_a_question_is_not_a_confirm_token(policy):
    state = asked(policy, Client(NEW)).request_state
    with pytest.raises(RefusedError, match="another call"):
        asked(policy, Client(NEW), state)


def test_an_answer_to_another_question_is_ignored(policy):
    yes = ElicitResult(action="accept", content={"value": YES})
    question = asked(policy, Client(NEW, responses={"other": yes}, state=asked(policy, Client(NEW)).request_state))
    assert question.input_requests
