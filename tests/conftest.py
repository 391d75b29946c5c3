"""What the project's own tests share."""

import json
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def firmware_folder():
    """The folder of real ESP-IDF builds, which the repository does not contain."""
    folder = Path(os.environ.get("PYTEST_ESP_FIRMWARE") or ROOT.parent / "shared" / "firmware")
    if not (folder / "hello_world_esp32c3" / "flasher_args.json").is_file():
        pytest.skip(f"no real firmware in {folder}: set PYTEST_ESP_FIRMWARE")
    return folder


@pytest.fixture
def need_qemu():
    """A function that skips the test unless a machine of *chip* can be started."""
    from pytest_esp.qemu.find import why_missing

    def need(chip):
        if reason := why_missing(chip):
            pytest.skip(reason)

    return need


@pytest.fixture
def build_of():
    """A function that returns the build folder of the test firmware (tests/firmware) for *chip*."""
    return lambda chip: ROOT / "tests" / "firmware" / "build" / chip


@pytest.fixture
def flash_of():
    """A function that returns what a flash of *size* bytes holds after *build*, a build folder, was written to it."""

    def flash(build, size=2 * 1024 * 1024):
        contents = bytearray(b"\xff" * size)
        files = json.loads((build / "flasher_args.json").read_text(encoding="utf-8"))["flash_files"]
        for offset, name in files.items():
            data = (build / name).read_bytes()
            contents[int(offset, 0) : int(offset, 0) + len(data)] = data
        return contents

    return flash
