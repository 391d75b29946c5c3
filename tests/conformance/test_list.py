"""The list of tests that `make conformance` leaves out, and what docs/conformance.md says of them."""

import importlib.util
import sys
import tomllib
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def _runner():
    spec = importlib.util.spec_from_file_location("conformance_run", HERE / "run.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look there
    spec.loader.exec_module(module)
    return module


run = _runner()
LIST = tomllib.loads((HERE / "deselected.toml").read_text())
ENTRIES = LIST["deselect"]
PAGE = (HERE.parent.parent / "docs" / "conformance.md").read_text()
NARROWED = {
    "backends": {"sim", "qemu"},
    "transports": {"socket", "pty", "rfc2217"},
    "chips": set(run.CHIPS.split()),
    "suites": set(run.SUITES),
}


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["test"])
def test_every_deselected_test_is_documented_with_its_reason(entry):
    assert f"`{entry['test']}`" in PAGE
    assert entry["reason"] in PAGE
    assert set(entry) <= {"test", "reason", *NARROWED}


def test_no_other_test_is_said_to_be_left_out():
    table = PAGE.partition("## Left out")[2].partition("\n## ")[0]
    named = {line.split("`")[1] for line in table.splitlines() if line.startswith("| `")}
    assert named == {entry["test"] for entry in ENTRIES}


@pytest.mark.parametrize("entry", [*ENTRIES, *LIST["only"]], ids=lambda entry: entry.get("test", "only"))
def test_what_narrows_an_entry_down_exists(entry):
    for key in NARROWED.keys() & entry.keys():
        assert entry[key]
        assert set(entry[key]) <= NARROWED[key]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["test"])
def test_the_page_says_where_a_test_is_left_out(entry):
    row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{entry['test']}` |"))
    where = row.split("|")[2]
    assert ("QEMU" in where) == ("qemu" in entry.get("backends", []))
    assert all(chip in where for chip in entry.get("chips", []))
    assert all(transport in where for transport in entry.get("transports", []))


def test_what_alone_is_run_is_documented():
    assert all(f"`{test}`" in PAGE for part in LIST["only"] for test in part["tests"])


@pytest.mark.parametrize(("backend", "left_out"), [("qemu", True), ("sim", False)])
def test_an_entry_for_qemu_leaves_the_simulated_chips_alone(tmp_path, backend, left_out):
    settings = run._plugin_settings(run.Run(backend, "esptool", "esp32c3", "pty"), tmp_path)
    assert ("TestFlashDetection::test_flash_sfdp" in settings["CONFORMANCE_DESELECT"]) is left_out
