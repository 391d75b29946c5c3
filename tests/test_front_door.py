"""The front door: what `from pytest_esp import ...` gives, and that it costs nothing until it is used."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import pytest_esp

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", pytest_esp.__all__)
def test_every_name_can_be_imported(name):
    assert getattr(pytest_esp, name) is not None
    assert name in dir(pytest_esp)


def test_type_checkers_see_the_same_names():
    tree = ast.parse((ROOT / "pytest_esp" / "__init__.py").read_text())
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in guarded.body if isinstance(node, ast.ImportFrom)]
    typed = {alias.asname: f"{node.module}.{alias.name}" for node in imports for alias in node.names}
    assert {*typed, "__version__"} == set(pytest_esp.__all__)
    for name, place in typed.items():
        module, _, attribute = place.rpartition(".")
        assert getattr(importlib.import_module(module), attribute) is getattr(pytest_esp, name)


def test_a_wrong_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'Ripple'"):
        _ = pytest_esp.Ripple  # type: ignore[attr-defined]
    with pytest.raises(ImportError):
        exec("from pytest_esp import Ripple")


def test_importing_the_package_imports_nothing_else():
    code = "import __future__, importlib, typing, sys; b = {*sys.modules}; import pytest_esp; print({*sys.modules} - b)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "{'pytest_esp'}"


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_documentation_imports_from_the_front_door_only(page):
    lines = [line.strip() for line in page.read_text().splitlines()]
    assert [line for line in lines if line.startswith(("from pytest_esp.", "import pytest_esp."))] == []
