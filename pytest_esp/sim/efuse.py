"""The eFuses of a simulated chip, burned by espefuse's emulator of the chip's eFuse controller."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pytest_esp.errors import BackendError
from pytest_esp.sim.efuse_map import contents, efuse_map, emulator, set_contents
from pytest_esp.sim.model import ESP32_CK8M_FREQ, ChipModel
from pytest_esp.sim.secure_boot import SecureBoot

_FIRST_DIGEST_PURPOSE = 9  # SECURE_BOOT_DIGEST0


# The registers at the start of a QEMU eFuse file, as (offset in the controller, bytes): the read registers of all
# blocks.
_QEMU_WINDOWS_ESP32 = ((0x00, 28), (0x38, 96))
_QEMU_WINDOWS = ((0x2C, 336),)
_QEMU_SIZE_ESP32, _QEMU_SIZE = 124, 984


def qemu_offsets(chip: str) -> list[int]:
    """Return the offsets of the registers in the eFuse file of Espressif's QEMU, in its order."""
    windows = _QEMU_WINDOWS_ESP32 if chip == "esp32" else _QEMU_WINDOWS
    return [offset for first, size in windows for offset in range(first, first + size, 4)]


def _load(path: Path) -> bytes:
    try:
        return path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise BackendError(
            f"the eFuse file {path} cannot be read: {error.strerror}",
            hint="use a readable and writable file",
        ) from error


class Efuses:
    """The register window of the eFuse controller.

    The registers are plain bytes; espefuse's emulator is only used when a host writes a register.

    Args:
        model: the chip.
        mac: base MAC address, 6 bytes.
        revision: major * 100 + minor.
        path: the file for the eFuses, in the format of espefuse's ``--virt --path-efuse-file``; a file of Espressif's
            QEMU is recognized by its size, and keeps its format. Read-protected keys are stored in ``PATH.keys``: the
            chip still encrypts with them.
        apb_mhz: returns the frequency of the APB, which times a burn; None for the crystal's frequency.

    Attributes:
        was_stored: whether the file already contained eFuses; *mac* and *revision* then have no effect.

    Raises:
        BackendError: if the file cannot be used.
    """

    def __init__(
        self,
        model: ChipModel,
        mac: bytes,
        revision: int,
        path: Path | None = None,
        apb_mhz: Callable[[], int] | None = None,
    ) -> None:
        self._model = model
        self._apb_mhz = apb_mhz or (lambda: model.crystal_mhz)
        self._map = efuse_map(model.chip, revision)
        self._path = path
        self._keys_path = path.with_name(f"{path.name}.keys") if path else None
        self.base = self._map.base
        self.size = self._map.size
        self._keys: dict[str, bytes] = {}
        self._emulator: Any = None
        self._has_qemu_format = False
        stored = _load(path) if path else b""
        self.was_stored = bool(stored)
        if stored:
            self._take_stored(stored)
        else:
            self._registers = bytearray.fromhex(self._map.blank)
            self._burn_factory_values(mac)
            self.save()

    def _take_stored(self, stored: bytes) -> None:
        if len(stored) == self._qemu_size:
            self._take_from_qemu(stored)
            return
        if len(stored) != self.size:
            raise BackendError(
                f"the eFuse file {self._path} has {len(stored)} bytes, not the {self.size} of espefuse's emulator of "
                f"the {self._model.name}, or the {self._qemu_size} of QEMU's",
                hint="use another file; this one is from another chip",
            )
        self._registers = bytearray(stored[::-1])
        keys = _load(self._keys_path) if self._keys_path else b""
        try:
            self._keys = {name: bytes.fromhex(key) for name, key in json.loads(keys or b"{}").items()}
        except (ValueError, AttributeError, TypeError) as error:
            raise BackendError(f"{self._keys_path} is damaged: {error}", hint="remove it and the eFuse file") from error

    @property
    def _qemu_size(self) -> int:
        return _QEMU_SIZE_ESP32 if self._model.is_esp32 else _QEMU_SIZE

    def _take_from_qemu(self, stored: bytes) -> None:
        self._has_qemu_format = True
        self._registers = bytearray.fromhex(self._map.blank)
        for position, offset in enumerate(qemu_offsets(self._model.chip)):
            self._registers[offset : offset + 4] = stored[4 * position : 4 * position + 4]

    def qemu_file(self) -> bytes:
        """Return the eFuses as a file for Espressif's QEMU."""
        words = (self._registers[offset : offset + 4] for offset in qemu_offsets(self._model.chip))
        return b"".join(words).ljust(self._qemu_size, b"\0")

    # -- the register window

    def __contains__(self, address: int) -> bool:
        return self.base <= address < self.base + self.size

    def read(self, address: int) -> int:
        """Return the 32-bit register at *address*."""
        return struct.unpack_from("<I", self._registers, (address - self.base) & ~3)[0]

    def write(self, address: int, value: int, mask: int) -> None:
        """Write the bits of *mask*; a program or read command runs at once.

        The emulator stores ``value & mask`` instead of merging, and allows writes to the read registers, which chips do
        not; both are corrected here. The eFuses do not change if it cannot encode the data (a coding error), or if the
        burn has the timing of another clock, whose result on a real chip is unknown.
        """
        address &= ~3
        if any(first <= address < end for first, end in self._map.read_only):
            return
        merged = (self.read(address) & ~mask) | (value & mask)
        self._remember_key_data()
        self._emulator = self._emulator or emulator(self._model.chip)
        set_contents(self._emulator, self._registers)
        if self._starts_a_burn(address, merged) and not self._is_timed_for_its_clock():
            self._emulator.clean_blocks_wr_regs()
            merged = 0
        try:
            self._emulator.write_reg(address, merged)
        except Exception:  # the emulator raises FatalError or reedsolo errors for data that cannot be programmed
            return
        self._registers[:] = contents(self._emulator)
        self.save()

    def clear(self) -> None:
        """Clear everything except the revision, including the MAC, like the reset wire of Espressif's FPGA boards."""
        self._keys.clear()
        self._registers[:] = bytes.fromhex(self._map.blank)
        self.save()

    @property
    def mac(self) -> bytes:
        """The burned base MAC address."""
        first = self._mac_register
        return (self.read(first + 4) << 32 | self.read(first)).to_bytes(8, "big")[2:]

    @property
    def _mac_register(self) -> int:
        return self._model.rom.EFUSE_RD_REG_BASE + 4 if self._model.is_esp32 else self._model.rom.MAC_EFUSE_REG

    @property
    def revision(self) -> int:
        """The burned revision, major * 100 + minor."""
        if not self._model.is_esp32:
            controller = emulator(self._model.chip)
            set_contents(controller, self._registers)
            return controller.get_chip_revision()
        # The third bit of an ESP32's major version is not an eFuse; the emulator assumes that it is set.
        word3, word5 = (self.read(self._model.rom.EFUSE_RD_REG_BASE + 4 * word) for word in (3, 5))
        first, second = word3 >> 15 & 1, word5 >> 20 & 1
        return (3 if first and second else first) * 100 + (word5 >> 24 & 3)

    def field(self, name: str) -> int:
        """Return the value of the eFuse with espefuse's *name*; 0 if this chip does not have it."""
        if name not in self._map.fields:
            return 0
        address, bit, length = self._map.fields[name]
        size = -(-(bit + length) // 8)
        offset = address - self.base
        value = int.from_bytes(self._registers[offset : offset + size], "little")
        return value >> bit & (1 << length) - 1

    def preset(self, name: str, value: int) -> None:
        """Burn an eFuse directly, without the programming registers, as in the factory.

        Raises:
            BackendError: if the chip does not have an eFuse of that name.
        """
        if name not in self._map.fields:
            raise BackendError(f"the {self._model.name} has no eFuse {name}")
        address, bit, _ = self._map.fields[name]
        self._burn(address, value << bit)
        self.save()

    def preset_block(self, name: str, data: bytes) -> None:
        """Burn a whole block directly; *data* has the order of its registers, as espefuse burns digests."""
        address, _ = self._map.blocks[name]
        for offset in range(0, len(data), 4):
            self._burn(address + offset, int.from_bytes(data[offset : offset + 4], "little"))
        self.save()

    def take_back(self, name: str) -> None:
        """Clear a field, which is impossible on a real chip, to end a fault."""
        address, bit, length = self._map.fields[name]
        mask = ((1 << length) - 1) << bit
        struct.pack_into("<I", self._registers, address - self.base, self.read(address) & ~mask & 0xFFFFFFFF)
        self.save()

    def has_field(self, name: str) -> bool:
        """Return whether the chip has an eFuse of that name."""
        return name in self._map.fields

    def save(self) -> None:
        """Write the file, if there is one, atomically.

        Raises:
            BackendError: if it cannot be written.
        """
        if self._path is None or self._keys_path is None:
            return
        hidden = {name: key.hex() for name, key in self._keys.items() if key != self._block_bytes(name)}
        try:
            if hidden:
                _replace(self._keys_path, json.dumps(hidden).encode())
            else:
                self._keys_path.unlink(missing_ok=True)
            _replace(self._path, self.qemu_file() if self._has_qemu_format else bytes(self._registers[::-1]))
        except OSError as error:
            raise BackendError(f"cannot write the eFuse file {self._path}: {error.strerror}") from error

    def key(self, block: str) -> bytes:
        """Return the key in a key block (e.g. ``"BLOCK_KEY0"``), in the byte order of a flash encryption key file.

        Software reads zeros once a block is read-protected, but the chip's flash encryption still uses the key.
        espefuse burns these keys with the last byte first.
        """
        return (self._keys.get(block) or self._block_bytes(block))[::-1]

    def encryption_key(self) -> bytes:
        """Return the flash encryption key: 32 bytes, or 64 for XTS-AES-256; zeros if none was burned.

        Key purposes: 2 and 3 are the halves of an XTS-AES-256 key, 4 is an XTS-AES-128 key (technical reference
        manuals, chapter eFuse controller). The ESP32 uses BLOCK1. An ESP32-C2 derives its key from half a block unless
        XTS_KEY_LENGTH_256 is burned (``espsecure.encrypt_flash_data``).
        """
        if self._model.is_esp32:
            key = self.key("BLOCK1")
            return key + key[8:16] if len(key) == 24 else key  # with the 3/4 coding scheme, a block has 24 bytes
        if self._model.chip == "esp32c2" and not self.field("XTS_KEY_LENGTH_256"):
            return hashlib.sha256(self.key("BLOCK_KEY0")[16:]).digest()
        keys: dict[int, bytes] = {}
        for number in range(6):
            if f"BLOCK_KEY{number}" in self._map.blocks:
                keys.setdefault(self.field(f"KEY_PURPOSE_{number}"), self.key(f"BLOCK_KEY{number}"))
        if 2 in keys and 3 in keys:
            return keys[2] + keys[3]
        return keys.get(4) or self.key("BLOCK_KEY0")

    def secure_boot(self) -> SecureBoot | None:
        """Return the keys that secure boot v2 trusts; None if it is not enabled.

        Key purposes: 9 to 11 are the digests of the keys 0 to 2. The ESP32 uses BLOCK2; an ESP32-C2 stores the first
        half of one digest in the second half of its key block (technical reference manuals).
        """
        if self._model.is_esp32:
            return SecureBoot({0: self._block_bytes("BLOCK2")}, is_esp32=True) if self.field("ABS_DONE_1") else None
        if not self.field("SECURE_BOOT_EN"):
            return None
        if self._model.chip == "esp32c2":
            return SecureBoot({0: self._block_bytes("BLOCK_KEY0")[16:]})
        digests: dict[int, bytes] = {}
        for block in self._key_blocks():
            number = self.field(f"KEY_PURPOSE_{block.removeprefix('BLOCK_KEY')}") - _FIRST_DIGEST_PURPOSE
            if number in range(3) and not self.field(f"SECURE_BOOT_KEY_REVOKE{number}"):
                digests.setdefault(number, self._block_bytes(block))
        return SecureBoot(dict(sorted(digests.items())))

    # -- inside

    def _starts_a_burn(self, address: int, command: int) -> bool:
        registers = self._emulator.REGS
        if self._model.is_esp32:
            return address == registers.EFUSE_REG_CMD and command == registers.EFUSE_CMD_WRITE
        return address == registers.EFUSE_CMD_REG and bool(command & registers.EFUSE_PGM_CMD)

    def _is_timed_for_its_clock(self) -> bool:
        """Return whether the burn timing matches the APB frequency, where that varies (technical reference manuals)."""
        registers = self._emulator.REGS
        if self._model.is_esp32:
            first, second, divider = registers.EFUSE_CLK_SETTINGS[self._apb_mhz()]
            clock, dac = self.read(registers.EFUSE_CLK_REG), self.read(registers.EFUSE_DAC_CONF_REG)
            return (clock & 0xFFFF, dac & registers.EFUSE_DAC_CLK_DIV_MASK) == (second << 8 | first, divider)
        if self._model.chip == "esp32s2":
            _, pulse, _, _ = registers.EFUSE_PROGRAMMING_TIMING_PARAMETERS[self._apb_mhz()]
            mask = registers.EFUSE_TPGM_M
            return self.read(registers.EFUSE_WR_TIM_CONF0_REG) & mask == pulse * (mask & -mask)
        return True

    def _remember_key_data(self) -> None:
        """Save the key blocks, as the emulator clears them when they become read-protected."""
        for block in self._key_blocks():
            data = self._block_bytes(block)
            if any(data):
                # Combine both: on the ESP32-C2, only one half of the block may be cleared.
                known = self._keys.get(block, bytes(len(data)))
                self._keys[block] = bytes(one | other for one, other in zip(known, data, strict=True))

    def _key_blocks(self) -> list[str]:
        if self._model.is_esp32:
            return ["BLOCK1"]
        return [name for name in self._map.blocks if name.startswith("BLOCK_KEY")]

    def _block_bytes(self, name: str) -> bytes:
        address, size = self._map.blocks[name]
        if self._model.is_esp32 and self.field("CODING_SCHEME") == 1:
            size = 24
        return bytes(self._registers[address - self.base : address - self.base + size])

    def _burn_factory_values(self, mac: bytes) -> None:
        """Burn the factory's values: the MAC address (with its CRC on the ESP32) and the clock calibration."""
        low, high = int.from_bytes(mac[2:], "big"), int.from_bytes(mac[:2], "big")
        first = self._mac_register
        if self._model.is_esp32:
            high |= _crc8(mac) << 16
            self._burn(self._model.rom.EFUSE_RD_REG_BASE + 16, ESP32_CK8M_FREQ)
        elif self._model.chip == "esp32h4":
            self.preset("TEMP", 1)  # the temperature grade; without it, esptool reports an unknown chip
        self._burn(first, low)
        self._burn(first + 4, high)

    def _burn(self, address: int, value: int) -> None:
        struct.pack_into("<I", self._registers, address - self.base, (self.read(address) | value) & 0xFFFFFFFF)


def _crc8(data: bytes) -> int:
    """Return the checksum after an ESP32's MAC address: the CRC-8 of Dallas and Maxim."""
    value = 0
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x8C if value & 1 else 0)
    return value


def _replace(path: Path, data: bytes) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_bytes(data)
    part.replace(path)
