"""The switch: without it there is nothing; with it, it wins over an installed pytest-embedded."""

import subprocess
import sys
from importlib.util import find_spec

import pytest

from pytest_esp.embedded import modules

PEER = """
import pytest

_COUNT = 1

def pytest_addoption(parser):
    parser.addoption("--target", default="theirs")

def pytest_configure(config):
    raise AssertionError("theirs is switched off")

@pytest.fixture(autouse=True)
def theirs_for_every_test():
    raise AssertionError("theirs")

@pytest.fixture
def dut():
    return "theirs"
"""

needs_no_peer = pytest.mark.skipif(find_spec("pytest_embedded") is not None, reason="pytest-embedded is installed")


def test_off_by_default(suite):
    (suite.path / "tox.ini").write_text("[pytest]\n")
    (suite.path / "test_plain.py").write_text(
        "def test_plain(dut): ...\ndef test_option(pytestconfig):\n"
        "    assert pytestconfig.getoption('metric_path', None) is None\n"
    )
    result = suite.run()
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*fixture 'dut' not found"])
    assert suite.run("--metric-path=x").ret == pytest.ExitCode.USAGE_ERROR
    suite.run("--esp-embedded", "--metric-path=x", "-k", "option").assert_outcomes(failed=1, deselected=1)


@needs_no_peer
def test_the_modules_exist_only_while_it_is_on():
    with pytest.raises(ImportError):
        import pytest_embedded
    modules.install()
    try:
        import pytest_embedded
        from pytest_embedded_idf.utils import idf_parametrize  # noqa: F401

        assert pytest_embedded.Dut.__module__ == "pytest_esp.embedded.duts"
        with pytest.raises(ImportError, match="cannot import name 'Nothing'"):
            from pytest_embedded import Nothing  # noqa: F401
        with pytest.raises(AttributeError, match="has no DutFactory; pip install pytest-embedded"):
            _ = pytest_embedded.DutFactory
    finally:
        modules.remove()
    with pytest.raises(ImportError):
        import pytest_embedded_idf.utils  # noqa: F401
    assert not [name for name in sys.modules if name.startswith("pytest_embedded")]


def test_every_name_of_the_modules_exists():
    modules.install()
    try:
        for name in modules.NAMES:
            if find_spec(name.partition(".")[0]).loader is modules._finder:
                module = __import__(name, fromlist=["_"])
                assert all(getattr(module, one) is not None for one in modules.NAMES[name])
    finally:
        modules.remove()


def test_it_wins_over_an_installed_pytest_embedded(c3):
    package = c3.path / "pytest_embedded"
    package.mkdir()
    (package / "__init__.py").write_text("class Dut: ...\n")
    (package / "plugin.py").write_text(PEER)
    c3.script("""
        def test_app(dut, pytestconfig):
            dut.expect("ready")
            assert pytestconfig.getoption("target") == "esp32c3"

        @pytest.mark.parametrize("count", [2], indirect=True)
        def test_decorators(count):
            import pytest_embedded.plugin

            assert pytest_embedded.plugin._COUNT == 2
    """)
    command = [sys.executable, "-m", "pytest", "-p", "pytest_embedded.plugin", "--target=esp32c3", "-q"]
    process = subprocess.run(command, cwd=c3.path, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stdout + process.stderr


def test_with_xdist(c3):
    c3.script("""
        @pytest.mark.parametrize("target", ["esp32c3"], indirect=True)
        @pytest.mark.parametrize("number", range(3))
        def test_app(dut, number):
            dut.expect("ready")
    """)
    c3.run("-n2").assert_outcomes(passed=3)


def test_it_costs_nothing_while_it_is_off():
    code = "import sys, pytest_esp.embedded.switch; print(*(m for m in sys.modules if m.startswith('pytest_esp')))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert set(output.split()) == {"pytest_esp", "pytest_esp.embedded", "pytest_esp.embedded.switch"}
