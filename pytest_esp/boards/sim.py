"""The simulator backend: a simulated chip as a board."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from pytest_esp.boards.board import Board
from pytest_esp.boards.claim import claim
from pytest_esp.boards.port import Port
from pytest_esp.errors import BackendError, EspError
from pytest_esp.formats.nor_flash import NorFlash
from pytest_esp.rack.identity import identity
from pytest_esp.rack.spec import VIRTUAL_FLASH_SIZE
from pytest_esp.sim.app import load_app
from pytest_esp.sim.chip import OnClose, SimChip
from pytest_esp.wire.port import VirtualPort
from pytest_esp.wire.wire import Wire, rom_console_baudrate

if TYPE_CHECKING:
    from pytest_esp.rack.rack import Rack
    from pytest_esp.rack.spec import BoardSpec


class SimBoard(Board):
    """A simulated chip in this process.

    Like a real board, it keeps its flash between leases: in ``flash_file``, or in the rack's state folder.
    Its eFuses are new at every lease unless it has an ``efuse_file``, so that a test cannot brick the chip for the
    next one. Its MAC address is derived from the board's name.

    Attributes:
        rise_time, on_close: see `SimChip`; they take effect when the board is opened.
    """

    backend: ClassVar[str] = "sim"
    virtual: ClassVar[bool] = True

    def __init__(self, spec: BoardSpec, rack: Rack) -> None:
        super().__init__(spec, rack)
        self.rise_time = 0.0
        self.on_close: OnClose = "bootloader"
        self.simulated: SimChip | None = None
        self._port: VirtualPort | None = None
        self._release_files: Callable[[], None] = lambda: None

    @property
    def wire(self) -> Wire | None:
        """The chip's UART, while the board is open."""
        return self.simulated.wire if self.simulated else None

    def open(self) -> Port:
        """Create the chip, start it, and return its in-process port."""
        spec = self.spec
        path = spec.flash_file or self.rack.state_dir(spec) / "flash.bin"
        try:
            self._release_files = claim(spec, self.rack)
            app = load_app(spec.app) if spec.app else None
            self.simulated = SimChip(
                spec.chip,
                flash=NorFlash(spec.flash_size or VIRTUAL_FLASH_SIZE, path),
                efuse_file=spec.efuse_file,
                mac=spec.mac,
                revision=spec.revision,
                rollback=spec.rollback,
                secure_download=spec.secure_download,
                app=app,
                console_baud=spec.console_baud,
                rise_time=self.rise_time,
                on_close=self.on_close,
                name=identity(spec, self.rack),
            )
        except EspError as error:
            self.close()
            error.board = error.board or self.name
            raise
        self._port = VirtualPort(self.simulated.wire, f"sim:{self.name}", rom_console_baudrate(spec.chip))
        self._port.open()
        self.switch_on_faults()
        self.reset(bootloader=False)  # after the port is open, so that the first output is not lost
        return self._port

    def close(self) -> None:
        """Stop the chip and write its flash to its file."""
        port, self._port = self._port, None
        simulated, self.simulated = self.simulated, None
        if port is not None:
            port.close()
        if simulated is not None:
            simulated.close()
        self._release_files()

    def reset(self, bootloader: bool) -> bool:
        """Reset the chip at once, without control lines and delays."""
        device = self._running().wire.device  # differs from the chip if the fault `wrong_chip` is on
        assert isinstance(device, SimChip)
        device.reset(bootloader)
        return True

    def power_cycle(self) -> None:
        """Switch the chip's supply off and on."""
        simulated = self._running()
        simulated.power_off()
        simulated.reset(bootloader=False)

    def _running(self) -> SimChip:
        if self.simulated is None:
            raise BackendError("the board is not open", board=self.name)
        return self.simulated
