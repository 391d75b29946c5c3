"""eFuses and how a chip is locked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mcp_bridge.components.base import Component
from mcp_bridge.tool import tool
from pytest_esp.operations.efuse import BurnResult, Efuse, EfuseSummary
from pytest_esp.operations.registry import Effect
from pytest_esp.operations.security import SecurityInfo, SecurityPosture


@dataclass(frozen=True)
class MacAddress:
    """The base MAC address."""

    mac_address: str | None


class SecurityManager(Component):
    """Tools for eFuses and security."""

    NAME: ClassVar[str] = "security_manager"
    SUMMARY: ClassVar[str] = "security info and posture, eFuses"

    @tool(Effect.READ)
    def esp_security_info(self, port: str | None = None) -> SecurityInfo:
        """Return the ROM's security info: flags, flash encryption counter, key purposes (not on ESP8266 and ESP32)."""
        with self.bridge.boards.use(port) as esp:
            return esp.security.info()

    @tool(Effect.READ)
    def esp_security_audit(self, port: str | None = None) -> SecurityPosture:
        """Return how the chip is locked: secure boot, flash encryption, JTAG, download mode, with findings."""
        with self.bridge.boards.use(port) as esp:
            return esp.security.posture()

    @tool(Effect.READ)
    def esp_mac_address_read(self, port: str | None = None) -> MacAddress:
        """Return the chip's base MAC address."""
        with self.bridge.boards.use(port) as esp:
            return MacAddress(esp.chip.identify().mac)

    @tool(Effect.READ)
    def esp_efuse_read(self, efuse_name: str | None = None, port: str | None = None) -> Efuse | EfuseSummary:
        """Read one eFuse by its name, or all of them."""
        with self.bridge.boards.use(port) as esp:
            return esp.efuse.read_all() if efuse_name is None else esp.efuse.read(efuse_name)

    @tool(Effect.BURN, timeout=120.0)
    def esp_efuse_burn(self, efuse_name: str, value: int | str, port: str | None = None) -> BurnResult:
        """Burn an eFuse and read it back: irreversible on real boards, which must allow that eFuse by name."""
        with self.bridge.boards.use(port) as esp:
            return esp.efuse.burn(efuse_name, value)
