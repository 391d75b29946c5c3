"""Secure boot: signed images, the digest of the public key (v2) or the key itself (v1), and the eFuses.

Source: ESP-IDF's guide, "Secure Boot v2", "Secure Boot" (v1 of the ESP32) and "Security Features Enablement Workflows"
(host based).
"""

from __future__ import annotations

import io
import os
import struct
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from pytest_esp.errors import FirmwareError, OperationError, RefusedError
from pytest_esp.formats.files import ReadPath, resolve
from pytest_esp.formats.firmware import Contents, load
from pytest_esp.formats.images import chip_of
from pytest_esp.formats.partition_table import MAGIC
from pytest_esp.formats.regions import Region
from pytest_esp.link.link import Link
from pytest_esp.link.logs import Transcript, capture
from pytest_esp.operations.chip.identity import identify
from pytest_esp.operations.chip.running import prove_start
from pytest_esp.operations.flash import writing
from pytest_esp.operations.registry import Effect, operation, require
from pytest_esp.operations.security import efuse
from pytest_esp.operations.security.efuse import BurnPlan, Burns, Efuse, EfuseValue
from pytest_esp.operations.security.key_blocks import KeyBurns, for_digest, for_secure_boot_v1
from pytest_esp.operations.security.posture import SecurityPosture, posture
from pytest_esp.operations.security.secret_names import remember_key

Version = Literal["v1", "v2"]

_RSA_ONLY = ("esp32", "esp32s2", "esp32s3", "esp32c3")
_ECDSA_ONLY = ("esp32c2", "esp32c61")
_FIRST_REVISION = 300  # of the ESP32 that has v2
_DIGEST_SIZE = 192  # bytes at address 0 that v1 checks the bootloader against: a random number and a digest
_UNUSED_SLOTS = ("SECURE_BOOT_KEY_REVOKE1", "SECURE_BOOT_KEY_REVOKE2")
_WAYS_PAST = ("DIS_DIRECT_BOOT", "DIS_LEGACY_SPI_BOOT")


@dataclass(frozen=True)
class SecureBootPlan:
    """What `enable_secure_boot` with the same arguments would do.

    Attributes:
        version: v1 on an ESP32 before v3.0, else v2.
        key_block: block for the digest (v2) or the key (v1).
        digest: SHA-256 of the public key, as compared by the ROM; None for v1, where it would be the key.
        burns: the eFuses in order, with bits before and after.
        signed: addresses of the images whose signatures were verified.
        refused: why this board or run does not allow it, and the setting that would; None if it is allowed.
    """

    chip_type: str
    version: Version
    key_block: str
    digest: str | None
    burns: tuple[BurnPlan, ...]
    signed: tuple[int, ...]
    refused: str | None


@dataclass(frozen=True)
class SecureBootEnabled:
    """The result of enabling secure boot.

    Attributes:
        version, key_block, digest, signed: see `SecureBootPlan`.
        burnt: the eFuses in order.
        boot_output: output of the boot afterwards. A simulated chip does not verify signatures itself.
    """

    version: Version
    key_block: str
    digest: str | None
    burnt: tuple[str, ...]
    signed: tuple[int, ...]
    boot_output: str


@operation(Effect.READ, group="security")
def plan_secure_boot(link: Link, firmware: Contents, key_file: ReadPath) -> SecureBootPlan:
    """Run all checks of `enable_secure_boot`, and return what it would do, without changing anything.

    Args:
        firmware: the whole build, signed with the key: bootloader and app; for v1 partition table and app.
        key_file: key in PEM. v2: the public or the private key. v1: the private key.

    Raises:
        FirmwareError: if an image is not signed with this key. OperationError: if chip or eFuses are unsuitable.
    """
    work = _prepare(link, firmware, key_file)
    try:
        _check_allowed(link, work.burns)
        refused = None
    except RefusedError as error:
        refused = f"{error.message}: {error.hint}"
    burns = efuse.plan_all(link, work.burns)
    return SecureBootPlan(work.chip, work.version, work.block, work.digest, burns, work.signed, refused)


@operation(Effect.BURN, group="security")
def enable_secure_boot(link: Link, firmware: Contents, key_file: ReadPath) -> SecureBootEnabled:
    """Enable secure boot: verify signatures, flash the images, burn digest and locks, boot.

    v2, or v1 on an ESP32 before v3.0. Irreversible on real hardware. A real board needs "write" and "burn" in its
    ``allow``, each eFuse of `plan_secure_boot` in its ``allow_burn``, and the run's consent. Images, key and eFuses
    are checked before anything is flashed; the images are flashed before the first eFuse is burnt. JTAG is not changed:
    see the findings of `security.posture`.

    Args:
        firmware: the whole build, signed with the key: bootloader and app; for v1 partition table and app.
        key_file: key in PEM. v2: the public or the private key. v1: the private key, from which the key of the chip is
            derived.

    Raises:
        RefusedError: if the board or the run does not allow it; nothing was changed.
        FirmwareError: if an image is not signed with this key. OperationError: if chip or eFuses are unsuitable, or
            the app does not start afterwards.
    """
    require(link, Effect.WRITE, "security-enable-secure-boot")
    work = _prepare(link, firmware, key_file)
    _check_allowed(link, work.burns)
    efuse.plan_all(link, work.burns)
    writing.write(link, work.pairs)
    efuse.burn_all(link, work.burns)
    run = prove_start(link)
    if not (run.matched and run.state == "running"):
        raise OperationError(
            f"secure boot is enabled, but the app does not run: {run.crash or run.state}",
            details={"boot_output": run.output},
        )
    burnt = tuple(name for name, _ in work.burns)
    return SecureBootEnabled(work.version, work.block, work.digest, burnt, work.signed, run.output)


def with_encryption(
    link: Link, fields: Mapping[str, Efuse], regions: Sequence[Region], key_file: str | os.PathLike[str]
) -> tuple[KeyBurns, Burns]:
    """Return what to burn for the digest of a public key beside a flash encryption key, and the final burns.

    Raises:
        FirmwareError, OperationError: see `enable_secure_boot`; or if the chip supports secure boot v1 only.
    """
    now = posture(link)
    if _version(link, now) == "v1":
        raise OperationError("this ESP32 has secure boot v1 only", hint="enable it first, separately")
    _check_is_off(now)
    key = _read(key_file)
    _check_key(now.chip_type, key)
    _check_signatures(regions, key)
    return for_digest(link, fields, digest_of(key), with_key=True), _locks(fields)


@dataclass(frozen=True)
class _Work:
    """What to flash, and then to burn."""

    chip: str
    version: Version
    block: str
    digest: str | None
    burns: Burns
    signed: tuple[int, ...]
    pairs: list[tuple[int, bytes]]


def _prepare(link: Link, firmware: Contents, key_file: str | os.PathLike[str]) -> _Work:
    key = _read(key_file)
    now = posture(link)
    _check_is_off(now)
    if now.flash_encryption:
        raise OperationError("flash is encrypted already", hint="use a new chip, and enable secure boot first")
    fields = efuse.read_all(link).fields
    loaded = load(firmware)
    if loaded.chip not in (None, now.chip_type):
        raise FirmwareError(f"this is a build for {loaded.chip}, not for {now.chip_type}", hint="nothing was burnt")
    if _version(link, now) == "v1":
        return _prepare_v1(link, fields, loaded.regions, key)
    _check_key(now.chip_type, key)
    digest = digest_of(key)
    burns = for_digest(link, fields, digest)
    signed = _check_signatures(loaded.regions, key)
    return _Work(
        now.chip_type,
        "v2",
        burns.blocks[0],
        digest.hex(),
        [*burns.all_burns(), *_locks(fields)],
        signed,
        [(region.address, region.data) for region in loaded.regions],
    )


def _version(link: Link, now: SecurityPosture) -> Version:
    return "v1" if now.chip_type == "esp32" and (identify(link).revision or 0) < _FIRST_REVISION else "v2"


def _check_is_off(now: SecurityPosture) -> None:
    if now.secure_boot:
        raise OperationError(f"secure boot {now.secure_boot_version} is enabled already")


def _check_allowed(link: Link, burns: Burns) -> None:
    require(link, Effect.BURN, "security-enable-secure-boot")
    require(link, Effect.WRITE, "security-enable-secure-boot")
    link.burns.check(name for name, _ in burns)


def _locks(fields: Mapping[str, Efuse]) -> list[tuple[str, EfuseValue]]:
    """Return the burns after the digest: unused key slots, ways to bypass the bootloader, and the switch itself."""
    switch = "ABS_DONE_1" if "ABS_DONE_1" in fields else "SECURE_BOOT_EN"
    return [(name, 1) for name in (*_UNUSED_SLOTS, *_WAYS_PAST, switch) if name in fields]


# -- v1


def _prepare_v1(link: Link, fields: Mapping[str, Efuse], regions: Sequence[Region], key: bytes) -> _Work:
    secret = _v1_key(key)
    burns = for_secure_boot_v1(link, fields, secret)
    bootloader = next((region for region in regions if region.address == _V1_BOOTLOADER), None)
    signed = [region for region in regions if region is not bootloader and _is_signed_by_v1(region)]
    if bootloader is None or not any(region.data.startswith(MAGIC) for region in signed):
        raise FirmwareError(
            "not a whole build: bootloader and partition table must be separate regions",
            hint="give the build folder",
        )
    for region in signed:
        _check_v1_signature(region, key)
    pairs = [(0, _v1_digest(secret, bootloader)), *((region.address, region.data) for region in regions)]
    return _Work(
        "esp32",
        "v1",
        burns.blocks[0],
        None,
        [*burns.all_burns(), ("ABS_DONE_0", 1)],
        tuple(region.address for region in signed),
        pairs,
    )


_V1_BOOTLOADER = 0x1000


def _is_signed_by_v1(region: Region) -> bool:
    return region.data.startswith(MAGIC) or chip_of(region.data) is not None


def _v1_key(key: bytes) -> bytes:
    """Return the key for the chip: the SHA-256 of the private key, so that new bootloaders can be made later."""
    import espsecure
    import esptool

    out = io.BytesIO()
    out.name = "memory"  # type: ignore[attr-defined]
    try:
        parsed = serialization.load_pem_private_key(key, None)
        if not isinstance(parsed, ec.EllipticCurvePrivateKey) or not isinstance(parsed.curve, ec.SECP256R1):
            raise OperationError("secure boot v1 requires an ECDSA key on the curve NIST P-256")
        with capture(Transcript()):
            espsecure.digest_private_key(_named(key, "the key"), 256, out)
    except (esptool.FatalError, ValueError, TypeError) as error:
        raise OperationError(
            f"not a private key in PEM: {error}",
            hint="generate one for secure boot v1: espsecure generate-signing-key --version 1",
        ) from error
    return out.getvalue()


def _check_v1_signature(region: Region, key: bytes) -> None:
    import espsecure
    import esptool

    try:
        with capture(Transcript()):
            espsecure.verify_signature_v1(_named(key, "the key"), _named(region.data, region.source))
    except (esptool.FatalError, ValueError, struct.error) as error:
        raise FirmwareError(
            f"{region.source} is not signed with this key: {error}",
            hint="sign it with espsecure sign-data --version 1; nothing was changed",
        ) from error


def _v1_digest(secret: bytes, bootloader: Region) -> bytes:
    """Return the contents of address 0: the digest of the bootloader under the chip's key."""
    import espsecure

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "digest"
        with capture(Transcript()):
            espsecure.digest_secure_bootloader(
                _named(secret, "the key"), str(path), None, _named(bootloader.data, bootloader.source)
            )
        return path.read_bytes()[:_DIGEST_SIZE]


# -- v2


def digest_of(key: bytes) -> bytes:
    """Return the digest of a public key in PEM (or of the public part of a private one), as ``espsecure`` computes it.

    Raises:
        OperationError: if secure boot v2 does not support this key.
    """
    import espsecure
    import esptool

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "digest"
        try:
            with capture(Transcript()):
                espsecure.digest_sbv2_public_key(_named(key, "the key"), str(path))
        except (esptool.FatalError, ValueError, TypeError) as error:
            raise OperationError(
                f"not a key for secure boot v2: {error}", hint="use RSA-3072 or ECDSA, in PEM"
            ) from error
        return path.read_bytes()


def _read(key_file: str | os.PathLike[str]) -> bytes:
    try:
        return remember_key(resolve(key_file).read_bytes())
    except OSError as error:
        raise OperationError(f"{key_file} cannot be read: {error.strerror}") from error


def _named(data: bytes, name: str) -> io.BytesIO:
    """espsecure prints and compares the names of its files."""
    file = io.BytesIO(data)
    file.name = name  # type: ignore[attr-defined]
    return file


def _check_key(chip_name: str, key: bytes) -> None:
    try:
        public = b"PUBLIC KEY" in key
        parsed = serialization.load_pem_public_key(key) if public else serialization.load_pem_private_key(key, None)
    except (ValueError, TypeError) as error:
        raise OperationError(f"not a key in PEM: {error}") from error
    is_rsa = isinstance(parsed, (rsa.RSAPublicKey, rsa.RSAPrivateKey))
    if chip_name in _RSA_ONLY and not is_rsa:
        raise OperationError(f"the ROM of the {chip_name} checks RSA signatures only", hint="sign with an RSA-3072 key")
    if chip_name in _ECDSA_ONLY and is_rsa:
        raise OperationError(f"the ROM of the {chip_name} checks ECDSA signatures only", hint="sign with an ECDSA key")


def _check_signatures(regions: Sequence[Region], key: bytes) -> tuple[int, ...]:
    import espsecure
    import esptool

    images = [region for region in regions if chip_of(region.data)]
    if len(images) < 2:
        raise FirmwareError("not a whole build: a bootloader and an app are needed", hint="give the build folder")
    for region in images:
        try:
            with capture(Transcript()):
                espsecure.verify_signature_v2(False, None, _named(key, "the key"), _named(region.data, region.source))
        except esptool.FatalError as error:
            raise FirmwareError(
                f"{region.source} is not signed with this key: {error}",
                hint="sign it with espsecure sign-data --version 2; nothing was changed",
            ) from error
    return tuple(region.address for region in images)
