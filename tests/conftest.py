"""What the project's own tests share."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_esp import secrets

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True, scope="session")
def _secrets_stay_in_their_process():
    """Other workers of this run do not tell of theirs in the middle of a test: what is known is what it gave."""
    secrets._listeners.clear()


@pytest.fixture(autouse=True)
def _forget_secrets():
    """What one test has given a board is no secret in the next, nor what fixtures of a module have given."""
    secrets.forget()
    yield
    secrets.forget()


@pytest.fixture
def firmware_folder():
    """The folder of real ESP-IDF builds, which the repository does not contain."""
    folder = Path(os.environ.get("PYTEST_ESP_FIRMWARE") or ROOT.parent / "shared" / "firmware")
    if not (folder / "hello_world_esp32c3" / "flasher_args.json").is_file():
        pytest.skip(f"no real firmware in {folder}: set PYTEST_ESP_FIRMWARE")
    return folder


@pytest.fixture
def need_qemu():
    """A function that skips the test unless a machine of *chip* can be started."""
    from pytest_esp.qemu.find import why_missing

    def need(chip):
        if reason := why_missing(chip):
            pytest.skip(reason)

    return need


@pytest.fixture
def build_of():
    """A function that returns the build folder of the test firmware (tests/firmware) for *chip*."""
    return lambda chip: ROOT / "tests" / "firmware" / "build" / chip


@pytest.fixture
def flash_of():
    """A function that returns what a flash of *size* bytes holds after *build*, a build folder, was written to it."""

    def flash(build, size=2 * 1024 * 1024):
        contents = bytearray(b"\xff" * size)
        files = json.loads((build / "flasher_args.json").read_text(encoding="utf-8"))["flash_files"]
        for offset, name in files.items():
            data = (build / name).read_bytes()
            contents[int(offset, 0) : int(offset, 0) + len(data)] = data
        return contents

    return flash


class FakeIdf:
    """The stand-in for ESP-IDF (tests/idf) as it is installed in *home*, and a project in *projects*."""

    def __init__(self, home, projects):
        self.path = home / "esp" / "esp-idf"
        self.tools = home / ".espressif"
        self.project = projects / "blink"
        self.log = home / "calls"
        shutil.copytree(ROOT / "tests" / "idf" / "esp-idf", self.path)
        shutil.copytree(ROOT / "tests" / "idf" / "project", self.project)

    def install(self):
        """Install its tools, as a user would have done."""
        variables = os.environ | {"IDF_PATH": str(self.path), "IDF_TOOLS_PATH": str(self.tools), "FAKE_IDF_SLOW": "0"}
        for command in (["install", "required"], ["install-python-env"]):
            subprocess.run(
                [sys.executable, self.path / "tools" / "idf_tools.py", *command],
                check=True,
                env=variables,
                capture_output=True,
            )

    def calls(self):
        """How idf.py was called: arguments and environment."""
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []


@pytest.fixture
def make_idf(tmp_path, monkeypatch):
    """A function that makes a home folder with a stand-in for ESP-IDF in it, and a project in a folder."""
    for name in ("IDF_PATH", "ESP_IDF_PATH", "IDF_TOOLS_PATH", "IDF_PYTHON_ENV_PATH", "IDF_TARGET"):
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "home"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("FAKE_IDF_LOG", str(home / "calls"))
    monkeypatch.setenv("FAKE_IDF_BUILDS", str(ROOT / "tests" / "firmware" / "build"))
    return lambda projects=tmp_path: FakeIdf(home, projects)
