"""What a board tells when something is wrong: memory, registers, crashes, boot, power, radio, temperature."""

from pytest_esp.operations.diagnostics.core_dump import CoreDump, core_dump, core_dump_of

__all__ = ["CoreDump", "core_dump", "core_dump_of"]
