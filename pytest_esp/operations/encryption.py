"""Flash encryption: what it would take on a chip, images that are encrypted on the host, and the whole procedure.

Source: ESP-IDF's guide, "Flash Encryption" and "Security Features Enablement Workflows" (host based).
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pytest_esp.errors import FirmwareError, OperationError, RefusedError
from pytest_esp.link.link import Link
from pytest_esp.link.logs import Transcript, capture
from pytest_esp.operations import chip, efuse, flash
from pytest_esp.operations.access import reach
from pytest_esp.operations.efuse import Efuse
from pytest_esp.operations.findings import COUNTERS, is_encryption_key, key_blocks_of
from pytest_esp.operations.firmware import Contents, load
from pytest_esp.operations.images import check_image
from pytest_esp.operations.regions import Region, check_fits
from pytest_esp.operations.registry import Effect, operation
from pytest_esp.operations.table import MAGIC, Partition, parse

Mode = Literal["development", "release"]

_KEY_SIZE = 32
_WHOLE_KEY = 0xF  # of FLASH_CRYPT_CONFIG
_XTS_AES_128 = 4  # key purpose
_ENCRYPTED_DATA = ("ota", "nvs_keys")
_DOWNLOAD_LOCKS = {
    "development": ("DISABLE_DL_DECRYPT", "DISABLE_DL_CACHE", "DIS_DOWNLOAD_ICACHE", "DIS_DOWNLOAD_DCACHE"),
    "release": ("DISABLE_DL_ENCRYPT", "DIS_DOWNLOAD_MANUAL_ENCRYPT"),
}


# -- on the host


def encrypt_data(data: bytes, key: bytes, address: int, chip_name: str, config: int = _WHOLE_KEY) -> bytes:
    """Return *data* as it must lie in encrypted flash, by ``espsecure.encrypt_flash_data``.

    Args:
        data: padded with 0xFF to what is encrypted at once: 16 bytes, 32 on an ESP32.
        key: 32 bytes, or 64 for XTS-AES-256 (not on an ESP32).
        address: in flash, a multiple of that.
        chip_name: as esptool names it.
        config: FLASH_CRYPT_CONFIG of an ESP32.

    Raises:
        OperationError: if the key has another size, or the address is not aligned.
    """
    import espsecure
    import esptool

    unit = 32 if chip_name == "esp32" else 16
    sizes = (_KEY_SIZE,) if chip_name == "esp32" else (_KEY_SIZE, 2 * _KEY_SIZE)
    if len(key) not in sizes:
        raise OperationError(f"the key has {len(key)} bytes, not {' or '.join(map(str, sizes))}")
    if address % unit:
        raise OperationError(f"the address {address:#x} is not a multiple of {unit}")
    out = io.BytesIO()
    source, key_file = io.BytesIO(data + b"\xff" * (-len(data) % unit)), io.BytesIO(key)
    # espsecure compares the files' names.
    for number, file in enumerate((out, source, key_file)):
        file.name = f"memory {number}"  # type: ignore[attr-defined]
    try:
        with capture(Transcript()):
            espsecure.encrypt_flash_data(key_file, out, address, config, chip_name != "esp32", source)
    except esptool.FatalError as error:
        raise OperationError(f"it cannot be encrypted: {error}") from error
    return out.getvalue()


# -- what it would take


@dataclass(frozen=True)
class EncryptionStatus:
    """Whether flash is encrypted, and what is left to do.

    Attributes:
        counter: name of the eFuse that counts; *count* is its value, of which an odd number of bits means encrypted.
        config: FLASH_CRYPT_CONFIG of an ESP32; None on others.
        mode: ``"off"``, ``"development"`` (can be switched off again) or ``"release"``.
        steps: what enabling it, or going from development to release, takes, in Espressif's order.
    """

    chip: str
    encrypted: bool
    counter: str
    count: int
    config: int | None
    mode: Literal["off", "development", "release"]
    steps: tuple[str, ...]


@operation(Effect.READ)
def status(link: Link) -> EncryptionStatus:
    """Return whether flash is encrypted, and what enabling it would take. Changes nothing.

    Raises:
        OperationError: if the eFuses cannot be read, or tell nothing of flash encryption.
    """
    summary = efuse.read_all(link)
    return _status(summary.chip, dict(summary.fields))


def _number(field: Efuse) -> int:
    return int(field.bits or "0", 2)


def _status(chip_name: str, fields: dict[str, Efuse]) -> EncryptionStatus:
    name = next((name for name in COUNTERS if name in fields), None)
    if name is None:
        raise OperationError(f"espefuse's definitions of the {chip_name} have no flash encryption counter")
    counter = fields[name]
    count = _number(counter)
    encrypted = bool(count.bit_count() & 1)
    permanent = not counter.writeable or "0" not in (counter.bits or "")
    locked = not _missing(fields, "release")
    mode = "off" if not encrypted else "release" if permanent and locked else "development"
    config = _number(fields["FLASH_CRYPT_CONFIG"]) if "FLASH_CRYPT_CONFIG" in fields else None
    steps = () if mode == "release" else _steps(fields, name, encrypted)
    return EncryptionStatus(chip_name, encrypted, name, count, config, mode, steps)


def _missing(fields: dict[str, Efuse], mode: Mode) -> list[str]:
    """Return the locks of download mode that are not burnt."""
    names = [*_DOWNLOAD_LOCKS["development"], *(_DOWNLOAD_LOCKS["release"] if mode == "release" else ())]
    return [name for name in names if name in fields and not _number(fields[name])]


def _steps(fields: dict[str, Efuse], counter: str, encrypted: bool) -> tuple[str, ...]:
    full = (1 << fields[counter].bit_length) - 1
    locks = ", ".join(_missing(fields, "release")) or "none are left"
    if encrypted:
        return (f"burn {counter} to {full:#x}, so that it stays on", f"burn the locks of download mode: {locks}")
    key = [
        "generate a key of 32 bytes, and keep it or forget it for ever",
        "burn it into a free key block with its purpose, and read-protect and write-protect the block",
    ]
    config = ["burn FLASH_CRYPT_CONFIG to 0xF"] if "FLASH_CRYPT_CONFIG" in fields else []
    return (
        *key,
        *config,
        f"burn {counter}: 1 for development, {full:#x} for release",
        f"burn the locks of download mode: {locks}",
        "encrypt bootloader, partition table, apps and otadata for their addresses, and flash them",
        "start it, and look for the app",
    )


# -- the whole procedure


@dataclass(frozen=True)
class EncryptionEnabled:
    """What was done: the eFuses that were burnt in order, what was flashed encrypted, and the boot that proves it.

    *plain* are the addresses that were flashed as they are: data that the app itself reads and writes.
    """

    mode: Mode
    key_block: str
    burnt: tuple[str, ...]
    encrypted: tuple[int, ...]
    plain: tuple[int, ...]
    boot_output: str


@operation(Effect.BURN)
def enable(
    link: Link, firmware: Contents, key_file: str | os.PathLike[str], mode: Mode = "development"
) -> EncryptionEnabled:
    """Enable flash encryption on a virtual board: key, counter, locks, encrypted images, and a boot that proves it.

    Everything is read, checked and encrypted before the first eFuse is burnt.

    Args:
        firmware: the whole build: bootloader, partition table and app, as regions of their own.
        key_file: 32 bytes.
        mode: development can be switched off again; release cannot.

    Raises:
        RefusedError: on a real board, where each eFuse is burnt for itself (`efuse.burn`).
        OperationError: if the chip or its eFuses do not fit, or the boot does not prove it.
        FirmwareError: if the build is not whole. FirmwareError, LinkError: see `flash.write`.
    """
    if not link.board.virtual:
        raise RefusedError(
            "the whole procedure runs on virtual boards only",
            board=link.board.name,
            hint="it cannot be undone: take its steps one by one (encryption status, efuse burn, flash write)",
        )
    summary = efuse.read_all(link)
    fields = dict(summary.fields)
    now = _status(summary.chip, fields)
    if now.count:
        raise OperationError(f"{now.counter} has bits burnt ({now.count:#x}) already", hint="take a virgin chip")
    key = _read_key(key_file)
    burns, block = _burns(link, fields, now, key, mode)
    regions = _regions(link, firmware, summary.chip)
    secret = _to_encrypt(regions)
    pairs = [
        (
            region.address,
            encrypt_data(region.data, key, region.address, summary.chip) if region in secret else region.data,
        )
        for region in regions
    ]
    for name, value in burns:
        efuse.burn(link, name, value)
    # It is encrypted here already, which is all that esptool would warn of.
    flash.write(link, pairs, skip_unchanged=False, force=True)
    output = _proof(link)
    return EncryptionEnabled(
        mode=mode,
        key_block=block,
        burnt=tuple(name for name, _ in burns),
        encrypted=tuple(region.address for region in regions if region in secret),
        plain=tuple(region.address for region in regions if region not in secret),
        boot_output=output,
    )


def _regions(link: Link, firmware: Contents, chip_name: str) -> Sequence[Region]:
    """Load a build and check that it is for this board, which `flash.write` cannot see in encrypted images."""
    loaded = load(firmware)
    if loaded.chip not in (None, chip_name):
        raise FirmwareError(f"this is a build for {loaded.chip}, not for {chip_name}", hint="nothing was burnt")
    with reach(link, "wire", "looking at the flash") as access:
        size, revision = access.size, access.revision
    for region in loaded.regions:
        check_fits(region, size)
        check_image(region, chip_name, revision)
    return loaded.regions


def _read_key(key_file: str | os.PathLike[str]) -> bytes:
    try:
        key = Path(key_file).read_bytes()
    except OSError as error:
        raise OperationError(f"{key_file} cannot be read: {error.strerror}") from error
    if len(key) != _KEY_SIZE:
        raise OperationError(f"the key has {len(key)} bytes, not {_KEY_SIZE}", hint="XTS-AES-256 is not supported here")
    return key


def _burns(
    link: Link, fields: dict[str, Efuse], now: EncryptionStatus, key: bytes, mode: Mode
) -> tuple[list[tuple[str, int | bytes]], str]:
    """Return the eFuses to burn in order, and the name of the key block."""
    block, purpose = _free_block(fields)
    full = (1 << fields[now.counter].bit_length) - 1
    read_mask, write_mask = efuse.protection_masks(link, block)
    # The hardware takes the key's last byte first.
    burns: list[tuple[str, int | bytes]] = [(block, key[::-1])]
    if purpose is not None:
        burns.append((purpose, _XTS_AES_128))
        write_mask |= efuse.protection_masks(link, purpose)[1]
    burns += [("RD_DIS", read_mask), ("WR_DIS", write_mask)]
    if now.config is not None and now.config != _WHOLE_KEY:
        burns.append(("FLASH_CRYPT_CONFIG", _WHOLE_KEY))
    burns.append((now.counter, full if mode == "release" else 1))
    burns += [(name, 1) for name in _missing(fields, mode)]
    return burns, block


def _free_block(fields: dict[str, Efuse]) -> tuple[str, str | None]:
    """Return a key block that is empty, and the eFuse of its purpose."""
    blocks = key_blocks_of(fields)
    if any(is_encryption_key(item) and item.state != "empty" for item in blocks):
        raise OperationError("a flash encryption key is burnt already", hint="take a virgin chip")
    if any(item.name == "BLOCK1" and item.state == "empty" for item in blocks):
        if _number(fields["CODING_SCHEME"]):
            raise OperationError("the coding scheme of this ESP32 leaves no room for a whole key")
        return "BLOCK1", None
    for item in blocks:
        if item.state == "empty" and item.writeable and item.purpose == "USER" and item.purpose_writeable:
            return item.name, f"KEY_PURPOSE_{item.name[-1]}"
    raise OperationError(
        "no key block is free, or the chip has none of its own for this",
        hint="the ESP32-C2 shares one block between two keys, which is not supported here",
    )


def _to_encrypt(regions: Sequence[Region]) -> list[Region]:
    """Return the regions that the chip reads through its decryption."""
    table = next((region for region in regions if region.data.startswith(MAGIC)), None)
    if table is None or not any(region.address < table.address for region in regions):
        raise FirmwareError(
            "this is not a whole build: bootloader and partition table must be regions of their own",
            hint="give the build folder",
        )
    partitions = parse(table.data)
    return [region for region in regions if _is_encrypted(region, table, partitions)]


def _is_encrypted(region: Region, table: Region, partitions: Sequence[Partition]) -> bool:
    if region.address <= table.address:
        return True
    part = next((part for part in partitions if part.offset <= region.address < part.offset + part.size), None)
    if part is None or region.end > part.offset + part.size:
        raise FirmwareError(f"{region.source} at {region.address:#x} lies in no partition, or in several")
    return part.type == "app" or part.encrypted or (part.type == "data" and part.subtype in _ENCRYPTED_DATA)


def _proof(link: Link) -> str:
    result = chip.reset(link, "app")
    if result.mode == "app" and "Loaded app from partition" in result.output:
        return result.output
    raise OperationError(
        "flash encryption is enabled, but the app does not start",
        hint="are the images those of a build with flash encryption? The output is in the details",
        details={"boot_output": result.output},
    )


# -- from development to release


@dataclass(frozen=True)
class EncryptionConfigured:
    """The eFuses that were burnt, and the mode that the chip is in now."""

    mode: Literal["off", "development", "release"]
    burnt: tuple[str, ...]


@operation(Effect.BURN)
def configure(link: Link, mode: Mode = "release") -> EncryptionConfigured:
    """Burn what is missing of a mode on a chip whose flash is encrypted: locks of download mode, and the counter.

    On a real board every one of these eFuses must be in its ``allow_burn``; that is checked before the first is burnt.

    Args:
        mode: release makes the encryption permanent; development burns its locks only.

    Raises:
        RefusedError: see `efuse.burn`; nothing was burnt. OperationError: if flash is not encrypted.
    """
    now = status(link)
    if not now.encrypted:
        raise OperationError("flash is not encrypted", hint="enable flash encryption first")
    fields = dict(efuse.read_all(link).fields)
    names = _missing(fields, mode)
    burns = dict.fromkeys(names, 1)
    counter = fields[now.counter]
    if mode == "release" and counter.writeable and "0" in (counter.bits or ""):
        burns[now.counter] = (1 << counter.bit_length) - 1
    for name in burns:
        efuse.require_consent(link, name)
    for name, value in burns.items():
        efuse.burn(link, name, value)
    return EncryptionConfigured(status(link).mode, tuple(burns))
