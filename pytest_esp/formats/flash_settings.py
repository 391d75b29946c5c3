"""The flash settings that a build's listing gives for the header of its bootloader."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FlashSettings:
    """Flash settings in esptool's words; ``"keep"`` leaves what the image has, ``"detect"`` is the board's size."""

    mode: str = "keep"
    frequency: str = "keep"
    size: str = "keep"


KEEP = FlashSettings()
DETECT = FlashSettings(size="detect")
