"""Make tools of a component's methods: their schemas, their consent, the threads they run in, and their answers."""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import mcp_types as types
from fastmcp import Context
from fastmcp.tools.base import Tool, ToolResult
from fastmcp.tools.function_tool import FunctionTool
from mcp.types import InputRequiredResult, ToolAnnotations
from pydantic import Field, TypeAdapter

from mcp_bridge.answers import check_finite, defect, error_answer, file_error, value_error
from mcp_bridge.arguments import accepting
from mcp_bridge.bounds import DEFAULT_KB, MOST_KB, Archive, bounded
from mcp_bridge.calls import Call, progress
from mcp_bridge.components.base import Component
from mcp_bridge.consent import ask
from mcp_bridge.schemas import inlined, input_schema
from pytest_esp.errors import EspError, StoppedError
from pytest_esp.operations.registry import Effect, argument_descriptions, description, operation_of
from pytest_esp.operations.results import to_dict
from pytest_esp.secrets import hide, hide_in

F = TypeVar("F", bound=Callable[..., Any])

_MARK = "__esp_tool__"

_ERROR_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "success": {"const": False},
        "error": {"type": "string", "description": "what went wrong"},
        "port": {"type": ["string", "null"], "description": "the board"},
        "hint": {"type": ["string", "null"], "description": "what to do about it"},
    },
    "required": ["success", "error"],
}


@dataclass(frozen=True)
class ToolInfo:
    """A tool's strongest effect, its time-out in seconds, and more; see `tool`."""

    effect: Effect | None
    timeout: float
    idempotent: bool
    without: Mapping[str, Effect]
    boardless_with: str | None = None
    shows_secrets: bool = False
    read_only: bool = False
    changes: bool = False
    output_files: tuple[str, ...] = ()
    long: bool = False
    hides: tuple[str, ...] = ()
    operation: str | None = None

    def only_reads(self, arguments: Mapping[str, Any]) -> bool:
        """Return whether a call with these *arguments* has no side effects on boards, files and virtual machines."""
        if self.read_only:
            return True
        writes_files = any(arguments.get(name) for name in self.output_files)
        return self.effect_of(arguments) in (None, Effect.READ) and not self.changes and not writes_files

    def effect_of(self, arguments: Mapping[str, Any]) -> Effect | None:
        """Return the effect of a call with these *arguments*."""
        return next((less for flag, less in self.without.items() if not arguments.get(flag)), self.effect)

    def takes_board(self, arguments: Mapping[str, Any]) -> bool:
        """Return whether a call with these *arguments* uses a board of the rack."""
        return self.effect is not None and not (self.boardless_with and arguments.get(self.boardless_with))


def tool(
    effect: Effect | None = None,
    *,
    timeout: float = 60.0,
    idempotent: bool | None = None,
    without: Mapping[str, Effect] | None = None,
    boardless_with: str | None = None,
    shows_secrets: bool = False,
    read_only: bool | None = None,
    long: bool = False,
    hides: Sequence[str] = (),
    operation: str | None = None,
) -> Callable[[F], F]:
    """Make a component's method a tool of the same name.

    Clients see its parameters and docstring. *effect* is checked against the board that ``port`` names. The method
    runs in a thread and returns a dataclass, a pydantic model or a mapping.

    Args:
        effect: its strongest effect on a board; None if it does not touch boards.
        timeout: seconds until it is asked to stop, which it does at its next safe point.
        idempotent: whether repeating the call has no further effect; by default true for tools that only read.
        without: a flag without which a call has a lesser effect, e.g. ``{"apply": Effect.READ}``.
        boardless_with: a parameter with which a call does not use a board of the rack.
        shows_secrets: whether known secrets stay in the answer, because the caller asked for them.
        read_only: whether the call has no side effects on boards, files and virtual machines, so that a client may
            call it without asking; by default true for tools that only read and have no ``overwrite``.
        long: whether answers may be longer than the default limit, so that clients see how to raise it.
        hides: fields of the result that would repeat others in the answer.
        operation: the name of the operation that it offers, which hints may name.
    """
    reads = effect in (None, Effect.READ)

    def mark(method: F) -> F:
        takes = inspect.signature(method).parameters
        info = ToolInfo(
            effect=effect,
            timeout=timeout,
            idempotent=reads if idempotent is None else idempotent,
            without=without or {},
            boardless_with=boardless_with,
            shows_secrets=shows_secrets,
            read_only=reads and "overwrite" not in takes if read_only is None else read_only,
            changes=read_only is False,
            output_files=tuple(name for name in takes if name.startswith("output_")),
            long=long,
            hides=tuple(hides),
            operation=operation,
        )
        setattr(method, _MARK, info)
        return method

    return mark


_PORT: Any = Annotated[
    accepting(str | None, None),
    Field(description="name, device path or URL of the board; optional if there is one"),
]
_CONFIRM = Annotated[str | None, Field(description="the token that the first call returned")]
_ANSWER_KB = "answer_kb"
_KILOBYTES = Annotated[int, Field(description="the longest answer in KB", ge=1, le=MOST_KB)]
_HIDDEN = ("over",)  # parameters that only a test or a script needs


def offer(
    function: Callable[..., Any],
    *,
    words: str | None = None,
    rename: Mapping[str, str] | None = None,
    timeout: float = 60.0,
    idempotent: bool | None = None,
    shows_secrets: bool = False,
    read_only: bool | None = None,
    long: bool = False,
    hides: Sequence[str] = (),
) -> Callable[..., Any]:
    """Return a method that offers an operation as a tool, with the operation's parameters, descriptions and result.

    Args:
        function: the operation.
        words: the tool's description, if it differs from the operation's.
        rename: the operation's name of a parameter -> the tool's name of it.
        timeout: see `tool`, like the others.
    """
    operation = operation_of(function)
    shown = {
        one.name: (rename or {}).get(one.name, one.name) for one in operation.parameters if one.name not in _HIDDEN
    }
    takes_board = operation.takes_board

    def method(component: Component, **arguments: Any) -> Any:
        port = arguments.pop("port", None)
        given = {name: arguments[theirs] for name, theirs in shown.items() if theirs in arguments}
        if operation.takes_progress:
            given["progress"] = progress
        if not takes_board:
            return function(**given)
        with component.bridge.boards.use(port) as esp:
            return function(esp.link, **given)

    parameters = [inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    if takes_board:
        parameters.append(inspect.Parameter("port", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_PORT))
    parameters += [
        inspect.Parameter(
            shown[one.name],
            inspect.Parameter.KEYWORD_ONLY,
            default=one.default,
            annotation=Annotated[
                accepting(_from_json(one.annotation), one.default), Field(description=one.description)
            ],
        )
        for one in operation.parameters
        if one.name in shown
    ]
    method.__signature__ = inspect.Signature(parameters, return_annotation=operation.result)  # type: ignore[attr-defined]
    method.__annotations__ = {one.name: one.annotation for one in parameters[1:]} | {"return": operation.result}
    method.__doc__ = words or operation.description
    without = {shown[flag]: less for flag, less in operation.without.items()}
    marks = tool(
        operation.effect, timeout=timeout, idempotent=idempotent, without=without, shows_secrets=shows_secrets,
        read_only=read_only, long=long, hides=hides, operation=operation.name,
    )  # fmt: skip
    return marks(method)


def _from_json(annotation: Any) -> Any:
    """Return the type of a parameter without ``bytes``, which JSON cannot express."""
    if get_origin(annotation) not in (Union, UnionType) or bytes not in get_args(annotation):
        return annotation
    return Union[tuple(one for one in get_args(annotation) if one is not bytes)]  # noqa: UP007 - their number differs


def tools_of(component: Component) -> dict[str, tuple[Callable[..., Any], ToolInfo]]:
    """Return the tools of a component by name."""
    found: dict[str, tuple[Callable[..., Any], ToolInfo]] = {}
    for name, member in inspect.getmembers(type(component), inspect.isfunction):
        info = getattr(member, _MARK, None)
        if info is not None:
            found[name] = (getattr(component, name), info)
    return found


def check_plug_in(component: Component, taken: Collection[str]) -> None:
    """Check that the tools of another package's component can be made, and that their names are not *taken*.

    Raises:
        ValueError: if it has no tools, or a name is taken; other errors if a tool cannot be made.
    """
    tools = tools_of(component)
    if not tools:
        raise ValueError("it has no tools")
    if names := sorted(tools.keys() & set(taken)):
        raise ValueError(f"there is a tool {names[0]} already")
    with ThreadPoolExecutor(1) as threads:  # which are not started
        for name, (method, info) in tools.items():
            make_tool(component, name, method, info, threads, output_schemas=True)


class ShortTool(FunctionTool):
    """A tool that is listed without FastMCP's own ``_meta``."""

    def to_mcp_tool(self, **overrides: Any) -> types.Tool:
        """Return the tool as clients see it."""
        return super().to_mcp_tool(**overrides).model_copy(update={"meta": None})


def make_tool(
    component: Component,
    name: str,
    method: Callable[..., Any],
    info: ToolInfo,
    threads: ThreadPoolExecutor,
    *,
    output_schemas: bool,
) -> Tool:
    """Return the tool of a component's *method*.

    Args:
        threads: where its work is done.
        output_schemas: whether clients also see the schema of the answer, which costs more than the rest.
    """
    made = ShortTool.from_function(
        _wrapper(component, name, method, info, threads),
        name=name,
        description=description(inspect.getdoc(method) or ""),
        output_schema=_output_schema(get_type_hints(method)["return"], info.hides) if output_schemas else None,
        annotations=ToolAnnotations(
            read_only_hint=info.read_only,
            destructive_hint=info.effect in (Effect.ERASE, Effect.BURN),
            idempotent_hint=True if info.idempotent and not info.read_only else None,
            open_world_hint=False,
        ),
    )
    made.parameters = input_schema(made.parameters)
    if not info.long:
        del made.parameters["properties"][_ANSWER_KB]
    return made


@functools.cache  # several tools share a result
def _output_schema(result: Any, hides: tuple[str, ...]) -> dict[str, Any]:
    schema = TypeAdapter(result).json_schema(mode="serialization")
    schema = inlined(schema, schema.get("$defs", {}))
    properties = {"success": {"const": True}, "port": {"type": ["string", "null"]}, **schema.get("properties", {})}
    for name in hides:
        del properties[name]
    schema["required"] = [name for name in schema.get("required", ()) if name not in hides]
    success = {**schema, "type": "object", "properties": properties}
    return {"type": "object", "anyOf": [success, _ERROR_SCHEMA]}


def _wrapper(
    component: Component, name: str, method: Callable[..., Any], info: ToolInfo, threads: ThreadPoolExecutor
) -> Callable[..., Any]:
    signature = inspect.signature(method)
    hints = _described(method)
    asks = info.effect in (Effect.ERASE, Effect.BURN)

    async def call(ctx: Context, **arguments: Any) -> ToolResult | InputRequiredResult:
        port = arguments.get("port")
        try:
            check_finite(arguments)
            kilobytes = arguments.pop(_ANSWER_KB)
            confirm = arguments.pop("confirm", None) if asks else None
            effect = info.effect_of(arguments)
            takes_board = "port" in hints and info.takes_board(arguments)
            spec = component.bridge.boards.resolve(port) if takes_board else None
            if effect is not None:
                component.bridge.policy.check(effect, spec, name)
            if effect in (Effect.ERASE, Effect.BURN):
                question = await _ask(component, ctx, name, signature.bind(**arguments), confirm)
                if question is not None:
                    return question
            result = _plain(await _in_thread(ctx, method, arguments, info, threads))
            result = {key: value for key, value in result.items() if key not in info.hides}
            if spec is not None:
                component.bridge.seen.remember(spec.name, name, result)
            result = {"success": True, "port": spec.name if spec else port, **result}
            return _answer(result if info.shows_secrets else hide_in(result), kilobytes, component.bridge.archive)
        except EspError as error:
            return error_answer(error, port)
        except OSError as error:
            return error_answer(file_error(error), port)
        except ValueError as error:
            return error_answer(value_error(error), port)
        except Exception as error:
            return error_answer(defect(error, name), port)

    parameters = [inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY, annotation=Context)]
    parameters += [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[parameter.name])
        for parameter in signature.parameters.values()
    ]
    if asks:
        parameters.append(
            inspect.Parameter("confirm", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_CONFIRM)
        )
    parameters.append(
        inspect.Parameter(_ANSWER_KB, inspect.Parameter.KEYWORD_ONLY, default=DEFAULT_KB, annotation=_KILOBYTES)
    )
    call.__signature__ = inspect.Signature(parameters, return_annotation=ToolResult | InputRequiredResult)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    call.__name__ = name
    return call


def _answer(result: dict[str, Any], kilobytes: int, archive: Archive) -> ToolResult:
    """Return the answer with *result*; if it had to be cut, with a link to the whole one."""
    shown, uri = bounded(result, kilobytes, archive)
    if uri is None:
        return ToolResult(structured_content=shown)
    text = types.TextContent(text=json.dumps(shown, ensure_ascii=False, separators=(",", ":")))
    link = types.ResourceLink(name="whole answer", uri=uri, mime_type="application/json")
    return ToolResult(content=[text, link], structured_content=shown)


def _described(method: Callable[..., Any]) -> dict[str, Any]:
    """Return the types of a tool's parameters, with descriptions from the operation or the method's ``Args:``."""
    described = argument_descriptions(inspect.getdoc(method) or "")
    defaults = {one.name: one.default for one in inspect.signature(method).parameters.values()}
    hints = get_type_hints(method, include_extras=True)
    for name, text in described.items():
        hints[name] = Annotated[accepting(hints[name], defaults[name]), Field(description=text)]
    if "port" in hints:
        hints["port"] = _PORT
    return hints


async def _ask(
    component: Component, context: Context, name: str, bound: inspect.BoundArguments, confirm: str | None
) -> InputRequiredResult | None:
    plan = hide(await asyncio.to_thread(component.plan, name, dict(bound.arguments)))
    bound.apply_defaults()
    return await ask(context, component.bridge.policy, name, bound.arguments, plan, confirm)


async def _in_thread(
    context: Context, method: Callable[..., Any], arguments: dict[str, Any], info: ToolInfo, threads: ThreadPoolExecutor
) -> Any:
    """Run the work in a thread. A call that is cancelled or exceeds its time-out stops at its next safe point."""
    loop = asyncio.get_running_loop()
    running = Call(context, loop)
    variables = copy_context()
    variables.run(running.begin)
    work = loop.run_in_executor(threads, variables.run, functools.partial(method, **arguments))
    try:
        return await asyncio.wait_for(asyncio.shield(work), info.timeout)
    except TimeoutError:
        running.stop.set()
        await asyncio.wait({work})
        if work.exception() is None:
            return work.result()
        raise StoppedError(
            f"timed out after {info.timeout:g} s",
            hint="the board may be in any state; restart it with esp_reset_chip",
        ) from work.exception()
    except asyncio.CancelledError:
        running.stop.set()
        await asyncio.wait({work})
        work.exception()  # retrieved, so that asyncio does not report it
        raise


def _plain(result: Any) -> dict[str, Any]:
    return cast("dict[str, Any]", result) if isinstance(result, dict) else to_dict(result)
