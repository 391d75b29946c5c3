"""esptool's stub flashers."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path

from esptool.loader import StubFlasher
from esptool.util import strip_chip_name


@functools.cache
def stub_entries(chip_name: str) -> frozenset[int]:
    """Return the entry points of all stub flashers that the installed esptool has for a ``CHIP_NAME``."""
    # Some chips have a stub per silicon revision, e.g. esp32p4 and esp32p4rc1.
    stem = re.compile(re.escape(strip_chip_name(chip_name)) + r"(rc\d+|-.*)?")
    files = (
        path for folder in StubFlasher.STUB_SUBDIRS for path in (Path(StubFlasher.STUB_DIR) / folder).glob("*.json")
    )
    return frozenset(json.loads(path.read_bytes())["entry"] for path in files if stem.fullmatch(path.stem))
