"""The interface of a board, which every backend implements."""

from __future__ import annotations

import shlex
import subprocess
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Protocol

from pytest_esp.errors import BackendError, PortError
from pytest_esp.rack.facts import Facts, filled_in, remembered

if TYPE_CHECKING:
    from pytest_esp.boards.port import Port
    from pytest_esp.rack.rack import Rack
    from pytest_esp.rack.spec import BoardSpec
    from pytest_esp.wire.endpoints import Endpoint
    from pytest_esp.wire.wire import Wire

_POWER_TIMEOUT = 30.0


class DirectFlash(Protocol):
    """Direct access to flash contents, past the chip: `formats.nor_flash.NorFlash` on a stopped QEMU machine's file."""

    size: int

    def read(self, address: int, size: int) -> bytes:
        """Return *size* bytes from *address*."""
        ...

    def erase(self, address: int, size: int) -> None:
        """Erase the 4 KB sectors that *size* bytes from *address* touch."""
        ...

    def program(self, address: int, data: bytes) -> None:
        """Clear the bits that are 0 in *data*."""
        ...

    def md5(self, address: int, size: int) -> bytes:
        """Return the MD5 digest (16 bytes) of a region."""
        ...


class Board(ABC):
    """A board of a rack. The caller holds its lease before opening it.

    Args:
        spec: the board's entry in boards.toml.
        rack: the rack it belongs to.
    """

    backend: ClassVar[str]
    virtual: ClassVar[bool]
    """Whether the board cannot be damaged: its eFuses may be burned without consent."""

    uploads_slowly: ClassVar[bool] = False
    """Whether uploading the stub flasher takes longer than a few commands to the ROM."""

    has_baudrates: ClassVar[bool] = True
    """Whether a wrong baud rate makes output unreadable, as on a UART."""

    boot_seconds: ClassVar[float] = 0.0
    """Seconds that the ROM loader may take to respond after `reset`."""

    def __init__(self, spec: BoardSpec, rack: Rack) -> None:
        self.spec = spec
        self.rack = rack
        self.chip_changes = 0
        """How often `faults` have put another chip in place, or changed its eFuses: a connection knows another one."""

    @property
    def name(self) -> str:
        """The board's name in the rack."""
        return self.spec.name

    @property
    def chip(self) -> str:
        """The chip that boards.toml gives or a real board reported, with esptool's name; "auto" if it is unknown."""
        return filled_in(self.spec, self.facts).chip

    @cached_property
    def facts(self) -> Facts | None:
        """What a real board's chip has reported, or the one last seen on its port before it is connected."""
        return None if self.virtual else remembered(self.spec, self.rack)

    @property
    def ram_block(self) -> int | None:
        """The block size, in bytes, for uploading the stub flasher; None for esptool's default."""
        return None

    @property
    def revision(self) -> int | None:
        """The chip's revision (major * 100 + minor) if it is known without asking the chip, else None."""
        return None

    @property
    def wire(self) -> Wire | None:
        """The wire of an open virtual board; None for a real one."""
        return None

    @abstractmethod
    def open(self) -> Port:
        """Start the board if it is virtual, and return the open port.

        Raises:
            PortError: if the port cannot be opened.
            BackendError: if a virtual board cannot be started.
        """

    @abstractmethod
    def close(self) -> None:
        """Close the port and stop a virtual board. Closing twice has no effect."""

    def reopen(self, reason: str, *, wait: bool = True) -> None:
        """Open the board's port again, under whatever name it returns, after it was lost because of *reason*.

        Args:
            reason: for the message.
            wait: whether to wait for a port that has not returned yet.

        Raises:
            PortError: if it does not return. Only the ports of real boards do.
        """
        raise PortError(f"the port was lost: {reason}", board=self.name)

    def open_console(self) -> Port | None:
        """Open the port of the console, if it is another one (``console_port``); None if it is that of `open`.

        Raises:
            PortError: if the port cannot be opened.
        """
        return None

    def reset(self, bootloader: bool) -> bool:
        """Reset the chip without RTS and DTR; return False if this board needs those lines."""
        return False

    def power_cycle(self) -> None:
        """Switch the board's power off and on, with the commands of ``power`` in boards.toml.

        Raises:
            BackendError: if there are no commands, or one fails.
        """
        if self.spec.power is None:
            raise BackendError(
                "this board's power cannot be switched",
                board=self.name,
                attempted="power cycle",
                hint='add e.g. power = { off = "uhubctl -l 1-1 -p 3 -a off", on = "..." } to its entry in boards.toml',
            )
        for command in (self.spec.power.off, self.spec.power.on):
            self._run_power_command(command)

    def _run_power_command(self, command: str) -> None:
        try:
            subprocess.run(shlex.split(command), check=True, capture_output=True, timeout=_POWER_TIMEOUT, text=True)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            said = str(getattr(error, "stderr", None) or error).strip()
            raise BackendError(
                f"the command {command!r} failed: {said}", board=self.name, attempted="power cycle"
            ) from error

    def direct_flash(self) -> AbstractContextManager[DirectFlash] | None:
        """Return a context manager for direct access to the flash; None if the flash is reached by the wire only.

        The board need not be open. The chip is stopped when the context begins, and stays stopped until it is reset.
        All changes take effect at the end of the context; none if it ends with an exception.
        """
        return None

    def switch_on_faults(self) -> None:
        """Enable the faults of the board's entry. Backends call this once they have a wire.

        Raises:
            BackendError: if this backend does not support one of them.
        """
        if self.spec.faults is not None:
            from pytest_esp.boards.faults import BoardFaults

            BoardFaults(self).switch_on(self.spec.faults)

    def serve(self, url: str) -> Endpoint:
        """Serve an open virtual board at *url* (see `wire.endpoints.serve`).

        Raises:
            BackendError: if the board is not virtual, or not open.
        """
        from pytest_esp.wire.endpoints import serve

        if self.wire is None:
            raise BackendError("only a virtual board that is open can be served", board=self.name)
        return serve(self.wire, url, name=self.name)
