"""A real board of a labgrid lab: the serial port of a place, which its lease has acquired, over RFC 2217 or raw."""

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
    """The board at a place. Where its port is, is asked anew whenever it is opened: exporters change it.

    If the lab takes the place away, the port is cut: two never drive one board.
    """

    backend: ClassVar[str] = "labgrid"

    _place: HeldPlace | None = None

    def resolve(self) -> str:
        """Return the URL of the place's serial port.

        Raises:
            LeaseError: if the place is not acquired, or not any more.
            PortError: if the coordinator or the exporter is away.
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
        if place.lost:  # just now
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

            cast(Any, port).open = refuse  # before it is closed: who finds it closed opens it again
            port.close()
