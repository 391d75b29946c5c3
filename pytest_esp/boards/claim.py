"""Locks the files of virtual boards, so that a file is used by only one open board."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from pytest_esp.errors import BackendError
from pytest_esp.rack.identity import canonical_files
from pytest_esp.rack.lease import file_locks, is_leased, lock_folder, try_locks

if TYPE_CHECKING:
    from pytest_esp.rack.rack import Rack
    from pytest_esp.rack.spec import BoardSpec


def claim_files(files: Iterable[str | os.PathLike[str]], rack: Rack, *, board: str, purpose: str) -> Callable[[], None]:
    """Lock *files* for a board that is not leased; return what releases them. They are also released with the process.

    Raises:
        BackendError: if another board uses one; says which process.
        LeaseError: if the lock folder cannot be used.
    """
    held = contextlib.ExitStack()
    for name in canonical_files(files):
        (lock,) = locks = file_locks([name], lock_folder(rack))
        if not try_locks(locks):
            held.close()
            holder = lock.holder(board)
            raise BackendError(
                f"the image {name} is in use by another board" + (f": {holder.describe()}" if holder else ""),
                hint="two boards that write the same image corrupt it; use another file, or close the other board",
            )
        held.callback(lock.unlock)
        with contextlib.suppress(OSError):  # the lock counts; the record only says whose it is
            lock.sign(board, purpose, time.time())
    return held.close


def claim(spec: BoardSpec, rack: Rack) -> Callable[[], None]:
    """Lock the files of a board that is opened, unless its lease has done so; return what releases them.

    Raises:
        BackendError: if another board uses one.
        LeaseError: if the lock folder cannot be used.
    """
    if is_leased(spec):
        return lambda: None
    files = [file for file in (spec.flash_file, spec.efuse_file) if file is not None]
    return claim_files(
        files, rack, board=spec.name, purpose=f"{spec.backend} board {spec.name}, opened without a lease"
    )
