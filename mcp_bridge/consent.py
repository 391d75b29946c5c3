"""Consent to a call that cannot be undone: asked for through the client, or given with a token.

Since protocol version 2026-07-28 a server asks by ending the call with a question, and the client calls again with
the answer (``InputRequiredResult``). Before, it asks during the call (``elicitation/create``). A client that supports
neither gets a token, and confirms by calling again with it.
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
    "properties": {"value": {"type": "string", "title": "Continue?", "enum": ["yes", "no"]}},
    "required": ["value"],
}


async def ask(
    context: Context, policy: Policy, tool: str, arguments: Mapping[str, Any], plan: str, token: str | None
) -> InputRequiredResult | None:
    """Return None if this call is confirmed, else the question with which the call ends.

    Args:
        context: the call's context.
        policy: makes and checks the tokens.
        tool, arguments: the call, without its token.
        plan: what the call would do, for the person who decides.
        token: the call's token, if it has one.

    Raises:
        RefusedError: if the call is not confirmed. If the client cannot ask, the details have the confirm token.
    """
    expected = policy.token(tool, arguments)
    if token is not None:
        if policy.accepts(token, tool, arguments):
            return None
        raise RefusedError(
            "the confirm token is for another call", attempted=tool, hint="call without a token to get the right one"
        )
    capabilities = context.session.client_capabilities
    if capabilities is None or capabilities.elicitation is None:
        raise RefusedError(
            f"this call requires confirmation: {plan}",
            attempted=tool,
            hint="to confirm, call again with the same arguments and this confirm token",
            details={"confirm": expected, "plan": plan},
        )
    question = f"{plan}\nContinue?"
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
        raise RefusedError("not confirmed; nothing was changed", attempted=tool)
