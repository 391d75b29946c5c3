"""What chips have reported is remembered in files that several processes write."""

import multiprocessing
import os

import pytest

from pytest_esp.rack.config import load_rack
from pytest_esp.rack.facts import Facts, contradictions, filled_in, last_seen, recall, remember, remembered
from pytest_esp.rack.requirement import Requirement

C3 = Facts("esp32c3", "7c:df:a1:00:00:01", 4, 4 << 20, 40, ("psram",))
S3 = Facts("esp32s3", "7c:df:a1:00:00:02", 2, 8 << 20, 40)


@pytest.fixture
def rack(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTEST_ESP_STATE_DIR", str(tmp_path / "state"))
    path = tmp_path / "boards.toml"
    path.write_text("""
        [boards.a]
        backend = "serial"
        port = "rfc2217://127.0.0.1:4000"
        [boards.same]
        backend = "serial"
        port = "socket://localhost:4000"
        flash_size = "2MB"
        [boards.pinned]
        backend = "serial"
        port = "rfc2217://127.0.0.1:4001"
        mac = "7CDFA1000002"
        [boards.tags]
        backend = "labgrid"
        coordinator = "127.0.0.1"
        tags = { pool = "x" }
    """)
    return load_rack(path)


def test_a_chip_is_known_by_its_port_however_that_is_spelled(rack):
    assert remembered(rack.board("a"), rack) is None
    remember(rack.board("a"), rack, C3)
    assert remembered(rack.board("same"), rack) == C3
    known = rack.known(rack.board("a"))
    assert (known.chip, known.flash_size, known.revision, known.crystal) == ("esp32c3", 4 << 20, 4, 40)
    assert known.features == {"psram"}
    assert rack.known(rack.board("same")).flash_size == 2 << 20
    assert [key for key, _ in contradictions(rack.board("same"), C3)] == ["flash_size"]


def test_a_pinned_board_has_the_facts_of_its_chip_on_any_port(rack):
    remember(rack.board("a"), rack, S3)
    assert remembered(rack.board("pinned"), rack) == S3
    assert last_seen(rack.board("pinned"), rack) is None


def test_places_of_a_lab_are_no_port(rack):
    remember(rack.board("tags"), rack, C3)
    assert last_seen(rack.board("tags"), rack) is None
    assert recall(C3.mac) == C3


def test_requirements_are_unknown_until_asked(rack):
    board = rack.board("a")
    need = Requirement(chips=("esp32c3",), flash=">=4MB", revision=">=0.3", crystal="40", features=("psram",))
    assert need.verdict(board) == "unknown"
    assert need.why_not(board) == ""
    assert need.verdict(filled_in(board, C3)) == "match"
    assert need.verdict(filled_in(board, S3)) == "no"
    assert Requirement(features=("psram", "led")).verdict(board) == "no"


@pytest.mark.parametrize(
    ("comparison", "revision", "holds"),
    [
        (">=3", 301, True),
        (">=3", 299, False),
        ("3", 301, True),
        ("<=3", 399, True),
        (">3", 399, False),
        (">=3.1", 300, False),
        ("v0.4", 4, True),
        (">=301", 301, True),
        ("<1", 4, True),
    ],
)
def test_revisions(rack, comparison, revision, holds):
    spec = rack.board("a").model_copy(update={"revision": revision})
    assert Requirement(revision=comparison).matches(spec) is holds


def _remember_often(path, first):
    rack = load_rack(path)
    for number in range(200):
        remember(rack.board("a"), rack, C3 if (number + first) % 2 else S3)
        assert last_seen(rack.board("a"), rack) in (C3.mac, S3.mac)
        assert recall(C3.mac) in (C3, None)


def test_processes_that_write_at_once_leave_whole_files(rack):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_remember_often, args=(rack.path, first)) for first in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert remembered(rack.board("a"), rack) in (C3, S3)
    folder = rack.path.parent / "state" / "facts"
    assert not [name for name in os.listdir(folder) if name.startswith(".")]
