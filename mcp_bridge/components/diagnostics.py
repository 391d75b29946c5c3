"""Tools for diagnostics: memory, registers, core dumps, boot times, current, temperature."""

from __future__ import annotations

from typing import ClassVar

from mcp_bridge.components.base import Component
from mcp_bridge.tool import offer, tool
from pytest_esp.operations import diagnostics
from pytest_esp.operations.diagnostics import CoreDump, core_dump_of
from pytest_esp.operations.registry import Effect


class Diagnostics(Component):
    """Tools for diagnostics."""

    NAME: ClassVar[str] = "diagnostics"
    SUMMARY: ClassVar[str] = (
        "memory, registers, core dumps, boot times, current, radio calibration, temperature, report"
    )

    # Not masked: the dump must contain the chip's own bytes.
    esp_memory_dump = offer(diagnostics.memory_dump, timeout=600.0, shows_secrets=True, long=True)
    esp_register_dump = offer(diagnostics.register_dump)
    esp_performance_profile = offer(diagnostics.performance_profile, timeout=700.0)
    esp_power_analysis = offer(diagnostics.power_analysis, timeout=3700.0)
    esp_rf_calibration_check = offer(diagnostics.rf_calibration_check, timeout=300.0)
    esp_thermal_status = offer(diagnostics.thermal_status)
    esp_diagnostic_report = offer(diagnostics.diagnostic_report, timeout=600.0, long=True, hides=("markdown",))

    @tool(timeout=300.0, long=True)
    def esp_core_dump_analyze(
        self,
        port: str | None = None,
        dump_file: str | None = None,
        log: str | None = None,
        elf_file: str | None = None,
    ) -> CoreDump:
        """Decode a core dump: the crashed task, its registers, and the backtrace of every task with function and line.

        The dump is read from dump_file or log; without them from the board's flash or its console output.

        Args:
            dump_file: a dump as the chip wrote it (raw or base64), an ELF core file, or a log that contains a dump.
            log: console output with CORE DUMP START ... END.
            elf_file: the ELF file of the crashed firmware; without it the backtraces have addresses only.
        """
        if dump_file is not None or log is not None:
            return core_dump_of(dump_file, elf_file, log)
        self.bridge.policy.check(Effect.READ, self.bridge.boards.resolve(port), "esp_core_dump_analyze")
        with self.bridge.boards.use(port) as esp:
            return esp.diagnostics.core_dump(elf_file)
