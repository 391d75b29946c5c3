"""The chip itself: which boards there are, who answers, connections, resets, programs in RAM, console, recovery."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from mcp_bridge.components.base import Component
from mcp_bridge.tool import offer, progress, tool
from pytest_esp.errors import EspError, OperationError
from pytest_esp.formats.files import resolve
from pytest_esp.operations.chip.connection import Attempt, ConnectionTest
from pytest_esp.operations.chip.identity import ChipIdentity
from pytest_esp.operations.chip.running import ConsoleText, FirmwareRun
from pytest_esp.operations.diagnostics.recovery import Recovery
from pytest_esp.operations.firmware.ram import SelfTest, self_test_image
from pytest_esp.operations.firmware.ram_image import RamImage, elf_to_ram_image
from pytest_esp.operations.registry import Effect
from pytest_esp.operations.security import details
from pytest_esp.rack.state import state_of

_BY_ID = Path("/dev/serial/by-id")
_RESETS: dict[str, Literal["hard", "soft", "watchdog"]] = {
    "hard-reset": "hard",
    "soft-reset": "soft",
    "watchdog-reset": "watchdog",
}


@dataclass(frozen=True)
class ScanResult:
    """What there is to talk to; *scan_results* is all of it in one list."""

    detected_devices: list[dict[str, Any]]
    available_ports: list[dict[str, Any]]
    qemu_devices: list[dict[str, Any]]
    sim_devices: list[dict[str, Any]]
    scan_results: list[dict[str, Any]]


@dataclass(frozen=True)
class ConnectReport:
    """A connection that is kept for later calls; *failures* are the attempts before it, and rates too high."""

    chip_type: str
    baud: int
    attempt: int
    strategy: str
    stub_loaded: bool
    failures: list[Attempt]
    seconds: float


@dataclass(frozen=True)
class ResetReport:
    """What the chip did after a reset."""

    reset_mode: str
    mode: str
    reason: str | None
    seconds: float
    output: str


@dataclass(frozen=True)
class RamReport:
    """A program that runs in RAM, and what it said first."""

    firmware: str
    entry: str
    segments: list[tuple[str, int]]
    bytes_loaded: int
    output: str
    matched: bool | None
    seconds: float


class ChipControl(Component):
    """Tools for the chip itself."""

    NAME: ClassVar[str] = "chip_control"
    SUMMARY: ClassVar[str] = "which boards there are, who answers, connections, resets, programs in RAM, recovery"

    # -- which there are

    @tool()
    def esp_scan_ports(self, detailed: bool = False) -> ScanResult:
        """List the boards of the rack, the virtual boards that run here, and this machine's serial ports. Touches none.

        Each has its state: free, held (and by whom), or missing. detailed adds USB ids, features and what is allowed.
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
        row: dict[str, Any] = {"port": name, "kind": "board", "chip": spec.chip, "backend": spec.backend}
        row |= state_of(spec, self.bridge.rack).to_dict()
        if detailed:
            row |= {"features": sorted(spec.features), "allow": sorted(spec.allow), "device": spec.port}
        return row

    def _instances(self, detailed: bool) -> list[dict[str, Any]]:
        """Return the virtual boards that esp_qemu_start and esp_sim_start have started."""
        from mcp_bridge.components.qemu_manager import QemuManager

        manager = self.bridge.components.get(QemuManager.NAME)
        if not isinstance(manager, QemuManager):
            return []
        found = [*manager.esp_qemu_list().instances, *manager.esp_sim_list().instances]
        return [
            self._board(item.instance_id, detailed)
            | {"kind": "instance", "socket_uri": item.socket_uri, "rfc2217_uri": item.rfc2217_uri, "pid": item.pid}
            for item in found
        ]

    def _ports(self, detailed: bool) -> list[dict[str, Any]]:
        from serial.tools import list_ports

        by_id = _names_by_id()
        rows: list[dict[str, Any]] = []
        for item in list_ports.comports():
            spec = self.bridge.boards.resolve(item.device)
            board = spec.name if spec.name in self.bridge.rack.boards else None
            row = {"port": item.device, "kind": "serial port", "description": item.description, "board": board}
            row |= {"backend": "serial", **state_of(spec, self.bridge.rack).to_dict()}
            if detailed:
                row |= {"usb": item.hwid, "serial_number": item.serial_number, "by_id": by_id.get(item.device)}
            rows.append(row)
        return rows

    # -- who answers

    @tool(Effect.READ, timeout=120.0)
    def esp_detect_chip(self, port: str | None = None, detailed: bool = False, wait_s: float = 0.0) -> ChipIdentity:
        """Identify the chip on a board: type, revision, MAC address, features, crystal, flash size.

        Leaves the chip in its bootloader; esp_run_firmware or esp_reset_chip starts the app again.

        Args:
            detailed: return all that esp_get_chip_info does.
            wait_s: seconds to wait for a board that another process holds.
        """
        with self.bridge.boards.use(port, wait=wait_s) as esp:
            return esp.chip.info() if detailed else esp.chip.identify()

    esp_get_chip_info = offer(details.info, timeout=120.0)

    # -- the connection

    @tool(Effect.READ, timeout=180.0, idempotent=True)
    def esp_connect_advanced(
        self, port: str | None = None, baud: int | None = None, retries: int = 7, use_stub: bool = True
    ) -> ConnectReport:
        """Connect to a board's bootloader by several strategies (resets, lower baud rates) and keep the connection.

        For boards on which esp_detect_chip fails, or to go on at another baud rate. The answer has what really worked.
        If nothing does, esp_recover_chip goes further.
        """
        with self.bridge.boards.use(port) as esp:
            found = esp.chip.connect(baud, retries, use_stub)
        return ConnectReport(
            chip_type=found.chip,
            baud=found.baudrate,
            attempt=found.attempt,
            strategy=found.strategy,
            stub_loaded=found.stub,
            failures=list(found.failures),
            seconds=round(found.seconds, 3),
        )

    @tool(Effect.READ, timeout=300.0)
    def esp_test_connection(
        self, port: str | None = None, rounds: int = 8, highest_baud: int = 921600
    ) -> ConnectionTest:
        """Measure a board's link: SYNC, register echo and MD5 round trips at rising baud rates.

        Returns errors, latency and throughput of each rate, and the highest one without an error. Changes nothing.
        """
        with self.bridge.boards.use(port) as esp:
            return esp.chip.check_connection(rounds, highest_baud)

    # -- resets, programs

    @tool(Effect.READ, idempotent=True, read_only=False)
    def esp_reset_chip(
        self,
        port: str | None = None,
        reset_mode: Literal["hard-reset", "soft-reset", "watchdog-reset"] = "hard-reset",
        to: Literal["app", "bootloader"] = "app",
    ) -> ResetReport:
        """Reset a chip into its app or its bootloader, and check by what it then does (boot banner, or an answer).

        soft-reset lets its ROM restart it (to the bootloader; on an ESP8266 also to the app), watchdog-reset its RTC
        watchdog, on the chips that can.
        """
        with self.bridge.boards.use(port) as esp:
            result = esp.chip.reset(to, _RESETS[reset_mode])
        return ResetReport(reset_mode, result.mode, result.reason, round(result.seconds, 3), result.output)

    @tool(Effect.READ, timeout=330.0, idempotent=True, read_only=False)
    def esp_run_firmware(
        self, port: str | None = None, wait_seconds: float = 3.0, until: str | None = None
    ) -> FirmwareRun:
        """Start the app in a board's flash and return its first output, and whether it crashed or could not be booted.

        Listens for wait_seconds, or until the text `until` comes; a crash ends it and is decoded.
        """
        with self.bridge.boards.use(port) as esp:
            return esp.chip.run_firmware(wait_seconds, until, progress=progress)

    @tool(Effect.WRITE, timeout=180.0)
    def esp_load_ram(
        self, firmware: str, port: str | None = None, wait_seconds: float = 1.0, until: str | None = None
    ) -> RamReport:
        """Load a program into a chip's RAM, start it and return its first output. The flash stays as it is.

        firmware is an image or an ELF file that is linked for RAM only; it runs until the next reset.
        """
        path = resolve(firmware)
        with self.bridge.boards.use(port) as esp:
            run = esp.chip.load_ram(path, wait_seconds, until, progress=progress)
        return RamReport(
            firmware=str(path),
            entry=f"{run.image.entry:#x}",
            segments=[(f"{address:#x}", size) for address, size in run.image.segments],
            bytes_loaded=run.bytes_loaded,
            output=run.output,
            matched=run.matched,
            seconds=round(run.seconds, 3),
        )

    @tool(Effect.WRITE, timeout=180.0)
    def esp_load_test_firmware(self, port: str | None = None, chip: str | None = None) -> SelfTest:
        """Load this package's self-test into a chip's RAM and run it: RAM, CRC, timer, UART both ways. Flash untouched.

        There is one for the ESP32 and the ESP32-C3. Simulated chips run no machine code, QEMU does.
        """
        spec = self.bridge.boards.resolve(port)
        if chip is not None:
            self_test_image(chip)  # or says which there are
            if spec.chip not in ("auto", chip):
                raise OperationError(f"this board is an {spec.chip}, not an {chip}", board=spec.name)
        with self.bridge.boards.use(port) as esp:
            return esp.chip.self_test()

    @tool()
    def esp_elf_to_ram_binary(
        self, elf_file: str, chip_type: str, output_file: str | None = None, overwrite: bool = False
    ) -> RamImage:
        """Make an image for esp_load_ram from an ELF file that is linked for RAM only. Touches no board.

        Without output_file it is written beside the ELF file, as NAME.ram.bin.
        """
        source = resolve(elf_file)
        target = resolve(output_file, "write") if output_file else source.with_suffix(".ram.bin")
        return elf_to_ram_image(source, chip_type, target, overwrite=overwrite)

    # -- console

    @tool(Effect.READ, timeout=330.0)
    def esp_serial_monitor(
        self,
        port: str | None = None,
        duration_seconds: float = 5.0,
        until: str | None = None,
        reset: bool = False,
        elf_file: str | None = None,
    ) -> ConsoleText:
        """Return what the app prints within duration_seconds (300 at most), or until the text `until` comes.

        reset starts the app anew first. A crash ends it and is returned decoded, with functions and lines if elf_file
        is the app's ELF file.
        """
        elf = resolve(elf_file) if elf_file else None
        with self.bridge.boards.use(port) as esp:
            return esp.chip.monitor(duration_seconds, until, reset=reset, elf=elf, progress=progress)

    # -- recovery

    @tool(Effect.ERASE, timeout=300.0, idempotent=True, without={"erase_app": Effect.READ})
    def esp_recover_chip(self, port: str | None = None, erase_app: bool = False, wait_seconds: float = 5.0) -> Recovery:
        """Bring back a board that does not answer, or whose app cannot live; each measure is reported.

        In this order: reset, power cycle, other boot resets, lower baud rates, ROM without stub, then a boot. Writes
        nothing, unless erase_app is given and the app crashes or cannot be booted: then its partition is erased.
        """
        self.bridge.policy.check(Effect.WRITE, self.bridge.boards.resolve(port), "esp_recover_chip")
        with self.bridge.boards.use(port) as esp:
            return esp.chip.recover(erase_app, wait_seconds)

    def health_check(self) -> dict[str, Any]:
        """Look for the boards of the rack: those that are not there are named."""
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


def _names_by_id() -> dict[str, str]:
    """Return the stable names that udev gives serial ports, by device."""
    try:
        return {os.path.realpath(link): str(link) for link in _BY_ID.iterdir()}
    except OSError:
        return {}
