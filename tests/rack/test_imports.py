"""Leases are taken by many short processes: what they import stays small."""

import subprocess
import sys


def test_leases_and_racks_are_imported_without_what_is_heavy():
    code = "import sys, pytest_esp.rack.lease, pytest_esp.rack.rack; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "pytest_esp.rack.lease" in loaded
    assert not {"pydantic", "serial", "esptool", "pytest", "click", "rich"} & set(loaded)
