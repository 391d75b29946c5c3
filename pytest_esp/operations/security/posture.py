"""The lock state of a chip: its security info, and the posture derived from its eFuses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pytest_esp.errors import OperationError
from pytest_esp.link.link import Link
from pytest_esp.operations.registry import Effect, operation
from pytest_esp.operations.results import Address
from pytest_esp.operations.security.efuse import Efuse, read_all
from pytest_esp.operations.security.findings import (
    COUNTERS,
    Finding,
    KeyBlock,
    Locks,
    findings_of,
    key_blocks_of,
)


@dataclass(frozen=True)
class SecurityInfo:
    """The ROM's answer to GET_SECURITY_INFO (``ESPLoader.get_security_info``).

    Attributes:
        flags: the flag word.
        flag_names: names of the set flags.
        flash_crypt_count: the flash encryption counter; an odd number of set bits means encrypted.
        key_purposes: purpose of each key block, by name.
        chip_id, api_version: None on the ESP32-S2, which does not report them.
    """

    flags: Address
    flag_names: tuple[str, ...]
    flash_crypt_count: int
    key_purposes: tuple[str, ...]
    chip_id: int | None
    api_version: int | None


@operation(Effect.READ, group="security")
def info(link: Link) -> SecurityInfo:
    """Return the ROM's security info: flags, flash encryption counter, key purposes (not on an ESP8266 or ESP32).

    Raises:
        OperationError: on an ESP8266 or ESP32, whose ROM has no such command (`posture` works on the ESP32).
    """
    with link.session.use("security info", stub=False) as esp:
        if not esp.SECURITY_INFO_SUPPORTED:
            raise OperationError(
                f"the ROM of the {esp.CHIP_NAME} does not support GET_SECURITY_INFO",
                hint="read the security posture instead, which is derived from the eFuses",
            )
        raw = esp.get_security_info(cache=False)
        return SecurityInfo(
            flags=raw["flags"],
            flag_names=tuple(name for name, is_set in raw["parsed_flags"].items() if is_set),
            flash_crypt_count=raw["flash_crypt_cnt"],
            key_purposes=tuple(esp.KEY_PURPOSES.get(number, str(number)) for number in raw["key_purposes"]),
            chip_id=raw["chip_id"],
            api_version=raw["api_version"],
        )


@dataclass(frozen=True)
class SecurityPosture:
    """What an attacker with physical access faces. None and ``"unknown"`` mean that the chip does not report it.

    Attributes:
        flash_encryption: whether the chip encrypts its flash.
        secure_boot: whether only signed images start; *secure_boot_version* is then ``"v1"`` or ``"v2"``.
        jtag: whether a debugger can attach in any way.
        jtag_pads: JTAG over the pins; ``"soft-disabled"`` can be enabled again with the HMAC key.
        jtag_usb: JTAG over USB-Serial-JTAG; ``"absent"`` if the chip has none, ``"unknown"`` if espefuse does not say
            what disables it.
        download_mode: ``"secure"`` cannot read registers or run a stub.
        source: what this was read from; the security info only if eFuses cannot be read.
        fuses: the deciding eFuses, or flags of the security info, with their values.
        key_blocks: the key blocks: purpose, state and protection; empty if they cannot be read.
        findings: weaknesses, the worst first.
    """

    chip_type: str
    flash_encryption: bool | None
    secure_boot: bool
    secure_boot_version: Literal["v1", "v2"] | None
    jtag: bool | None
    jtag_pads: Literal["open", "soft-disabled", "disabled"]
    jtag_usb: Literal["open", "disabled", "absent", "unknown"]
    download_mode: Literal["enabled", "secure", "disabled"]
    source: Literal["efuses", "security info"]
    fuses: Mapping[str, str]
    key_blocks: tuple[KeyBlock, ...]
    findings: tuple[Finding, ...]


# The deciding eFuses, in the names of all chips (espefuse's definitions).
_SECURE_BOOT_V1 = ("ABS_DONE_0",)
_SECURE_BOOT_V2 = ("ABS_DONE_1", "SECURE_BOOT_EN")
_PAD_JTAG_OFF = ("JTAG_DISABLE", "HARD_DIS_JTAG", "DIS_PAD_JTAG")
_SOFT_JTAG_OFF = ("SOFT_DIS_JTAG",)
_USB_JTAG_OFF = ("DIS_USB_JTAG", "DIS_USB_SERIAL_JTAG")
_HAS_USB_JTAG = "DIS_USB_SERIAL_JTAG_DOWNLOAD_MODE"
_DOWNLOAD_OFF = ("UART_DOWNLOAD_DIS", "DIS_DOWNLOAD_MODE")
_DOWNLOAD_SECURE = ("ENABLE_SECURITY_DOWNLOAD",)
# No effect on an ESP32 before v3.0 (ESP-IDF's guide; `esptool.targets.esp32`, espefuse's own descriptions).
_FROM_V3_ON = ("ABS_DONE_1", "UART_DOWNLOAD_DIS")
_V3 = 300
_DECISIVE = (
    *COUNTERS,
    *_SECURE_BOOT_V1,
    *_SECURE_BOOT_V2,
    *_PAD_JTAG_OFF,
    *_SOFT_JTAG_OFF,
    *_USB_JTAG_OFF,
    *_DOWNLOAD_OFF,
    *_DOWNLOAD_SECURE,
)


@operation(Effect.READ, group="security")
def posture(link: Link) -> SecurityPosture:
    """Return how the chip is locked, read from its eFuses or, in secure download mode, from its security info.

    Raises:
        LinkError: if the chip does not answer; an unreachable board never counts as locked.
        OperationError: on an ESP8266, which does not have these eFuses.
    """
    with link.session.use("security posture", stub=False) as esp:
        locked = bool(esp.secure_download_mode)
        is_old = link.session.chip == "esp32" and esp.get_chip_revision() < _V3
    if locked:
        return _posture_by_info(link.session.chip, info(link))
    return _posture_by_efuses(link.session.chip, read_all(link).fields, _FROM_V3_ON if is_old else ())


def _posture_by_efuses(chip: str, fuses: Mapping[str, Efuse], without_effect: tuple[str, ...]) -> SecurityPosture:
    known = [name for name in _DECISIVE if name in fuses and name not in without_effect]
    bits = {name: int(fuses[name].bits or "0", 2) for name in known}

    def burnt(names: tuple[str, ...]) -> bool:
        return any(bits.get(name, 0) for name in names)

    def odd(names: tuple[str, ...]) -> bool:
        """Return whether a counter or soft switch is on: an odd number of its bits is burnt."""
        return any(bits.get(name, 0).bit_count() & 1 for name in names)

    version = "v2" if burnt(_SECURE_BOOT_V2) else "v1" if burnt(_SECURE_BOOT_V1) else None
    pads = "disabled" if burnt(_PAD_JTAG_OFF) else "soft-disabled" if odd(_SOFT_JTAG_OFF) else "open"
    if any(name in bits for name in _USB_JTAG_OFF):
        usb = "disabled" if burnt(_USB_JTAG_OFF) else "open"
    else:
        usb = "unknown" if _HAS_USB_JTAG in fuses else "absent"
    encrypted = odd(COUNTERS) if any(name in bits for name in COUNTERS) else None
    download = "disabled" if burnt(_DOWNLOAD_OFF) else "secure" if burnt(_DOWNLOAD_SECURE) else "enabled"
    return SecurityPosture(
        chip_type=chip,
        flash_encryption=encrypted,
        secure_boot=version is not None,
        secure_boot_version=version,
        jtag=True if "open" in (pads, usb) else None if usb == "unknown" else False,
        jtag_pads=pads,
        jtag_usb=usb,
        download_mode=download,
        source="efuses",
        fuses={name: fuses[name].value for name in bits},
        key_blocks=key_blocks_of(fuses),
        findings=findings_of(Locks(encrypted, version, pads, usb, download), fuses),
    )


def _posture_by_info(chip: str, told: SecurityInfo) -> SecurityPosture:
    flags = told.flag_names
    secure_boot = "SECURE_BOOT_EN" in flags
    version = "v2" if secure_boot else None
    encrypted = bool(told.flash_crypt_count.bit_count() & 1)
    pads = "disabled" if "HARD_DIS_JTAG" in flags else "soft-disabled" if "SOFT_DIS_JTAG" in flags else "open"
    return SecurityPosture(
        chip_type=chip,
        flash_encryption=encrypted,
        secure_boot=secure_boot,
        secure_boot_version=version,
        jtag=True if pads == "open" else None,
        jtag_pads=pads,
        jtag_usb="unknown",
        download_mode="secure",
        source="security info",
        fuses={"SPI_BOOT_CRYPT_CNT": f"{told.flash_crypt_count:#x}", **dict.fromkeys(flags, "1")},
        key_blocks=(),
        findings=findings_of(Locks(encrypted, version, pads, "unknown", "secure"), {}),
    )
