"""Requirements that a board must meet."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_esp.errors import RackError
from pytest_esp.units import format_size, parse_size

if TYPE_CHECKING:
    from pytest_esp.rack.spec import BoardSpec

_COMPARISON = re.compile(r"\s*(>=|<=|==|>|<|)\s*(.+?)\s*")


@dataclass(frozen=True)
class Requirement:
    """What a board must be. Empty fields do not matter.

    Args:
        chips: any of these.
        backends: any of these.
        boards: any of these names.
        features: all of these.
        flash: a comparison such as ``">=4MB"``; a size alone means exactly that size.
        count: the number of boards.

    Raises:
        RackError: if *flash* is not a valid comparison, or *count* is not positive.
    """

    chips: tuple[str, ...] = ()
    backends: tuple[str, ...] = ()
    boards: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    flash: str | None = None
    count: int = 1

    def __post_init__(self) -> None:
        if self.flash is not None:
            _parse_comparison(self.flash)
        if self.count < 1:
            raise RackError(f"count must be at least 1, not {self.count}")

    def matches(self, spec: BoardSpec) -> bool:
        """Return whether *spec* meets the requirement."""
        return not self.why_not(spec)

    def why_not(self, spec: BoardSpec) -> str:
        """Return why *spec* does not match; empty if it does."""
        if self.boards and spec.name not in self.boards:
            return f"it is not {_any(self.boards)}"
        if self.chips and spec.chip not in self.chips:
            chip = spec.chip if spec.chip != "auto" else "unknown (not given in boards.toml)"
            return f"its chip is {chip}, not {_any(self.chips)}"
        if self.backends and spec.backend not in self.backends:
            return f"its backend is {spec.backend}, not {_any(self.backends)}"
        missing = [feature for feature in self.features if feature not in spec.features]
        if missing:
            return f"it has no {', '.join(missing)}"
        if self.flash is not None:
            return _flash_why_not(self.flash, spec.flash_size)
        return ""

    def describe(self) -> str:
        """Return the requirement as text."""
        parts = [
            f"chip {_any(self.chips)}" if self.chips else "",
            f"backend {_any(self.backends)}" if self.backends else "",
            f"board {_any(self.boards)}" if self.boards else "",
            f"features {', '.join(self.features)}" if self.features else "",
            f"flash {self.flash}" if self.flash else "",
        ]
        text = ", ".join(part for part in parts if part) or "any board"
        return f"{self.count} boards: {text}" if self.count > 1 else text


def _any(names: tuple[str, ...]) -> str:
    return " or ".join(names)


def _parse_comparison(text: str) -> tuple[str, int]:
    match = _COMPARISON.fullmatch(text)
    assert match is not None
    try:
        return match[1] or "==", parse_size(match[2])
    except ValueError:
        raise RackError(
            f"flash={text!r} is not a valid size or comparison", hint="e.g. '>=4MB', '8MB', '<16MB'"
        ) from None


def _flash_why_not(comparison: str, size: int | None) -> str:
    operator, wanted = _parse_comparison(comparison)
    if size is None:
        return "its flash_size is not given in boards.toml"
    holds = {
        ">=": size >= wanted,
        "<=": size <= wanted,
        ">": size > wanted,
        "<": size < wanted,
        "==": size == wanted,
    }
    return "" if holds[operator] else f"its flash size is {format_size(size)}, not {operator}{format_size(wanted)}"
