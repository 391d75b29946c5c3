"""What measures the current that a board takes: the interface of meters, and which kinds there are.

A meter stands beside the board, whatever the board's backend: boards.toml names it (``power_meter``). More kinds come
from packages, by entry points of the group `ENTRY_POINTS`.
"""

from __future__ import annotations

import importlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from types import TracebackType
from typing import TYPE_CHECKING, Self

from pytest_esp.errors import BackendError
from pytest_esp.names import nearest

if TYPE_CHECKING:
    from pytest_esp.rack.spec import PowerMeterSpec

ENTRY_POINTS = "pytest_esp.power_meters"
_TICK = 0.5  # seconds
_BUILT_IN = {
    "ppk2": "pytest_esp.boards.ppk2:Ppk2",
    "sim": "pytest_esp.boards.power_meter:SimulatedMeter",
}


@dataclass(frozen=True)
class Current:
    """What a meter has measured.

    Attributes:
        amperes: the samples, one after the other.
        seconds: from the first to the last.
    """

    amperes: Sequence[float]
    seconds: float


class PowerMeter(ABC):
    """A meter of one board. Use it as a context: it holds its port meanwhile.

    Args:
        spec: what boards.toml says of it.
        board: the board's name, for messages.
    """

    def __init__(self, spec: PowerMeterSpec, board: str) -> None:
        self.spec = spec
        self.board = board

    @abstractmethod
    def open(self) -> None:
        """Take the meter.

        Raises:
            PortError: if it is not there, or in use; BackendError: if it does not answer as such a meter does.
        """

    @abstractmethod
    def close(self) -> None:
        """Give it back. The board keeps its supply."""

    @abstractmethod
    def measure(self, seconds: float, tick: Callable[[], None] | None = None) -> Current:
        """Return the current over the next *seconds*; *tick* is called now and then, what it raises ends it.

        Raises:
            PortError: if the meter is gone.
        """

    @property
    def volts(self) -> float:
        """What it supplies, or what the board is supplied with, as boards.toml says."""
        return self.spec.voltage_mv / 1000

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class SimulatedMeter(PowerMeter):
    """A meter for tests of what uses one: it shows the levels of ``options``, over and over.

    Options: ``levels_ma``, a list; ``level_seconds``, how long each of them lasts (0.05 by default).
    """

    RATE = 1000
    """Samples per second."""

    def open(self) -> None:
        """Check the options.

        Raises:
            BackendError: if one is wrong.
        """
        levels = self.spec.options.get("levels_ma", [40.0])
        if not isinstance(levels, list) or not levels or not all(isinstance(one, (int, float)) for one in levels):
            raise BackendError(f"levels_ma must be a list of numbers, not {levels!r}", board=self.board)
        self._levels = [float(one) / 1000 for one in levels]
        self._each = max(round(float(self.spec.options.get("level_seconds", 0.05)) * self.RATE), 1)

    def close(self) -> None:
        """Do nothing: there is no port."""

    def measure(self, seconds: float, tick: Callable[[], None] | None = None) -> Current:
        """Take the time that it takes, and show the levels."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(left, _TICK))
            if tick is not None:
                tick()
        count = max(round(seconds * self.RATE), 1)
        return Current([self._levels[at // self._each % len(self._levels)] for at in range(count)], count / self.RATE)


def meter_of(spec: PowerMeterSpec, board: str) -> PowerMeter:
    """Return the meter that *spec* names, not yet open.

    Raises:
        BackendError: if this installation has no such kind, or it cannot be imported.
    """
    return _class(spec.driver)(spec, board)


def _class(driver: str) -> type[PowerMeter]:
    if driver in _BUILT_IN:
        module, _, name = _BUILT_IN[driver].partition(":")
        return getattr(importlib.import_module(module), name)
    found = entry_points(group=ENTRY_POINTS, name=driver)
    if not found:
        known = [*_BUILT_IN, *entry_points(group=ENTRY_POINTS).names]
        raise BackendError(
            f"unknown power meter driver {driver!r}",
            hint=f"nearest: {nearest(driver, known)}; packages add more with the entry point group {ENTRY_POINTS}",
        )
    try:
        return next(iter(found)).load()
    except Exception as error:
        raise BackendError(f"the power meter {driver!r} cannot be loaded: {error}") from error
