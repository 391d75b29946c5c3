"""What the project's own tests share."""

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
