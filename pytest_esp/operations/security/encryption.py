"""Flash encryption: its state on a chip, encryption of images on the host, and the whole procedure of enabling it.

Source: ESP-IDF's guide, "Flash Encryption" and "Security Features Enablement Workflows" (host based).
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pytest_esp.errors import FirmwareError, OperationError, RefusedError
from pytest_esp.formats.files import ReadPath, WritePath, known_chip, new_file, read_file, resolve, save
from pytest_esp.formats.firmware import Contents, load
from pytest_esp.formats.images import check_image
from pytest_esp.formats.partition_table import MAGIC, Partition, parse
from pytest_esp.formats.regions import Region, check_fits, size_argument
from pytest_esp.link.link import Link
from pytest_esp.link.logs import Transcript, capture
from pytest_esp.names import ChipName
from pytest_esp.operations.chip.running import prove_start
from pytest_esp.operations.flash import writing
from pytest_esp.operations.flash.access import reach
from pytest_esp.operations.registry import Effect, file_operation, operation, require
from pytest_esp.operations.results import Address
from pytest_esp.operations.security import efuse, secure_boot
from pytest_esp.operations.security.efuse import BurnPlan, Burns, Efuse, EfuseValue
from pytest_esp.operations.security.findings import COUNTERS
from pytest_esp.operations.security.key_blocks import for_flash_key
from pytest_esp.operations.security.secret_names import remember_key

Mode = Literal["development", "release"]

_KEY_SIZES = {"esp32": (32,), "esp32c2": (16, 32)}
_WHOLE_KEY = 0xF  # of FLASH_CRYPT_CONFIG
_ENCRYPTED_DATA = ("ota", "nvs_keys")
_DOWNLOAD_LOCKS = {
    "development": ("DISABLE_DL_DECRYPT", "DISABLE_DL_CACHE", "DIS_DOWNLOAD_ICACHE", "DIS_DOWNLOAD_DCACHE"),
    "release": ("DISABLE_DL_ENCRYPT", "DIS_DOWNLOAD_MANUAL_ENCRYPT"),
}


# -- on the host


def encrypt_data(data: bytes, key: bytes, address: int, chip_name: str, config: int = _WHOLE_KEY) -> bytes:
    """Return *data* encrypted as it must be in flash, by ``espsecure.encrypt_flash_data``.

    Args:
        data: is padded with 0xFF to the encryption unit: 16 bytes, 32 on an ESP32.
        key: 32 bytes; 64 for XTS-AES-256 (not on an ESP32); 16 on an ESP32-C2 that shares its key block.
        address: in flash, a multiple of that unit.
        chip_name: as esptool names it.
        config: FLASH_CRYPT_CONFIG of an ESP32.

    Raises:
        OperationError: if the key size is invalid, or the address is not aligned.
    """
    import espsecure
    import esptool

    unit = 32 if chip_name == "esp32" else 16
    sizes = _KEY_SIZES.get(chip_name, (32, 64))
    if len(key) not in sizes:
        raise OperationError(f"the key must have {' or '.join(map(str, sizes))} bytes, not {len(key)}")
    if address % unit:
        raise OperationError(f"address {address:#x} must be a multiple of {unit}")
    out = io.BytesIO()
    source, key_file = io.BytesIO(data + b"\xff" * (-len(data) % unit)), io.BytesIO(key)
    # espsecure compares the files' names.
    for number, file in enumerate((out, source, key_file)):
        file.name = f"memory {number}"  # type: ignore[attr-defined]
    try:
        with capture(Transcript()):
            espsecure.encrypt_flash_data(key_file, out, address, config, chip_name != "esp32", source)
    except esptool.FatalError as error:
        raise OperationError(f"encryption failed: {error}") from error
    return out.getvalue()


# -- state


@dataclass(frozen=True)
class EncryptedFile:
    """An image encrypted for *address*; its size in bytes, including padding."""

    output_file: str
    address: Address
    size: int


@file_operation(group="encryption")
def encrypt_image(
    key_file: ReadPath,
    input_file: ReadPath,
    output_file: WritePath,
    address: int | str,
    chip_type: ChipName,
    *,
    overwrite: bool = False,
) -> EncryptedFile:
    """Encrypt an image for its address in flash, on the host, like `encrypt_data`.

    Args:
        key_file: file with the key: 32 bytes; 64 for XTS-AES-256; 16 or 32 for an ESP32-C2.
        input_file: the plaintext image.
        output_file: file for the encrypted image.
        address: address of the image in flash: 65536, "0x10000" or "64KB".
        chip_type: chip name as in esptool, e.g. esp32c3.
        overwrite: replace *output_file* if it exists.

    Raises:
        OperationError: if the key size is invalid, the address is not aligned, the chip is unknown, or the file exists.
        FirmwareError: if a file cannot be read.
    """
    chip = known_chip(chip_type)
    path = new_file(output_file, overwrite)
    place = size_argument(address, "address")
    key = remember_key(read_file(key_file, "key"))
    data = encrypt_data(read_file(input_file, "image"), key, place, chip)
    save(path, data)
    return EncryptedFile(output_file=str(path), address=place, size=len(data))


_ENABLED = "Flash encryption is already enabled on this device."
_NOT_ENABLED = (
    "Flash encryption is NOT enabled. It takes (see steps) a key, the eFuse {counter}, the locks of download mode, "
    "and encrypted firmware. WARNING: this is irreversible on real hardware. Test on QEMU or a simulated chip first: "
    "the plan of enabling it says which eFuses would be burnt."
)


@dataclass(frozen=True)
class EncryptionStatus:
    """Whether flash is encrypted, and the remaining steps.

    Attributes:
        message: the same in words.
        key_file: the argument of the call; the file was not read.
        FLASH_CRYPT_CNT: the count as text, whatever the counter is called on this chip.
        FLASH_CRYPT_CONFIG: the config as text.
        counter: name of the counter eFuse; *count* is its value: an odd number of set bits means encrypted.
        config: FLASH_CRYPT_CONFIG of an ESP32; None on others.
        mode: ``"off"``, ``"development"`` (can be switched off again) or ``"release"``.
        steps: what it takes to enable it, or to go from development to release, in Espressif's order.
    """

    chip_type: str
    flash_encryption_enabled: bool
    message: str
    mode: Literal["off", "development", "release"]
    counter: str
    count: int
    config: int | None
    steps: tuple[str, ...]
    key_file: str | None
    FLASH_CRYPT_CNT: str
    FLASH_CRYPT_CONFIG: str | None


@operation(Effect.READ, group="encryption")
def status(link: Link, key_file: str | None = None) -> EncryptionStatus:
    """Return whether flash is encrypted, and the steps to enable encryption. Changes nothing.

    Args:
        key_file: is repeated in the result; the file is not read.

    Raises:
        OperationError: if the eFuses cannot be read, or have no flash encryption counter.
    """
    summary = efuse.read_all(link)
    return _status(summary.chip_type, dict(summary.fields), key_file)


def _number(field: Efuse) -> int:
    return int(field.bits or "0", 2)


def _status(chip_name: str, fields: dict[str, Efuse], key_file: str | None = None) -> EncryptionStatus:
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
    return EncryptionStatus(
        chip_type=chip_name,
        flash_encryption_enabled=encrypted,
        message=_ENABLED if encrypted else _NOT_ENABLED.format(counter=name),
        mode=mode,
        counter=name,
        count=count,
        config=config,
        steps=steps,
        key_file=key_file,
        FLASH_CRYPT_CNT=_short(count),
        FLASH_CRYPT_CONFIG=None if config is None else _short(config),
    )


def _short(number: int) -> str:
    return f"{number:#x}" if number > 1 else str(number)


def _missing(fields: dict[str, Efuse], mode: Mode) -> list[str]:
    """Return the eFuses that lock download mode and are not burnt yet."""
    names = [*_DOWNLOAD_LOCKS["development"], *(_DOWNLOAD_LOCKS["release"] if mode == "release" else ())]
    return [name for name in names if name in fields and not _number(fields[name])]


def _steps(fields: dict[str, Efuse], counter: str, encrypted: bool) -> tuple[str, ...]:
    full = (1 << fields[counter].bit_length) - 1
    locks = ", ".join(_missing(fields, "release")) or "none are left"
    if encrypted:
        return (f"burn {counter} to {full:#x}, so that it stays on", f"burn the locks of download mode: {locks}")
    key = [
        "generate a key (32 bytes; 64 for XTS-AES-256 where the chip has it), and store it safely or discard it",
        "burn it into a free key block with its purpose (64 bytes: into two), and read-protect and write-protect it",
    ]
    config = ["burn FLASH_CRYPT_CONFIG to 0xF"] if "FLASH_CRYPT_CONFIG" in fields else []
    return (
        *key,
        *config,
        f"burn {counter}: 1 for development, {full:#x} for release",
        f"burn the locks of download mode: {locks}",
        "encrypt bootloader, partition table, apps and otadata for their addresses, and flash them",
        "reset the board, and check that the app starts",
    )


# -- the whole procedure


@dataclass(frozen=True)
class EncryptionPlan:
    """What `enable` with the same arguments would do.

    Attributes:
        key_blocks: blocks for the key (and, with secure boot, the digest).
        burns: the eFuses in order, with bits before and after.
        encrypted, plain: addresses of regions to flash encrypted, and as plaintext (data that the app itself writes).
        refused: why this board or run does not allow it, and the setting that would; None if it is allowed.
    """

    chip_type: str
    mode: Mode
    key_blocks: tuple[str, ...]
    burns: tuple[BurnPlan, ...]
    encrypted: tuple[int, ...]
    plain: tuple[int, ...]
    refused: str | None


@dataclass(frozen=True)
class EncryptionEnabled:
    """The result: eFuses burnt, in order; regions flashed encrypted; output of the boot that confirms it.

    *plain* are the addresses of regions flashed as plaintext: data that the app itself reads and writes.
    """

    mode: Mode
    key_blocks: tuple[str, ...]
    burnt: tuple[str, ...]
    encrypted: tuple[int, ...]
    plain: tuple[int, ...]
    boot_output: str


@operation(Effect.READ, group="encryption")
def plan(
    link: Link,
    firmware: Contents,
    key_file: ReadPath,
    mode: Mode = "development",
    secure_boot_key: ReadPath | None = None,
) -> EncryptionPlan:
    """Run all checks of `enable` with the same arguments, and return what it would do, without changing anything.

    Args:
        firmware: the whole build: bootloader, partition table and app, as separate regions.
        key_file: file with the key: 32 bytes; 64 for XTS-AES-256 if the chip has it; 16 or 32 on an ESP32-C2.
        mode: development can be disabled again; release cannot.
        secure_boot_key: also plan secure boot v2 with this key (PEM).

    Raises:
        FirmwareError, OperationError: if the procedure is not possible.
    """
    work = _prepare(link, firmware, key_file, mode, secure_boot_key)
    try:
        _check_allowed(link, work)
        refused = None
    except RefusedError as error:
        refused = f"{error.message}: {error.hint}"
    burns = efuse.plan_all(link, work.burns)
    return EncryptionPlan(work.chip, mode, work.blocks, burns, work.encrypted, work.plain, refused)


@operation(Effect.BURN, group="encryption")
def enable(
    link: Link,
    firmware: Contents,
    key_file: ReadPath,
    mode: Mode = "development",
    secure_boot_key: ReadPath | None = None,
) -> EncryptionEnabled:
    """Enable flash encryption: burn key, counter and download mode locks, flash encrypted images, and verify the boot.

    Irreversible on real hardware. A real board needs "write" and "burn" in its ``allow``, each eFuse of `plan` in its
    ``allow_burn``, and the run's consent. Everything is read, checked, encrypted and planned before the first eFuse is
    burnt. It cannot be interrupted between two eFuses.

    Args:
        firmware: the whole build: bootloader, partition table and app, as separate regions.
        key_file: file with the key: 32 bytes; 64 for XTS-AES-256 if the chip has it; 16 or 32 on an ESP32-C2.
        mode: development can be disabled again; release cannot.
        secure_boot_key: also enable secure boot v2 with this key (see `secure_boot.enable_secure_boot`). An ESP32-C2
            has one key block for key and digest, which can be burnt only once.

    Raises:
        RefusedError: if the board or the run does not allow it; nothing was changed.
        OperationError: if the chip or its eFuses are unsuitable, or the boot does not confirm the encryption.
    """
    _check_may_write(link)
    work = _prepare(link, firmware, key_file, mode, secure_boot_key)
    _check_allowed(link, work)
    efuse.plan_all(link, work.burns)
    efuse.burn_all(link, work.first)
    # The images are encrypted already, which is the only thing that esptool would warn about.
    writing.write(link, work.pairs, skip_unchanged=False, force=True)
    if work.last:  # with secure boot enabled, some chips do not run the stub
        efuse.burn_all(link, work.last)
    output = _proof(link)
    burnt = tuple(name for name, _ in work.burns)
    return EncryptionEnabled(mode, work.blocks, burnt, work.encrypted, work.plain, output)


@dataclass(frozen=True)
class _Work:
    """The eFuses to burn before and after flashing, and the images to flash."""

    chip: str
    blocks: tuple[str, ...]
    first: Burns
    last: Burns
    pairs: list[tuple[int, bytes]]
    encrypted: tuple[int, ...]
    plain: tuple[int, ...]

    @property
    def burns(self) -> Burns:
        return [*self.first, *self.last]


def _prepare(
    link: Link,
    firmware: Contents,
    key_file: str | os.PathLike[str],
    mode: Mode,
    secure_boot_key: str | os.PathLike[str] | None,
) -> _Work:
    summary = efuse.read_all(link)
    fields = dict(summary.fields)
    now = _status(summary.chip_type, fields)
    if now.count:
        raise OperationError(f"{now.counter} has burnt bits already ({now.count:#x})", hint="use a new chip")
    key = _read_key(key_file)
    keys = for_flash_key(link, fields, key)
    regions = _regions(link, firmware, summary.chip_type)
    last: Burns = []
    if secure_boot_key is not None:
        digest, last = secure_boot.with_encryption(link, fields, regions, secure_boot_key)
        keys += digest
    secret = _to_encrypt(regions)
    pairs = [
        (
            region.address,
            encrypt_data(region.data, key, region.address, summary.chip_type) if region in secret else region.data,
        )
        for region in regions
    ]
    encrypted = tuple(region.address for region in regions if region in secret)
    plain = tuple(region.address for region in regions if region not in secret)
    first = [*keys.all_burns(), *_burns(fields, now, mode)]
    return _Work(summary.chip_type, keys.blocks, first, last, pairs, encrypted, plain)


def _check_allowed(link: Link, work: _Work) -> None:
    require(link, Effect.BURN, "encryption-enable")
    _check_may_write(link)
    link.burns.check(name for name, _ in work.burns)


def _check_may_write(link: Link) -> None:
    """Check before the first burn what would otherwise be refused at the first write."""
    require(link, Effect.WRITE, "encryption-enable")


def _regions(link: Link, firmware: Contents, chip_name: str) -> Sequence[Region]:
    """Load a build and check that it is for this board; `writing.write` cannot check encrypted images."""
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
        return remember_key(resolve(key_file).read_bytes())
    except OSError as error:
        raise OperationError(f"{key_file} cannot be read: {error.strerror}") from error


def _burns(fields: dict[str, Efuse], now: EncryptionStatus, mode: Mode) -> list[tuple[str, EfuseValue]]:
    """Return the eFuses to burn after the key, in order."""
    full = (1 << fields[now.counter].bit_length) - 1
    burns: list[tuple[str, EfuseValue]] = []
    if now.config is not None and now.config != _WHOLE_KEY:
        burns.append(("FLASH_CRYPT_CONFIG", _WHOLE_KEY))
    burns.append((now.counter, full if mode == "release" else 1))
    return [*burns, *((name, 1) for name in _missing(fields, mode))]


def _to_encrypt(regions: Sequence[Region]) -> list[Region]:
    """Return the regions that the chip reads with decryption."""
    table = next((region for region in regions if region.data.startswith(MAGIC)), None)
    if table is None or not any(region.address < table.address for region in regions):
        raise FirmwareError(
            "not a whole build: bootloader and partition table must be separate regions",
            hint="give the build folder",
        )
    partitions = parse(table.data)
    return [region for region in regions if _is_encrypted(region, table, partitions)]


def _is_encrypted(region: Region, table: Region, partitions: Sequence[Partition]) -> bool:
    if region.address <= table.address:
        return True
    part = next((part for part in partitions if part.offset <= region.address < part.offset + part.size), None)
    if part is None or region.end > part.offset + part.size:
        raise FirmwareError(f"{region.source} at {region.address:#x} does not belong to exactly one partition")
    return part.type == "app" or part.encrypted or (part.type == "data" and part.subtype in _ENCRYPTED_DATA)


def _proof(link: Link) -> str:
    run = prove_start(link)
    if run.matched and run.state == "running":
        return run.output
    raise OperationError(
        f"flash encryption is enabled, but the app does not run: {run.crash or run.state}",
        hint="check that the images are from a build with flash encryption; see the output in the details",
        details={"boot_output": run.output},
    )


# -- from development to release


@dataclass(frozen=True)
class EncryptionConfigured:
    """The eFuses burnt, and the resulting mode."""

    mode: Literal["off", "development", "release"]
    burnt: tuple[str, ...]


@operation(Effect.BURN, group="encryption")
def configure(link: Link, mode: Mode = "release") -> EncryptionConfigured:
    """Burn the eFuses that a chip with flash encryption still lacks for a mode: download mode locks and the counter.

    On a real board each of these eFuses must be in its ``allow_burn``; this is checked before the first is burnt.

    Args:
        mode: release makes the encryption permanent; development only burns its locks.

    Raises:
        RefusedError: see `efuse.burn`; nothing was burnt. OperationError: if flash is not encrypted.
    """
    burns = burns_to_configure(link, mode)
    if burns:
        efuse.burn_all(link, burns)
    return EncryptionConfigured(status(link).mode, tuple(name for name, _ in burns))


def burns_to_configure(link: Link, mode: Mode = "release") -> list[tuple[str, EfuseValue]]:
    """Return the eFuses that `configure` would burn, and their values.

    Raises:
        OperationError: if flash is not encrypted.
    """
    now = status(link)
    if not now.flash_encryption_enabled:
        raise OperationError("flash is not encrypted", hint="enable flash encryption first")
    fields = dict(efuse.read_all(link).fields)
    names = _missing(fields, mode)
    burns: dict[str, EfuseValue] = dict.fromkeys(names, 1)
    counter = fields[now.counter]
    if mode == "release" and counter.writeable and "0" in (counter.bits or ""):
        burns[now.counter] = (1 << counter.bit_length) - 1
    return list(burns.items())
