"""What must agree before a release: version, change log, and the project's address."""

import re
import tomllib
from pathlib import Path

import pytest_esp

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def test_the_version_is_said_once():
    assert PROJECT["project"]["dynamic"] == ["version"]
    assert PROJECT["tool"]["hatch"]["version"]["path"] == "pytest_esp/__init__.py"


def test_the_change_log_begins_with_this_version():
    headings = re.findall(r"^## \[(.+?)\] - (.+)$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    version, date = headings[0]
    assert version == pytest_esp.__version__
    assert date == "unreleased" or re.fullmatch(r"\d{4}-\d\d-\d\d", date)


def test_the_projects_address_is_the_same_everywhere():
    urls = {"Homepage": pytest_esp.HOMEPAGE} if pytest_esp.HOMEPAGE else None
    assert PROJECT["project"].get("urls") == urls


def test_no_link_is_printed_while_there_is_no_address():
    source = (ROOT / "pytest_esp" / "__init__.py").read_text("utf-8")
    for address, agent in (("", "pytest-esp/{}"), ("https://esp.example", "pytest-esp/{} (+https://esp.example)")):
        names = {"__name__": "pytest_esp"}
        exec(source.replace(f'HOMEPAGE = "{pytest_esp.HOMEPAGE}"', f'HOMEPAGE = "{address}"'), names)
        assert names["HOMEPAGE"] == address
        assert names["USER_AGENT"] == agent.format(pytest_esp.__version__)
