"""Secure boot v2 on virtual boards: signed images, the digest of the public key, and the eFuses.

Source: ESP-IDF's guide, "Secure Boot v2" and "Security Features Enablement Workflows" (host based).
"""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from pytest_esp.errors import FirmwareError, OperationError, RefusedError
from pytest_esp.link.link import Link
from pytest_esp.link.logs import Transcript, capture
from pytest_esp.operations import chip, efuse, flash
from pytest_esp.operations.findings import key_blocks_of
from pytest_esp.operations.firmware import Contents, load
from pytest_esp.operations.images import chip_of
from pytest_esp.operations.regions import Region
from pytest_esp.operations.registry import Effect, operation
from pytest_esp.operations.security import posture

_RSA_ONLY = ("esp32", "esp32s2", "esp32s3", "esp32c3")
_DIGEST0 = 9  # key purpose
_FIRST_REVISION = 300  # of the ESP32 that has it


@dataclass(frozen=True)
class SecureBootEnabled:
    """What was done.

    Attributes:
        key_block: where the digest lies now.
        digest: SHA-256 of the public key as the ROM compares it, 64 hex digits; it is no secret.
        burnt: the eFuses in order.
        signed: addresses of the images whose signatures were checked.
        boot_output: of the boot after it. A simulated chip does not check signatures itself.
    """

    key_block: str
    digest: str
    burnt: tuple[str, ...]
    signed: tuple[int, ...]
    boot_output: str


@operation(Effect.BURN, group="security")
def enable_secure_boot(link: Link, firmware: Contents, key_file: str | os.PathLike[str]) -> SecureBootEnabled:
    """Enable secure boot v2 on a virtual board: signatures checked, images flashed, digest and locks burnt, booted.

    Images and key are checked before anything is flashed, and flashed before the first eFuse is burnt.

    Args:
        firmware: the whole build, with bootloader and app signed by that key.
        key_file: the public key, or the private one, in PEM.

    Raises:
        RefusedError: on a real board, where each eFuse is burnt for itself (`efuse.burn`).
        FirmwareError: if an image is not signed by this key. OperationError: if the chip or its eFuses do not fit, or
            the app does not start afterwards.
    """
    if not link.board.virtual:
        raise RefusedError(
            "the whole procedure runs on virtual boards only",
            board=link.board.name,
            hint="it cannot be undone: burn the digest and SECURE_BOOT_EN one by one (efuse burn)",
        )
    key = _read(key_file)
    now = posture(link)
    if now.secure_boot:
        raise OperationError(f"secure boot {now.secure_boot_version} is enabled already")
    if now.flash_encryption:
        raise OperationError("flash is encrypted already", hint="on a virgin chip enable secure boot first")
    _check_chip(link, now.chip, key)
    digest = digest_of(key)
    burns, block = _burns(link, digest)
    loaded = load(firmware)
    signed = _check_images(loaded.regions, key)
    flash.write(link, loaded)
    for name, value in burns:
        efuse.burn(link, name, value)
    result = chip.reset(link, "app")
    if "Loaded app from partition" not in result.output:
        raise OperationError(
            "secure boot is enabled, but the app does not start", details={"boot_output": result.output}
        )
    return SecureBootEnabled(block, digest.hex(), tuple(name for name, _ in burns), signed, result.output)


def digest_of(key: bytes) -> bytes:
    """Return the digest of a public key in PEM (or of that of a private one), as ``espsecure`` computes it.

    Raises:
        OperationError: if it is no key that secure boot v2 knows.
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
                f"it is no key for secure boot v2: {error}", hint="RSA-3072 or ECDSA, in PEM"
            ) from error
        return path.read_bytes()


def _read(key_file: str | os.PathLike[str]) -> bytes:
    try:
        return Path(key_file).read_bytes()
    except OSError as error:
        raise OperationError(f"{key_file} cannot be read: {error.strerror}") from error


def _named(data: bytes, name: str) -> io.BytesIO:
    """espsecure prints and compares the names of its files."""
    file = io.BytesIO(data)
    file.name = name  # type: ignore[attr-defined]
    return file


def _check_chip(link: Link, chip_name: str, key: bytes) -> None:
    if chip_name == "esp32" and (chip.identify(link).revision or 0) < _FIRST_REVISION:
        raise OperationError("this ESP32 has no secure boot v2", hint="it came with revision v3.0")
    try:
        public = b"PUBLIC KEY" in key
        parsed = serialization.load_pem_public_key(key) if public else serialization.load_pem_private_key(key, None)
    except (ValueError, TypeError) as error:
        raise OperationError(f"it is no key in PEM: {error}") from error
    if chip_name in _RSA_ONLY and not isinstance(parsed, (rsa.RSAPublicKey, rsa.RSAPrivateKey)):
        raise OperationError(f"the ROM of the {chip_name} checks RSA signatures only", hint="sign with an RSA-3072 key")


def _burns(link: Link, digest: bytes) -> tuple[list[tuple[str, int | bytes]], str]:
    """Return the eFuses to burn in order, and the name of the key block."""
    fields = efuse.read_all(link).fields
    blocks = [item for item in key_blocks_of(fields) if item.state == "empty" and item.writeable]
    # An ESP32's own block for it; on others one whose purpose is free. The last ones are taken: the first are those
    # that flash encryption takes.
    own = [item.name for item in blocks if item.name == "BLOCK2"]
    free = [item.name for item in blocks if item.purpose == "USER" and item.purpose_writeable]
    if not own and not free:
        raise OperationError("no key block is free, or the ESP32-C2 shares its one, which is not supported here")
    block = own[0] if own else free[-1]
    burns: list[tuple[str, int | bytes]] = [(block, digest)]
    _, write_mask = efuse.protection_masks(link, block)
    if not own:
        purpose = f"KEY_PURPOSE_{block[-1]}"
        burns.append((purpose, _DIGEST0))
        write_mask |= efuse.protection_masks(link, purpose)[1]
    burns.append(("WR_DIS", write_mask))
    burns += [(name, 1) for name in ("SECURE_BOOT_KEY_REVOKE1", "SECURE_BOOT_KEY_REVOKE2") if name in fields]
    burns.append(("ABS_DONE_1" if own else "SECURE_BOOT_EN", 1))
    return burns, block


def _check_images(regions: Sequence[Region], key: bytes) -> tuple[int, ...]:
    import espsecure
    import esptool

    images = [region for region in regions if chip_of(region.data)]
    if len(images) < 2:
        raise FirmwareError(
            "this is not a whole build: a bootloader and an app are needed", hint="give the build folder"
        )
    for region in images:
        try:
            with capture(Transcript()):
                espsecure.verify_signature_v2(False, None, _named(key, "the key"), _named(region.data, region.source))
        except esptool.FatalError as error:
            raise FirmwareError(
                f"{region.source} is not signed by this key: {error}",
                hint="sign it with espsecure sign-data --version 2; nothing was changed",
            ) from error
    return tuple(region.address for region in images)
