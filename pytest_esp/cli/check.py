"""``pytest-esp check``: run the suites on the boards of a rack."""

from __future__ import annotations

import sys

import click


@click.command(
    "check",
    # No -h: click would find it inside pytest's short options, such as -pno:hypothesis.
    context_settings={"ignore_unknown_options": True, "help_option_names": ["--help"]},
    epilog="Exit codes are pytest's: 0 all passed, 1 some failed, 2 interrupted, 4 invalid boards.toml or usage. "
    "8: only boards failed.",
)
@click.option(
    "--rack", metavar="FILE", help="The rack file. Default: PYTEST_ESP_RACK, else boards.toml in this folder or above."
)
@click.option(
    "--port",
    "ports",
    multiple=True,
    metavar="PORT",
    help="Test the board on this port, without boards.toml (repeatable); auto: all ports of Espressif chips and USB "
    "bridges. Default: PYTEST_ESP_PORT.",
)
@click.option("--board", "boards", multiple=True, metavar="NAME", help="Test only this board (repeatable).")
@click.option("--chip", "chips", multiple=True, metavar="CHIP", help="Test only boards with this chip (repeatable).")
@click.argument("pytest_args", nargs=-1, type=click.UNPROCESSED)
def check_command(
    rack: str | None,
    ports: tuple[str, ...],
    boards: tuple[str, ...],
    chips: tuple[str, ...],
    pytest_args: tuple[str, ...],
) -> None:
    """Run the suites on the boards of a rack: identity, flash, verify, baud rates, resets, eFuses, security.

    All other arguments are passed to pytest: -n 4, -m "not erases", -k identity, --junitxml=FILE, --alluredir=DIR...
    """
    import pytest

    chosen = [f"--esp-port={port}" for port in ports] + [f"--esp-board={name}" for name in boards]
    chosen += [f"--esp-chip={name}" for name in chips]
    where = [f"--esp-rack={rack}"] if rack else []
    # This process has already imported pytest_esp, so pytest warns that it cannot rewrite its asserts.
    quiet = ["-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
    sys.exit(pytest.main(["--pyargs", "pytest_esp.suites", *quiet, *where, *chosen, *pytest_args]))
