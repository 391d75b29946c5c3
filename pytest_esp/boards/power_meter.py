"""Power meters, which measure a board's supply current: their interface, and the available drivers.

A meter is configured in boards.toml (``power_meter``) and works with every backend. Packages can add drivers through
entry points of the group `ENTRY_POINTS`.
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
    """A measurement.

    Attributes:
        amperes: the samples in order, in amperes.
        seconds: the duration from the first to the last sample.
    """

    amperes: Sequence[float]
    seconds: float


class PowerMeter(ABC):
    """The meter of a board. A context manager: the port is open inside it.

    Args:
        spec: its entry in boards.toml.
        board: the board's name, for messages.
    """

    def __init__(self, spec: PowerMeterSpec, board: str) -> None:
        self.spec = spec
        self.board = board

    @abstractmethod
    def open(self) -> None:
        """Open the meter.

        Raises:
            PortError: if its port is missing or in use.
            BackendError: if the device is not such a meter.
        """

    @abstractmethod
    def close(self) -> None:
        """Close the meter. The board stays powered."""

    @abstractmethod
    def measure(self, seconds: float, tick: Callable[[], None] | None = None) -> Current:
        """Return the current over the next *seconds*. *tick* is called regularly; an exception from it ends this.

        Raises:
            PortError: if the meter was disconnected.
        """

    @property
    def volts(self) -> float:
        """The board's supply voltage in volts, from boards.toml."""
        return self.spec.voltage_mv / 1000

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class SimulatedMeter(PowerMeter):
    """A simulated meter, for tests: it repeats the levels of its ``options``.

    Options: ``levels_ma``, a list of currents in milliamperes; ``level_seconds``, the duration of each (default 0.05).
    """

    RATE = 1000
    """Samples per second."""

    def open(self) -> None:
        """Check the options.

        Raises:
            BackendError: if one is invalid.
        """
        levels = self.spec.options.get("levels_ma", [40.0])
        if not isinstance(levels, list) or not levels or not all(isinstance(one, (int, float)) for one in levels):
            raise BackendError(f"levels_ma must be a list of numbers, not {levels!r}", board=self.board)
        self._levels = [float(one) / 1000 for one in levels]
        self._each = max(round(float(self.spec.options.get("level_seconds", 0.05)) * self.RATE), 1)

    def close(self) -> None:
        """Do nothing: it does not have a port."""

    def measure(self, seconds: float, tick: Callable[[], None] | None = None) -> Current:
        """Wait for *seconds* and return the levels."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(left, _TICK))
            if tick is not None:
                tick()
        count = max(round(seconds * self.RATE), 1)
        return Current([self._levels[at // self._each % len(self._levels)] for at in range(count)], count / self.RATE)


def meter_of(spec: PowerMeterSpec, board: str) -> PowerMeter:
    """Return the meter for *spec*, not opened.

    Raises:
        BackendError: if the driver is not installed, or cannot be imported.
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
        raise BackendError(f"cannot load the power meter driver {driver!r}: {error}") from error
