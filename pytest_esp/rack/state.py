"""The state of a rack's boards: free, held or missing."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from pytest_esp.errors import PortError
from pytest_esp.rack.holder import HolderRecord, PlaceHolder
from pytest_esp.rack.lease import holder_of
from pytest_esp.rack.presence import check_reachable

if TYPE_CHECKING:
    from pytest_esp.rack.rack import Rack
    from pytest_esp.rack.spec import BoardSpec

State = Literal["free", "held", "absent"]


@dataclass(frozen=True)
class BoardState:
    """The state of a board, found without opening it.

    Attributes:
        holder: who holds it; None if it is not held.
        problem: why it cannot be found; None if it is not missing.
    """

    spec: BoardSpec
    state: State
    holder: HolderRecord | None = None
    problem: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the state as plain data: ``state``, and ``holder`` as text or ``problem`` if there is one."""
        row: dict[str, Any] = {"state": self.state}
        if self.holder is not None:
            row["holder"] = self.holder.describe()
        if self.problem is not None:
            row["problem"] = self.problem
        return row


def state_of(spec: BoardSpec, rack: Rack) -> BoardState:
    """Return the state of a board.

    Raises:
        LeaseError: if the lock folder cannot be used.
    """
    try:
        holder = holder_of(spec, rack)
        if holder is None:
            check_reachable(spec)
    except PortError as error:
        return BoardState(spec, "absent", problem=error.message)
    return BoardState(spec, "free" if holder is None else "held", holder)


def holder_to_dict(holder: HolderRecord) -> dict[str, Any]:
    """Return a holder as plain data; ``since`` is ISO 8601 in UTC, ``seconds`` is how long the board has been held."""
    place = {"place": holder.place} if isinstance(holder, PlaceHolder) else {}
    return place | {
        "pid": holder.pid,
        "host": holder.host,
        "user": holder.user,
        "purpose": holder.purpose,
        "since": datetime.fromtimestamp(holder.since, UTC).isoformat(timespec="milliseconds"),
        "seconds": round(holder.seconds, 1),
    }
