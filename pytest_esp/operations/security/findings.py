"""Evaluates the weaknesses of a chip's locks and key blocks, from its eFuses alone.

Source: the chapters "Flash encryption", "Secure boot" and "Security overview" of ESP-IDF's guide for each chip.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from pytest_esp.operations.security.efuse import Efuse

Fields = Mapping[str, Efuse]
Severity = Literal["high", "medium", "low", "info"]

SEVERITIES: tuple[Severity, ...] = ("high", "medium", "low", "info")
"""From letting an attacker in to merely worth knowing."""


@dataclass(frozen=True)
class Finding:
    """One weakness: its severity, a description, and what to do about it."""

    severity: Severity
    what: str
    what_to_do: str


@dataclass(frozen=True)
class KeyBlock:
    """An eFuse key block. Its contents are never shown.

    Attributes:
        purpose: its use in hardware, named as in espefuse; None if neither the chip nor its ROM has purposes.
        state: ``"empty"``; ``"burnt"``; ``"read-protected"`` (software reads zeros, so that the contents are unknown).
        readable, writeable: whether its protection allows reading and writing.
        purpose_writeable: whether the purpose can still be changed; None if the chip has no such eFuse.
    """

    name: str
    purpose: str | None
    state: Literal["empty", "burnt", "read-protected"]
    readable: bool
    writeable: bool
    purpose_writeable: bool | None


@dataclass(frozen=True)
class Locks:
    """The lock state of a chip, as needed here; see `security.SecurityPosture`."""

    flash_encryption: bool | None
    secure_boot_version: Literal["v1", "v2"] | None
    jtag_pads: str
    jtag_usb: str
    download_mode: str


_ESP32_PURPOSES = {"BLOCK1": "FLASH_ENCRYPTION", "BLOCK2": "SECURE_BOOT", "BLOCK3": None}
# The single block of an ESP32-C2 is a long key, or a short key and a digest, protected separately.
_LONG_KEY = {"BLOCK_KEY0": "XTS_AES_128_KEY"}
_HALVES = {
    "BLOCK_KEY0_LOW_128": "XTS_AES_128_KEY_DERIVED_FROM_128_EFUSE_BITS",
    "BLOCK_KEY0_HI_128": "SECURE_BOOT_DIGEST",
}
_KEY_BLOCK = re.compile(r"BLOCK_KEY(\d)")


def key_blocks_of(fields: Fields) -> tuple[KeyBlock, ...]:
    """Return the key blocks in the eFuses, in order."""
    if "XTS_KEY_LENGTH_256" in fields and "BLOCK_KEY0_LOW_128" in fields:
        fixed = _LONG_KEY if _burnt(fields, "XTS_KEY_LENGTH_256") else _HALVES
        return tuple(_key_block(fields[name], purpose) for name, purpose in fixed.items())
    numbered = [match for match in map(_KEY_BLOCK.fullmatch, sorted(fields)) if match]
    return tuple(
        [_key_block(fields[match[0]], fields.get(f"KEY_PURPOSE_{match[1]}")) for match in numbered]
        or [_key_block(fields[name], purpose) for name, purpose in _ESP32_PURPOSES.items() if name in fields]
    )


def _key_block(block: Efuse, purpose: Efuse | str | None) -> KeyBlock:
    return KeyBlock(
        name=block.efuse_name,
        purpose=purpose.value if isinstance(purpose, Efuse) else purpose,
        state="read-protected" if not block.readable else "burnt" if "1" in (block.bits or "") else "empty",
        readable=block.readable,
        writeable=block.writeable,
        purpose_writeable=purpose.writeable if isinstance(purpose, Efuse) else None,
    )


def findings_of(locks: Locks, fields: Fields) -> tuple[Finding, ...]:
    """Return the weaknesses, the worst first.

    Args:
        locks: the lock state of the chip.
        fields: its eFuses; empty if they cannot be read (secure download mode).
    """
    keys = key_blocks_of(fields)
    found = [*_of_flash_encryption(locks), *_of_secure_boot(locks), *_of_jtag(locks, fields), *_of_download_mode(locks)]
    if not fields:
        found.append(
            Finding(
                "info",
                "keys, their protection and the single locks cannot be read in secure download mode",
                "audit boards before enabling secure download mode",
            )
        )
    else:
        if locks.flash_encryption:
            found += [*_of_the_counter(fields), *_of_the_encryption_key(fields, keys), *_of_plain_ways(locks, fields)]
        if locks.secure_boot_version == "v2":
            found += [*_of_digests(keys), *_of_revocation(fields, keys), *_of_what_guards_digests(fields)]
        found += _of_purposes(keys)
    return tuple(sorted(found, key=lambda finding: SEVERITIES.index(finding.severity)))


def _burnt(fields: Fields, name: str) -> bool:
    return name in fields and "1" in (fields[name].bits or "")


def _unburnt(fields: Fields, *names: str) -> list[str]:
    """Return the eFuses among these that the chip has and that are not burnt."""
    return [name for name in names if name in fields and not _burnt(fields, name)]


# -- flash encryption

COUNTERS = ("FLASH_CRYPT_CNT", "SPI_BOOT_CRYPT_CNT")
_PLAIN_IN_DOWNLOAD_MODE = ("DISABLE_DL_DECRYPT", "DISABLE_DL_CACHE", "DIS_DOWNLOAD_ICACHE", "DIS_DOWNLOAD_DCACHE")
_WRITES_IN_DOWNLOAD_MODE = ("DISABLE_DL_ENCRYPT", "DIS_DOWNLOAD_MANUAL_ENCRYPT")
_ALL_OF_THE_KEY = 0xF


def is_encryption_key(key: KeyBlock) -> bool:
    """Return whether this block holds the flash encryption key."""
    purpose = key.purpose or ""
    return purpose == "FLASH_ENCRYPTION" or (purpose.startswith("XTS_AES") and "PSRAM" not in purpose)


def _of_flash_encryption(locks: Locks) -> Iterator[Finding]:
    if locks.flash_encryption is None:
        yield Finding(
            "info",
            "espefuse's definitions of this chip have no flash encryption counter",
            "check the chip's manual",
        )
    elif not locks.flash_encryption:
        yield Finding(
            "high",
            "flash is not encrypted: anyone with the board can read firmware and data",
            "enable flash encryption before shipping the board",
        )


def _of_plain_ways(locks: Locks, fields: Fields) -> Iterator[Finding]:
    if locks.download_mode == "disabled":
        return
    for name in _unburnt(fields, *_PLAIN_IN_DOWNLOAD_MODE):
        what = f"code loaded in download mode can read decrypted flash: {name} is not burnt"
        yield Finding("high", what, f"burn {name}")
    for name in _unburnt(fields, *_WRITES_IN_DOWNLOAD_MODE):
        yield Finding("medium", f"download mode encrypts data that is sent to it: {name} is not burnt", f"burn {name}")


def _of_the_counter(fields: Fields) -> Iterator[Finding]:
    counter = next(fields[name] for name in COUNTERS if name in fields)
    if counter.writeable and "0" in (counter.bits or ""):
        yield Finding(
            "medium",
            f"flash encryption can be disabled again: {counter.efuse_name} has unburnt bits (development mode)",
            f"burn all bits of {counter.efuse_name}, or write-protect it",
        )


def _of_the_encryption_key(fields: Fields, keys: tuple[KeyBlock, ...]) -> Iterator[Finding]:
    used = [key for key in keys if is_encryption_key(key)]
    for key in used:
        if key.state == "burnt":
            yield Finding("high", f"the flash encryption key in {key.name} can be read", f"read-protect {key.name}")
    # Chips with a key manager may store the key there.
    if all(key.state == "empty" for key in used) and not _burnt(fields, "FORCE_USE_KEY_MANAGER_KEY"):
        yield Finding(
            "high",
            "flash encryption is enabled, but no key is burnt: flash is encrypted with zeros",
            "burn a secret key, and flash the firmware again",
        )
    config = fields.get("FLASH_CRYPT_CONFIG")
    if config is not None and int(config.bits or "0", 2) != _ALL_OF_THE_KEY:
        yield Finding(
            "medium",
            "FLASH_CRYPT_CONFIG is not 0xF: equal blocks of flash are equal when encrypted",
            "burn FLASH_CRYPT_CONFIG to 0xF before encrypting flash",
        )


# -- secure boot


def _of_secure_boot(locks: Locks) -> Iterator[Finding]:
    if locks.secure_boot_version is None:
        yield Finding("high", "secure boot is off: any firmware starts", "enable it before shipping the board")
    elif locks.secure_boot_version == "v1":
        yield Finding(
            "medium",
            "secure boot v1: its key is in the chip, and the chips that use it are vulnerable to glitching",
            "use secure boot v2, on an ESP32 of revision v3.0 or later",
        )


def _of_digests(keys: tuple[KeyBlock, ...]) -> Iterator[Finding]:
    digests = [key for key in keys if _is_digest(key)]
    for key in digests:
        if key.state == "read-protected":
            yield Finding(
                "high",
                f"{key.name} is read-protected: the ROM reads zeros for the digest of the public key",
                "cannot be fixed on this chip; never read-protect digests",
            )
    if all(key.state == "empty" for key in digests):
        yield Finding(
            "high", "secure boot is enabled, but no digest of a public key is burnt", "burn one, if a block is free"
        )


def _of_what_guards_digests(fields: Fields) -> Iterator[Finding]:
    protection = fields.get("RD_DIS")
    if protection is not None and protection.writeable:
        yield Finding(
            "medium",
            "RD_DIS can still be burnt: read-protecting the digest would break secure boot",
            "write-protect RD_DIS once all keys are burnt and protected",
        )
    for name in _unburnt(fields, "DIS_DIRECT_BOOT", "DIS_LEGACY_SPI_BOOT"):
        yield Finding("low", f"the ROM can bypass the bootloader: {name} is not burnt", f"burn {name}")


def _is_digest(key: KeyBlock) -> bool:
    return (key.purpose or "").startswith("SECURE_BOOT")


def _of_revocation(fields: Fields, keys: tuple[KeyBlock, ...]) -> Iterator[Finding]:
    slots = [name for name in fields if name.startswith("SECURE_BOOT_KEY_REVOKE")]
    revoked = [name for name in slots if _burnt(fields, name)]
    if slots and revoked == slots:
        yield Finding("high", "all public keys are revoked: no firmware starts", "cannot be fixed on this chip")
        return
    used = {key.purpose[-1] for key in keys if key.purpose and _is_digest(key)}
    for name in slots:
        if name not in revoked and name[-1] not in used:
            yield Finding(
                "medium",
                f"slot {name[-1]} for a public key is free: anyone who can burn eFuses can add a key",
                f"burn {name}",
            )


# -- debugging and download


def _of_jtag(locks: Locks, fields: Fields) -> Iterator[Finding]:
    off = next((name for name in ("JTAG_DISABLE", "HARD_DIS_JTAG", "DIS_PAD_JTAG") if name in fields), "DIS_PAD_JTAG")
    if locks.jtag_pads == "open":
        yield Finding("high", "a debugger can attach over the JTAG pins", f"burn {off}")
    elif locks.jtag_pads == "soft-disabled":
        yield Finding(
            "low", "JTAG over the pins can be enabled again with the HMAC key", f"burn {off}, unless this is needed"
        )
    if locks.jtag_usb == "unknown" and fields:
        yield Finding(
            "info",
            "the chip has a USB-Serial-JTAG, but espefuse's definitions have no eFuse that disables it",
            "check the chip's manual",
        )
    if locks.jtag_usb == "open":
        yield Finding("high", "a debugger can attach over USB-Serial-JTAG", "burn DIS_USB_JTAG")


def _of_download_mode(locks: Locks) -> Iterator[Finding]:
    if locks.download_mode == "enabled":
        yield Finding(
            "medium",
            "download mode is open: it reads and writes flash, memory and eFuses",
            "burn ENABLE_SECURITY_DOWNLOAD, or disable download mode (UART_DOWNLOAD_DIS on an ESP32 from "
            "v3.0 on, DIS_DOWNLOAD_MODE on others)",
        )
    elif locks.download_mode == "secure":
        yield Finding(
            "info", "secure download mode: flash can be written, but not read", "disable it, unless updates need it"
        )


def _of_purposes(keys: tuple[KeyBlock, ...]) -> Iterator[Finding]:
    for key in keys:
        if key.state != "empty" and key.purpose_writeable:
            yield Finding(
                "low",
                f"the purpose of {key.name} ({key.purpose}) can still be burnt",
                "write-protect it: additional bits would change the purpose",
            )
