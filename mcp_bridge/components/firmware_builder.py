"""Tools for firmware files: convert ELF files, merge, split, analyze. They do not touch boards."""

from __future__ import annotations

from typing import ClassVar

from mcp_bridge.components.base import Component
from mcp_bridge.tool import offer
from pytest_esp.operations.firmware import (
    bootloader_image,
    elf_image,
    image_report,
    merging,
    preparing,
    size_analysis,
    splitting,
)


class FirmwareBuilder(Component):
    """Tools for firmware files."""

    NAME: ClassVar[str] = "firmware_builder"
    SUMMARY: ClassVar[str] = (
        "convert ELF files to images, merge and split images, analyze images and sizes, bootloaders"
    )

    esp_elf_to_binary = offer(elf_image.elf_to_image)
    esp_app_prepare = offer(preparing.prepare)
    esp_binary_merge = offer(merging.merge)
    esp_firmware_analyze = offer(image_report.analyze)
    esp_bootloader_build = offer(bootloader_image.bootloader, timeout=1800.0)
    esp_binary_optimize = offer(splitting.optimize)
    esp_size_analysis = offer(size_analysis.size)
