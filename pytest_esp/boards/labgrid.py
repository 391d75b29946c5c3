"""A real board in a labgrid lab: the serial port of an acquired place, over RFC 2217 or a raw socket."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, cast

import serial

from pytest_esp.boards.serial import SerialBoard
from pytest_esp.errors import EspError, LeaseError
from pytest_esp.rack.labgrid import held_place
from pytest_esp.wire import rfc2217

if TYPE_CHECKING:
    from pytest_esp.boards.port import Port
    from pytest_esp.rack.labgrid import HeldPlace


class LabgridBoard(SerialBoard):
    """The board at a place. The port's address is looked up at every opening, as exporters change it.

    If the place is lost, the port is disconnected, so that two programs never use one board.
    """

    backend: ClassVar[str] = "labgrid"

    _place: HeldPlace | None = None

    def resolve(self) -> str:
        """Return the URL of the place's serial port.

        Raises:
            LeaseError: if the place is not acquired, or was lost.
            PortError: if the coordinator or the exporter is unreachable.
        """
        try:
            return held_place(self.spec, self.rack).url()
        except EspError as error:
            error.board = self.name
            raise

    def open(self) -> Port:
        """Open the place's port."""
        port = super().open()
        place = self._place = held_place(self.spec, self.rack)
        place.on_loss = self._cut
        if place.lost:  # while the port was opened
            self.close()
            raise LeaseError(place.lost, board=self.name, attempted="opening the port")
        return port

    def close(self) -> None:
        """Close the port."""
        place, self._place = self._place, None
        if place is not None:
            place.on_loss = None
        super().close()

    def _cut(self, why: str) -> None:
        port = self._port
        if isinstance(port, rfc2217.Serial):
            port.lose(why)
        elif port is not None:

            def refuse() -> None:
                raise serial.SerialException(why)

            cast(Any, port).open = refuse  # before closing it: users of a closed port open it again
            port.close()
