"""The errors that every room raises.

Each carries what was attempted, on which board, and a hint: what the reader can do about it. ``str(error)``
is the whole message for a person; the attributes serve the edges (``--json``, MCP) that make a record of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class EspError(Exception):
    """Base of all errors of pytest-esp.

    Args:
        message: what went wrong, as one sentence without the board's name.
        attempted: the operation that was under way, e.g. ``"flash write of 0x3000 bytes at 0x10000"``.
        board: name (or port) of the board, where one was involved.
        hint: what to do about it.
        details: plain data for programs, beside the message: it becomes part of the record at the edges.
    """

    def __init__(
        self,
        message: str,
        *,
        attempted: str | None = None,
        board: str | None = None,
        hint: str | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.attempted = attempted
        self.board = board
        self.hint = hint
        self.details: dict[str, Any] = dict(details or {})

    def __str__(self) -> str:
        text = f"{self.board}: {self.message}" if self.board else self.message
        if self.attempted:
            text += f" (during {self.attempted})"
        if self.hint:
            text += f"\n  hint: {self.hint}"
        return text


class RackError(EspError):
    """boards.toml is missing, unreadable or wrong; or the rack has no such board."""


class NoMatchError(EspError):
    """No board of the rack can ever satisfy a requirement."""


class LeaseError(EspError):
    """A board is held by somebody else, or its lock cannot be made."""


class PortError(EspError):
    """A port does not exist, is busy, may not be opened, or vanished."""


class LinkError(EspError):
    """The chip does not answer, or answered something that cannot be right."""


class WrongChipError(LinkError):
    """The board answers, but it is not the chip that was asked for."""


class OperationError(EspError):
    """An operation was tried on a working link and failed."""


class StoppedError(EspError):
    """Whoever asked for it has stopped it in the middle, through its progress callback."""


class RefusedError(EspError):
    """An operation is not allowed on this board; the wire was not touched."""


class FirmwareError(EspError):
    """An image is unreadable, damaged, too large, or made for another chip."""


class BackendError(EspError):
    """A virtual board could not be started, died, or lacks what was asked of it."""
