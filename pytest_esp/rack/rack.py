"""The boards of one boards.toml."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_esp.errors import LeaseError, NoMatchError, RackError
from pytest_esp.names import nearest
from pytest_esp.rack import lease as leases
from pytest_esp.rack.facts import filled_in, remembered
from pytest_esp.rack.identity import STATE_ENVIRONMENT, canonical_port, possible_ports, state_folder
from pytest_esp.rack.requirement import Requirement

if TYPE_CHECKING:
    from pytest_esp.rack.spec import BoardSpec


@dataclass(frozen=True)
class Rack:
    """The boards of a rack.

    Attributes:
        path: the file it was read from; None for the built-in rack.
        boards: the boards by name, in the order of the file.
        lock_dir: the lock folder from ``[rack] lock_dir``; None if it is not set.
    """

    name: str
    path: Path | None
    boards: Mapping[str, BoardSpec]
    lock_dir: Path | None = None

    def board(self, name: str) -> BoardSpec:
        """Return the board of that name.

        Raises:
            RackError: if there is none.
        """
        if name not in self.boards:
            raise RackError(f"the rack has no board {name!r}; nearest: {nearest(name, self.boards)}")
        return self.boards[name]

    def known(self, spec: BoardSpec) -> BoardSpec:
        """Return *spec* with what is remembered of the chip last seen on its port, where its entry does not say it."""
        return filled_in(spec, remembered(spec, self))

    def only_board(self, name: str | None = None) -> str:
        """Return *name*, or the name of the only board if it is None.

        Raises:
            RackError: if the rack has no board of that name, or several to choose from.
        """
        if name is not None:
            return self.board(name).name
        if len(self.boards) != 1:
            raise RackError(
                f"the rack {self.name!r} has {len(self.boards)} boards, and none was selected",
                hint=f"select one of {', '.join(self.boards)}",
            )
        return next(iter(self.boards))

    def board_at(self, port: str) -> BoardSpec | None:
        """Return the board that *port* leads to, however it is spelled; None if the rack does not name that port.

        A board with a ``console_port`` has two. An entry with USB IDs that several devices have stands for each of
        them, so that what it allows holds for all.

        Raises:
            PortError: if *port* is malformed, or given by USB IDs, and no device or several devices match.
        """
        wanted = canonical_port(port)
        found = [
            (possible_ports(port), spec)
            for spec in self.boards.values()
            for port in (spec.port, spec.console_port)
            if port
        ]
        fitting = [(len(ports), spec) for ports, spec in found if wanted in ports]
        return min(fitting, key=lambda item: item[0])[1] if fitting else None

    def match(self, requirement: Requirement) -> list[BoardSpec]:
        """Return the boards that match, in the order of the file; if they are too few, also those that may match.

        Whether those match is known when their chips have been asked.

        Raises:
            NoMatchError: if too few match; the message says why for each board.
        """
        known = [self.known(spec) if requirement.verdict(spec) == "unknown" else spec for spec in self.boards.values()]
        verdicts = {spec.name: requirement.verdict(spec) for spec in known}
        found = [spec for spec in self.boards.values() if verdicts[spec.name] == "match"]
        if len(found) < requirement.count:
            found += [spec for spec in self.boards.values() if verdicts[spec.name] == "unknown"]
        if len(found) >= requirement.count:
            return found
        reasons = [f"{spec.name}: {why}" for spec in known if (why := requirement.why_not(spec))]
        have = f"only {len(found)} of {requirement.count} boards match" if found else "no board of the rack matches"
        raise NoMatchError(f"{have} ({requirement.describe()}): " + "; ".join(reasons or ["it has no other boards"]))

    def lease(
        self,
        requirement: Requirement | str,
        *,
        purpose: str,
        timeout: float | None = None,
        on_wait: leases.OnWait | None = None,
    ) -> list[leases.Lease]:
        """Lease boards that match a requirement, or the board of that name; see `lease.acquire`.

        Raises:
            RackError: if the rack has no board of that name.
            NoMatchError: if too few boards match.
            LeaseError: if they do not become free in *timeout* seconds.
            PortError: if too few of them are plugged in.
        """
        if isinstance(requirement, str):
            requirement = Requirement(boards=(self.board(requirement).name,))
        return leases.acquire(
            self.match(requirement),
            rack=self,
            purpose=purpose,
            count=requirement.count,
            timeout=timeout,
            on_wait=on_wait,
        )

    def state_dir(self, spec: BoardSpec) -> Path:
        """Return the folder for a virtual board's flash and other state. It is created if it is missing.

        Raises:
            LeaseError: if it cannot be created.
            PortError: if the board's port is given by USB IDs, and no device or several devices match.
        """
        folder = state_folder() / leases.file_stem(spec, self)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LeaseError(
                f"cannot create the state folder {folder}: {error.strerror}",
                hint=f"set {STATE_ENVIRONMENT} to another folder",
            ) from error
        return folder
