"""The exceptions that pytest-esp raises.

Each carries what was attempted, on which board, and a hint: what the reader can do about it. ``str(error)``
is the complete message for people; ``--json`` and the MCP server use the attributes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pytest_esp.controls import without_controls


class EspError(Exception):
    """Base class of all pytest-esp errors.

    Args:
        message: what went wrong, as one sentence without the board's name.
        attempted: the operation in progress, e.g. ``"flash write of 0x3000 bytes at 0x10000"``.
        board: name (or port) of the board, if one was involved.
        hint: what the reader can do about it.
        details: plain data for programs, added to the JSON record of the error.
    """

    is_fault: ClassVar[bool] = False
    """Whether the board or the rack is at fault, not what a test expects of the firmware."""

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
        return without_controls(text)  # which may quote a board or a file


class RackError(EspError):
    """boards.toml is missing, unreadable or invalid, or the rack does not contain the board."""

    is_fault = True


class NoMatchError(EspError):
    """No board of the rack can satisfy a requirement."""

    is_fault = True


class LeaseError(EspError):
    """A board is held by someone else, or its lock cannot be created."""

    is_fault = True


class PortError(EspError):
    """A port does not exist, is busy, cannot be opened, or was disconnected."""

    is_fault = True


class LinkError(EspError):
    """The chip does not respond, or its response is invalid."""

    is_fault = True


class WrongChipError(LinkError):
    """The board responds, but it is not the requested chip."""


class OperationError(EspError):
    """An operation failed on a working link."""


class StoppedError(EspError):
    """The caller stopped the operation through its progress callback."""


class RefusedError(EspError):
    """An operation is not allowed on this board; nothing was sent to it."""


class FirmwareError(EspError):
    """An image is unreadable, damaged, too large, or made for another chip."""


class BackendError(EspError):
    """A virtual board failed to start, ended unexpectedly, or does not support the request."""

    is_fault = True
