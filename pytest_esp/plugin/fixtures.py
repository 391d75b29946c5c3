"""The fixtures. Tests that do not use them are not slowed down."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING

import pytest

from pytest_esp.errors import RackError
from pytest_esp.plugin.firmware import bring_up, choose, policy_of
from pytest_esp.plugin.held_boards import Held, HeldBoards
from pytest_esp.plugin.options import options_of
from pytest_esp.plugin.pytest_private import current_item
from pytest_esp.plugin.reports import record_properties
from pytest_esp.plugin.selection import Plan, fixtures_of, make_plan, plan_of, rack_of
from pytest_esp.plugin.wanted import MarkerError

if TYPE_CHECKING:
    from pytest_esp.boards.board import Board
    from pytest_esp.boards.faults import BoardFaults
    from pytest_esp.formats.firmware import Firmware
    from pytest_esp.link.console import Console
    from pytest_esp.operations.esp import Esp
    from pytest_esp.rack.rack import Rack

HELD_BOARDS = pytest.StashKey[HeldBoards]()
_LINK_FIXTURES = frozenset({"esp", "console", "session_esp"})


@pytest.fixture(scope="session")
def rack(pytestconfig: pytest.Config) -> Rack:
    """The boards of boards.toml."""
    try:
        return rack_of(pytestconfig)
    except RackError as error:  # requested with getfixturevalue(), or by a fixture that overrides this one
        pytest.fail(str(error), pytrace=False)


@pytest.fixture(scope="session", name="_esp_log_dir")
def esp_log_dir(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Set the folder for console logs: ``--esp-log-dir``, else a folder in this run's temporary directory."""
    folder = options_of(pytestconfig).log_dir or tmp_path_factory.getbasetemp() / "consoles"
    pytestconfig.stash[HELD_BOARDS].log_dir = folder


@pytest.fixture(name="_esp_held")
def esp_held(request: pytest.FixtureRequest, _esp_log_dir: None) -> list[Held]:
    """The boards leased for the test; the other fixtures build on it."""
    return _take(request.node)


def _take(item: pytest.Item) -> list[Held]:
    held_boards = item.config.stash[HELD_BOARDS]
    plan = _plan(item)
    held = held_boards.take(item, plan)
    record_properties(item, held)
    for one in held:
        one.firmware = None
        if plan.wanted.firmware is not None:
            _bring_up_firmware(item, plan, one)
        else:
            _bring_up(one, fixtures_of(item))
    return held


def _bring_up(held: Held, used: frozenset[str]) -> None:
    """Open the port, which starts a virtual board; leave a real port closed for tests that open it themselves.

    Raises:
        PortError, BackendError: if it cannot be opened: an error of the set-up, not of the test.
    """
    if held.board.virtual or not _LINK_FIXTURES.isdisjoint(used):
        assert held.link.port.is_open
    else:
        held.link.close()


def _bring_up_firmware(item: pytest.Item, plan: Plan, held: Held) -> None:
    """Flash the build for the board's chip and boot it."""
    want = plan.wanted.firmware
    assert want is not None
    held.firmware = choose(item.config, plan.firmware, held.board.chip)
    if held.firmware.elf_problem is not None:
        item.warn(pytest.PytestWarning(held.firmware.elf_problem))
    place = item.nodeid.partition("::")[0] if want.scope == "module" else ""
    unit = None if want.scope == "test" else (want.scope, place, plan.firmware_key)
    bring_up(held, held.firmware, policy_of(item.config, want), unit)


def _plan(item: pytest.Item) -> Plan:
    plan = plan_of(item)
    if plan is None:  # the fixture was requested with getfixturevalue()
        try:
            plan = make_plan(item, leases=True)
        except (MarkerError, RackError) as error:
            pytest.fail(str(error), pytrace=False)
    if plan.reason is not None:
        pytest.skip(plan.reason)
    if plan.problem is not None:
        pytest.fail(plan.problem, pytrace=False)
    return plan


@pytest.fixture
def board(_esp_held: list[Held]) -> Board:
    """A board that matches the test's ``esp`` marker, leased for the test.

    A virtual board is running. A real board's port is open only if the test also uses `esp` or `console`; otherwise
    the test can open it with other tools (``board.spec.port``).
    """
    return _esp_held[0].board


@pytest.fixture
def boards(_esp_held: list[Held]) -> list[Board]:
    """All boards of the test, for tests with ``count=2`` or more."""
    return [held.board for held in _esp_held]


@pytest.fixture
def esp(_esp_held: list[Held]) -> Esp:
    """The operations, bound to `board`: ``esp.chip``, ``esp.flash``, ``esp.efuse``, ``esp.security``..."""
    from pytest_esp.operations.esp import Esp

    return Esp(_esp_held[0].link)


@pytest.fixture
def console(_esp_held: list[Held]) -> Console:
    """The console of the app on `board`; ``esp.chip.reset("app")`` restarts the app.

    If the board was off, the console begins with its boot. If the board was kept from the previous test, the console
    begins where the test begins.
    """
    return _esp_held[0].link.console


@pytest.fixture
def firmware(_esp_held: list[Held]) -> Firmware:
    """The build that `board` runs: flashed if the flash differs, and booted for this test.

    It comes from ``@pytest.mark.firmware("build")``, else from ``--esp-firmware``; of several builds, the one for the
    board's chip is used. The console begins with the first byte of its boot.
    """
    found = _esp_held[0].firmware
    if found is None:
        pytest.fail(
            "`firmware` cannot be requested with getfixturevalue(): name it in the test's arguments", pytrace=False
        )
    return found


@pytest.fixture
def faults(_esp_held: list[Held]) -> Generator[BoardFaults]:
    """Inject faults on `board` during the test: ``faults.to_device.lose = 0.01``, ``faults.vanish(1.0)``...

    `board` is a virtual board, or a real one whose entry has ``faults``, which puts a proxy in front of its port.
    """
    from pytest_esp.boards.faults import BoardFaults

    held = _esp_held[0]
    assert held.link.port.is_open
    switched = BoardFaults(held.board)
    yield switched
    switched.end()
    held.link.close()


@pytest.fixture(scope="session", name="_esp_session_held")
def esp_session_held(request: pytest.FixtureRequest, _esp_log_dir: None) -> Held:
    """The session's board, leased by the first test that needs it."""
    item = current_item(request)
    held_boards = item.config.stash[HELD_BOARDS]
    held = held_boards.take_for_session(item, _plan(item))
    used = fixtures_of(item)
    if "firmware" not in used:  # which flashes the board before it starts
        _bring_up(held, used)
    return held


@pytest.fixture(scope="session")
def session_board(_esp_session_held: Held) -> Board:
    """One board for all tests of the session that use it, and for fixtures of any scope.

    It is any board that ``--esp-board``, ``--esp-chip`` and ``--esp-backend`` select; markers do not affect the choice.
    """
    return _esp_session_held.board


@pytest.fixture(scope="session")
def session_esp(_esp_session_held: Held) -> Esp:
    """The operations, bound to `session_board`."""
    from pytest_esp.operations.esp import Esp

    return Esp(_esp_session_held.link)
