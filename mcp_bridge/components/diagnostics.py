"""What can be found out when something is wrong."""

from __future__ import annotations

from typing import ClassVar

from mcp_bridge.components.base import Component
from mcp_bridge.tool import offer, tool
from pytest_esp.operations import diagnostics
from pytest_esp.operations.diagnostics import CoreDump, core_dump_of
from pytest_esp.operations.registry import Effect


class Diagnostics(Component):
    """Tools for when something is wrong."""

    NAME: ClassVar[str] = "diagnostics"
    SUMMARY: ClassVar[str] = (
        "memory, registers, core dumps, boot times, current, radio calibration, temperature, report"
    )

    # Bytes that are not those on the chip help nobody.
    esp_memory_dump = offer(diagnostics.memory_dump, timeout=600.0, shows_secrets=True)
    esp_register_dump = offer(diagnostics.register_dump)
    esp_performance_profile = offer(diagnostics.performance_profile, timeout=700.0)
    esp_power_analysis = offer(diagnostics.power_analysis, timeout=3700.0)
    esp_rf_calibration_check = offer(diagnostics.rf_calibration_check, timeout=300.0)
    esp_thermal_status = offer(diagnostics.thermal_status)
    esp_diagnostic_report = offer(diagnostics.diagnostic_report, timeout=600.0)

    @tool(timeout=300.0)
    def esp_core_dump_analyze(
        self,
        port: str | None = None,
        dump_file: str | None = None,
        log: str | None = None,
        elf_file: str | None = None,
    ) -> CoreDump:
        """Decode a core dump: the task that crashed, registers, and where every task was, by function and line.

        It comes from dump_file, from log, or else from the board: its flash, or what its console has said.

        Args:
            dump_file: as the chip wrote it (raw or base64), an ELF core file, or a log that has one.
            log: the text of a console with CORE DUMP START ... END.
            elf_file: of the firmware that crashed, for functions and lines; without it there are addresses only.
        """
        if dump_file is not None or log is not None:
            return core_dump_of(dump_file, elf_file, log)
        self.bridge.policy.check(Effect.READ, self.bridge.boards.resolve(port), "esp_core_dump_analyze")
        with self.bridge.boards.use(port) as esp:
            return esp.diagnostics.core_dump(elf_file)
