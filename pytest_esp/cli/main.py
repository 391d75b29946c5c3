"""The ``pytest-esp`` command. Each subcommand is a module that is imported only when it is called."""

from __future__ import annotations

import importlib
import sys

import click

from pytest_esp import __version__
from pytest_esp.errors import EspError
from pytest_esp.formats.esptool_config import check_config
from pytest_esp.secrets import hide

_COMMANDS = {
    "check": ("pytest_esp.cli.check", "check_command", "Run the suites on the boards of a rack."),
    "doctor": ("pytest_esp.cli.doctor", "doctor_command", "Check what a run needs: packages, rack, QEMU, ports."),
    "init": ("pytest_esp.cli.init", "init_command", "Write boards.toml for the boards that are plugged in."),
    "op": ("pytest_esp.cli.op", "op_command", "Run one operation on a board, or list them."),
    "ports": ("pytest_esp.cli.ports", "ports_command", "List the serial ports and the chips behind them."),
    "qemu": ("pytest_esp.cli.qemu", "qemu_command", "Serve a QEMU machine until interrupted, or install QEMU."),
    "rack": ("pytest_esp.cli.rack", "rack_command", "Show the boards, their state and who holds them."),
    "sim": ("pytest_esp.cli.sim", "sim_command", "Serve a simulated chip until interrupted."),
}


class _LazyGroup(click.Group):
    """Lists the commands without importing them, so that ``--help`` is fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, attribute, _ = _COMMANDS[cmd_name]
        return getattr(importlib.import_module(module), attribute)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, _COMMANDS[name][2]) for name in self.list_commands(ctx)])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="pytest-esp")
def cli() -> None:
    """Hardware-in-the-loop testing of Espressif chips: real boards, QEMU machines and simulated chips."""


def main() -> None:
    """Run the command line. An `EspError` is printed to stderr, and the exit code is 1."""
    try:
        _run()
    except EspError as error:
        click.echo(hide(f"error: {error}"), err=True)
        sys.exit(1)


def _run() -> None:
    try:
        cli()
    except ValueError:
        check_config()  # says so if it is esptool's configuration file
        raise
