"""Removes terminal escape sequences (ECMA-48, and xterm's) from console output."""

from __future__ import annotations

import re

_LONGEST = 4096  # bytes; a longer beginning of a sequence is text after a stray ESC
_STRING = rb"[^\x18\x1a\x1b\n]*"  # a line feed ends a string too: boards do not print any with one, but stray ESCs

_SEQUENCE = re.compile(
    rb"\x1b(?:\[[0-?]{0,64}[ -/]{0,8}[@-~]"  # CSI: colours, cursor
    rb"|\][^\x07\x18\x1a\x1b\n]*(?:\x07|\x1b\\)"  # OSC: titles, clipboard
    rb"|[PX^_]" + _STRING + rb"\x1b\\"  # DCS, SOS, PM, APC
    rb"|#[3-68]|%[@G8]|[()*+][0AB]"  # character sets
    rb"|[6-9=>c|}~\\])?"  # Of the others, only those that boards use: after a stray ESC in noise, text goes on.
)
_BEGINNING = re.compile(
    rb"\x1b(?:\[[0-?]{0,64}[ -/]{0,8}|\][^\x07\x18\x1a\x1b\n]*\x1b?|[PX^_]" + _STRING + rb"\x1b?|[#%()*+])?\Z"
)


_COLOUR = re.compile(rb"\x1b\[[0-9;:]*m")


def without_escapes(data: bytes | bytearray) -> bytes:
    """Return *data* without escape sequences and single ESCs."""
    return _SEQUENCE.sub(b"", data)


class EscapeFilter:
    """Removes escape sequences from a stream of pieces.

    Args:
        keeps_colours: whether to keep SGR sequences.

    Attributes:
        held: the end of the input if it may be the beginning of a sequence; it is kept until the next piece, or until
            `release`.
    """

    def __init__(self, *, keeps_colours: bool = False) -> None:
        self.held = b""
        self._keeps_colours = keeps_colours

    def feed(self, data: bytes | bytearray) -> bytes | bytearray:
        """Add *data*, and return the text so far."""
        if not self.held and b"\x1b" not in data:
            return data
        data = self.held + data
        beginning = _BEGINNING.search(data, max(0, len(data) - _LONGEST))
        self.held = beginning[0] if beginning else b""
        return _SEQUENCE.sub(_only_colour if self._keeps_colours else b"", data[: len(data) - len(self.held)])

    def release(self) -> bytes:
        """Return what was held, as text: it was not the beginning of a sequence."""
        held, self.held = self.held, b""
        return without_escapes(held)


def _only_colour(found: re.Match[bytes]) -> bytes:
    return found[0] if _COLOUR.fullmatch(found[0]) else b""
