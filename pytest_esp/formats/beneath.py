"""Opening files inside a folder without following links, so that none can lead out after the path was checked."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator
from pathlib import Path

SUPPORTED = {os.open, os.mkdir, os.unlink, os.rename} <= os.supports_dir_fd and hasattr(os, "O_NOFOLLOW")
"""Whether this system can open files relative to an open folder; Windows cannot."""

_FOLDER = getattr(os, "O_PATH", os.O_RDONLY) | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0)


@contextlib.contextmanager
def folder_of(root: Path, path: Path) -> Generator[int]:
    """Yield a descriptor of the folder that contains *path*, opened from *root* on, one name after the other.

    Args:
        root: a folder; links in its own path are followed.
        path: a path inside it, without ``..``.

    Raises:
        OSError: if a folder between them is missing or a link.
    """
    here = os.open(root, _FOLDER)
    try:
        for name in path.relative_to(root).parts[:-1]:
            inner = os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=here)
            os.close(here)
            here = inner
        yield here
    finally:
        os.close(here)
