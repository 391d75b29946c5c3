"""Make tools of a component's methods: their schemas, their consent, the threads they run in, and their answers."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import json
from collections.abc import Callable, Collection, Mapping, Sequence
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
from mcp_bridge.boards import LONGEST_WAIT
from mcp_bridge.bounds import DEFAULT_KB, MOST_KB, Archive, bounded
from mcp_bridge.calls import Call, Calls, client_gone, progress
from mcp_bridge.components.base import Component
from mcp_bridge.consent import ask, client_of
from mcp_bridge.policy import Consent
from mcp_bridge.schemas import inlined, input_schema
from pytest_esp.errors import EspError, RefusedError, StoppedError
from pytest_esp.operations.registry import Effect, argument_descriptions, description, operation_of
from pytest_esp.operations.results import to_dict
from pytest_esp.secrets import hide, hide_in

F = TypeVar("F", bound=Callable[..., Any])

_MARK = "__esp_tool__"
_GRACE = 10.0  # seconds for a call that timed out to reach its next safe point

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
    uses: str = "port"

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
    uses: str = "port",
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
        uses: the parameter that names the boards that the call uses; one call at a time uses a board.
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
            uses=uses,
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
_WAIT = Annotated[float, Field(description="seconds to wait for a board that another process holds")]
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
    for name, (method, info) in tools.items():
        make_tool(component, name, method, info, output_schemas=True)


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
    *,
    output_schemas: bool,
) -> Tool:
    """Return the tool of a component's *method*.

    Args:
        output_schemas: whether clients also see the schema of the answer, which costs more than the rest.
    """
    made = ShortTool.from_function(
        _wrapper(component, name, method, info),
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


def _wrapper(component: Component, name: str, method: Callable[..., Any], info: ToolInfo) -> Callable[..., Any]:
    signature = inspect.signature(method)
    hints = _described(method)
    asks = info.effect in (Effect.ERASE, Effect.BURN)
    waits = "port" in hints and info.effect is not None and "wait_s" not in hints

    async def call(ctx: Context, **arguments: Any) -> ToolResult | InputRequiredResult:
        port = arguments.get("port")
        try:
            check_finite(arguments)
            kilobytes = arguments.pop(_ANSWER_KB)
            confirm = arguments.pop("confirm", None) if asks else None
            wait = max(arguments.pop("wait_s", 0.0) if waits else arguments.get("wait_s", 0.0), 0.0)
            effect = info.effect_of(arguments)
            takes_board = "port" in hints and info.takes_board(arguments)
            spec = component.bridge.boards.resolve(port) if takes_board else None
            if effect is not None:
                component.bridge.policy.check(effect, spec, name)
            work = functools.partial(method, **arguments)
            boards = [spec.name] if spec else _boards_of(component, info, arguments)
            do = functools.partial(_work, component.bridge.calls, ctx, boards, timeout=info.timeout, wait=wait)
            if effect in (Effect.ERASE, Effect.BURN) and not _are_own(component, boards):
                bound = signature.bind(**arguments)
                check = functools.partial(_consent, component, name, bound, boards, client_of(ctx))
                consent = await do(check)
                question = await ask(ctx, component.bridge.policy, consent, confirm)
                if question is not None:
                    return question
                work = functools.partial(_as_confirmed, work, consent, check)
            result = _plain(await do(work, burns=effect is Effect.BURN))
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
    if waits:
        parameters.append(inspect.Parameter("wait_s", inspect.Parameter.KEYWORD_ONLY, default=0.0, annotation=_WAIT))
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


def _boards_of(component: Component, info: ToolInfo, arguments: Mapping[str, Any]) -> list[str]:
    """Return the names of the boards that a call uses, of a tool that does not take the board as its port."""
    named = arguments.get(info.uses) if info.uses != "port" else None
    ports = named if isinstance(named, list) else [named] if named is not None else []
    names: list[str] = []
    for port in cast("list[str]", ports):
        with contextlib.suppress(EspError):  # which the tool itself will raise
            names.append(component.bridge.boards.resolve(port).name)
    return names


def _are_own(component: Component, boards: Collection[str]) -> bool:
    """Return whether this server has started all *boards* itself, so that nothing of the user's is lost."""
    return bool(boards) and all(map(component.bridge.boards.is_own, boards))


def _consent(
    component: Component,
    name: str,
    bound: inspect.BoundArguments,
    boards: Collection[str],
    client: tuple[str, ...],
) -> Consent:
    """Return what a person has to confirm, after checking that the call can be done, in a call that has its boards."""
    plan = hide(component.plan(name, dict(bound.arguments)))
    macs = tuple(component.mac_of(name, board) for board in boards)
    bound.apply_defaults()
    return Consent(name, dict(bound.arguments), plan, macs, client)


def _as_confirmed(work: Callable[[], Any], consent: Consent, check: Callable[[], Consent]) -> Any:
    """Do the work, if it would still do what was confirmed: the question may have taken minutes."""
    if check().digest != consent.digest:
        raise RefusedError(
            "the board, or what the call would do to it, has changed since it was confirmed; nothing was changed",
            hint="call again",
        )
    return work()


async def _work(
    calls: Calls,
    context: Context | None,
    boards: Collection[str],
    method: Callable[[], Any],
    *,
    burns: bool = False,
    timeout: float,
    wait: float,
) -> Any:
    """Do the work in a thread when *boards* are free.

    It stops at its next safe point if the call is cancelled or takes longer than *timeout*, unless it burns.
    """
    running = Call(context, asyncio.get_running_loop(), burns=burns, wait=wait)
    gone = client_gone()
    give_back = await calls.take(boards, gone)
    try:
        if gone is not None and gone.is_set():
            raise StoppedError("the client is gone; nothing was changed")
        calls.begin(running)
        work = running.start(method)
    except BaseException:
        give_back()
        raise
    work.add_done_callback(lambda ended: (give_back(), ended.cancelled() or ended.exception()))  # which is retrieved
    try:
        return await asyncio.wait_for(asyncio.shield(work), timeout + min(wait, LONGEST_WAIT))
    except TimeoutError:
        running.stop.set()
        await asyncio.wait({work}, timeout=None if burns else _GRACE)
        if work.done() and work.exception() is None:
            return work.result()
        raise StoppedError(
            f"timed out after {timeout:g} s" + ("" if work.done() else "; the board does not react, and is still busy"),
            hint="the board may be in any state; restart it with esp_reset_chip",
        ) from (work.exception() if work.done() else None)
    except asyncio.CancelledError:
        running.stop.set()
        raise


def _plain(result: Any) -> dict[str, Any]:
    return cast("dict[str, Any]", result) if isinstance(result, dict) else to_dict(result)
