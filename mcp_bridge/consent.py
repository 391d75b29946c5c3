"""A person's consent to a call that cannot be undone: asked through the client, or given by a token.

Since protocol version 2026-07-28 a server asks by ending the call with a question, and the client calls again with
the answer (``InputRequiredResult``); before, it asks in the middle of the call (``elicitation/create``). A client that
can do neither gets a token, which its second call brings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fastmcp import Context
from fastmcp.server.elicitation import AcceptedElicitation
from mcp.types import ElicitRequest, ElicitRequestFormParams, ElicitResult, InputRequiredResult

from pytest_esp.errors import RefusedError

if TYPE_CHECKING:
    from mcp_bridge.policy import Policy

_ASKS_BETWEEN_CALLS = "2026-07-28"  # versions are dates
_QUESTION = "confirm"
_ANSWER = {
    "type": "object",
    "properties": {"value": {"type": "string", "title": "Go on?", "enum": ["yes", "no"]}},
    "required": ["value"],
}


async def ask(
    context: Context, policy: Policy, tool: str, arguments: Mapping[str, Any], plan: str, token: str | None
) -> InputRequiredResult | None:
    """Return None if somebody has agreed to this very call, or the question that ends it for now.

    Args:
        context: of the call.
        policy: knows the tokens.
        tool, arguments: the call, without its token.
        plan: what it would do, for whoever decides.
        token: that the call brings, if it does.

    Raises:
        RefusedError: if nobody agrees; where nobody can be asked, its details have the token for the next call.
    """
    expected = policy.token(tool, arguments)
    if token is not None:
        if policy.accepts(token, tool, arguments):
            return None
        raise RefusedError("the confirm token belongs to another call", attempted=tool, hint="call without it first")
    capabilities = context.session.client_capabilities
    if capabilities is None or capabilities.elicitation is None:
        raise RefusedError(
            f"this needs a confirmation: {plan}",
            attempted=tool,
            hint="if this is meant, call again with the same arguments and this confirm token",
            details={"confirm": expected, "plan": plan},
        )
    question = f"{plan}\nGo on?"
    if context.session.protocol_version >= _ASKS_BETWEEN_CALLS:
        return _ask_between_calls(context, question, expected, tool)
    answer = await context.elicit(question, ["yes", "no"])
    _check(isinstance(answer, AcceptedElicitation) and answer.data == "yes", tool)
    return None


def _ask_between_calls(context: Context, question: str, token: str, tool: str) -> InputRequiredResult | None:
    answer = (context.input_responses or {}).get(_QUESTION)
    if answer is None or context.request_state != token:
        request = ElicitRequest(params=ElicitRequestFormParams(message=question, requested_schema=_ANSWER))
        return InputRequiredResult(input_requests={_QUESTION: request}, request_state=token)
    agreed = isinstance(answer, ElicitResult) and answer.action == "accept" and (answer.content or {}).get("value")
    _check(agreed == "yes", tool)
    return None


def _check(agreed: bool, tool: str) -> None:
    if not agreed:
        raise RefusedError("it was not confirmed; nothing was done", attempted=tool)
