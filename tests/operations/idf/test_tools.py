"""ESP-IDF and its tools: found, listed, checked, installed. ESP-IDF itself is a stand-in (tests/idf)."""

import sys

import pytest

from pytest_esp.errors import OperationError, StoppedError
from pytest_esp.operations.idf.installation import environment
from pytest_esp.operations.idf.tools import check, install, tools

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the stand-ins for the tools are shell scripts")

NEEDED = ("xtensa-esp-elf@esp-14.2.0", "riscv32-esp-elf@esp-14.2.0", "esp-rom-elfs@20260528")


@pytest.fixture
def idf(make_idf):
    return make_idf()


# -- finding


@pytest.mark.parametrize("variable", ["IDF_PATH", "ESP_IDF_PATH", None])
def test_it_is_found(idf, monkeypatch, variable):
    if variable:
        monkeypatch.setenv(variable, str(idf.path))
    found = environment()
    assert (found.idf.path, found.idf.version, found.idf.tools) == (idf.path, "5.5.9", idf.tools)
    assert found.idf.found_by == (variable or "~/esp/esp-idf")
    assert "Python environment" in found.problems[0]
    idf.install()
    found = environment()
    assert found.problems == ()
    assert found.idf.python == idf.tools / "python_env" / found.idf.python.parent.parent.name / "bin" / "python"


def test_the_newest_of_several(idf):
    older = idf.path.parent / "v4" / "esp-idf"
    (idf.path / "version.txt").write_text("v5.10.1\n")
    older.mkdir(parents=True)
    (older / "tools").symlink_to(idf.path / "tools")
    (older / "version.txt").write_text("v5.9\n")
    found = environment()
    assert (found.idf.version, found.others) == ("5.10.1", (older,))


def test_a_variable_that_names_something_else(idf, monkeypatch, tmp_path):
    monkeypatch.setenv("IDF_PATH", str(tmp_path))
    found = environment()
    assert "IDF_PATH" in found.problems[0]
    assert found.idf.path == idf.path


def test_none_at_all(make_idf):
    found = environment()
    assert found.idf is None
    assert "ESP-IDF not found" in found.problems[0]
    for call in (tools, check, install):
        with pytest.raises(OperationError, match="ESP-IDF not found") as caught:
            call()
        assert "IDF_PATH" in caught.value.hint


# -- listing and checking


def test_its_tools_are_those_of_tools_json(idf):
    listed = {tool.name: tool for tool in tools().tools}
    assert list(listed) == ["xtensa-esp-elf", "riscv32-esp-elf", "esp-rom-elfs", "esp-clang", "idf-exe"]
    xtensa = listed["xtensa-esp-elf"]
    assert (xtensa.install, xtensa.recommended, xtensa.targets) == ("always", "esp-14.2.0", ("esp32", "esp32s3"))
    assert [(version.version, version.installed) for version in xtensa.versions] == [
        ("esp-14.2.0", False),
        ("esp-13.2.0", False),
    ]
    assert listed["idf-exe"].versions == ()
    assert next(tool.name for tool in tools("esp32c6").tools) == "riscv32-esp-elf"


def states(result):
    return {tool.name: tool.state for tool in result.tools}


def test_what_is_missing(idf):
    result = check()
    assert states(result) == {
        "xtensa-esp-elf": "missing",
        "riscv32-esp-elf": "missing",
        "esp-rom-elfs": "missing",
        "esp-clang": "optional",
    }
    assert not result.ok
    assert "Python environment" in result.hint


def test_what_is_there(idf):
    idf.install()
    result = check()
    assert result.ok
    assert set(states(result).values()) == {"ok", "optional"}
    assert next(tool for tool in result.tools if tool.name == "xtensa-esp-elf").answers == "esp-14.2.0"


def test_versions_that_are_not_what_is_wanted(idf):
    idf.install()
    xtensa = idf.tools / "tools" / "xtensa-esp-elf"
    (xtensa / "esp-14.2.0").rename(xtensa / "esp-13.2.0")
    riscv = idf.tools / "tools" / "riscv32-esp-elf" / "esp-14.2.0" / "riscv32-esp-elf" / "bin" / "riscv32-esp-elf-gcc"
    riscv.write_text("#!/bin/sh\necho 'gcc (crosstool-NG esp-12.0.0)'\n")
    result = check()
    assert (states(result)["xtensa-esp-elf"], states(result)["riscv32-esp-elf"]) == ("outdated", "broken")
    assert not result.ok
    riscv.unlink()
    broken = next(tool for tool in check("esp32c3").tools if tool.name == "riscv32-esp-elf")
    assert "riscv32-esp-elf-gcc not found in" in broken.problem


@pytest.mark.parametrize("content", ["", "{}", '{"tools": [{"name": "x"}]}', "[]"])
def test_a_damaged_tools_json(idf, content):
    (idf.path / "tools" / "tools.json").write_text(content)
    with pytest.raises(OperationError, match="is damaged"):
        tools()


# -- installing


def test_all_that_builds_need(idf):
    progress = []
    result = install(progress=lambda done, total: progress.append((done, total)))
    assert (result.installed, result.present) == (NEEDED, ())
    assert result.python is not None
    assert progress[-1] == (9000, 9000)
    assert progress == sorted(progress)
    assert (1500, 9000) in progress  # in the middle of the first
    assert check().ok
    again = install()
    assert (again.installed, again.present) == ((), NEEDED)


def test_those_of_a_chip_or_by_name(idf):
    assert install(targets=["esp32c3"]).installed == NEEDED[1:]
    assert environment().idf.targets == ("esp32c3",)
    assert states(check()) == {"riscv32-esp-elf": "ok", "esp-rom-elfs": "ok", "esp-clang": "optional"}
    assert states(check("esp32"))["xtensa-esp-elf"] == "missing"
    result = install(["xtensa-esp-elf@esp-13.2.0", "esp-clang"])
    assert result.installed == ("xtensa-esp-elf@esp-13.2.0", "esp-clang@21.1")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"tools": ["xtensa-elf"]}, "no tool 'xtensa-elf'"),
        ({"tools": ["--reinstall"]}, "no tool '--reinstall'"),
        ({"tools": ["xtensa-esp-elf@1"]}, "xtensa-esp-elf '1' is not available here"),
        ({"targets": ["esp32x"]}, "no target 'esp32x'"),
    ],
)
def test_names_that_are_wrong(idf, arguments, error):
    with pytest.raises(OperationError, match=error):
        install(**arguments)


def test_an_installation_that_fails(idf, monkeypatch):
    monkeypatch.setenv("FAKE_IDF_FAILS", "network")
    with pytest.raises(OperationError, match="Failed to download") as caught:
        install()
    assert any("Downloading" in line for line in caught.value.details["last_lines"])


def test_an_installation_that_is_stopped(idf, monkeypatch):
    monkeypatch.setenv("FAKE_IDF_SLOW", "60")

    def stop(done, total):
        if done:
            raise StoppedError("enough")

    with pytest.raises(StoppedError):
        install(progress=stop)
    assert not (idf.tools / "tools").exists()
