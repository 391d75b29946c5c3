"""The eFuses of a simulated chip, burnt by espefuse's own emulator of that chip's eFuse controller."""

from __future__ import annotations

import copy
import functools
import os
from pathlib import Path
from typing import Any, NamedTuple

from pytest_esp.errors import BackendError
from pytest_esp.sim.model import ESP32_CK8M_FREQ, ChipModel


@functools.cache
def _espefuse(chip: str) -> Any:
    """Return espefuse's module for *chip* (imported here: it costs 0.15 s, mostly YAML)."""
    from espefuse.efuse_interface import SUPPORTED_CHIPS

    return SUPPORTED_CHIPS[chip].efuse_lib


@functools.cache
def _prototype(chip: str) -> Any:
    """Return a virgin emulator to copy: making one parses YAML for 0.1 s, copying it takes microseconds."""
    return _espefuse(chip).EmulateEfuseController()


def _virgin(chip: str) -> Any:
    controller = copy.copy(_prototype(chip))
    controller.mem = copy.deepcopy(controller.mem)
    return controller


@functools.cache
def _blank_image(chip: str, revision: int) -> bytes:
    """Return the eFuse registers of a virgin chip of that revision, lowest address first."""
    controller = _virgin(chip)
    controller.set_chip_revision(revision)
    return _image_of(controller)


class _Place(NamedTuple):
    """Where an eFuse is read: register, lowest bit in it, number of bits."""

    address: int
    bit: int
    length: int


@functools.cache
def _fields(chip: str) -> dict[str, _Place]:
    prototype = _prototype(chip)
    blocks = {block.id: block for block in map(prototype.Blocks.get, prototype.Blocks.BLOCKS)}
    places: dict[str, _Place] = {}
    for field in prototype.Fields.EFUSES:
        kind, _, number = field.type.partition(":")
        length = int(number or 1) * (8 if kind == "bytes" else 1)
        places[field.name] = _Place(blocks[field.block].rd_addr + 4 * field.word, field.pos, length)
    return places


def _load(path: Path) -> bytes:
    try:
        return path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise BackendError(
            f"the eFuse file {path} cannot be read: {error.strerror}",
            hint="it must be a readable, writable file",
        ) from error


def _image_of(controller: Any) -> bytes:
    # The emulator keeps its registers as one bit string with the highest address first.
    return controller.mem.bytes[::-1]


class Efuses:
    """The register window of the eFuse controller.

    Args:
        model: the chip.
        mac: base MAC address, 6 bytes.
        revision: major * 100 + minor.
        path: file to keep them in, in the format of espefuse's ``--virt --path-efuse-file``.

    Raises:
        BackendError: if the file cannot be used.
    """

    def __init__(self, model: ChipModel, mac: bytes, revision: int, path: Path | None = None) -> None:
        self._model = model
        self._path = path
        self._keys: dict[str, bytes] = {}
        stored = _load(path) if path else b""
        self.was_stored = bool(stored)
        self._controller: Any = _virgin(model.chip)
        self.base: int = self._controller.REGS.DR_REG_EFUSE_BASE
        self.size: int = self._controller.REGS.EFUSE_MEM_SIZE
        if stored and len(stored) != self.size:
            raise BackendError(
                f"the eFuse file {path} has {len(stored)} bytes, not the {self.size} of an {model.chip}",
                hint="it belongs to another chip; give another file",
            )
        self._mac, self._revision = mac, revision
        if stored:
            self._apply(stored[::-1])
        else:
            self.clear()
            self._burn_factory_values()
            self.save()

    # -- the register window

    def __contains__(self, address: int) -> bool:
        return self.base <= address < self.base + self.size

    def read(self, address: int) -> int:
        """Return the 32-bit register at *address*."""
        return self._controller.read_reg(address & ~3)

    def write(self, address: int, value: int, mask: int) -> None:
        """Write the bits of *mask*; a program or read command acts at once.

        The emulator stores ``value & mask`` instead of merging and would let the read registers be written, which no
        chip does: both are put right here. What it cannot encode (a coding error) leaves the fuses as they were.
        """
        address &= ~3
        if self._is_read_register(address):
            return
        merged = (self.read(address) & ~mask) | (value & mask)
        before = self._controller.mem.bytes
        self._remember_key_data()
        try:
            self._controller.write_reg(address, merged)
        except Exception:  # the emulator raises FatalError or reedsolo errors for data no chip could program
            self._apply(before[::-1])
            return
        if self._controller.mem.bytes != before:
            self.save()

    def clear(self) -> None:
        """Blank everything but the revision, MAC included: what the reset wire of Espressif's FPGA boards does."""
        self._keys.clear()
        self._apply(_blank_image(self._model.chip, self._revision))
        self.save()

    @property
    def mac(self) -> bytes:
        """The base MAC address that is burnt."""
        first = self._mac_register
        return (self.read(first + 4) << 32 | self.read(first)).to_bytes(8, "big")[2:]

    @property
    def _mac_register(self) -> int:
        return self._model.rom.EFUSE_RD_REG_BASE + 4 if self._model.is_esp32 else self._model.rom.MAC_EFUSE_REG

    @property
    def revision(self) -> int:
        """The revision that is burnt, major * 100 + minor."""
        if not self._model.is_esp32:
            return self._controller.get_chip_revision()
        # The third bit of an ESP32's major version is no eFuse; the emulator takes it for set.
        word3, word5 = (self.read(self._model.rom.EFUSE_RD_REG_BASE + 4 * word) for word in (3, 5))
        first, second = word3 >> 15 & 1, word5 >> 20 & 1
        return (3 if first and second else first) * 100 + (word5 >> 24 & 3)

    def field(self, name: str) -> int:
        """Return the value of the eFuse *name* as espefuse calls it; 0 if this chip has none of that name."""
        place = _fields(self._model.chip).get(name)
        if place is None:
            return 0
        words = range(-(-(place.bit + place.length) // 32))
        value = sum(self.read(place.address + 4 * word) << 32 * word for word in words)
        return value >> place.bit & (1 << place.length) - 1

    def preset(self, name: str, value: int) -> None:
        """Burn an eFuse as if at the factory, past the programming registers.

        Raises:
            BackendError: if the chip has no eFuse of that name.
        """
        place = _fields(self._model.chip).get(name)
        if place is None:
            raise BackendError(f"the {self._model.name} has no eFuse {name}")
        self._update(place.address, value << place.bit)
        self.save()

    def has_field(self, name: str) -> bool:
        """Tell whether the chip has an eFuse of that name."""
        return name in _fields(self._model.chip)

    def save(self) -> None:
        """Write the file, if there is one, in one step."""
        if self._path is None:
            return
        try:
            part = self._path.with_name(f"{self._path.name}.{os.getpid()}.part")
            part.write_bytes(self._controller.mem.bytes)
            part.replace(self._path)
        except OSError as error:
            raise BackendError(f"the eFuse file {self._path} cannot be written: {error.strerror}") from error

    def key(self, block: str) -> bytes:
        """Return what was burnt into a key block (e.g. ``"BLOCK_KEY0"``), in the order of a flash encryption key file.

        Software sees zeros once a block is read-protected; the chip's flash encryption still uses the key. espefuse
        burns these keys last byte first.
        """
        return (self._keys.get(block) or self._block_bytes(block))[::-1]

    def encryption_key(self) -> bytes:
        """Return the flash encryption key: 32 bytes, or 64 for XTS-AES-256; zeros where none was burnt.

        Key purposes: 2 and 3 are the halves of an XTS-AES-256 key, 4 is an XTS-AES-128 key (technical reference
        manuals, chapter eFuse controller). The ESP32 has BLOCK1 for it.
        """
        if self._model.is_esp32:
            key = self.key("BLOCK1")
            return key + key[8:16] if len(key) == 24 else key  # the 3/4 coding scheme leaves room for 24 bytes
        keys: dict[int, bytes] = {}
        for number in range(6):
            keys.setdefault(self.field(f"KEY_PURPOSE_{number}"), self.key(f"BLOCK_KEY{number}"))
        if 2 in keys and 3 in keys:
            return keys[2] + keys[3]
        return keys.get(4) or self.key("BLOCK_KEY0")

    # -- inside

    def _remember_key_data(self) -> None:
        """Keep what the key blocks hold, as the emulator wipes them when they become read-protected."""
        for block in self._key_blocks():
            data = self._block_bytes(block)
            if any(data):
                self._keys[block] = data

    def _key_blocks(self) -> list[str]:
        blocks = self._controller.Blocks
        names = [blk.name for blk in map(blocks.get, blocks.BLOCKS)]
        return ["BLOCK1"] if self._model.is_esp32 else [name for name in names if name.startswith("BLOCK_KEY")]

    def _block_bytes(self, name: str) -> bytes:
        blocks = self._controller.Blocks
        for blk in map(blocks.get, blocks.BLOCKS):
            if blk.name == name or name in (blk.alias or []):
                return self._controller.read_block(blk.id).bytes[::-1]
        return bytes(32)

    def _apply(self, image: bytes) -> None:
        size = len(image)
        self._controller.mem = type(self._controller.mem)(bytes=image[::-1], length=size * 8)

    def _is_read_register(self, address: int) -> bool:
        blocks = self._controller.Blocks
        return any(
            blk.rd_addr <= address < blk.rd_addr + blk.len * 4
            for blk in map(blocks.get, blocks.BLOCKS)
            if blk.rd_addr != blk.wr_addr
        )

    def _burn_factory_values(self) -> None:
        """Give the chip what its maker burns: the MAC (with its CRC on the ESP32) and the clock calibration."""
        mac = self._mac
        low, high = int.from_bytes(mac[2:], "big"), int.from_bytes(mac[:2], "big")
        first = self._mac_register
        if self._model.is_esp32:
            from espefuse.efuse.esp32.fields import EfuseMacField

            high |= EfuseMacField.calc_crc(mac) << 16
            self._update(self._model.rom.EFUSE_RD_REG_BASE + 16, ESP32_CK8M_FREQ)
        else:
            self._burn_grade()
        self._update(first, low)
        self._update(first + 4, high)

    def _burn_grade(self) -> None:
        """Give the ESP32-H4 its temperature grade, without which esptool takes it for an unknown chip."""
        if self._model.chip == "esp32h4":
            self.preset("TEMP", 1)

    def _update(self, address: int, value: int) -> None:
        self._controller.update_reg(address, 0xFFFFFFFF, value)
