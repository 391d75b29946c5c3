"""Sizes and addresses as people write them: ``"4MB"``, ``"64K"``, ``"0x10000"``, ``4096``; and as results show them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

SHOWN = "x-shown"
"""The keyword of a JSON schema made by pydantic that has the `Shown` of a field."""


@dataclass(frozen=True)
class Shown:
    """Marks a field of a result: JSON has hexadecimal text beside it, or does not have it."""

    how: Literal["hex", "never"]

    def __get_pydantic_json_schema__(self, core_schema: Any, handler: Any) -> dict[str, Any]:
        return {**handler(core_schema), SHOWN: self.how}


Address = Annotated[int, Shown("hex")]
"""An address, or another number that people read in hexadecimal: beside ``offset`` a record has ``offset_hex``."""

Contents = Annotated[bytes, Shown("never")]
"""Bytes for callers in Python; JSON does not have them."""

Picture = Annotated[str, Shown("never")]
"""A picture (SVG) for callers in Python; JSON does not have it."""

_SIZE = re.compile(r"(?P<number>0[xX][0-9a-fA-F_]+|[0-9][0-9_]*(\.[0-9]+)?)\s*(?P<unit>[kKmM]?)(?P<byte>[iI]?[bB])?")
_REVISION = re.compile(r"v?(?P<major>\d{1,2})\.(?P<minor>\d{1,2})|(?P<number>\d{1,4})", re.IGNORECASE)
_FACTOR = {"": 1, "k": 1024, "m": 1024 * 1024}


def parse_size(value: int | str) -> int:
    """Return *value* in bytes.

    Accepts non-negative integers, decimal and ``0x`` strings, and the suffixes ``K``, ``KB``, ``M``, ``MB``
    (powers of 1024, as everywhere in esptool and ESP-IDF), also of a fraction such as ``"1.5MB"``.

    Raises:
        ValueError: if *value* is not a size.
    """
    if isinstance(value, bool) or not isinstance(value, (int, str)):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"expected bytes as an integer, or a string like '4MB' or '0x1000', not {value!r}")
    if isinstance(value, int):
        if value < 0:
            raise ValueError(f"expected a non-negative number of bytes, not {value}")
        return value
    match = _SIZE.fullmatch(value.strip())
    if match is None:
        raise ValueError(f"expected e.g. '4MB', '64K', '0x1000' or '4096', not {value!r}")
    number, factor = match["number"].replace("_", ""), _FACTOR[match["unit"].lower()]
    if "." not in number:
        return int(number, 16 if number[:2].lower() == "0x" else 10) * factor
    size = float(number) * factor
    if not size.is_integer():
        raise ValueError(f"{value!r} is not a whole number of bytes")
    return int(size)


def format_size(size: int) -> str:
    """Return *size*, in bytes, formatted as esptool does: ``4MB``, ``64KB``, ``300B``."""
    for factor, unit in ((1024 * 1024, "MB"), (1024, "KB")):
        if size and size % factor == 0:
            return f"{size // factor}{unit}"
    return f"{size}B"


def parse_revision(text: str) -> int:
    """Return a chip's revision (major * 100 + minor) from ``"v3.1"``, ``"3.1"`` or ``"301"``.

    Raises:
        ValueError: if *text* is not a revision.
    """
    match = _REVISION.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"expected a chip revision such as 'v3.1' or 301, not {text!r}")
    return int(match["number"]) if match["number"] else int(match["major"]) * 100 + int(match["minor"])


def format_revision(revision: int) -> str:
    """Return a chip's revision (major * 100 + minor) as esptool writes it: ``v3.1``."""
    return f"v{revision // 100}.{revision % 100}"
