"""Fault injection for an open board: on its wire, and in a simulated chip."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pytest_esp.errors import BackendError
from pytest_esp.wire.faults import Fault, Faults, ResetCause, restart

if TYPE_CHECKING:
    from pytest_esp.boards.board import Board
    from pytest_esp.rack.spec import FaultSpec
    from pytest_esp.sim.chip import SimChip
    from pytest_esp.wire.wire import Wire


class BoardFaults(Faults):
    """Faults of *board*, until `end`. The attributes (see `Faults`) can be set at any time.

    Raises:
        BackendError: if the board is not open, or is a real one without ``faults`` in its entry (which puts a proxy
            in front of its port).
    """

    def __init__(self, board: Board) -> None:
        super().__init__()
        wire = board.wire
        if wire is None:
            raise BackendError(
                "faults need an open virtual board, or a real one whose port has a proxy in front of it",
                board=board.name,
                hint="add `faults = {}` to a real board's entry to put a proxy in front of its port",
            )
        self._board = board
        self._wire: Wire = wire
        self._undo: list[Callable[[], None]] = []
        wire.faults = self

    def switch_on(self, spec: FaultSpec) -> None:
        """Enable the faults of a board's entry."""
        wanted = spec.model_dump(exclude_none=True)
        self.sent = 0
        for direction in ("to_device", "to_host"):
            setattr(self, direction, Fault(**wanted.pop(direction, {})))
        if wanted.pop("secure_download", False):
            self.secure_download()
        for address, mask in wanted.pop("stuck", {}).items():
            self.stuck(int(address, 0), mask)
        if "wrong_chip" in wanted:
            self.wrong_chip(wanted.pop("wrong_chip"))
        for name, value in wanted.items():
            setattr(self, name, value)

    def end(self) -> None:
        """Remove all faults. The next use of the loader connects to the chip as it is without them."""
        while self._undo:
            self._undo.pop()()
            self._board.chip_changes += 1
        if self._wire.faults is self:
            self._wire.faults = None
        self._wire.come_back()

    # -- the port and the supply

    def vanish(self, seconds: float | None = None) -> None:
        """Make the port vanish for *seconds*, or until `come_back`."""
        self._wire.vanish(seconds=seconds)

    def come_back(self) -> None:
        """Restore a port that has vanished."""
        self._wire.come_back()

    def reset(self, cause: ResetCause = "reset") -> None:
        """Reset the chip now, by its reset line or by a brownout."""
        restart(self._wire, cause)

    # -- simulated chips

    def secure_download(self) -> None:
        """Put the ROM into secure download mode, as if ENABLE_SECURITY_DOWNLOAD were burned.

        Raises:
            BackendError: if the board is not a simulated chip, or its chip does not have this mode.
        """
        chip = self._simulated("secure download mode")
        if chip.efuses is None or not chip.efuses.has_field("ENABLE_SECURITY_DOWNLOAD"):
            raise BackendError(f"the {chip.model.name} has no secure download mode", board=self._board.name)
        if chip.secure_download:
            return
        efuses = chip.efuses
        efuses.preset("ENABLE_SECURITY_DOWNLOAD", 1)
        self._board.chip_changes += 1
        self._undo.append(lambda: efuses.take_back("ENABLE_SECURITY_DOWNLOAD"))

    def stuck(self, address: int, mask: int = 0xFF) -> None:
        """Keep the bits of *mask* at a flash *address* at 0, whatever is erased and written.

        Raises:
            BackendError: if the board is not a simulated chip.
        """
        flash = self._simulated("stuck bits").flash
        flash.stuck[address] = mask

        def mend() -> None:
            flash.stuck.pop(address, None)

        self._undo.append(mend)

    def wrong_chip(self, chip: str) -> None:
        """Replace the board's chip by another type than boards.toml gives, with the same flash.

        Raises:
            BackendError: if the board is not a simulated chip, or *chip* is unknown.
        """
        from pytest_esp.sim.chip import SimChip

        right = self._simulated("a wrong chip")
        wire = self._wire
        with wire.lock:
            right.power_off()
            try:
                wrong = SimChip(chip, flash=right.flash, wire=wire)
            except BackendError:
                wire.device = right
                raise
            wrong.reset(bootloader=False)

        self._board.chip_changes += 1

        def change_back() -> None:
            with wire.lock:
                wrong.power_off()
                wire.device = right
                right.reset(bootloader=False)

        self._undo.append(change_back)

    def _simulated(self, what: str) -> SimChip:
        found: SimChip | None = getattr(self._board, "simulated", None)
        if found is None:
            raise BackendError(
                f"{what}: only supported on a simulated chip",
                board=self._board.name,
                hint='use a board with backend "sim"',
            )
        return found
