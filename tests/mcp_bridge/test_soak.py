"""A short soak of what benchmarks/soak.py does for minutes: two MCP clients and a pytest run on one rack."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
BOARDS = {"alpha", "beta", "wired"}

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc, and serves a chip on a pty")


@pytest.fixture
def ledger(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    from side_by_side import ledger

    return ledger


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_nothing_is_lost_and_nothing_leaks():
    command = [sys.executable, BENCHMARKS / "soak.py", "--minutes", "0.2", "--no-qemu", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    found = json.loads(done.stdout)
    assert found["problems"] == []
    assert done.returncode == 0
    assert found["calls"]["made"] == found["calls"]["answered"] > 100
    assert set(found["turns"]) == BOARDS
    assert all(set(by) == {"anna", "bert", "pytest"} for by in found["turns"].values()), "everybody has had every board"
    for bridge in found["bridges"].values():
        assert bridge["descriptors"][0] == bridge["descriptors"][1]


# -- what makes the soak notice: the page that everybody signs


def test_a_page_is_signed_in_turn(ledger):
    first = ledger.Page.unpack(b"\xff" * ledger.SIZE).sign("anna")
    first.check(first.pack())
    second = ledger.Page.unpack(first.close().pack()).sign("bert")
    assert (second.count, second.owner, second.open) == (2, "bert", True)


def test_two_at_once_are_noticed(ledger):
    anna = ledger.Page().sign("anna")
    with pytest.raises(ledger.TrespassError, match="bert has the board, and so has anna"):
        ledger.Page.unpack(anna.pack()).sign("bert")
    bert = ledger.Page().sign("bert")  # both had read the same page
    with pytest.raises(ledger.TrespassError, match="bert"):
        anna.check(bert.pack())


def test_half_a_page_is_noticed(ledger):
    page = ledger.Page().sign("anna").pack()
    with pytest.raises(ledger.TrespassError, match="garbled"):
        ledger.Page.unpack(page[:5] + b"\xff" * 4091)
