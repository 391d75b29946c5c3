"""The chips, without importing esptool: that takes longer than reading a rack."""

from __future__ import annotations

AUTO = "auto"
"""The chip of an entry that does not give it."""
CHIPS = (
    "esp8266",
    "esp32",
    "esp32s2",
    "esp32s3",
    "esp32c3",
    "esp32c2",
    "esp32c6",
    "esp32c61",
    "esp32c5",
    "esp32e22",
    "esp32h2",
    "esp32h21",
    "esp32p4",
    "esp32h4",
    "esp32s31",
)
"""A copy of ``esptool.CHIP_LIST``. A test compares the two; an esptool that is newer may know more."""
