"""The pytest plugin: options, fixtures, markers, scheduling, reports.

pytest imports this package in every run once it is installed. It must not import esptool, a rack, pydantic or allure
before a test needs a board.
"""

from __future__ import annotations

import io
import tomllib
from collections.abc import Generator
from pathlib import Path

import pytest

from pytest_esp.errors import EspError
from pytest_esp.plugin.fixtures import (
    HELD_BOARDS,
    board,
    boards,
    console,
    esp,
    esp_held,
    esp_log_dir,
    esp_session_held,
    faults,
    firmware,
    rack,
    session_board,
    session_esp,
)
from pytest_esp.plugin.held_boards import HeldBoards
from pytest_esp.plugin.infrastructure import Faults, note_fault
from pytest_esp.plugin.options import options_of, pytest_addoption, register_markers, settle_ports
from pytest_esp.plugin.reports import (
    Discretion,
    RackSummary,
    add_consoles,
    add_notices,
    add_transcripts,
    add_usage,
    note_skip,
)
from pytest_esp.plugin.selection import (
    fixtures_of,
    group_by_board,
    loaded_rack,
    plan_items,
    problems_of,
    pytest_generate_tests,
    refuse_without_board,
)
from pytest_esp.plugin.unity import UnityReports, unity
from pytest_esp.plugin.wanted import uses_session_board
from pytest_esp.plugin.worker import Worker
from pytest_esp.plugin.xdist import BARRIERS, CHANNEL, PORTS, Controller
from pytest_esp.rack.file import find_rack_file
from pytest_esp.rack.holder import printable
from pytest_esp.secrets import hide
from pytest_esp.versions import VersionError

__all__ = [
    "board",
    "boards",
    "console",
    "esp",
    "esp_held",
    "esp_log_dir",
    "esp_session_held",
    "faults",
    "firmware",
    "pytest_addoption",
    "pytest_generate_tests",
    "rack",
    "session_board",
    "session_esp",
    "unity",
]

_FAILED = pytest.StashKey[bool]()
_LONGEST_RACK = 1 << 20  # bytes


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Register the markers and the hooks that this process needs."""
    register_markers(config)
    options_of(config)
    config.pluginmanager.register(UnityReports(config), "esp-unity")
    config.pluginmanager.register(Discretion(), "esp-discretion")
    if config.pluginmanager.hasplugin("allure_listener"):
        from pytest_esp.plugin import allure

        allure.hide_secrets()
    workerinput = getattr(config, "workerinput", None)
    if workerinput is None:
        settle_ports(config)
        config.stash[HELD_BOARDS] = HeldBoards(config, lambda line: _announce(config, line))
        config.pluginmanager.register(RackSummary(config), "esp-summary")
        config.pluginmanager.register(Faults(), "esp-faults")
        if config.getoption("dist", "no") != "no":
            config.pluginmanager.register(Controller(config, lambda line: _announce(config, line)), "esp-controller")
        return
    if CHANNEL not in workerinput:  # a controller without this plugin
        config.stash[HELD_BOARDS] = HeldBoards(config)
        return
    config.option.esp_port = workerinput[PORTS]
    worker = Worker(workerinput[CHANNEL], workerinput[BARRIERS])
    worker.held_boards = config.stash[HELD_BOARDS] = HeldBoards(config, worker.say, worker.tell_held)
    config.pluginmanager.register(worker, "esp-worker")


def pytest_report_header(config: pytest.Config) -> str:
    """Name the ports, or the rack file and its boards, read as far as it can be: a wrong file is an error later."""
    options = options_of(config)
    path = find_rack_file(options.rack)
    if options.ports:
        limits = f"; entries of {path} hold for their ports" if path else ""
        return hide(printable(f"boards: on {', '.join(options.ports)}{limits}"))
    if path is None:
        return "boards: no boards.toml here or above, so the default rack of simulated chips"
    try:
        with open(path, "rb") if path.is_file() else io.BytesIO() as file:  # reading from a pipe may never end
            entries = tomllib.loads(file.read(_LONGEST_RACK).decode("utf-8-sig")).get("boards", {})
        names = [f"{name} x{entry['count']}" if "count" in entry else str(name) for name, entry in entries.items()]
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        names = []
    return f"boards: {path}: {hide(', '.join(names))}" if names else f"boards: {path}"


def _announce(config: pytest.Config, line: str) -> None:
    reporter: pytest.TerminalReporter | None = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or reporter.verbosity < 1:
        return
    capture = config.pluginmanager.get_plugin("capturemanager")
    if capture is None:
        reporter.write_line(line)
        return
    with capture.global_and_fixture_disabled():
        reporter.ensure_newline()
        reporter.write_line(line)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Plan every test, before ``-m`` and ``-k`` select."""
    try:
        plan_items(config, items)
    except VersionError as error:
        raise pytest.UsageError(str(error)) from error
    problems = problems_of(config)
    if not problems:
        if not config.getoption("esp_keep_order"):
            group_by_board(items)
    elif hasattr(config, "workerinput"):
        items.clear()  # the controller ends the run: see `xdist.Controller`
    else:
        raise pytest.UsageError("\n".join(problems))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fail a test that no board can run, in a strict run."""
    refuse_without_board(item)


def pytest_runtest_call(item: pytest.Item) -> None:
    """Count the test for the session's board if it uses that."""
    if uses_session_board(fixtures_of(item)):
        item.config.stash[HELD_BOARDS].use_session_board(item)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the boards' output and usage to the report."""
    report = yield
    held_boards = item.config.stash[HELD_BOARDS]
    if call.excinfo is not None:
        note_fault(item, report, call.excinfo)
    note_skip(item, report)
    add_notices(report, held_boards.notices)
    if report.failed:
        item.stash[_FAILED] = True
        add_transcripts(report, held_boards.transcripts())
        add_consoles(report, held_boards.console_logs())
    if report.when == "teardown":
        add_usage(item, report, held_boards.finished)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None]:
    """After the fixtures' teardown, release the boards that the next test does not need."""
    failed = item.stash.get(_FAILED, False)
    try:
        yield
    except BaseException:
        failed = True
        raise
    finally:
        _finish(item, nextitem, failed)


def _finish(item: pytest.Item, nextitem: pytest.Item | None, failed: bool) -> None:
    held_boards = item.config.stash[HELD_BOARDS]
    held_boards.finished = held_boards.usages()
    if held_boards.finished and item.config.pluginmanager.hasplugin("allure_listener"):
        from pytest_esp.plugin import allure

        allure.attach(held_boards.finished, held_boards.transcripts(), held_boards.console_logs())
    try:
        held_boards.settle(item, nextitem, failed)
    except EspError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write allure's environment file in runs with ``--alluredir``."""
    folder = session.config.getoption("allure_report_dir", None)
    rack = loaded_rack(session.config)
    if folder and rack is not None and not problems_of(session.config):
        from pytest_esp.plugin import allure

        allure.write_environment(Path(folder), rack)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Release all boards, however the run ended."""
    held_boards = config.stash.get(HELD_BOARDS, None)
    if held_boards is not None:
        held_boards.release_all()
