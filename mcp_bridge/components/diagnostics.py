"""What a board tells when something is wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from mcp_bridge.components.base import Component
from mcp_bridge.tool import progress, tool
from pytest_esp.errors import OperationError
from pytest_esp.formats.files import resolve
from pytest_esp.operations.diagnostics import (
    CoreDump,
    PerformanceProfile,
    PowerAnalysis,
    RadioCalibration,
    ThermalStatus,
    core_dump_in,
    core_dump_of,
)
from pytest_esp.operations.registry import Effect

_MOST_SHOWN = 4096  # bytes of memory in an answer


@dataclass(frozen=True)
class MemoryText:
    """Memory of a chip: the beginning of it as text, and the file that has all of it, if one was asked for."""

    chip: str
    address: str
    size: int
    areas: list[str]
    hexdump: str
    shown: int
    output_file: str | None


@dataclass(frozen=True)
class RegisterText:
    """One register, in hexadecimal, with its fields."""

    name: str
    address: str
    value: str
    fields: dict[str, int]


@dataclass(frozen=True)
class RegisterTexts:
    """Registers of a chip. reset_reason is that of the last reset, which brought it into its loader."""

    chip: str
    reset_reason: str | None
    registers: list[RegisterText]
    source: str


@dataclass(frozen=True)
class Report:
    """A report: what is wrong (the worst first), all sections, and all of it as Markdown."""

    chip: str | None
    made: str
    notices: list[dict[str, str]]
    sections: dict[str, dict[str, Any]]
    markdown: str
    output_file: str | None


class Diagnostics(Component):
    """Tools for when something is wrong."""

    NAME: ClassVar[str] = "diagnostics"
    SUMMARY: ClassVar[str] = (
        "memory, registers, core dumps, boot times, current, radio calibration, temperature, report"
    )

    @tool(Effect.READ, timeout=600.0, shows_secrets=True)  # bytes that are not those on the chip help nobody
    def esp_memory_dump(
        self,
        address: int | str,
        size: int | str,
        port: str | None = None,
        output_file: str | None = None,
        overwrite: bool = False,
    ) -> MemoryText:
        """Read RAM, ROM or registers of the chip by address. Addresses where nothing is mapped are refused.

        The answer shows up to 4 KB as text; output_file takes all of it. Flash is read with esp_flash_read.
        """
        path = resolve(output_file, "write") if output_file is not None else None
        with self.bridge.boards.use(port) as esp:
            dump = esp.diagnostics.memory_dump(address, size, path, overwrite=overwrite, progress=progress)
        lines = dump.hexdump().splitlines()[: _MOST_SHOWN // 16]
        return MemoryText(
            chip=dump.chip,
            address=f"{dump.address:#x}",
            size=dump.size,
            areas=list(dump.areas),
            hexdump="\n".join(lines),
            shown=min(dump.size, _MOST_SHOWN),
            output_file=str(path) if path is not None else None,
        )

    @tool(Effect.READ)
    def esp_register_dump(self, port: str | None = None, module: str | None = None) -> RegisterTexts:
        """Read the chip's registers by name, with their fields: resets, boot pins, clocks, supply, watchdogs, pins.

        module is what the names begin with, e.g. RTC_CNTL or UART; without it all are read (some 60).
        """
        with self.bridge.boards.use(port) as esp:
            dump = esp.diagnostics.register_dump(module)
        registers = [
            RegisterText(one.name, f"{one.address:#010x}", f"{one.value:#010x}", dict(one.fields))
            for one in dump.registers
        ]
        return RegisterTexts(dump.chip, dump.reset_reason, registers, dump.source)

    @tool(timeout=300.0)
    def esp_core_dump_analyze(
        self,
        port: str | None = None,
        dump_file: str | None = None,
        log: str | None = None,
        elf: str | None = None,
    ) -> CoreDump:
        """Decode a core dump: the task that crashed, registers, and where every task was, by function and line.

        It comes from dump_file (as the chip wrote it, base64, an ELF core file, or a log that has one), from log (the
        text of a console with CORE DUMP START ... END), or from the board (its flash, or what its console has said).
        elf is the ELF file of the firmware that crashed; without it there are addresses only.
        """
        symbols = resolve(elf) if elf is not None else None
        if dump_file is not None and log is not None:
            raise OperationError("there are two dumps: give dump_file or log, not both")
        if dump_file is not None:
            return core_dump_of(resolve(dump_file), symbols)
        if log is not None:
            return core_dump_in(log, symbols)
        self.bridge.policy.check(Effect.READ, self.bridge.boards.resolve(port), "esp_core_dump_analyze")
        with self.bridge.boards.use(port) as esp:
            return esp.diagnostics.core_dump(symbols)

    @tool(Effect.READ, timeout=700.0)
    def esp_performance_profile(
        self, port: str | None = None, duration: float = 10.0, until: str | None = None
    ) -> PerformanceProfile:
        """Start the app and measure: boot phases, time to app_main, resets, crashes, log rate, heap, link throughput.

        duration is in seconds; the text `until` ends it early. Afterwards the chip is in its loader.
        """
        with self.bridge.boards.use(port) as esp:
            return esp.diagnostics.performance_profile(duration, until=until, progress=progress)

    @tool(Effect.READ, timeout=3700.0)
    def esp_power_analysis(self, port: str | None = None, duration: float = 5.0, boot: bool = True) -> PowerAnalysis:
        """Measure the current that the board takes while its app runs, by the power meter that boards.toml names.

        Without a meter measurement is null and not_measured says why. supply is what the chip itself tells: brown-out
        detector, regulators, supply of the flash. boot starts the app anew first.
        """
        with self.bridge.boards.use(port) as esp:
            return esp.diagnostics.power_analysis(duration, boot=boot, progress=progress)

    @tool(Effect.READ, timeout=300.0)
    def esp_rf_calibration_check(self, port: str | None = None, nvs_partition: str | None = None) -> RadioCalibration:
        """Check the radio's calibration: init data, what is stored in NVS and for which MAC address, eFuses."""
        with self.bridge.boards.use(port) as esp:
            return esp.diagnostics.rf_calibration_check(nvs_partition)

    @tool(Effect.READ)
    def esp_thermal_status(self, port: str | None = None) -> ThermalStatus:
        """Read the chip's own temperature sensor. Refused where the chip has none (ESP32, ESP8266)."""
        with self.bridge.boards.use(port) as esp:
            return esp.diagnostics.thermal_status()

    @tool(Effect.READ, timeout=600.0)
    def esp_diagnostic_report(
        self,
        port: str | None = None,
        include_memory: bool = False,
        output_file: str | None = None,
        elf: str | None = None,
        duration: float = 3.0,
        overwrite: bool = False,
    ) -> Report:
        """Collect all diagnostics of a board in one report, with what is wrong first; parts that fail say why.

        output_file saves it: one page of HTML (.html) with pictures of partitions and flash, or Markdown (.md).
        include_memory adds 1 KB of RAM. The app is started for duration seconds; then the chip is in its loader.
        """
        path = resolve(output_file, "write") if output_file is not None else None
        symbols = resolve(elf) if elf is not None else None
        with self.bridge.boards.use(port) as esp:
            report = esp.diagnostics.diagnostic_report(
                include_memory, path, elf=symbols, duration=duration, overwrite=overwrite, progress=progress
            )
        return Report(
            chip=report.chip,
            made=report.made,
            notices=[{"severity": one.severity, "section": one.section, "what": one.what} for one in report.notices],
            sections={
                one.name: dict(one.data) if one.data is not None else {"problem": one.problem, "hint": one.hint}
                for one in report.sections
            },
            markdown=report.markdown(),
            output_file=str(path) if path is not None else None,
        )
