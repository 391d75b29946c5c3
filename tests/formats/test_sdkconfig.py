"""The console's baud rate as the build's configuration says it."""

import json

import pytest

from pytest_esp.formats.sdkconfig import console_baudrate


@pytest.fixture
def build(tmp_path):
    """A function that makes a build folder with files by their names, relative to it."""

    def make(**files):
        folder = tmp_path / "project" / "build"
        for name, text in files.items():
            place = folder / {"json": "config/sdkconfig.json", "mine": "sdkconfig", "ours": "../sdkconfig"}.get(
                name, name
            )
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    return make


@pytest.mark.parametrize("option", ["ESP_CONSOLE_UART_BAUDRATE", "CONSOLE_UART_BAUDRATE"])
def test_what_was_built_counts(build, option):
    folder = build(json=json.dumps({option: 921600}), ours="CONFIG_ESP_CONSOLE_UART_BAUDRATE=115200\n")
    assert console_baudrate(folder) == 921600


@pytest.mark.parametrize("option", ["CONFIG_ESP_CONSOLE_UART_BAUDRATE", "CONFIG_CONSOLE_UART_BAUDRATE"])
@pytest.mark.parametrize("place", ["mine", "ours"])
def test_the_projects_configuration(build, option, place):
    assert console_baudrate(build(**{place: f"# x\r\n{option}=74880\r\nCONFIG_X=1\r\n"})) == 74880


def test_the_file_that_the_build_names(build):
    folder = build(**{"project_description.json": '{"config_file": "other/sdkconfig"}', "ours": "CONFIG_X=1\n"})
    (folder / "other").mkdir()
    (folder / "other" / "sdkconfig").write_text("CONFIG_ESP_CONSOLE_UART_BAUDRATE=230400\n")
    assert console_baudrate(folder) == 230400


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"json": "{}"},
        {"json": '{"ESP_CONSOLE_UART_BAUDRATE": "fast"}'},
        {"json": '{"ESP_CONSOLE_UART_BAUDRATE": 0}'},
        {"json": "[" * 100_000},
        {"json": '{"ESP_CONSOLE_NONE": true}', "ours": "CONFIG_ESP_CONSOLE_UART_BAUDRATE=9600\n"},
        {"ours": "# CONFIG_ESP_CONSOLE_UART_BAUDRATE=9600\n"},
        {"project_description.json": '{"config_file": 5}'},
    ],
    ids=str,
)
def test_unknown(build, files):
    assert console_baudrate(build(**files)) is None
