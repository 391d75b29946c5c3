"""Every pytest run imports the plugin once it is installed: that must not import large packages."""

import subprocess
import sys

HEAVY = {
    "esptool", "espefuse", "espsecure", "serial", "pydantic", "filelock", "fastmcp", "allure", "labgrid", "grpc",
    "xdist", "rich", "click", "yaml", "asyncio",
    "pytest_esp.rack.config", "pytest_esp.boards.board", "pytest_esp.link.link", "pytest_esp.sim.chip",
}  # fmt: skip


def test_the_plugin_imports_nothing_heavy():
    code = "import sys, pytest; before = set(sys.modules); import pytest_esp.plugin; print(*set(sys.modules) - before)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "pytest_esp.plugin.held_boards" in output
    assert HEAVY.isdisjoint(output.split())


def test_a_run_without_boards_never_loads_them(project):
    project.file("""
        import sys

        def test_plain(): ...

        @pytest.fixture(scope="session", autouse=True)
        def loaded():
            yield
            with open("loaded", "w") as file:
                file.write("\\n".join(sys.modules))
    """)
    assert project.run_process("-q", "-p", "no:allure_pytest")[0] == 0
    loaded = set((project.path / "loaded").read_text().split())
    assert "pytest_esp.plugin" in loaded
    assert HEAVY - {"xdist", "asyncio"} == HEAVY - {"xdist", "asyncio"} - loaded
