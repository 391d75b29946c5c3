"""The examples of the documentation run as they stand."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_esp.rack.config import load_rack

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "docs" / "guide.md", ROOT / "docs" / "boards.md"]


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES[:2], ids=lambda page: page.name)
def test_python_examples_are_tests_that_pass(page, tmp_path, monkeypatch):
    whole = [block for block in blocks(page, "python") if "def test_" in block]
    assert whole
    for number, block in enumerate(whole):
        (tmp_path / f"test_example_{number}.py").write_text(block)
    monkeypatch.delenv("PYTEST_ESP_RACK", raising=False)
    monkeypatch.setenv("PYTEST_ESP_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("PYTEST_ESP_FIRMWARE", str(ROOT / "tests" / "firmware" / "build"))
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--strict-markers", "--esp-strict"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert " passed" in result.stdout
    assert "skipped" not in result.stdout


def test_racks_in_the_documentation_are_valid(tmp_path):
    found = 0
    for page in PAGES:
        for number, block in enumerate(blocks(page, "toml")):
            if "[boards." in block:
                path = tmp_path / f"{page.stem}-{number}.toml"
                path.write_text(block)
                assert load_rack(path).boards
                found += 1
    assert found >= 2


def test_links_have_targets():
    for page in [*PAGES, *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
