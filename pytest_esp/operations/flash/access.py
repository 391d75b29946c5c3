"""The two ways to a board's flash: esptool on the wire, and a stopped QEMU machine's flash file."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Generator
from typing import Any, Literal, Protocol

from esptool import cmds

from pytest_esp.boards.board import DirectFlash
from pytest_esp.errors import EspError, OperationError
from pytest_esp.link.facts import flash_size_of
from pytest_esp.link.link import Link
from pytest_esp.link.logs import Progress
from pytest_esp.units import format_size

Over = Literal["auto", "wire"]
"""How the flash is reached: *auto* uses the flash file of a QEMU machine, and the wire on every other board."""

ADDRESS_SPACE = 1 << 32
_WORD = 4


class FlashAccess(Protocol):
    """A flash that can be accessed. Sizes and addresses are in bytes.

    Attributes:
        chip: as esptool names it.
        revision: of the chip, major * 100 + minor; None if it does not report it.
        size: by the flash id; otherwise flash_size of boards.toml; otherwise all that can be addressed.
        has_md5: whether `md5` works: not with an ESP8266's ROM or in secure download mode.
        is_atomic: whether a failed operation leaves the flash unchanged.
    """

    @property
    def chip(self) -> str: ...  # noqa: D102
    @property
    def revision(self) -> int | None: ...  # noqa: D102
    @property
    def size(self) -> int: ...  # noqa: D102
    @property
    def has_md5(self) -> bool: ...  # noqa: D102
    @property
    def is_atomic(self) -> bool: ...  # noqa: D102

    def read(self, address: int, size: int, progress: Progress | None = None) -> bytes:
        """Return *size* bytes."""
        ...

    def md5(self, address: int, size: int) -> str:
        """Return the MD5 of a region, 32 hex digits."""
        ...

    def write(self, address: int, data: bytes, *, force: bool) -> None:
        """Erase the sectors that *data* touches, write it, and verify it if `has_md5`."""
        ...

    def erase(self, address: int, size: int, *, force: bool) -> None:
        """Erase whole sectors."""
        ...

    def erase_all(self, *, force: bool) -> None:
        """Erase everything."""
        ...


@contextlib.contextmanager
def reach(link: Link, over: Over, attempted: str, progress: Progress | None = None) -> Generator[FlashAccess]:
    """Yield the flash of the link's board.

    Args:
        link: the board's link; if the flash file is used, its port is not opened and the chip is stopped.
        over: see `Over`.
        attempted: what the caller is doing, for messages.
        progress: of esptool's own work on the wire; see `logs.Progress`.

    Raises:
        LinkError, PortError, OperationError: see `Session.use`. BackendError: if a flash file cannot be used.
    """
    direct = link.direct_flash() if over == "auto" else None
    if direct is None:
        with link.session.use(attempted, flash=True, progress=progress) as esp:
            yield _Wire(link, esp)
        return
    try:
        with direct as flash:
            yield _File(link, flash)
    except EspError as error:
        error.attempted = error.attempted or attempted
        raise


def check_inside(access: FlashAccess, address: int, size: int) -> None:
    """Check that a region lies inside the flash.

    Raises:
        OperationError: if it ends beyond the flash.
    """
    available = access.size
    if address + size > available:
        raise OperationError(
            f"{address:#x} to {address + size:#x} is beyond the flash of {format_size(available)}",
            hint=f"use addresses up to {available - 1:#x}",
        )


class _Wire:
    """The flash of a chip, accessed by esptool's loader *esp*."""

    is_atomic = False

    def __init__(self, link: Link, esp: Any) -> None:
        self._link = link
        self._esp = esp

    @property
    def chip(self) -> str:
        return self._link.session.chip

    @property
    def revision(self) -> int | None:
        return None if self._esp.secure_download_mode or self.chip == "esp8266" else self._esp.get_chip_revision()

    @property
    def size(self) -> int:
        known = None if self._esp.secure_download_mode else flash_size_of(int(self._esp.flash_id()))
        return known or self._link.board.spec.flash_size or ADDRESS_SPACE

    @property
    def has_md5(self) -> bool:
        return bool(self._esp.IS_STUB or not (self._esp.secure_download_mode or self.chip == "esp8266"))

    def read(self, address: int, size: int, progress: Progress | None = None) -> bytes:
        return bytes(self._esp.read_flash(address, size, _ticker(progress))) if size else b""

    def md5(self, address: int, size: int) -> str:
        return str(self._esp.flash_md5sum(address, size))

    def write(self, address: int, data: bytes, *, force: bool) -> None:
        # esptool writes whole words, counted from the first byte: at the end of the flash they would lie beyond it.
        # Erased flash is 0xFF, so that padding with 0xFF changes nothing.
        odd = address % _WORD
        cmds.write_flash(self._esp, [(address - odd, b"\xff" * odd + data)], force=force)

    def erase(self, address: int, size: int, *, force: bool) -> None:
        cmds.erase_region(self._esp, address, size, force=force)

    def erase_all(self, *, force: bool) -> None:
        if self._esp.IS_STUB:
            cmds.erase_flash(self._esp, force=force)
        elif (size := self.size) < ADDRESS_SPACE:
            cmds.erase_region(self._esp, 0, size, force=force)
        else:
            raise OperationError(
                "the size of the flash is unknown",
                hint="set flash_size in boards.toml, or erase by address and size",
            )


def _ticker(progress: Progress | None) -> Callable[[int, int, int], None] | None:
    """Return *progress* in the form that ``ESPLoader.read_flash`` calls, which also passes the offset."""
    if progress is None:
        return None

    def tick(done: int, total: int, _offset: int) -> None:
        progress(done, total)

    return tick


class _File:
    """The flash of a stopped machine. No safety checks: if eFuses guard flash, the wire is used."""

    is_atomic = True
    has_md5 = True

    def __init__(self, link: Link, flash: DirectFlash) -> None:
        self._link = link
        self._flash = flash

    @property
    def chip(self) -> str:
        return self._link.board.chip

    @property
    def revision(self) -> int | None:
        return self._link.board.revision

    @property
    def size(self) -> int:
        return self._flash.size

    def read(self, address: int, size: int, progress: Progress | None = None) -> bytes:
        data = self._flash.read(address, size)
        if progress is not None and size:
            progress(size, size)
        return data

    def md5(self, address: int, size: int) -> str:
        return self._flash.md5(address, size).hex()

    def write(self, address: int, data: bytes, *, force: bool) -> None:
        self._flash.erase(address, len(data))
        self._flash.program(address, data)
        if self.md5(address, len(data)) != hashlib.md5(data, usedforsecurity=False).hexdigest():
            raise OperationError(f"verification failed: {len(data)} bytes at {address:#x} differ from what was written")

    def erase(self, address: int, size: int, *, force: bool) -> None:
        self._flash.erase(address, size)

    def erase_all(self, *, force: bool) -> None:
        self._flash.erase(0, self.size)
