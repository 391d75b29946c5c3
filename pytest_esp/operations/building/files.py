"""The files that builders read and write."""

from __future__ import annotations

from esptool.targets import CHIP_DEFS

from pytest_esp.errors import FirmwareError, OperationError
from pytest_esp.files import FileName, resolve
from pytest_esp.names import nearest


def read_file(name: FileName, what: str) -> bytes:
    """Return the content of a file; *what* it is meant to be is for messages, e.g. ``"ELF file"``.

    Raises:
        FirmwareError: if it cannot be read, is no regular file, or is empty.
    """
    path = resolve(name)
    try:
        if path.exists() and not path.is_file():
            raise FirmwareError(f"the {what} {path} is no regular file", hint="name a file")
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise FirmwareError(f"the {what} {path} cannot be read: {reason or error}") from error
    if not data:
        raise FirmwareError(f"the {what} {path} is empty", hint="a build that went wrong? Build it again")
    return data


def known_chip(name: str) -> str:
    """Return a chip as esptool names it, by that name or the vendor's (``"ESP32-C3"``), as esptool itself takes both.

    Raises:
        OperationError: if it is none.
    """
    bare = name.strip().lower().replace("-", "")
    if bare not in CHIP_DEFS:
        raise OperationError(f"there is no chip {name!r}", hint=f"nearest: {nearest(bare, CHIP_DEFS)}")
    return bare
