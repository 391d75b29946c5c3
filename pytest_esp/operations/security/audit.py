"""Reports how a chip is locked: posture, eFuses, key blocks, and weaknesses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from esptool.targets import CHIP_DEFS

from pytest_esp.link.link import Link
from pytest_esp.operations.registry import Effect, operation
from pytest_esp.operations.security import efuse
from pytest_esp.operations.security.findings import Finding, KeyBlock
from pytest_esp.operations.security.posture import SecurityPosture, posture

# The eFuses that the locks depend on, in the names of all families.
_SECURITY_FUSES = (
    "FLASH_CRYPT_CNT", "FLASH_CRYPT_CONFIG", "SPI_BOOT_CRYPT_CNT", "ABS_DONE_0", "ABS_DONE_1", "SECURE_BOOT_EN",
    "SECURE_BOOT_KEY_REVOKE0", "SECURE_BOOT_KEY_REVOKE1", "SECURE_BOOT_KEY_REVOKE2", "SECURE_BOOT_AGGRESSIVE_REVOKE",
    "JTAG_DISABLE", "DIS_PAD_JTAG", "HARD_DIS_JTAG", "SOFT_DIS_JTAG", "DIS_USB_JTAG", "DIS_USB_SERIAL_JTAG",
    "DISABLE_DL_ENCRYPT", "DISABLE_DL_DECRYPT", "DISABLE_DL_CACHE", "DIS_DOWNLOAD_ICACHE", "DIS_DOWNLOAD_DCACHE",
    "DIS_DOWNLOAD_MANUAL_ENCRYPT", "UART_DOWNLOAD_DIS", "DIS_DOWNLOAD_MODE", "ENABLE_SECURITY_DOWNLOAD",
    "DIS_DIRECT_BOOT", "SECURE_VERSION", "CODING_SCHEME", "RD_DIS", "WR_DIS",
)  # fmt: skip


@dataclass(frozen=True)
class SecurityAudit:
    """How a chip is locked, and its weaknesses. Values of key blocks are never shown.

    Attributes:
        chip_id: chip id in image headers, in hexadecimal.
        source: what this was read from; in secure download mode the security info alone, without eFuses.
        security_info: secure boot and flash encryption in words.
        efuse_summary: all eFuses by name.
        security_fuses: the eFuses that the locks depend on.
        posture: each lock in words.
        key_blocks: the key blocks: purpose, state and protection.
        findings: weaknesses, the worst first, and what to do about each.
    """

    chip_id: str
    chip_type: str
    source: str
    security_info: Mapping[str, str]
    efuse_summary: Mapping[str, str]
    security_fuses: Mapping[str, str]
    posture: Mapping[str, str]
    key_blocks: tuple[KeyBlock, ...]
    findings: tuple[Finding, ...]


@operation(Effect.READ, group="security")
def audit(link: Link) -> SecurityAudit:
    """Audit how the chip is locked: flash encryption, secure boot, JTAG, download mode, keys and their protection.

    Each finding gives the weakness, its severity and what to do. Changes nothing. If the board does not answer, this is
    an error, never a clean report.

    Raises:
        LinkError, OperationError: see `posture`.
    """
    found = posture(link)
    fields = efuse.read_all(link).fields if found.source == "efuses" else {}
    words = _words(found)
    return SecurityAudit(
        chip_id=f"{CHIP_DEFS[found.chip_type].IMAGE_CHIP_ID:#010x}",
        chip_type=found.chip_type,
        source=found.source,
        security_info={"Secure Boot": words["secure_boot"], "Flash Encryption": words["flash_encryption"]},
        efuse_summary=efuse.texts(fields),
        security_fuses={name: fields[name].value for name in _SECURITY_FUSES if name in fields} or dict(found.fuses),
        posture=words,
        key_blocks=found.key_blocks,
        findings=found.findings,
    )


def _words(posture: SecurityPosture) -> dict[str, str]:
    switch = {True: "enabled", False: "disabled", None: "unknown"}
    jtag = {True: "enabled (vulnerable)", False: "disabled", None: "unknown"}[posture.jtag]
    if posture.jtag is False and posture.jtag_pads == "soft-disabled":
        jtag = "soft-disabled"
    secure_boot = f"enabled ({posture.secure_boot_version})" if posture.secure_boot else "disabled"
    return {
        "flash_encryption": switch[posture.flash_encryption],
        "secure_boot": secure_boot,
        "jtag": jtag,
        "jtag_pads": posture.jtag_pads,
        "jtag_usb": posture.jtag_usb,
        "download_mode": posture.download_mode,
    }
