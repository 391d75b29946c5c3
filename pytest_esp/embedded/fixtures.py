"""pytest-embedded's fixtures."""

from __future__ import annotations

import os
import tempfile
import time
import warnings
from collections.abc import Callable
from inspect import Parameter, Signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_esp.embedded.options import refuse_others
from pytest_esp.embedded.parameters import (
    count_of,
    multi_dut_argument,
    multi_dut_fixture,
    of_board,
    set_count,
    value_of,
)
from pytest_esp.embedded.targets import set_lists
from pytest_esp.plugin.held_boards import Held

if TYPE_CHECKING:
    from pytest_esp.boards.board import Board
    from pytest_esp.embedded.app import App
    from pytest_esp.embedded.cases import CaseTester
    from pytest_esp.embedded.duts import Dut

_ROOT_LOGDIR = "pytest-embedded"
_SIMPLE = (
    "beta_target",
    "baud",
    "confirm_target_elf_sha256",
    "embedded_services",
    "encrypt",
    "erase_all",
    "erase_nvs",
    "esp_flash_force",
    "espemu_cli_args",
    "espemu_extra_args",
    "espemu_image_path",
    "espemu_prog_path",
    "esptool_baud",
    "flash_port",
    "gdb_cli_args",
    "gdb_prog_path",
    "keyfile",
    "logfile_extension",
    "no_fast_flash",
    "no_gdb",
    "openocd_cli_args",
    "openocd_prog_path",
    "part_tool",
    "port",
    "port_location",
    "port_mac",
    "port_serial_number",
    "qemu_cli_args",
    "qemu_efuse_path",
    "qemu_extra_args",
    "qemu_image_path",
    "qemu_prog_path",
    "skip_autoflash",
    "skip_check_coredump",
    "skip_decode_panic",
    "skip_regenerate_image",
    "target",
    "with_timestamp",
    "wokwi_diagram",
    "wokwi_usb_serial_jtag",
)
"""Fixtures whose value is their parameter or option."""

_UNSUPPORTED = ("espemu", "gdb", "msg_queue", "openocd", "qemu", "redirect", "wokwi")


def pytest_configure(config: pytest.Config) -> None:
    """Check the options."""
    refuse_others(config)
    set_lists(config.getoption("supported_targets", None), config.getoption("preview_targets", None))


def _simple(name: str) -> Any:
    @pytest.fixture(name=name)
    @multi_dut_argument
    def parameter(request: pytest.FixtureRequest) -> Any:
        return value_of(request, name)

    return parameter


def _unsupported(name: str) -> Any:
    @pytest.fixture(name=name)
    def refuse() -> None:
        pytest.fail(f"the fixture {name!r} of pytest-embedded is not supported by pytest-esp", pytrace=False)

    return refuse


globals().update({f"{name}_fixture": _simple(name) for name in _SIMPLE})
globals().update({f"{name}_fixture": _unsupported(name) for name in _UNSUPPORTED})


@pytest.fixture(autouse=True, name="count")
def count_fixture(request: pytest.FixtureRequest) -> int:
    """The number of boards of the test."""
    count = count_of(value_of(request, "count", 1))
    set_count(count)
    return count


def _request_all(**_: Any) -> None:
    """Request all parameters, so that a test can be parametrised over one without naming it in its arguments."""


_names = (*_SIMPLE, "config", "app_path", "build_dir")
_request_all.__signature__ = Signature([Parameter(name, Parameter.KEYWORD_ONLY) for name in _names])
parametrize_fixtures = pytest.fixture(autouse=True, name="parametrize_fixtures")(_request_all)


# -- files


@pytest.fixture
def test_file_path(request: pytest.FixtureRequest) -> str:
    """The path of the test's file."""
    return str(request.path)


@pytest.fixture
def test_case_name(request: pytest.FixtureRequest) -> str:
    """The test's name."""
    return request.node.name


@pytest.fixture(scope="session")
def session_root_logdir(request: pytest.FixtureRequest) -> str:
    """The folder for files of all sessions."""
    return os.path.realpath(value_of(request, "root_logdir", tempfile.gettempdir()))


@pytest.fixture(scope="session")
def session_tempdir(session_root_logdir: str) -> str:
    """The folder for files of this session."""
    folder = Path(session_root_logdir, _ROOT_LOGDIR, time.strftime(f"%Y-%m-%d_%H-%M-%S-{os.getpid()}", time.gmtime()))
    folder.mkdir(parents=True, exist_ok=True)
    return str(folder)


@pytest.fixture
def test_case_tempdir(test_case_name: str, session_tempdir: str) -> str:
    """The path of a folder for files of this test, which need not exist."""
    return os.path.join(session_tempdir, test_case_name)


@pytest.fixture(name="_pexpect_logfile")
def pexpect_logfile(test_case_tempdir: str, logfile_extension: Any, count: int) -> Any:
    """The path of ``dut.logfile``; a tuple for several boards."""
    numbers = [""] if count == 1 else [f"-{number}" for number in range(count)]
    paths = tuple(
        os.path.join(test_case_tempdir, f"dut{number}{of_board(logfile_extension, place) or '.log'}")
        for place, number in enumerate(numbers)
    )
    return paths[0] if count == 1 else paths


@pytest.fixture(scope="session")
def metric_path(pytestconfig: pytest.Config) -> str | None:
    """The file for `log_metric`."""
    return pytestconfig.getoption("metric_path", None)


@pytest.fixture(scope="session")
def log_metric(metric_path: str | None) -> Callable[..., None]:
    """A function that adds a line to ``--metric-path`` (OpenMetrics): ``log_metric("boot", 1.2, chip="c3")``."""
    if metric_path:
        Path(metric_path).parent.mkdir(parents=True, exist_ok=True)
        Path(metric_path).unlink(missing_ok=True)

    def log(key: str, value: Any, **labels: Any) -> None:
        if not metric_path:
            warnings.warn("log_metric has no effect without --metric-path", stacklevel=2)
            return
        text = ",".join(f'{name}="{label}"' for name, label in labels.items())
        with open(metric_path, "a", encoding="utf-8") as file:  # one write to the end of a file is not interleaved
            file.write(f"{key}{f'{{{text}}}' if text else ''} {value}\n")

    return log


# -- the app


@pytest.fixture
@multi_dut_argument
def config(request: pytest.FixtureRequest) -> str:
    """The name of the build's configuration."""
    return getattr(request, "param", None) or "default"


@pytest.fixture
@multi_dut_argument
def app_path(request: pytest.FixtureRequest, test_file_path: str) -> str:
    """The folder of the app."""
    return value_of(request, "app_path", os.path.dirname(test_file_path))


@pytest.fixture
def build_dir(request: pytest.FixtureRequest, count: int, app_path: Any, target: Any, config: Any) -> Any:
    """The build's folder: as given, else ``build_TARGET_CONFIG``, ``build_TARGET``, ``build_CONFIG`` or ``build``."""
    from pytest_esp.embedded.app import find_build
    from pytest_esp.embedded.parameters import parse_multi_dut_args

    given = parse_multi_dut_args(count, value_of(request, "build_dir"))

    @multi_dut_fixture
    def find(given: str | None, app_path: str, target: str | None, config: str | None) -> str | None:
        return given or find_build(app_path, target, config)

    return find(given=given, app_path=app_path, target=target, config=config)


@pytest.fixture
@multi_dut_fixture
def app(app_path: Any, build_dir: Any, target: Any) -> App:
    """The app and its build; a tuple for several boards."""
    from pytest_esp.embedded.app import App

    return App(app_path, build_dir, None if target == "auto" else target)


# -- the board


@pytest.fixture
def dut(
    request: pytest.FixtureRequest,
    count: int,
    test_case_name: str,
    app: Any,
    skip_autoflash: Any,
    erase_all: Any,
    erase_nvs: Any,
    baud: Any,
    boards: list[Board],
    _esp_held: list[Held],
    _pexpect_logfile: Any,
) -> Any:
    """The board with the app running; a list for several boards."""
    from pytest_esp.embedded.starting import Start, assign

    starts = [
        Start(
            app=of_board(app, number),
            skip=bool(of_board(skip_autoflash, number)),
            erase_all=bool(of_board(erase_all, number)),
            erase_nvs=bool(of_board(erase_nvs, number)),
            baud=of_board(baud, number),
            logfile=of_board(_pexpect_logfile, number),
        )
        for number in range(count)
    ]
    held = assign(starts, _esp_held)
    duts = [start.run(request, one, test_case_name) for start, one in zip(starts, held, strict=True)]
    return duts[0] if count == 1 else duts


@pytest.fixture
def serial(dut: Dut | list[Dut]) -> Any:
    """The port of the board."""
    return [one.serial for one in dut] if isinstance(dut, list) else dut.serial


@pytest.fixture
def pexpect_proc(dut: Dut | list[Dut]) -> Any:
    """What waits for output of the board."""
    return [one.pexpect_proc for one in dut] if isinstance(dut, list) else dut.pexpect_proc


@pytest.fixture
def unity_tester(dut: Dut | list[Dut]) -> CaseTester:
    """Runs the app's test cases."""
    from pytest_esp.embedded.cases import CaseTester

    return CaseTester(dut)
