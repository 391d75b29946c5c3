"""What a terminal may be sent of text that others wrote: a board, a file, a client."""

from __future__ import annotations

import re

_COLOUR = r"\x1b\[[0-9;:]*m"
_CONTROL = r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]"
_CONTROLS = re.compile(rf"({_COLOUR})|\r(?=\n)|({_CONTROL})")


def without_controls(text: str, *, colours: bool = False) -> str:
    r"""Return *text* with its control characters, except tabs and line feeds, written as ``\x07``.

    Titles, the clipboard and whatever else a terminal does for an escape sequence are thus not reached.

    Args:
        colours: whether to keep colours (SGR sequences); they are removed otherwise.
    """
    if text.isascii() and text.isprintable():
        return text

    def shown(found: re.Match[str]) -> str:
        if found[1]:
            return found[1] if colours else ""
        return repr(found[2])[1:-1] if found[2] else ""

    return _CONTROLS.sub(shown, text)
