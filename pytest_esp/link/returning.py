"""Opens a real board's port again after it vanished: a chip's own USB is gone for a moment at some resets."""

from __future__ import annotations

import threading

from pytest_esp.boards.board import Board
from pytest_esp.boards.port import Port
from pytest_esp.errors import PortError


class ReturningPort:
    """Keeps *port* of *board* open. Usable from any thread: the console's, and one that connects to the loader.

    Attributes:
        returns: the number of times that the port vanished and returned.
    """

    def __init__(self, board: Board, port: Port) -> None:
        self.returns = 0
        self._board = board
        self._port = port
        self._loss: str | None = None
        self._failure: PortError | None = None
        self._lock = threading.Lock()

    def note_loss(self, reason: str) -> None:
        """Note that the port failed, which pyserial does not show: the next `ensure_open` opens it again."""
        self._loss = self._loss or reason

    def ensure_open(self) -> None:
        """Open the port if it is closed, or was lost. A lost port is awaited once for `Board.reopen`'s time.

        Raises:
            PortError: if the port does not return.
            SerialException: if a virtual board's port cannot be opened.
        """
        with self._lock:
            if self._loss is None and not self._port.is_open:
                try:
                    self._port.open()  # esptool has closed it after a connection that failed
                except OSError as error:
                    if self._board.virtual:
                        raise
                    self._loss = str(error)
            if self._loss is not None:
                self._reopen(self._loss)
                self._loss = self._failure = None
                self.returns += 1

    def _reopen(self, reason: str) -> None:
        try:
            self._board.reopen(reason, wait=self._failure is None)
        except PortError as error:
            self._failure = self._failure or error
            raise self._failure from None

    def recover(self, reason: str) -> None:
        """Open the port again, which was lost because of *reason*.

        Raises:
            PortError: if it does not return.
        """
        self.note_loss(reason)
        self.ensure_open()
