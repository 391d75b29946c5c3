"""The two programs that implement the serial protocol: the ROM's loader and the stub flasher.

Source: esptool's serial protocol documentation and ``esptool.loader``; for what they do not specify, the ROMs and
esptool's stub on QEMU, whose responses ``tests/differential`` compares with those of this module.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from pytest_esp.formats.checksum import checksum
from pytest_esp.sim import crypt
from pytest_esp.wire.framing import Decoder, encode

if TYPE_CHECKING:
    from pytest_esp.sim.chip import SimChip

Command = Callable[[bytes, int], bytes]

# Status codes: the ROM's from esptool.util.FatalError.WithResult, the stub's from the protocol documentation.
ROM_INVALID, ROM_FAILED, ROM_BAD_CHECKSUM = 0x05, 0x06, 0x07
ROM_READ_FAILED, ROM_READ_TOO_LONG, ROM_INFLATE = 0x09, 0x0A, 0x0B
STUB_BAD_LENGTH, STUB_BAD_CHECKSUM, STUB_INVALID_COMMAND, STUB_SPI_FAILED = 0xC0, 0xC1, 0xC3, 0xC4
STUB_NOT_BEGUN, STUB_INFLATE, STUB_TOO_LITTLE, STUB_TOO_MUCH = 0xC6, 0xC7, 0xC8, 0xC9
STUB_NOT_IMPLEMENTED = 0xFF

_SECTOR = 0x1000
_SYNC_WORD = 0x20120707
_RUN_USER_CODE = 0xD3  # a stub command without a response
_FASTEST_UART = 20_000_000


class CommandError(Exception):
    """A command fails with this status code. The ROM still sends *payload*."""

    def __init__(self, code: int, payload: bytes = b"") -> None:
        super().__init__(f"status {code:#04x}")
        self.code = code
        self.payload = payload


class _Programmer:
    """Writes consecutive bytes to flash, encrypted if the host requests it.

    Args:
        size: the total number of bytes; the end is padded to a block of the cipher.
    """

    def __init__(self, chip: SimChip, address: int, size: int, *, encrypted: bool) -> None:
        self._chip = chip
        self.address = address
        self._end = address + size
        self._encrypted = encrypted
        self._unencrypted = b""

    def put(self, data: bytes) -> None:
        """Program *data* after the earlier data."""
        self.address += len(data)
        if not self._encrypted:
            self._chip.flash.program(self.address - len(data), data)
            return
        data = self._unencrypted + data
        start = self.address - len(data)
        if self.address >= self._end:
            data = data.ljust(-(-len(data) // crypt.BLOCK) * crypt.BLOCK, b"\xff")
        whole = len(data) // crypt.BLOCK * crypt.BLOCK
        self._unencrypted = data[whole:]
        if whole:
            self._chip.flash.program(start, self._chip.encrypt(start, data[:whole]))


class Loader:
    """The common part of ROM and stub. Commands are methods that take the request's data and checksum."""

    def __init__(self, chip: SimChip) -> None:
        self.chip = chip
        self._decoder = Decoder()
        self._after: Callable[[], None] | None = None
        self.value = 0
        self.commands: dict[int, Command] = {
            0x02: self._flash_begin,
            0x03: self._flash_data,
            0x04: self._flash_end,
            0x05: self._mem_begin,
            0x06: self._mem_end,
            0x07: self._mem_data,
            0x08: self._sync,
            0x09: self._write_reg,
            0x0A: self._read_reg,
            0x0B: self._set_params,
            0x0D: self._spi_attach,
            0x0F: self._change_baudrate,
            0x10: self._defl_begin,
            0x11: self._defl_data,
            0x12: self._defl_end,
            0x13: self._md5,
            0x14: self._security_info,
        }

    def receive(self, data: bytes) -> None:
        """Receive bytes from the host and answer every complete packet."""
        for packet in self._decoder.feed(data):
            self.packet(packet)

    def packet(self, packet: bytes) -> None:
        """Answer a packet if it is valid."""
        raise NotImplementedError

    def unknown(self, op: int) -> None:
        """Answer an unsupported command."""
        raise NotImplementedError

    def respond(self, op: int, payload: bytes = b"", error: int = 0) -> None:
        """Send a response: value, payload and status."""
        raise NotImplementedError

    def _send(self, op: int, payload: bytes, status: bytes) -> None:
        data = payload + status
        self.chip.transmit(encode(struct.pack("<BBHI", 1, op, len(data), self.value) + data))

    def _run(self, op: int, data: bytes, check: int) -> None:
        """Run a command, respond, and run its follow-up action."""
        command = self.commands.get(op)
        self.value = 0
        if command is None:
            self.unknown(op)
            return
        try:
            self.respond(op, command(data, check))
        except CommandError as error:
            self.respond(op, error.payload, error.code)
        after, self._after = self._after, None
        if after is not None:
            after()

    def _words(self, data: bytes, count: int) -> tuple[int, ...]:
        """Return the *count* words of a command's data."""
        raise NotImplementedError

    # -- commands

    def _spi_attach(self, data: bytes, check: int) -> bytes:
        self._words(data, 1)
        self.chip.flash_is_attached = True
        return b""

    def _set_params(self, data: bytes, check: int) -> bytes:
        raise NotImplementedError

    def _sync(self, data: bytes, check: int) -> bytes:
        raise NotImplementedError

    def _answer_sync(self) -> None:
        """Send seven of the eight responses; the eighth is the command's."""
        self.chip.autobaud()
        for _ in range(7):
            self.respond(0x08)

    def _read_reg(self, data: bytes, check: int) -> bytes:
        (address,) = self._words(data, 1)
        self.value = self.chip.bus.read(address)
        return b""

    def _write_reg(self, data: bytes, check: int) -> bytes:
        for address, value, mask, _delay in struct.iter_unpack("<IIII", data[: len(data) // 16 * 16]):
            self.chip.bus.write(address, value, mask)
        return b""

    def _mem_begin(self, data: bytes, check: int) -> bytes:
        raise NotImplementedError

    def _mem_data(self, data: bytes, check: int) -> bytes:
        raise NotImplementedError

    def _mem_end(self, data: bytes, check: int) -> bytes:
        stay, entry = self._words(data, 2)
        if not stay:
            self._after = lambda: self.chip.run_ram(entry)
        return b""

    def _flash_begin(self, data: bytes, check: int) -> bytes:
        raise NotImplementedError

    def _defl_begin(self, data: bytes, check: int) -> bytes:
        raise NotImplementedError

    def _flash_data(self, data: bytes, check: int) -> bytes:
        raise NotImplementedError

    def _defl_data(self, data: bytes, check: int) -> bytes:
        raise NotImplementedError

    def _flash_end(self, data: bytes, check: int) -> bytes:
        raise NotImplementedError

    def _defl_end(self, data: bytes, check: int) -> bytes:
        raise NotImplementedError

    def _md5(self, data: bytes, check: int) -> bytes:
        raise NotImplementedError

    def _change_baudrate(self, data: bytes, check: int) -> bytes:
        baudrate = self._words(data, 2)[0]
        # An impossible baud rate makes a real chip hang or crash; here it is ignored.
        if 1 <= baudrate <= _FASTEST_UART:
            self._after = lambda: self.chip.set_uart_baudrate(baudrate)
        return b""

    def _security_info(self, data: bytes, check: int) -> bytes:
        return self.chip.security_info()


class _RomBlocks:
    """The ROM's handling of a download's blocks: in order, and not longer than announced.

    A block with a wrong checksum is refused, but counted: when it is sent again, its number is too low.
    """

    def __init__(self, count: int, size: int, take: Callable[[bytes], None]) -> None:
        self._count = count
        self._size = size
        self._take = take
        self._next = 0

    @property
    def complete(self) -> bool:
        """Whether all announced blocks have arrived."""
        return self._next >= self._count

    def block(self, data: bytes, check: int) -> None:
        """Handle a block: a header of 16 bytes, and its contents."""
        size, sequence = struct.unpack_from("<II", data.ljust(8, b"\x00"))
        content = data[16 : 16 + size]
        if sequence != self._next or size > self._size or len(content) < size:
            raise CommandError(ROM_INVALID)
        self._next += 1
        if checksum(content) != check & 0xFF:
            raise CommandError(ROM_BAD_CHECKSUM)
        self._take(content)


class RomLoader(Loader):
    """The loader in a chip's mask ROM, with a restricted command set in secure download mode."""

    _SECURE_COMMANDS = (0x02, 0x03, 0x04, 0x08, 0x0B, 0x0D, 0x0F, 0x10, 0x11, 0x12, 0x14)
    _8266_COMMANDS = (0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, 0x09, 0x0A)

    def __init__(self, chip: SimChip) -> None:
        super().__init__(chip)
        self._ram = self._flash = _RomBlocks(0, 0, lambda content: None)
        self._begun = False
        self.commands[0x0E] = self._read_flash_slow
        if chip.model.is_8266:
            self._keep(self._8266_COMMANDS)
        if not chip.model.security_info_size:
            self.commands.pop(0x14, None)
        if chip.secure_download:
            self._keep(self._SECURE_COMMANDS)

    def _keep(self, ops: tuple[int, ...]) -> None:
        self.commands = {op: command for op, command in self.commands.items() if op in ops}

    def packet(self, packet: bytes) -> None:
        """Handle a packet. The ROM ignores the length in its header."""
        if len(packet) < 8:
            return
        direction, op, check = struct.unpack_from("<BBxxI", packet)
        if direction:
            self.unknown(op)
        else:
            self._run(op, packet[8:], check)

    def unknown(self, op: int) -> None:
        """Respond like the ROM: eight times, like a SYNC, with the error "invalid message"."""
        for _ in range(8):
            self.respond(0x08, error=ROM_INVALID)

    def respond(self, op: int, payload: bytes = b"", error: int = 0) -> None:
        """Send a response with a status of 4 bytes (ESP8266: 2), of which the first two are used."""
        size = 2 if self.chip.model.is_8266 else 4
        self._send(op, payload, bytes([1, error] if error else [0, 0]).ljust(size, b"\x00"))

    def _words(self, data: bytes, count: int) -> tuple[int, ...]:
        """Return the words. The ROM takes missing words from the previous packet; here they are 0."""
        return struct.unpack(f"<{count}I", data[: 4 * count].ljust(4 * count, b"\x00"))

    def _exact_words(self, data: bytes, count: int) -> tuple[int, ...]:
        if len(data) != 4 * count:
            raise CommandError(ROM_INVALID)
        return self._words(data, count)

    def _sync(self, data: bytes, check: int) -> bytes:
        self.value = struct.unpack_from("<I", data)[0] if len(data) >= 4 else _SYNC_WORD
        self._answer_sync()
        return b""

    def _set_params(self, data: bytes, check: int) -> bytes:
        self._exact_words(data, 6)
        return b""

    def _mem_begin(self, data: bytes, check: int) -> bytes:
        _size, count, block_size, address = self._exact_words(data, 4)

        def load(content: bytes) -> None:
            nonlocal address
            self.chip.bus.load(address, content)
            address += len(content)

        self._ram = _RomBlocks(count, block_size, load)
        return b""

    def _mem_data(self, data: bytes, check: int) -> bytes:
        self._ram.block(data, check)
        return b""

    def _begin(self, data: bytes, *, compressed: bool) -> bytes:
        # The fifth word, whether to encrypt, exists since the ESP32-S2.
        model = self.chip.model
        size, count, block_size, address, *encrypted = self._exact_words(
            data, 4 if model.is_8266 or model.is_esp32 else 5
        )
        self.chip.flash_is_attached = True
        programmer = _Programmer(self.chip, address, size, encrypted=encrypted == [1])
        inflate = zlib.decompressobj()

        def take(content: bytes) -> None:
            try:
                programmer.put(inflate.decompress(content) if compressed else content)
            except zlib.error:
                raise CommandError(ROM_INFLATE) from None

        self._flash = _RomBlocks(count, block_size, take)
        self._begun = True
        self._erase(address, size)
        return b""

    def _erase(self, address: int, size: int) -> None:
        if self.chip.model.is_8266:
            size = _erase_size_8266(address, size) if size else 0
        elif size and (address % _SECTOR or address + size > self.chip.flash.size):
            raise CommandError(ROM_FAILED)
        if size:
            self.chip.flash.erase(address, size)

    def _flash_begin(self, data: bytes, check: int) -> bytes:
        return self._begin(data, compressed=False)

    def _defl_begin(self, data: bytes, check: int) -> bytes:
        return self._begin(data, compressed=True)

    def _flash_data(self, data: bytes, check: int) -> bytes:
        self._flash.block(data, check)
        return b""

    _defl_data = _flash_data

    def _flash_end(self, data: bytes, check: int) -> bytes:
        """Reboot (0) or leave the loader (1) in any case, after an error response if blocks are missing."""
        self._after = self.chip.leave_loader if any(data[:4]) else self.chip.reboot
        if not (self._begun and self._flash.complete):
            raise CommandError(ROM_FAILED)
        return b""

    def _defl_end(self, data: bytes, check: int) -> bytes:
        """Reboot (0), or stay."""
        (stay,) = self._words(data, 1)
        if not self._flash.complete:
            raise CommandError(ROM_FAILED)
        if not stay:
            self._after = self.chip.reboot
        return b""

    def _md5(self, data: bytes, check: int) -> bytes:
        address, size, _, _ = self._words(data, 4)
        if address + size > self.chip.flash.size:
            raise CommandError(ROM_READ_FAILED, bytes(32))
        return self.chip.flash.md5(address, size).hex().encode()

    def _read_flash_slow(self, data: bytes, check: int) -> bytes:
        address, size = self._words(data, 2)
        if self.chip.start_hijacked_stub():
            return b""
        if size > 64:
            raise CommandError(ROM_READ_TOO_LONG, bytes(64))
        if address + size > self.chip.flash.size:
            raise CommandError(ROM_READ_FAILED, bytes(64))
        return self.chip.flash.read(address, size).ljust(64, b"\x00")


def _erase_size_8266(address: int, size: int) -> int:
    """Return the size that the ESP8266's ROM erases: it counts the sectors up to the next 64 KB block twice."""
    sectors = -(-size // _SECTOR)
    head = 16 - address // _SECTOR % 16
    return (2 * sectors if sectors <= head else sectors + head) * _SECTOR


class _StubDownload:
    """The stub's handling of a download: it ignores the blocks' numbers, and erases while it writes.

    Attributes:
        missing: the number of bytes left, modulo 2**32: a compressed download that is longer than announced is only
            detected at its end.
    """

    _WINDOW = 0x8000  # bytes that are inflated before they are written

    def __init__(self, chip: SimChip, address: int, size: int, *, encrypted: bool) -> None:
        self._chip = chip
        self._programmer = _Programmer(chip, address, size, encrypted=encrypted)
        self._inflate = zlib.decompressobj()
        self._inflated = b""
        self.missing = size
        self._erased_to = address // _SECTOR * _SECTOR
        self._erase_end = -(-(address + size) // _SECTOR) * _SECTOR

    def begin(self) -> None:
        """Erase the first sector, as the stub does before any data arrives.

        Raises:
            CommandError: if it is beyond the flash; blocks are accepted nevertheless.
        """
        if self.missing and self._erased_to + _SECTOR > self._chip.flash.size:
            raise CommandError(STUB_SPI_FAILED)
        if self.missing:
            self._erase_to(self._erased_to + _SECTOR)

    def plain(self, content: bytes) -> None:
        """Write a block, without data beyond the announced size."""
        self._write(content[: self.missing])

    def compressed(self, sequence: int, content: bytes) -> None:
        """Inflate a block, and write complete windows, and the rest at the end."""
        if sequence == 0:
            self._inflated = b""
        try:
            self._inflated += self._inflate.decompress(content)
        except zlib.error:
            raise CommandError(STUB_INFLATE) from None
        while self._inflated and (self._inflate.eof or len(self._inflated) >= self._WINDOW):
            part, self._inflated = self._inflated[: self._WINDOW], self._inflated[self._WINDOW :]
            self._write(part)

    def _write(self, data: bytes) -> None:
        end = self._programmer.address + len(data)
        size = self._chip.flash.size
        self._erase_to(min(-(-end // _SECTOR) * _SECTOR, self._erase_end, size))
        if end > size:
            raise CommandError(STUB_SPI_FAILED)
        self._programmer.put(data)
        self.missing = (self.missing - len(data)) % (1 << 32)

    def _erase_to(self, end: int) -> None:
        if end > self._erased_to:
            self._chip.flash.erase(self._erased_to, end - self._erased_to)
            self._erased_to = end


class StubLoader(Loader):
    """esptool's stub flasher, running in RAM.

    It responds to a block or a read request before it executes it. If that fails, the next command of any kind is not
    run, and the response to it is the error.
    """

    _PLUGINS = range(0xD5, 0xE0)  # commands for NAND flash, which need an esptool plugin

    def __init__(self, chip: SimChip) -> None:
        super().__init__(chip)
        self.commands |= {0xD0: self._erase_flash, 0xD1: self._erase_region, 0xD2: self._read_flash}
        self._reading: _FlashReader | None = None
        self._download: _StubDownload | None = None
        self._ram: tuple[int, int] | None = None  # the next address, and the number of bytes left
        self._late_error = 0

    def packet(self, packet: bytes) -> None:
        """Handle an acknowledgement of the current read, or a request."""
        if self._reading is not None:
            reading = self._reading
            self._late(lambda: reading.acknowledge(packet))
            if reading.done or self._late_error:
                self._reading = None
            return
        if len(packet) < 8:
            return
        direction, op, size, check = struct.unpack_from("<BBHI", packet)
        self.value = 0
        if direction:
            self.respond(op, error=STUB_INVALID_COMMAND)
        elif len(packet) != 8 + size:
            self.respond(op, error=STUB_BAD_LENGTH)
        elif self._late_error:
            self.respond(op, error=self._late_error)
            self._late_error = 0
        elif op != _RUN_USER_CODE:
            self._run(op, packet[8:], check)
        elif self.chip.model.is_8266:  # esptool sends it only to this chip; on others it has no effect
            self.chip.leave_loader()

    def _late(self, action: Callable[[], None]) -> None:
        try:
            action()
        except CommandError as error:
            self._late_error = error.code

    def _afterwards(self, action: Callable[[], None]) -> None:
        self._after = lambda: self._late(action)

    def unknown(self, op: int) -> None:
        """Respond with the same command number and an error."""
        self.respond(op, error=STUB_NOT_IMPLEMENTED if op in self._PLUGINS else STUB_INVALID_COMMAND)

    def respond(self, op: int, payload: bytes = b"", error: int = 0) -> None:
        """Send a response; errors do not have a payload."""
        self._send(op, b"" if error else payload, bytes([error, 0]))

    def _words(self, data: bytes, count: int) -> tuple[int, ...]:
        if len(data) != 4 * count:
            raise CommandError(STUB_BAD_LENGTH)
        return struct.unpack(f"<{count}I", data)

    def _sync(self, data: bytes, check: int) -> bytes:
        if len(data) != 36:
            raise CommandError(STUB_BAD_LENGTH)
        self._answer_sync()
        return b""

    def _set_params(self, data: bytes, check: int) -> bytes:
        self._words(data, 6)
        return b""

    def _write_reg(self, data: bytes, check: int) -> bytes:
        if not data or len(data) % 16:
            raise CommandError(STUB_TOO_LITTLE)
        return super()._write_reg(data, check)

    def _security_info(self, data: bytes, check: int) -> bytes:
        self._words(data, 0)
        if not self.chip.model.security_info_size:
            raise CommandError(STUB_NOT_IMPLEMENTED)
        return super()._security_info(data, check)

    # -- RAM: checksums are ignored

    def _mem_begin(self, data: bytes, check: int) -> bytes:
        size, _count, _block_size, address = self._words(data, 4)
        self._ram = address, size
        return b""

    def _mem_data(self, data: bytes, check: int) -> bytes:
        size, content = self._block(data)
        if self._ram is None:
            raise CommandError(STUB_NOT_BEGUN)
        address, missing = self._ram
        if size > missing or size != len(content):
            raise CommandError(STUB_TOO_MUCH)
        self.chip.bus.load(address, content)
        self._ram = address + size, missing - size
        return b""

    def _mem_end(self, data: bytes, check: int) -> bytes:
        self._words(data, 2)
        if self._ram is None:
            raise CommandError(STUB_NOT_BEGUN)
        self._ram = None
        return super()._mem_end(data, check)

    @staticmethod
    def _block(data: bytes, too_short: int = STUB_TOO_LITTLE) -> tuple[int, bytes]:
        """Return the size from a block's header, and the data after the header."""
        if len(data) < 16:
            raise CommandError(too_short)
        return int.from_bytes(data[:4], "little"), data[16:]

    # -- flash

    def _flash_begin(self, data: bytes, check: int) -> bytes:
        size, _count, _block_size, address, *encrypted = self._words(data, 5 if len(data) == 20 else 4)
        self.chip.flash_is_attached = True
        self._download = _StubDownload(self.chip, address, size, encrypted=any(encrypted))
        self._download.begin()
        return b""

    _defl_begin = _flash_begin

    def _begun(self) -> _StubDownload:
        if self._download is None:
            raise CommandError(STUB_NOT_BEGUN)
        return self._download

    def _flash_data(self, data: bytes, check: int) -> bytes:
        size, content = self._block(data)
        download = self._begun()
        if size != len(content):
            raise CommandError(STUB_TOO_MUCH)
        if checksum(content) != check:
            raise CommandError(STUB_BAD_CHECKSUM)
        self._afterwards(lambda: download.plain(content))
        return b""

    def _defl_data(self, data: bytes, check: int) -> bytes:
        size, content = self._block(data, STUB_BAD_LENGTH)
        download = self._begun()
        content = content[:size]
        if checksum(content) != check:
            raise CommandError(STUB_BAD_CHECKSUM)
        sequence = int.from_bytes(data[4:8], "little")
        self._afterwards(lambda: download.compressed(sequence, content))
        return b""

    def _flash_end(self, data: bytes, check: int) -> bytes:
        """End the download. The stub keeps running, whatever the request says."""
        self._words(data, 1)
        if self._begun().missing:
            raise CommandError(STUB_BAD_LENGTH)
        self._download = None
        return b""

    _defl_end = _flash_end

    def _erase_flash(self, data: bytes, check: int) -> bytes:
        self.chip.flash.erase(0, self.chip.flash.size)
        return b""

    def _erase_region(self, data: bytes, check: int) -> bytes:
        """Erase the part of the region that exists."""
        address, size = self._words(data, 2)
        if address % _SECTOR or size % _SECTOR:
            raise CommandError(STUB_BAD_LENGTH)
        size = min(size, self.chip.flash.size - address)
        if size > 0:
            self.chip.flash.erase(address, size)
        return b""

    def _md5(self, data: bytes, check: int) -> bytes:
        address, size, _, _ = self._words(data, 4)
        if size and address + size > self.chip.flash.size:
            raise CommandError(STUB_SPI_FAILED)
        return self.chip.flash.md5(address, size)

    def _read_flash(self, data: bytes, check: int) -> bytes:
        # The last word is the number of frames that may be unacknowledged, but the stub sends one at a time.
        address, size, block_size, _window = self._words(data, 4)
        self._afterwards(lambda: self._start_reading(_FlashReader(self.chip, address, size, block_size)))
        return b""

    def _start_reading(self, reader: _FlashReader) -> None:
        reader.start()
        if not reader.done:
            self._reading = reader


class _FlashReader:
    """A read: sends a frame, waits for its acknowledgement, and at the end sends the MD5 of all data."""

    def __init__(self, chip: SimChip, address: int, size: int, block_size: int) -> None:
        self._chip = chip
        self._address = address
        self._size = size
        self._block_size = block_size
        self._sent = 0
        self._digest = hashlib.md5(usedforsecurity=False)
        self.done = False

    def start(self) -> None:
        """Send the first frame.

        Raises:
            CommandError: if the frames are too long, or reach beyond the flash.
        """
        if self._block_size > _SECTOR:
            raise CommandError(STUB_BAD_LENGTH)
        if self._size:
            self._send()
        else:
            self._end()

    def acknowledge(self, packet: bytes) -> None:
        """Handle the number of bytes that the host has received; anything else ends the read.

        Raises:
            CommandError: if the next frame reaches beyond the flash.
        """
        if len(packet) != 4:
            self._end()
        elif self._sent < self._size:
            self._send()
        elif int.from_bytes(packet, "little") >= self._size:
            self._end()

    def _send(self) -> None:
        address, size = self._address + self._sent, min(self._block_size, self._size - self._sent)
        if address + size > self._chip.flash.size:
            raise CommandError(STUB_SPI_FAILED)
        part = self._chip.flash.read(address, size)
        self._digest.update(part)
        self._sent += size
        self._chip.transmit(encode(part))

    def _end(self) -> None:
        self.done = True
        self._chip.transmit(encode(self._digest.digest()))
