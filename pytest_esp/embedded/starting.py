"""Flashes a test's app to its boards and starts it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_esp.embedded.app import App
from pytest_esp.embedded.duts import Dut
from pytest_esp.embedded.serial import Serial
from pytest_esp.errors import FirmwareError
from pytest_esp.operations.esp import Esp
from pytest_esp.plugin.firmware import install

if TYPE_CHECKING:
    from pytest_esp.link.link import Link
    from pytest_esp.plugin.held_boards import Held


@dataclass(frozen=True)
class Start:
    """How the app of one board is started.

    Attributes:
        app: the app.
        skip: run what is in flash.
        erase_all: erase the flash before it is written.
        erase_nvs: erase the partition ``nvs`` after that.
        baud: the console's baud rate; None for that of the board or the build.
        logfile: where the console's log is to be found, beside its place in this plugin's folder.
    """

    app: App
    logfile: str
    skip: bool = False
    erase_all: bool = False
    erase_nvs: bool = False
    baud: int | str | None = None

    def run(self, request: pytest.FixtureRequest, held: Held, name: str) -> Dut:
        """Flash what differs, boot, and return the device under test.

        Raises:
            FirmwareError: if there is no build. EspError: if it cannot be flashed.
        """
        link = held.link
        if not self.skip:
            self._flash(held)
        if self.baud:
            link.app_baudrate = int(self.baud)
        link.boot()
        held.booted = (None, link.boots)
        return Dut(request, link, self.app, Serial(link, self.app), name, self._linked_log(link))

    def _linked_log(self, link: Link) -> str:
        """Link the console's log to `logfile`, and return that; where links are not possible, the log's own path."""
        log = link.console.log_path
        if log is None:
            return self.logfile
        Path(self.logfile).parent.mkdir(parents=True, exist_ok=True)
        try:
            Path(self.logfile).unlink(missing_ok=True)
            Path(self.logfile).symlink_to(log.absolute())
        except OSError:  # Windows, without the right to make links
            return str(log)
        return self.logfile

    def _flash(self, held: Held) -> None:
        firmware, esp = self.app.firmware, Esp(held.link)
        held.link.elf, held.link.app_baudrate = firmware.elf, firmware.console_baud
        if self.erase_all:
            esp.flash.erase("all")
        install(held.link, firmware, "changed")
        if self.erase_nvs and "nvs" in self.app.partition_table:
            esp.flash.erase("nvs")


def assign(starts: Sequence[Start], held: Sequence[Held]) -> list[Held]:
    """Return a board for each app, of the chip that its build is for.

    Raises:
        FirmwareError: if the boards' chips are others.
    """
    free, chosen = [*held], list["Held"]()
    for start in starts:
        chip = start.app.target if start.app.binary_path else None
        board = next((one for one in free if chip in (None, one.board.chip) or one.board.chip == "auto"), None)
        if board is None:
            raise FirmwareError(f"the build in {start.app.binary_path} is for {chip}, but the board is none")
        free.remove(board)
        chosen.append(board)
    return chosen
