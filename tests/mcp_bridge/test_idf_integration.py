"""Tools for ESP-IDF, which is a stand-in here (tests/idf): what they find, build, flash and hear."""

import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="ESP-IDF is run on Linux and macOS only")


@pytest.fixture
def idf(make_idf, server):
    made = make_idf(server.folder)
    made.install()
    return made


def test_what_is_installed(server, make_idf):
    assert server.call("esp_idf_env_info")["idf"] is None
    assert "IDF_PATH" in server.call("esp_idf_tools_list")["hint"]
    idf = make_idf(server.folder)
    assert server.call("esp_idf_env_info")["idf"]["path"] == str(idf.path)
    assert not server.call("esp_idf_tools_check")["ok"]
    installed = server.call("esp_idf_tools_install", targets=["esp32c3"])
    assert installed["installed"] == ["riscv32-esp-elf@esp-14.2.0", "esp-rom-elfs@20260528"]
    assert server.progress[-1] == (6000, 6000)
    assert server.call("esp_idf_tools_check", target="esp32c3")["ok"]
    answers = server.call("esp_idf_tools_list", target="esp32c3")
    assert answers["tools"][0]["name"] == "riscv32-esp-elf"


def test_from_source_to_a_running_app(server, idf):
    made = server.call("esp_idf_build_project", project_path="blink", target="esp32c3")
    assert (made["target"], made["name"], made["warning_count"]) == ("esp32c3", "pytest_esp_test", 1)
    assert server.progress[-1][1] == 8
    flashed = server.call("esp_idf_flash_project", project_path="blink", port="c3")
    assert (flashed["target"], flashed["verified"], flashed["bytes_skipped"]) == ("esp32c3", True, 0)
    again = server.call("esp_idf_flash_project", project_path="blink", port="c3")
    assert (again["bytes_written"], again["bytes_skipped"]) == (0, flashed["bytes_written"])
    said = server.call("esp_idf_monitor", project_path="blink", port="c3", duration_seconds=20, until="app_main")
    assert "app_main" in said["matched"]
    assert any("pytest_esp_test" in text for _, text in said["lines"])
    assert "esp_idf_flash_project" in server.read("esp://firmware/info")["boards"][0]


def test_a_build_that_fails(server, idf):
    (idf.project / "main" / "broken.c").touch()
    answer = server.call("esp_idf_build_project", project_path="blink", target="esp32c3")
    assert not answer["success"]
    assert "implicit declaration" in answer["error"]
    assert [(error["file"], error["line"]) for error in answer["errors"]] == [
        (str(idf.project / "main" / "broken.c"), 7),
        (str(idf.project / "main" / "broken.c"), 9),
    ]
    assert "REQUIRES" in answer["hint"]


@pytest.mark.parametrize(
    ("tool", "arguments", "error"),
    [
        ("esp_idf_build_project", {"project_path": "../blink"}, "outside the folders"),
        ("esp_idf_build_project", {"project_path": "."}, "is not an ESP-IDF project"),
        ("esp_idf_build_project", {"project_path": "blink", "build_dir": "../out"}, "not inside the project"),
        ("esp_idf_build_project", {"project_path": "blink", "arguments": ["flash"]}, "not allowed: 'flash'"),
        ("esp_idf_build_project", {"project_path": "blink", "target": "esp99"}, "unknown chip 'esp99'"),
        (
            "esp_idf_build_project",
            {"project_path": "blink", "target": "esp32c3", "timeout_seconds": 0},
            "timed out after",
        ),
        ("esp_idf_flash_project", {"project_path": "blink", "port": "c3"}, "is not built"),
        ("esp_idf_flash_project", {"project_path": "blink", "port": "guarded"}, "does not allow 'write'"),
        ("esp_idf_monitor", {"project_path": "blink", "port": "c3"}, "is not built"),
        ("esp_idf_tools_install", {"tools": ["gcc"]}, "no tool 'gcc'"),
    ],
)
def test_what_is_refused(server, idf, tool, arguments, error):
    answer = server.call(tool, **arguments)
    assert not answer["success"]
    assert error in answer["error"]


def test_a_read_only_server_refuses_builds(serve, make_idf):
    from mcp_bridge.settings import parse_allow

    server = serve(allow=parse_allow("read"))
    make_idf(server.folder).install()
    for tool in ("esp_idf_build_project", "esp_idf_tools_install"):
        arguments = {"project_path": "blink"} if "build" in tool else {}
        assert "does not allow 'write'" in server.call(tool, **arguments)["error"]
    assert server.call("esp_idf_tools_check")["ok"]


def test_answers_fit_their_schemas(server, idf):
    for name, arguments in [
        ("esp_idf_env_info", {}),
        ("esp_idf_tools_list", {}),
        ("esp_idf_tools_check", {}),
        ("esp_idf_build_project", {"project_path": "blink", "target": "esp32c3"}),
        ("esp_idf_flash_project", {"project_path": "blink", "port": "c3"}),
    ]:
        server.fits(name, arguments)
    server.fits("esp_idf_build_project", {"project_path": "nothing"}, success=False)


def test_the_status_is_a_resource(server, make_idf):
    assert server.read("esp://idf/status")["idf"] is None
    idf = make_idf(server.folder)
    idf.install()
    status = server.read("esp://idf/status")
    assert status["idf"]["version"] == "5.5.9"
    assert status["tools"][0] == {
        "name": "xtensa-esp-elf",
        "install": "always",
        "wanted": "esp-14.2.0",
        "installed": ["esp-14.2.0"],
    }
    (idf.path / "tools" / "tools.json").write_text("{")
    assert "is damaged" in server.read("esp://idf/status")["error"]


def test_the_prompt_names_board_and_project(server):
    text = server.prompt("esp_idf_setup_target", target="esp32c6", project_path="blink", port="c3")
    assert "esp_idf_build_project(project_path='blink', target='esp32c6')" in text
    assert "port='c3'" in text
