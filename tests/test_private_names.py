"""Names that pytest-esp uses of other packages and that these do not document: which version has lost one?

Each package has one module for them in the room that uses it. A failure here says e.g. "esptool 5.9.0 broke
ESPLoader._post_connect": adapt that module, or lower the cap in pyproject.toml.
"""

import ast
import re
from pathlib import Path

import pytest

from pytest_esp.versions import VersionError, required, required_module

ROOT = Path(__file__).parent.parent
HOMES = {
    "esptool": "pytest_esp/link/esptool_private.py",
    "pytest": "pytest_esp/plugin/pytest_private.py",
    "pytest-xdist": "pytest_esp/plugin/xdist_private.py",
    "allure-pytest": "pytest_esp/plugin/allure.py",
    "pytest-embedded": "pytest_esp/embedded/parameters.py",
}
PORTS = {"pytest_esp/wire/rfc2217.py", "pytest_esp/wire/port.py"}  # subclasses of pyserial's, which has hooks for them


def check(package, owner, *names):
    for name in names:
        required(owner, name, package)  # its error says which version broke what


# -- per package


def test_esptool():
    from esptool.loader import ESPLoader
    from esptool.reset import ResetStrategy

    check("esptool", ESPLoader, "_post_connect", "_connect_attempt")
    check("esptool", ResetStrategy, "print_once")


def test_what_the_fast_loader_replaces_is_there_to_be_replaced():
    """A method of ours that esptool no longer calls would change nothing."""
    from esptool.loader import ESPLoader

    from pytest_esp.link.fast import FastLoader, NoUsb

    ours = {"longest_wait", "_response", "_drain", "_receive_flash"}
    names = {name for kind in (FastLoader, NoUsb) for name in vars(kind) if not name.startswith("__")} - ours
    assert {"command", "read", "write", "get_usb_vid_pid"} <= names
    check("esptool", ESPLoader, *sorted(names))


def test_a_loader_keeps_its_port_where_it_is_looked_for():
    from esptool.targets import CHIP_DEFS
    from serial import serial_for_url

    from pytest_esp.link.esptool_private import port_of

    with serial_for_url("loop://") as port:
        rom = CHIP_DEFS["esp32"](port, 115200)
        assert port_of(rom) is port
        assert port_of(rom.STUB_CLASS(rom)) is port


def test_espefuse():
    from espefuse.efuse_interface import init_commands

    commands = init_commands(chip="esp32c3", virt=True)
    check("esptool", commands, "esp", "efuses")
    check("esptool", commands.efuses, "_esp", "efuse_controller_setup", "reconnect_chip", "blocks", "read_blocks")
    check("esptool", commands.efuses, "update_efuses", "is_efuses_incompatible_for_burn", "burn_all", "batch_mode_cnt")
    check("esptool", commands.efuses.blocks[0], "wr_bitarray", "check_wr_data", "alias", "wr_addr", "len")
    field = next(iter(commands.efuses))
    check("esptool", field, "read_disable_bit", "write_disable_bit", "is_field_calculated", "convert_to_bitstring")


@pytest.mark.parametrize("chip", ["esp32", "esp32s2", "esp32c3"])
def test_espefuses_emulator(chip):
    """Of which the simulated chips are made."""
    from pytest_esp.sim.efuse_map import emulator

    controller = emulator(chip)
    check("esptool", controller, "mem", "REGS", "Blocks", "Fields", "write_reg", "clean_blocks_wr_regs")
    check("esptool", controller, "set_chip_revision", "get_chip_revision")
    check("esptool", controller.REGS, "DR_REG_EFUSE_BASE", "EFUSE_MEM_SIZE")
    check("esptool", controller.REGS, "EFUSE_REG_CMD" if chip == "esp32" else "EFUSE_CMD_REG")
    check("esptool", controller.mem, "bytes")


def test_the_logger_of_esptool():
    from esp_pylib.logger import EspLog, EspLogBase

    check("esp-pylib", EspLog, "instance", "set_logger", "print", "note", "hint", "debug", "warn", "err", "stage")
    check("esp-pylib", EspLog, "progress_bar", "set_verbosity")
    assert set(EspLogBase.__abstractmethods__) <= set(dir(EspLog))


def test_pytest(request):
    junitxml = required_module("_pytest.junitxml", "pytest")
    check("pytest", request, "_pyfuncitem")
    check("pytest", request.node, "_fixtureinfo")
    check("pytest", request.node._fixtureinfo, "name2fixturedefs")
    check("pytest", request.session, "_setupstate")
    check("pytest", request.session._setupstate, "teardown_exact")
    check("pytest", required_module("_pytest.mark.expression", "pytest"), "Expression")
    check("pytest", junitxml, "xml_key", "bin_xml_escape")
    log = junitxml.LogXML("junit.xml", None)
    check("pytest", log, "node_reporter", "open_reports", "node_reporters_ordered", "add_stats", "logging", "family")
    element = log.node_reporter("a.py::test_a")
    check("pytest", element, "_add_simple", "_write_content", "nodes", "duration", "attrs")
    check("pytest", element, "add_attribute", "add_property")


def test_pluggy(pytestconfig):
    check("pluggy", pytestconfig.pluginmanager.hook.pytest_plugin_registered, "_call_history")


def test_pytest_embedded():
    plugin = pytest.importorskip("pytest_embedded.plugin", reason="pytest-embedded is not installed")
    check("pytest-embedded", plugin, "_COUNT")


def test_xdist():
    pytest.importorskip("xdist", reason="pytest-xdist is not installed")
    from xdist.scheduler import LoadScheduling
    from xdist.workermanage import WorkerController

    package = "pytest-xdist"
    check(package, LoadScheduling, "_check_nodes_have_same_collection", "schedule", "mark_test_complete", "remove_node")
    check(package, LoadScheduling, "mark_test_pending", "nodes")
    check(package, WorkerController, "send_runtest_some", "shutdown", "shutting_down")


def test_xdists_scheduler_keeps_its_books_where_they_are_looked_for():
    scheduler = pytest.importorskip("xdist.scheduler", reason="pytest-xdist is not installed")

    class Config:
        def getvalue(self, name):
            return {"tx": ["popen"], "maxschedchunk": None}[name]

        getoption = getvalue

    made = scheduler.LoadScheduling(Config())
    check("pytest-xdist", made, "collection", "node2collection", "node2pending", "pending", "maxschedchunk")


def test_allure():
    pytest.importorskip("allure_pytest", reason="allure-pytest is not installed")
    from allure_commons.logger import AllureFileLogger
    from allure_commons.reporter import AllureReporter
    from allure_pytest.listener import AllureListener, ItemCache

    check("allure-pytest", AllureListener, "pytest_runtest_protocol")
    check("allure-pytest", ItemCache, "pop")
    check("allure-pytest", AllureReporter, "drop_test", "get_test")
    check("allure-pytest", AllureFileLogger, "report_result", "report_container", "report_attached_data")
    check("allure-pytest", AllureFileLogger, "report_attached_file", "report_globals")


def test_pyserial():
    from serial import rfc2217, serial_for_url

    port = serial_for_url("loop://", do_not_open=True)
    check("pyserial", port, "_baudrate", "_bytesize", "_parity", "_stopbits", "_xonxoff", "_rtscts", "_timeout")
    check("pyserial", port, "_dtr_state", "_rts_state")
    check("pyserial", rfc2217.Serial, "_telnet_negotiate_option", "_telnet_process_command", "_reconfigure_port")
    check("pyserial", rfc2217.Serial, "_telnet_process_subnegotiation")
    check("pyserial", rfc2217, "RFC2217_PARITY_MAP", "RFC2217_STOPBIT_MAP", "SET_CONTROL_USE_NO_FLOW_CONTROL")


# -- what is said


def test_a_version_that_has_lost_a_name_is_named(monkeypatch):
    from esptool.targets import CHIP_DEFS
    from serial import serial_for_url

    from pytest_esp.link import esptool_private

    monkeypatch.setattr("importlib.metadata.version", lambda name: {"esptool": "5.99.1"}[name])
    loader = CHIP_DEFS["esp32"](serial_for_url("loop://", do_not_open=True), 115200)
    monkeypatch.delattr("esptool.loader.ESPLoader._post_connect")
    with pytest.raises(VersionError, match=r"^esptool 5\.99\.1 broke ESP32ROM\._post_connect\n") as caught:
        esptool_private.finish_connecting(loader)
    assert caught.value.hint.startswith("pip install 'esptool")


def test_a_module_that_is_gone_is_named():
    with pytest.raises(VersionError, match=r"^pytest \d.* broke _pytest\.gone\n"):
        required_module("_pytest.gone", "pytest")


# -- where they stand


def foreign_names(path):
    """The private names in a file that it does not define itself."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    own, found = set(), set()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                own.add(name)
            case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name, ctx=ast.Store()):
                own.add(name)
            case ast.Name(id=name, ctx=ast.Store()):
                own.add(name)
            case ast.Attribute(attr=name) if is_private(name):
                found.add(name)
            case ast.Import(names=aliases):
                found |= {alias.name for alias in aliases if is_private(alias.name)}
            case ast.ImportFrom(module=module, names=aliases) if module and not module.startswith("pytest_esp"):
                found |= {name for name in (module, *(alias.name for alias in aliases)) if is_private(name)}
            case ast.Call(func=ast.Name(id="getattr" | "setattr" | "hasattr"), args=[_, ast.Constant(str(name)), *_]):
                found |= {name} if is_private(name) else set()
            case _:
                pass
    return found - own


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


def test_private_names_of_others_stand_in_one_module_per_package():
    """``_exit`` and ``_replace`` are public names of Python; ``_port`` of a board is that of its base class."""
    public = {"_exit", "_replace"}
    homes = {*HOMES.values(), *PORTS}
    elsewhere = {
        str(path.relative_to(ROOT)): names
        for room in ("pytest_esp", "mcp_bridge")
        for path in sorted((ROOT / room).rglob("*.py"))
        if path.relative_to(ROOT).as_posix() not in homes and (names := foreign_names(path) - public)
    }
    assert elsewhere == {"pytest_esp/boards/labgrid.py": {"_port"}}


@pytest.mark.parametrize("package", HOMES)
def test_every_private_name_is_checked_above(package):
    used = set(re.findall(r'required\([^"]+, "(\w+)"', (ROOT / HOMES[package]).read_text(encoding="utf-8")))
    assert used
    source = Path(__file__).read_text(encoding="utf-8")
    assert {name for name in used if f'"{name}"' not in source} <= {"_port", "_cache"}  # of objects, which have tests
