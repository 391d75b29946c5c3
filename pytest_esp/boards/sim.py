"""A simulated chip as a board."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pytest_esp.boards.board import Board
from pytest_esp.boards.port import Port
from pytest_esp.errors import BackendError
from pytest_esp.formats.nor_flash import NorFlash
from pytest_esp.rack.identity import identity
from pytest_esp.rack.spec import VIRTUAL_FLASH_SIZE
from pytest_esp.sim.app import load_app
from pytest_esp.sim.chip import OnClose, SimChip
from pytest_esp.wire.port import VirtualPort
from pytest_esp.wire.wire import Wire

if TYPE_CHECKING:
    from pytest_esp.rack.rack import Rack
    from pytest_esp.rack.spec import BoardSpec


class SimBoard(Board):
    """A simulated chip in this process.

    Like a real board it keeps its flash from one lease to the next: in ``flash_file``, or in the rack's state folder.
    Its eFuses are virgin at every lease unless ``efuse_file`` keeps them, so that no test bricks the next one's chip.
    Its MAC address belongs to its name and stays the same.

    Attributes:
        rise_time, on_close: see `SimChip`; they take effect when it is opened.
    """

    backend: ClassVar[str] = "sim"
    virtual: ClassVar[bool] = True

    def __init__(self, spec: BoardSpec, rack: Rack) -> None:
        super().__init__(spec, rack)
        self.rise_time = 0.0
        self.on_close: OnClose = "bootloader"
        self.simulated: SimChip | None = None
        self._port: VirtualPort | None = None

    @property
    def wire(self) -> Wire | None:
        """The chip's UART, while the board is open."""
        return self.simulated.wire if self.simulated else None

    def open(self) -> Port:
        """Make the chip, start it, and return its in-process port."""
        spec = self.spec
        path = spec.flash_file or self.rack.state_dir(spec) / "flash.bin"
        try:
            app = load_app(spec.app) if spec.app else None
            self.simulated = SimChip(
                spec.chip,
                flash=NorFlash(spec.flash_size or VIRTUAL_FLASH_SIZE, path),
                efuse_file=spec.efuse_file,
                mac=spec.mac,
                revision=spec.revision,
                secure_download=spec.secure_download,
                app=app,
                rise_time=self.rise_time,
                on_close=self.on_close,
                name=identity(spec, self.rack),
            )
        except BackendError as error:
            error.board = error.board or self.name
            raise
        self._port = VirtualPort(self.simulated.wire, f"sim:{self.name}")
        self._port.open()
        self.switch_on_faults()
        self.reset(bootloader=False)  # with somebody there to hear its first words
        return self._port

    def close(self) -> None:
        """Stop the chip; its flash is written to its file."""
        port, self._port = self._port, None
        simulated, self.simulated = self.simulated, None
        if port is not None:
            port.close()
        if simulated is not None:
            simulated.close()

    def reset(self, bootloader: bool) -> bool:
        """Reset the chip at once, with no lines and no delays."""
        device = self._running().wire.device  # another chip, if that is the fault
        assert isinstance(device, SimChip)
        device.reset(bootloader)
        return True

    def power_cycle(self) -> None:
        """Take the chip's supply away and give it back."""
        simulated = self._running()
        simulated.power_off()
        simulated.reset(bootloader=False)

    def _running(self) -> SimChip:
        if self.simulated is None:
            raise BackendError("it is not open", board=self.name)
        return self.simulated
