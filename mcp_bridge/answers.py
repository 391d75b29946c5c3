"""Answers to calls that fail: ``success: false`` with an error and a hint, whatever the client sent."""

from __future__ import annotations

import logging
import math
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import mcp_types as types
from fastmcp.exceptions import NotFoundError, ValidationError
from fastmcp.server.middleware import CallNext, Middleware, MiddlewareContext
from fastmcp.tools.base import ToolResult
from pydantic import ValidationError as PydanticError
from pydantic_core import ErrorDetails

from mcp_bridge.bounds import shortened
from mcp_bridge.hints import Hints
from pytest_esp.errors import (
    EspError,
    LeaseError,
    LinkError,
    NoMatchError,
    OperationError,
    PortError,
    RackError,
    StoppedError,
)
from pytest_esp.names import nearest
from pytest_esp.secrets import hide, hide_in

_log = logging.getLogger(__name__)

_DEEPEST = 32  # levels of lists and tables in arguments; tools need four
_LONGEST = 600  # characters of a message, which may quote what the caller sent
_MOST_PROBLEMS = 5

# Hints for errors that do not have one.
_HINTS: tuple[tuple[type[EspError], str], ...] = (
    (LeaseError, "esp_rack_status shows who holds it; esp_release releases a board that this server holds"),
    (NoMatchError, "esp_rack_status lists the boards"),
    (RackError, "esp_rack_status lists the boards"),
    (PortError, "esp_scan_ports lists the boards and the serial ports"),
    (LinkError, "esp_connect_advanced tries more ways to connect; esp_recover_chip tries to recover the chip"),
    (StoppedError, "the board may be in any state; restart it with esp_reset_chip"),
)


def error_answer(error: EspError, port: object = None) -> ToolResult:
    """Return the answer to a call that failed with *error*; *port* is the board that the caller named, if any."""
    named = port if isinstance(port, str) else None
    hint = error.hint or next((text for kind, text in _HINTS if isinstance(error, kind)), None)
    record: dict[str, Any] = {"success": False, "error": error.message, "port": error.board or named, "hint": hint}
    if error.attempted:
        record["attempted"] = error.attempted
    record = {key: _printable(hide(value)) if isinstance(value, str) else value for key, value in record.items()}
    return ToolResult(structured_content=shortened({**record, **hide_in(error.details)}), is_error=True)


def file_error(error: OSError) -> EspError:
    """Return an operating system's error about a file as an `EspError`."""
    return OperationError(
        f"{error.filename}: {error.strerror}" if error.filename and error.strerror else error.strerror or str(error),
        hint="check the path, whether it is a file or a folder, and its permissions",
    )


def value_error(error: ValueError) -> EspError:
    """Return the error for a value that no operation checked and a library refused."""
    return OperationError(f"invalid value: {error}")


def defect(error: Exception, tool: str) -> EspError:
    """Return the error for an unexpected exception, and log the traceback."""
    _log.error("unexpected error in %s\n%s", tool, hide("".join(traceback.format_exception(error)), is_cut=True))
    return EspError(
        f"internal error: {type(error).__name__}",
        attempted=tool,
        hint="see the server's log; the board may be in any state; restart it with esp_reset_chip",
    )


def check_finite(arguments: Mapping[str, Any]) -> None:
    """Check that numbers are finite: numbers from JSON or text may be nan or infinite.

    Raises:
        OperationError: if a number is nan or infinite.
    """
    for name, value in arguments.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise OperationError(f"{name} must be a finite number, not {value}")


class Guard(Middleware):
    """Checks calls before their tools run: invalid text, deep nesting, unknown names and wrong types.

    Errors without a hint get a list of the tool's parameters as their hint.

    Args:
        names: the names of all tools.
        hints: words hints for clients.
    """

    def __init__(self, names: Sequence[str], hints: Hints) -> None:
        self._names = names
        self._hints = hints

    async def on_call_tool(
        self, context: MiddlewareContext[types.CallToolRequestParams], call_next: CallNext[Any, ToolResult]
    ) -> ToolResult:
        """Answer calls that cannot be passed to a tool."""
        name, arguments = context.message.name, context.message.arguments or {}
        try:
            _check_text(arguments)
            answer = await call_next(context)
        except NotFoundError:
            hint = f"did you mean {nearest(name, self._names)}? esp_find_tools finds tools"
            return error_answer(OperationError(f"unknown tool {name!r}", hint=hint))
        except ValidationError as error:
            if not isinstance(error.__cause__, PydanticError):
                raise
            answer = error_answer(OperationError(_problems(error.__cause__)), arguments.get("port"))
        except EspError as error:
            answer = error_answer(error)
        content = answer.structured_content
        if not answer.is_error or content is None:
            return answer
        if content.get("hint"):
            hint = self._hints.for_clients(content["hint"])
            return ToolResult(structured_content={**content, "hint": hint}, is_error=True)
        assert context.fastmcp_context is not None
        tool = await context.fastmcp_context.fastmcp.get_tool(name)
        takes = parameters_in_words(name, tool.parameters if tool else {})
        return ToolResult(structured_content={**content, "hint": takes}, is_error=True)


def parameters_in_words(tool: str, schema: Mapping[str, Any]) -> str:
    """Return the parameters of a tool as one sentence, from the JSON schema of its arguments."""
    properties: dict[str, Any] = schema.get("properties", {})
    needed = schema.get("required", [])
    words = [
        f"{name} ({type_in_words(one)}{', required' if name in needed else ''})" for name, one in properties.items()
    ]
    return f"{tool} takes {', '.join(words) or 'no arguments'}"


def type_in_words(schema: Mapping[str, Any]) -> str:
    """Return the type that a JSON schema describes, in words."""
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    if "const" in schema:
        return str(schema["const"])
    if "anyOf" in schema:
        kinds = [type_in_words(one) for one in schema["anyOf"] if one.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if schema.get("type") == "array":
        return f"list of {type_in_words(schema.get('items', {}))}"
    return str(schema.get("type", "anything"))


def _problems(error: PydanticError) -> str:
    found = error.errors(include_url=False, include_context=False)
    texts = list(dict.fromkeys(_problem(one) for one in found))
    more = len(texts) - _MOST_PROBLEMS
    return "; ".join(texts[:_MOST_PROBLEMS]) + (f"; and {more} more" if more > 0 else "")


def _problem(one: ErrorDetails) -> str:
    place = ".".join(map(str, one["loc"]))
    if one["type"].startswith("missing"):
        return f"{place} is missing"
    if one["type"].startswith("unexpected"):
        return f"unknown parameter {place!r}"
    return f"{place}: {one['msg']}"


def _check_text(arguments: Mapping[str, Any]) -> None:
    for text in _texts(arguments):
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise OperationError("an argument contains a lone surrogate", hint="send valid Unicode text")


def _texts(arguments: Mapping[str, Any]) -> Iterator[str]:
    """Yield all text in *arguments*, without recursion: nesting may be deeper than the stack."""
    left: list[tuple[Any, int]] = [(arguments, 0)]
    while left:
        value, depth = left.pop()
        if depth > _DEEPEST:
            raise OperationError(f"an argument is nested deeper than {_DEEPEST} levels", hint="send flatter arguments")
        if isinstance(value, str):
            yield value
        elif isinstance(value, Mapping):
            table = cast("Mapping[str, Any]", value)
            left += [(item, depth + 1) for pair in table.items() for item in pair]
        elif isinstance(value, list):
            left += [(item, depth + 1) for item in cast("list[Any]", value)]


def _printable(text: str) -> str:
    """Return *text* shortened, without lone surrogates (from file names, for example), which JSON cannot contain."""
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"
