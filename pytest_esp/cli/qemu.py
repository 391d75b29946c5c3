"""``pytest-esp qemu CHIP``: serve a QEMU machine like a devkit's port. ``pytest-esp qemu install``: install QEMU."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pytest_esp.cli.qemu_install import install_command
from pytest_esp.cli.serving import announce_and_serve, board_options, stop_signals

if TYPE_CHECKING:
    from pytest_esp.boards.qemu import QemuBoard


class _ServeByDefault(click.Group):
    """A group that takes an unknown command as a chip: ``qemu esp32`` is ``qemu serve esp32``."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.commands:
            args = ["serve", *args]
        return super().resolve_command(ctx, args)


@click.group("qemu", cls=_ServeByDefault)
def qemu_command() -> None:
    """Serve a QEMU machine, or install QEMU.

    pytest-esp qemu CHIP is short for pytest-esp qemu serve CHIP.
    """


qemu_command.add_command(install_command)


@qemu_command.command("serve")
@click.argument("chip")
@board_options
@click.option("--psram", is_flag=True, help="Use a module with PSRAM.")
@click.option(
    "--boot",
    type=click.Choice(["auto", "app", "bootloader"]),
    default="auto",
    show_default=True,
    help="What the machine starts; auto: the app if the flash contains one, else the ROM's loader.",
)
def serve_command(chip: str, listen: tuple[str, ...], as_json: bool, boot: str, **settings: Any) -> None:
    """Serve a QEMU machine for CHIP (esp32, esp32s3, esp32c3) until Ctrl-C or SIGTERM.

    Unmodified tools can use it: esptool --port rfc2217://127.0.0.1:PORT write-flash ... resets it into its loader,
    flashes it and starts the app. The app's output follows on the same port.
    """
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(stop_signals())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pytest-esp-qemu-")))
        board = _make_board(chip, folder, **settings)
        stack.callback(board.close)
        board.open_stopped()
        board.reset(bootloader=boot == "bootloader" or (boot == "auto" and not board.has_image))
        assert board.wire is not None
        announce_and_serve(
            stack,
            board.wire,
            listen,
            kind="QEMU",
            chip=chip,
            mac=board.mac,
            flash_size=board.flash_size,
            as_json=as_json,
        )
        stop.wait()


def _make_board(
    chip: str,
    folder: Path,
    *,
    flash_file: Path | None,
    flash_size: int | None,
    efuse_file: Path | None,
    on_close: Any,
    psram: bool,
    **settings: Any,
) -> QemuBoard:
    from pydantic import ValidationError

    from pytest_esp.boards.qemu import QemuBoard
    from pytest_esp.qemu.machines import machine_for
    from pytest_esp.rack.rack import Rack
    from pytest_esp.rack.spec import BoardSpec
    from pytest_esp.wire.reset import SLOW_HOST_RISE_TIME

    if flash_size is None and flash_file is not None and flash_file.exists():
        flash_size = flash_file.stat().st_size or None
    entry = {
        "name": f"qemu-{machine_for(chip).name}",
        "backend": "qemu",
        "chip": chip,
        "flash_file": flash_file and flash_file.absolute(),
        "flash_size": flash_size,
        "efuse_file": efuse_file and efuse_file.absolute(),
        "features": ["psram"] if psram else [],
        **settings,
    }
    try:
        spec = BoardSpec.model_validate({key: value for key, value in entry.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        raise click.UsageError(f"--{first['loc'][0]}: {first['msg']}") from None
    board = QemuBoard(spec, Rack("command line", None, {spec.name: spec}))
    board.folder = folder
    board.rise_time = SLOW_HOST_RISE_TIME
    board.on_close = on_close
    board.on_death = lambda words: click.echo(f"{words}; a reset starts it again", err=True)
    return board
