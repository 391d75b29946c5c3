"""eFuses and how a chip is locked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from esptool.targets import CHIP_DEFS

from mcp_bridge.components.base import Component
from mcp_bridge.tool import tool
from pytest_esp.errors import OperationError, RefusedError
from pytest_esp.formats.files import new_file, resolve, save
from pytest_esp.formats.regions import size_argument
from pytest_esp.names import nearest
from pytest_esp.operations.registry import Effect
from pytest_esp.operations.security.efuse import BitChange, Efuse
from pytest_esp.operations.security.encryption import (
    EncryptionConfigured,
    EncryptionEnabled,
    EncryptionPlan,
    encrypt_data,
)
from pytest_esp.operations.security.findings import Finding, KeyBlock
from pytest_esp.operations.security.posture import SecurityInfo, SecurityPosture
from pytest_esp.operations.security.secure_boot import SecureBootEnabled, SecureBootPlan

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


_ENABLED = "Flash encryption is already enabled on this device."
_NOT_ENABLED = (
    "Flash encryption is NOT enabled. It takes (see steps) a key, the eFuse {counter}, the locks of download mode, "
    "and encrypted firmware. WARNING: this is irreversible on real hardware. Test on QEMU or a simulated chip first: "
    "esp_encryption_enable says which eFuses it would burn, and with apply=true does all of it."
)


@dataclass(frozen=True)
class EncryptionGuidance:
    """Whether flash is encrypted, and what enabling it takes.

    *FLASH_CRYPT_CNT* is the value of *counter*, whatever this chip calls it; only an ESP32 has FLASH_CRYPT_CONFIG.
    """

    flash_encryption_enabled: bool
    message: str
    mode: str
    counter: str
    steps: list[str]
    key_file: str | None
    FLASH_CRYPT_CNT: str
    FLASH_CRYPT_CONFIG: str | None


@dataclass(frozen=True)
class EncryptedFile:
    """An image that was encrypted for *address*; its size in bytes, with padding."""

    output_file: str
    address: str
    size: int


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
            return MacAddress(esp.chip.identify().mac_address)

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

    @tool(Effect.READ)
    def esp_enable_flash_encryption(self, port: str | None = None, key_file: str | None = None) -> EncryptionGuidance:
        """Say whether flash is encrypted, and what enabling it takes. Burns nothing: esp_encryption_enable does it.

        key_file is only mentioned in the answer, not read.
        """
        with self.bridge.boards.use(port) as esp:
            status = esp.encryption.status()
        config = None if status.config is None else f"{status.config:#x}" if status.config else "0"
        count = f"{status.count:#x}" if status.count > 1 else str(status.count)
        return EncryptionGuidance(
            flash_encryption_enabled=status.encrypted,
            message=_ENABLED if status.encrypted else _NOT_ENABLED.format(counter=status.counter),
            mode=status.mode,
            counter=status.counter,
            steps=list(status.steps),
            key_file=key_file,
            FLASH_CRYPT_CNT=count,
            FLASH_CRYPT_CONFIG=config,
        )

    @tool(Effect.BURN, timeout=600.0, without={"apply": Effect.READ})
    def esp_encryption_enable(
        self,
        key_file: str,
        firmware_path: str,
        port: str | None = None,
        mode: Literal["development", "release"] = "development",
        secure_boot_key: str | None = None,
        apply: bool = False,
    ) -> EncryptionPlan | EncryptionEnabled:
        """Say which eFuses flash encryption would burn; with apply=true do it: key, counter, locks, images, boot.

        firmware_path is a whole build folder, key_file has 32 bytes (64: XTS-AES-256). All is checked before the first
        eFuse is burnt, and a boot proves it. On a real board it is irreversible, and its allow_burn must name each
        eFuse of the plan. secure_boot_key enables secure boot v2 in the same go (an ESP32-C2 cannot do it later).
        """
        key, firmware = resolve(key_file), resolve(firmware_path)
        digest = resolve(secure_boot_key) if secure_boot_key else None
        with self.bridge.boards.use(port) as esp:
            if apply:
                return esp.encryption.enable(firmware, key, mode, digest)
            return esp.encryption.plan(firmware, key, mode, digest)

    @tool(Effect.BURN, timeout=600.0, without={"apply": Effect.READ})
    def esp_secure_boot_enable(
        self, key_file: str, firmware_path: str, port: str | None = None, apply: bool = False
    ) -> SecureBootPlan | SecureBootEnabled:
        """Say which eFuses secure boot would burn; with apply=true do it: signed images, key digest, locks, boot.

        v2, or v1 on an ESP32 before v3.0. firmware_path is a whole build folder, signed by key_file (PEM); that is
        checked before anything is flashed or burnt. On a real board it is irreversible, and its allow_burn must name
        each eFuse of the plan.
        """
        key, firmware = resolve(key_file), resolve(firmware_path)
        with self.bridge.boards.use(port) as esp:
            if apply:
                return esp.security.enable_secure_boot(firmware, key)
            return esp.security.plan_secure_boot(firmware, key)

    @tool(Effect.BURN, timeout=120.0)
    def esp_flash_encryption_configure(
        self, port: str | None = None, mode: Literal["development", "release"] = "release"
    ) -> EncryptionConfigured:
        """Burn what is missing of a mode on a chip whose flash is encrypted: locks of download mode, and the counter.

        release makes the encryption permanent. A real board must allow each of these eFuses by name.
        """
        with self.bridge.boards.use(port) as esp:
            return esp.encryption.configure(mode)

    @tool()
    def esp_flash_encrypt(
        self,
        key_file: str,
        input_file: str,
        output_file: str,
        address: int | str,
        chip_type: str,
        overwrite: bool = False,
    ) -> EncryptedFile:
        """Encrypt an image for its address in flash, on the host. Touches no board."""
        if chip_type not in CHIP_DEFS:
            raise OperationError(f"there is no chip {chip_type!r}", hint=f"nearest: {nearest(chip_type, CHIP_DEFS)}")
        path = new_file(output_file, overwrite)
        place = size_argument(address, "address")
        data = encrypt_data(resolve(input_file).read_bytes(), resolve(key_file).read_bytes(), place, chip_type)
        save(path, data)
        return EncryptedFile(str(path), f"{place:#x}", len(data))

    def plan(self, tool: str, arguments: Mapping[str, Any]) -> str:
        """Return what a burn would change, bit by bit, for the consent to it."""
        words = super().plan(tool, arguments)
        if tool == "esp_efuse_burn":
            with self.bridge.boards.use(arguments.get("port")) as esp:
                burns = (esp.efuse.plan(arguments["efuse_name"], arguments["value"]),)
        elif tool in ("esp_encryption_enable", "esp_secure_boot_enable"):
            planned = getattr(self, tool)(**{**arguments, "apply": False})
            if planned.refused:
                raise RefusedError(planned.refused, board=arguments.get("port"), attempted=tool)
            burns = planned.burns
        else:
            return words
        count = sum(one.new_bits for one in burns)
        if not count:
            return f"{words}; it is burnt already, and nothing would change"
        changes = ", ".join(
            f"{one.name} {_bits(one.before)} -> {_bits(one.after)}" for burn in burns for one in burn.changes
        )
        return f"{words}; {count} bit(s) would be burnt for ever: {changes}"


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
