"""The command line options, their ini equivalents, and the registration of markers."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from pytest_esp.errors import RackError
from pytest_esp.rack.chips import CHIPS
from pytest_esp.rack.file import ports_of_environment

KINDS = ("hardware", "qemu", "sim")

FLASH_POLICIES = ("changed", "always", "never")
"""When the fixture ``firmware`` flashes: only what differs from the flash, everything, or nothing."""

FIRMWARE_ENVIRONMENT = "PYTEST_ESP_FIRMWARE"

_MARKERS = (
    "esp(chip, backend, features, flash, count, each, board, scope): what the test needs of its board; "
    "chip='esp32c3', backend='sim', features=['psram'], flash='>=4MB', revision='>=3', crystal=40, count=2, "
    "each='chip' or 'board', "
    "scope='module' or 'session' to share one board",
    "firmware(path, ..., flash, scope): the build that the firmware fixture flashes, relative to the test's file; "
    "flash='changed', 'always' or 'never'; scope='module' or 'session' for one boot for several tests",
    "burns: the test burns eFuses; it needs a board that allows 'burn' (virtual boards do)",
    "erases: the test erases or overwrites flash that it did not write; it needs a board that allows 'erase'",
    "hardware: (set by pytest-esp) a real board of the rack can run the test",
    "qemu: (set by pytest-esp) a QEMU machine of the rack can run the test",
    "sim: (set by pytest-esp) a simulated chip of the rack can run the test",
)


@dataclass(frozen=True)
class Options:
    """The options from the command line and the ini file.

    Attributes:
        rack: path of the rack file; None for the default search.
        ports: use only the boards on these ports, without or with entries in the rack; empty for the rack's boards.
        boards, chips, backends: use only these boards of the rack; empty for all.
        strict: whether a test that no board can satisfy fails instead of being skipped.
        lock_timeout: seconds to wait for a held board.
        allow_burn: whether eFuses of real boards may be burned.
        log_dir: the folder for console logs; None for pytest's temporary directory.
        firmware: builds for the fixture ``firmware``, for tests whose markers name none.
        flash: one of `FLASH_POLICIES`, which overrides the markers; None: the markers decide.
    """

    rack: Path | None
    ports: tuple[str, ...]
    boards: tuple[str, ...]
    chips: tuple[str, ...]
    backends: tuple[str, ...]
    strict: bool
    lock_timeout: float
    allow_burn: bool
    log_dir: Path | None
    firmware: tuple[Path, ...]
    flash: str | None


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options; see `Options`."""
    group = parser.getgroup("esp", "Espressif boards (pytest-esp)")
    group.addoption(
        "--esp-rack", metavar="FILE", help="the boards (default: boards.toml here or above, PYTEST_ESP_RACK)"
    )
    group.addoption(
        "--esp-port",
        action="append",
        default=[],
        metavar="PORT",
        help="use the board on this port, without boards.toml (repeatable); auto: all ports of Espressif chips and USB "
        "bridges (default: PYTEST_ESP_PORT)",
    )
    group.addoption("--esp-board", action="append", default=[], metavar="NAME", help="use only this board (repeatable)")
    group.addoption("--esp-chip", action="append", default=[], metavar="CHIP", help="use only boards with this chip")
    group.addoption(
        "--esp-backend",
        action="append",
        default=[],
        metavar="NAME",
        help="use only boards with this backend: serial, sim... (repeatable)",
    )
    group.addoption(
        "--esp-strict",
        action="store_true",
        default=None,
        help="fail tests that no board of the rack can satisfy, instead of skipping them",
    )
    group.addoption(
        "--esp-lock-timeout",
        type=float,
        metavar="SECONDS",
        help="how long to wait for a board that is in use (default: 300)",
    )
    group.addoption(
        "--esp-allow-burn",
        action="store_true",
        help="allow burning the eFuses of real boards that are listed in allow_burn of their entries",
    )
    group.addoption(
        "--esp-log-dir",
        metavar="DIR",
        help="write console logs to this folder, one file per test and board (default: pytest's temporary directory)",
    )
    group.addoption(
        "--esp-firmware",
        action="append",
        default=[],
        metavar="DIR",
        help="the build that the firmware fixture flashes, or a folder with one build per chip (repeatable)",
    )
    group.addoption(
        "--esp-junit-properties",
        action="store_true",
        help="give each test in junit.xml properties for its board; the schemas of Jenkins and GitLab forbid them",
    )
    group.addoption(
        "--esp-keep-order",
        action="store_true",
        help="run tests in the order of collection; by default, tests of each='chip' or 'board' are grouped by board",
    )
    group.addoption(
        "--esp-flash",
        choices=FLASH_POLICIES,
        help="when the firmware fixture flashes (default: changed, or what the test's marker says)",
    )
    parser.addini("esp_firmware", "like --esp-firmware, relative to the ini file; one per line", type="linelist")
    parser.addini("esp_log_dir", "like --esp-log-dir, relative to the ini file")
    parser.addini("esp_rack", "the rack file, relative to the ini file")
    parser.addini("esp_strict", "like --esp-strict", type="bool", default=False)
    parser.addini("esp_lock_timeout", "like --esp-lock-timeout", default="300")


def register_markers(config: pytest.Config) -> None:
    """Register all markers, and filter out dependencies' warnings that no test can fix."""
    config.addinivalue_line("filterwarnings", "ignore:.*OptionParser:DeprecationWarning:espefuse")
    config.addinivalue_line("filterwarnings", r"ignore:set\w+\(\) is deprecated:DeprecationWarning:serial\.rfc2217")
    for line in _MARKERS:
        config.addinivalue_line("markers", line)
    for chip in CHIPS:
        config.addinivalue_line("markers", f"{chip}: (set by pytest-esp) an {chip} of the rack can run the test")


def options_of(config: pytest.Config) -> Options:
    """Return the options of this run.

    Raises:
        pytest.UsageError: if the ini file's ``esp_lock_timeout`` is not a number.
    """
    timeout = config.getoption("esp_lock_timeout")
    if timeout is None:
        timeout = _ini_seconds(config, "esp_lock_timeout")
    strict = config.getoption("esp_strict")
    return Options(
        rack=_path(config, "esp_rack"),
        ports=_names(config, "esp_port") or _ports_of_environment(config),
        boards=_names(config, "esp_board"),
        chips=tuple(name.lower().replace("-", "") for name in _names(config, "esp_chip")),
        backends=_names(config, "esp_backend"),
        strict=bool(config.getini("esp_strict")) if strict is None else bool(strict),
        lock_timeout=timeout,
        allow_burn=bool(config.getoption("esp_allow_burn")),
        log_dir=_path(config, "esp_log_dir"),
        firmware=_firmware(config),
        flash=config.getoption("esp_flash"),
    )


def settle_ports(config: pytest.Config) -> None:
    """Replace ``auto`` by the ports that are plugged in now: all workers of a run then have the same boards.

    If there is none, ``auto`` stays, and is an error when a test needs a board.
    """
    ports = options_of(config).ports
    if "auto" in ports:
        from pytest_esp.rack.ports import expand_auto

        with contextlib.suppress(RackError):
            config.option.esp_port = expand_auto(ports)


def _ports_of_environment(config: pytest.Config) -> tuple[str, ...]:
    """Return the ports in PYTEST_ESP_PORT, unless the command line names a rack or a board of one."""
    if config.getoption("esp_rack") or config.getoption("esp_board"):
        return ()
    return tuple(ports_of_environment())


def _firmware(config: pytest.Config) -> tuple[Path, ...]:
    if given := _names(config, "esp_firmware"):
        return tuple(config.invocation_params.dir / os.path.expanduser(name) for name in given)
    if named := config.getini("esp_firmware"):
        return tuple((config.inipath or config.rootpath / "-").parent / name for name in named)
    named = os.environ.get(FIRMWARE_ENVIRONMENT, "")
    return tuple(Path(os.path.expanduser(name)) for name in named.split(os.pathsep) if name)


def _path(config: pytest.Config, option: str) -> Path | None:
    given = config.getoption(option)
    if given:
        return config.invocation_params.dir / os.path.expanduser(given)
    ini = str(config.getini(option) or "")
    return (config.inipath or config.rootpath / "-").parent / ini if ini else None


def _ini_seconds(config: pytest.Config, name: str) -> float:
    text = str(config.getini(name))
    try:
        return float(text)
    except ValueError:
        raise pytest.UsageError(f"{name} = {text!r} in {config.inipath}: expected seconds") from None


def _names(config: pytest.Config, option: str) -> tuple[str, ...]:
    return tuple(config.getoption(option) or ())
