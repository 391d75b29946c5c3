"""The serial port of a board: resets, and what esptool does."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_esp.formats.firmware import Firmware
from pytest_esp.operations.esp import Esp
from pytest_esp.plugin.firmware import install

if TYPE_CHECKING:
    from pytest_esp.embedded.app import App
    from pytest_esp.link.link import Link

_READ_TIMEOUT = 0.05  # seconds


class Serial:
    """The port of one board. After each operation on the flash, the app starts again.

    Args:
        link: to the board.
        app: the test's app.
    """

    def __init__(self, link: Link, app: App) -> None:
        self._link = link
        self._esp = Esp(link)
        self.app = app
        self._is_stopped = False

    @property
    def port(self) -> str:
        """The port of a real board; the name of a virtual one."""
        return self._link.board.spec.port or self._link.board.name

    @property
    def proc(self) -> Any:
        """The open port, with pyserial's methods. Call `stop_redirect_thread` before reading from it."""
        if self._is_stopped:
            self._link.port.timeout = _READ_TIMEOUT
        return self._link.port

    def write(self, data: bytes) -> None:
        """Send *data* to the app."""
        if self._is_stopped:
            self._link.port.write(data)
        else:
            self._link.console.write(data)

    @property
    def baud(self) -> int:
        """The console's baud rate."""
        return self._link.console_baudrate

    def hard_reset(self) -> None:
        """Reset the chip, which starts its app."""
        self._link.reset(bootloader=False)

    def flash(self, app: App | None = None) -> None:
        """Write the build of an app, the test's by default."""
        firmware: Firmware = (app or self.app).firmware
        install(self._link, firmware, "always")
        self.hard_reset()

    def erase_flash(self, force: bool = False) -> None:
        """Erase the whole flash."""
        self._esp.flash.erase("all", force=force)
        self.hard_reset()

    def erase_partition(self, partition_name: str, force: bool = False) -> None:
        """Erase a partition of the test's app.

        Raises:
            ValueError: if it has none of that name.
        """
        entry = self._partition(partition_name)
        self._esp.flash.erase(entry["offset"], entry["size"], force=force)
        self.hard_reset()

    def _partition(self, name: str) -> dict[str, Any]:
        if name not in self.app.partition_table:
            raise ValueError(f"the app's partition table has no partition {name!r}")
        return self.app.partition_table[name]

    def dump_flash(
        self,
        partition: str | None = None,
        address: str | int | None = None,
        size: str | int | None = None,
        output: Any = None,
    ) -> bytes | None:
        """Read a partition, or *size* bytes from an address, and return them, or write them to a path or file.

        Raises:
            ValueError: if neither is given.
        """
        if partition:
            entry = self._partition(partition)
            address, size = entry["offset"], entry["size"]
        if address is None or size is None:
            raise ValueError("dump_flash needs a partition, or an address and a size")
        data = self._esp.flash.read(int(str(address), 0), int(str(size), 0)).data
        self.hard_reset()
        if output is None:
            return data
        output.write(data) if hasattr(output, "write") else Path(output).write_bytes(data)
        return None

    def stop_redirect_thread(self) -> bool:
        """Stop reading into the console, so that the test can read from `proc`."""
        self._link.console.detach()
        self._is_stopped = True
        return True

    def start_redirect_thread(self) -> None:
        """Read into the console again."""
        self._is_stopped = False
        self._link.console.attach()

    @contextlib.contextmanager
    def disable_redirect_thread(self, kill_port: bool = False) -> Generator[bool]:
        """Stop reading into the console meanwhile; with *kill_port*, close the port."""
        self.stop_redirect_thread()
        if kill_port:
            self._link.close()
        yield True
        self.start_redirect_thread()

    def close(self) -> None:
        """Close the port; the next use opens it again."""
        self._link.close()


EspSerial = IdfSerial = LinuxSerial = Serial
"""pytest-embedded has a class per service; here they are one."""
