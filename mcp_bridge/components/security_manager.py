"""Tools for eFuses, secure boot and flash encryption."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from mcp_bridge.components.base import Component
from mcp_bridge.tool import offer, tool
from pytest_esp.errors import RefusedError
from pytest_esp.formats.files import resolve
from pytest_esp.operations.chip import identity
from pytest_esp.operations.registry import Effect
from pytest_esp.operations.security import audit, efuse, encryption, posture
from pytest_esp.operations.security.efuse import Efuse, EfuseValues
from pytest_esp.operations.security.encryption import EncryptionEnabled, EncryptionPlan, Mode
from pytest_esp.operations.security.secure_boot import SecureBootEnabled, SecureBootPlan


@dataclass(frozen=True)
class BurntEfuses:
    """The eFuses that are not zero, as text by name; *zero* is the number of all others."""

    efuses: Mapping[str, str]
    zero: int

    @classmethod
    def of(cls, values: EfuseValues) -> Self:
        """Return the eFuses of *values* that are not zero."""
        burnt = {name: text for name, text in values.efuses.items() if text.strip("0 :") not in ("", "x")}
        return cls(burnt, len(values.efuses) - len(burnt))


class SecurityManager(Component):
    """Tools for eFuses and security."""

    NAME: ClassVar[str] = "security_manager"
    SUMMARY: ClassVar[str] = "security audit, eFuses, flash encryption, secure boot"

    esp_security_info = offer(posture.info)
    esp_security_audit = offer(audit.audit)
    esp_mac_address_read = offer(identity.read_mac)

    @tool(Effect.READ, long=True)
    def esp_efuse_read(
        self, efuse_name: str | None = None, port: str | None = None, detailed: bool = False
    ) -> Efuse | BurntEfuses | EfuseValues:
        """Read one eFuse, or those that are not zero. A key is shown only if its block is requested by name.

        Args:
            efuse_name: the name that espefuse uses; by default all eFuses are read.
            detailed: of all eFuses, also return those that are zero, and the summary that espefuse prints.
        """
        with self.bridge.boards.use(port) as esp:
            if efuse_name is not None:
                return esp.efuse.read(efuse_name)
            values = esp.efuse.summary()
        return values if detailed else BurntEfuses.of(values)

    esp_efuse_burn = offer(
        efuse.burn,
        words="Burn an eFuse and read it back. Irreversible on real boards, whose allow_burn must list the eFuse.",
        timeout=120.0,
    )
    esp_enable_flash_encryption = offer(encryption.status)

    @tool(Effect.BURN, timeout=600.0, without={"apply": Effect.READ})
    def esp_encryption_enable(
        self,
        key_file: str,
        firmware_path: str,
        port: str | None = None,
        mode: Mode = "development",
        secure_boot_key: str | None = None,
        apply: bool = False,
    ) -> EncryptionPlan | EncryptionEnabled:
        """Show which eFuses flash encryption would burn; with apply=true enable it.

        Enabling burns key, counter and locks, writes the encrypted images, and checks the boot. Everything is checked
        before the first eFuse is burnt. On a real board it is irreversible, and allow_burn must list each eFuse of the
        plan.

        Args:
            key_file: the key: 32 bytes, or 64 for XTS-AES-256.
            firmware_path: the whole build folder.
            mode: development can be switched off again, release cannot.
            secure_boot_key: PEM file; also enables secure boot v2 (the ESP32-C2 cannot enable it later).
            apply: burn; without it the plan is returned and nothing changes.
        """
        key, firmware = resolve(key_file), resolve(firmware_path)
        digest = resolve(secure_boot_key) if secure_boot_key else None
        with self.bridge.boards.use(port) as esp:
            run = esp.encryption.enable if apply else esp.encryption.plan
            return run(firmware, key, mode, digest)

    @tool(Effect.BURN, timeout=600.0, without={"apply": Effect.READ})
    def esp_secure_boot_enable(
        self, key_file: str, firmware_path: str, port: str | None = None, apply: bool = False
    ) -> SecureBootPlan | SecureBootEnabled:
        """Show which eFuses secure boot would burn; with apply=true enable it.

        Enabling writes the signed images, burns key digest and locks, and checks the boot. It is secure boot v2, or v1
        on an ESP32 before v3.0. Signatures are checked before anything is flashed or burnt. On a real board it is
        irreversible, and allow_burn must list each eFuse of the plan.

        Args:
            key_file: PEM file with the key that signed the images; for v1 the private key.
            firmware_path: the whole build folder, signed.
            apply: burn; without it the plan is returned and nothing changes.
        """
        key, firmware = resolve(key_file), resolve(firmware_path)
        with self.bridge.boards.use(port) as esp:
            run = esp.security.enable_secure_boot if apply else esp.security.plan_secure_boot
            return run(firmware, key)

    esp_flash_encryption_configure = offer(encryption.configure, timeout=120.0)
    esp_flash_encrypt = offer(encryption.encrypt_image)

    def plan(self, tool: str, arguments: Mapping[str, Any]) -> str:
        """Return what a burn would change, bit by bit."""
        words = super().plan(tool, arguments)
        if tool == "esp_efuse_burn":
            with self.bridge.boards.use(arguments.get("port")) as esp:
                burns = (esp.efuse.plan(arguments["efuse_name"], arguments["value"]),)
                esp.link.burns.check([arguments["efuse_name"]])
        elif tool == "esp_flash_encryption_configure":
            with self.bridge.boards.use(arguments.get("port")) as esp:
                planned = encryption.burns_to_configure(esp.link, arguments.get("mode", "release"))
                esp.link.burns.check(name for name, _ in planned)
                burns = efuse.plan_all(esp.link, planned)
        elif tool in ("esp_encryption_enable", "esp_secure_boot_enable"):
            plan = getattr(self, tool)(**{**arguments, "apply": False})
            if plan.refused:
                raise RefusedError(plan.refused, board=arguments.get("port"), attempted=tool)
            burns = plan.burns
        else:
            return words
        count = sum(one.new_bits for one in burns)
        if not count:
            return f"{words}; already burnt, nothing would change"
        changes = ", ".join(
            f"{one.efuse_name} {_bits(one.before)} -> {_bits(one.after)}" for burn in burns for one in burn.changes
        )
        return f"{words}; {count} bit(s) would be burnt permanently: {changes}"


def _bits(bits: str | None) -> str:
    return "(not shown)" if bits is None else bits
