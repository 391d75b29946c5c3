"""One board under test: the interface that every backend fulfils."""

from __future__ import annotations

import shlex
import subprocess
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, ClassVar, Protocol

from pytest_esp.errors import BackendError

if TYPE_CHECKING:
    from pytest_esp.boards.port import Port
    from pytest_esp.rack.rack import Rack
    from pytest_esp.rack.spec import BoardSpec
    from pytest_esp.wire.endpoints import Endpoint
    from pytest_esp.wire.wire import Wire

_POWER_TIMEOUT = 30.0


class DirectFlash(Protocol):
    """A flash without a chip in between: `formats.nor_flash.NorFlash`, over the file of a stopped QEMU machine."""

    size: int

    def read(self, address: int, size: int) -> bytes:
        """Return *size* bytes from *address*."""
        ...

    def erase(self, address: int, size: int) -> None:
        """Set all bits of the sectors (4 KB) that *size* bytes from *address* touch."""
        ...

    def program(self, address: int, data: bytes) -> None:
        """Clear the bits that are 0 in *data*."""
        ...

    def md5(self, address: int, size: int) -> bytes:
        """Return the MD5 digest (16 bytes) of a region."""
        ...


class Board(ABC):
    """A board of a rack. Whoever opens it holds its lease.

    Args:
        spec: its entry in boards.toml.
        rack: the rack it belongs to.
    """

    backend: ClassVar[str]
    virtual: ClassVar[bool]
    """True where nothing can be broken: eFuses may be burnt without asking."""

    uploads_slowly: ClassVar[bool] = False
    """Whether sending it the stub flasher takes longer than a few questions to its ROM."""

    boot_seconds: ClassVar[float] = 0.0
    """How long its ROM's loader may take to answer after `reset`."""

    def __init__(self, spec: BoardSpec, rack: Rack) -> None:
        self.spec = spec
        self.rack = rack

    @property
    def name(self) -> str:
        """The board's name in the rack."""
        return self.spec.name

    @property
    def chip(self) -> str:
        """The chip that boards.toml promises, as esptool names it."""
        return self.spec.chip

    @property
    def ram_block(self) -> int | None:
        """How many bytes of a stub flasher its ROM's loader takes at once; None for as many as esptool sends."""
        return None

    @property
    def revision(self) -> int | None:
        """The chip's revision (major * 100 + minor) where it is known without the chip's help; else None."""
        return None

    @property
    def wire(self) -> Wire | None:
        """The wire of an open virtual board; None for a real one."""
        return None

    @abstractmethod
    def open(self) -> Port:
        """Start what must be started and return the open port.

        Raises:
            PortError: if the port cannot be opened.
            BackendError: if a virtual board cannot be started.
        """

    @abstractmethod
    def close(self) -> None:
        """Close the port and stop what was started. Closing twice is harmless."""

    def reset(self, bootloader: bool) -> bool:
        """Reset the chip without its port's lines; False if this board is reset by RTS and DTR."""
        return False

    def power_cycle(self) -> None:
        """Take the board's power away and give it back, by the commands of ``power`` in boards.toml.

        Raises:
            BackendError: if there are none, or one fails.
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
        """Return the board's flash itself, for as long as the context lasts; None where only the wire leads to it.

        The board need not be open. The chip is stopped when the context begins, and stays stopped until it is reset.
        What was changed takes effect at the end of the context, all or nothing; nothing if it ends by an error.
        """
        return None

    def switch_on_faults(self) -> None:
        """Switch on the faults of the board's entry; for backends, once their wire is there.

        Raises:
            BackendError: if there is one that this backend cannot have.
        """
        if self.spec.faults is not None:
            from pytest_esp.boards.faults import BoardFaults

            BoardFaults(self).switch_on(self.spec.faults)

    def serve(self, url: str) -> Endpoint:
        """Serve an open virtual board at *url* as well (see `wire.endpoints.serve`).

        Raises:
            BackendError: if the board is not virtual, or not open.
        """
        from pytest_esp.wire.endpoints import serve

        if self.wire is None:
            raise BackendError("only a virtual board that is open can be served", board=self.name)
        return serve(self.wire, url, name=self.name)
