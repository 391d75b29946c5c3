"""What pyproject.toml says of other packages is true."""

import ast
import os
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OWN = {"pytest_esp", "mcp_bridge", "pytest-esp"}
EXTRAS = PROJECT["optional-dependencies"]
REQUIREMENTS = {
    requirement.name: requirement
    for text in (*PROJECT["dependencies"], *(text for extra in EXTRAS.values() for text in extra))
    if (requirement := Requirement(text)).name not in OWN
}
BROUGHT_ALONG = {
    "allure-python-commons": "allure-pytest",  # both of one version
    "mcp-types": "mcp",
    "pydantic-core": "pydantic",
    "fastmcp-slim": "fastmcp",
}


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Import(names=aliases):
                yield from (alias.name for alias in aliases)
            case ast.ImportFrom(level=0, module=module):
                yield module
            case _:
                pass


@pytest.mark.parametrize("package", ["pytest_esp", "mcp_bridge"])
def test_every_package_that_is_imported_is_required(package):
    """A package that only another one requires may be gone with that one's next version."""
    modules = {name.partition(".")[0] for path in (ROOT / package).rglob("*.py") for name in imports_of(path)}
    distributions = metadata.packages_distributions()
    undeclared = {}
    for module in modules - OWN - sys.stdlib_module_names - {"google"}:
        names = {name.lower().replace("_", "-") for name in distributions.get(module, [module])}
        if not {BROUGHT_ALONG.get(name, name) for name in names} & REQUIREMENTS.keys():
            undeclared[module] = names
    assert not undeclared


@pytest.mark.parametrize("name", REQUIREMENTS)
def test_every_requirement_has_one_floor(name):
    assert [part.operator for part in REQUIREMENTS[name].specifier if part.operator != "<"] == [">="]


@pytest.mark.parametrize("name", REQUIREMENTS)
def test_a_cap_is_of_a_package_whose_private_names_are_used(name):
    private = {"pytest", "esptool", "esp-pylib", "pytest-xdist", "allure-pytest", "pyserial"}
    assert any(part.operator == "<" for part in REQUIREMENTS[name].specifier) == (name in private)


@pytest.mark.skipif("PYTEST_ESP_LOWEST" not in os.environ, reason="these are not the lowest versions: make test-lowest")
@pytest.mark.parametrize("name", REQUIREMENTS)
def test_the_floor_is_what_is_installed(name):
    """A floor below the lowest version that can be installed beside the others is one that nobody has tried."""
    floor = next(part.version for part in REQUIREMENTS[name].specifier if part.operator == ">=")
    assert Version(metadata.version(name)) == Version(floor)


def test_make_knows_where_the_tests_with_the_lowest_versions_are():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    paths = re.search(r"^LOWEST_TESTS := ((?:.*\\\n)*.*)$", makefile, re.MULTILINE)[1].replace("\\\n", " ").split()
    assert len(paths) > 5
    assert not [path for path in paths if not (ROOT / path).exists()]
