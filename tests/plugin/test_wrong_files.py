"""A rack file or a build that is wrong or missing: the run ends with exit code 4, or that test has a short error."""

import json
import os
import shutil
from pathlib import Path

import pytest

FIXTURES = (
    "board",
    "boards",
    "esp",
    "console",
    "firmware",
    "faults",
    "rack",
    "unity",
    "session_board",
    "session_esp",
)
UNKNOWN_KEY = '[boards.one]\nbackend = "sim"\nchip = "esp32"\nflashsize = "4MB"\n'


@pytest.fixture
def file_of(project):
    """A function that puts something into the file `other.toml` of the project; the right boards.toml stays beside."""
    file = project.path / "other.toml"

    def make(contents):
        if contents == "pipe":
            os.mkfifo(file)
        elif contents == "folder":
            file.mkdir()
        elif contents == "circle of links":
            file.symlink_to(file)
        elif contents == "device":
            file.symlink_to("/dev/zero")
        elif contents == "huge":
            file.touch()
            os.truncate(file, 1 << 40)
        elif isinstance(contents, bytes):
            file.write_bytes(contents)
        return file

    return make


@pytest.fixture
def wrong(project):
    """The project, with a wrong boards.toml; the right one is put back at the end."""
    right = project.rack_file.read_text()
    project.rack(UNKNOWN_KEY)
    yield project
    project.rack(right)


def assert_refused(result, *words):
    """The run ended before any test, with a message and no traceback."""
    shown = f"{result.stdout}\n{result.stderr}"
    assert result.ret == pytest.ExitCode.USAGE_ERROR, shown
    result.stderr.fnmatch_lines([f"ERROR: *{words[0]}*"])
    for word in words:
        assert word in shown
    assert "Traceback" not in shown
    assert "INTERNALERROR" not in shown
    assert shown.count(words[0]) == 1
    result.assert_outcomes()


# -- the rack file


@pytest.mark.parametrize(
    ("contents", "words"),
    [
        (b"[boards.one", ["other.toml:1: invalid TOML"]),
        (UNKNOWN_KEY.encode(), ["other.toml:4:", "unknown key `flashsize`", "flash_size"]),
        (b"boards = 5", ["other.toml:1:", "[boards] must be a table, not 5"]),
        (b'[boards.one]\nbackend = ["sim"]\nchip = 5\n', ["other.toml:2:", "other.toml:3:"]),
        (b'[rack]\nlock_dir = "~nobody-of-that-name/locks"\n', ["other.toml:1:", "no boards are defined"]),
        (b"", ["other.toml:1: no boards are defined"]),
        (b"name = '\xff'", ["cannot read the rack file ", "utf-8"]),
        (b"a = " + 5000 * b"1", ["other.toml: invalid TOML", "digits"]),
        (b"a = " + 5000 * b"[", ["other.toml: arrays or tables are nested too deeply"]),
        ("missing", ["other.toml: No such file", "hint: use another file"]),
        ("folder", ["other.toml: not a regular file"]),
        ("pipe", ["other.toml: not a regular file"]),
        ("device", ["other.toml: not a regular file"]),
        ("circle of links", ["cannot read the rack file "]),
        ("huge", ["other.toml: it is longer than 1048576 characters"]),
    ],
    ids=lambda value: repr(value)[:20] if isinstance(value, (bytes, str)) else "",
)
def test_every_wrong_rack_file_is_refused(project, file_of, contents, words):
    file_of(contents)
    project.file("def test_it(firmware): ...")
    assert_refused(project.run("--esp-rack=other.toml"), *words)


@pytest.mark.parametrize("source", ["option", "environment", "ini", "boards.toml"])
@pytest.mark.parametrize("fixture", ["board", "firmware", "rack"])
def test_wherever_the_file_is_named(wrong, monkeypatch, source, fixture):
    wrong.file(f"def test_it({fixture}): ...")
    message = "other.toml: "
    if source == "option":
        result = wrong.run("--esp-rack=other.toml")
    elif source == "environment":
        monkeypatch.setenv("PYTEST_ESP_RACK", "other.toml")
        result = wrong.run()
    elif source == "ini":
        wrong.pytester.makeini("[pytest]\nesp_rack = other.toml\n")
        result = wrong.run()
    else:
        message = "boards.toml:4:"
        result = wrong.run()
    assert_refused(result, message)


@pytest.mark.parametrize("arguments", ["", "-m sim", "--esp-strict", "--collect-only", "-p no:xdist", "--setup-plan"])
@pytest.mark.parametrize("fixture", FIXTURES)
def test_whatever_a_test_uses(wrong, fixture, arguments):
    wrong.file(f"""
        def test_before(): ...
        def test_it({fixture}): ...
        def test_again({fixture}): ...
    """)
    assert_refused(wrong.run(*arguments.split()), "boards.toml:4:", "unknown key `flashsize`")


@pytest.mark.parametrize(
    "text",
    [
        "@pytest.mark.esp(each='board')\ndef test_it(board): ...",
        "@pytest.mark.esp(chip='esp32')\ndef test_it(): ...",
        "@pytest.fixture(autouse=True)\ndef mine(firmware): ...\ndef test_it(): ...",
        "@pytest.mark.usefixtures('rack')\nclass TestIt:\n    def test_it(self): ...",
        "import unittest\n@pytest.mark.usefixtures('board')\nclass TestIt(unittest.TestCase):\n    def test(self): ...",
    ],
)
def test_however_a_test_asks_for_it(wrong, text):
    (wrong.path / "test_it.py").write_text("import pytest\n" + text)
    assert_refused(wrong.run(), "boards.toml:4:")


def test_a_module_that_cannot_be_imported_does_not_hide_it(wrong):
    wrong.file("import nowhere", "test_broken")
    wrong.file("def test_it(firmware): ...")
    result = wrong.run()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: *boards.toml:4:*"])


def test_under_xdist(wrong):
    wrong.file("def test_before(): ...\ndef test_firmware(firmware): ...\ndef test_rack(rack): ...")
    code, output = wrong.run_process("-n2", "-m sim or not sim")
    assert code == pytest.ExitCode.USAGE_ERROR, output
    assert "\nERROR: " in output
    assert output.count("boards.toml:4:") == 1
    assert "Error>" not in output
    assert "Traceback" not in output
    assert "passed" not in output


def test_a_file_named_for_a_run_without_boards_is_looked_at(project):
    """A wrong boards.toml that lies there is nothing to such a run: see test_selection."""
    project.file("def test_plain(): ...")
    assert_refused(project.run("--esp-rack=other.toml"), "other.toml: No such file")


def test_a_boards_toml_that_is_not_a_file_is_an_error(project):
    """The built-in rack would be used without a word."""
    inner = project.path / "inner"
    (inner / "boards.toml").mkdir(parents=True)
    (inner / "test_it.py").write_text("def test_it(firmware): ...")
    os.chdir(inner)
    assert_refused(project.run(), "inner/boards.toml: not a regular file")


def test_a_fixture_of_the_projects_own_named_rack_reads_no_rack_file(wrong):
    wrong.file("""
        @pytest.fixture
        def rack():
            return "shelf"

        def test_it(rack):
            assert rack == "shelf"

        @pytest.mark.parametrize("rack", ["drawer"])
        def test_parameter(rack):
            assert rack == "drawer"
    """)
    wrong.run().assert_outcomes(passed=2)


@pytest.mark.parametrize("fixture", ["board", "firmware", "rack", "session_board"])
def test_a_fixture_that_is_asked_for_at_run_time_is_an_error_of_that_test(wrong, fixture):
    """Too late to refuse the run."""
    wrong.file(f"""
        def test_it(request):
            request.getfixturevalue("{fixture}")

        def test_other(): ...
    """)
    result = wrong.run("--alluredir=allure")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*boards.toml:4:*unknown key `flashsize`*"])
    assert len(result.outlines) < 30, result.stdout
    assert "pytest_esp/" not in str(result.stdout)


# -- builds


@pytest.fixture
def build(project, build_of, monkeypatch):
    """A build for the ESP32 beside the tests."""
    monkeypatch.delenv("PYTEST_ESP_FIRMWARE", raising=False)
    return Path(shutil.copytree(build_of("esp32"), project.path / "build"))


def change_listing(build, change):
    """Change what flasher_args.json lists."""
    listing = build / "flasher_args.json"
    content = json.loads(listing.read_text())
    change(content)
    listing.write_text(json.dumps(content))


def replace_app(build, contents):
    """Put something else in the place of the app's image."""
    app = build / "pytest_esp_test.bin"
    app.unlink()
    if contents == "pipe":
        os.mkfifo(app)
    elif contents == "huge":
        app.touch()
        os.truncate(app, 1 << 40)


WRONG_BUILDS = {
    "missing": (shutil.rmtree, "the firmware */build does not exist"),
    "empty": (lambda build: (shutil.rmtree(build), build.mkdir()), "*/build does not contain a build*"),
    "pipe": (lambda build: (shutil.rmtree(build), os.mkfifo(build)), "the firmware */build does not exist"),
    "no JSON": (
        lambda build: (build / "flasher_args.json").write_text("{"),
        "*/flasher_args.json is damaged*",
    ),
    "deep JSON": (
        lambda build: (build / "flasher_args.json").write_text(5000 * "["),
        "*/flasher_args.json is damaged: maximum recursion depth*",
    ),
    "wrong type": (
        lambda build: change_listing(build, lambda content: content["extra_esptool_args"].update(chip=["esp32"])),
        "*/flasher_args.json is damaged: *chip is*",
    ),
    "no app": (lambda build: replace_app(build, None), "*/pytest_esp_test.bin cannot be read: No such file*"),
    "app is a pipe": (lambda build: replace_app(build, "pipe"), "*/pytest_esp_test.bin is not a regular file*"),
    "app is huge": (
        lambda build: replace_app(build, "huge"),
        "*/pytest_esp_test.bin has 1099511627776 bytes, more than any flash*",
    ),
}


def assert_short_error(result, message):
    """One test has an error, in a few lines; the other ran."""
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines([message])
    assert "INTERNALERROR" not in str(result.stdout)
    assert "Traceback" not in str(result.stdout)
    assert "pytest_esp/" not in str(result.stdout)  # no source of ours
    assert len(result.outlines) < 30, result.stdout


@pytest.mark.parametrize("kind", WRONG_BUILDS)
@pytest.mark.parametrize("by", ["option", "marker", "environment"])
def test_a_wrong_build_is_a_short_error_of_its_test(project, build, monkeypatch, by, kind):
    spoil, message = WRONG_BUILDS[kind]
    spoil(build)
    marker = "@pytest.mark.firmware('build')" if by == "marker" else ""
    project.file(f"{marker}\n@pytest.mark.esp(chip='esp32')\ndef test_it(firmware): ...\ndef test_other(): ...")
    if by == "environment":
        monkeypatch.setenv("PYTEST_ESP_FIRMWARE", str(build))
    assert_short_error(project.run(*(["--esp-firmware=build"] if by == "option" else [])), message)


@pytest.mark.parametrize("arguments", ["--esp-strict", "-p no:xdist"])
@pytest.mark.usefixtures("build")
def test_in_every_kind_of_run(project, arguments):
    """Under xdist, too: see test_firmware."""
    project.file("""
        @pytest.mark.firmware("nowhere")
        def test_it(firmware): ...

        def test_other(): ...
    """)
    assert_short_error(project.run(*arguments.split()), "the firmware */nowhere does not exist")


@pytest.mark.parametrize("where", ["option", "marker", "environment"])
def test_the_home_of_a_user_that_does_not_exist(project, build, monkeypatch, where):
    named = "~nobody-of-that-name/build"
    marker = f"@pytest.mark.firmware({named!r})" if where == "marker" else ""
    project.file(f"{marker}\ndef test_it(firmware): ...\ndef test_other(): ...")
    if where == "environment":
        monkeypatch.setenv("PYTEST_ESP_FIRMWARE", named)
    result = project.run(*([f"--esp-firmware={named}"] if where == "option" else []))
    assert_short_error(result, f"the firmware *{named} does not exist")


def test_a_rack_in_the_home_of_a_user_that_does_not_exist(project):
    project.file("def test_it(board): ...")
    assert_refused(project.run("--esp-rack=~nobody-of-that-name/boards.toml"), "boards.toml: No such file")


def test_a_folder_that_may_not_be_read(project, monkeypatch):
    """Also as root, whom no mode of a folder keeps out."""

    (project.path / "builds").mkdir()
    entries_of = Path.iterdir

    def refuse(path):
        if path.name == "builds":
            raise PermissionError(13, "Permission denied", str(path))
        return entries_of(path)

    project.file("@pytest.mark.firmware('builds')\ndef test_it(firmware): ...\ndef test_other(): ...")
    monkeypatch.setattr(Path, "iterdir", refuse)
    assert_short_error(project.run(), "*/builds cannot be read: Permission denied")
