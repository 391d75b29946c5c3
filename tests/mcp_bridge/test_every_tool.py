"""Every tool, called over standard input and output as a client does, and compared with what esptool and espefuse say.

The calls are those of docs/tools.md (docs/tool_examples.py): a tool without one fails here.
"""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import jsonschema
import pytest

from pytest_esp.rack.config import load_rack
from pytest_esp.rack.lease import acquire

DOCS = Path(__file__).parents[2] / "docs"

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for ESP-IDF runs on Linux and macOS only"),
]


def load(name):
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


examples = load("tool_examples")
BOARD_TOOLS = sorted({one.tool for one in examples.EXAMPLES if one.arguments.get("port") in ("c3", "shared", "locked")})


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """A server that has made every call, with the answers."""
    with ExitStack() as stack:
        made = examples.Bench(stack, tmp_path_factory.mktemp("bench"))
        made.made = list(examples.run_all(made, qemu=examples.have_qemu()))
        yield made


def refused(answer):
    """Return the error and the hint of an answer, which must have both."""
    assert answer["success"] is False, answer
    assert answer["error"]
    assert answer["hint"], answer
    assert not re.search(r"Traceback|[a-z]Error\b", answer["error"])
    return answer["error"] + answer["hint"]


# -- every tool


def test_every_tool_has_an_example_and_every_example_a_tool(bench):
    assert {one.tool for one in examples.EXAMPLES} == set(bench.tools)


@pytest.mark.in_process
def test_every_example_has_the_expected_answer(bench):
    problems = []
    for example, answer in bench.made:
        if answer is None:
            continue
        if answer["success"] != (example.refused is None) or (example.refused or "") not in answer.get("error", ""):
            problems.append(f"{example.tool}: {answer}")
        problems += [f"{example.tool}: no key {key}" for key in example.keys if key not in answer]
        jsonschema.validate(answer, bench.tools[example.tool].output_schema)
    assert not problems, "\n".join(problems)


@pytest.mark.in_process
def test_the_page_of_the_tools_is_up_to_date(bench):
    tools = load("tools")
    answers = {}
    for example, answer in bench.made:
        answers.setdefault(example.tool, (example, answer))
    written, now = tools.sections(tools.PAGE.read_text()), tools.sections(tools.render(bench, answers))
    if not examples.have_qemu():
        for example in examples.EXAMPLES:
            if example.qemu:
                del written[example.tool], now[example.tool]
    outdated = [name for name in written.keys() | now.keys() if written.get(name) != now.get(name)]
    assert not outdated, f"docs/tools.md is out of date, call `make docs`: {sorted(outdated)}"


# -- what esptool and espefuse say of the same chip


@pytest.fixture(scope="module", params=["esp32c3", "esp32"])
def twin(bench, request):
    """A simulated chip of the server's, with something in its flash: its name, and how other programs reach it."""
    (bench.folder / "contents.bin").write_bytes(bytes(range(7, 256)) * 40)
    started = bench.call(
        "esp_sim_start", {"chip_type": request.param, "flash_image": "contents.bin", "boot_mode": "download"}
    )
    yield request.param, started["instance_id"], started["socket_uri"]
    bench.call("esp_sim_stop", {"instance_id": started["instance_id"]})


def program(module, uri, *arguments):
    command = [sys.executable, "-m", module, "--port", uri, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_esptool_says_the_same_of_the_chip(bench, twin):
    _, name, uri = twin
    said = program("esptool", uri, "flash-id").stdout
    found = bench.call("esp_detect_chip", {"port": name, "detailed": True})
    mac = re.search(r"MAC:\s+(\S+)", said)[1]
    assert found["mac_address"] == bench.call("esp_mac_address_read", {"port": name})["mac_address"] == mac
    assert found["description"] in said
    assert found["crystal_frequency"] == re.search(r"Crystal frequency:\s+(\S+)", said)[1]
    assert found["flash_size"] == re.search(r"Detected flash size:\s+(\S+)", said)[1]
    maker, device = re.search(r"Manufacturer:\s+(\w+)\nDevice:\s+(\w+)", said).groups()
    assert found["flash_id"] == int(maker, 16) | int(device[2:], 16) << 16 | int(device[:2], 16) << 8
    assert all(feature in said for feature in found["features"])
    assert bench.call("esp_flash_status", {"port": name})["flash_id"] == found["flash_id"]


def test_esptool_reads_and_verifies_the_same(bench, twin, tmp_path):
    _, name, uri = twin
    program("esptool", uri, "read-flash", "0x1000", "0x1000", tmp_path / "read.bin")
    read = bench.call("esp_flash_read", {"port": name, "address": "0x1000", "size": "4KB"})
    assert bytes.fromhex(read["data"]) == (tmp_path / "read.bin").read_bytes() == (bytes(range(7, 256)) * 40)[4096:8192]
    changed = bytearray((bench.folder / "contents.bin").read_bytes())
    changed[0x1234] ^= 1
    (bench.folder / "changed.bin").write_bytes(changed)
    for file, same in (("contents.bin", True), ("changed.bin", False)):
        said = program("esptool", uri, "verify-flash", "0", bench.folder / file)
        answer = bench.call("esp_flash_verify", {"port": name, "firmware_path": file, "address": 0})
        assert answer["matches"] == (said.returncode == 0) == same, said.stdout
    assert answer["regions"][0]["first_difference"] == 0x1234


def test_esptool_says_the_same_of_its_security(bench, twin):
    chip, name, uri = twin
    said = program("esptool", uri, "get-security-info")
    if chip == "esp32":  # it has no such command
        assert said.returncode != 0
        refused(bench.call("esp_security_info", {"port": name}))
        return
    answer = bench.call("esp_security_info", {"port": name})
    assert answer["flags"] == int(re.search(r"Flags:\s+(0x\w+)", said.stdout)[1], 16)
    assert answer["flash_crypt_count"] == int(re.search(r"SPI_BOOT_CRYPT_CNT.*:\s+(0x\w+)", said.stdout)[1], 16)
    assert answer["chip_id"] == int(re.search(r"Chip ID:\s+(\d+)", said.stdout)[1])


def test_espefuse_reads_the_same_values(bench, twin):
    chip, name, uri = twin
    said = program("espefuse", uri, "--chip", chip, "summary", "--format", "json").stdout
    known = json.loads(said[said.index("{\n") :])
    answer = bench.call("esp_efuse_read", {"port": name, "detailed": True})
    if chip == "esp32":  # espefuse's command also lists the place of a custom MAC address that MAC_VERSION does not use
        known = {efuse: one for efuse, one in known.items() if not efuse.startswith("CUSTOM_MAC")}
    text = {False: "0", True: "1"}
    assert answer["efuses"] == {
        efuse: str(text.get(one["value"], one["value"]) if isinstance(one["value"], bool) else one["value"])
        for efuse, one in known.items()
    }


# -- what is refused


def test_bad_arguments(bench):
    for name, tool in bench.tools.items():
        said = refused(bench.call(name, {"nonsense": 1}))
        assert "'nonsense'" in said or "is missing" in said
        for parameter in tool.input_schema.get("properties", {}):
            assert parameter in refused(bench.call(name, {parameter: {"wrong": ["type"]}} | {"nonsense": None}))
        for parameter in tool.input_schema.get("required", []):
            assert f"{parameter} is missing" in refused(bench.call(name, {}))


def example_of(bench, tool, board):
    """Return the arguments of a tool's first example, for another board."""
    example = next(one for one in examples.EXAMPLES if one.tool == tool)
    return dict(example.arguments) | {"port": board}


@pytest.mark.parametrize("tool", BOARD_TOOLS)
def test_a_missing_board(bench, tool):
    assert "nobody" in refused(bench.call(tool, example_of(bench, tool, "nobody")))


def test_a_board_that_somebody_else_holds(bench, monkeypatch):
    bench.call("esp_release", {"board": "shared"})
    monkeypatch.setenv("PYTEST_ESP_LOCK_DIR", str(bench.folder.parent / "locks"))
    rack = load_rack(bench.folder / "boards.toml")
    problems = []
    with acquire([rack.board("shared")], rack=rack, purpose="somebody's test", timeout=10)[0]:
        assert "somebody's test" in refused(bench.call("esp_lease", {"board": "shared"}))
        for tool in BOARD_TOOLS:
            arguments = example_of(bench, tool, "shared") | (
                {"overwrite": True} if "output_dir" in str(arguments_of(tool)) else {}
            )
            answer = bench.call(tool, arguments)
            if answer["success"] or "somebody's test" not in answer["error"] or not answer["hint"]:
                problems.append(f"{tool}: {answer}")
    assert not problems, "\n".join(problems)


def arguments_of(tool):
    return next(one for one in examples.EXAMPLES if one.tool == tool).arguments


@pytest.fixture
def instance(bench):
    name = bench.call("esp_sim_start", {"chip_type": "esp32c3"})["instance_id"]
    yield name
    bench.call("esp_sim_stop", {})


@pytest.mark.parametrize("tool", ["esp_detect_chip", "esp_flash_read", "esp_security_audit", "esp_efuse_read"])
def test_a_board_that_stops_answering(bench, instance, tool):
    bench.call("esp_sim_fault", {"instance_id": instance, "silent_after": 0})
    assert "answer" in refused(bench.call(tool, example_of(bench, tool, instance)))
    bench.call("esp_sim_fault", {"instance_id": instance})
    assert bench.call(tool, example_of(bench, tool, instance))["success"]


def test_a_board_that_was_stopped(bench, instance):
    bench.call("esp_sim_stop", {"instance_id": instance})
    for tool in BOARD_TOOLS:
        assert instance in refused(bench.call(tool, example_of(bench, tool, instance)))
    assert instance in refused(bench.call("esp_sim_status", {"instance_id": instance}))


@pytest.mark.qemu
def test_a_qemu_that_was_killed(bench, need_qemu):
    need_qemu("esp32c3")
    started = bench.call("esp_qemu_start", {"chip_type": "esp32c3", "boot_mode": "download"})
    name = started["instance_id"]
    assert bench.call("esp_detect_chip", {"port": name})["success"]
    (machine,) = bench.call("esp_qemu_list", {})["instances"]  # a reset starts it as another process
    os.kill(machine["pid"], signal.SIGKILL)
    answer = bench.call("esp_flash_read", {"port": name, "address": 0, "size": 4096})
    if answer["success"]:  # the reset that comes first has started it again, with the same flash
        assert answer["data"] == "ff" * 4096
    else:
        refused(answer)
    bench.call("esp_qemu_stop", {"instance_id": name})
    assert "unknown instance" in refused(bench.call("esp_qemu_status", {"instance_id": name}))
