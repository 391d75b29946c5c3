"""Locks image files, so that a file is used by only one open board."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from pytest_esp.errors import BackendError
from pytest_esp.rack.lease import lock_folder

if TYPE_CHECKING:
    from pytest_esp.rack.rack import Rack


def claim(file: Path, rack: Rack) -> FileLock:
    """Lock *file* and return the lock, which ends with this process.

    The lock file is in the lock folder of the leases: a lock on the file itself would be lost when it is replaced.

    Raises:
        BackendError: if another board uses the file.
        LeaseError: if the lock folder cannot be used.
    """
    name = hashlib.sha256(os.fsencode(os.path.realpath(file))).hexdigest()[:16]
    lock = FileLock(lock_folder(rack) / f"image-{name}.lock", mode=0o666, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise BackendError(
            f"the image {file} is in use by another board",
            hint="two boards that write the same image corrupt it; use another file, or close the other board",
        ) from None
    except (OSError, NotImplementedError) as error:
        raise BackendError(f"cannot lock the image {file}: {error}") from error
    return lock
