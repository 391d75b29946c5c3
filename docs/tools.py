"""Writes docs/tools.md from a server that runs, and from calls of its tools: ``make docs``."""

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

`make docs` writes this page: descriptions, parameters and results are what a running server lists, and the answers are
those of real calls, in this order, on simulated chips and QEMU (ESP-IDF is a stand-in). Long values are cut, and what
differs from run to run is `(varies)`. How to start the server, and what it may do: [mcp.md](mcp.md).

Every answer has `success` and `port`; where `success` is false, `error` says what was wrong and `hint` what to do.
Addresses and sizes are written as `4096`, `"0x1000"` or `"4KB"`. Files lie inside the server's roots, and outputs never
replace a file without `overwrite`. `port` may be left out where the rack has one board. What erases or burns asks for a
confirmation first; a client that cannot ask the user sends the token that it is given as `confirm`.
"""
_EFFECTS = {
    None: "touches no board",
    Effect.READ: "reads a board",
    Effect.WRITE: "writes to a board, recoverably",
    Effect.ERASE: "erases data on a board; asks for a confirmation",
    Effect.BURN: "burns eFuses, irreversibly on a real board; asks for a confirmation",
}
_LESS = {Effect.READ: "only reads", Effect.WRITE: "writes only, recoverably"}
# What parameters mean, by name; of one that is missing here the tool's description says it.
_MEANINGS = {
    "active_only": "only products that are made and sold",
    "address": "where in flash",
    "antenna": "antenna it must have",
    "any_mac": "also onto another chip of the same kind",
    "app_size": "of each app partition",
    "apply": "do it; without it, only say what would be done",
    "arguments": "options of idf.py",
    "backup_dir": "folder of a backup",
    "band_5ghz": "5 GHz Wi-Fi",
    "baud": "rate of the connection",
    "baudrate": "for the estimate of times",
    "baudrates": "rates that are tried",
    "binary_file": "firmware image",
    "bluetooth": "Bluetooth it must have",
    "board": "name in the rack",
    "boot": "start the app anew first",
    "boot_loop": "seconds after which the app crashes again and again",
    "boot_mode": "start the app, or wait for esptool",
    "boot_wait_s": "seconds for the app to start",
    "build_dir": "the project's build folder",
    "cal_data": "values by key, or a JSON or TOML file",
    "chip": "name as esptool has it: esp32c3",
    "chip_type": "name as esptool has it: esp32c3",
    "chips": "names",
    "clean": "build everything anew",
    "component": "only this group",
    "config": "what is wanted, see above",
    "confirm": "token of the first answer, where the client cannot ask the user",
    "corrupt": "probability per byte",
    "count": "how many at most",
    "cut": "probability per write",
    "data": "values by namespace and key, or a CSV file",
    "detailed": "say more",
    "devices": "what differs from device to device",
    "direction": "towards the host or the chip",
    "discard_data": "also where data would belong to no partition any more",
    "double": "probability per byte",
    "dump_file": "file with a core dump",
    "duration": "seconds",
    "duration_seconds": "how long at most",
    "efuse": "into the chip's eFuses, too",
    "efuse_name": "as espefuse names it",
    "elf": "ELF file, for names of functions and lines",
    "elf_file": "ELF file of the program",
    "erase_app": "erase an app that cannot live",
    "ethernet": "Ethernet MAC it must have",
    "expect": "text that the app must print",
    "extra_args": '"psram"',
    "factory": "also a factory app partition",
    "files": "files and where they belong",
    "firmware": "image or build folder",
    "firmware_file": "image of the app, or build folder",
    "firmware_path": "image, or ESP-IDF build folder",
    "first_index": "number of the first device",
    "flash_freq": "flash frequency in the header",
    "flash_image": "what its flash holds at first; a private copy",
    "flash_mode": "flash mode in the header",
    "flash_size": "size of the flash",
    "flash_size_mb": "size of the flash in MB",
    "force": "also where security features speak against it",
    "form_field": "name of the file in a form",
    "format": "of the file; by its ending if left out",
    "highest_baud": "the last rate that is tried",
    "include_memory": "add 1 KB of RAM",
    "input_file": "image",
    "instance_id": "as the start of it answered",
    "keep": "partitions that stay",
    "keep_namespaces": "namespaces of NVS that stay",
    "key_file": "file with the key",
    "keyword": "pytest's -k",
    "kind": "chips or modules",
    "latency": "seconds by which bytes are late",
    "layout": "name, CSV, or rows",
    "log": "text of a console",
    "look": "look at every board afterwards",
    "lose": "probability per byte",
    "map_file": "the linker's map",
    "max_revision": "newest chip it runs on, major * 100 + minor",
    "max_temperature": "ambient, °C",
    "method": "HTTP method",
    "mfg_data": "values by key, or a JSON or TOML file",
    "min_cores": "CPU cores it must have",
    "min_flash": "flash it must have",
    "min_gpio": "GPIO pins it must have",
    "min_psram": "PSRAM it must have",
    "min_revision": "oldest chip it runs on, major * 100 + minor",
    "min_sram": "SRAM it must have",
    "minutes": "how long it is kept, 480 at most",
    "mode": "of flash encryption",
    "module": "what the registers' names begin with",
    "namespace": "of NVS",
    "nvs_key_file": "key of an encrypted NVS",
    "nvs_partition": "its name in the partition table",
    "offset": "of the table in flash",
    "on_trial": "the old app comes back unless the new one says that it is well",
    "output_dir": "folder that is written",
    "output_file": "file that is written",
    "overwrite": "replace what is there",
    "package": "update package (.espota)",
    "pad_to_size": "size of the file, e.g. 4MB",
    "partition": "its name in the table",
    "partition_file": "partition table, .bin or .csv",
    "partition_table": "table (.bin or .csv) that it must fit into",
    "port": "board: name, device path or URL",
    "ports": "boards: names, device paths or URLs",
    "prefer": "what is made small",
    "product": "chip, module or part number",
    "project_path": "folder of an ESP-IDF project",
    "public_key_file": "only a package signed with its private key is taken",
    "query": "words",
    "refresh_from_vendor": "ask Espressif's server first",
    "region": 'name of a partition, or "all"',
    "regions": "names in the backup",
    "reset": "start the app anew first",
    "reset_after": "bytes until the chip resets",
    "reset_cause": "what the boot log gives as the reason",
    "reset_mode": "how it is reset",
    "retries": "attempts of each strategy",
    "rounds": "how often at each rate",
    "secure_boot_key": "key (PEM) of secure boot v2",
    "secure_download": "start in secure download mode",
    "seed": "of the random numbers",
    "serial_number": "the product's own",
    "silent_after": "bytes until it says nothing any more",
    "size": "bytes",
    "slots": "number of update slots",
    "start_address": "where erasing begins",
    "status": "of its lifecycle",
    "storage": "file system in what is left: littlefs, spiffs, fat",
    "stuck": "flash bits that cannot be written, by address",
    "target": "chip: esp32c3",
    "target_offset": "address of the file's first byte",
    "target_url": "where a device takes updates, http(s)",
    "targets": "chips: esp32c3",
    "tcp_port": "of the raw socket; a free one if left out",
    "test_suite": "suites by name, or a file or folder",
    "tests": "also run the built-in suites",
    "thread_or_zigbee": "802.15.4 radio",
    "timeout_s": "seconds until it is stopped",
    "timeout_seconds": "seconds until it is stopped",
    "to": "what it starts",
    "tools": "NAME or NAME@VERSION",
    "top": "how many symbols",
    "until": "text that ends the wait",
    "usb": "USB it must have",
    "use_stub": "load esptool's stub flasher",
    "value": "number, or text as espefuse takes it",
    "vanish_after": "bytes until the port vanishes",
    "vanish_seconds": "how long it is away",
    "verify": "compare all of it afterwards",
    "version": "of the app",
    "wait_s": "seconds to wait for a board that somebody else holds",
    "wait_seconds": "how long to listen",
    "wifi": "Wi-Fi at all",
    "wifi_6": "802.11ax",
    "wrong_chip": "answer as this chip",
}
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
    """Return it as Markdown that shows what looks like a tag or emphasis as it is."""
    return text.replace("<", "&lt;").replace("*", "\\*")


def _effect(info: ToolInfo) -> str:
    words = _EFFECTS[info.effect]
    for flag, less in info.without.items():
        words += f"; without `{flag}` it {_LESS[less]}"
    if info.boardless_with:
        words += f"; with `{info.boardless_with}` it touches no board of the rack"
    return words


def _row(name: str, schema: Mapping[str, Any], needed: bool) -> str:
    default = "needed" if needed else "" if schema.get("default") is None else f"`{json.dumps(schema['default'])}`"
    kind = type_in_words(schema).replace("|", "\\|")
    meaning = (schema.get("description") or _MEANINGS.get(name, "see above")).replace("|", "\\|")
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


# -- answers, cut to what is worth a look


def answer_in_lines(answer: Mapping[str, Any], bench: Bench) -> str:
    """Return an answer, one line for each of its keys, without what is of this machine and of this run only."""
    lines = [f"  {json.dumps(key)}: {json.dumps(_short(value, key, bench, 1))}" for key, value in answer.items()]
    return "{\n" + ",\n".join(lines) + "\n}"


def _short(value: Any, key: str, bench: Bench, depth: int) -> Any:  # noqa: PLR0911 - one for each kind of value
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
    text = re.sub(r"(?<![\w:/.…-])/(?!home/me)(?:[^\s/'\",:]+/)+", ".../", text)  # folders of this machine
    text = re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:40001", text)
    text = re.sub(r"\b(sim|qemu)-(\w+)-\d+-(\d+)", r"\1-\2-4711-\3", text)
    text = re.sub(r"\bpid \d+, [^)]*", "pid 4711", text)
    text = re.sub(r"\d+(\.\d+)? (m?s|kB/s|MB/s)\b|(?<=in )\d+\.\d+s\b|\d+(?= reads\b)", _VARIES, text)
    text = re.sub(r"\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", "2026-11-21T12:00:00", text)
    text = re.sub(r"\b\d{8}T\d{6}\.\d+Z", "20261121T120000.000Z", text)
    text = re.sub(r"7c:df:a1:(?!00:00:)\w\w:\w\w:\w\w", "7c:df:a1:12:34:56", text)  # made from names that vary
    if key != "data" and re.fullmatch(r"([0-9a-f]{32,}|([0-9a-f]{2} ?){16,})", text):
        return f"({len(text.replace(' ', '')) // 2} bytes as hex)"
    return text if len(text) <= _MOST_TEXT else f"{text[:_MOST_TEXT]}..."


# -- comparing


def sections(page: str) -> dict[str, str]:
    """Return the page by tool, answers without their values: those may differ from machine to machine."""
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
