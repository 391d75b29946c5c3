"""What a run knows of the chips of its boards: remembered from earlier runs, or asked in this one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_esp.rack.facts import Facts
    from pytest_esp.rack.rack import Rack
    from pytest_esp.rack.spec import BoardSpec


@dataclass(frozen=True)
class Known:
    """A board of the rack.

    Attributes:
        spec: its entry, filled in with the facts.
        facts: what its chip has reported; None if it is not known.
        asked: whether that was in this run, by this process.
    """

    spec: BoardSpec
    facts: Facts | None
    asked: bool

    @property
    def remark(self) -> str:
        """Return where the facts come from if they are only remembered."""
        if self.asked or self.facts is None:
            return ""
        return f" (remembered of {self.facts.mac}; the operation chip-identify asks the chip again)"


_KNOWN = pytest.StashKey[dict[str, Known]]()


def known(config: pytest.Config, spec: BoardSpec, rack: Rack) -> Known:
    """Return what is known of a board. No port is opened; what is remembered is read once in a run."""
    from pytest_esp.rack.facts import filled_in, remembered

    everything = config.stash.setdefault(_KNOWN, {})
    if spec.name not in everything:
        facts = remembered(spec, rack)
        everything[spec.name] = Known(filled_in(spec, facts), facts, asked=False)
    return everything[spec.name]


def learn(config: pytest.Config, spec: BoardSpec, facts: Facts) -> None:
    """Note what a board's chip has reported in this run."""
    from pytest_esp.rack.facts import filled_in

    config.stash.setdefault(_KNOWN, {})[spec.name] = Known(filled_in(spec, facts), facts, asked=True)
