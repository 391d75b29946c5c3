"""A page of a board's flash that everybody signs who drives it: what shows if two ever did at once.

Whoever has the board reads the page, which must be closed, writes the next count with its own name, does its work,
finds its own name still there, and closes it. Two at a time would meet an open page, read another's name, or sign the
same count; a write that was lost leaves a gap.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

ADDRESS = 0x3F0000
SIZE = 4096


class TrespassError(Exception):
    """What the page shows is no turn-taking."""


@dataclass(frozen=True)
class Page:
    """How often the board was taken, by whom the last time, and whether it still is."""

    count: int = 0
    owner: str = ""
    open: bool = False

    def pack(self) -> bytes:
        """Return what is written to flash."""
        return json.dumps([self.count, self.owner, self.open]).encode().ljust(SIZE, b"\xff")

    @classmethod
    def unpack(cls, data: bytes) -> Page:
        """Return what was read from flash; a page that was never written was never signed.

        Raises:
            TrespassError: if it is no page: half of it is from another.
        """
        text = data.rstrip(b"\xff")
        try:
            return cls(*json.loads(text)) if text else cls()
        except (ValueError, TypeError) as error:
            raise TrespassError(f"the page is garbled: {text[:80]!r}") from error

    def sign(self, owner: str) -> Page:
        """Return the page of the next holder.

        Raises:
            TrespassError: if somebody has it still.
        """
        if self.open:
            raise TrespassError(f"{owner} has the board, and so has {self.owner} (count {self.count})")
        return Page(self.count + 1, owner, open=True)

    def check(self, data: bytes) -> None:
        """Check that the flash has this very page.

        Raises:
            TrespassError: if it has another.
        """
        found = self.unpack(data)
        if found != self:
            raise TrespassError(f"written was {self}, read {found}")

    def close(self) -> Page:
        """Return the page of a holder who has finished."""
        return replace(self, open=False)
