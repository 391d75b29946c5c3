"""What a call that fails is answered: always ``success: false`` with an error and a hint, whatever was sent."""

from __future__ import annotations

import logging
import math
import traceback
from collections.abc import Iterator, Mapping
from typing import Any, cast

import mcp_types as types
from fastmcp.exceptions import NotFoundError, ValidationError
from fastmcp.server.middleware import CallNext, Middleware, MiddlewareContext
from fastmcp.tools.base import ToolResult
from pydantic import ValidationError as PydanticError
from pydantic_core import ErrorDetails

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

_DEEPEST = 32  # levels of lists and tables in arguments; those of tools have four
_LONGEST = 600  # characters of a message; it may quote what the caller has sent
_MOST_PROBLEMS = 5

# Where an error brings no hint of its own: what helps with errors of its kind.
_HINTS: tuple[tuple[type[EspError], str], ...] = (
    (LeaseError, "esp_rack_status says who holds it; esp_release gives back what this server holds"),
    (NoMatchError, "esp_rack_status lists the boards"),
    (RackError, "esp_rack_status lists the boards"),
    (PortError, "esp_scan_ports lists the boards and serial ports that there are"),
    (LinkError, "esp_connect_advanced tries more ways to connect, esp_recover_chip goes further"),
    (StoppedError, "the board may be in any state; esp_reset_chip starts it anew"),
)


def error_answer(error: EspError, port: object = None) -> ToolResult:
    """Return what a call answers that *error* has ended; *port* is the board that the caller named, if any."""
    named = port if isinstance(port, str) else None
    hint = error.hint or next((text for kind, text in _HINTS if isinstance(error, kind)), None)
    record: dict[str, Any] = {"success": False, "error": error.message, "port": error.board or named, "hint": hint}
    if error.attempted:
        record["attempted"] = error.attempted
    record = {key: _printable(hide(value)) if isinstance(value, str) else value for key, value in record.items()}
    return ToolResult(structured_content={**record, **hide_in(error.details)}, is_error=True)


def file_error(error: OSError) -> EspError:
    """Return what the operating system said of a file, in the words of this server."""
    return OperationError(
        f"{error.filename}: {error.strerror}" if error.filename and error.strerror else error.strerror or str(error),
        hint="check the name, whether it is a file or a folder, and who may read or write it",
    )


def value_error(error: ValueError) -> EspError:
    """Return what no operation has looked at: a value that a library refused."""
    return OperationError(f"a value is wrong: {error}")


def defect(error: Exception, tool: str) -> EspError:
    """Return what is said of an exception that nobody expected; the log has all of it."""
    _log.error("%s met a defect\n%s", tool, hide("".join(traceback.format_exception(error)), is_cut=True))
    return EspError(
        f"a defect of this server ended the call ({type(error).__name__})",
        attempted=tool,
        hint="its log has the details; the state of the board is unknown, esp_reset_chip starts it anew",
    )


def check_finite(arguments: Mapping[str, Any]) -> None:
    """Check that numbers are numbers: what is read from JSON or text may be nan or infinite.

    Raises:
        OperationError: if one is neither.
    """
    for name, value in arguments.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise OperationError(f"{name} is {value}, which is no finite number")


class Guard(Middleware):
    """Looks at calls before their tools do: text that is none, nesting without end, names and types.

    Errors that know no hint get what the tool takes.
    """

    async def on_call_tool(
        self, context: MiddlewareContext[types.CallToolRequestParams], call_next: CallNext[Any, ToolResult]
    ) -> ToolResult:
        """Answer for calls that never reach a tool."""
        name, arguments = context.message.name, context.message.arguments or {}
        assert context.fastmcp_context is not None
        app = context.fastmcp_context.fastmcp
        try:
            _check_text(arguments)
            answer = await call_next(context)
        except NotFoundError:
            hint = f"nearest: {nearest(name, [tool.name for tool in await app.list_tools()])}; esp_list_tools has all"
            return error_answer(OperationError(f"there is no tool {name!r}", hint=hint))
        except ValidationError as error:
            if not isinstance(error.__cause__, PydanticError):
                raise
            answer = error_answer(OperationError(_problems(error.__cause__)), arguments.get("port"))
        except EspError as error:
            answer = error_answer(error)
        content = answer.structured_content
        if not answer.is_error or content is None or content.get("hint"):
            return answer
        tool = await app.get_tool(name)
        takes = parameters_in_words(name, tool.parameters if tool else {})
        return ToolResult(structured_content={**content, "hint": takes}, is_error=True)


def parameters_in_words(tool: str, schema: Mapping[str, Any]) -> str:
    """Return what a tool takes, from the JSON schema of its arguments."""
    properties: dict[str, Any] = schema.get("properties", {})
    needed = schema.get("required", [])
    words = [f"{name} ({type_in_words(one)}{', needed' if name in needed else ''})" for name, one in properties.items()]
    return f"{tool} takes {', '.join(words) or 'nothing'}"


def type_in_words(schema: Mapping[str, Any]) -> str:
    """Return what a JSON schema allows, in words."""
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
        return f"there is no parameter {place!r}"
    return f"{place}: {one['msg']}"


def _check_text(arguments: Mapping[str, Any]) -> None:
    for text in _texts(arguments):
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise OperationError("an argument has half a character (a lone surrogate)", hint="send valid Unicode text")


def _texts(arguments: Mapping[str, Any]) -> Iterator[str]:
    """Yield all text in *arguments*, without recursion, which deep nesting would exhaust."""
    left: list[tuple[Any, int]] = [(arguments, 0)]
    while left:
        value, depth = left.pop()
        if depth > _DEEPEST:
            raise OperationError(f"an argument is nested deeper than {_DEEPEST} levels", hint="no tool needs that")
        if isinstance(value, str):
            yield value
        elif isinstance(value, Mapping):
            table = cast("Mapping[str, Any]", value)
            left += [(item, depth + 1) for pair in table.items() for item in pair]
        elif isinstance(value, list):
            left += [(item, depth + 1) for item in cast("list[Any]", value)]


def _printable(text: str) -> str:
    """Return *text* no longer than useful, without half characters (of file names, say), which JSON cannot carry."""
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"
