"""The list of tests that `make conformance` leaves out, and what docs/conformance.md says of them."""

import tomllib
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ENTRIES = tomllib.loads((HERE / "deselected.toml").read_text())["deselect"]
PAGE = (HERE.parent.parent / "docs" / "conformance.md").read_text()


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["test"])
def test_every_deselected_test_is_documented_with_its_reason(entry):
    assert f"`{entry['test']}`" in PAGE
    assert entry["reason"] in PAGE
    assert set(entry) <= {"test", "reason", "transports", "chips", "suites"}


def test_no_other_test_is_said_to_be_left_out():
    table = PAGE.partition("## Left out")[2].partition("\n## ")[0]
    named = {line.split("`")[1] for line in table.splitlines() if line.startswith("| `")}
    assert named == {entry["test"] for entry in ENTRIES}
