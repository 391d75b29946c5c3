"""The other tool, pytest-embedded, in an environment of its own: ``.bench/`` beside the checkout's ``.venv/``."""

from __future__ import annotations

import subprocess
import sys
import venv
from collections.abc import Sequence
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
    return environment(FOLDER, REQUIREMENTS)


def environment(folder: Path, requirements: Sequence[str]) -> Path:
    """Return the interpreter of the environment in *folder*, made if it is not there with these *requirements*."""
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    installed = folder / "installed.txt"
    wanted = "\n".join(requirements)
    if not installed.exists() or installed.read_text() != wanted:
        print(f"installing {requirements[0]} into {folder} (once)", flush=True)
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements], check=True
        )
        installed.write_text(wanted)
    return python
