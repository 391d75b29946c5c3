"""eFuses and how a chip is locked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from esptool.targets import CHIP_DEFS

from mcp_bridge.components.base import Component
from mcp_bridge.tool import tool
from pytest_esp.operations.efuse import BitChange, Efuse
from pytest_esp.operations.findings import Finding, KeyBlock
from pytest_esp.operations.registry import Effect
from pytest_esp.operations.security import SecurityInfo, SecurityPosture

# What the locks of a chip rest on, whatever its family calls them.
_SECURITY_FUSES = (
    "FLASH_CRYPT_CNT", "FLASH_CRYPT_CONFIG", "SPI_BOOT_CRYPT_CNT", "ABS_DONE_0", "ABS_DONE_1", "SECURE_BOOT_EN",
    "SECURE_BOOT_KEY_REVOKE0", "SECURE_BOOT_KEY_REVOKE1", "SECURE_BOOT_KEY_REVOKE2", "SECURE_BOOT_AGGRESSIVE_REVOKE",
    "JTAG_DISABLE", "DIS_PAD_JTAG", "HARD_DIS_JTAG", "SOFT_DIS_JTAG", "DIS_USB_JTAG", "DIS_USB_SERIAL_JTAG",
    "DISABLE_DL_ENCRYPT", "DISABLE_DL_DECRYPT", "DISABLE_DL_CACHE", "DIS_DOWNLOAD_ICACHE", "DIS_DOWNLOAD_DCACHE",
    "DIS_DOWNLOAD_MANUAL_ENCRYPT", "UART_DOWNLOAD_DIS", "DIS_DOWNLOAD_MODE", "ENABLE_SECURITY_DOWNLOAD",
    "DIS_DIRECT_BOOT", "SECURE_VERSION", "CODING_SCHEME", "RD_DIS", "WR_DIS",
)  # fmt: skip
_IRREVERSIBLE = "eFuse burn is IRREVERSIBLE on real hardware"


@dataclass(frozen=True)
class MacAddress:
    """The base MAC address."""

    mac_address: str | None


@dataclass(frozen=True)
class SecurityAudit:
    """How a chip is locked, and what is weak in it.

    *security_fuses* are the eFuses that the locks rest on; *source* is where it was read from: in secure download mode
    the security info alone, and no eFuse. Values of key blocks are never shown.
    """

    chip_id: str
    chip_type: str
    source: str
    security_info: dict[str, str]
    efuse_summary: dict[str, str]
    security_fuses: dict[str, str]
    posture: dict[str, str]
    key_blocks: list[KeyBlock]
    findings: list[Finding]


@dataclass(frozen=True)
class EfuseValue:
    """One eFuse: its value, and what is known of it."""

    efuse_name: str
    value: str
    details: Efuse


@dataclass(frozen=True)
class EfuseValues:
    """All eFuses by name, and as espefuse prints them."""

    efuses: dict[str, str]
    raw_output: str


@dataclass(frozen=True)
class EfuseBurn:
    """What a burn did: values before and after; *verified* is whether the chip has proved it."""

    efuse_name: str
    value_requested: str
    value_before: str
    value_after: str | None
    burnt_bits: int
    verified: bool | None
    changes: list[BitChange]
    warning: str = _IRREVERSIBLE


class SecurityManager(Component):
    """Tools for eFuses and security."""

    NAME: ClassVar[str] = "security_manager"
    SUMMARY: ClassVar[str] = "security audit, eFuses, flash encryption, secure boot"

    @tool(Effect.READ)
    def esp_security_info(self, port: str | None = None) -> SecurityInfo:
        """Return the ROM's security info: flags, flash encryption counter, key purposes (not on ESP8266 and ESP32)."""
        with self.bridge.boards.use(port) as esp:
            return esp.security.info()

    @tool(Effect.READ)
    def esp_security_audit(self, port: str | None = None) -> SecurityAudit:
        """Audit how the chip is locked: flash encryption, secure boot, JTAG, download mode, keys and their protection.

        findings says what is weak, how bad it is and what to do. Changes nothing. A board that does not answer is an
        error, never a clean report.
        """
        with self.bridge.boards.use(port) as esp:
            posture = esp.security.posture()
            fields = esp.efuse.read_all().fields if posture.source == "efuses" else {}
        words = _words(posture)
        return SecurityAudit(
            chip_id=f"{CHIP_DEFS[posture.chip].IMAGE_CHIP_ID:#010x}",
            chip_type=posture.chip,
            source=posture.source,
            security_info={"Secure Boot": words["secure_boot"], "Flash Encryption": words["flash_encryption"]},
            efuse_summary=_values(fields),
            security_fuses={name: _text(fields[name].value) for name in _SECURITY_FUSES if name in fields}
            or dict(posture.fuses),
            posture=words,
            key_blocks=list(posture.key_blocks),
            findings=list(posture.findings),
        )

    @tool(Effect.READ)
    def esp_mac_address_read(self, port: str | None = None) -> MacAddress:
        """Return the chip's base MAC address."""
        with self.bridge.boards.use(port) as esp:
            return MacAddress(esp.chip.identify().mac)

    @tool(Effect.READ)
    def esp_efuse_read(self, efuse_name: str | None = None, port: str | None = None) -> EfuseValue | EfuseValues:
        """Read one eFuse by its name, or all of them. Keys are shown only to who asks for that block by its name."""
        with self.bridge.boards.use(port) as esp:
            if efuse_name is None:
                return EfuseValues(_values(esp.efuse.read_all().fields), esp.efuse.summary().text)
            field = esp.efuse.read(efuse_name)
            return EfuseValue(efuse_name, _text(field.value), field)

    @tool(Effect.BURN, timeout=120.0)
    def esp_efuse_burn(self, efuse_name: str, value: int | str, port: str | None = None) -> EfuseBurn:
        """Burn an eFuse and read it back: irreversible on real boards, which must allow that eFuse by name."""
        with self.bridge.boards.use(port) as esp:
            result = esp.efuse.burn(efuse_name, value)
        return EfuseBurn(
            efuse_name=result.name,
            value_requested=result.value_requested,
            value_before=_flag(result.value_before),
            value_after=_flag(result.value_after) if result.value_after is not None else None,
            burnt_bits=result.burnt_bits,
            verified=result.verified,
            changes=list(result.changes),
        )

    def plan(self, tool: str, arguments: Mapping[str, Any]) -> str:
        """Return what a burn would change, bit by bit, for the consent to it."""
        words = super().plan(tool, arguments)
        if tool != "esp_efuse_burn":
            return words
        with self.bridge.boards.use(arguments.get("port")) as esp:
            planned = esp.efuse.plan(arguments["efuse_name"], arguments["value"])
        if not planned.new_bits:
            return f"{words}; it is burnt already, and nothing would change"
        changes = ", ".join(f"{one.name} {_bits(one.before)} -> {_bits(one.after)}" for one in planned.changes)
        return f"{words}; {planned.new_bits} bit(s) would be burnt for ever: {changes}"


def _bits(bits: str | None) -> str:
    return "(not shown)" if bits is None else bits


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


def _values(fields: Mapping[str, Efuse]) -> dict[str, str]:
    return {name: "(a key)" if _shows_a_key(field) else _text(field.value) for name, field in fields.items()}


def _shows_a_key(field: Efuse) -> bool:
    return field.name.startswith("BLOCK") and field.category == "security" and "1" in (field.bits or "")


def _text(value: bool | int | str) -> str:
    return str(int(value) if isinstance(value, bool) else value)


def _flag(value: str) -> str:
    """Return the value of a flag as espefuse's text shows it: 0 or 1."""
    return {"False": "0", "True": "1"}.get(value, value)
