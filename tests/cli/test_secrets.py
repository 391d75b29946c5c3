"""Boards print their secrets: output and files of ``pytest-esp op`` must not contain them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import leaks
import pytest
from leaks import leaks_below, leaks_in

FOLDER = Path(leaks.__file__).parent
RACK = """
[boards.leaky]
backend = "sim"
chip = "esp32c3"
flash_size = "4MB"
app = "leaks:LeakyApp"
count = 4
"""


@pytest.fixture
def op(tmp_path):
    """A function that runs an operation on a board or on files, and returns its exit code and output."""
    (tmp_path / "boards.toml").write_text(RACK)
    places = {"PYTEST_ESP_LOCK_DIR": str(tmp_path / "locks"), "PYTEST_ESP_STATE_DIR": str(tmp_path / "state")}

    def run(*arguments):
        command = [Path(sys.executable).parent / "pytest-esp", "op", *arguments]
        variables = os.environ | places | {"PYTHONPATH": str(FOLDER), "PYTEST_ESP_RACK": str(tmp_path / "boards.toml")}
        done = subprocess.run(command, capture_output=True, text=True, env=variables, cwd=tmp_path, check=False)
        assert leaks_in(done.stdout + done.stderr) == []
        return done.returncode, done.stdout if "--json" in arguments else done.stdout + done.stderr

    return run


def factory(**boot):
    return json.dumps({"firmware": str(leaks.BUILD), "nvs": leaks.VALUES, "boot": {"wait": 1, **boot}})


@pytest.mark.parametrize("form", [["--json"], []])
def test_an_app_without_the_expected_output(op, form):
    config = f"config={factory(expect='never ' + leaks.TOKEN)}"
    code, output = op("production-factory-program", "--board", "leaky-1", config, *form)
    assert code == 1
    assert "timed out after 1 s waiting for 'never ***'" in output
    if form:
        assert 'wifi: connecting to "***" with "***"' in json.loads(output)["output"]


def test_invalid_arguments(op):
    given = json.dumps(leaks.PROVISIONING)
    board = ("production-provision", "--board", "leaky-1")
    assert op(*board, f"confg={given}")[1].startswith("error: production-provision does not take the argument 'confg'")
    assert op(*board, f"config={given[:-1]}")[0] == 1
    assert op("production-batch-program", "ports=[]", f"devices={given}", f"config={factory()}")[0] == 1


def test_a_batch_in_two_processes(op, tmp_path):
    boards, config = 'ports=["leaky-*"]', factory(expect="never " + leaks.PASSWORD)
    code, output = op("production-batch-program", boards, f"config={config}", "processes=2", "output_dir=out", "--json")
    assert (code, json.loads(output)["failed"], json.loads(output)["processes"]) == (0, 4, 2)
    assert output.count("timed out after 1 s waiting for 'never ***'") == 4
    assert leaks_below(tmp_path / "out") == []
