"""pytest-embedded's command line options: which are used, and which are accepted without effect."""

from __future__ import annotations

import argparse

import pytest

FLAGS = frozenset({"esp-flash-force"})

USED = {
    "count": "the number of boards of each test",
    "target": "the chip",
    "app-path": "the folder of the app; default: that of the test's file",
    "build-dir": "the build folder in the app's folder",
    "embedded-services": "with qemu in it, tests run on QEMU boards only",
    "baud": "the console's baud rate",
    "skip-autoflash": "y: run what is in flash",
    "erase-all": "y: erase the flash before it is written",
    "erase-nvs": "y: erase the partition nvs after flashing",
    "root-logdir": "the folder for files of tests",
    "logfile-extension": "of console logs",
    "metric-path": "the file that log_metric writes to",
    "supported-targets": "what supported_targets stands for in idf_parametrize",
    "preview-targets": "what preview_targets stands for in idf_parametrize",
    "add-target-as-marker-with-amount": "y: mark tests with their chips, such as esp32_2",
    "check-duplicates": "y: an error if two tests have the same name",
}
"""Options with an effect, and what they say."""

INSTEAD = {
    "port": "boards.toml, or --esp-port",
    "port-location": "boards.toml: port = 'usb:...'",
    "port-mac": "boards.toml: mac",
    "port-serial-number": "boards.toml: port = 'usb:...:serial=...'",
    "flash-port": "boards.toml: console_port",
    "esptool-baud": "boards.toml: baud",
    "qemu-image-path": "boards.toml: flash_file",
    "qemu-efuse-path": "boards.toml: efuse_file",
    "parallel-count": "pytest-xdist: -n",
    "parallel-index": "pytest-xdist: -n",
}
"""Options without an effect, and what does the same here: a run that uses one is refused."""

IGNORED = (
    "beta-target",
    "cache-dir",
    "confirm-target-elf-sha256",  # always checked
    "esp-flash-force",
    "no-fast-flash",
    "part-tool",  # not needed
    "prettify-junit-report",
    "skip-check-coredump",
    "skip-decode-panic",
    "skip-regenerate-image",
    "unity-test-report-mode",
    "with-timestamp",  # always
    "encrypt",
    "keyfile",
    "gdb-prog-path",
    "gdb-cli-args",
    "no-gdb",
    "openocd-prog-path",
    "openocd-cli-args",
    "qemu-prog-path",
    "qemu-cli-args",
    "qemu-extra-args",
    "espemu-image-path",
    "espemu-prog-path",
    "espemu-cli-args",
    "espemu-extra-args",
    "wokwi-diagram",
    "wokwi-usb-serial-jtag",
)
"""Options that are accepted and have no effect: nothing here depends on them, or only what is not supported does."""


def add_options(parser: pytest.Parser) -> None:
    """Add the options whose names no other plugin has."""
    group = parser.getgroup("esp-embedded", "pytest-embedded's options (pytest-esp)")
    for name in (*USED, *INSTEAD, *IGNORED):
        if name in USED:
            text = USED[name]
        else:
            text = f"refused: use {INSTEAD[name]}" if name in INSTEAD else "accepted, without effect"
        try:
            if name in FLAGS:
                group.addoption(f"--{name}", action="store_true", help=text)
            else:
                group.addoption(f"--{name}", help=text)
        except (ValueError, argparse.ArgumentError):  # another plugin has it; the second from pytest 9.0
            continue


def refuse_others(config: pytest.Config) -> None:
    """Refuse options that would be ignored.

    Raises:
        pytest.UsageError: with what to use instead.
    """
    for name, instead in INSTEAD.items():
        if config.getoption(name.replace("-", "_"), None) not in (None, 1, "1"):
            raise pytest.UsageError(f"--{name} has no effect with --esp-embedded: use {instead}")
