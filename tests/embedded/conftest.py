"""A pytest run inside the test, with scripts in pytest-embedded's style and a board for them."""

import importlib
import pkgutil
import textwrap
from pathlib import Path

import pytest

import pytest_esp

# pytester takes from sys.modules what a run inside a test has imported: see tests/plugin/conftest.py.
for _module in pkgutil.walk_packages(pytest_esp.__path__, "pytest_esp."):
    if not _module.name.startswith("pytest_esp.suites"):
        importlib.import_module(_module.name)

FIRMWARE = Path(__file__).parents[1] / "firmware"
PLAIN = ("-ra", *(f"-pno:{name}" for name in ("cacheprovider", "hypothesispytest", "anyio", "platformdirs")))

SIM = """
[boards.sim-{chip}]
backend = "sim"
chip = "{chip}"
flash_size = "2MB"
app = "{app}"
count = {count}
"""


class Suite:
    """A folder with a boards.toml, an app's builds and scripts."""

    def __init__(self, pytester):
        self.pytester = pytester
        self.path = pytester.path
        pytester.makeini(f"[pytest]\npython_files = pytest_*.py\nesp_embedded = true\npythonpath = {FIRMWARE} .\n")

    def rack(self, text):
        (self.path / "boards.toml").write_text(textwrap.dedent(text))

    def sim(self, *chips, app="app:TestFirmware", count=1):
        """Make a rack of simulated chips that play *app*."""
        self.rack("".join(SIM.format(chip=chip, app=app, count=count) for chip in chips))

    def build(self, folder, name):
        """Link a build's folder into the app's folder."""
        (self.path / name).symlink_to(folder)

    def script(self, text, name="pytest_app"):
        header = "import pexpect\nimport pytest\nfrom pytest_embedded import Dut\n"
        (self.path / f"{name}.py").write_text(header + textwrap.dedent(text))

    def conftest(self, text):
        (self.path / "conftest.py").write_text(textwrap.dedent(text))

    def run(self, *arguments):
        return self.pytester.runpytest_inprocess(*PLAIN, *arguments)


@pytest.fixture
def suite(pytester, monkeypatch):
    monkeypatch.setenv("PYTEST_ESP_LOCK_DIR", str(pytester.path / "locks"))
    monkeypatch.setenv("PYTEST_ESP_STATE_DIR", str(pytester.path / "state"))
    for name in ("PYTEST_ESP_RACK", "PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER", "IDF_PATH"):
        monkeypatch.delenv(name, raising=False)
    return Suite(pytester)


@pytest.fixture
def c3(suite, build_of):
    """A suite on a simulated esp32c3 that plays the test firmware, with its build."""
    suite.sim("esp32c3")
    suite.build(build_of("esp32c3"), "build_esp32c3_default")
    suite.build(build_of("esp32c3"), "build")
    return suite
