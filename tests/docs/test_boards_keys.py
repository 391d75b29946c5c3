"""The table of keys in docs/boards.md is the one that docs/boards_keys.py writes."""

import importlib.util
from pathlib import Path

from pytest_esp.rack.spec import BoardSpec

DOCS = Path(__file__).parents[2] / "docs"


def load():
    spec = importlib.util.spec_from_file_location("boards_keys", DOCS / "boards_keys.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_as_the_model_is():
    keys = load()
    assert keys.PAGE.read_text(encoding="utf-8") == keys.written(), "run python docs/boards_keys.py"


def test_every_key_is_explained_once():
    keys = load()
    assert keys._meanings().keys() == BoardSpec.model_fields.keys()
    rows = keys.table().splitlines()[2:]
    assert [row.split("`")[1] for row in rows] == [key for key in BoardSpec.model_fields if key != "name"]
    assert all(cell.strip() for row in rows for cell in (row.split(" | ")[1], row.split(" | ")[3]))
