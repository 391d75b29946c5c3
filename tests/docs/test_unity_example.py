"""The example of docs/unity.md, on simulated chips with the test firmware's app."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
FIRMWARE = ROOT / "tests" / "firmware"
RACK = '[boards.{0}]\nbackend = "sim"\nchip = "{0}"\nflash_size = "4MB"\napp = "app:TestFirmware"\n'


def test_the_example_runs_as_it_stands(tmp_path):
    page = (ROOT / "docs" / "unity.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "test_example.py").write_text("\n\n".join(blocks))
    (tmp_path / "boards.toml").write_text("\n".join(RACK.format(chip) for chip in ("esp32", "esp32c3")))
    (tmp_path / "pytest.ini").write_text(f"[pytest]\npythonpath = {FIRMWARE}\n")
    shutil.copytree(FIRMWARE / "build", tmp_path / "build")
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "--strict-markers", "--esp-strict"],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTEST_ESP_STATE_DIR": str(tmp_path / "state"),
            "PYTEST_ESP_LOCK_DIR": str(tmp_path / "locks"),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "test_app[esp32c3] SUBPASSED[memory survives a restart]" in result.stdout
    assert "test_both SUBPASSED[two boards talk]" in result.stdout
    assert "SUBPASSED[one is two]" not in result.stdout
