"""Tools for boards and their chips: listing, detection, connection, reset, programs in RAM, console, recovery."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from mcp_bridge.components.base import Component
from mcp_bridge.tool import offer, tool
from pytest_esp.errors import EspError
from pytest_esp.operations.chip import connection, reset, running
from pytest_esp.operations.chip.identity import ChipIdentity
from pytest_esp.operations.diagnostics import recovery
from pytest_esp.operations.firmware import ram, ram_image
from pytest_esp.operations.registry import Effect
from pytest_esp.operations.security import details
from pytest_esp.rack.ports import plugged_in
from pytest_esp.rack.state import state_of


@dataclass(frozen=True)
class ScanResult:
    """Boards and serial ports; *scan_results* has all of them in one list."""

    detected_devices: list[dict[str, Any]]
    available_ports: list[dict[str, Any]]
    qemu_devices: list[dict[str, Any]]
    sim_devices: list[dict[str, Any]]
    scan_results: list[dict[str, Any]]


class ChipControl(Component):
    """Tools for boards and their chips."""

    NAME: ClassVar[str] = "chip_control"
    SUMMARY: ClassVar[str] = "list boards, detect chips, test connections, reset, run programs in RAM, recover"
    FOR_SILENT_BOARDS: ClassVar[tuple[str, ...]] = ("esp_recover_chip",)

    # -- listing

    @tool()
    def esp_scan_ports(self, detailed: bool = False) -> ScanResult:
        """List the boards of the rack, this server's virtual boards and the machine's serial ports; opens none of them.

        Each entry has its state: free, held (and by whom), or missing.

        Args:
            detailed: add USB ids, names that last, features and the allowed effects.
        """
        boards = [self._board(name, detailed) for name in self.bridge.rack.boards]
        instances = self._instances(detailed)
        ports = self._ports(detailed)
        devices = boards + instances
        return ScanResult(
            detected_devices=devices,
            available_ports=ports,
            qemu_devices=[row for row in devices if row["backend"] == "qemu"],
            sim_devices=[row for row in devices if row["backend"] == "sim"],
            scan_results=devices + [row for row in ports if row.get("board") is None],
        )

    def _board(self, name: str, detailed: bool) -> dict[str, Any]:
        spec = self.bridge.boards.resolve(name)
        row: dict[str, Any] = {"port": name, "kind": "board"}
        row |= {"chip": self.bridge.rack.known(spec).chip, "backend": spec.backend}
        row |= state_of(spec, self.bridge.rack).to_dict()
        if detailed:
            row |= {"features": sorted(spec.features), "allow": sorted(spec.allow), "device": spec.port}
        return row

    def _instances(self, detailed: bool) -> list[dict[str, Any]]:
        """Return the virtual boards that this server has started."""
        return [
            self._board(item.instance_id, detailed)
            | {"kind": "instance", "socket_uri": item.socket_uri, "rfc2217_uri": item.rfc2217_uri, "pid": item.pid}
            for component in self.bridge.components.values()
            for item in component.instances()
        ]

    def _ports(self, detailed: bool) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for port in plugged_in():
            spec = self.bridge.boards.resolve(port.device)
            board = spec.name if spec.name in self.bridge.rack.boards else None
            row = {"port": port.device, "kind": "serial port", "description": port.description, "board": board}
            row |= {"backend": "serial", **state_of(spec, self.bridge.rack).to_dict()}
            if detailed:
                row |= {"usb": port.usb, "serial_number": port.serial_number, "lasting_name": port.name}
            rows.append(row)
        return rows

    # -- detection

    @tool(Effect.READ, timeout=120.0)
    def esp_detect_chip(self, port: str | None = None, detailed: bool = False) -> ChipIdentity:
        """Identify the chip on a board: type, revision, MAC address, features, crystal, flash size.

        The chip stays in its bootloader; esp_run_firmware or esp_reset_chip starts the app again.

        Args:
            detailed: return what esp_get_chip_info returns.
        """
        with self.bridge.boards.use(port) as esp:
            return esp.chip.info() if detailed else esp.chip.identify()

    esp_get_chip_info = offer(details.info, timeout=120.0)

    # -- connection, resets, programs, console

    esp_connect_advanced = offer(connection.connect, timeout=180.0, idempotent=True)
    esp_test_connection = offer(connection.check_connection, timeout=300.0)
    esp_reset_chip = offer(
        reset.reset,
        words="Reset the chip into its app or its bootloader, and check by its answer or boot log that it got there.",
        idempotent=True,
        read_only=False,
    )
    esp_run_firmware = offer(
        running.run_firmware, timeout=330.0, idempotent=True, read_only=False, long=True, hides=("lines",)
    )
    esp_serial_monitor = offer(running.monitor, timeout=330.0, long=True)
    esp_load_ram = offer(ram.load_ram, timeout=180.0)
    esp_load_test_firmware = offer(ram.self_test, rename={"chip_type": "chip"}, timeout=180.0)
    esp_elf_to_ram_binary = offer(ram_image.elf_to_ram_image)
    esp_recover_chip = offer(
        recovery.recover,
        words="Recover a board that does not answer or whose app crashes: resets, power cycle, lower baud rates, ROM "
        "without stub. Each measure is reported. Nothing is written unless erase_app is given.",
        timeout=300.0,
        idempotent=True,
    )

    def health_check(self) -> dict[str, Any]:
        """Check that the boards of the rack are present."""
        missing: dict[str, str] = {}
        for spec in self.bridge.rack.boards.values():
            try:
                problem = state_of(spec, self.bridge.rack).problem
            except EspError as error:
                return {"status": "failed", "problem": error.message}
            if problem is not None:
                missing[spec.name] = problem
        if missing:
            return {"status": "degraded", "missing": missing}
        return {"status": "healthy", "boards": len(self.bridge.rack.boards)}
