"""Records of who holds a board."""

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
        pid: the holder's process ID; 0 if it is not recorded yet.
        purpose: the test, session or tool call.
        since: the start of the lease, in seconds since the epoch.
        started: when the process *pid* started, in clock ticks since boot; None if unknown.
    """

    board: str
    pid: int
    host: str
    user: str
    purpose: str
    since: float
    started: int | None = None

    def describe(self) -> str:
        """Return a description for messages."""
        if not self.pid:
            return f"{self.board}: held by {self.purpose}"
        who = "this process, " if (self.pid, self.host) == (os.getpid(), HOST) else ""
        return (
            f"{self.board}: held for {self.seconds:.1f} s by {self.purpose} "
            f"({who}pid {self.pid}, {self.user}@{self.host})"
        )

    @property
    def seconds(self) -> float:
        """How long the board has been held, in seconds."""
        return max(0.0, time.time() - self.since)

    @property
    def is_signed(self) -> bool:
        """Whether the holder is known; if not, a process is just taking, releasing or checking the board."""
        return bool(self.pid)


@dataclass(frozen=True)
class PlaceHolder(HolderRecord):
    """The holder of a place of a labgrid lab, as its coordinator reports it.

    Attributes:
        pid: 0 if the holder is not pytest-esp.
        place: the place's name.
        others: the number of other suitable places, which are also held.
    """

    place: str = ""
    others: int = 0

    def describe(self) -> str:
        """Return a description for messages."""
        return f"{self.board}: the labgrid place {self.place} is {self.how}"

    @property
    def how(self) -> str:
        """How the place is held, as a text that follows "is"."""
        more = f"; so are {self.others} other suitable places" if self.others else ""
        if not self.user:
            return f"{self.purpose or 'reserved for someone else'}{more}"
        what = f", {self.purpose}" if self.purpose else ""
        return f"held for {self.seconds:.1f} s by {self.user}@{self.host}{what}{more}"

    @property
    def is_signed(self) -> bool:
        """Whether the holder is known: always, from the coordinator."""
        return True
