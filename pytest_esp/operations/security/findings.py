"""What is weak in how a chip is locked, and its key blocks: judged from its eFuses alone.

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
"""From the one that lets an attacker in to the one that is only worth knowing."""


@dataclass(frozen=True)
class Finding:
    """One weakness: how bad it is, what it is, and what to do about it."""

    severity: Severity
    what: str
    what_to_do: str


@dataclass(frozen=True)
class KeyBlock:
    """A key block of the eFuses. Its contents are never shown.

    Attributes:
        purpose: what the hardware uses it for, as espefuse calls it; None where the chip has no purposes and none is
            fixed by its ROM.
        state: ``"empty"``; ``"burnt"``; ``"read-protected"`` (software sees zeros, so that nobody knows).
        readable, writeable: whether its protection allows it.
        purpose_writeable: whether the purpose can be changed still; None where there is none to burn.
    """

    name: str
    purpose: str | None
    state: Literal["empty", "burnt", "read-protected"]
    readable: bool
    writeable: bool
    purpose_writeable: bool | None


@dataclass(frozen=True)
class Locks:
    """How a chip is locked, as far as the judgement needs it; see `security.SecurityPosture`."""

    flash_encryption: bool | None
    secure_boot_version: Literal["v1", "v2"] | None
    jtag_pads: str
    jtag_usb: str
    download_mode: str


_ESP32_PURPOSES = {"BLOCK1": "FLASH_ENCRYPTION", "BLOCK2": "SECURE_BOOT", "BLOCK3": None}
# The one block of an ESP32-C2 is a long key, or a short key and a digest, which are protected one by one.
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
    """Return what is weak, the worst first.

    Args:
        locks: how the chip is locked.
        fields: its eFuses; empty where they cannot be read (secure download mode).
    """
    keys = key_blocks_of(fields)
    found = [*_of_flash_encryption(locks), *_of_secure_boot(locks), *_of_jtag(locks, fields), *_of_download_mode(locks)]
    if not fields:
        found.append(
            Finding(
                "info",
                "keys, their protection and the single locks cannot be seen from secure download mode",
                "audit a board before its eFuses are closed",
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
    """Return those that the chip has and that are not burnt."""
    return [name for name in names if name in fields and not _burnt(fields, name)]


# -- flash encryption

COUNTERS = ("FLASH_CRYPT_CNT", "SPI_BOOT_CRYPT_CNT")
_PLAIN_IN_DOWNLOAD_MODE = ("DISABLE_DL_DECRYPT", "DISABLE_DL_CACHE", "DIS_DOWNLOAD_ICACHE", "DIS_DOWNLOAD_DCACHE")
_WRITES_IN_DOWNLOAD_MODE = ("DISABLE_DL_ENCRYPT", "DIS_DOWNLOAD_MANUAL_ENCRYPT")
_ALL_OF_THE_KEY = 0xF


def is_encryption_key(key: KeyBlock) -> bool:
    """Tell whether flash is encrypted with this block."""
    purpose = key.purpose or ""
    return purpose == "FLASH_ENCRYPTION" or (purpose.startswith("XTS_AES") and "PSRAM" not in purpose)


def _of_flash_encryption(locks: Locks) -> Iterator[Finding]:
    if locks.flash_encryption is None:
        yield Finding(
            "info",
            "espefuse's definitions of this chip have no flash encryption counter",
            "look into the chip's manual",
        )
    elif not locks.flash_encryption:
        yield Finding(
            "high",
            "flash is not encrypted: whoever has the board reads firmware and data",
            "enable flash encryption before the board leaves the house",
        )


def _of_plain_ways(locks: Locks, fields: Fields) -> Iterator[Finding]:
    if locks.download_mode == "disabled":
        return
    for name in _unburnt(fields, *_PLAIN_IN_DOWNLOAD_MODE):
        what = f"code that is loaded in download mode can read flash decrypted: {name} is not burnt"
        yield Finding("high", what, f"burn {name}")
    for name in _unburnt(fields, *_WRITES_IN_DOWNLOAD_MODE):
        yield Finding("medium", f"download mode encrypts what it is given: {name} is not burnt", f"burn {name}")


def _of_the_counter(fields: Fields) -> Iterator[Finding]:
    counter = next(fields[name] for name in COUNTERS if name in fields)
    if counter.writeable and "0" in (counter.bits or ""):
        yield Finding(
            "medium",
            f"flash encryption can be switched off again: {counter.efuse_name} has bits left (development mode)",
            f"burn all bits of {counter.efuse_name}, or write-protect it",
        )


def _of_the_encryption_key(fields: Fields, keys: tuple[KeyBlock, ...]) -> Iterator[Finding]:
    used = [key for key in keys if is_encryption_key(key)]
    for key in used:
        if key.state == "burnt":
            yield Finding("high", f"the flash encryption key in {key.name} can be read", f"read-protect {key.name}")
    # Chips with a key manager can have it keep the key.
    if all(key.state == "empty" for key in used) and not _burnt(fields, "FORCE_USE_KEY_MANAGER_KEY"):
        yield Finding(
            "high",
            "flash encryption is on, but no key is burnt: flash is encrypted with zeros",
            "burn a key that only the chip knows, and flash it anew",
        )
    config = fields.get("FLASH_CRYPT_CONFIG")
    if config is not None and int(config.bits or "0", 2) != _ALL_OF_THE_KEY:
        yield Finding(
            "medium",
            "FLASH_CRYPT_CONFIG is not 0xF: equal blocks of flash look equal when encrypted",
            "burn FLASH_CRYPT_CONFIG to 0xF before flash is encrypted",
        )


# -- secure boot


def _of_secure_boot(locks: Locks) -> Iterator[Finding]:
    if locks.secure_boot_version is None:
        yield Finding("high", "secure boot is off: any firmware starts", "enable it before the board leaves the house")
    elif locks.secure_boot_version == "v1":
        yield Finding(
            "medium",
            "secure boot v1: its key lies in the chip, and the chips that have it can be glitched",
            "use secure boot v2, on an ESP32 of revision v3.0 or later",
        )


def _of_digests(keys: tuple[KeyBlock, ...]) -> Iterator[Finding]:
    digests = [key for key in keys if _is_digest(key)]
    for key in digests:
        if key.state == "read-protected":
            yield Finding(
                "high",
                f"{key.name} cannot be read: the ROM sees zeros for the digest of the public key",
                "nothing helps on this chip; digests must never be read-protected",
            )
    if all(key.state == "empty" for key in digests):
        yield Finding(
            "high", "secure boot is on, but no digest of a public key is burnt", "burn one, if a block is left"
        )


def _of_what_guards_digests(fields: Fields) -> Iterator[Finding]:
    protection = fields.get("RD_DIS")
    if protection is not None and protection.writeable:
        yield Finding(
            "medium",
            "RD_DIS can be burnt still: the digest could be read-protected, which breaks secure boot",
            "write-protect RD_DIS once all keys are burnt and protected",
        )
    for name in _unburnt(fields, "DIS_DIRECT_BOOT", "DIS_LEGACY_SPI_BOOT"):
        yield Finding("low", f"the ROM has a way past the bootloader: {name} is not burnt", f"burn {name}")


def _is_digest(key: KeyBlock) -> bool:
    return (key.purpose or "").startswith("SECURE_BOOT")


def _of_revocation(fields: Fields, keys: tuple[KeyBlock, ...]) -> Iterator[Finding]:
    slots = [name for name in fields if name.startswith("SECURE_BOOT_KEY_REVOKE")]
    revoked = [name for name in slots if _burnt(fields, name)]
    if slots and revoked == slots:
        yield Finding("high", "all public keys are revoked: nothing starts any more", "nothing helps on this chip")
        return
    used = {key.purpose[-1] for key in keys if key.purpose and _is_digest(key)}
    for name in slots:
        if name not in revoked and name[-1] not in used:
            yield Finding(
                "medium",
                f"the slot {name[-1]} for a public key is free: who can burn eFuses can add one",
                f"burn {name}",
            )


# -- debugging and download


def _of_jtag(locks: Locks, fields: Fields) -> Iterator[Finding]:
    off = next((name for name in ("JTAG_DISABLE", "HARD_DIS_JTAG", "DIS_PAD_JTAG") if name in fields), "DIS_PAD_JTAG")
    if locks.jtag_pads == "open":
        yield Finding("high", "a debugger can attach by the JTAG pins", f"burn {off}")
    elif locks.jtag_pads == "soft-disabled":
        yield Finding(
            "low", "JTAG by the pins can be opened again by whoever knows the HMAC key", f"burn {off}, if nobody should"
        )
    if locks.jtag_usb == "unknown" and fields:
        yield Finding(
            "info",
            "the chip has a USB-Serial-JTAG, and espefuse's definitions name no eFuse that closes it",
            "look into the chip's manual",
        )
    if locks.jtag_usb == "open":
        yield Finding("high", "a debugger can attach by USB-Serial-JTAG", "burn DIS_USB_JTAG")


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
            "info", "secure download mode: flash can be written, but not read", "disable it, if nobody is to update so"
        )


def _of_purposes(keys: tuple[KeyBlock, ...]) -> Iterator[Finding]:
    for key in keys:
        if key.state != "empty" and key.purpose_writeable:
            yield Finding(
                "low",
                f"the purpose of {key.name} ({key.purpose}) can be burnt still",
                "write-protect it: more bits would make another purpose of it",
            )
