"""A simulated SPI NOR flash chip: its contents, and its responses on the SPI bus."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import mmap
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

from pytest_esp.errors import BackendError
from pytest_esp.units import format_size

SECTOR = 0x1000
BLOCK = 0x10000
MANUFACTURER = 0xC8  # GigaDevice, whose GD25Q family is used in many modules
_KIND = 0x40  # memory type byte of the GD25Q family
_SMALLEST, _LARGEST = 256 * 1024, 128 * 1024 * 1024

# Dwords 1 and 3 to 9 of the basic table: 4 KB erase by 0x20, 3-byte addresses, 32 and 64 KB erase by 0x52 and 0xD8,
# and the fast reads of the GD25Q family.
_SFDP_TABLE = (0xFFF120E5, 0x6B08EB44, 0xBB423B08, 0xFFFFFFFE, 0xFFFF, 0xEB21FFFF, 0x520F200C, 0xFF00D810)

_WREN, _WRDI, _WEVSR = 0x06, 0x04, 0x50


class NorFlash:
    """A NOR flash of *size* bytes: programming only clears bits, erasing sets them.

    Args:
        size: in bytes, a power of two from 256 KB to 128 MB.
        path: the file with the contents; a blank one (0xFF) is created if it is missing. Without a file the contents
            are in memory, and only written pages use any.
        private: keep changes in memory and do not modify the file until `save`.

    Attributes:
        stuck: cells that cannot be erased, for tests: address -> mask of bits that stay 0.
        bytes_programmed, sectors_erased: the amount written since this object was created.

    Raises:
        BackendError: for an invalid size, or a file that cannot be used or has another size.
    """

    def __init__(self, size: int, path: Path | None = None, *, private: bool = False) -> None:
        if not _SMALLEST <= size <= _LARGEST or size & (size - 1):
            raise BackendError(
                f"invalid flash size: {size} bytes",
                hint="use a power of two from 256KB to 128MB, e.g. 4MB",
            )
        self.size = size
        self.path = path
        self.status = bytearray(3)
        self.stuck: dict[int, int] = {}
        self.bytes_programmed = 0
        self.sectors_erased = 0
        self._write_enabled = False
        self._private = private
        self._bytes: bytearray | mmap.mmap = _map(path, size, private) if path else _blank_memory(size)

    @classmethod
    def open(cls, path: Path, size: int | None = None) -> NorFlash:
        """Return the flash in the file *path*. If *size* is None, use the file's size, or 4 MB for a new file."""
        if size is None:
            size = path.stat().st_size if path.exists() and path.stat().st_size else 4 * 1024 * 1024
        return cls(size, path)

    # -- contents

    def read(self, address: int, size: int) -> bytes:
        """Return *size* bytes from *address*. Addresses wrap at the end, as in a real chip."""
        address %= self.size
        data = bytes(self._bytes[address : address + size])
        while len(data) < size:
            data += self._bytes[: size - len(data)]
        return data

    def program(self, address: int, data: bytes) -> None:
        """Write *data*: its 0 bits are cleared in flash, the other bits do not change."""
        address %= self.size
        room = self.size - address
        if len(data) > room:
            self.program(0, data[room:])
            data = data[:room]
        old = self._bytes[address : address + len(data)]
        both = int.from_bytes(old, "little") & int.from_bytes(data, "little")
        self._bytes[address : address + len(data)] = both.to_bytes(len(data), "little")
        self.bytes_programmed += len(data)
        self._apply_stuck_bits(address, len(data))

    def erase(self, address: int, size: int) -> None:
        """Set all bits of the sectors (4 KB) that *size* bytes from *address* touch."""
        start = address % self.size & ~(SECTOR - 1)
        end = min(-(-(address % self.size + size) // SECTOR) * SECTOR, self.size)
        if end - start == self.size and self.path is None:
            self._bytes = _blank_memory(self.size)
        else:
            self._bytes[start:end] = b"\xff" * (end - start)
        self.sectors_erased += (end - start) // SECTOR
        self._apply_stuck_bits(start, end - start)

    def md5(self, address: int, size: int) -> bytes:
        """Return the MD5 digest (16 bytes) of a region."""
        if address + size <= self.size:
            with memoryview(self._bytes) as view, view[address : address + size] as region:
                return hashlib.md5(region, usedforsecurity=False).digest()
        return hashlib.md5(self.read(address, size), usedforsecurity=False).digest()

    def flip(self, address: int, mask: int = 1) -> None:
        """Invert the bits of *mask* at *address*, as in a worn cell, for tests."""
        self._bytes[address] ^= mask

    def save(self) -> None:
        """Replace the file by the contents of this private flash, atomically, and close the flash.

        Raises:
            BackendError: if the file cannot be written; it is then unchanged.
        """
        assert self.path is not None
        file = self.path.resolve()  # do not replace a link
        part = _part_of(file)
        try:
            with part.open("wb") as copy:
                copy.write(self._bytes)
            shutil.copymode(file, part)
            self.close()  # Windows cannot replace a mapped file
            part.replace(file)
        except OSError as error:
            with contextlib.suppress(OSError):
                part.unlink()
            raise BackendError(
                f"the flash image {file} cannot be written: {error.strerror}", hint="check the free disk space"
            ) from error

    def close(self) -> None:
        """Close the flash; write all changes to its file unless it is private."""
        if self.path is not None and isinstance(self._bytes, mmap.mmap) and not self._bytes.closed:
            if not self._private:
                self._bytes.flush()
            self._bytes.close()

    def _apply_stuck_bits(self, address: int, size: int) -> None:
        """Clear the bits of `stuck` in a region."""
        for stuck, mask in self.stuck.items():
            if address <= stuck < address + size:
                self._bytes[stuck] &= ~mask & 0xFF

    # -- the SPI bus

    @property
    def jedec_id(self) -> bytes:
        """The three bytes of RDID (0x9F): manufacturer, type, and the size as esptool's table reads it."""
        capacity = self.size.bit_length() - 1
        # esptool.cmds.DETECTED_FLASH_SIZES: from 64 MB on the code jumps to 0x20.
        return bytes([MANUFACTURER, _KIND, capacity if capacity < 26 else capacity - 26 + 0x20])

    def command(self, opcode: int, address: int, data: bytes, read_size: int) -> bytes:
        """Run an SPI command (JEDEC opcodes) and return *read_size* bytes of the chip's response."""
        answer = self._answer(opcode, address, read_size)
        if answer is None:
            self._write_command(opcode, address, data)
            answer = b""
        return answer[:read_size].ljust(read_size, b"\xff")

    def _answer(self, opcode: int, address: int, read_size: int) -> bytes | None:
        """Return the response to a read command; None for other commands."""
        answers: dict[int, Callable[[], bytes]] = {
            0x9F: lambda: self.jedec_id,
            0x5A: lambda: self.sfdp()[address : address + read_size],
            0x05: lambda: bytes([self.status[0] | (2 if self._write_enabled else 0)]),
            0x35: lambda: bytes(self.status[1:2]),
            0x15: lambda: bytes(self.status[2:3]),
            0x4B: self._unique_id,  # after four dummy bytes
            0xAB: self._signature,
            0x90: self._signature,
            0x03: lambda: self.read(address, read_size),
            0x0B: lambda: self.read(address, read_size),
        }
        answer = answers.get(opcode)
        return answer() if answer else None

    def _unique_id(self) -> bytes:
        return hashlib.md5(str(self.path).encode(), usedforsecurity=False).digest()[:8]

    def _signature(self) -> bytes:
        return bytes([self.jedec_id[2] - 1])

    def _write_command(self, opcode: int, address: int, data: bytes) -> None:
        if opcode in (_WREN, _WEVSR):
            self._write_enabled = True
            return
        if opcode == _WRDI:
            self._write_enabled = False
            return
        if not self._write_enabled:
            return
        self._write_enabled = False
        match opcode:
            case 0x01:
                self.status[: len(data[:2])] = data[:2]
            case 0x31:
                self.status[1:2] = data[:1]
            case 0x11:
                self.status[2:3] = data[:1]
            case 0x02:
                self.program(address, data)
            case 0x20:
                self.erase(address, SECTOR)
            case 0x52:
                self.erase(address & ~0x7FFF, 0x8000)
            case 0xD8:
                self.erase(address & ~(BLOCK - 1), BLOCK)
            case 0xC7 | 0x60:
                self.erase(0, self.size)
            case _:
                pass

    def sfdp(self) -> bytes:
        """Return the Serial Flash Discoverable Parameters (JESD216): a header, and the basic table at 0x30."""
        header = b"SFDP" + bytes([0x06, 0x01, 0x00, 0xFF])
        parameter = bytes([0x00, 0x06, 0x01, 0x10, 0x30, 0x00, 0x00, 0xFF])
        bits = self.size * 8
        density = bits - 1 if bits <= 1 << 31 else 0x80000000 | (bits.bit_length() - 1)
        table = struct.pack("<9I", _SFDP_TABLE[0], density, *_SFDP_TABLE[1:])
        return (header + parameter).ljust(0x30, b"\xff") + table.ljust(64, b"\x00")


def _blank_memory(size: int) -> bytearray | mmap.mmap:
    """Return *size* bytes of 0xFF; on Linux as a copy-on-write mapping of pages that all blank flashes share."""
    descriptor = _shared_blank(size)
    if descriptor is None:
        return bytearray(b"\xff") * size
    return mmap.mmap(descriptor, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)


@functools.cache
def _shared_blank(size: int) -> int | None:
    if not hasattr(os, "memfd_create"):
        return None
    descriptor = os.memfd_create("blank-flash", os.MFD_CLOEXEC)
    for offset in range(0, size, BLOCK):
        os.pwrite(descriptor, b"\xff" * BLOCK, offset)
    return descriptor


def _map(path: Path, size: int, private: bool) -> mmap.mmap:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.stat().st_size == 0:
            _create_blank(path, size)
        with path.open("r+b") as file:
            found = os.fstat(file.fileno()).st_size
            if found != size:
                raise BackendError(
                    f"the flash image {path} has {found} bytes, not {size} ({format_size(size)})",
                    hint="use the flash size that it was created with, or another file",
                )
            if not private:
                _reserve(file.fileno(), size)
            return mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY if private else mmap.ACCESS_WRITE)
    except OSError as error:
        raise BackendError(
            f"the flash image {path} cannot be used: {error.strerror}",
            hint="it must be a writable file in an existing folder, with enough free disk space",
        ) from error


def _reserve(descriptor: int, size: int) -> None:
    """Allocate all blocks of a file that has holes: a write to a mapped hole on a full disk kills the process (SIGBUS).

    Raises:
        OSError: if the disk is full.
    """
    allocated = getattr(os.fstat(descriptor), "st_blocks", None)
    if allocated is None or allocated * 512 >= size or not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # what a file system that cannot reserve answers
            raise


def _create_blank(path: Path, size: int) -> None:
    """Create a temporary file and rename it, so that *path* is never an incomplete image."""
    part = _part_of(path)
    try:
        with part.open("wb") as file:
            for _ in range(0, size, 1 << 18):
                file.write(b"\xff" * min(size, 1 << 18))
        part.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise


def _part_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.{os.getpid()}.part")
