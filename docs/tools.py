"""Write docs/tools.md from a running server and calls of its tools: ``make docs``."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tool_examples import Bench, Example, have_qemu, run_all

from mcp_bridge.answers import type_in_words
from mcp_bridge.bridge import Bridge
from mcp_bridge.components.base import Component
from mcp_bridge.settings import Settings
from mcp_bridge.tool import ToolInfo, tools_of
from pytest_esp.operations.registry import Effect

PAGE = Path(__file__).with_suffix(".md")
INTRO = """# The tools of the MCP server

`make docs` writes this page from a running server. The answers are from real calls, in this order, on simulated chips
and QEMU (ESP-IDF is replaced by a stand-in). Long values are shortened, and values that differ from run to run are
shown as `(varies)`. How to start the server, and what it may do: [mcp.md](mcp.md).

Every answer has `success` and `port`. If `success` is false, `error` says what was wrong and `hint` what to do.
Addresses and sizes can be written as `4096`, `"0x1000"` or `"4KB"`. Files must be inside the server's roots. An
existing file is only replaced with `overwrite`. `port` is optional if the rack has only one board. Calls that erase or
burn ask for confirmation first. If the client cannot ask the user, the call returns a token; call again with it as
`confirm`.

By default only the most common of these tools are listed to clients. `esp_find_tools` finds the others, and
`esp_call_read` or `esp_call_any` calls them; see [mcp.md](mcp.md#which-tools-a-client-sees).
"""
_EFFECTS = {
    None: "does not touch boards",
    Effect.READ: "reads a board",
    Effect.WRITE: "writes to a board, recoverably",
    Effect.ERASE: "erases data on a board; asks for confirmation",
    Effect.BURN: "burns eFuses, irreversibly on a real board; asks for confirmation",
}
_LESS = {Effect.READ: "only reads", Effect.WRITE: "writes only, recoverably"}
_VARIES = "(varies)"
_TIMED = re.compile(
    r"seconds|latency|duration|throughput|per_s|_ms$|^since$|^started|hosts?$|^pid$|tcp_port$|^measured|^new_bits$|^best_baudrate$"
)
_MOST_ITEMS, _MOST_KEYS, _MOST_TEXT = 3, 8, 160


def render(bench: Bench, answers: Mapping[str, tuple[Example, dict[str, Any] | None]]) -> str:
    """Return the page; *answers* are those of the examples, by tool."""
    bridge = Bridge(Settings(rack=bench.folder / "boards.toml", roots=(bench.folder,)))
    parts = [INTRO, *(_index(component) for component in bridge.components.values())]
    for component in bridge.components.values():
        parts.append(f"\n\n## {component.NAME}\n\n{component.SUMMARY[0].upper()}{component.SUMMARY[1:]}.\n")
        for name, (_, info) in sorted(tools_of(component).items()):
            parts.append(_section(bench, bench.tools[name], info, *answers[name]))
    bridge.close()
    return re.sub(r"\n{3,}", "\n\n", "".join(parts))


def _index(component: Component) -> str:
    names = ", ".join(f"[{name}](#{name})" for name in sorted(tools_of(component)))
    return f"\n- **{component.NAME}**: {names}"


def _section(bench: Bench, tool: Any, info: ToolInfo, example: Example, answer: dict[str, Any] | None) -> str:
    lines = [f"\n### {tool.name}\n", _description(tool.description), "", f"Effect: {_effect(info)}."]
    properties: dict[str, Any] = tool.input_schema.get("properties", {})
    if properties:
        needed = tool.input_schema.get("required", [])
        lines += ["", "| parameter | type | default | meaning |", "|---|---|---|---|"]
        lines += [_row(name, schema, name in needed) for name, schema in properties.items()]
    lines += ["", f"Result: {_results(tool.output_schema)}", "", "```json"]
    call = {
        "name": tool.name,
        "arguments": {key: value for key, value in example.arguments.items() if value is not None},
    }
    lines += [json.dumps(call), "```"]
    if answer is None:
        lines += ["", "Its example needs QEMU."]
    else:
        lines += ["", "```json", answer_in_lines(answer, bench), "```"]
    return "\n".join(lines) + "\n"


def _description(text: str) -> str:
    """Return *text* as Markdown, with tags and asterisks escaped."""
    return text.replace("<", "&lt;").replace("*", "\\*")


def _effect(info: ToolInfo) -> str:
    words = _EFFECTS[info.effect]
    for flag, less in info.without.items():
        words += f"; without `{flag}` it {_LESS[less]}"
    if info.boardless_with:
        words += f"; with `{info.boardless_with}` it does not touch boards of the rack"
    return words


def _row(name: str, schema: Mapping[str, Any], needed: bool) -> str:
    default = "required" if needed else "" if schema.get("default") is None else f"`{json.dumps(schema['default'])}`"
    kind = type_in_words(schema).replace("|", "\\|")
    meaning = schema["description"].replace("|", "\\|")
    return f"| `{name}` | {kind} | {default} | {meaning} |"


def _results(schema: Mapping[str, Any]) -> str:
    success = schema["anyOf"][0]
    shapes = success.get("anyOf") or [success]
    common = {key: value for key, value in success.get("properties", {}).items() if key not in ("success", "port")}
    words = [
        ", ".join(f"`{key}` ({type_in_words(one)})" for key, one in (common | shape.get("properties", {})).items()
                  if key not in ("success", "port"))
        for shape in shapes
    ]  # fmt: skip
    return "; or ".join(dict.fromkeys(words)) + "."


# -- shortened answers


def answer_in_lines(answer: Mapping[str, Any], bench: Bench) -> str:
    """Return an answer with one line per key, without values that depend on the machine or the run."""
    lines = [f"  {json.dumps(key)}: {json.dumps(_short(value, key, bench, 1))}" for key, value in answer.items()]
    return "{\n" + ",\n".join(lines) + "\n}"


def _short(value: Any, key: str, bench: Bench, depth: int) -> Any:  # noqa: PLR0911 - one return for each kind of value
    if isinstance(value, bool) or value is None:
        return value
    if _TIMED.search(key) and not isinstance(value, (dict, list)):
        return _VARIES
    if isinstance(value, float):
        return round(value, 3) if depth == 1 or not value else _VARIES
    if isinstance(value, str):
        return _text(value, key, bench)
    if isinstance(value, list):
        if len(value) == 2 and isinstance(value[0], float) and isinstance(value[1], str):  # a line of the console
            return [_VARIES, _text(value[1], key, bench)]
        items = [item for item in value if not (isinstance(item, dict) and item.get("kind") == "serial port")]
        shown = [_short(item, key, bench, depth + 1) for item in items[:_MOST_ITEMS]]
        return [*shown, f"... {len(items)} in all"] if len(items) > _MOST_ITEMS else shown
    if isinstance(value, dict):
        shown = {name: _short(item, name, bench, depth + 1) for name, item in list(value.items())[:_MOST_KEYS]}
        return shown | ({"...": f"{len(value)} in all"} if len(value) > _MOST_KEYS else {})
    return value


def _text(text: str, key: str, bench: Bench) -> str:
    text = text.replace(str(bench.folder), "/home/me/project").replace(str(bench.folder.parent / "home"), "/home/me")
    text = re.sub(r"(?<![\w:/.…-])/(?!home/me)(?:[^\s/'\",:]+/)+", ".../", text)  # paths of this machine
    text = re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:40001", text)
    text = re.sub(r"\b(sim|qemu)-(\w+)-\d+-(\d+)", r"\1-\2-4711-\3", text)
    text = re.sub(r"\bpid \d+, [^)]*", "pid 4711", text)
    text = re.sub(r"\d+(\.\d+)? (m?s|kB/s|MB/s)\b|(?<=in )\d+\.\d+s\b|\d+(?= reads\b)", _VARIES, text)
    text = re.sub(r"\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", "2026-11-21T12:00:00", text)
    text = re.sub(r"\b\d{8}T\d{6}\.\d+Z", "20261121T120000.000Z", text)
    text = re.sub(r"7c:df:a1:(?!00:00:)\w\w:\w\w:\w\w", "7c:df:a1:12:34:56", text)  # derived from names that vary
    if key != "data" and re.fullmatch(r"([0-9a-f]{32,}|([0-9a-f]{2} ?){16,})", text):
        return f"({len(text.replace(' ', '')) // 2} bytes as hex)"
    return text if len(text) <= _MOST_TEXT else f"{text[:_MOST_TEXT]}..."


# -- comparing


def sections(page: str) -> dict[str, str]:
    """Return the page's sections by tool, without the values of answers, which may differ between machines."""
    found = {part.partition("\n")[0]: part for part in page.split("\n### ")[1:]}
    return {name: re.sub(r'^  ("\w+"): .*$', r"  \1", part.partition("\n## ")[0], flags=re.MULTILINE)
            for name, part in found.items()}  # fmt: skip


def main() -> None:
    """Write the page."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        bench = Bench(stack, Path(folder))
        answers: dict[str, tuple[Example, dict[str, Any] | None]] = {}
        for example, answer in run_all(bench, qemu=have_qemu()):
            assert answer is None or answer["success"] == (example.refused is None), (example, answer)
            answers.setdefault(example.tool, (example, answer))
        PAGE.write_text(render(bench, answers), encoding="utf-8")


if __name__ == "__main__":
    main()
