"""Consent to a call that cannot be undone: asked for through the client, or given with a token.

Since protocol version 2026-07-28 a server asks by ending the call with a question, and the client calls again with
the answer (``InputRequiredResult``). Before, it asks during the call (``elicitation/create``). A client that supports
neither gets a token, and confirms by calling again with it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from fastmcp import Context
from fastmcp.server.dependencies import get_access_token
from fastmcp.server.elicitation import AcceptedElicitation
from mcp.types import ElicitRequest, ElicitRequestFormParams, ElicitResult, InputRequiredResult

from pytest_esp.errors import RefusedError

if TYPE_CHECKING:
    from mcp_bridge.policy import Consent, Policy

_ASKS_BETWEEN_CALLS = "2026-07-28"  # versions are dates
_QUESTION = "confirm"
_ANSWER = {
    "type": "object",
    "properties": {"value": {"type": "string", "title": "Continue?", "enum": ["yes", "no"]}},
    "required": ["value"],
}


async def ask(context: Context, policy: Policy, consent: Consent, token: str | None) -> InputRequiredResult | None:
    """Return None if this call is confirmed, else the question with which the call ends.

    Args:
        context: the call's context.
        policy: makes and checks the tokens.
        consent: the call.
        token: the call's token, if it has one.

    Raises:
        RefusedError: if the call is not confirmed. If the client cannot ask, the details have the confirm token.
    """
    tool = consent.tool
    if token is not None:
        if policy.accepts(token, consent):
            return None
        raise RefusedError(
            "the confirm token is for another call or another state of the board, was used, or is older than 5 minutes",
            attempted=tool,
            hint="call without a token to get the right one",
        )
    if not _asks_by_form(context):
        raise RefusedError(
            f"this call requires confirmation: {consent.plan}",
            attempted=tool,
            hint="to confirm, call again with the same arguments and this confirm token",
            details={"confirm": policy.token(consent), "plan": consent.plan},
        )
    question = f"{consent.plan}\nContinue?"
    if context.session.protocol_version >= _ASKS_BETWEEN_CALLS:
        return _ask_between_calls(context, policy, consent, question)
    try:
        answer = await context.elicit(question, ["yes", "no"])
    except Exception as error:  # whatever a client answers
        raise RefusedError(
            f"the client could not ask the user: {type(error).__name__}; nothing was changed", attempted=tool
        ) from error
    _check(isinstance(answer, AcceptedElicitation) and answer.data == "yes", tool)
    return None


def client_of(context: Context) -> tuple[str, ...]:
    """Return what a consent is bound to: the client's bearer token, and its session if the protocol has one."""
    bearer = get_access_token()
    session = context.session_id if context.session.protocol_version < _ASKS_BETWEEN_CALLS else ""
    return (session, bearer.token if bearer is not None else "")


def _asks_by_form(context: Context) -> bool:
    """Return whether the client can show a form to its user; some show only links."""
    capabilities = context.session.client_capabilities
    elicitation = capabilities.elicitation if capabilities is not None else None
    return elicitation is not None and (elicitation.form is not None or elicitation.url is None)


def _ask_between_calls(context: Context, policy: Policy, consent: Consent, question: str) -> InputRequiredResult | None:
    answer = (context.input_responses or {}).get(_QUESTION)
    asked = replace(consent, client=(*consent.client, "question"))  # its state does not work as a confirm token
    if answer is None or not policy.accepts(context.request_state or "", asked):
        request = ElicitRequest(params=ElicitRequestFormParams(message=question, requested_schema=_ANSWER))
        return InputRequiredResult(input_requests={_QUESTION: request}, request_state=policy.token(asked))
    agreed = isinstance(answer, ElicitResult) and answer.action == "accept" and (answer.content or {}).get("value")
    _check(agreed == "yes", consent.tool)
    return None


def _check(agreed: bool, tool: str) -> None:
    if not agreed:
        raise RefusedError("not confirmed; nothing was changed", attempted=tool)
