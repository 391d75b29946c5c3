"""Projects: built by idf.py (a stand-in, tests/idf), flashed by our own write."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from pytest_esp.errors import FirmwareError, OperationError, RefusedError, StoppedError
from pytest_esp.operations.idf.project import build
from pytest_esp.operations.idf.tools import install

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="ESP-IDF is run on Linux and macOS only")


@pytest.fixture
def idf(make_idf):
    made = make_idf()
    made.install()
    return made


def actions(call):
    words = call["arguments"]
    return words[words.index("-B") + 2 :]


def is_there(pid):
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    return True


def are_gone(pids):
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if not any(map(is_there, pids)):
            return True
        time.sleep(0.02)
    return False


def started(idf):
    """The pids of idf.py and of the compiler that it has started."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        file = idf.project / "pids"
        if file.exists() and len(pids := file.read_text().split()) == 2:
            return pids
        time.sleep(0.02)
    raise TimeoutError


# -- building


def test_a_build(idf):
    progress = []
    made = build(idf.project, "esp32c3", progress=lambda done, total: progress.append((done, total)))
    assert (made.target, made.name, made.version, made.idf_version) == ("esp32c3", "pytest_esp_test", "1.0.0", "5.5.9")
    assert [file.address for file in made.files] == [0, 0x8000, 0x10000]
    assert made.elf == idf.project / "build" / "pytest_esp_test.elf"
    assert [(warning.line, warning.message) for warning in made.warnings] == [
        (4, "unused variable 'x' [-Wunused-variable]")
    ]
    steps = [step for step in progress if step[1] == 8]
    assert steps == sorted(steps)
    assert len(set(steps)) > 2


def test_what_idf_py_is_called_with(idf):
    build(idf.project, "esp32c3")
    build(idf.project, "esp32c3")
    build(idf.project, "esp32", clean=True, arguments=["--ccache", "-DSDKCONFIG_DEFAULTS=sdkconfig.ci"])
    calls = idf.calls()
    assert actions(calls[0]) == ["set-target", "esp32c3", "build"]
    assert actions(calls[1]) == ["build"]
    assert actions(calls[2]) == [
        "--ccache",
        "-DSDKCONFIG_DEFAULTS=sdkconfig.ci",
        "fullclean",
        "set-target",
        "esp32",
        "build",
    ]
    assert calls[0]["arguments"][:2] == ["-C", str(idf.project)]


def test_the_environment_is_that_of_export_sh(idf, monkeypatch):
    monkeypatch.setenv("IDF_TARGET", "esp32s3")
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    build(idf.project, "esp32c3")
    seen = idf.calls()[0]["environment"]
    assert seen["IDF_PATH"] == str(idf.path)
    assert seen["ESP_IDF_VERSION"] == "5.5"
    assert seen["PATH"].split(os.pathsep)[0].startswith(str(idf.tools))
    assert os.environ["PATH"] in seen["PATH"]
    assert "IDF_TARGET" not in seen
    assert "PYTHONPATH" not in seen


@pytest.mark.parametrize(
    ("file", "error", "place", "tool"),
    [
        ("main/broken.c", "implicit declaration", ("main/broken.c", 7, 5), "compiler"),
        ("main/unlinked.c", "undefined reference to `missing'", ("main/unlinked.c", 12, None), "linker"),
        ("broken.cmake", "The component led is not there", ("broken.cmake", 3, None), "cmake"),
    ],
)
def test_errors_by_file_and_line(idf, file, error, place, tool):
    (idf.project / file).touch()
    with pytest.raises(OperationError, match="building blink failed") as caught:
        build(idf.project, "esp32c3")
    assert error in caught.value.message
    first = caught.value.details["errors"][0]
    assert (first["file"], first["line"], first["column"]) == (str(idf.project / place[0]), *place[1:])
    assert first["tool"] == tool
    assert caught.value.details["last_lines"]


def test_hints_of_idf_py_are_passed_on(idf):
    (idf.project / "main" / "broken.c").touch()
    with pytest.raises(OperationError) as caught:
        build(idf.project, "esp32c3")
    assert "REQUIRES" in caught.value.hint
    assert [error["line"] for error in caught.value.details["errors"]] == [7, 9]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"target": "esp32c33"}, "unknown chip 'esp32c33'"),
        ({"build_dir": "."}, "not inside the project"),
        ({"build_dir": "../build"}, "not inside the project"),
        ({"build_dir": "/tmp"}, "not inside the project"),
        ({"arguments": ["flash"]}, "not allowed: 'flash'"),
        ({"arguments": ["-DCMAKE_C_COMPILER=/bin/sh"]}, "not allowed: '-DCMAKE_C_COMPILER"),
        ({"arguments": ["-DSDKCONFIG=/etc/passwd"]}, "/etc/passwd is not inside"),
        ({"arguments": ["-DSDKCONFIG_DEFAULTS=a;../../b"]}, "../../b is not inside"),
    ],
)
def test_what_a_build_is_not_given(idf, arguments, error):
    with pytest.raises(OperationError) as caught:
        build(idf.project, **arguments)
    assert error in caught.value.message
    assert idf.calls() == []


def test_a_folder_that_is_no_project(idf):
    with pytest.raises(OperationError, match="is not an ESP-IDF project"):
        build(idf.project / "main")
    with pytest.raises(OperationError, match="is not an ESP-IDF project"):
        build(idf.project.parent)


def test_tools_that_are_not_installed(make_idf):
    idf = make_idf()
    with pytest.raises(OperationError, match="Python environment"):
        build(idf.project)
    idf.install()
    (idf.tools / "tools" / "esp-rom-elfs").rename(idf.tools / "elsewhere")
    with pytest.raises(OperationError, match="esp-rom-elfs has no installed versions"):
        build(idf.project)


def test_the_tools_of_one_chip_are_enough_for_it(make_idf):
    idf = make_idf()
    install(targets=["esp32c3"])
    assert build(idf.project, "esp32c3").target == "esp32c3"


# -- the end of a build


def test_a_build_that_takes_too_long_is_ended_with_all_it_has_started(idf):
    (idf.project / "main" / "endless.c").touch()
    with pytest.raises(OperationError, match="timed out after 2 s"):
        build(idf.project, "esp32c3", timeout_seconds=2)
    assert are_gone(started(idf))


def test_a_build_that_is_stopped(idf):
    (idf.project / "main" / "endless.c").touch()
    enough = threading.Event()

    def progress(done, total):
        if enough.is_set():
            raise StoppedError("enough")

    watch = threading.Thread(target=lambda: (started(idf), enough.set()))
    watch.start()
    with pytest.raises(StoppedError):
        build(idf.project, "esp32c3", progress=progress)
    watch.join()
    assert are_gone(started(idf))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_build_does_not_outlive_its_caller(idf, number):
    (idf.project / "main" / "endless.c").touch()
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background job has none
        f"from pytest_esp.operations.idf.project import build; build({str(idf.project)!r}, 'esp32c3')"
    )
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL) as caller:
        pids = started(idf)
        caller.send_signal(number)
        caller.wait(20)
    assert are_gone(pids)


# -- flashing


@pytest.fixture
def project(idf):
    build(idf.project, "esp32c3")
    return idf.project


def test_flashing_is_our_own_write(idf, project, esp_of):
    esp = esp_of("esp32c3")
    first = esp.idf.flash_project(project)
    assert (first.target, first.name) == ("esp32c3", "pytest_esp_test")
    assert {region.state for region in first.regions} == {"written"}
    assert {region.state for region in esp.idf.flash_project(project).regions} == {"unchanged"}
    assert esp.link.elf == project / "build" / "pytest_esp_test.elf"
    assert len(idf.calls()) == 1


def test_what_is_not_flashed(idf, project, esp_of):
    with pytest.raises(FirmwareError, match="for esp32c3, not for the ESP32"):
        esp_of("esp32").idf.flash_project(project)
    with pytest.raises(FirmwareError, match="is not built"):
        esp_of("esp32c3").idf.flash_project(project, "other")
    with pytest.raises(RefusedError):
        esp_of("careful").idf.flash_project(project)
