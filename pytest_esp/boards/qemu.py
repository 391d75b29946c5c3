"""The QEMU backend: real firmware on an emulated chip."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pytest_esp.boards.board import Board
from pytest_esp.boards.claim import claim
from pytest_esp.boards.efuse_file import EfuseFile, new_efuses
from pytest_esp.boards.port import Port
from pytest_esp.errors import BackendError, EspError
from pytest_esp.formats.boot_image import MAGIC
from pytest_esp.formats.mac import made_up_mac, parse_mac
from pytest_esp.formats.nor_flash import NorFlash
from pytest_esp.qemu.find import find
from pytest_esp.qemu.machine import OnClose, QemuMachine
from pytest_esp.qemu.machines import Machine, machine_for
from pytest_esp.rack.identity import identity
from pytest_esp.rack.spec import VIRTUAL_FLASH_SIZE
from pytest_esp.sim.model import ChipModel
from pytest_esp.units import format_size
from pytest_esp.wire.port import VirtualPort
from pytest_esp.wire.wire import Wire

if TYPE_CHECKING:
    from pytest_esp.rack.rack import Rack
    from pytest_esp.rack.spec import BoardSpec

_MEGABYTE = 1024 * 1024
FLASH_SIZES = tuple(size * _MEGABYTE for size in (2, 4, 8, 16))
"""The flash sizes that QEMU supports, in bytes; it does not start with others."""


class QemuBoard(Board):
    """A QEMU machine. A reset restarts QEMU; the port stays open.

    Like a real board, it keeps its flash between leases: in ``flash_file``, or in the rack's state folder.
    Its eFuses are new at every lease unless it has an ``efuse_file``. Their MAC address is derived from the board's
    name. It has PSRAM if its features include "psram".

    Attributes:
        rise_time, on_close: see `QemuMachine`; they take effect when the board is opened.
        on_death: called with QEMU's last output if it ends unexpectedly; users of the port get it in an exception.
        folder: the folder for files whose names are not given; None: the rack's state folder.
    """

    backend: ClassVar[str] = "qemu"
    virtual: ClassVar[bool] = True
    has_baudrates: ClassVar[bool] = False
    uploads_slowly: ClassVar[bool] = True  # some 10 KB/s through the emulated UART
    boot_seconds: ClassVar[float] = 10.0  # the ROM needs 0.1 s on an idle processor, but far longer on a busy one

    def __init__(self, spec: BoardSpec, rack: Rack) -> None:
        super().__init__(spec, rack)
        self.rise_time = 0.0
        self.on_close: OnClose = "bootloader"
        self.on_death: Callable[[str], None] = lambda words: None
        self.folder: Path | None = None
        self._qemu: QemuMachine | None = None
        self._port: VirtualPort | None = None
        self._release_files: Callable[[], None] = lambda: None

    @property
    def wire(self) -> Wire | None:
        """The machine's UART, while the board is open."""
        return self._qemu.wire if self._qemu else None

    @property
    def pid(self) -> int | None:
        """QEMU's process ID; None while it is stopped."""
        return self._qemu.pid if self._qemu else None

    @property
    def mac(self) -> str:
        """The base MAC address in its eFuses, e.g. ``7c:df:a1:00:00:01``."""
        return self._efuses().mac.hex(":")

    @property
    def flash_file(self) -> Path:
        """The path of its flash image."""
        size = format_size(self.flash_size).replace(" ", "")
        return self.spec.flash_file or self._folder / f"flash-{size}.bin"

    @property
    def flash_size(self) -> int:
        """The flash size in bytes."""
        return self.spec.flash_size or VIRTUAL_FLASH_SIZE

    @property
    def has_image(self) -> bool:
        """Whether the flash contains an image at the bootloader's address."""
        with self.flash_file.open("rb") as file:
            file.seek(ChipModel(self.chip).rom.BOOTLOADER_FLASH_OFFSET)
            return file.read(1) == bytes([MAGIC])

    @property
    def _folder(self) -> Path:
        return self.folder or self.rack.state_dir(self.spec)

    @property
    def _new_mac(self) -> bytes:
        return parse_mac(self.spec.mac) if self.spec.mac else made_up_mac(identity(self.spec, self.rack))

    # -- running

    def open(self) -> Port:
        """Start the machine from its flash, and return its in-process port."""
        port = self.open_stopped()
        try:
            self.reset(bootloader=False)
        except BaseException:
            self.close()
            raise
        return port

    def open_stopped(self) -> Port:
        """Prepare the machine, and return its in-process port; `reset` starts it.

        Raises:
            BackendError: if QEMU with such a machine is not installed, or a file cannot be used.
        """
        try:
            machine = machine_for(self.chip)
            self._release_files = claim(self.spec, self.rack)
            self._qemu = self._make(machine)
        except EspError as error:
            self.close()
            error.board = error.board or self.name
            raise
        self._port = VirtualPort(self._qemu.wire, f"qemu:{self.name}")
        self._port.open()
        self.switch_on_faults()
        return self._port

    def _make(self, machine: Machine) -> QemuMachine:
        program = find(machine.architecture, machine.name)
        self._check_flash_size()
        folder = self._folder
        NorFlash(self.flash_size, self.flash_file).close()  # creates a blank image if it is missing
        return QemuMachine(
            program,
            machine,
            flash=self.flash_file,
            efuse=self._prepare_efuses(machine),
            log=folder / "qemu.log",
            psram="psram" in self.spec.features,
            rise_time=self.rise_time,
            on_close=self.on_close,
            on_death=self._died,
        )

    def _check_flash_size(self) -> None:
        if self.flash_size not in FLASH_SIZES:
            raise BackendError(
                f"QEMU does not support a flash size of {format_size(self.flash_size)}",
                hint=f"set flash_size in boards.toml to one of {', '.join(map(format_size, FLASH_SIZES))}",
            )

    @property
    def _efuse_path(self) -> Path:
        return self.spec.efuse_file or self._folder / "efuse.bin"

    def _prepare_efuses(self, machine: Machine) -> Path:
        path = self._efuse_path
        if self.spec.efuse_file is not None and path.exists():
            return self._checked(machine, path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(new_efuses(machine, self._new_mac, self.spec.revision))
        except OSError as error:
            raise BackendError(f"cannot write the eFuse file {path}: {error.strerror}") from error
        return path

    @staticmethod
    def _checked(machine: Machine, kept: Path) -> Path:
        if kept.stat().st_size != machine.efuse_size:
            raise BackendError(
                f"the eFuse file {kept} has {kept.stat().st_size} bytes, not the {machine.efuse_size} of QEMU's "
                f"{machine.name}",
                hint="use another file; this one is from another chip, or from a simulated one",
            )
        return kept

    def _died(self, words: str) -> None:
        port = self._port
        if port is not None:
            port.lose(words)
        self.on_death(words)

    def close(self) -> None:
        """Stop the machine. Its flash stays in its file."""
        port, self._port = self._port, None
        qemu, self._qemu = self._qemu, None
        if port is not None:
            port.close()
        if qemu is not None:
            qemu.stop()
        self._release_files()

    def reset(self, bootloader: bool) -> bool:
        """Restart the machine with the strapping for the loader or the app."""
        try:
            self._running().reset(bootloader)
        except BackendError as error:
            error.board = error.board or self.name
            raise
        return True

    def power_cycle(self) -> None:
        """Restart the machine."""
        self.reset(bootloader=False)

    def _running(self) -> QemuMachine:
        if self._qemu is None:
            raise BackendError("the board is not open", board=self.name)
        return self._qemu

    # -- its flash

    @property
    def ram_block(self) -> int | None:
        """The block size, in bytes, small enough that QEMU's UART loses no data when the ROM reads too slowly.

        On the ESP32, a block must fit into the FIFO of 128 bytes; on the ESP32-S3, packets of 1200 bytes were lost.
        """
        return {"esp32": 64, "esp32s3": 256}.get(self.chip)

    @property
    def revision(self) -> int:
        """The chip revision in its eFuses."""
        return self._efuses().revision

    def direct_flash(self) -> AbstractContextManager[NorFlash] | None:
        """Return access to the flash image; None if eFuses protect the flash, which only the chip itself enforces.

        Entering the context stops the machine.

        Raises:
            BackendError: if a file cannot be used.
        """
        return None if self._efuses().guards_flash else self._stopped_flash()

    @contextlib.contextmanager
    def _stopped_flash(self) -> Generator[NorFlash]:
        if self._qemu is not None:
            self._qemu.stop()
        self._check_flash_size()
        flash = NorFlash(self.flash_size, self.flash_file, private=True)
        try:
            yield flash
            if flash.bytes_programmed or flash.sectors_erased:
                flash.save()
        finally:
            flash.close()

    def _efuses(self) -> EfuseFile:
        """Return the eFuses that the machine has, or would have if it were open."""
        machine = machine_for(self.chip)
        if self._qemu is not None:
            return EfuseFile(machine, self._efuse_path.read_bytes())
        kept = self.spec.efuse_file
        if kept is not None and kept.exists():
            return EfuseFile(machine, self._checked(machine, kept).read_bytes())
        return EfuseFile(machine, new_efuses(machine, self._new_mac, self.spec.revision))
