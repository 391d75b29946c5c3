"""Production tools called by a real client: one and many boards, tests on a board, data, secrets in questions."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fastmcp.exceptions import ToolError

from mcp_bridge.settings import parse_allow

BUILD = Path(__file__).parents[1] / "firmware" / "build" / "esp32c3"
PASSWORD = "correct horse battery"
BOOT = {"wait": 20, "expect": "Calling app_main"}
LINE = '\n[boards.line]\nbackend = "sim"\nchip = "esp32c3"\nflash_size = "4MB"\ncount = 3\n'


@pytest.fixture
def line(serve):
    """A function that makes a server, with a build in its folder and a line of boards in its rack."""
    made = []

    def make(**settings):
        server = serve(**settings)
        if not made:
            shutil.copytree(BUILD, server.folder / "build")
            made.append(server)
        return server

    return make


@pytest.fixture
def server(line, tmp_path):
    rack = tmp_path / "project" / "boards.toml"
    rack.write_text(rack.read_text() + LINE)
    return line()


def confirmed(server, tool, **arguments):
    """Call a tool that asks first; return what it asked and what it answered."""
    asked = server.call(tool, **arguments)
    assert "requires confirmation" in asked["error"], asked
    return asked["plan"], server.call(tool, **arguments, confirm=asked["confirm"])


def test_a_board_from_blank_to_its_customer_and_back(server):
    config = {"firmware": "build", "serial_number": "SN1", "nvs": {"app": {"key": PASSWORD}}, "boot": BOOT}
    plan, done = confirmed(server, "esp_factory_program", config=config, port="line-1")
    assert "all of the flash is erased, then pytest_esp_test 1.0.0 is written" in plan
    assert (done["success"], done["booted"], done["serial_number"]) == (True, True, "SN1")
    assert done["nvs_written"] == ["app.key", "manufacturing.serial_number"]
    assert server.progress
    wifi = {"wifi": {"ssid": "Werk 3", "password": PASSWORD}, "credentials": {"token": PASSWORD}}
    given = server.call("esp_provision_device", config=wifi, port="line-1")
    assert (given["ssid"], given["nvs"]["kept"]) == ("Werk 3", 2)
    written = server.call("esp_calibration_data_write", data={"adc": {"type": "u16", "value": 1100}}, port="line-1")
    assert (written["namespace"], written["nvs"]["written"]) == ("calibration", ["calibration.adc"])
    server.call("esp_manufacturing_data_write", data={"batch": "B7"}, port="line-1")
    seen = server.call(
        "esp_quality_control", port="line-1", serial_number="SN1", expect="Calling app_main", tests=False
    )
    assert (seen["passed"], seen["serial_number"], seen["app"]["version"]) == (True, "SN1", "1.0.0")
    assert [check["name"] for check in seen["checks"]] == ["chip", "flash", "partition table", "app", "nvs", "boot"]
    plan, reset = confirmed(server, "esp_factory_reset", port="line-1", keep_namespaces=["manufacturing"])
    assert (reset["kept_values"], reset["slot_after"]) == (2, "factory")
    for answer in (plan, done, given, written, seen, reset):
        assert PASSWORD not in json.dumps(answer)


def test_many_boards_at_once(server):
    plan, done = confirmed(
        server,
        "esp_batch_program",
        ports=["line-1", "line-2", "line-3", "esp32"],
        firmware="build",
        config={"boot": BOOT, "nvs": {"app": {"key": PASSWORD}}},
        serial_number="SN{index:03d}",
        devices=[{"board": "line-2", "serial_number": "SPECIAL", "nvs": {"app": {"own": PASSWORD + "2"}}}],
    )
    assert "on 4 boards (0 real): line-1, line-2, line-3, esp32" in plan
    assert (done["passed"], done["failed"]) == (3, 1)
    boards = {board["board"]: board for board in done["boards"]}
    assert [boards[name]["serial_number"] for name in ("line-1", "line-2", "line-3")] == ["SN001", "SPECIAL", "SN003"]
    assert (boards["esp32"]["stage"], boards["esp32"]["state"]) == ("check", "nothing was touched")
    assert "esp32c3" in boards["esp32"]["error"]
    with open(done["csv_file"], newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted((row["board"], row["outcome"]) for row in rows) == [
        ("esp32", "failed"),
        *((f"line-{number}", outcome) for number in (1, 2, 3) for outcome in ("begun", "passed")),
    ]
    assert PASSWORD not in plan + json.dumps(done) + Path(done["record_file"]).read_text()
    read = server.call("esp_nvs_read", port="line-2")
    assert PASSWORD + "2" in [entry["value"] for entry in read["entries"]]
    assert server.progress[-1] == (4000, 4000)


def test_boards_that_only_this_server_has(server):
    """They run in the server: a batch programs them in threads, but tests cannot run in another process."""
    started = server.call("esp_sim_start", chip_type="esp32c3")
    name = started["instance_id"]
    _, done = confirmed(server, "esp_batch_program", ports=[name, "line-1"], firmware="build", config={"boot": BOOT})
    assert (done["passed"], done["failed"]) == (2, 0)
    refused = server.call("esp_production_test", test_suite="identity", port=name)
    assert "other processes cannot use it" in refused["error"]


@pytest.mark.in_process
def test_a_suite_runs_on_the_board_that_the_server_releases(server):
    """Built-in and own suites. The server holds the board before and after, and the tests hold it in between."""
    assert server.call("esp_detect_chip", port="line-1")["success"]
    assert server.held() == ["line-1"]
    ours = server.call("esp_production_test", test_suite="identity", port="line-1", keyword="mac or promised")
    assert (ours["passed"], ours["counts"]["passed"], ours["board"]) == (True, 3, "line-1")
    assert server.call("esp_detect_chip", port="line-1")["success"]


def test_a_suite_of_the_user_runs_if_the_server_was_started_with_it(server, serve, tmp_path):
    suite = tmp_path / "suites" / "test_mine.py"
    suite.parent.mkdir()
    suite.write_text(
        "import json, os, pathlib\n\n"
        "def test_good(esp, board):\n    assert board.name == 'line-1'\n    assert esp.chip.identify().mac_address\n\n"
        "def test_bad():\n    assert 1 + 1 == 3, 'arithmetic'\n"
    )
    refused = server.call("esp_production_test", test_suite=str(suite), port="line-1")
    assert "does not offer the suite" in refused["error"]
    assert "--suites" in refused["hint"]
    server = serve(suites=(str(suite),))
    assert str(suite) in server.read("esp://config")["suites"]
    mine = server.call("esp_production_test", test_suite=str(suite), port="line-1")
    assert (mine["success"], mine["passed"]) == (True, False)
    assert {test["name"].rpartition("::")[2].partition("[")[0]: test["outcome"] for test in mine["tests"]} == {
        "test_good": "passed",
        "test_bad": "failed",
    }
    assert "arithmetic" in next(test["message"] for test in mine["tests"] if test["outcome"] == "failed")
    assert server.progress[-1] == (2, 2)
    assert server.call("esp_detect_chip", port="line-1")["success"]


@pytest.mark.in_process
def test_a_quality_control_runs_the_tests_that_change_nothing(server):
    confirmed(server, "esp_factory_program", config={"firmware": "build", "boot": BOOT}, port="line-1")
    seen = server.call("esp_quality_control", port="line-1", expect="Calling app_main")
    assert seen["passed"], seen
    names = " ".join(test["name"] for test in seen["tests"]["tests"])
    assert "test_identity" in names
    assert "roundtrip" not in names
    assert seen["tests"]["counts"]["failed"] == 0


def test_failed_checks_are_reported(server):
    seen = server.call("esp_quality_control", port="line-1", serial_number="SN9", tests=False, boot_wait_seconds=0.2)
    assert (seen["success"], seen["passed"]) == (True, False)
    wrong = {check["name"]: check["found"] for check in seen["checks"] if not check["passed"]}
    assert set(wrong) == {"partition table", "app", "nvs", "boot"}
    assert "no partition table" in wrong["app"]


def test_a_board_that_somebody_else_holds(server):
    script = (
        "import sys\nfrom pathlib import Path\nfrom pytest_esp.rack.config import load_rack\n"
        "lease = load_rack(Path(sys.argv[1])).lease('line-1', purpose='somebody else')\nprint('held', flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", script, str(server.rack_file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        assert "somebody else" in server.call("esp_production_test", test_suite="identity", port="line-1")["error"]
        _, done = confirmed(
            server, "esp_batch_program", ports=["line-1", "line-2"], firmware="build", config={"boot": BOOT}
        )
        holder.stdin.close()
    assert (done["passed"], done["failed"]) == (1, 1)
    assert "somebody else" in done["boards"][0]["error"]
    assert done["boards"][0]["state"] == "nothing was touched"


@pytest.mark.in_process
def test_burns_are_asked_for_and_only_when_they_are_meant(server, line):
    data = {"batch": "B7"}
    plan, done = confirmed(server, "esp_manufacturing_data_write", data=data, port="c3", to_efuse=True)
    assert "7 bit(s) of BLOCK_USR_DATA would be burnt permanently" in plan
    assert (done["efuse"]["efuse_name"], done["efuse"]["verified"]) == ("BLOCK_USR_DATA", True)
    server.call("esp_release", board="c3")
    careful = line(allow=parse_allow("read,write"))
    refused = careful.call("esp_manufacturing_data_write", data=data, port="c3", to_efuse=True)
    assert "does not allow 'burn'" in refused["error"]
    assert "partition table" in careful.call("esp_manufacturing_data_write", data=data, port="c3")["error"]


def test_the_question_to_the_user_has_no_secrets(serve, server):
    asked = serve(person=True)
    asked.answer = "no"
    config = {"firmware": "build", "nvs": {"app": {"key": PASSWORD}}}
    refused = asked.call("esp_factory_program", config=config, port="line-3")
    assert "not confirmed" in refused["error"]
    asked.call("esp_batch_program", ports=["line-3"], firmware="build", config={"nvs": {"app": {"key": PASSWORD}}})
    assert len(asked.questions) == 2
    assert all("pytest_esp_test 1.0.0" in question for question in asked.questions)
    assert not any(PASSWORD in question for question in asked.questions)


@pytest.mark.in_process
@pytest.mark.parametrize(
    ("tool", "arguments", "error"),
    [
        ("esp_factory_program", {"config": {}}, "firmware: field required"),
        ("esp_factory_program", {"config": "none.json"}, "cannot be read"),
        ("esp_factory_program", {"config": "../x.json"}, "outside the folders"),
        ("esp_factory_program", {"config": {"firmware": "/etc"}}, "outside the folders"),
        (
            "esp_factory_program",
            {"config": {"firmware": "build", "nvs": {"a": {"k": {"file": "/etc/passwd"}}}}},
            "outside",
        ),
        ("esp_factory_program", {"config": {"firmware": "build", "nvs_key_file": "../key"}}, "outside the folders"),
        ("esp_factory_program", {"config": {"firmware": "build", "secret": PASSWORD}}, "unknown setting 'secret'"),
        ("esp_factory_program", {"config": json.dumps({"wifi": PASSWORD})}, "unknown setting 'wifi'"),
        ("esp_factory_program", {"config": {"firmware": "build"}, "port": "guarded"}, "does not allow"),
        ("esp_batch_program", {"ports": [], "firmware": "build"}, "no boards were named"),
        ("esp_batch_program", {"ports": ["nobody"], "firmware": "build"}, "no board 'nobody'"),
        ("esp_batch_program", {"ports": ["line-1", "guarded"], "firmware": "build"}, "does not allow 'erase'"),
        ("esp_batch_program", {"ports": ["line-1", "line-2"], "firmware": "build", "serial_number": "A"}, "both get"),
        ("esp_batch_program", {"ports": ["line-1"], "firmware": "build", "serial_number": "{x}"}, "unknown field {x}"),
        ("esp_batch_program", {"ports": ["line-1"], "firmware": "build", "serial_number": "{index.real}"}, "unknown"),
        (
            "esp_batch_program",
            {"ports": ["line-1"], "firmware": "build", "devices": [{"password": PASSWORD}]},
            "devices[0].password",
        ),
        ("esp_production_test", {"test_suite": "identitty"}, "does not offer the suite 'identitty'"),
        ("esp_production_test", {"test_suite": "/etc"}, "does not offer"),
        ("esp_production_test", {"test_suite": "identity", "keyword": "nothing_has_this_name"}, "no test was selected"),
        ("esp_production_test", {"test_suite": "identity", "keyword": "((("}, "pytest exited"),
        ("esp_production_test", {"test_suite": "identity", "timeout_seconds": 0.05}, "timed out after 0.05 s"),
        ("esp_production_test", {"test_suite": "identity", "port": "guarded"}, "does not allow"),
        ("esp_calibration_data_write", {"data": {}}, "no values were given"),
        ("esp_calibration_data_write", {"data": {"k": PASSWORD}}, "no partition table"),
        ("esp_calibration_data_write", {"data": {"k": {"file": "../x"}}}, "outside the folders"),
        ("esp_provision_device", {"config": {"wifi": {"ssid": "a", "password": PASSWORD, "x": 1}}}, "wifi.x"),
        ("esp_provision_device", {"config": '{"wifi": {"password": "' + PASSWORD}, "not valid JSON"),
        ("esp_provision_device", {"config": {"wifi": PASSWORD}}, "wifi"),
        ("esp_factory_reset", {"keep": ["x"]}, "no partition table"),
    ],
)
def test_what_is_refused_and_why(server, tool, arguments, error):
    if tool != "esp_batch_program":
        arguments = {"port": "line-1"} | arguments
    answer = server.call(tool, **arguments)
    if "confirm" in answer:
        answer = server.call(tool, **arguments, confirm=answer["confirm"])
    assert not answer["success"]
    assert error in answer["error"], answer
    assert PASSWORD not in json.dumps(answer)


def test_errors_do_not_repeat_arguments_of_the_wrong_type(server):
    """The schema refuses them before the tool is called."""
    for arguments in ({"config": [PASSWORD]}, {"config": {"wifi": {"ssid": "a"}}, "passwd": PASSWORD}):
        try:
            answer = server.call("esp_provision_device", port="line-1", **arguments)
        except (ToolError, AssertionError) as error:
            answer = str(error)
        assert PASSWORD not in str(answer)
