"""esptool's loader classes with faster I/O.

esptool formats every packet as hex for a trace, and parses responses byte by byte: on a port without latency that is
97 % of its time. The classes here inherit everything about the chips from esptool, and replace only how packets are
sent, received and checked (``ESPLoader.command``, ``read``, ``write``, ``read_flash``).
"""

from __future__ import annotations

import functools
import hashlib
import struct
import time
from typing import Any, ClassVar, cast

from esptool.loader import DEFAULT_TIMEOUT, MAX_TIMEOUT, ESPLoader
from esptool.util import FatalError, UnsupportedCommandError

from pytest_esp.formats.checksum import checksum
from pytest_esp.link.esptool_private import port_of
from pytest_esp.wire.framing import Decoder, encode

_ROM_INVALID = 0x05  # status of a command that the ROM does not support
_LONGEST_FRAME = 30.0  # seconds, at the lowest baud rates
_STRAY_ANSWERS = 100  # responses to other commands to skip: ROMs respond to a SYNC several times


class FastLoader(ESPLoader):
    """Mix-in for esptool's loader classes; must come before them in the bases."""

    longest_wait: ClassVar[float] = MAX_TIMEOUT
    WRITE_FLASH_ATTEMPTS = 1
    """Off: to retry, esptool would close and open the port and reset the chip without the session's knowledge."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._decoder = Decoder()
        self._packets: list[bytes] = []
        super().__init__(*args, **kwargs)

    def trace(self, message: str, newline: bool = False) -> None:
        """Do nothing: tracing is off."""

    def write(self, packet: bytes) -> None:
        """Send one packet."""
        port_of(self).write(encode(packet))

    def read(self) -> bytes:  # pyright: ignore[reportIncompatibleMethodOverride] - esptool has no types
        """Return the next packet.

        Raises:
            FatalError: if no packet arrived within the port's timeout; the message has other received data.
        """
        deadline, port = None, port_of(self)
        while not self._packets:
            data = port.read(port.in_waiting or 1)
            if not data:
                raise FatalError(_silence(self._decoder.leftover))
            self._packets = self._decoder.feed(data)
            if not self._packets:
                # A chip that was reset meanwhile may print other output for ever.
                now = time.monotonic()
                deadline = deadline or now + (port.timeout or MAX_TIMEOUT)
                if now > deadline + (_LONGEST_FRAME if self._decoder.is_inside else 0.0):
                    raise FatalError(_silence(self._decoder.leftover))
        return self._packets.pop(0)

    def flush_input(self) -> None:
        """Discard received data."""
        port_of(self).reset_input_buffer()
        self._decoder = Decoder()
        self._packets = []

    @staticmethod
    def checksum(data: bytes, state: int = ESPLoader.ESP_CHECKSUM_MAGIC) -> int:
        """Return the checksum of *data*."""
        return checksum(data) ^ ESPLoader.ESP_CHECKSUM_MAGIC ^ state

    def command(
        self,
        op: int | None = None,
        data: bytes = b"",
        chk: int = 0,
        wait_response: bool = True,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> tuple[int, bytes] | None:
        """Send a request, if *op* is given, and return value and data of its response (see ``ESPLoader.command``).

        Raises:
            FatalError: if there is no response in *timeout* seconds, or only responses to other commands.
            UnsupportedCommandError: if the ROM does not support the command.
        """
        port = port_of(self)
        saved = port.timeout
        wait = min(timeout, type(self).longest_wait, MAX_TIMEOUT)
        if wait != saved:
            port.timeout = wait
        try:
            if op is not None:
                self.write(struct.pack("<BBHI", 0, op, len(data), chk) + data)
            return self._response(op) if wait_response else None
        finally:
            if wait != saved:
                port.timeout = saved

    def _response(self, op: int | None) -> tuple[int, bytes]:
        for _ in range(_STRAY_ANSWERS):
            packet = self.read()
            if len(packet) < 8 or packet[0] != 1:
                continue
            answered, _, value = struct.unpack_from("<xBHI", packet)
            data = packet[8:]
            if op is None or answered == op:
                return value, data
            if len(data) >= 2 and data[0] and data[1] == _ROM_INVALID:
                self._drain()
                raise UnsupportedCommandError(self, op)
        raise FatalError("the chip responded to a different command")

    def _drain(self) -> None:
        """Read until the line is quiet: some ROMs refuse a command several times."""
        port = port_of(self)
        port.timeout = 0.02
        while port.read(port.in_waiting or 1):
            pass
        self.flush_input()

    def read_flash(self, offset: int, length: int, progress_fn: Any = None) -> bytes:
        """Return *length* bytes of flash at *offset*. The stub sends frames of 4 KB; each is acknowledged.

        Raises:
            FatalError: if bytes were lost, or the MD5 from the stub does not match.
        """
        if not self.IS_STUB:
            return self.read_flash_slow(offset, length, progress_fn)
        request = struct.pack("<IIII", offset, length, self.FLASH_SECTOR_SIZE, 64)
        self.check_command("read flash", self.ESP_CMDS["READ_FLASH"], request)
        port = port_of(self)
        saved, port.timeout = port.timeout, min(DEFAULT_TIMEOUT, type(self).longest_wait)
        try:
            return self._receive_flash(offset, length, progress_fn)
        finally:
            port.timeout = saved

    def _receive_flash(self, offset: int, length: int, progress_fn: Any) -> bytes:
        parts: list[bytes] = []
        done = 0
        while done < length:
            part = self.read()
            parts.append(part)
            done += len(part)
            if len(part) != min(self.FLASH_SECTOR_SIZE, length - done + len(part)):
                raise FatalError(f"received a frame of {len(part)} bytes: some bytes were lost")
            self.write(struct.pack("<I", done))
            if progress_fn:
                progress_fn(done, length, offset)
        data = b"".join(parts)
        if self.read() != hashlib.md5(data, usedforsecurity=False).digest():
            raise FatalError("MD5 mismatch between the received data and what the chip read")
        return data


class NoUsb:
    """Mix-in for ports without USB IDs: avoids esptool's search through the machine's ports."""

    def get_usb_vid_pid(self) -> tuple[None, None]:
        """Return no IDs."""
        return None, None


@functools.cache
def fast_class(loader: type[ESPLoader], *, usb: bool) -> type[FastLoader]:
    """Return a fast variant of *loader* (a ROM class of esptool), with a fast stub class.

    *usb* says whether the port may be a USB device, whose IDs esptool needs.
    """
    bases = (FastLoader, loader) if usb else (NoUsb, FastLoader, loader)
    attributes: dict[str, Any] = {}
    if loader.STUB_CLASS is not None:
        stub_bases = (FastStub, loader.STUB_CLASS) if usb else (NoUsb, FastStub, loader.STUB_CLASS)
        attributes["STUB_CLASS"] = type(f"Fast{loader.STUB_CLASS.__name__}", stub_bases, {})
    return cast(type[FastLoader], type(f"Fast{loader.__name__}", bases, attributes))


class FastStub(FastLoader):
    """Mix-in for esptool's stub classes, whose constructor takes over the ROM loader's port."""


def _silence(leftover: bytes) -> str:
    if not leftover.strip(b"\x00\xff"):
        return "the chip does not answer"
    said = leftover[-120:].decode("utf-8", "backslashreplace")
    return f"the chip does not answer in the loader's protocol; it said: {said!r}"
