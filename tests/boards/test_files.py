"""A file of a virtual board is used by one open board at a time."""

import pytest

from pytest_esp.boards.registry import make_board
from pytest_esp.errors import BackendError, LeaseError
from pytest_esp.rack.config import load_rack
from pytest_esp.rack.lease import holder_of


@pytest.fixture
def racks(tmp_path, monkeypatch):
    """Two racks in different folders that name one flash file."""
    monkeypatch.setenv("PYTEST_ESP_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("PYTEST_ESP_LOCK_DIR", str(tmp_path / "locks"))
    made = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        entry = 'backend = "sim"\nchip = "esp32c3"\nflash_file = "../flash.bin"\n'
        (tmp_path / name / "boards.toml").write_text(f"[boards.{name}]\n{entry}")
        made.append(load_rack(tmp_path / name / "boards.toml"))
    return made


def boards(racks):
    return [make_board(rack.board(name), rack) for rack, name in zip(racks, ("one", "two"), strict=True)]


def test_a_board_that_is_not_leased_claims_its_file(racks):
    one, two = boards(racks)
    one.open()
    with pytest.raises(BackendError, match="in use by another board: one: held for"):
        two.open()
    with pytest.raises(LeaseError, match="held for"):
        racks[1].lease("two", purpose="me", timeout=0)
    one.close()
    two.open()
    two.close()
    assert holder_of(racks[1].board("two"), racks[1]) is None


def test_a_leased_board_opens_its_file_again_and_again(racks):
    one, two = boards(racks)
    with racks[0].lease("one", purpose="me")[0]:
        for _ in range(2):
            one.open()
            one.close()
        with pytest.raises(BackendError, match=r"in use by another board: one: held for .* by me"):
            two.open()
    two.open()
    two.close()


def test_a_board_that_cannot_be_started_gives_its_file_back(racks, tmp_path):
    (tmp_path / "flash.bin").write_bytes(b"x" * 100)
    one, _ = boards(racks)
    with pytest.raises(BackendError, match="100 bytes"):
        one.open()
    racks[1].lease("two", purpose="me", timeout=0)[0].release()
