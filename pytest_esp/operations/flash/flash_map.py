"""A picture of a flash as SVG: one cell per sector, rows from left to right, regions by colour."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from xml.sax.saxutils import escape

from pytest_esp.formats.regions import SECTOR
from pytest_esp.operations.flash.layout import Span
from pytest_esp.units import format_size

_COLUMNS, _MOST_ROWS = 64, 64
_CELL, _LINE, _MARGIN, _LABEL = 10, 16, 8, 64


def draw(spans: Sequence[Span], used: Sequence[bool]) -> str:
    """Return a map of *spans*: used sectors in full colour, erased ones pale.

    Args:
        spans: from the first byte to the last, without gaps.
        used: for each sector (4 KB) whether it is used.
    """
    scale = max(-(-len(used) // (_COLUMNS * _MOST_ROWS)), 1)  # sectors per cell
    cells = [any(used[first : first + scale]) for first in range(0, len(used), scale)]
    rows = -(-len(cells) // _COLUMNS)
    bottom = _MARGIN + rows * _CELL + _MARGIN
    width = _LABEL + _COLUMNS * _CELL + _MARGIN
    height = bottom + len(spans) * _LINE + _MARGIN
    spans = [replace(span, name=_printable(span.name)) for span in spans]
    body = [*_rows(spans, cells, scale), *_legend(spans, used, bottom)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="monospace" font-size="11">\n<rect width="100%" height="100%" fill="white"/>\n'
        + "\n".join(body)
        + "\n</svg>\n"
    )


def _printable(name: str) -> str:
    """Return a name without characters that XML does not allow: names come from flash and may contain anything."""
    return "".join(character if character.isprintable() else "?" for character in name)


def _rows(spans: Sequence[Span], cells: Sequence[bool], scale: int) -> Iterator[str]:
    """Yield a rectangle for each run of cells in a row that look the same."""
    owners = [_owner(spans, number * scale * SECTOR) for number in range(len(cells))]
    for row, first in enumerate(range(0, len(cells), _COLUMNS)):
        y = _MARGIN + row * _CELL
        yield f'<text x="{_LABEL - 4}" y="{y + _CELL - 1}" text-anchor="end">{first * scale * SECTOR:#x}</text>'
        here = range(first, min(first + _COLUMNS, len(cells)))
        for (owner, filled), run in itertools.groupby(here, lambda number: (owners[number], cells[number])):
            numbers = list(run)
            span = spans[owner]
            yield (
                f'<rect x="{_LABEL + (numbers[0] - first) * _CELL}" y="{y}" width="{len(numbers) * _CELL - 1}" '
                f'height="{_CELL - 1}" fill="{_colour(span, owner, filled)}">'
                f"<title>{escape(span.name)}: {numbers[0] * scale * SECTOR:#x}, "
                f"{'used' if filled else 'erased'}</title></rect>"
            )


def _owner(spans: Sequence[Span], address: int) -> int:
    return next(number for number, span in enumerate(spans) if address < span.end)


def _legend(spans: Sequence[Span], used: Sequence[bool], top: int) -> Iterator[str]:
    for number, span in enumerate(spans):
        y = top + number * _LINE
        sectors = used[span.address // SECTOR : span.end // SECTOR]
        share = f"{100 * sum(sectors) / max(len(sectors), 1):.0f} % used"
        yield f'<rect x="{_LABEL}" y="{y}" width="10" height="10" fill="{_colour(span, number, True)}"/>'
        yield (
            f'<text x="{_LABEL + 16}" y="{y + 9}">{escape(span.name)}  {span.address:#x}  '
            f"{format_size(span.size)}  {share}</text>"
        )


def _colour(span: Span, number: int, filled: bool) -> str:
    """Return a colour per region: neighbours differ clearly, gaps are grey."""
    saturation = 0 if span.kind == "gap" else 65
    return f"hsl({number * 137 % 360},{saturation}%,{45 if filled else 90}%)"
