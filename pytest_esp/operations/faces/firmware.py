"""The operations of `esp.firmware`."""

from __future__ import annotations

from pytest_esp.operations.faces.face import Face
from pytest_esp.operations.firmware import (
    bootloader_image,
    elf_image,
    image_report,
    merging,
    preparing,
    size_analysis,
    splitting,
)


class FirmwareFace(Face):
    """`pytest_esp.operations.firmware`: most work on files alone, independent of the board."""

    elf_to_image = staticmethod(elf_image.elf_to_image)
    prepare = staticmethod(preparing.prepare)
    merge = staticmethod(merging.merge)
    optimize = staticmethod(splitting.optimize)
    analyze = staticmethod(image_report.analyze)
    size = staticmethod(size_analysis.size)
    bootloader = staticmethod(bootloader_image.bootloader)
