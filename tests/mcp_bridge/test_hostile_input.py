"""Every tool against arguments that nobody should send, generated from the schemas that the server lists.

What is asked: an answer in time, which is a true success or an error with a hint; nothing outside the roots is opened,
made or removed; and the server and its boards are well afterwards. PYTEST_ESP_HOSTILE_EXAMPLES=200 tries more.
"""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from mcp_bridge.components import COMPONENT_REGISTRY

EXAMPLES = int(os.environ.get("PYTEST_ESP_HOSTILE_EXAMPLES", "5"))  # of every tool
LONGEST = 40.0  # seconds of one call; a tool's own time-outs are longer
SECRET = "secret-5f0e1c2b7d"
SECRETS = (SECRET, SECRET.encode().hex(), base64.b64encode(SECRET.encode()).decode()[:-2])
INTERNAL = re.compile(
    r"Traceback|File \"|\b[A-Z]\w+(Error|Exception|Warning)\b|internal error: |invalid value: |0x7f[0-9a-f]{10}"
)
RACK = """
[boards.c3]
backend = "sim"
chip = "esp32c3"
flash_size = "2MB"

[boards.guarded]
backend = "sim"
chip = "esp32s3"
flash_size = "2MB"
allow = ["read"]
"""

pytestmark = pytest.mark.timeout(3600 if EXAMPLES > 20 else 300)


# -- what is sent


def outside(folder):
    """Names that lead out of the roots, of which one is of a file that exists."""
    canary = folder.parent / "outside" / "canary.txt"
    return [
        "../outside/canary.txt",
        "../../../../../../../../etc/passwd",
        "way/canary.txt",
        "canary.lnk",
        "build/../../outside/canary.txt",
        "../outside/new.bin",
        "way/new.bin",
        "dangling.lnk",
        str(canary),
        str(canary.parent),
        "/etc/passwd",
        "/proc/self/environ",
        "/dev/null",
        "~/x",
        "~nobody/x",
        canary.as_uri(),
    ]


PORTS = ["nobody", "/dev/ttyNobody", "COM99", "usb:1:2", "socket://", "socket://127.0.0.1:1", "socket://[::1",
         "loop://", "rfc2217://127.0.0.1:99999", "rfc2217://127.0.0.1:1?logging=debug", "hwgrep://.*", "alt://c3",
         "file:///etc/passwd"]  # fmt: skip
TEXTS = ["", " ", "\0", "a\0b", "\ud800", "a\udfff/b", "\u202e", "💥" * 50, "x" * 5000, "A/" * 3000,
         "%s%n{0}{__class__}", "; touch owned", "$(touch owned)", "`touch owned`", "| cat /etc/passwd", "-monitor",
         "--port", "-DX=$(touch owned)", "'\"\\", "\r\n", "{}", "null", "../", "..", ".", "/", "[", "(a+)+$", "nan",
         "-inf", "1e999", "-1", "0x", "9" * 4400, "0x" + "f" * 60, "4GB", "999999MB"]  # fmt: skip
INTEGERS = [-1, 0, 1, -(2**31), 2**31, 2**32, 2**63 - 1, 2**63, -(2**63) - 1, 10**30]
NUMBERS = [-1, -0.0, 1e-300, 1e18, 1e308, -1e308, "nan", "inf", "-inf", float("nan"), float("inf")]
FILES = ["image.bin", "table.csv", "table.bin", "build", "build/pytest_esp_test.elf", "build/pytest_esp_test.bin",
         "key.bin", "none.bin", "new.bin", "new", "text.txt", "."]  # fmt: skip
WORDS = ["nvs", "all", "MAC", "CUSTOM_MAC", "SPI_BOOT_CRYPT_CNT", "two_ota", "1.0.0", "4MB", "0x1000", "esp32c3",
         "esp32", "littlefs", "keep", "ESP32-C3", "wifi"]  # fmt: skip
# What a parameter takes, by its name; so that most calls get further than a file that is not there.
MEANT = {
    r"^ports?$|^board$": ["c3", "c3", "guarded"],
    r"elf": ["build/pytest_esp_test.elf"],
    r"chip|target$": ["esp32c3", "esp32c3", "esp32"],
    r"firmware|package": ["build", "build/pytest_esp_test.bin"],
    r"^path$|binary|image|input": ["build/pytest_esp_test.bin", "image.bin"],
    r"partition_|layout": ["table.csv", "table.bin"],
    r"key_file": ["key.bin"],
    r"address|offset": ["0x10000", "128KB"],
    r"size": ["4MB", "0x1000"],
    r"output": ["new.bin", "new"],
    r"project": ["blink"],
    r"instance_id": ["sim-esp32-1"],
    r"efuse_name": ["MAC", "CUSTOM_MAC"],
    r"product|chips": ["ESP32-C3", "ESP32-C3-MINI-1"],
    r"test_suite": ["identity"],
}
TIMES = re.compile(r"seconds|minutes|wait|timeout|duration|rounds|retries")


def nested(levels):
    table = {"deep": 1}
    for _ in range(levels):
        table = {"x": [table]}
    return table


def hostile(folder):
    """Anything that JSON can carry, and some things that it cannot."""
    spy = f"spy://{folder}/image.bin?file={folder.parent}/outside/new.txt"
    wrong = [None, True, [], {}, [[]], {"x": None}, nested(20), nested(100), ["x"] * 1000, {"": ""}]
    return st.one_of(
        st.sampled_from(outside(folder)),
        st.sampled_from([*PORTS, spy, f"{folder.parent}/outside/canary.txt"]),
        st.sampled_from(TEXTS),
        st.sampled_from(INTEGERS),
        st.sampled_from(NUMBERS),
        st.sampled_from(wrong),
        st.text(max_size=20),
        st.integers(-(2**70), 2**70),
    )


def like(name, schema, folder, depth=0):  # noqa: PLR0911 - one for each kind of schema
    """A value that fits *schema* and may mean something, or is of the right type at least."""
    if "anyOf" in schema:
        return st.one_of([like(name, one, folder, depth) for one in schema["anyOf"]])
    if "enum" in schema or "const" in schema:
        return st.sampled_from(schema.get("enum") or [schema["const"]])
    kind = schema.get("type")
    if TIMES.search(name) and kind in ("integer", "number"):  # all are waited for
        return st.sampled_from([1, 2] if kind == "integer" else [0.05, 0.1])
    if kind == "array":
        return st.lists(like(name, schema.get("items", {}), folder, depth + 1), max_size=3)
    if kind == "object":
        fixed = {key: like(key, one, folder, depth + 1) for key, one in schema.get("properties", {}).items()}
        if fixed:
            return st.fixed_dictionaries(fixed)
        return st.dictionaries(st.sampled_from(WORDS + KEYS), anything(folder, depth), max_size=4)
    meant = next((values for words, values in MEANT.items() if kind == "string" and re.search(words, name)), [])
    simple = {
        "string": st.sampled_from(meant * 8 + (WORDS + FILES if not re.search("^ports?$|^board$", name) else [])),
        "integer": st.sampled_from([0, 1, 2, 4096, 0x10000, 115200]),
        "number": st.sampled_from([0.0, 0.5, 1.0]),
        "boolean": st.booleans(),
        "null": st.none(),
    }
    return simple[kind] if kind in simple else anything(folder, depth)


KEYS = ["name", "type", "subtype", "size", "offset", "flash_size", "partitions", "value", "image", "options", "path"]


def anything(folder, depth):
    """What a table may hold whose schema does not say it."""
    leaf = st.one_of(st.sampled_from(WORDS + FILES), st.sampled_from(INTEGERS), hostile(folder))
    if depth > 2:
        return leaf
    return st.one_of(leaf, like("", {"type": "object"}, folder, depth + 1), st.lists(leaf, max_size=2))


@st.composite
def calls(draw, schema, folder):
    """Arguments of which up to two are hostile, and the others as they should be: more than the first check is met."""
    properties = schema.get("properties", {})
    needed = schema.get("required", [])
    arguments = {}
    spoilt = draw(st.lists(st.sampled_from(sorted(properties)), max_size=2)) if properties else []
    for name, one in properties.items():
        if name == "refresh_from_vendor":  # asks the vendor's server
            continue
        if name in spoilt:
            arguments[name] = draw(hostile(folder))
        elif name in needed or name in ("port", "board") or TIMES.search(name) or draw(st.integers(0, 5)) == 5:
            arguments[name] = draw(like(name, one, folder))
    if draw(st.integers(0, 9)) == 9:
        arguments[draw(st.sampled_from(["nonsense", "ctx", "self", ""]))] = draw(hostile(folder))
    return arguments


# -- what must not happen


class Watch:
    """Notes every file that this process opens, makes, moves or removes where it has no business."""

    WRITES = ("os.mkdir", "os.rmdir", "os.remove", "os.rename", "os.link", "os.symlink", "os.truncate", "os.chmod")
    DEVICES = ("/dev/null", "/dev/ptmx", "/dev/pts/", "/dev/tty", "/dev/shm/")

    def __init__(self, ours, forbidden):
        self._ours = [os.path.realpath(folder) for folder in ours]
        self._forbidden = os.path.realpath(forbidden)
        self.trespasses = []
        self.on = False

    def see(self, event, arguments):
        if not self.on or threading.current_thread() is threading.main_thread():
            return
        if event == "open":
            path, _, flags = arguments
            if flags & os.O_NOFOLLOW and isinstance(path, str) and os.sep not in path:
                return  # in a folder that is open; `ConfinedPath.open` has said the whole path before
            # Opening what is not there makes it only with O_CREAT.
            writes = flags & os.O_CREAT or (flags & (os.O_WRONLY | os.O_RDWR) and exists(path))
            self._look(path, bool(writes), event)
        elif event in self.WRITES:
            names = 2 if event in ("os.rename", "os.link") else 1
            relative = any(isinstance(number, int) and number >= 0 for number in arguments[-names:])
            for path in arguments[:names]:
                if not (
                    relative and event in ("os.remove", "os.rmdir", "os.mkdir", "os.rename")
                ):  # in a folder that is open
                    self._look(path, True, event)

    def _look(self, path, writes, event):
        if not isinstance(path, (str, bytes, os.PathLike)):
            return
        place = os.path.abspath(os.path.realpath(os.fsdecode(path)))
        within = [place == folder or place.startswith(folder + os.sep) for folder in (self._forbidden, *self._ours)]
        if within[0] or (writes and not any(within[1:]) and not place.startswith(self.DEVICES)):
            self.trespasses.append((event, place))


def exists(path):
    return isinstance(path, int) or os.path.lexists(path)


_watches = []
sys.addaudithook(lambda event, arguments: [watch.see(event, arguments) for watch in _watches])


def snapshot(folder):
    return {
        str(path): (path.lstat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
        for path in folder.rglob("*")
    }


def judge(answer):  # noqa: PLR0911 - one for each thing that may be wrong
    """Return what is wrong with an answer, whatever the call was; None if nothing is."""
    record = answer.structured_content
    if record is None:
        return f"no structured answer: {answer.content}"
    everything = json.dumps(record) + "".join(one.text for one in answer.content if one.type == "text")
    if any(form in everything for form in SECRETS):
        return f"tells what is outside the roots: {everything:.500}"
    if answer.is_error == record["success"]:
        return f"neither success nor error: {everything:.500}"
    if record["success"]:
        return None
    if not record["error"] or not record["hint"]:
        return f"no error or no hint: {record}"
    told = f"{record['error']} {record['hint']}"
    if INTERNAL.search(told) or len(told) > 2000:
        return f"an internal error: {told:.2000}"
    return None


# -- the test


@pytest.fixture
def fortress(tmp_path, monkeypatch, request):
    """A function that starts a server beside a folder that is none of its business."""
    component = request.node.callspec.params["component"]
    if component != "qemu_manager":  # which finds QEMU in the home folder
        make_idf = request.getfixturevalue("make_idf")
        if component == "idf_integration":
            (tmp_path / "project").mkdir(exist_ok=True)
            make_idf(tmp_path / "project").install()
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):  # nobody is asked
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("QEMU_MAX_INSTANCES", "2")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    monkeypatch.setenv("TMPDIR", str(scratch))
    beyond = tmp_path / "outside"
    beyond.mkdir()
    (beyond / "canary.txt").write_text(SECRET * 300)
    (beyond / "partition_table").mkdir()
    watch = Watch([tmp_path / name for name in ("project", "locks", "state", "scratch", "home")], beyond)
    _watches.append(watch)
    yield watch
    _watches.remove(watch)


def furnish(folder, build):
    """Put into the project what a user may have there, and links that lead out of it."""
    (folder / "boards.toml").write_text(RACK)
    (folder / "image.bin").write_bytes(bytes(range(256)) * 20)
    (folder / "key.bin").write_bytes(bytes(range(64)))
    (folder / "text.txt").write_text("no image")
    (folder / "table.csv").write_text("nvs, data, nvs, 0x9000, 0x4000\nfactory, app, factory, 0x10000, 1M\n")
    subprocess.run(["cp", "-r", build, folder / "build"], check=True)
    (folder / "table.bin").write_bytes((build / "partition_table" / "partition-table.bin").read_bytes())
    (folder / "way").symlink_to("../outside")
    (folder / "canary.lnk").symlink_to("../outside/canary.txt")
    (folder / "dangling.lnk").symlink_to("../outside/new.bin")
    (folder / "round.lnk").symlink_to("round.lnk")


def guarded_contents(server):
    read = [
        server.call("esp_flash_read", port="guarded", address=address, size=4096)["data"] for address in (0, 0x9000)
    ]
    efuses = server.call("esp_efuse_read", port="guarded", detailed=True)["efuses"]
    return hashlib.sha256("".join(read).encode()).hexdigest(), efuses


@pytest.mark.parametrize("component", COMPONENT_REGISTRY)
def test_tools_survive_hostile_arguments(serve, fortress, build_of, tmp_path, component):
    furnish(tmp_path / "project", build_of("esp32c3"))
    beside = ("server", "chip_control", "flash_manager", "security_manager")
    server = serve(components=tuple(dict.fromkeys((component, *beside))))
    before, guarded = snapshot(server.folder.parent / "outside"), guarded_contents(server)
    outcomes = Counter()
    tools = server.call("esp_list_tools", component=component)["components"][component]
    schemas = server.list_tools()
    problems = [
        problem for tool in tools for problem in attack(server, tool, schemas[tool].input_schema, fortress, outcomes)
    ]
    assert not problems, "\n".join(problems)
    assert snapshot(server.folder.parent / "outside") == before
    assert not [*tmp_path.rglob("owned"), *Path.cwd().glob("owned")]
    print(component, outcomes)
    assert outcomes[False] > len(tools), "hostile arguments are refused"
    # The server is alive, and so are its boards.
    assert server.call("esp_server_info")["success"]
    for board in ("c3", "guarded"):
        assert server.call("esp_detect_chip", port=board)["success"]
    assert guarded_contents(server) == guarded, "nothing was written where only reading is allowed"


def attack(server, tool, schema, watch, outcomes):
    """Call one tool many times, and return what was wrong with its answers."""
    problems = []

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],  # what a call does depends on those before it: nothing to shrink
        suppress_health_check=list(HealthCheck),
    )
    @given(calls(schema, server.folder))
    def send(arguments):
        watch.trespasses.clear()
        watch.on = True
        try:
            answer = server.try_call(tool, arguments, LONGEST)
            wrong = judge(answer)
            token = (answer.structured_content or {}).get("confirm")
            if token and not wrong:
                answer = server.try_call(tool, arguments | {"confirm": token}, LONGEST)
                wrong = judge(answer)
        except TimeoutError:
            wrong = f"no answer in {LONGEST} s"
        except ValueError as error:  # of the client, which cannot send it
            if "depth" not in str(error):
                raise
            return
        finally:
            watch.on = False
        wrong = wrong or (f"trespasses: {watch.trespasses}" if watch.trespasses else None)
        if wrong:
            problems.append(f"{tool}({arguments!r:.1000}): {wrong}")
        else:
            outcomes[answer.structured_content["success"]] += 1

    send()
    return problems
