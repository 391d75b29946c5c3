"""The rules of docs/architecture.md that a machine can check."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def drawing():
    """The script that draws the picture."""
    spec = importlib.util.spec_from_file_location("architecture", DOCS / "architecture.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rooms(folder):
    """The packages and modules of a package, by name."""
    return {path.stem for path in folder.iterdir() if (path / "__init__.py").exists() or path.suffix == ".py"} - {
        "__init__"
    }


def test_imports_go_downward_only():
    """docs/architecture.md, "Rooms": an import that goes up is a defect (contracts in pyproject.toml)."""
    linter = Path(sys.executable).with_name("lint-imports")
    if not linter.exists():
        pytest.skip("import-linter is not installed (pip install -e '.[dev]')")
    result = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_every_room_has_a_line_in_the_contract(drawing):
    """import-linter says nothing of a module that no layer names."""
    named = {room for layer in drawing.layers("Rooms") for room in layer}
    assert named == {f"pytest_esp.{name}" for name in rooms(ROOT / "pytest_esp")} | {"mcp_bridge"}


def test_the_picture_shows_the_contracts(drawing):
    assert drawing.PICTURE.read_text("utf-8") == drawing.picture(), "out of date: python docs/architecture.py"


@pytest.mark.parametrize("contract", ["Rooms", "Wings"])
def test_the_page_describes_every_room(drawing, contract):
    page = (DOCS / "architecture.md").read_text("utf-8")
    names = [room.rpartition(".")[2] for layer in drawing.layers(contract) for room in layer]
    assert [name for name in names if f"| `{name}" not in page and f", `{name}" not in page] == []


def test_the_pages_name_only_files_that_exist():
    """A path in backquotes is below the repository, or below the package that the text is about."""
    bases = (ROOT, ROOT / "pytest_esp", ROOT / "pytest_esp" / "operations", ROOT / "mcp_bridge")
    for page in (DOCS / "architecture.md", ROOT / "CONTRIBUTING.md"):
        paths = re.findall(r"`((?:[\w.-]+/)+[\w.-]*)`", page.read_text("utf-8"))
        assert len(paths) > 10
        assert [path for path in paths if not any((base / path).exists() for base in bases)] == [], page.name
