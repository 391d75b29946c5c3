"""The chip itself: which boards there are, who answers, resets, console."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from mcp_bridge.components.base import Component
from mcp_bridge.tool import tool
from pytest_esp.errors import PortError
from pytest_esp.link.console import ConsoleError, CrashError
from pytest_esp.operations.registry import Effect
from pytest_esp.rack.lease import holder_of


@dataclass(frozen=True)
class ScanResult:
    """Boards of the rack, serial ports of the machine."""

    detected_devices: list[dict[str, Any]]
    available_ports: list[dict[str, Any]]
    qemu_devices: list[str]
    sim_devices: list[str]


@dataclass(frozen=True)
class DetectedChip:
    """Who answers on a board."""

    chip_type: str
    chip_revision: str | None
    mac_address: str | None
    features: list[str]
    crystal_frequency: str | None
    flash_size: str | None
    connection_time_seconds: float


@dataclass(frozen=True)
class ResetReport:
    """What the chip did after a reset."""

    reset_mode: str
    mode: str
    seconds: float
    output: str


@dataclass(frozen=True)
class ConsoleText:
    """What the app said; lines are (seconds, text)."""

    lines: list[tuple[float, str]]
    matched: str | None
    crash: str | None
    duration_seconds: float


class ChipControl(Component):
    """Tools for the chip itself."""

    NAME: ClassVar[str] = "chip_control"
    SUMMARY: ClassVar[str] = "which boards there are, who answers, resets, console"

    @tool()
    def esp_scan_ports(self, detailed: bool = False) -> ScanResult:
        """List the boards of the rack and the serial ports of this machine, with who holds them. Touches no board.

        detailed adds USB ids and the boards' features.
        """
        from serial.tools import list_ports

        ports = [
            {"device": item.device, "description": item.description}
            | ({"usb": item.hwid, "serial_number": item.serial_number} if detailed else {})
            for item in list_ports.comports()
        ]
        boards = [self._board(name, detailed) for name in self.bridge.rack.boards]
        of_kind: dict[str, list[str]] = {"qemu": [], "sim": []}
        for spec in self.bridge.rack.boards.values():
            of_kind.get(spec.backend, []).append(spec.name)
        return ScanResult(boards, ports, of_kind["qemu"], of_kind["sim"])

    def _board(self, name: str, detailed: bool) -> dict[str, Any]:
        spec = self.bridge.rack.boards[name]
        row: dict[str, Any] = {"port": name, "chip": spec.chip, "backend": spec.backend, "state": "free"}
        try:
            holder = holder_of(spec, self.bridge.rack)
        except PortError as error:
            return row | {"state": "missing", "problem": error.message}
        if holder is not None:
            row |= {"state": "held", "holder": holder.describe()}
        return row | ({"features": sorted(spec.features), "allow": sorted(spec.allow)} if detailed else {})

    @tool(Effect.READ)
    def esp_detect_chip(self, port: str | None = None, wait_s: float = 0.0) -> DetectedChip:
        """Identify the chip on a board: type, revision, MAC address, features, crystal, flash size.

        Leaves the chip in its bootloader; esp_run_firmware or esp_reset_chip starts the app again. wait_s waits for a
        board that somebody else holds.
        """
        begun = time.monotonic()
        with self.bridge.boards.use(port, wait=wait_s) as esp:
            identity = esp.chip.identify()
        revision = identity.revision
        return DetectedChip(
            chip_type=identity.chip,
            chip_revision=None if revision is None else f"v{revision // 100}.{revision % 100}",
            mac_address=identity.mac,
            features=list(identity.features),
            crystal_frequency=f"{identity.crystal_mhz}MHz" if identity.crystal_mhz else None,
            flash_size=f"{identity.flash_size >> 20}MB" if identity.flash_size else None,
            connection_time_seconds=round(time.monotonic() - begun, 4),
        )

    @tool(Effect.READ, idempotent=True)
    def esp_reset_chip(self, port: str | None = None, reset_mode: Literal["app", "bootloader"] = "app") -> ResetReport:
        """Reset the chip into its app or its bootloader, and check by what it then does (boot banner, or an answer)."""
        with self.bridge.boards.use(port) as esp:
            result = esp.chip.reset(reset_mode)
        return ResetReport(reset_mode=reset_mode, **dataclasses.asdict(result))

    @tool(Effect.READ, timeout=330.0)
    def esp_serial_monitor(
        self,
        port: str | None = None,
        duration_seconds: float = 5.0,
        until: str | None = None,
        reset: bool = False,
    ) -> ConsoleText:
        """Return what the app prints within duration_seconds (300 at most), or until the text `until` comes.

        reset starts the app anew first. A crash ends it and is returned decoded.
        """
        matched = crash = None
        begun = time.monotonic()
        with self.bridge.boards.use(port) as esp:
            console = esp.link.console
            console.skip()
            first = len(console.lines())
            if reset:
                esp.link.reset(bootloader=False)
            try:
                matched = console.expect(until or "\0\0", min(duration_seconds, 300.0)).text
            except CrashError as error:
                crash = error.crash.describe()
            except ConsoleError:
                pass  # its time is over
            lines = [(round(line.time, 3), line.text) for line in console.lines()[first:]]
        return ConsoleText(lines, matched, crash, round(time.monotonic() - begun, 3))
