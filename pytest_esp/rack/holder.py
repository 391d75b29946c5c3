"""Who holds a board."""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass

HOST = socket.gethostname()


@dataclass(frozen=True)
class HolderRecord:
    """Who holds a board.

    Attributes:
        pid: of the holder; 0 if it has not signed yet.
        purpose: the test, session or tool call.
        since: seconds since the epoch.
        started: when the process *pid* started, in clock ticks since the machine's start; None where that is unknown.
    """

    board: str
    pid: int
    host: str
    user: str
    purpose: str
    since: float
    started: int | None = None

    def describe(self) -> str:
        """Return it in words."""
        if not self.pid:
            return f"{self.board}: held by {self.purpose}"
        who = "this process, " if (self.pid, self.host) == (os.getpid(), HOST) else ""
        return (
            f"{self.board}: held for {self.seconds:.1f} s by {self.purpose} "
            f"({who}pid {self.pid}, {self.user}@{self.host})"
        )

    @property
    def seconds(self) -> float:
        """For how long it has held by now."""
        return max(0.0, time.time() - self.since)

    @property
    def is_signed(self) -> bool:
        """Whether it is known who it is; else somebody is just taking the board, giving it back or looking at it."""
        return bool(self.pid)


@dataclass(frozen=True)
class PlaceHolder(HolderRecord):
    """Who holds a place of a labgrid lab, by what its coordinator knows.

    Attributes:
        pid: 0 where it is no pytest-esp that holds it.
        place: the place's name.
        others: how many other places would do, and are held, too.
    """

    place: str = ""
    others: int = 0

    def describe(self) -> str:
        """Return it in words."""
        return f"{self.board}: the labgrid place {self.place} is {self.how}"

    @property
    def how(self) -> str:
        """How it is held, in words that follow "is"."""
        more = f"; so are {self.others} more that would do" if self.others else ""
        if not self.user:
            return f"{self.purpose or 'reserved for somebody else'}{more}"
        what = f", {self.purpose}" if self.purpose else ""
        return f"held for {self.seconds:.1f} s by {self.user}@{self.host}{what}{more}"

    @property
    def is_signed(self) -> bool:
        """Whether it is known who it is."""
        return True
