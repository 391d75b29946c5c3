"""Diagnostics of a faulty board: memory, registers, crashes, boot, power, radio, temperature."""

from pytest_esp.operations.diagnostics.core_dump import CoreDump, analyze, core_dump, core_dump_of
from pytest_esp.operations.diagnostics.memory import MemoryDump, RegisterDump, memory_dump, register_dump
from pytest_esp.operations.diagnostics.power import PowerAnalysis, power_analysis
from pytest_esp.operations.diagnostics.profile import PerformanceProfile, performance_profile, profile_of
from pytest_esp.operations.diagnostics.radio import RadioCalibration, rf_calibration_check
from pytest_esp.operations.diagnostics.report import DiagnosticReport, diagnostic_report
from pytest_esp.operations.diagnostics.thermal import ThermalStatus, thermal_status

__all__ = [
    "CoreDump",
    "DiagnosticReport",
    "MemoryDump",
    "PerformanceProfile",
    "PowerAnalysis",
    "RadioCalibration",
    "RegisterDump",
    "ThermalStatus",
    "analyze",
    "core_dump",
    "core_dump_of",
    "diagnostic_report",
    "memory_dump",
    "performance_profile",
    "power_analysis",
    "profile_of",
    "register_dump",
    "rf_calibration_check",
    "thermal_status",
]
