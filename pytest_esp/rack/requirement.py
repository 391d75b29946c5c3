"""Requirements that a board must meet."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pytest_esp.errors import RackError
from pytest_esp.rack.chips import AUTO
from pytest_esp.rack.facts import REPORTED_FEATURES
from pytest_esp.units import format_revision, format_size, parse_revision, parse_size

if TYPE_CHECKING:
    from pytest_esp.rack.spec import BoardSpec

_COMPARISON = re.compile(r"\s*(>=|<=|==|>|<|)\s*(.+?)\s*")
_HOLDS: dict[str, Callable[[int, int], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
    "==": operator.eq,
}

Verdict = Literal["match", "no", "unknown"]
"""Whether a board meets a requirement; "unknown" until its chip was asked."""


@dataclass(frozen=True)
class Requirement:
    """What a board must be. Empty fields do not matter.

    Args:
        chips: any of these.
        backends: any of these.
        boards: any of these names.
        features: all of these.
        flash: a comparison such as ``">=4MB"``; a size alone means exactly that size.
        revision: a comparison such as ``">=3.1"`` or ``">=301"``; ``">=3"`` compares the major revision only.
        crystal: a comparison of MHz such as ``"40"``.
        count: the number of boards.

    Raises:
        RackError: if *flash*, *revision* or *crystal* is not a valid comparison, or *count* is not positive.
    """

    chips: tuple[str, ...] = ()
    backends: tuple[str, ...] = ()
    boards: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    flash: str | None = None
    revision: str | None = None
    crystal: str | None = None
    count: int = 1

    def __post_init__(self) -> None:
        for quantity, comparison in self._comparisons():
            quantity.parse(comparison)
        if self.count < 1:
            raise RackError(f"count must be at least 1, not {self.count}")

    def _comparisons(self) -> list[tuple[_Quantity, str]]:
        given = ((_FLASH, self.flash), (_REVISION, self.revision), (_CRYSTAL, self.crystal))
        return [(quantity, comparison) for quantity, comparison in given if comparison is not None]

    def matches(self, spec: BoardSpec) -> bool:
        """Return whether *spec* meets the requirement by what it says."""
        return self.verdict(spec) == "match"

    def verdict(self, spec: BoardSpec) -> Verdict:
        """Return whether *spec* meets the requirement, as far as it says what is required."""
        lacks = list(self._lacks(spec))
        return "match" if not lacks else "unknown" if all(is_open for _, is_open in lacks) else "no"

    def why_not(self, spec: BoardSpec, *, asked: bool = False) -> str:
        """Return why *spec* does not match; empty if it does, or may.

        Args:
            spec: the board's entry, with what is known of its chip.
            asked: whether the chip was asked: what *spec* then does not say, nobody does.
        """
        return next((reason for reason, is_open in self._lacks(spec) if asked or not is_open), "")

    def _lacks(self, spec: BoardSpec) -> Iterator[tuple[str, bool]]:
        """Yield what *spec* lacks, and whether its chip may have it."""
        if self.boards and spec.name not in self.boards:
            yield f"it is not {_any(self.boards)}", False
        if self.chips and spec.chip not in self.chips:
            chip = spec.chip if spec.chip != AUTO else "unknown (not given in boards.toml)"
            yield f"its chip is {chip}, not {_any(self.chips)}", spec.chip == AUTO
        if self.backends and spec.backend not in self.backends:
            yield f"its backend is {spec.backend}, not {_any(self.backends)}", False
        missing = [feature for feature in self.features if feature not in spec.features]
        if missing:
            yield f"it has no {', '.join(missing)}", not spec.virtual and set(missing) <= set(REPORTED_FEATURES)
        for quantity, comparison in self._comparisons():
            if reason := quantity.why_not(comparison, value := getattr(spec, quantity.key)):
                yield reason, value is None

    def describe(self) -> str:
        """Return the requirement as text."""
        parts = [
            f"chip {_any(self.chips)}" if self.chips else "",
            f"backend {_any(self.backends)}" if self.backends else "",
            f"board {_any(self.boards)}" if self.boards else "",
            f"features {', '.join(self.features)}" if self.features else "",
            *(f"{quantity.name} {comparison}" for quantity, comparison in self._comparisons()),
        ]
        text = ", ".join(part for part in parts if part) or "any board"
        return f"{self.count} boards: {text}" if self.count > 1 else text


def _any(names: tuple[str, ...]) -> str:
    return " or ".join(names)


@dataclass(frozen=True)
class _Quantity:
    """A number that entries give and that tests compare.

    Attributes:
        name: as markers name it.
        key: as entries name it.
        examples: of comparisons.
    """

    name: str
    key: str
    examples: str
    number: Callable[[str], int]
    text: Callable[[int], str]

    def parse(self, comparison: str) -> tuple[str, str, int]:
        """Return the operator of a comparison, and the value as text and as a number."""
        match = _COMPARISON.fullmatch(comparison)
        try:
            if match is None:
                raise ValueError
            return match[1] or "==", match[2], self.number(match[2])
        except ValueError:
            words = "a valid size or comparison" if self.key == "flash_size" else "a valid comparison"
            raise RackError(f"{self.name}={comparison!r} is not {words}", hint=f"e.g. {self.examples}") from None

    def why_not(self, comparison: str, value: int | None) -> str:
        """Return why *value* does not meet *comparison*; empty if it does."""
        sign, text, wanted = self.parse(comparison)
        words = self.key.replace("_", " ")
        if value is None:
            return f"its {self.key} is neither given in boards.toml nor reported by its chip"
        is_major = self.key == "revision" and text.isdecimal() and wanted < 100
        if _HOLDS[sign](value // 100 if is_major else value, wanted):
            return ""
        shown = f"v{wanted}" if is_major else self.text(wanted)
        return f"its {words} is {self.text(value)}, not {sign}{shown}"


def _megahertz(text: str) -> int:
    return int(text.lower().removesuffix("mhz").strip())


_FLASH = _Quantity("flash", "flash_size", "'>=4MB', '8MB', '<16MB'", parse_size, format_size)
_REVISION = _Quantity("revision", "revision", "'>=3', '>=3.1', '301'", parse_revision, format_revision)
_CRYSTAL = _Quantity("crystal", "crystal", "'40', '>=26'", _megahertz, lambda mhz: f"{mhz} MHz")
