"""The other tool, pytest-embedded, in an environment of its own: ``.bench/`` beside the checkout's ``.venv/``."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

VERSION = "2.9.3"
REQUIREMENTS = (
    f"pytest-embedded=={VERSION}",
    f"pytest-embedded-serial=={VERSION}",
    f"pytest-embedded-serial-esp=={VERSION}",
    f"pytest-embedded-idf=={VERSION}",
    f"pytest-embedded-qemu=={VERSION}",
    "pytest==9.2.0",
    "pytest-xdist==3.8.0",
    "pyserial==3.5",
    "esptool==5.6.0",
)
FOLDER = Path(__file__).parents[2] / ".bench" / f"pytest-embedded-{VERSION}"


def peer_python() -> Path:
    """Return the interpreter of the peer's environment, which is made at the first call and reused by later runs."""
    python = FOLDER / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    installed = FOLDER / "installed.txt"
    wanted = "\n".join(REQUIREMENTS)
    if not installed.exists() or installed.read_text() != wanted:
        print(f"installing pytest-embedded {VERSION} into {FOLDER} (once)", flush=True)
        venv.create(FOLDER, with_pip=True, clear=True)
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *REQUIREMENTS], check=True
        )
        installed.write_text(wanted)
    return python
