"""One image, one board: a file that boards.toml or a command line names is nobody else's while a board is open."""

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
    """Return the lock of *file*, taken; it ends with this process.

    The lock lies beside the leases: one on the file itself would be another's after the file is replaced.

    Raises:
        BackendError: if another board has it.
        LeaseError: if the folder of the leases cannot be used.
    """
    name = hashlib.sha256(os.fsencode(os.path.realpath(file))).hexdigest()[:16]
    lock = FileLock(lock_folder(rack) / f"image-{name}.lock", mode=0o666, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise BackendError(
            f"the image {file} is in use by another board",
            hint="two boards that write the same image corrupt it: give each its own, or close the other one",
        ) from None
    except (OSError, NotImplementedError) as error:
        raise BackendError(f"the image {file} cannot be locked: {error}") from error
    return lock
