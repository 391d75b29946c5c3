"""Similar names, for "did you mean" messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, candidates: Iterable[str], count: int = 3) -> str:
    """Return up to *count* of the *candidates* most similar to *name*, best first, separated by commas."""
    known = sorted(candidates)
    folded = {candidate.casefold(): candidate for candidate in known}
    found = difflib.get_close_matches(name.casefold(), folded, n=count, cutoff=0.4)
    return ", ".join(folded[item] for item in found) or ", ".join(known[:count]) or "none"
