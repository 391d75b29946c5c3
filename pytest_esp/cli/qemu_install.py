"""``pytest-esp qemu install``: install Espressif's QEMU into ESP-IDF's tools folder."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from pytest_esp.qemu.install import Installed, Progress


@click.command("install")
@click.option(
    "--tools",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="ESP-IDF's tools folder. Default: IDF_TOOLS_PATH, else ~/.espressif.",
)
@click.option(
    "--url",
    metavar="BASE",
    help="Where to download from. Default: https://github.com/espressif/qemu/releases/download. "
    "As in ESP-IDF, IDF_GITHUB_ASSETS=HOST/PATH replaces only github.com.",
)
@click.option(
    "--version", metavar="V", help="The version, e.g. esp_develop_9.2.2_20260417. Default: the newest known version."
)
def install_command(tools: Path | None, url: str | None, version: str | None) -> None:
    """Install Espressif's QEMU for the ESP32, ESP32-S3 and ESP32-C3, unless it is already installed.

    It is installed into the same folder as by ESP-IDF's installer. The archives are checked against the SHA-256 sums
    that ESP-IDF publishes.
    """
    from pytest_esp.qemu.install import install
    from pytest_esp.qemu.machines import ARCHITECTURES

    for architecture in ARCHITECTURES:
        with _progress() as on_progress:
            installed = install(architecture, tools=tools, url=url, version=version, on_progress=on_progress)
        _announce(installed)


@contextlib.contextmanager
def _progress() -> Generator[Progress]:
    """Show a progress bar on stderr if that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", visible=False)

        def show(name: str, done: int, size: int) -> None:
            progress.update(task, description=name, completed=done, total=size, visible=True)

        yield show


def _announce(installed: Installed) -> None:
    from pytest_esp.qemu.find import TOOLS_VARIABLE, find

    what = "is already installed" if installed.already else "installed"
    qemu = installed.qemu
    machines = ", ".join(sorted(qemu.machines))
    click.echo(f"qemu-{installed.architecture} {installed.version} {what}: {qemu.path} ({machines})")
    if not installed.found:
        click.echo(f"  set {TOOLS_VARIABLE}={qemu.path.parents[5]} so that pytest-esp finds it")
    elif (used := find(installed.architecture).path) != qemu.path:
        click.echo(f"  not used: {used} is found first")
