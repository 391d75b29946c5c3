"""The operations of `esp.diagnostics`."""

from __future__ import annotations

from pytest_esp.operations import diagnostics
from pytest_esp.operations.faces.face import Face, bound


class DiagnosticsFace(Face):
    """`pytest_esp.operations.diagnostics`."""

    memory_dump = bound(diagnostics.memory_dump)
    register_dump = bound(diagnostics.register_dump)
    core_dump = bound(diagnostics.core_dump)
    rf_calibration_check = bound(diagnostics.rf_calibration_check)
    thermal_status = bound(diagnostics.thermal_status)
    power_analysis = bound(diagnostics.power_analysis)
    performance_profile = bound(diagnostics.performance_profile)
    diagnostic_report = bound(diagnostics.diagnostic_report)
    core_dump_of = staticmethod(diagnostics.core_dump_of)
