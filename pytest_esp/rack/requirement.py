"""What a test needs of a board."""

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
    """What a board must be; what is empty does not matter.

    Args:
        chips: any of these.
        backends: any of these.
        boards: any of these, by name.
        features: all of these.
        flash: a comparison such as ``">=4MB"``; a bare size means exactly that.
        count: so many boards at once.

    Raises:
        RackError: if *flash* is no comparison, or *count* is not positive.
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
        """Tell whether *spec* is such a board."""
        return not self.why_not(spec)

    def why_not(self, spec: BoardSpec) -> str:
        """Return what *spec* lacks, in words; empty if it matches."""
        if self.boards and spec.name not in self.boards:
            return f"it is not {_any(self.boards)}"
        if self.chips and spec.chip not in self.chips:
            chip = spec.chip if spec.chip != "auto" else "unknown (boards.toml does not tell it)"
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
        """Return the requirement in words."""
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
        return "boards.toml does not tell its flash_size"
    holds = {
        ">=": size >= wanted,
        "<=": size <= wanted,
        ">": size > wanted,
        "<": size < wanted,
        "==": size == wanted,
    }
    return "" if holds[operator] else f"its flash has {format_size(size)}, not {operator}{format_size(wanted)}"
