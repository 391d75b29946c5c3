"""The two programs that speak the serial protocol: the ROM's loader and the stub flasher.

Source: esptool's serial protocol documentation and ``esptool.loader``; FACTS of the project for what they leave out.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from pytest_esp.sim import crypt
from pytest_esp.wire.framing import Decoder, checksum, encode

if TYPE_CHECKING:
    from pytest_esp.sim.chip import SimChip

Handler = Callable[..., bytes]

# Status codes. The ROM's are in esptool.util.FatalError.WithResult, the stub's in the protocol documentation.
ROM_INVALID, ROM_FAILED, ROM_BAD_CHECKSUM, ROM_INFLATE = 0x05, 0x06, 0x07, 0x0B
STUB_BAD_LENGTH, STUB_BAD_CHECKSUM, STUB_BAD_BLOCK_SIZE, STUB_SPI_FAILED = 0xC0, 0xC1, 0xC2, 0xC4
STUB_NOT_BEGUN, STUB_INFLATE, STUB_TOO_LITTLE, STUB_TOO_MUCH = 0xC6, 0xC7, 0xC8, 0xC9
STUB_NOT_IMPLEMENTED = 0xFF

_SECTOR = 0x1000
_LARGEST_READ = 128 * 1024 * 1024  # the largest flash there is


class CommandError(Exception):
    """A command fails with this status code."""

    def __init__(self, code: int) -> None:
        super().__init__(f"status {code:#04x}")
        self.code = code


class FlashWriter:
    """Takes the blocks of one flash download, plain or compressed, and puts them into flash in order.

    Args:
        size: bytes of flash that the download covers.
        block_size: bytes of a plain block; the last one is padded to it.
        erasing: erase each sector just before its first byte is written (the stub's way), and write no byte past
            *size*. The ROM erased before, and takes what comes.
    """

    def __init__(
        self,
        chip: SimChip,
        address: int,
        size: int,
        block_size: int,
        *,
        compressed: bool,
        encrypted: bool,
        erasing: bool,
    ) -> None:
        self._chip = chip
        self._start = self._address = address
        self._end = address + size
        self._block_size = block_size
        self._inflate = zlib.decompressobj() if compressed else None
        self.encrypted = encrypted
        self._erasing = erasing
        self._erased_to = address // _SECTOR * _SECTOR
        self._last = -1
        self._unencrypted = b""

    @property
    def complete(self) -> bool:
        """Whether all bytes that were announced have come."""
        return self._address >= self._end

    def block(self, sequence: int, data: bytes) -> None:
        """Take one block. A block that comes again (its answer was lost) is not applied twice.

        Raises:
            zlib.error: if a compressed block cannot be inflated.
            CommandError: if a compressed download is longer than was announced.
        """
        if self._inflate is None:
            self._address = self._start + sequence * self._block_size
            self._put(data[: max(self._end - self._address, 0)] if self._erasing else data)
        elif sequence != self._last:
            data = self._inflate.decompress(data)
            if self._erasing and self._address + len(data) > self._end:
                raise CommandError(STUB_TOO_MUCH)
            self._put(data)
        self._last = sequence

    def _put(self, data: bytes) -> None:
        if not data:
            return
        if self._erasing:
            end = -(-(self._address + len(data)) // _SECTOR) * _SECTOR
            if end > self._erased_to:
                self._chip.flash.erase(self._erased_to, end - self._erased_to)
                self._erased_to = end
        if not self.encrypted:
            self._chip.flash.program(self._address, data)
        self._address += len(data)
        if self.encrypted:
            self._encrypt(data)

    def _encrypt(self, data: bytes) -> None:
        """Encrypt and program what is whole blocks of the cipher, and the rest once the download is complete."""
        data = self._unencrypted + data
        start = self._address - len(data)
        if self.complete:
            data = data.ljust(-(-len(data) // crypt.BLOCK) * crypt.BLOCK, b"\xff")
        whole = len(data) // crypt.BLOCK * crypt.BLOCK
        self._unencrypted = data[whole:]
        if whole:
            self._chip.flash.program(start, self._chip.encrypt(start, data[:whole]))


class Loader:
    """What ROM and stub have in common. Commands are methods that take the request's data and checksum."""

    IS_STUB: ClassVar[bool]

    def __init__(self, chip: SimChip) -> None:
        self.chip = chip
        self._decoder = Decoder()
        self._writer: FlashWriter | None = None
        self._ram_address = 0
        self._ram_block_size = 1
        self._after: Callable[[], None] | None = None
        self.value = 0
        self.commands: dict[int, Callable[[bytes, int], bytes]] = {
            0x02: self._flash_begin,
            0x03: self._flash_data,
            0x04: self._flash_end,
            0x05: self._mem_begin,
            0x06: self._mem_end,
            0x07: self._mem_data,
            0x08: self._sync,
            0x09: self._write_reg,
            0x0A: self._read_reg,
            0x0B: self._accept,
            0x0D: self._spi_attach,
            0x0F: self._change_baudrate,
            0x10: self._defl_begin,
            0x11: self._flash_data,
            0x12: self._flash_end,
            0x13: self._md5,
            0x14: self._security_info,
        }

    def receive(self, data: bytes) -> None:
        """Take bytes from the host and answer every whole packet."""
        for packet in self._decoder.feed(data):
            self.packet(packet)

    def packet(self, packet: bytes) -> None:
        """Run one packet; what is no request is ignored, as both loaders do."""
        if len(packet) < 8 or packet[0] != 0:
            return
        op, size, check = struct.unpack_from("<xBHI", packet)
        data = packet[8:]
        if len(data) != size:
            self.respond(op, error=self.code(STUB_BAD_LENGTH, ROM_INVALID))
            return
        command = self.commands.get(op)
        if command is None:
            self.unknown(op)
            return
        self.value = 0
        try:
            self.respond(op, command(data, check))
        except CommandError as error:
            self.respond(op, error=error.code)
        except struct.error:
            self.respond(op, error=self.code(STUB_BAD_LENGTH, ROM_INVALID))
        self._run_after()

    def code(self, stub: int, rom: int) -> int:
        """Return the status code that this loader gives."""
        return stub if self.IS_STUB else rom

    def unknown(self, op: int) -> None:
        """Answer a command that this loader does not have."""
        raise NotImplementedError

    @property
    def _status_size(self) -> int:
        return 2 if self.IS_STUB or self.chip.model.is_8266 else 4

    def respond(self, op: int, payload: bytes = b"", error: int = 0) -> None:
        """Send a response: value, payload and status."""
        # esptool.util.FatalError.WithResult: the ROM says 01 CODE, the stub CODE 00.
        failed = [error, 0] if self.IS_STUB else [1, error]
        status = bytes(failed if error else [0, 0]).ljust(self._status_size, b"\x00")
        data = payload + status
        self.chip.transmit(encode(struct.pack("<BBHI", 1, op, len(data), self.value) + data))

    def _run_after(self) -> None:
        after, self._after = self._after, None
        if after is not None:
            after()

    # -- commands

    def _accept(self, data: bytes, check: int) -> bytes:
        return b""

    def _spi_attach(self, data: bytes, check: int) -> bytes:
        struct.unpack_from("<I", data)
        self.chip.flash_is_attached = True
        return b""

    def _sync(self, data: bytes, check: int) -> bytes:
        if len(data) != 36:
            raise CommandError(self.code(STUB_BAD_LENGTH, ROM_INVALID))
        self.chip.autobaud()
        self.value = 0 if self.IS_STUB else 0x20120707
        for _ in range(7):
            self.respond(0x08)
        return b""

    def _read_reg(self, data: bytes, check: int) -> bytes:
        (address,) = struct.unpack("<I", data)
        self.value = self.chip.bus.read(address)
        return b""

    def _write_reg(self, data: bytes, check: int) -> bytes:
        if not data or len(data) % 16:
            raise CommandError(self.code(STUB_BAD_LENGTH, ROM_INVALID))
        for address, value, mask, _delay in struct.iter_unpack("<IIII", data):
            self.chip.bus.write(address, value, mask)
        return b""

    def _mem_begin(self, data: bytes, check: int) -> bytes:
        _size, _blocks, self._ram_block_size, self._ram_address = struct.unpack("<IIII", data)
        return b""

    def _mem_data(self, data: bytes, check: int) -> bytes:
        content, sequence = self._block(data, check)
        self.chip.bus.load(self._ram_address + sequence * self._ram_block_size, content)
        return b""

    def _mem_end(self, data: bytes, check: int) -> bytes:
        stay, entry = struct.unpack("<II", data)
        if not stay:
            self._after = lambda: self.chip.run_ram(entry)
        return b""

    def _block(self, data: bytes, check: int) -> tuple[bytes, int]:
        """Return contents and sequence number of a data block whose length and checksum are right."""
        size, sequence, _, _ = struct.unpack_from("<IIII", data)
        content = data[16:]
        if len(content) != size:
            raise CommandError(self.code(STUB_BAD_LENGTH, ROM_INVALID))
        if checksum(content) != check & 0xFF:
            raise CommandError(self.code(STUB_BAD_CHECKSUM, ROM_BAD_CHECKSUM))
        return content, sequence

    def _begin(self, data: bytes, *, compressed: bool) -> bytes:
        size, _blocks, block_size, address = struct.unpack_from("<IIII", data)
        self.chip.flash_is_attached = True
        encrypted = len(data) >= 20 and struct.unpack_from("<I", data, 16)[0] == 1
        self._writer = FlashWriter(
            self.chip,
            address,
            size,
            block_size or 1,
            compressed=compressed,
            encrypted=encrypted,
            erasing=self.IS_STUB,
        )
        if not self.IS_STUB and size:
            self.chip.flash.erase(address, self.erase_size(address, size))
        return b""

    def erase_size(self, address: int, size: int) -> int:
        """Return how much is erased up front for a download of *size* bytes."""
        return size

    def _flash_begin(self, data: bytes, check: int) -> bytes:
        return self._begin(data, compressed=False)

    def _defl_begin(self, data: bytes, check: int) -> bytes:
        return self._begin(data, compressed=True)

    def _flash_data(self, data: bytes, check: int) -> bytes:
        content, sequence = self._block(data, check)
        if self._writer is None:
            raise CommandError(self.code(STUB_NOT_BEGUN, ROM_FAILED))
        try:
            self._writer.block(sequence, content)
        except zlib.error:
            raise CommandError(self.code(STUB_INFLATE, ROM_INFLATE)) from None
        return b""

    def _flash_end(self, data: bytes, check: int) -> bytes:
        raise NotImplementedError

    def _md5(self, data: bytes, check: int) -> bytes:
        address, size, _, _ = struct.unpack("<IIII", data)
        if size > _LARGEST_READ:
            raise CommandError(self.code(STUB_SPI_FAILED, ROM_FAILED))
        digest = self.chip.flash.md5(address, size)
        return digest if self.IS_STUB else digest.hex().encode()

    def _change_baudrate(self, data: bytes, check: int) -> bytes:
        baudrate, _old = struct.unpack("<II", data)
        if not 1 <= baudrate <= 20_000_000:
            raise CommandError(self.code(STUB_BAD_LENGTH, ROM_INVALID))
        self._after = lambda: self.chip.set_uart_baudrate(baudrate)
        return b""

    def _security_info(self, data: bytes, check: int) -> bytes:
        return self.chip.security_info()


class RomLoader(Loader):
    """The loader in a chip's mask ROM, with its restricted command set in secure download mode."""

    IS_STUB = False
    _SECURE_COMMANDS = (0x02, 0x03, 0x04, 0x08, 0x0B, 0x0D, 0x0F, 0x10, 0x11, 0x12, 0x14)
    _8266_COMMANDS = (0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, 0x09, 0x0A)

    def __init__(self, chip: SimChip) -> None:
        super().__init__(chip)
        self.commands[0x0E] = self._read_flash_slow
        if chip.model.is_8266:
            self._keep(self._8266_COMMANDS)
        if not chip.model.security_info_size:
            self.commands.pop(0x14, None)
        if chip.secure_download:
            self._keep(self._SECURE_COMMANDS)

    def _keep(self, ops: tuple[int, ...]) -> None:
        self.commands = {op: command for op, command in self.commands.items() if op in ops}

    def unknown(self, op: int) -> None:
        """Answer as the ROM does: with the error "invalid message" under another command's number."""
        self.value = 0
        self.respond(0, error=ROM_INVALID)

    def erase_size(self, address: int, size: int) -> int:
        """Return *size*, or more on an ESP8266, which miscounts."""
        return _erase_size_8266(address, size) if self.chip.model.is_8266 else size

    def _flash_end(self, data: bytes, check: int) -> bytes:
        struct.unpack("<I", data)
        self._writer = None
        self._after = self.chip.leave_loader
        return b""

    def _read_flash_slow(self, data: bytes, check: int) -> bytes:
        address, size = struct.unpack("<II", data)
        if self.chip.start_hijacked_stub():
            return b""
        return self.chip.flash.read(address, min(size, 64)).ljust(64, b"\x00")


def _erase_size_8266(address: int, size: int) -> int:
    """Return what the ESP8266's ROM really erases: it counts the sectors up to the next 64 KB block twice."""
    sectors = -(-size // _SECTOR)
    head = 16 - address // _SECTOR % 16
    return (2 * sectors if sectors <= head else sectors + head) * _SECTOR


class StubLoader(Loader):
    """esptool's stub flasher, running in RAM."""

    IS_STUB = True

    def __init__(self, chip: SimChip) -> None:
        super().__init__(chip)
        self.commands |= {
            0xD0: self._erase_flash,
            0xD1: self._erase_region,
            0xD2: self._read_flash,
            0xD4: self._encrypted_data,
        }
        if chip.model.is_8266:
            self.commands[0xD3] = self._run_user_code
        if not chip.model.security_info_size:
            self.commands.pop(0x14, None)
        self._reading: _FlashReader | None = None

    def packet(self, packet: bytes) -> None:
        """Take an acknowledgement of a read that is under way, else a request."""
        if self._reading is not None:
            if len(packet) == 4 and self._reading.acknowledge(int.from_bytes(packet, "little")):
                if self._reading.done:
                    self._reading = None
                return
            self._reading = None
        super().packet(packet)

    def unknown(self, op: int) -> None:
        """Answer with the same number and "not implemented"."""
        self.value = 0
        self.respond(op, error=STUB_NOT_IMPLEMENTED)

    def _encrypted_data(self, data: bytes, check: int) -> bytes:
        """FLASH_ENCRYPT_DATA of esptool before v3.1: a block that is encrypted whatever FLASH_BEGIN said."""
        if self._writer is not None:
            self._writer.encrypted = True
        return self._flash_data(data, check)

    def _flash_end(self, data: bytes, check: int) -> bytes:
        (stay,) = struct.unpack("<I", data)
        writer, self._writer = self._writer, None
        if writer is None:
            raise CommandError(STUB_NOT_BEGUN)
        if not writer.complete:
            raise CommandError(STUB_TOO_LITTLE)
        if not stay:
            self._after = lambda: self.chip.reset(bootloader=True)
        return b""

    def _erase_flash(self, data: bytes, check: int) -> bytes:
        self.chip.flash.erase(0, self.chip.flash.size)
        return b""

    def _erase_region(self, data: bytes, check: int) -> bytes:
        address, size = struct.unpack("<II", data)
        if address % _SECTOR or size % _SECTOR:
            raise CommandError(STUB_BAD_LENGTH)
        self.chip.flash.erase(address, size)
        return b""

    def _read_flash(self, data: bytes, check: int) -> bytes:
        address, size, block_size, window = struct.unpack("<IIII", data)
        if not 0 < block_size <= _SECTOR:
            raise CommandError(STUB_BAD_BLOCK_SIZE)
        if size > _LARGEST_READ:
            raise CommandError(STUB_SPI_FAILED)
        reader = _FlashReader(self.chip, address, size, block_size, max(window, 1))
        self._after = lambda: self._start_reading(reader)
        return b""

    def _start_reading(self, reader: _FlashReader) -> None:
        self._reading = reader
        reader.start()
        if reader.done:
            self._reading = None

    def _run_user_code(self, data: bytes, check: int) -> bytes:
        self._after = self.chip.leave_loader
        return b""


class _FlashReader:
    """A read that sends frames as far as its window of unacknowledged ones allows, then their MD5."""

    def __init__(self, chip: SimChip, address: int, size: int, block_size: int, window: int) -> None:
        self._chip = chip
        self._address = address
        self._size = size
        self._block_size = block_size
        self._window = window * block_size
        self._sent = 0
        self._acknowledged = 0
        self._digest = hashlib.md5(usedforsecurity=False)
        self.done = False

    def start(self) -> None:
        """Send the first window."""
        self._send()

    def acknowledge(self, count: int) -> bool:
        """Take the number of bytes that the host has; False if that cannot be one."""
        if not self._acknowledged <= count <= self._sent:
            return False
        self._acknowledged = count
        self._send()
        return True

    def _send(self) -> None:
        frames: list[bytes] = []
        while self._sent < self._size and self._sent - self._acknowledged < self._window:
            part = self._chip.flash.read(self._address + self._sent, min(self._block_size, self._size - self._sent))
            self._digest.update(part)
            self._sent += len(part)
            frames.append(encode(part))
        if self._acknowledged >= self._size and not self.done:
            self.done = True
            frames.append(encode(self._digest.digest()))
        if frames:
            self._chip.transmit(b"".join(frames))
