"""Similar names, for "did you mean" messages, and names of chips as people spell them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Annotated, Any


def nearest(name: str, candidates: Iterable[str], count: int = 3) -> str:
    """Return up to *count* of the *candidates* most similar to *name*, best first, separated by commas."""
    known = sorted(candidates)
    folded = {candidate.casefold(): candidate for candidate in known}
    found = difflib.get_close_matches(name.casefold(), folded, n=count, cutoff=0.4)
    return ", ".join(folded[item] for item in found) or ", ".join(known[:count]) or "none"


_CHIP = re.compile(r"esp(8266|32([a-z][0-9]{1,2})?)")


def chip_name(text: str) -> str:
    """Return the name of a chip as esptool spells it: ``"esp32c3"`` for ``"ESP32-C3"``; other texts as they are."""
    folded = re.sub(r"[\s_-]", "", text).lower()
    return folded if _CHIP.fullmatch(folded) else text


class ChipSpelling:
    """Marks a parameter, or a field of a model, as the name of a chip in any spelling; see `chip_name`."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        def spelled(value: Any) -> Any:
            return chip_name(value) if isinstance(value, str) else value

        return core_schema.no_info_before_validator_function(spelled, handler(source))


ChipName = Annotated[str, ChipSpelling()]
"""The name of a chip, e.g. ``"esp32c3"`` or ``"ESP32-C3"``. Operations get it as esptool spells it."""
