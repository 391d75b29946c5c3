"""Suites on one board, in a process that takes its lease: ours, the user's, and what goes wrong with either."""

import os
import subprocess
import sys
import time

import pytest

from pytest_esp.errors import OperationError
from pytest_esp.operations.production.testing import quality_control, run_suite, run_tests, suites
from pytest_esp.rack.config import load_rack
from pytest_esp.rack.lease import holder_of
from pytest_esp.rack.spec import BoardSpec


@pytest.fixture
def rack_file(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTEST_ESP_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("PYTEST_ESP_LOCK_DIR", str(tmp_path / "locks"))
    path = tmp_path / "boards.toml"
    path.write_text(
        '[boards.c3]\nbackend = "sim"\nchip = "esp32c3"\n\n[boards.other]\nbackend = "sim"\nchip = "esp32"\n'
    )
    return path


def test_the_names_of_our_suites():
    assert {"identity", "reset", "partitions", "flash_roundtrip"} <= set(suites())


@pytest.mark.in_process
def test_a_suite_of_ours_on_a_port_that_no_rack_names(rack_file, faulty):
    """As the bridge does it for a board that is named by its port."""
    rack = load_rack(rack_file)
    port = faulty()
    spec = BoardSpec.model_validate({"name": port, "backend": "serial", "chip": "auto", "port": port})
    found = run_suite(spec, rack, "identity", keyword="mac or promised")
    assert (found.passed, found.counts["passed"]) == (True, 2), found


def test_a_suite_that_never_ends_is_ended(rack_file, tmp_path):
    """Also what it has started, and the board is free at once."""
    (tmp_path / "test_slow.py").write_text(
        "import pathlib, subprocess, time\n\n"
        "def test_slow(esp, board):\n"
        "    assert board.name == 'c3'\n"
        "    child = subprocess.Popen(['sleep', '300'])\n"
        f"    pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(child.pid))\n"
        "    time.sleep(300)\n"
    )
    rack = load_rack(rack_file)

    def stop_when_it_runs(done, total):
        if (tmp_path / "pid").exists() and (tmp_path / "pid").read_text():
            assert holder_of(rack.board("c3"), rack).purpose
            raise OperationError("stopped by the caller")

    with pytest.raises(OperationError, match="stopped by the caller"):
        run_tests("c3", tmp_path / "test_slow.py", rack=rack_file, progress=stop_when_it_runs)
    assert holder_of(rack.board("c3"), rack) is None
    pid = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 10
    while is_running(pid):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    with pytest.raises(OperationError, match=r"timed out after 0\.2 s"):
        run_tests("c3", tmp_path / "test_slow.py", rack=rack_file, timeout_seconds=0.2)


def is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_tests_do_not_outlive_a_caller_that_is_killed(rack_file, tmp_path):
    (tmp_path / "test_slow.py").write_text(
        "import os, pathlib, time\n\n"
        "def test_slow(esp):\n"
        f"    pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))\n"
        "    time.sleep(300)\n"
    )
    script = (
        "import sys\nfrom pytest_esp.operations.production.testing import run_tests\n"
        "run_tests('c3', sys.argv[1], rack=sys.argv[2])\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "test_slow.py"), str(rack_file)]) as caller:
        deadline = time.monotonic() + 60
        while not ((tmp_path / "pid").exists() and (tmp_path / "pid").read_text()):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        caller.kill()
    pid = int((tmp_path / "pid").read_text())
    while is_running(pid):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    rack = load_rack(rack_file)
    while holder_of(rack.board("c3"), rack):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_suite_that_cannot_be_collected(rack_file, tmp_path):
    (tmp_path / "test_broken.py").write_text("import nothing_of_this_name\n")
    found = run_tests("c3", tmp_path / "test_broken.py", rack=rack_file)
    assert (found.passed, found.counts["error"]) == (False, 1)
    assert "nothing_of_this_name" in found.tests[0].message
    with pytest.raises(OperationError, match="unknown suite 'identitty'") as caught:
        run_tests("c3", "identitty", rack=rack_file)
    assert "identity" in caught.value.hint


def test_from_the_command_line(rack_file, tmp_path):
    """A batch, by names and patterns, with secrets in a file."""
    build = os.path.join(os.path.dirname(__file__), "..", "..", "firmware", "build", "esp32c3")
    (tmp_path / "line.toml").write_text(
        f'firmware = "{os.path.realpath(build)}"\nserial_number = "SN{{index}}"\nboot = false\n'
    )
    start = "from pytest_esp.cli.main import main; main()"
    command = [sys.executable, "-c", start, "op", "production-batch-program", 'ports=["c*"]', "config=line.toml"]
    run = subprocess.run([*command, "--json"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert '"passed": 1' in run.stdout, run.stdout + run.stderr
    assert (tmp_path / "production" / "boards.csv").read_text().count("SN1") == 2


@pytest.mark.in_process
def test_a_quality_control_inspects_and_tests(rack_file):
    """A blank board fails the inspection and passes the tests, none of which erases."""
    found = quality_control("c3", boot_wait_seconds=0.2, rack=rack_file)
    assert not found.passed
    assert {check.name for check in found.checks if not check.passed} == {"partition table", "app", "nvs", "boot"}
    assert found.tests.passed
    assert not any("roundtrip" in test.name for test in found.tests.tests)
    assert quality_control("c3", tests=False, boot_wait_seconds=0.2, rack=rack_file).tests is None
